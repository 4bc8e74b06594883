"""Training steps of whole models by transformers and peft, on the same card and in the same shapes as `card`'s measurements."""

import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

WHAT = {
    "0.6": dict(model_type="qwen3", hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16),
    "1.7": dict(model_type="qwen3", hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16),
    "8": dict(model_type="llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
              vocab_size=128256, tie_word_embeddings=False),
    "1.5": dict(model_type="qwen2", hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                num_key_value_heads=2),
}


def model_of(name):
    settings = dict(vocab_size=151936, num_key_value_heads=8, tie_word_embeddings=True, max_position_embeddings=8192)
    settings |= WHAT[name]
    if settings["model_type"] != "qwen2":
        settings["head_dim"] = 128
    config = AutoConfig.for_model(**settings, use_cache=False)
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def measure(what, model, rows, length, accumulated, steps=3):
    torch.cuda.reset_peak_memory_stats()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    ids = torch.randint(0, 128256, (rows, length), device="cuda")
    for _ in range(steps):
        torch.cuda.synchronize()
        begun = time.time()
        for _ in range(accumulated):
            (model(input_ids=ids, labels=ids).loss / accumulated).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds = time.time() - begun
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"{what}: a step of {accumulated} {seconds * 1e3:.1f} ms, {rows * length * accumulated / seconds:.0f} tokens/s, "
          f"{peak:.2f} GiB allocated at most, {torch.cuda.max_memory_reserved() / 2**30:.2f} reserved", flush=True)


SHAPES = {"0.6": (2, 2048, 4), "1.7": (2, 2048, 4), "8": (2, 4096, 1), "1.5": (8, 1024, 8)}
for name in sys.argv[1:] or SHAPES:
    rows, length, accumulated = SHAPES[name]
    try:
        model = model_of(name)
        if name != "1.5":
            model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.train()
        measure(f"transformers and peft {name} B, {rows} x {length}", model, rows, length, accumulated)
        if name == "1.7":
            compiled = torch.compile(model)
            measure("  with torch.compile", compiled, rows, length, accumulated)
            del compiled
    except Exception as error:
        print(f"{name} B: {type(error).__name__}: {str(error)[:150]}", flush=True)
    model = None
    torch.cuda.empty_cache()
