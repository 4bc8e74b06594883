"""Writes tests/fixtures/peft_layers: adapters of the tiny model whose layers differ, as peft saves them, each with the
logits that peft computes behind the last of a few tokens.

    python tests/python/make_peft_layers.py
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes/tiny/model"
INTO = ROOT / "tests/fixtures/peft_layers"
IDS = [5, 77, 300, 12, 9, 201]

CASES = {
    # The first key that fits counts (peft sorts them when it saves), and one that fits no module says nothing.
    "patterns": {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {r".*\.2\.self_attn\.v_proj": 1, "self_attn.q_proj": 3, "v_pro": 7},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 10, "^model.layers.0.*": 5, "v_proj": 1.5},
    },
    "rslora": {
        "r": 4,
        "lora_alpha": 2,
        "use_rslora": True,
        "target_modules": ["k_proj"],
        "rank_pattern": {"model.layers.3.self_attn.k_proj": 1},
    },
    "some_layers": {"r": 2, "lora_alpha": 4, "target_modules": ["o_proj"], "layers_to_transform": [1, 3]},
    "one_layer": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["o_proj", "model.layers.0.self_attn.q_proj"],
        "layers_to_transform": 2,
        "layers_pattern": "layers",
    },
    "excluded": {
        "r": 1,
        "lora_alpha": 4,
        "target_modules": r".*\.(gate|up)_proj",
        "exclude_modules": ["0.mlp.gate_proj", "model.layers.2.mlp.up_proj"],
    },
    "excluded_by_pattern": {
        "r": 1,
        "lora_alpha": 4,
        "target_modules": ["gate_proj"],
        "exclude_modules": r".*layers\.[01]\..*",
    },
}

shutil.rmtree(INTO, ignore_errors=True)
for number, (name, config) in enumerate(CASES.items()):
    torch.manual_seed(number)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **config)).eval()
    for parameter in (p for key, p in model.named_parameters() if "lora_" in key):
        parameter.data = torch.randn_like(parameter) * 0.3
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0, -1]
    model.peft_config["default"].base_model_name_or_path = "recipes/tiny/model"
    model.save_pretrained(INTO / name)
    (INTO / name / "README.md").unlink()
    (INTO / name / "expected.json").write_text(json.dumps({"ids": IDS, "logits": logits.tolist()}) + "\n")
