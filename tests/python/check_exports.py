"""Checks that transformers and peft load what was written, and compute the same.

    python tests/python/check_exports.py --model DIR [--adapter DIR] --expected FILE.safetensors

FILE holds `input_ids` [batch, seq] and the `logits` [batch, seq, vocab] that this project computes
with the model in DIR, or with the model and the adapter on top of it. No weight may be missing or
left over, and logits must agree to --tolerance.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


class Complaints(logging.Handler):
    """Collects what the libraries warn of: peft reports weights that it misses only so."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def load_model(path):
    model, info = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    for kind in ["missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"]:
        if info.get(kind):
            sys.exit(f"{path}: {kind}: {sorted(map(str, info[kind]))}")
    return model.eval()


def add_adapter(model, path):
    import warnings

    from peft import PeftModel
    from safetensors import safe_open

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, path)
    missing = [str(w.message) for w in caught if "missing adapter keys" in str(w.message)]
    if missing:
        sys.exit(f"{path}: {missing}")
    with safe_open(Path(path) / "adapter_model.safetensors", "pt") as file:
        written = {name: file.get_tensor(name) for name in file.keys()}
    loaded = {name.replace(".default.", "."): p for name, p in model.named_parameters() if "lora_" in name}
    if written.keys() != loaded.keys():
        sys.exit(f"{path}: loaded and written weights differ: {sorted(written.keys() ^ loaded.keys())}")
    for name, tensor in written.items():
        if not torch.equal(tensor.float(), loaded[name].float()):
            sys.exit(f"{path}: {name} was loaded with other values")
    return model.eval()


def check_tokenizer(path):
    """Loads the tokenizer where there is one; a template must come along."""
    if not (Path(path) / "tokenizer.json").exists():
        return "no tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(path)
    text = "Twelve 12 naïve\n  def f(x):"
    if tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) != text:
        sys.exit(f"{path}: the tokenizer does not give {text!r} back")
    return f"tokenizer of {len(tokenizer)} tokens, {'a' if tokenizer.chat_template else 'no'} chat template"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the model, or of the adapter's base")
    parser.add_argument("--adapter", help="folder of a PEFT adapter")
    parser.add_argument("--expected", required=True, help="safetensors file with input_ids and logits")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference of two logits")
    args = parser.parse_args()

    complaints = Complaints()
    logging.getLogger("transformers").addHandler(complaints)
    expected = load_file(args.expected)
    model = load_model(args.model)
    if args.adapter:
        model = add_adapter(model, args.adapter)
    tokenizer = check_tokenizer(args.adapter or args.model)
    with torch.no_grad():
        logits = model(input_ids=expected["input_ids"].long()).logits
    theirs, ours = logits.float(), expected["logits"].float()
    if theirs.shape != ours.shape:
        sys.exit(f"logits have the shapes {tuple(theirs.shape)} there and {tuple(ours.shape)} here")
    if not torch.isfinite(ours).all():
        sys.exit("our logits are not all finite")
    difference = (theirs - ours).abs().max().item()
    what = args.adapter or args.model
    print(f"{what}: logits differ by at most {difference:.2e} of {theirs.abs().max().item():.1f}; {tokenizer}")
    for message in complaints.messages:
        print(f"  transformers warns: {message}")
    if not difference <= args.tolerance:
        sys.exit(f"{what}: more than {args.tolerance}")


main()
