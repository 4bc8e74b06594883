"""Writes tests/fixtures/distillation_losses.json: what torchtune's losses of knowledge distillation make of fixed logits, with
the gradients that PyTorch's autograd finds.

    pip download --no-deps torchtune==0.6.1 && unzip -o '*.whl' -d WHEELS
    python tests/python/make_distillation_losses.py WHEELS

The file is read as it lies in the wheel, without what else the package imports: it needs PyTorch alone.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("kd", Path(sys.argv[1]) / "torchtune/modules/loss/kd_losses.py")
kd = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kd)

torch.manual_seed(11)
student = (3 * torch.randn(6, 33)).round(decimals=3).requires_grad_()
teacher = (3 * torch.randn(6, 33)).round(decimals=3)
targets = torch.tensor([4, -100, 32, 0, 17, 5])

LOSSES = [
    ({"_component_": "forward_kl"}, kd.ForwardKLLoss()),
    ({"_component_": "reverse_kl"}, kd.ReverseKLLoss()),
    ({"_component_": "symmetric_kl"}, kd.SymmetricKLLoss()),
    ({"_component_": "symmetric_kl", "sym_kd_ratio": 0.2}, kd.SymmetricKLLoss(0.2)),
    ({"_component_": "symmetric_kl", "sym_kd_ratio": 1.0}, kd.SymmetricKLLoss(1.0)),
]
cases = []
for config, loss in LOSSES:
    value = loss(student, teacher, targets)
    (gradient,) = torch.autograd.grad(value, student)
    cases.append({"loss": config, "value": value.item(), "gradient": gradient.tolist()})


def rows(logits):
    return [[round(x, 3) for x in row] for row in logits.tolist()]


out = {"student": rows(student), "teacher": rows(teacher), "targets": targets.tolist(), "cases": cases}
(ROOT / "tests/fixtures/distillation_losses.json").write_text(json.dumps(out) + "\n")
