"""Checks the event files of a run against its JSON Lines log, with TensorBoard's own reader.

    python tests/python/check_tensorboard.py LOG_DIR

LOG_DIR holds `metrics.jsonl` and event files of the same run, resumed or not: every number
of the one must be in the other, and nothing else.
"""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def logged(path):
    """Tag -> [(step, value)], and [(step, note)], of the JSON Lines log."""
    scalars, notes = defaultdict(list), []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        record.pop("time")  # events have their own
        for name, value in record.items():
            if name == "note":
                notes.append((step, value))
            elif value is not None:
                scalars[name].append((step, value))
    return scalars, notes


def main(log_dir):
    expected, expected_notes = logged(log_dir / "metrics.jsonl")
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()

    problems = []
    if set(tags["scalars"]) != set(expected):
        problems.append(f"scalars {sorted(tags['scalars'])}, expected {sorted(expected)}")
    for tag in tags["scalars"]:
        found = [(e.step, e.value) for e in events.Scalars(tag)]
        same = len(found) == len(expected[tag]) and all(
            step == at and math.isclose(value, number, rel_tol=1e-6)
            for (step, value), (at, number) in zip(found, expected[tag])
        )
        if not same:
            problems.append(f"{tag}: {found}, expected {expected[tag]}")
    notes = [
        (e.step, text.decode())
        for tag in tags["tensors"]
        for e in events.Tensors(tag)
        for text in e.tensor_proto.string_val
    ]
    if notes != expected_notes:
        problems.append(f"notes {notes}, expected {expected_notes}")

    if problems:
        sys.exit("\n".join(problems))
    count = sum(map(len, expected.values()))
    if count == 0:
        sys.exit(f"{log_dir}: the log is empty")
    print(f"{count} scalars and {len(notes)} notes read back by TensorBoard")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
