"""Writes tests/fixtures/schedules.json: the factors that transformers' schedules give at each step of a run.

    python tests/python/make_schedules.py
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import get_scheduler

ROOT = Path(__file__).resolve().parents[2]
LR = 0.5
STEPS = 40

# Ours, and transformers' with the same settings. The end of a polynomial is a learning rate there and a share of it here.
CASES = [
    ({"_component_": "constant", "num_warmup_steps": 5}, "constant_with_warmup", {}),
    ({"_component_": "linear", "num_warmup_steps": 5}, "linear", {}),
    ({"_component_": "cosine", "num_warmup_steps": 5, "num_cycles": 1.5}, "cosine", {"num_cycles": 1.5}),
    ({"_component_": "cosine_with_restarts", "num_warmup_steps": 4, "num_cycles": 3}, "cosine_with_restarts", {"num_cycles": 3}),
    ({"_component_": "cosine_with_restarts"}, "cosine_with_restarts", {}),
    ({"_component_": "polynomial", "num_warmup_steps": 3, "power": 2.0, "min_lr_ratio": 0.1}, "polynomial", {"power": 2.0, "lr_end": 0.1 * LR}),
    ({"_component_": "polynomial", "power": 0.5}, "polynomial", {"power": 0.5, "lr_end": 0.0}),
    ({"_component_": "inverse_sqrt", "num_warmup_steps": 6}, "inverse_sqrt", {}),
    ({"_component_": "inverse_sqrt", "num_warmup_steps": 6, "timescale": 20}, "inverse_sqrt", {"timescale": 20}),
    ({"_component_": "inverse_sqrt"}, "inverse_sqrt", {}),
    ({"_component_": "wsd", "num_warmup_steps": 4, "num_decay_steps": 10}, "warmup_stable_decay", {"num_decay_steps": 10}),
    (
        {"_component_": "wsd", "num_decay_steps": 12, "decay": "linear", "min_lr_ratio": 0.2},
        "warmup_stable_decay",
        {"num_decay_steps": 12, "decay_type": "linear", "min_lr_ratio": 0.2},
    ),
    (
        {"_component_": "wsd", "num_warmup_steps": 4, "num_decay_steps": 36, "decay": "one_less_sqrt"},
        "warmup_stable_decay",
        {"num_decay_steps": 36, "decay_type": "1-sqrt"},
    ),
]

cases = []
for ours, name, settings in CASES:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    schedule = get_scheduler(
        name, optimizer, ours.get("num_warmup_steps", 0), num_training_steps=STEPS, scheduler_specific_kwargs=settings
    )
    # A run of STEPS steps uses the factors before each of them; the one behind the last is asked for, too.
    factors = [schedule.lr_lambdas[0](step) for step in range(STEPS + 1)]
    cases.append({"schedule": ours, "factors": factors})

path = ROOT / "tests/fixtures/schedules.json"
lines = ",\n".join(json.dumps(case) for case in cases)
path.write_text(f'{{"transformers": "{transformers.__version__}", "steps": {STEPS}, "cases": [\n{lines}\n]}}\n')
print(len(cases), "schedules in", path)
