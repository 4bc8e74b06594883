"""Makes the GGUF files in tests/fixtures/gguf, and what is expected of them.

    pip install gguf==0.19.0 sentencepiece==0.2.3 tokenizers==0.23.3 safetensors==0.8.0 numpy==2.4.6
    python tests/python/make_gguf_fixtures.py

With these versions the files come out the same, byte for byte.
For each NAME.gguf there is NAME.safetensors with the weights under Hugging Face's names,
NAME.config.json with what its config must hold, and NAME.tokens.json with texts and the ids
that the tokenizer which the file was made from gives them. Weights are written in llama.cpp's
layout by the formula of its converter.
"""

import io
import json
import math
import random
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "gguf"
Q = gguf.GGMLQuantizationType

CORPUS = """It was a bright cold day in the garden, and the clocks were striking thirteen. We'll see, they've said;
I'M sure you don't know what's what! Numbers: 1 22 333 4444 55555, 3.14159, 10:45, 2026-07-31.
def add(a, b):
    return a + b  # the sum

for i in range(100):
\tprint(i, i ** 2)

Der schöne Garten, naïve café, 日本語の文字, русский текст, العربية, 한국어.
The garden and the sum of the numbers in the range of the garden are the same and the same and the same.
""".splitlines(keepends=True)

TEXTS = [
    "", " ", "  ", "\n", "Hello, world!", "the garden and the sum", " leading and trailing  ", "a\n\n\nb\r\n\tc",
    "don't DON'T we'll WE'LL they've I'm", "1 12 123 1234 12345 3.14 \u0661\u0662\u0663 \u2167 \u00bd",
    "na\u00efve cafe\u0301 \ufb01", "\u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4 \u0440\u0443\u0441\u0441\u043a\u0438\u0439",
    "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "\u00a0x\u2003y\u3000z\u200b", "x" * 40, "<s> </s> <|im_start|>user\nhi<|im_end|>",
    "    return a + b  # the sum\n", "\u0000\u0001\u007f", "thegarden", "\u2581underscore \u2581",
]
_random = random.Random(3)
for _ in range(40):
    pools = [range(32, 127), range(0xA0, 0x250), range(0x370, 0x1000), range(0x1F300, 0x1F600), [10, 32, 32, 32]]
    TEXTS.append("".join(chr(_random.choice(_random.choice(pools))) for _ in range(24)))


def interleaved(weight, heads):
    """Rows of two rotary halves per head, as llama.cpp stores them."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write(name, *, arch, hidden, inter, layers, heads, kv_heads, head_dim, vocab, theta, context, tied, biases, kinds, extra, tokenizer, config):
    rng = np.random.default_rng(len(name))
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", arch)
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inter)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(1e-5)
    extra(writer)
    tokenizer(writer)

    expected = {}

    def add(gguf_name, hf_name, shape, kind, rotary=None):
        weight = rng.normal(0, 0.5, shape).astype(np.float32)
        if kind == Q.F16:
            weight = weight.astype(np.float16).astype(np.float32)
        stored = interleaved(weight, rotary) if rotary else weight
        data = stored if kind == Q.F32 else stored.astype(np.float16) if kind == Q.F16 else quantize(stored, kind)
        writer.add_tensor(gguf_name, data, raw_dtype=kind)
        if kind not in (Q.F32, Q.F16):
            # Row by row, so that quantizing commutes with the order of rows.
            weight = dequantize(quantize(weight, kind), kind)
        expected[hf_name] = weight.astype(np.float32)

    kind = iter(lambda: kinds[len(expected) % len(kinds)], None)
    queries, keys = heads * head_dim, kv_heads * head_dim
    add("token_embd.weight", "model.embed_tokens.weight", (vocab, hidden), next(kind))
    for i in range(layers):
        b, m = f"blk.{i}", f"model.layers.{i}"
        add(f"{b}.attn_norm.weight", f"{m}.input_layernorm.weight", (hidden,), Q.F32)
        add(f"{b}.attn_q.weight", f"{m}.self_attn.q_proj.weight", (queries, hidden), next(kind), heads)
        add(f"{b}.attn_k.weight", f"{m}.self_attn.k_proj.weight", (keys, hidden), next(kind), kv_heads)
        add(f"{b}.attn_v.weight", f"{m}.self_attn.v_proj.weight", (keys, hidden), next(kind))
        add(f"{b}.attn_output.weight", f"{m}.self_attn.o_proj.weight", (hidden, queries), next(kind))
        if biases:
            add(f"{b}.attn_q.bias", f"{m}.self_attn.q_proj.bias", (queries,), Q.F32, heads)
            add(f"{b}.attn_k.bias", f"{m}.self_attn.k_proj.bias", (keys,), Q.F32, kv_heads)
            add(f"{b}.attn_v.bias", f"{m}.self_attn.v_proj.bias", (keys,), Q.F32)
            add(f"{b}.attn_output.bias", f"{m}.self_attn.o_proj.bias", (hidden,), Q.F32)
        add(f"{b}.ffn_norm.weight", f"{m}.post_attention_layernorm.weight", (hidden,), Q.F32)
        add(f"{b}.ffn_gate.weight", f"{m}.mlp.gate_proj.weight", (inter, hidden), next(kind))
        add(f"{b}.ffn_up.weight", f"{m}.mlp.up_proj.weight", (inter, hidden), next(kind))
        add(f"{b}.ffn_down.weight", f"{m}.mlp.down_proj.weight", (hidden, inter), next(kind))
    add("output_norm.weight", "model.norm.weight", (hidden,), Q.F32)
    if not tied:
        add("output.weight", "lm_head.weight", (vocab, hidden), next(kind))

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, OUT / f"{name}.safetensors", metadata={"format": "pt"})
    config |= dict(hidden_size=hidden, intermediate_size=inter, num_hidden_layers=layers, num_attention_heads=heads,
                   num_key_value_heads=kv_heads, head_dim=head_dim, vocab_size=vocab, rope_theta=theta,
                   max_position_embeddings=context, rms_norm_eps=1e-5, tie_word_embeddings=tied, attention_bias=biases, mlp_bias=False)
    dump(f"{name}.config.json", config)


def dump(name, value):
    (OUT / name).write_text(json.dumps(value, indent=1 if isinstance(value, dict) else None) + "\n")


def byte_level(name, pre, pre_tokenizer, specials, *, normalizer=None, ignore_merges=False, **flags):
    """A byte-level BPE trained with this way of cutting, and a function that writes it into a file."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=352, special_tokens=[AddedToken(s, special=True, normalized=False) for s in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    dump(f"{name}.tokens.json", [[t, tokenizer.encode(t, add_special_tokens=False).ids] for t in TEXTS])

    def add(writer):
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.CONTROL if t in specials else gguf.TokenType.NORMAL for t in tokens])
        writer.add_token_merges([" ".join(m) for m in model["merges"]])
        for key, value in flags.items():
            getattr(writer, f"add_{key}")(value)

    return len(tokens), add


def sentence_piece(name):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=420, byte_fallback=True,
        character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, split_digits=True, user_defined_symbols=["<|im_start|>", "<|im_end|>"], minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    kinds = []
    for i in range(sp.vocab_size()):
        kinds.append(
            gguf.TokenType.UNKNOWN if sp.is_unknown(i) else gguf.TokenType.CONTROL if sp.is_control(i)
            else gguf.TokenType.BYTE if sp.is_byte(i)
            else gguf.TokenType.USER_DEFINED if sp.id_to_piece(i).startswith("<|") else gguf.TokenType.NORMAL)
    # Texts with special tokens in them are another matter: there Hugging Face puts a space before every piece of text.
    texts = [t for t in TEXTS if "<" not in t]
    dump(f"{name}.tokens.json", [[t, sp.encode(t)] for t in texts])

    def add(writer):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([sp.id_to_piece(i) for i in range(sp.vocab_size())])
        writer.add_token_scores([sp.get_score(i) for i in range(sp.vocab_size())])
        writer.add_token_types(kinds)
        writer.add_bos_token_id(sp.bos_id())
        writer.add_eos_token_id(sp.eos_id())
        writer.add_unk_token_id(sp.unk_id())
        writer.add_add_bos_token(True)

    return sp.vocab_size(), add


def llama3_factors(theta, head_dim, factor, low, high, original):
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    contraction = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    llama3 = contraction + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    qwen2 = llama3.replace(r"\p{N}{1,3}", r"\p{N}")

    def cut(regex):
        return pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    sizes = dict(arch="llama", hidden=32, inter=64, layers=2, heads=4, kv_heads=2)

    # SmolLM2's kind: digits alone, tied embeddings, quantized.
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    vocab, tokenizer = byte_level("smollm", "smollm", digits, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
                                  bos_token_id=1, eos_token_id=2, unk_token_id=0, pad_token_id=2, add_bos_token=False,
                                  chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    write("smollm", **sizes, head_dim=8, vocab=vocab, theta=100000.0, context=128, tied=True, biases=False,
          kinds=[Q.Q8_0, Q.F16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1], extra=lambda w: None, tokenizer=tokenizer,
          config=dict(model_type="llama", architectures=["LlamaForCausalLM"], rope_scaling=None, torch_dtype="bfloat16",
                      bos_token_id=1, eos_token_id=2, pad_token_id=2))

    # Llama 3.1's kind: scaled rotary frequencies, untied, here with biases and heads of a size of their own.
    vocab, tokenizer = byte_level("llama3", "llama-bpe", cut(llama3), ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
                                  ignore_merges=True, bos_token_id=0, eos_token_id=1, eot_token_id=2)
    write("llama3", **sizes, head_dim=16, vocab=vocab, theta=500000.0, context=131072, tied=False, biases=True, kinds=[Q.F32],
          extra=lambda w: w.add_tensor("rope_freqs.weight", llama3_factors(500000.0, 16, 8.0, 1.0, 4.0, 8192)), tokenizer=tokenizer,
          config=dict(model_type="llama", architectures=["LlamaForCausalLM"], torch_dtype="float32",
                      bos_token_id=0, eos_token_id=1, pad_token_id=None,
                      rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                        original_max_position_embeddings=8192)))

    # Mistral's kind: SentencePiece.
    vocab, tokenizer = sentence_piece("spm")
    write("spm", **(sizes | dict(layers=1)), head_dim=8, vocab=vocab, theta=10000.0, context=256, tied=False, biases=False, kinds=[Q.Q8_0],
          extra=lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), w.add_rope_scaling_factor(4.0)), tokenizer=tokenizer,
          config=dict(model_type="llama", architectures=["LlamaForCausalLM"], torch_dtype="bfloat16",
                      bos_token_id=1, eos_token_id=2, pad_token_id=None, rope_scaling=dict(rope_type="linear", factor=4.0)))

    # Other ways to cut text: only their tokenizers.
    for name, pre, pre_tokenizer, normalizer in [
        ("gpt2", "gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False), None),
        ("qwen2", "qwen2", cut(qwen2), normalizers.NFC()),
    ]:
        vocab, tokenizer = byte_level(name, pre, pre_tokenizer, ["<|endoftext|>"], normalizer=normalizer)
        write(name, **(sizes | dict(hidden=8, inter=8, layers=1, heads=1, kv_heads=1)), head_dim=8, vocab=vocab, theta=10000.0,
              context=64, tied=True, biases=False, kinds=[Q.F32], extra=lambda w: None, tokenizer=tokenizer,
              config=dict(model_type="llama", rope_scaling=None, bos_token_id=None))


main()
