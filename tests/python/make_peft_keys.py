"""Writes tests/fixtures/peft_keys.json: every key that peft writes into the adapter_config.json of a LoRA adapter, with its
default and another value; and, for each way to initialize, whether the saved adapter is an update of its base as it is.

    python tests/python/make_peft_keys.py

A key of a new version of peft, for which there is no other value here, ends the script.
"""

import dataclasses
import json
import tempfile
import warnings
from pathlib import Path

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes/tiny/model"

OTHER = {
    "task_type": "CAUSAL_LM",
    "peft_type": "IA3",
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"},
    "peft_version": "0.17.0",
    "base_model_name_or_path": "org/name",
    "revision": "v1",
    "inference_mode": True,
    "r": 4,
    "target_modules": "all-linear",
    "exclude_modules": ["lm_head"],
    "lora_alpha": 3,
    "lora_dropout": 0.5,
    "fan_in_fan_out": True,
    "bias": "lora_only",
    "use_rslora": True,
    "modules_to_save": ["lm_head"],
    "init_lora_weights": "pissa",
    "layers_to_transform": [0],
    "layers_pattern": "layers",
    "rank_pattern": {"q_proj": 4},
    "alpha_pattern": {"q_proj": 4},
    "megatron_config": {"hidden_size": 4},
    "megatron_core": "other.core",
    "trainable_token_indices": [1],
    "loftq_config": {"loftq_bits": 4, "loftq_iter": 1},
    "eva_config": dataclasses.asdict(peft.EvaConfig()),
    "corda_config": {"corda_method": "ipm"},
    "lora_ga_config": {"direction": "ArB2r", "scale": "stable", "stable_gamma": 16},
    "use_dora": True,
    "velora_config": {"num_groups": 64, "scale": 1.0, "init_type": "batch_average"},
    "alora_invocation_tokens": [1, 2],
    "use_qalora": True,
    "qalora_group_size": 8,
    "monteclora_config": {"num_samples": 8},
    "layer_replication": [[0, 2], [1, 3]],
    "lora_bias": True,
    "target_parameters": ["mlp.experts.down_proj"],
    "use_bdlora": {"target_modules_bd_a": ["q_proj"], "nblocks": 2},
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 0.1},
    "ensure_weight_tying": True,
}

INITIALIZATIONS = [True, False, "gaussian", "eva", "orthogonal", "mica", "olora", "pissa", "pissa_niter_4"]
# These need data or other packages: peft's source has them change the base (`LoraLayer.corda_init`, `lora_ga_init`, `loftq_init`).
CHANGE_THE_BASE = ["corda", "lora_ga", "loftq"]


def base():
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def leaves_its_base(initialization):
    """Whether what peft computes with a saved adapter is what its matrices give on the unchanged base."""
    ids = torch.arange(20)[None] + 40
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        torch.manual_seed(0)
        adapted = get_peft_model(base(), LoraConfig(target_modules=["q_proj"], init_lora_weights=initialization, r=4))
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight += 0.05 * torch.randn_like(weight)
        adapted.save_pretrained(folder)
        theirs = adapted.eval()(ids).logits
        path = Path(folder) / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"init_lora_weights": True}))
        plain = PeftModel.from_pretrained(base(), folder)(ids).logits
    return (theirs - plain).abs().max().item() < 1e-3


def main():
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM").save_pretrained(folder)
        written = json.loads((Path(folder) / "adapter_config.json").read_text())
    written["target_modules"].sort()
    assert written.keys() == OTHER.keys(), sorted(written.keys() ^ OTHER.keys())
    keys = {key: {"default": default, "other": OTHER[key]} for key, default in written.items()}
    initializations = [[name, leaves_its_base(name)] for name in INITIALIZATIONS]
    initializations += [[name, False] for name in CHANGE_THE_BASE]
    found = {"peft_version": peft.__version__, "keys": keys, "initializations": initializations}
    (ROOT / "tests/fixtures/peft_keys.json").write_text(json.dumps(found, indent=1) + "\n")


main()
