"""Checks that transformers and peft load what was written, and compute the same.

    python tests/python/check_exports.py
    python tests/python/check_exports.py --model DIR [--adapter DIR] --expected FILE.safetensors

FILE holds `input_ids` [batch, seq] and the `logits` [batch, seq, vocab], or the `scores` [batch, labels], that this project computes
with the model in DIR, or with the model and the adapter on top of it. No weight may be missing or
left over, and logits must agree to --tolerance. Without arguments, the tests
`exports`, `peft_training` and `recipe_exports` write models and adapters of several kinds, which are all checked.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


# Rows of single tokens, as peft names them.
ROWS_OF_TOKENS = "token_adapter.trainable_tokens_delta"


def load_model(path, kind=AutoModelForCausalLM):
    model, info = kind.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    for kind in ["missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"]:
        if info.get(kind):
            sys.exit(f"{path}: {kind}: {sorted(map(str, info[kind]))}")
    return model.eval()


def add_adapter(model, path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tables = load_file(Path(path) / "adapter_model.safetensors").items()
        rows = [t.shape[0] for name, t in tables if "embed_tokens" in name and not name.endswith(ROWS_OF_TOKENS)]
        if rows and rows[0] != model.get_input_embeddings().weight.shape[0]:
            # As AutoPeftModelForCausalLM does it.
            model.resize_token_embeddings(rows[0])
        model = PeftModel.from_pretrained(model, path)
    missing = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
    if missing:
        sys.exit(f"{path}: {missing}")
    config, file = PeftConfig.from_pretrained(path), json.loads((Path(path) / "adapter_config.json").read_text())
    for key in ["base_model_name_or_path", "revision"]:
        if getattr(config, key) != file[key]:
            sys.exit(f"{path}: peft reads {key} as {getattr(config, key)!r}, and the file has {file[key]!r}")
    written = load_file(Path(path) / "adapter_model.safetensors")
    # A table that is the output layer, too, is there under both names.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    loaded = {name.replace(".default.", "."): p for name, p in parameters.items() if "lora_" in name}
    whole = {name: p for name, p in parameters.items() if ".modules_to_save.default." in name}
    loaded |= {name.replace(".modules_to_save.default.", "."): p for name, p in whole.items()}
    loaded |= {name.removesuffix(".default"): p for name, p in model.named_parameters() if name.endswith(f"{ROWS_OF_TOKENS}.default")}
    # Files have magnitudes (DoRA) as the first versions of peft named them.
    of_magnitude = "lora_magnitude_vector.weight"
    loaded = {name.removesuffix(".weight") if name.endswith(of_magnitude) else name: p for name, p in loaded.items()}
    # peft puts the adapters of all experts together: whether rightly, logits say.
    written, loaded = ({name: p for name, p in of.items() if ".experts." not in name} for of in [written, loaded])
    if written.keys() != loaded.keys():
        sys.exit(f"{path}: loaded and written weights differ: {sorted(written.keys() ^ loaded.keys())}")
    for name, tensor in written.items():
        if not torch.equal(tensor.float(), loaded[name].float()):
            sys.exit(f"{path}: {name} was loaded with other values")
    return model.eval()


def check_scores(path, base, adapter, expected, tolerance):
    """A head that scores sequences: a batch that is padded on the right gets the same scores."""
    ours, ids = expected["scores"].float(), expected["input_ids"].long()
    if adapter:
        if PeftConfig.from_pretrained(adapter).task_type != "SEQ_CLS":
            sys.exit(f"{path}: the adapter is not for sequence classification")
        # As TRL has it: what fills rows up is the tokenizer's.
        pad = AutoTokenizer.from_pretrained(adapter).pad_token_id
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=ours.shape[1], pad_token_id=pad, dtype=torch.float32)
        model = add_adapter(model.eval(), adapter)
    else:
        model = load_model(base, AutoModelForSequenceClassification)
        labels = json.loads((Path(base) / "config.json").read_text())["id2label"]
        if model.config.id2label != {int(i): label for i, label in labels.items()} or model.config.num_labels != ours.shape[1]:
            sys.exit(f"{path}: labels are {model.config.id2label}")
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=(ids != model.config.pad_token_id).long()).logits.float()
    if theirs.shape != ours.shape or not torch.isfinite(ours).all():
        sys.exit(f"{path}: scores have the shape {tuple(theirs.shape)} there and {tuple(ours.shape)} here, or are not finite")
    difference = (theirs - ours).abs().max().item()
    print(f"{path}: scores differ by at most {difference:.1e}, the largest is {theirs.abs().max().item():.1f}; {check_tokenizer(path)}")
    if not difference <= tolerance:
        sys.exit(f"{path}: that is more than {tolerance}")


def check_tokenizer(path):
    """Loads the tokenizer where there is one; a template must come along."""
    if not (Path(path) / "tokenizer.json").exists():
        return "no tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = "Twelve 12 naïve\n  def f(x):"
    if tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) != text:
        sys.exit(f"{path}: the tokenizer does not give {text!r} back")
    return f"tokenizer of {len(tokenizer)} tokens, {'a' if tokenizer.chat_template else 'no'} chat template"


def check_stop_tokens(path, model):
    """Generation must stop at the tokenizer's end of text and where the chat template ends an answer."""
    if not (Path(path) / "tokenizer.json").exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(path)
    wanted = {tokenizer.eos_token_id} - {None}
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": "Qzwv"}, {"role": "assistant", "content": "Kxjq"}]
        after = tokenizer.apply_chat_template(messages, tokenize=False).split("Kxjq")[-1].strip()
        closing = [token for token in tokenizer.all_special_tokens if after.startswith(token)]
        wanted |= {tokenizer.convert_tokens_to_ids(max(closing, key=len))} if closing else set()
    for name, ids in [("generation_config", model.generation_config.eos_token_id), ("config", model.config.eos_token_id)]:
        ids = set() if ids is None else set(ids) if isinstance(ids, list) else {ids}
        if not wanted <= ids:
            sys.exit(f"{path}: {name}.json stops at {sorted(ids)}, and {sorted(wanted - ids)} end answers, too")


def check(model_path, adapter, expected, tolerance):
    expected = load_file(expected)
    if "scores" in expected:
        return check_scores(adapter or model_path, model_path, adapter, expected, tolerance)
    model = load_model(model_path)
    # Of a base that is none of ours, `check` warns.
    if not adapter:
        check_stop_tokens(model_path, model)
    if adapter:
        model = add_adapter(model, adapter)
    what = adapter or model_path
    tokenizer = check_tokenizer(what)
    with torch.no_grad():
        theirs = model(input_ids=expected["input_ids"].long()).logits.float()
    ours = expected["logits"].float()
    if theirs.shape != ours.shape:
        sys.exit(f"{what}: logits have the shape {tuple(theirs.shape)} there and {tuple(ours.shape)} here")
    if not torch.isfinite(ours).all():
        sys.exit(f"{what}: our logits are not all finite")
    difference = (theirs - ours).abs().max().item()
    print(f"{what}: logits differ by at most {difference:.1e}, the largest is {theirs.abs().max().item():.1f}; {tokenizer}")
    if not difference <= tolerance:
        sys.exit(f"{what}: that is more than {tolerance}")


def write_exports():
    """Has the models and adapters written and returns their folders."""
    root = Path(__file__).resolve().parents[2]
    exports = root / "target" / "exports"
    shutil.rmtree(exports, ignore_errors=True)
    exports.mkdir(parents=True)
    for package, test in [("tune-core", "exports"), ("tune-core", "peft_training"), ("recipes", "recipe_exports")]:
        command = ["cargo", "test", "--quiet", "--locked", "-p", package, "--test", test]
        subprocess.run(command, cwd=root, env=os.environ | {"EXPORTS_DIR": str(exports)}, check=True)
    return sorted(exports.iterdir())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of the model, or of the adapter's base (by default the one that it names)")
    parser.add_argument("--adapter", help="folder of a PEFT adapter")
    parser.add_argument("--expected", help="safetensors file with input_ids and logits")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference of two logits")
    args = parser.parse_args()

    if args.expected:
        if not (args.model or args.adapter):
            parser.error("--expected needs --model or --adapter")
        cases = [(args.model, args.adapter, args.expected)]
    elif args.model or args.adapter:
        parser.error("--model and --adapter need --expected")
    else:
        cases = []
        for folder in write_exports():
            parts = [str(folder / part) if (folder / part).exists() else None for part in ["model", "adapter"]]
            cases.append((*parts, folder / "expected.safetensors"))
        if not cases:
            sys.exit("nothing was exported")
    for model, adapter, expected in cases:
        base = model or json.loads((Path(adapter) / "adapter_config.json").read_text())["base_model_name_or_path"]
        check(base, adapter, expected, args.tolerance)


main()
