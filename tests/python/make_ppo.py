"""Writes tests/fixtures/ppo.json: what torchtune's own functions make of fixed log-probabilities, values and scores, with the gradients
that PyTorch's autograd finds.

    pip install torch
    pip download torchtune==0.6.1 --no-deps && unzip -d torchtune-0.6.1 torchtune-0.6.1-py3-none-any.whl
    python tests/python/make_ppo.py torchtune-0.6.1

Two files of torchtune's are loaded by themselves, because the package as a whole wants an older torchao. Its whitening adds the mean
again (`shift_mean=True`), which TRL's does only where it is False; advantages here have a mean of 0 as there, so they are whitened by
torchtune's function with `shift_mean=False`.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[2]
THEIRS = Path(sys.argv[1]) / "torchtune" / "rlhf"


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rlhf = load("torchtune_rewards", THEIRS / "rewards.py")
# What the file of the loss imports.
package = ModuleType("torchtune")
package.rlhf = rlhf
sys.modules["torchtune"] = package
PPOLoss = load("torchtune_ppo", THEIRS / "loss" / "ppo.py").PPOLoss

LONGEST = 6
torch.manual_seed(11)


def case(kl_coeff, gamma, lmbda, whiten_rewards, epsilon, value_clip_range, value_coeff, spread, lengths):
    answers = len(lengths)
    f64 = dict(dtype=torch.float64)
    mask = torch.arange(LONGEST)[None] < torch.tensor(lengths)[:, None]
    last = torch.tensor(lengths) - 1
    scores = torch.randn(answers, **f64).round(decimals=3)
    old = -3 * torch.rand(answers, LONGEST, **f64)
    reference = old + 0.4 * torch.randn(answers, LONGEST, **f64)
    # Padding costs nothing, as in torchtune's recipe, which fills both with the same number.
    reference = torch.where(mask, reference, old)
    values = torch.where(mask, torch.randn(answers, LONGEST, **f64), 0.0)

    rewards, kl, _ = rlhf.get_rewards_ppo(scores, old, reference, kl_coeff, last)
    if whiten_rewards:
        rewards = torch.where(mask, rlhf.whiten(rewards, mask, shift_mean=True), 0.0)
    _, returns = rlhf.estimate_advantages(values, rewards, gamma, lmbda, mask)
    advantages = torch.where(mask, rlhf.whiten(returns - values, mask, shift_mean=False), 0.0)

    now = (old + spread * torch.randn(answers, LONGEST, **f64)).requires_grad_()
    new_values = (values + 2 * spread * torch.randn(answers, LONGEST, **f64)).requires_grad_()
    loss = PPOLoss(epsilon=epsilon, value_coeff=value_coeff, value_clip_range=value_clip_range)
    total, policy_loss, value_loss, _, clipped = loss(
        old, now, advantages, values, new_values, returns, padding_masks=mask, value_padding_masks=mask
    )
    of_policy, of_values = torch.autograd.grad(total, (now, new_values))
    cut = lambda x: [row[:length] for row, length in zip(x.tolist(), lengths)]
    return dict(
        keys=dict(kl_coeff=kl_coeff, gamma=gamma, lmbda=lmbda, whiten_rewards=whiten_rewards),
        loss=dict(epsilon=epsilon, value_clip_range=value_clip_range, value_coeff=value_coeff),
        scores=scores.tolist(), old=cut(old), reference=cut(reference), values=cut(values), rewards=cut(rewards),
        kl=(kl * mask).sum(1).mean().item(), advantages=cut(advantages), returns=cut(returns), log_probs=cut(now.detach()),
        new_values=cut(new_values.detach()), total=total.item(), policy_loss=policy_loss.item(), value_loss=value_loss.item(),
        clipped=clipped.item(), policy_gradient=cut(of_policy), value_gradient=cut(of_values),
    )


CASES = [
    case(0.01, 1.0, 0.95, False, 0.2, 0.2, 0.1, 0.3, [6, 1, 4, 3]),
    case(0.1, 0.97, 0.8, False, 0.1, 0.5, 1.0, 0.3, [2, 6, 5, 1, 3]),
    case(0.0, 1.0, 1.0, False, 0.2, 0.2, 0.1, 0.1, [3, 3, 6]),
    case(0.05, 0.9, 0.0, True, 0.3, 0.1, 0.5, 0.7, [5, 6, 2, 4]),
]
path = ROOT / "tests/fixtures/ppo.json"
path.write_text(json.dumps({"cases": CASES}) + "\n")
print(path, [(round(case["total"], 5), case["clipped"]) for case in CASES])
