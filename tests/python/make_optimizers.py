"""Writes tests/fixtures/optimizers.json: a matrix and a vector after each of some steps with fixed gradients, by torch's optimizers or
those of their authors. And tests/fixtures/adamw_8bit.safetensors, the same of a larger matrix by torchao.

    python tests/python/make_optimizers.py    (torch 2.15, lion-pytorch 0.2.5, torchao 0.18.0)
"""

import json
import os
from pathlib import Path

# torchao would compile a step.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from lion_pytorch import Lion
from safetensors.torch import save_file
from torchao.optim import AdamW8bit

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
FACTORS = [1.0, 0.5, 2.0, 1.0, 0.25, 1.0, 1.5, 0.1]

# Ours, and theirs with the same settings. Of two optimizers, the second is for the vector.
CASES = [
    ({"_component_": "adamw", "lr": 0.01, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.1},
     [(torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1})]),
    ({"_component_": "adamw", "lr": 0.01, "weight_decay": 0.3, "decay_vectors": False},
     [(torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.3}), (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0})]),
    ({"_component_": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.2},
     [(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2})]),
    ({"_component_": "sgd", "lr": 0.1, "weight_decay": 0.2, "decay_vectors": False},
     [(torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.2}), (torch.optim.SGD, {"lr": 0.1})]),
    ({"_component_": "lion", "lr": 0.01}, [(Lion, {"lr": 0.01})]),
    ({"_component_": "lion", "lr": 0.02, "betas": [0.7, 0.9], "weight_decay": 0.5, "decay_vectors": False},
     [(Lion, {"lr": 0.02, "betas": (0.7, 0.9), "weight_decay": 0.5}), (Lion, {"lr": 0.02, "betas": (0.7, 0.9)})]),
]

torch.manual_seed(16)
shapes = {"matrix": (5, 9), "vector": (9,)}
start = {name: torch.randn(shape) for name, shape in shapes.items()}
# Of very different sizes, and some of them zero.
gradients = [{name: torch.randn(shape) * 10 ** torch.randn(shape) for name, shape in shapes.items()} for _ in range(STEPS)]
for step in gradients:
    step["matrix"][2, 3] = step["vector"][4] = 0.0

cases = []
for ours, theirs in CASES:
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    groups = [list(weights.values())] if len(theirs) == 1 else [[weight] for weight in weights.values()]
    optimizers = [make(group, **settings) for group, (make, settings) in zip(groups, theirs, strict=True)]
    after = []
    for factor, step in zip(FACTORS, gradients, strict=True):
        for name, weight in weights.items():
            weight.grad = step[name].clone()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = ours["lr"] * factor
            optimizer.step()
        after.append({name: weight.detach().flatten().tolist() for name, weight in weights.items()})
    cases.append({"optimizer": ours, "after": after})

written = {
    "shapes": shapes,
    "factors": FACTORS,
    "start": {name: tensor.flatten().tolist() for name, tensor in start.items()},
    "gradients": [{name: tensor.flatten().tolist() for name, tensor in step.items()} for step in gradients],
    "cases": cases,
}
(ROOT / "tests/fixtures/optimizers.json").write_text(json.dumps(written) + "\n")

weight = torch.randn(20, 256)
tensors = {"start": weight.clone()}
weight.requires_grad_()
optimizer = AdamW8bit([weight], lr=0.01, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1)
for step in range(6):
    weight.grad = torch.randn(20, 256) * 10 ** torch.randn(20, 256)
    tensors |= {f"gradient_{step}": weight.grad.clone()}
    optimizer.step()
    tensors |= {f"after_{step}": weight.detach().clone()}
save_file(tensors, ROOT / "tests/fixtures/adamw_8bit.safetensors")
