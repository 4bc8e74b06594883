"""Writes tests/fixtures/optimizers.json: two matrices and a vector after each of some steps with fixed gradients, by torch's optimizers or
those of their authors. And tests/fixtures/adamw_8bit.safetensors, the same of a larger matrix by torchao.

    python tests/python/make_optimizers.py    (torch 2.15, lion-pytorch 0.2.5, schedulefree 1.4.1,
                                              torchao 0.18.0, transformers 5.24)
"""

import json
import os
from pathlib import Path

# torchao would compile a step.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from lion_pytorch import Lion
from safetensors.torch import save_file
from schedulefree import AdamWScheduleFree
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchao.optim import AdamW8bit
from transformers.optimization import Adafactor as TransformersAdafactor

ROOT = Path(__file__).resolve().parents[2]
STEPS = 8
FACTORS = [1.0, 0.5, 2.0, 1.0, 0.25, 1.0, 1.5, 0.1]


class Muon(torch.optim.Muon):
    """torch's, computed in f32 where it has bf16 written in its code."""

    def step(self):
        narrow, torch.bfloat16 = torch.bfloat16, torch.float32
        super().step()
        torch.bfloat16 = narrow


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
    ({"_component_": "adamw", "lr": 0.05, "weight_decay": 0.1, "ema_decay": 0.7},
     [(torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1})]),
    ({"_component_": "lion", "lr": 0.01}, [(Lion, {"lr": 0.01})]),
    ({"_component_": "lion", "lr": 0.02, "betas": [0.7, 0.9], "weight_decay": 0.5, "decay_vectors": False},
     [(Lion, {"lr": 0.02, "betas": (0.7, 0.9), "weight_decay": 0.5}), (Lion, {"lr": 0.02, "betas": (0.7, 0.9)})]),
    ({"_component_": "adafactor"}, [(torch.optim.Adafactor, {"eps": (torch.finfo(torch.float32).eps, 1e-3)})]),
    ({"_component_": "adafactor", "lr": 0.5, "beta2_decay": -0.5, "eps": [1e-4, 0.9], "d": 1.2, "weight_decay": 0.1},
     [(torch.optim.Adafactor, {"lr": 0.5, "beta2_decay": -0.5, "eps": (1e-4, 0.9), "d": 1.2, "weight_decay": 0.1})]),
    ({"_component_": "adafactor", "lr": 0.01, "eps": [1e-15, 1e-3], "scale_parameter": False, "relative_step": False},
     [(TransformersAdafactor, {"lr": 0.01, "scale_parameter": False, "relative_step": False})]),
    ({"_component_": "muon", "lr": 0.005},
     [(Muon, {"lr": 0.005, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}),
      (torch.optim.AdamW, {"lr": 0.005, "betas": (0.9, 0.95), "weight_decay": 0.1})]),
    ({"_component_": "muon", "lr": 0.01, "momentum": 0.8, "nesterov": False, "ns_steps": 3, "adjust_lr_fn": "original",
      "weight_decay": 0.5, "adamw_lr": 0.03, "betas": [0.8, 0.9], "eps": 1e-6, "decay_vectors": False},
     [(Muon, {"lr": 0.01, "momentum": 0.8, "nesterov": False, "ns_steps": 3, "weight_decay": 0.5}),
      (torch.optim.AdamW, {"lr": 0.03, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.0})]),
    ({"_component_": "schedule_free_adamw", "lr": 0.01}, [(AdamWScheduleFree, {"lr": 0.01})]),
    ({"_component_": "schedule_free_adamw", "lr": 0.02, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.3, "r": 0.7,
      "weight_lr_power": 1.0, "decay_vectors": False},
     [(AdamWScheduleFree, {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": decay, "r": 0.7, "weight_lr_power": 1.0})
      for decay in (0.3, 0.0)]),
]

torch.manual_seed(16)
shapes = {"matrix": (5, 9), "tall": (7, 3), "vector": (9,)}
start = {name: torch.randn(shape) for name, shape in shapes.items()}
# Of very different sizes, and some of them zero.
gradients = [{name: torch.randn(shape) * 10 ** torch.randn(shape) for name, shape in shapes.items()} for _ in range(STEPS)]
for step in gradients:
    step["matrix"][2, 3] = step["tall"][6, 1] = step["vector"][4] = 0.0

cases = []
for ours, theirs in CASES:
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    *matrices, vector = weights.values()
    groups = [[*matrices, vector]] if len(theirs) == 1 else [matrices, [vector]]
    optimizers = [make(group, **settings) for group, (make, settings) in zip(groups, theirs, strict=True)]
    rates = [settings.get("lr", 0.01) for _, settings in theirs]
    means = None
    if "ema_decay" in ours:
        means = AveragedModel(torch.nn.ParameterList(weights.values()), multi_avg_fn=get_ema_multi_avg_fn(ours["ema_decay"]))
    averaging = [optimizer for optimizer in optimizers if isinstance(optimizer, AdamWScheduleFree)]
    after = []
    for factor, step in zip(FACTORS, gradients, strict=True):
        for name, weight in weights.items():
            weight.grad = step[name].clone()
        for optimizer in averaging:
            optimizer.train()
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
        # What is evaluated and saved is the mean.
        for optimizer in averaging:
            optimizer.eval()
        evaluated = weights
        if means is not None:
            means.update_parameters(torch.nn.ParameterList(weights.values()))
            evaluated = dict(zip(weights, means.module, strict=True))
        after.append({name: weight.detach().flatten().tolist() for name, weight in evaluated.items()})
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
