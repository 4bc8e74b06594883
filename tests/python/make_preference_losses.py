"""Writes tests/fixtures/preference_losses.json: what torchtune's and TRL's own functions make of fixed log-probabilities of
pairs of answers, with the gradients that PyTorch's autograd finds.

    pip download --no-deps trl==0.11.4 torchtune==0.6.1 && unzip -o '*.whl' -d WHEELS
    python tests/python/make_preference_losses.py WHEELS

Both are read as they lie in their wheels, without what else they import: the functions need PyTorch alone. TRL 0.11.4 is the
last version in which each loss is a function of log-probabilities.
"""

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[2]
WHEELS = Path(sys.argv[1])


def function(trainer, name):
    """A method of one of TRL's trainers, as a function of its `self`."""
    tree = ast.parse((WHEELS / f"trl/trainer/{trainer}_trainer.py").read_text())
    found = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    found.returns = None
    for argument in found.args.args:
        argument.annotation = None
    scope = {
        "torch": torch,
        "F": F,
        "FDivergenceType": SimpleNamespace(
            ALPHA_DIVERGENCE=SimpleNamespace(value="alpha"), JS_DIVERGENCE=SimpleNamespace(value="js")
        ),
    }
    exec(compile(ast.Module([found], []), trainer, "exec"), scope)
    return scope[name]


def torchtune(name):
    spec = importlib.util.spec_from_file_location("dpo", WHEELS / "torchtune/rlhf/loss/dpo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def me(**settings):
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x)
    return SimpleNamespace(accelerator=accelerator, reference_free=False, f_divergence_type="reverse_kl", alpha=0.0, **settings)


def dpo(kind, **settings):
    """TRL's losses with a reference; IPO is given means over tokens, as TRL's `concatenated_forward` gives them."""

    def of(chosen, rejected, ref_chosen, ref_rejected, tokens_chosen, tokens_rejected):
        by = (tokens_chosen, tokens_rejected) if kind == "ipo" else (1, 1)
        policy = chosen / by[0], rejected / by[1]
        reference = ref_chosen / by[0], ref_rejected / by[1]
        return function("dpo", "dpo_loss")(me(loss_type=kind, **settings), *policy, *reference)

    return of


def simpo(beta, gamma):
    def of(chosen, rejected, _ref_chosen, _ref_rejected, tokens_chosen, tokens_rejected):
        own = me(loss_type="simpo", beta=beta, simpo_gamma=gamma, label_smoothing=0.0)
        return function("cpo", "cpo_loss")(own, chosen / tokens_chosen, rejected / tokens_rejected)

    return of


def orpo(beta):
    """With the cross-entropy of the preferred answer, a mean over its tokens, which TRL's trainer adds."""

    def of(chosen, rejected, _ref_chosen, _ref_rejected, tokens_chosen, tokens_rejected):
        chosen, rejected = chosen / tokens_chosen, rejected / tokens_rejected
        ratio, *rewards = function("orpo", "odds_ratio_loss")(me(beta=beta), chosen, rejected)
        return -chosen - ratio, *rewards[:2]

    return of


def kto(beta, desirable_weight, undesirable_weight):
    """All answers of the batch tell how far the model has moved. A pair's loss is the mean of its two."""

    def of(chosen, rejected, ref_chosen, ref_rejected, *_):
        own = me(
            loss_type="kto",
            calculate_KL=True,
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        )
        policy_kl, reference_kl = torch.cat([chosen, rejected]), torch.cat([ref_chosen, ref_rejected])
        losses, *rewards = function("kto", "kto_loss")(
            own, chosen, rejected, policy_kl, ref_chosen, ref_rejected, reference_kl
        )
        return losses.view(2, -1).mean(dim=0), *rewards[:2]

    return of


def module(name, **settings):
    loss = torchtune(name)(**settings)
    return lambda *all: loss(*all[:4])


CASES = [
    ("dpo", {"beta": 0.1, "label_smoothing": 0.0}, "torchtune", module("DPOLoss", beta=0.1, label_smoothing=0.0)),
    ("dpo", {"beta": 0.3, "label_smoothing": 0.2}, "torchtune", module("DPOLoss", beta=0.3, label_smoothing=0.2)),
    ("dpo", {"beta": 0.5, "label_smoothing": 0.1}, "trl", dpo("sigmoid", beta=0.5, label_smoothing=0.1)),
    ("hinge", {"gamma": 0.1}, "torchtune", module("RSOLoss", gamma=0.1)),
    ("hinge", {"gamma": 0.4}, "trl", dpo("hinge", beta=0.4)),
    ("ipo", {"tau": 0.1}, "trl", dpo("ipo", beta=0.1)),
    ("orpo", {"lambda": 0.2}, "trl", orpo(0.2)),
    ("simpo", {"beta": 2.0, "gamma": 0.5}, "trl", simpo(2.0, 0.5)),
    ("kto", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}, "trl", kto(0.1, 1.0, 1.0)),
    ("kto", {"beta": 0.2, "desirable_weight": 1.33, "undesirable_weight": 0.8}, "trl", kto(0.2, 1.33, 0.8)),
]


def batches():
    """Pairs whose policy is near the reference and far from it, on either side, and one that is the reference."""
    random = torch.Generator().manual_seed(7)

    def some(count, moved, towards=0.0):
        tokens = torch.randint(1, 60, (2, count), generator=random).double()
        reference = -tokens * (0.2 + 2 * torch.rand(2, count, generator=random, dtype=torch.float64))
        policy = reference + moved * torch.randn(2, count, generator=random, dtype=torch.float64) + towards
        return torch.minimum(policy, -0.01 * tokens), reference, tokens

    yield some(4, 0.0)
    yield some(6, 1.0, 2.0)
    yield some(6, 1.0, -3.0)
    yield some(3, 30.0)
    yield some(1, 5.0)


cases = []
for name, settings, source, loss in CASES:
    for policy, reference, tokens in batches():
        chosen, rejected = (policy[side].clone().requires_grad_() for side in (0, 1))
        losses, *rewards = loss(chosen, rejected, *reference, *tokens)
        losses.sum().backward()
        cases.append(
            {
                "loss": {"_component_": name, **settings},
                "source": source,
                "tokens": tokens.int().tolist(),
                "policy": policy.tolist(),
                "reference": reference.tolist(),
                "losses": losses.tolist(),
                "gradient": [chosen.grad.tolist(), rejected.grad.tolist()],
                "rewards": [side.tolist() for side in rewards],
            }
        )

path = ROOT / "tests/fixtures/preference_losses.json"
lines = ",\n".join(json.dumps(case) for case in cases)
path.write_text(f'{{"trl": "0.11.4", "torchtune": "0.6.1", "cases": [\n{lines}\n]}}\n')
print(len(cases), "cases in", path)
