"""What both peers share: the settings, the rows of data, and the record of a run."""
import importlib.metadata, json, sys, time

import torch

IGNORE = -100


def settings():
    """The settings of the run, from the file named on the command line."""
    with open(sys.argv[1]) as file:
        return json.load(file)


def model_config(run):
    with open(f"{run['model']}/config.json") as file:
        return json.load(file)


def rows(path):
    """Each row has `input_ids`, `labels` of the same length, and the `lengths` of the samples in it."""
    with open(path) as file:
        return [json.loads(line) for line in file]


def pad(batch, pad_id):
    """Token ids and labels, padded on the right to the longest row, and the lengths of what each row holds, padding as the last."""
    longest = max(len(row["input_ids"]) for row in batch)
    missing = [longest - len(row["input_ids"]) for row in batch]
    ids = torch.tensor([row["input_ids"] + [pad_id] * n for row, n in zip(batch, missing)])
    labels = torch.tensor([row["labels"] + [IGNORE] * n for row, n in zip(batch, missing)])
    lengths = [row["lengths"] + ([n] if n else []) for row, n in zip(batch, missing)]
    return ids, labels, lengths


def is_packed(batch):
    """Whether a row holds more than one sample. Right padding alone needs no mask: causal attention never sees it."""
    return any(len(row["lengths"]) > 1 for row in batch)


def peak_memory():
    """The kernel's own record of the largest resident set, in bytes; 0 where there is none."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0


class Record:
    """When the first forward pass began and each step ended, in seconds since 1970, and each step's loss."""

    def __init__(self, run):
        self.out = run["out"]
        self.first_forward, self.steps = None, []

    def begins(self):
        """A forward pass begins."""
        self.first_forward = self.first_forward or time.time()

    def step(self, loss):
        self.steps.append({"time": time.time(), "loss": float(loss)})

    def write(self, settings, packages):
        record = {"first_forward": self.first_forward, "steps": self.steps, "settings": settings, "peak_memory_bytes": peak_memory(),
                  "versions": {name: importlib.metadata.version(name) for name in packages}}
        with open(self.out, "w") as file:
            json.dump(record, file)
