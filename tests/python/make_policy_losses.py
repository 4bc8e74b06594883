"""Writes tests/fixtures/policy_losses.json: what TRL's own `GRPOTrainer._compute_loss` makes of fixed log-probabilities, with the
gradient that PyTorch's autograd finds, and the advantages of fixed rewards by the formula of its trainer.

    pip install trl==1.16.0 torch
    python tests/python/make_policy_losses.py

The method needs a trainer with a model for the log-probabilities alone: here they are given.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

ROOT = Path(__file__).resolve().parents[2]
torch.manual_seed(7)
SAMPLES, GROUPS, LONGEST = 4, 2, 6
ANSWERS = SAMPLES * GROUPS


def advantages(rewards, scaled):
    groups = torch.tensor(rewards, dtype=torch.float64).view(-1, SAMPLES)
    off = groups - groups.mean(1, keepdim=True)
    if scaled:
        off = off / (nanstd(groups, dim=1).unsqueeze(1) + 1e-4)
    return off.flatten()


def trainer(log_probs, beta, **settings):
    own = dict(
        loss_type="grpo", importance_sampling_level="token", epsilon_low=0.2, epsilon_high=0.2, beta=beta,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, aux_loss_enabled=False,
        current_gradient_accumulation_steps=1, max_completion_length=LONGEST, _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)), model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x),
        _get_per_token_logps_and_entropies=lambda *args, **more: (log_probs, torch.zeros_like(log_probs), None),
    )
    return SimpleNamespace(**{**own, **settings})


def case(name, loss, beta, scaled=True, masks=False, **settings):
    lengths = [1 + (3 * i) % LONGEST for i in range(ANSWERS)]
    mask = torch.zeros(ANSWERS, LONGEST, dtype=torch.long)
    for i, length in enumerate(lengths):
        mask[i, :length] = 1
    # Two answers were cut off.
    truncated = [i in (2, 5) for i in range(ANSWERS)]
    if masks:
        mask[torch.tensor(truncated)] = 0
    old = -3 * torch.rand(ANSWERS, LONGEST, dtype=torch.float64)
    spread = 3e-4 if name == "gspo" else 0.3
    now = (old + spread * torch.randn(ANSWERS, LONGEST, dtype=torch.float64)).requires_grad_()
    reference = now.detach() + 0.4 * torch.randn(ANSWERS, LONGEST, dtype=torch.float64)
    rewards = torch.rand(ANSWERS, dtype=torch.float64).round(decimals=3).tolist()
    rewards[SAMPLES:] = [0.0, 1.0, 1.0, 0.0]
    advantage = advantages(rewards, scaled)
    ids = torch.zeros(ANSWERS, LONGEST, dtype=torch.long)
    inputs = dict(
        prompt_ids=ids[:, :1], prompt_mask=torch.ones(ANSWERS, 1, dtype=torch.long), completion_ids=ids,
        completion_mask=mask, advantages=advantage, old_per_token_logps=old, ref_per_token_logps=reference,
        num_items_in_batch=mask.sum(),
    )
    me = trainer(now, beta, **settings)
    value = GRPOTrainer._compute_loss(me, None, inputs)
    (gradient,) = torch.autograd.grad(value, now)
    cut = lambda x: [row[:length] for row, length in zip(x.tolist(), lengths)]
    return dict(
        name=name, loss=loss, beta=beta, samples=SAMPLES, longest=LONGEST, rewards=rewards, truncated=truncated,
        advantages=advantage.tolist(), old=cut(old), log_probs=cut(now.detach()), reference=cut(reference),
        value=value.item(), gradient=cut(gradient), kl=(me._metrics["train"]["kl"] or [None])[0],
        clipped=me._metrics["train"]["clip_ratio/region_mean"][0],
    )


CASES = [
    case("grpo", {"_component_": "grpo"}, 0.0),
    case("grpo", {"_component_": "grpo", "epsilon": 0.1, "epsilon_high": 0.3}, 0.04, epsilon_low=0.1, epsilon_high=0.3),
    case("dr_grpo", {"_component_": "dr_grpo"}, 0.0, scaled=False, loss_type="dr_grpo"),
    case("dr_grpo", {"_component_": "dr_grpo"}, 0.1, scaled=False, loss_type="dr_grpo"),
    case("dapo", {"_component_": "dapo"}, 0.0, masks=True, loss_type="dapo", epsilon_high=0.28),
    case("dapo", {"_component_": "dapo", "mask_truncated": False}, 0.02, loss_type="dapo", epsilon_high=0.28),
    case("gspo", {"_component_": "gspo"}, 0.0, importance_sampling_level="sequence", epsilon_low=3e-4, epsilon_high=4e-4),
    case("gspo", {"_component_": "gspo"}, 0.05, importance_sampling_level="sequence", epsilon_low=3e-4, epsilon_high=4e-4),
]
path = ROOT / "tests/fixtures/policy_losses.json"
path.write_text(json.dumps({"cases": CASES}) + "\n")
print(path, len(CASES), [round(case["value"], 5) for case in CASES])
