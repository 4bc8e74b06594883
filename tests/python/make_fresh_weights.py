"""How transformers draws the weights of a fresh model of each family: mean, standard deviation and rows of zeros of every parameter.

usage: make_fresh_weights.py > tests/fixtures/fresh_weights.json   (transformers 5.24)
"""
import json
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

common = dict(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=64, initializer_range=0.05, bos_token_id=1, eos_token_id=2, pad_token_id=3)
families = {
    "llama": ("llama", dict(tie_word_embeddings=False)),
    "llama_biases": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "mistral": ("mistral", dict(head_dim=8)),
    "gemma": ("gemma", dict(head_dim=8)),
    "gemma2": ("gemma2", dict(head_dim=8, query_pre_attn_scalar=8)),
    "gemma3_text": ("gemma3_text", dict(head_dim=8, query_pre_attn_scalar=8)),
    "olmo2": ("olmo2", dict()),
    "phi3": ("phi3", dict()),
    "qwen2": ("qwen2", dict()),
    "qwen3": ("qwen3", dict(head_dim=8)),
    "qwen3_moe": ("qwen3_moe", dict(head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)),
    "smollm3": ("smollm3", dict(pad_token_id=None)),
}

cases = {}
for name, (model_type, extra) in families.items():
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**{**common, **extra})
    model = AutoModelForCausalLM.from_config(config)
    parameters = {}
    for key, value in model.named_parameters():
        value = value.detach().double()
        rows = [i for i in range(len(value)) if (value[i] == 0).all().item()] if value.dim() == 2 else []
        parameters[key] = dict(mean=value.mean().item(), std=value.std(unbiased=False).item(), zero_rows=rows)
    said = json.loads(config.to_json_string(use_diff=False))
    said["architectures"] = [type(model).__name__]
    cases[name] = dict(config=said, parameters=parameters)
print(json.dumps(cases))
