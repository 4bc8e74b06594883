"""Writes tests/fixtures/peft_tokens: adapters that bring along rows of single tokens (`trainable_token_indices`), as peft saves them, each
with the logits that peft computes behind the last of a few tokens.

    python tests/python/make_peft_tokens.py        (torch, transformers, peft 0.21.2)
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
INTO = ROOT / "tests/fixtures/peft_tokens"
IDS = [5, 77, 200, 12, 17, 201]

# Name, base, tokens.
CASES = [
    ("tied", "llama_tied", [17, 200, 5]),
    ("untied", "mistral", {"embed_tokens": [5, 17], "lm_head": [3, 201, 17]}),
]

shutil.rmtree(INTO, ignore_errors=True)
for name, family, tokens in CASES:
    torch.manual_seed(7)
    base = AutoModelForCausalLM.from_pretrained(ROOT / "tests/fixtures/families" / family, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj"], trainable_token_indices=tokens,
                        init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data = torch.randn_like(parameter) * 0.3
        if "trainable_tokens_delta" in key:
            parameter.data += torch.randn_like(parameter) * parameter.data.std()
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0, -1]
    model.peft_config["default"].base_model_name_or_path = f"tests/fixtures/families/{family}"
    model.save_pretrained(INTO / name)
    (INTO / name / "README.md").unlink()
    (INTO / name / "expected.json").write_text(json.dumps({"ids": IDS, "logits": logits.tolist()}) + "\n")
