"""Writes tests/fixtures/unpaired_losses.json: what TRL's KTOTrainer makes of fixed log-probabilities of answers with labels, in f64,
with the gradients that PyTorch's autograd finds, and the mismatched sequences that its collator makes of a batch.

    pip install trl==1.16.0
    python tests/python/make_unpaired_losses.py

The trainer's own `_compute_loss` runs on a model that says what is written here.
"""

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
import trl
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

torch.manual_seed(5)


def of_trl(loss_type, beta, desirable_weight, undesirable_weight, labels, policy, reference, kl_policy, kl_reference):
    """A sequence of one token, whose log-probability is that of the whole answer: TRL adds up what is trained."""
    n = len(labels)
    asks = loss_type == "kto"
    log_probs = policy.clone().requires_grad_()
    ids = torch.zeros(n, 2, dtype=torch.long)

    class Model:
        training = True

        def __call__(self, input_ids, **_):
            of = log_probs if input_ids is ids else kl_policy
            shape = (n, 1)
            return SimpleNamespace(log_probs=of[:, None], entropy=torch.zeros(shape), mean_logits=torch.zeros(shape))

    mask = torch.tensor([[0, 1]] * n)
    inputs = dict(input_ids=ids, attention_mask=torch.ones(n, 2), completion_mask=mask, label=torch.tensor(labels), ref_logps=reference)
    if asks:
        inputs |= dict(KL_input_ids=ids.clone(), KL_attention_mask=torch.ones(n, 2), KL_completion_mask=mask, ref_KL_logps=kl_reference)
    model = Model()
    me = SimpleNamespace(
        model=model, calculate_KL=asks, aux_loss_enabled=False, precompute_ref_logps=True, loss_type=loss_type, beta=beta,
        desirable_weight=desirable_weight, undesirable_weight=undesirable_weight,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x),
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )
    me._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(me, model, batch)
    loss = KTOTrainer._compute_loss(me, model, inputs, return_outputs=False)
    loss.backward()
    metrics = {name: values[-1] for name, values in me._metrics["train"].items()}
    return loss.item(), log_probs.grad.tolist(), metrics


cases = []
for loss_type, beta, desirable, undesirable, labels, moved in [
    ("kto", 0.1, 1.0, 1.0, [True, False, True, True, False, False], 2.0),
    ("kto", 0.1, 1.0, 1.0, [True, False, False], -4.0),
    ("kto", 0.5, 1.33, 0.75, [False, True, True, True, True], 0.6),
    ("kto", 0.1, 2.0, 1.0, [True, True], 3.0),
    ("kto", 0.3, 1.0, 0.5, [False, False, False], 1.0),
    ("apo_zero_unpaired", 0.1, 1.0, 1.0, [True, False, True, False], 2.0),
    ("apo_zero_unpaired", 0.4, 0.5, 1.5, [True, False, False, True, True], -1.0),
]:
    n = len(labels)
    draw = lambda scale: torch.randn(n, dtype=torch.float64) * scale
    reference, kl_reference = -40 + draw(15), -60 + draw(15)
    policy, kl_policy = reference + draw(3), kl_reference + moved + draw(1)
    loss, gradient, metrics = of_trl(loss_type, beta, desirable, undesirable, labels, policy, reference, kl_policy, kl_reference)
    cases.append(dict(
        loss=dict(_component_=loss_type, beta=beta, desirable_weight=desirable, undesirable_weight=undesirable), labels=labels,
        policy=policy.tolist(), reference=reference.tolist(), kl_policy=kl_policy.tolist(), kl_reference=kl_reference.tolist(),
        mean_loss=loss, gradient_of_mean=gradient, kl=metrics["kl"],
        chosen=metrics.get("rewards/chosen"), rejected=metrics.get("rewards/rejected"), margins=metrics.get("rewards/margins"),
    ))

batches = []
for max_length in [None, 7]:
    answers = [([1, 2, 3], [4, 5]), ([6, 7], [8, 9, 10, 11, 12]), ([13, 14, 15, 16, 17], [18])]
    rotated = [answers[-1][1]] + [answer for _, answer in answers[:-1]]
    examples = [
        dict(prompt_ids=prompt, completion_ids=answer, KL_completion_ids=other, label=True)
        for (prompt, answer), other in zip(answers, rotated)
    ]
    made = DataCollatorForUnpairedPreference(pad_token_id=0, max_length=max_length)(examples)
    batches.append(dict(
        max_length=max_length, answers=answers, input_ids=made["KL_input_ids"].tolist(), attention_mask=made["KL_attention_mask"].tolist(),
        completion_mask=made["KL_completion_mask"].tolist(),
    ))

path = Path(__file__).resolve().parents[1] / "fixtures/unpaired_losses.json"
path.write_text(json.dumps(dict(trl=trl.__version__, cases=cases, batches=batches), indent=1) + "\n")
