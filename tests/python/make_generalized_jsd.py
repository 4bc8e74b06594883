"""Writes tests/fixtures/generalized_jsd.json: what TRL's loss of generalized knowledge distillation makes of fixed logits, in f64, with
the gradients that PyTorch's autograd finds.

    pip install trl==1.16.0
    python tests/python/make_generalized_jsd.py
"""

import json
from pathlib import Path

import torch
from trl.experimental.gkd import GKDTrainer

ROOT = Path(__file__).resolve().parents[2]

torch.manual_seed(12)
student = (3 * torch.randn(4, 33, dtype=torch.float64)).round(decimals=3).requires_grad_()
teacher = (3 * torch.randn(4, 33, dtype=torch.float64)).round(decimals=3)

cases = []
for beta in [0.0, 0.1, 0.5, 0.9, 1.0]:
    for temperature in [1.0] if beta in [0.1, 0.9] else [1.0, 2.0] if beta != 0.5 else [1.0, 2.0, 0.5]:
        value = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=temperature)
        (gradient,) = torch.autograd.grad(value, student)
        cases.append({"beta": beta, "temperature": temperature, "value": value.item(), "gradient": gradient.tolist()})

out = {"student": student.tolist(), "teacher": teacher.tolist(), "cases": cases}
(ROOT / "tests/fixtures/generalized_jsd.json").write_text(json.dumps(out) + "\n")
