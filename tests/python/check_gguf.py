"""Checks that the gguf package and llama.cpp read the GGUF files that `tune export` writes, and say the same.

    python tests/python/check_gguf.py [--tune target/debug/tune] [--keep DIR]

A random model of each family, made by transformers, is exported in every type:

- names and metadata are those that the gguf package knows for the architecture;
- blocks are, byte for byte, those that llama.cpp's own functions make of the weights (called by their C interface), and for
  the types that the package can quantize itself, those that it makes;
- the same of files by an importance matrix of data, whose file the gguf package reads;
- llama.cpp continues prompts greedily with the tokens that `generate` finds, for files in F32, with and without an adapter
  beside the file; and cuts text as the model's own tokenizer does.

Needs numpy, torch, transformers, peft, gguf and xllamacpp (llama.cpp, compiled).
"""

import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k_m", "q5_k_m", "q6_k"]
BASE = dict(vocab_size=384, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, pad_token_id=1, bos_token_id=None, eos_token_id=1,
            initializer_range=0.08)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192)
LONG = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0 + 0.01 * i for i in range(32)],
            long_factor=[1.5 + 0.1 * i for i in range(32)])
# Architecture of llama.cpp's, and what the family has of its own.
FAMILIES = {
    "llama": ("llama", dict(rope_parameters=LLAMA3)),
    "mistral": ("llama", dict(sliding_window=128)),
    "smollm3": ("smollm3", dict(tie_word_embeddings=True, num_hidden_layers=4)),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True)),
    "qwen3": ("qwen3", dict(head_dim=64)),
    "qwen3_moe": ("qwen3moe", dict(head_dim=64, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=256, norm_topk_prob=True)),
    "gemma": ("gemma", dict(head_dim=64)),
    "gemma2": ("gemma2", dict(head_dim=64, sliding_window=64, query_pre_attn_scalar=64)),
    "gemma3_text": ("gemma3", dict(head_dim=64, sliding_window=64, query_pre_attn_scalar=64, num_hidden_layers=6)),
    # Beyond the original length llama.cpp goes by the size of its memory, and transformers by the length of the text.
    "phi3": ("phi3", dict(max_position_embeddings=512, original_max_position_embeddings=256, rope_parameters=LONG)),
    "olmo2": ("olmo2", dict()),
}
PROMPTS = ["Write m-a-p-l-e backwards.", "Hello", "The sea in winter is", "1, 2, 3,", "def f(x):\n    return", "naïve café ½ ",
           "two  spaces and a\ttab", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "ABC abc", "Why?",
           "A frog and a toad", "z", "It's 12 o'clock", "one\ntwo\nthree", "\"quoted\"", "a+b=c", "  leading", "trailing  ",
           "émigré", "end."]
TOKENS = 16


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def make_model(name, into):
    """A random model whose next tokens are far from equally likely."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(name, **(BASE | FAMILIES[name][1]))
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.add_(0.2 * torch.randn_like(parameter))
            if key.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(into)
    for file in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(ROOT / "recipes/tiny/model" / file, into / file)
    return model


def make_adapter(model, base, into, names):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=names, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                parameter.copy_(0.05 * torch.randn_like(parameter))
    adapted.save_pretrained(into)
    config = json.loads((into / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(base)
    (into / "adapter_config.json").write_text(json.dumps(config))
    adapted.unload()


class Quantizer:
    """llama.cpp's functions."""

    def __init__(self):
        import xllamacpp.xllamacpp as compiled

        self.library = ctypes.CDLL(compiled.__file__)
        self.library.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64,
                                                     ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]

    def blocks(self, numbers, kind, importance=None):
        """`importance` has a number for each column, or for those of each matrix."""
        numbers = np.ascontiguousarray(numbers, np.float32)
        if importance is not None and numbers.ndim == 3:
            return np.concatenate([self.blocks(matrix, kind, of) for matrix, of in zip(numbers, importance, strict=True)])
        rows, width = numbers.size // numbers.shape[-1], numbers.shape[-1]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        out = np.zeros(rows * width // block * size, np.uint8)
        self.library.ggml_quantize_chunk(int(kind), numbers.ctypes.data, out.ctypes.data, 0, rows, width,
                                         None if importance is None else importance.ctypes.data)
        return out


def interleaved(weights, heads):
    """Rows of the two rotary halves of each head in turn."""
    return weights.reshape(heads, 2, -1, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def expected_tensors(name, model):
    """The weights under the names and in the layout of llama.cpp, by the gguf package's own table of names."""
    architecture, config = FAMILIES[name][0], model.config
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors, experts = {}, {}
    for key, value in model.state_dict().items():
        value = value.float().numpy()
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture in ("llama", "smollm3") and ".q_proj." in key:
            value = interleaved(value, config.num_attention_heads)
        if architecture in ("llama", "smollm3") and ".k_proj." in key:
            value = interleaved(value, config.num_key_value_heads)
        if architecture.startswith("gemma") and key.endswith("norm.weight"):
            value = value + np.float32(1)
        if ".mlp.experts." in key:
            experts[key] = value
            continue
        found = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert found, f"{name}: the gguf package knows no name for {key}"
        tensors[found] = value
    for key, value in experts.items():
        # transformers 5 has all experts of a block in one tensor, gate and input one behind the other.
        block = key.split(".")[2]
        if key.endswith("gate_up_proj"):
            half = value.shape[1] // 2
            tensors[f"blk.{block}.ffn_gate_exps.weight"] = value[:, :half]
            tensors[f"blk.{block}.ffn_up_exps.weight"] = value[:, half:]
        elif key.endswith("down_proj"):
            tensors[f"blk.{block}.ffn_down_exps.weight"] = value
        else:
            sys.exit(f"{name}: an expert's weight is called {key}")
    return tensors


def read_importance(path):
    """By the names of tensors: the mean squares of their columns, ones where there are none, as llama.cpp's `quantize` has them."""
    tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in gguf.GGUFReader(path).tensors}
    means = {}
    for key, sums in tensors.items():
        name = key.removesuffix(".in_sum2")
        if name == key:
            continue
        counts = tensors[f"{name}.counts"].reshape(-1, 1)
        found = np.where(counts > 0, sums.reshape(len(counts), -1) / np.maximum(counts, 1), np.float32(1)).astype(np.float32)
        means[name] = found if len(counts) > 1 else found[0]
    return means


def check_file(path, name, model, quantizer, importance=None):
    reader = gguf.GGUFReader(path)
    expected = expected_tensors(name, model)
    found = {tensor.name: tensor for tensor in reader.tensors}
    extra = {key for key in found if key.startswith("rope_f")}
    if found.keys() - extra != expected.keys():
        sys.exit(f"{path}: has other tensors than the gguf package would: {sorted((found.keys() - extra) ^ expected.keys())}")
    architecture = FAMILIES[name][0]
    fields = {key: field.contents() for key, field in reader.fields.items()}
    wanted = {"general.architecture": architecture, f"{architecture}.block_count": model.config.num_hidden_layers,
              f"{architecture}.embedding_length": model.config.hidden_size,
              f"{architecture}.attention.head_count": model.config.num_attention_heads,
              "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.eos_token_id": 1,
              "general.quantization_version": 2}
    for key, value in wanted.items():
        if fields.get(key) != value:
            sys.exit(f"{path}: {key} is {fields.get(key)!r}, and {value!r} was expected")
    template = json.loads((ROOT / "recipes/tiny/model/tokenizer_config.json").read_text())["chat_template"]
    if fields.get("tokenizer.chat_template") != template:
        sys.exit(f"{path}: the chat template is another")
    kinds = {}
    for key, numbers in expected.items():
        tensor = found[key]
        kind = tensor.tensor_type
        kinds[kind.name] = kinds.get(kind.name, 0) + 1
        data = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
        if kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.BF16):
            ours = gguf.quants.dequantize(tensor.data, kind).reshape(numbers.shape)
            theirs = gguf.quants.dequantize(gguf.quants.quantize(numbers, kind), kind).reshape(numbers.shape)
            if not np.array_equal(ours, theirs):
                sys.exit(f"{path}: {key} holds other numbers")
            continue
        of_columns = (importance or {}).get(key)
        blocks = quantizer.blocks(numbers, kind, of_columns)
        if not np.array_equal(data, blocks):
            sys.exit(f"{path}: {key} has other blocks of {kind.name} than llama.cpp's, the first at byte {np.argmax(data != blocks)}")
        if of_columns is not None:
            continue
        try:
            of_package = gguf.quants.quantize(numbers, kind).reshape(-1).view(np.uint8)
        except NotImplementedError:
            continue
        if not np.array_equal(data, of_package):
            sys.exit(f"{path}: {key} has other blocks of {kind.name} than those of the gguf package")
    return kinds


def llama_cpp(path, adapter=None):
    """Greedy continuations by llama.cpp."""
    import xllamacpp as xlc

    params = xlc.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.verbosity = 256, 1, 0, -1
    params.warmup, params.cpuparams.n_threads, params.cpuparams_batch.n_threads = False, 2, 2
    # As exact as what it is compared with.
    params.cache_type_k = params.cache_type_v = xlc.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xlc.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter:
        lora = xlc.CommonAdapterLoraInfo()
        lora.path, lora.scale = str(adapter), 1.0
        params.lora_adapters = [lora]
    server = xlc.Server(params)
    answers = []
    for prompt in PROMPTS:
        answer = server.handle_completions({"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "top_k": 1, "cache_prompt": False})
        if isinstance(answer, (str, bytes)):
            answer = json.loads(answer)
        choices = answer.get("choices")
        answers.append(choices[0]["text"] if choices else answer["content"])
    del server
    return answers


def ours(generate, model, adapter=None):
    lines = "\n".join(json.dumps({"prompt": prompt}) for prompt in PROMPTS)
    arguments = [f"checkpoint_dir={model}", "prompts=-", "temperature=0", f"max_new_tokens={TOKENS}", "apply_chat_template=false"]
    if adapter:
        arguments.append(f"adapter_dir={adapter}")
    return [json.loads(line)["answer"] for line in run(generate, *arguments, input=lines).splitlines()]


def compare(what, theirs, found):
    same = sum(a == b for a, b in zip(theirs, found, strict=True))
    for prompt, a, b in zip(PROMPTS, theirs, found, strict=True):
        if a != b:
            print(f"{what}: {prompt!r}: llama.cpp says {a!r}, we say {b!r}")
    return same


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", type=Path, default=ROOT / "target/debug/tune", help="the program; `generate` is beside it")
    parser.add_argument("--keep", type=Path, help="write the files there, and leave them")
    parser.add_argument("families", nargs="*", help="only these families")
    args = parser.parse_args()
    generate = args.tune.with_name("generate")
    quantizer = Quantizer()
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        into = args.keep or Path(temporary)
        for name in args.families or FAMILIES:
            base = into / name
            base.mkdir(parents=True, exist_ok=True)
            model = make_model(name, base)
            kinds = {}
            for kind in TYPES:
                path = into / f"{name}_{kind}.gguf"
                # llama.cpp takes a model whose name has `phi3` in it to have the tokens of Phi-3's own tokenizer.
                run(args.tune, "export", base, "--to", path, "--type", kind, "--name", "model")
                kinds |= check_file(path, name, model, quantizer)
            for kind in ["q4_0", "q4_k_m", "q5_k_m", "q6_k"]:
                path = into / f"{name}_{kind}_by_columns.gguf"
                run(args.tune, "export", base, "--to", path, "--type", kind, "--name", "model", "--importance",
                    "recipes/tiny/data/documents.jsonl", "--importance-chunks", 4)
                check_file(path, name, model, quantizer, read_importance(path.with_suffix(".imatrix.gguf")))
            targets = {
                "phi3": ["qkv_proj", "o_proj", "down_proj"],
                # One adapter on all experts of a block, as peft has it: it is taken apart, and put together again for llama.cpp.
                "qwen3_moe": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj", "gate"],
            }.get(name, ["q_proj", "k_proj", "v_proj", "o_proj"])
            adapter, adapter_file = into / f"{name}_adapter", into / f"{name}_adapter.gguf"
            make_adapter(model, base, adapter, targets)
            run(args.tune, "export", adapter, "--to", adapter_file, "--type", "f32")
            same = compare(name, llama_cpp(into / f"{name}_f32.gguf"), ours(generate, base))
            with_adapter = compare(
                f"{name} with an adapter", llama_cpp(into / f"{name}_f32.gguf", adapter_file), ours(generate, base, adapter)
            )
            count = len(PROMPTS)
            print(f"{name}: blocks of {', '.join(sorted(kinds))} are llama.cpp's; it says the same to {same} of {count} prompts, "
                  f"{with_adapter} with the adapter", flush=True)
            # Of two tokens that are as likely, one or the other comes first.
            failed |= same < count - 1 or with_adapter < count - 1
    sys.exit(1 if failed else 0)


main()
