"""Writes tests/fixtures/stop_tokens.json: at which ids transformers stops, for pairs of config.json and
generation_config.json. Ids that are none of the vocabulary are kept by transformers and never met.

    python tests/python/make_stop_tokens.py
"""

import json
import shutil
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes/tiny/model"

# The eos_token_id of config.json, and the content of generation_config.json; ... where there is none.
CASES = [
    (5, {"eos_token_id": [7, 8]}),
    (5, {"eos_token_id": 7}),
    ([5, 6], {"eos_token_id": 7}),
    (5, {"temperature": 0.5, "do_sample": True}),
    (5, {"eos_token_id": None}),
    (5, {"eos_token_id": []}),
    (5, {}),
    (5, ...),
    ([5, 6], ...),
    ([6, 5], ...),
    (None, ...),
    (..., ...),
    (..., {"eos_token_id": 7}),
    (-1, ...),
    (5, {"eos_token_id": [7, -1]}),
    (5, {"eos_token_id": 999999}),
]


def stops_at(config_eos, generation):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in ["config.json", "model.safetensors"]:
            shutil.copyfile(TINY / name, folder / name)
        config = json.loads((folder / "config.json").read_text())
        del config["eos_token_id"]
        if config_eos is not ...:
            config["eos_token_id"] = config_eos
        (folder / "config.json").write_text(json.dumps(config))
        if generation is not ...:
            (folder / "generation_config.json").write_text(json.dumps(generation))
        ids = AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def main():
    cases = []
    for config_eos, generation in CASES:
        case = {} if config_eos is ... else {"config": {"eos_token_id": config_eos}}
        if generation is not ...:
            case["generation_config"] = generation
        cases.append(case | {"stops_at": stops_at(config_eos, generation)})
    lines = ",\n".join(f"  {json.dumps(case)}" for case in cases)
    (ROOT / "tests/fixtures/stop_tokens.json").write_text(f"[\n{lines}\n]\n")


main()
