"""Writes tests/fixtures/top_distillation.json: how far a student is from a teacher of which the likeliest tokens are known and what
all others have together, with the gradients that PyTorch's autograd finds in f64.

    python tests/python/make_top_distillation.py

It needs PyTorch alone. The divergences are `torch.nn.functional.kl_div` over the tokens and one outcome more; that of Jensen and Shannon
is from their mean, weighted by beta.
"""

import json
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, kl_div

ROOT = Path(__file__).resolve().parents[2]
VOCAB = 33

torch.manual_seed(12)
student = (3 * torch.randn(5, VOCAB, dtype=torch.float64)).round(decimals=3).requires_grad_()
teacher = (3 * torch.randn(5, VOCAB, dtype=torch.float64)).round(decimals=3)
targets = torch.tensor([4, 32, 0, 17, 5])


def outcomes(logits, top):
    """Log-probabilities of the tokens `top`, and of any other token where there is one."""
    log_probs = logits.log_softmax(-1)
    others = log_probs.scatter(-1, top, float("-inf")).logsumexp(-1, keepdim=True)
    known = log_probs.gather(-1, top)
    return known if top.shape[-1] == VOCAB else torch.cat([known, others], -1)


def value(loss, ratio, k):
    top = teacher.topk(k).indices
    p, q = outcomes(student, top), outcomes(teacher, top)
    share = {"forward_kl": 1.0, "reverse_kl": 0.0}.get(loss["_component_"], loss.get("sym_kd_ratio", loss.get("beta")))
    for_q, for_p = p, q
    if loss["_component_"] == "generalized_jsd":
        for_q = for_p = (share * q.exp() + (1 - share) * p.exp()).log()
    forward = kl_div(for_q, q, reduction="batchmean", log_target=True)
    reverse = kl_div(for_p, p, reduction="batchmean", log_target=True)
    kd, ce = share * forward + (1 - share) * reverse, cross_entropy(student, targets)
    return (1 - ratio) * ce + ratio * kd, ce, kd


cases = []
for loss in [
    {"_component_": "forward_kl"},
    {"_component_": "reverse_kl"},
    {"_component_": "symmetric_kl", "sym_kd_ratio": 0.2},
    {"_component_": "generalized_jsd", "beta": 0.5},
    {"_component_": "generalized_jsd", "beta": 0.1},
]:
    for k, ratio in [(1, 1.0), (6, 0.5), (VOCAB, 1.0)]:
        whole, ce, kd = value(loss, ratio, k)
        (gradient,) = torch.autograd.grad(whole, student)
        case = {"loss": loss, "ratio": ratio, "top_k": k, "class_loss": ce.item(), "kd_loss": kd.item()}
        cases.append(case | {"gradient": [[float(f"{x:.9g}") for x in row] for row in gradient.tolist()]})


def rows(logits):
    return [[round(x, 3) for x in row] for row in logits.tolist()]


out = {"student": rows(student), "teacher": rows(teacher), "targets": targets.tolist(), "cases": cases}
(ROOT / "tests/fixtures/top_distillation.json").write_text(json.dumps(out) + "\n")
