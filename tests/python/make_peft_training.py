"""Writes tests/fixtures/peft_training: adapters of each kind as peft makes them, and what comes of ten steps with each.

    python tests/python/make_peft_training.py [CASE ...]

A case's folder has the adapter before the first step (not for those that begin by changing the base model: these are made again),
and `expected.json` with the losses of the steps and the logits behind the last token after them.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ROOT / "tests/fixtures/families"
INTO = ROOT / "tests/fixtures/peft_training"
STEPS = 10
LR = 5e-3
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

CASES = {
    "plain": ("llama_biases", {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}),
    "all_linear": ("llama_biases", {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}),
    "expression": ("llama_biases", {"r": 2, "lora_alpha": 4, "target_modules": r".*\.1\.(self_attn\.[qk]|mlp\.up)_proj"}),
    "patterns": (
        "llama_biases",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj", "o_proj", "down_proj"],
            "rank_pattern": {"q_proj": 4, "layers.1.mlp.down_proj": 1},
            "alpha_pattern": {"o_proj": 12},
        },
    ),
    "one_block": (
        "llama_biases",
        {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    ),
    "rslora": ("llama_biases", {"r": 4, "lora_alpha": 4, "use_rslora": True, "target_modules": ATTENTION}),
    "loraplus": ("llama_biases", {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION}),
    "dora": ("llama_biases", {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": "all-linear"}),
    "dora_loraplus": ("llama_biases", {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["v_proj"]}),
    "dora_output": ("llama_tied", {"r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["v_proj", "lm_head"]}),
    "saved": (
        "llama_biases",
        {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "pissa": ("llama_biases", {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "init_lora_weights": "pissa"}),
    "olora": ("llama_biases", {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "init_lora_weights": "olora"}),
    "pissa_dora": (
        "llama_biases",
        {
            "r": 2,
            "lora_alpha": 4,
            "use_dora": True,
            "use_rslora": True,
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"q_proj": 4},
            "alpha_pattern": {"up_proj": 12},
            "init_lora_weights": "pissa",
        },
    ),
    "saved_tied": (
        "llama_tied",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
    "saved_norms": (
        "llama_biases",
        {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "modules_to_save": ["norm", "down_proj"]},
    ),
}


def make(number, name, family, config):
    torch.manual_seed(number)
    base = AutoModelForCausalLM.from_pretrained(FAMILIES / family, dtype=torch.float32)
    # `B` is no zero, so that every matrix has a gradient from the first step on.
    config = {"init_lora_weights": False, **config}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **config))
    if "modules_to_save" in config:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    model.peft_config["default"].base_model_name_or_path = f"tests/fixtures/families/{family}"
    into = INTO / name
    into.mkdir(parents=True)
    if not config["init_lora_weights"]:
        # Only what is trained, and not the output layer that an adapter is on.
        model.save_pretrained(into / "start", save_embedding_layers=False)
        (into / "start/README.md").unlink()
        # peft has them in the order of a set.
        path = into / "start/adapter_config.json"
        written = json.loads(path.read_text())
        for key in ["target_modules", "modules_to_save"]:
            if isinstance(written[key], list):
                written[key].sort()
        path.write_text(json.dumps(written, indent=1) + "\n")
    if "loraplus" in name:
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=LR, loraplus_lr_ratio=16.0)
    else:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0)
    batch = load_file(FAMILIES / family / "reference.safetensors")
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = model.eval()(batch["input_ids"][:1]).logits[0, -1]
    expected = {"family": family, "lr": LR, "losses": losses, "logits": logits.tolist()}
    (into / "expected.json").write_text(json.dumps(expected) + "\n")
    print(name, losses[0], losses[-1])


for number, (name, (family, config)) in enumerate(CASES.items()):
    if not sys.argv[1:] or name in sys.argv[1:]:
        shutil.rmtree(INTO / name, ignore_errors=True)
        make(number, name, family, config)
