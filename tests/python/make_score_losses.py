"""Writes tests/fixtures/score_losses.json: losses of fixed scores by PyTorch's own functions in f64, with the gradients that its
autograd finds. The loss of pairs is that of TRL's RewardTrainer.

    python tests/python/make_score_losses.py
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

torch.manual_seed(3)
cases = []
for name, margin, center, scale in [
    ("bradley-terry", 0.0, 0.0, 2.0),
    ("margin", 0.75, 0.0, 2.0),
    ("centred", 0.0, 0.01, 2.0),
    ("both, far apart", 0.5, 0.1, 60.0),
]:
    scores = (torch.randn(6, 2, dtype=torch.float64) * scale).requires_grad_()
    chosen, rejected = scores[:, 0], scores[:, 1]
    loss = (-F.logsigmoid(chosen - rejected - margin) + center * (chosen + rejected) ** 2).sum()
    loss.backward()
    cases.append(dict(name=name, margin=margin, center=center, classes=None, scores=scores.flatten().tolist(), loss=loss.item(),
                      gradient=scores.grad.flatten().tolist(), accuracy=(chosen > rejected).double().mean().item()))
for classes, scale in [(2, 1.0), (5, 3.0), (3, 80.0)]:
    scores = (torch.randn(7, classes, dtype=torch.float64) * scale).requires_grad_()
    targets = torch.randint(0, classes, (7,))
    loss = F.cross_entropy(scores, targets, reduction="sum")
    loss.backward()
    cases.append(dict(name=f"{classes} classes", margin=0.0, center=0.0, classes=targets.tolist(), scores=scores.flatten().tolist(),
                      loss=loss.item(), gradient=scores.grad.flatten().tolist(),
                      accuracy=(scores.argmax(1) == targets).double().mean().item()))
path = Path(__file__).resolve().parents[1] / "fixtures/score_losses.json"
path.write_text(json.dumps(cases, indent=1) + "\n")
