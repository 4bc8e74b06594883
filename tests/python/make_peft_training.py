"""Writes tests/fixtures/peft_training: adapters of each kind as peft makes them, and what comes of ten steps with each.

    python tests/python/make_peft_training.py [CASE ...]

A case's folder has the adapter before the first step (not for those that begin by changing the base model: these are made again),
and `expected.json` with the losses of the steps and the logits behind the last token after them.

An adapter on each expert's layers is trained by torch alone: peft reads it, but then has one on the weights of all experts, with
gate and input in one, and trains what is zero here, too. That peft reads it as what is trained here is checked.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
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
    # Others leave the cap of gemma2's scores out.
    attention = {"attn_implementation": "eager"} if family == "gemma2" else {}
    base = AutoModelForCausalLM.from_pretrained(FAMILIES / family, dtype=torch.float32, **attention)
    # `B` is no zero, so that every matrix has a gradient from the first step on.
    config = {"init_lora_weights": False, **config}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **config))
    if "modules_to_save" in config or "trainable_token_indices" in config:
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
        in_order(into / "start")
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
    write(name, family, losses, logits)


def in_order(adapter):
    path = adapter / "adapter_config.json"
    written = json.loads(path.read_text())
    for key in ["target_modules", "target_parameters", "modules_to_save"]:
        if isinstance(written[key], list):
            written[key].sort()
    path.write_text(json.dumps(written, indent=1) + "\n")


def write(name, family, losses, logits):
    expected = {"family": family, "lr": LR, "losses": losses, "logits": logits.tolist()}
    (INTO / name / "expected.json").write_text(json.dumps(expected) + "\n")
    print(name, losses[0], losses[-1])


def places(base, targets):
    """The layers as transformers 4 names them: for each the parameter that holds its weight, and where in it."""
    found = {}
    for name, parameter in base.named_parameters():
        layer, last = name.rsplit(".", 1)
        if last == "gate_up_proj":
            for expert, (gate, up) in enumerate(weight.chunk(2) for weight in parameter):
                width = len(gate)
                found[f"{layer}.{expert}.gate_proj"] = (name, (expert, slice(0, width)), gate.shape)
                found[f"{layer}.{expert}.up_proj"] = (name, (expert, slice(width, 2 * width)), up.shape)
        elif last == "down_proj":
            found |= {f"{layer}.{expert}.down_proj": (name, (expert,), weight.shape) for expert, weight in enumerate(parameter)}
        elif parameter.dim() == 2:
            found[layer] = (name, (), parameter.shape)
    return {layer: place for layer, place in found.items() if layer.rsplit(".", 1)[-1] in targets}


def make_experts(number, name, family, config):
    torch.manual_seed(number)
    base = AutoModelForCausalLM.from_pretrained(FAMILIES / family, dtype=torch.float32)
    base.requires_grad_(False)
    frozen = dict(base.named_parameters())
    layers, rank, scale = places(base, config["target_modules"]), config["r"], config["lora_alpha"] / config["r"]
    matrices = {}
    for layer, (_, _, (out, inner)) in layers.items():
        matrices[f"{layer}.lora_A.weight"] = torch.empty(rank, inner).uniform_(-1, 1).div_(inner**0.5)
        matrices[f"{layer}.lora_B.weight"] = torch.empty(out, rank).uniform_(-1, 1).div_(rank**0.5)
    start = INTO / name / "start"
    start.mkdir(parents=True)
    save_file({f"base_model.model.{key}": matrix for key, matrix in matrices.items()}, start / "adapter_model.safetensors")
    # peft takes the MLP of a block without experts for parameters, too.
    dense = [f"{layer}.weight" for layer in layers if layer.endswith(tuple(f".mlp.{last}" for last in MLP))]
    LoraConfig(
        task_type="CAUSAL_LM", base_model_name_or_path=f"tests/fixtures/families/{family}", inference_mode=True,
        target_parameters=dense or None, **config,
    ).save_pretrained(start)
    in_order(start)
    for matrix in matrices.values():
        matrix.requires_grad_(True)

    def run(**inputs):
        parameters = {key: value.clone() for key, value in frozen.items()}
        for layer, (key, where, _) in layers.items():
            update = scale * matrices[f"{layer}.lora_B.weight"] @ matrices[f"{layer}.lora_A.weight"]
            parameters[key][where] += update
        return torch.func.functional_call(base, parameters, kwargs=inputs)

    batch = load_file(FAMILIES / family / "reference.safetensors")
    read = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(FAMILIES / family, dtype=torch.float32), start).eval()
    with torch.no_grad():
        difference = (read(input_ids=batch["input_ids"]).logits - run(input_ids=batch["input_ids"]).logits).abs().max()
    assert difference < 1e-4, f"peft reads another adapter: its logits differ by {difference}"
    # As peft has it then.
    read.save_pretrained(INTO / name / "fused")
    (INTO / name / "fused/README.md").unlink()
    in_order(INTO / name / "fused")
    optimizer = torch.optim.AdamW(matrices.values(), lr=LR, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        loss = run(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits = run(input_ids=batch["input_ids"][:1]).logits[0, -1]
    write(name, family, losses, logits)


MLP = ["gate_proj", "up_proj", "down_proj"]
OF_EXPERTS = {
    "experts": ("qwen3_moe", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", *MLP]}),
    "router": ("qwen3_moe_dense", {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj", "gate"]}),
    "experts_dense": ("qwen3_moe_dense", {"r": 2, "lora_alpha": 4, "target_modules": [*ATTENTION, *MLP, "gate"]}),
}

# Of gemma2 the embeddings are scaled, the logits are capped, and 0 is padding.
OF_TOKENS = {
    name: (family, {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "trainable_token_indices": tokens})
    for name, family, tokens in [
        ("tokens_tied", "llama_tied", [36, 149, 5, 210]),
        ("tokens_untied", "mistral", [47, 23, 151, 7]),
        ("tokens_scaled", "gemma2", [12, 0, 95, 200]),
        # Of an output layer of its own: beside rows of the table, and alone.
        ("tokens_both", "mistral", {"embed_tokens": [47, 23], "lm_head": [151, 23, 8]}),
        ("tokens_output", "mistral", {"lm_head": [23, 60]}),
    ]
}

chosen = sys.argv[1:] or [*CASES, *OF_EXPERTS, *OF_TOKENS]
for number, (name, (family, config)) in enumerate([*CASES.items(), *OF_EXPERTS.items(), *OF_TOKENS.items()]):
    if name in chosen:
        shutil.rmtree(INTO / name, ignore_errors=True)
        (make_experts if name in OF_EXPERTS else make)(number, name, family, config)
