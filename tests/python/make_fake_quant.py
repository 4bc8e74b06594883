"""Writes tests/fixtures/fake_quant: what torchao's fake quantization makes of fixed numbers and of gradients
(numbers.safetensors), and the losses and gradients of a tiny model that is trained with it, of all weights and of adapters as
torchtune's QATLoRALinear has them (model.safetensors, in f64 and in f32, in which other levels may be the nearest: of each
gradient every 29th element).

    python tests/python/make_fake_quant.py    (torch 2.15, torchao 0.18.0, transformers 5.24)
"""

import itertools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torchao.quantization import PerToken
from torchao.quantization.qat import Int4WeightOnlyQATQuantizer, Int8DynActInt4WeightQATQuantizer
from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/fixtures/fake_quant"
FAMILY = ROOT / "tests/fixtures/families/llama3_1_rope_scaled"
EVERY = 29
# The least scale of inputs, and of weights.
EPS, NORMAL = torch.finfo(torch.float32).eps, torch.finfo(torch.float32).smallest_normal


def quantizers(name, group):
    """torchao's fake quantizers of weights and of activations."""
    of = {
        "int8_dyn_act_int4_weight": Int8DynActInt4WeightQATQuantizer,
        "int4_weight_only": Int4WeightOnlyQATQuantizer,
    }[name](groupsize=group)
    of_inputs = of.get_activation_fake_quantize_config()
    return IntxFakeQuantizer(of.get_weight_fake_quantize_config()), of_inputs and IntxFakeQuantizer(of_inputs)


class Clamp(torch.autograd.Function):
    """torch's clamp, with a gradient for numbers at a bound.

    torchao 0.12 to 0.18 (by the sources of 0.12.0 to 0.18.0) has no mask of its own on this path: it computes
    `torch.clamp(_Round.apply(x / scale) + zero, least, largest)`, and the gradient is that of torch's clamp. PyTorch's source has
    "the subgradient 1" at bounds (`clamp_backward` in torch/csrc/autograd/FunctionsManual.cpp, commit 002ca671), and that is what
    is written here; torch 2.15.0, as installed from PyPI, was measured to give 0 there. torchao's own mask, in
    `_fake_quantize_affine_cachemask`, is `least <= q <= largest` as well, though of numbers that are limited already."""

    @staticmethod
    def forward(ctx, x, least, largest):
        ctx.save_for_backward((x >= least) & (x <= largest))
        return x.clamp(least, largest)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None, None


def clamp(x, min=None, max=None):
    return Clamp.apply(x, -float("inf") if min is None else min, float("inf") if max is None else max)


torch.clamp = clamp


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, g):
        return g


def weight(name, group, w):
    """The same as torchao's, which takes no f64, in the type of `w`."""
    parts = w.reshape(w.shape[0], -1, group)
    least, largest = parts.detach().amin(-1, keepdim=True), parts.detach().amax(-1, keepdim=True)
    if name == "int8_dyn_act_int4_weight":
        scale = torch.maximum(-least.clamp(max=0), largest.clamp(min=0)) / 7.5
        scale = scale.clamp(min=NORMAL)
        parts = clamp(Round.apply(parts * (1 / scale)), -8, 7) * scale
    else:
        narrow = lambda x: x.to(torch.bfloat16).to(w.dtype)
        exact = ((largest - least) / 15).clamp(min=1e-6)
        scale, zero = narrow(exact), narrow(least + exact * 8)
        parts = (clamp(Round.apply((parts - narrow(zero - scale * 8)) / scale), 0, 15) - 8) * scale + zero
    return parts.reshape(w.shape)


def inputs(name, x):
    if name == "int4_weight_only":
        return x
    least, largest = x.detach().amin(-1, keepdim=True).clamp(max=0), x.detach().amax(-1, keepdim=True).clamp(min=0)
    scale = ((largest - least) / 255).clamp(min=EPS)
    zero = (-128 - torch.round(least / scale)).clamp(-128, 127)
    return (clamp(Round.apply(x * (1 / scale)) + zero, -128, 127) - zero) * scale


# ---- numbers ----------------------------------------------------------------------------------------
torch.manual_seed(1)
w = torch.randn(8, 256) * torch.logspace(-5, 1, 8)[:, None]
w[0, :32] = 0
w[1, 32:64] = 0.25
w[2, 64:96] = w[2, 64:96].abs()
w[3, 96:128] = -w[3, 96:128].abs() - 5
w[4, 128] = 100 * w[4].abs().max()
w[5, :32] = torch.linspace(-7.5, 8, 32)
w[6, :128] *= 1e-9
w[7, :32] *= 2e-39
x = torch.randn(9, 160) * torch.logspace(-3, 3, 9)[:, None]
x[0] = 0
x[1] = x[1].abs()
x[2] = -x[2].abs()
x[3, 7] = 1000 * x[3].abs().max()
# Both ends are rounded up, and the upper one is beyond the last level.
x[4] = torch.linspace(-253.5, 1.5, 160)
tensors = {"weight": w, "weight_gradient": torch.randn_like(w), "inputs": x, "inputs_gradient": torch.randn_like(x)}
for name in ["int8_dyn_act_int4_weight", "int4_weight_only"]:
    for group in [32, 128]:
        of_weight, of_inputs = quantizers(name, group)
        leaf = w.clone().requires_grad_()
        rounded = of_weight(leaf)
        rounded.backward(tensors["weight_gradient"])
        tensors[f"{name}.{group}"], tensors[f"{name}.{group}.gradient"] = rounded.detach(), leaf.grad
        ours = w.clone().requires_grad_()
        mine = weight(name, group, ours)
        mine.backward(tensors["weight_gradient"])
        assert torch.equal(mine, rounded), name
        torch.testing.assert_close(ours.grad, leaf.grad)
    if of_inputs is not None:
        assert isinstance(of_inputs.config.granularity, PerToken)
        leaf = x.clone().requires_grad_()
        rounded = of_inputs(leaf)
        rounded.backward(tensors["inputs_gradient"])
        tensors["inputs.rounded"], tensors["inputs.rounded.gradient"] = rounded.detach(), leaf.grad
        ours = x.clone().requires_grad_()
        mine = inputs(name, ours)
        mine.backward(tensors["inputs_gradient"])
        assert torch.equal(mine, rounded)
        torch.testing.assert_close(ours.grad, leaf.grad)
OUT.mkdir(exist_ok=True)
save_file({name: t.contiguous() for name, t in tensors.items()}, OUT / "numbers.safetensors")


# ---- a model ----------------------------------------------------------------------------------------
class Fake(torch.nn.Module):
    def __init__(self, name, weight, adapter=None):
        super().__init__()
        self.name, self.weight, self.adapter = name, weight, adapter

    def forward(self, x):
        y = F.linear(inputs(self.name, x), weight(self.name, 32, self.weight))
        if self.adapter is None:
            return y
        a, b = self.adapter
        return y + 2.0 * F.linear(F.linear(x, a), b)


def model(dtype):
    config = LlamaConfig(**json.loads((FAMILY / "config.json").read_text()))
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    model.load_state_dict(load_file(FAMILY / "model.safetensors"))
    return model.to(dtype)


def modules(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


reference = load_file(FAMILY / "reference.safetensors")
written = {}
for name, lora, dtype in itertools.product(
    ["int8_dyn_act_int4_weight", "int4_weight_only"], [False, True], [torch.float64, torch.float32]
):
    net = model(dtype)
    generator = torch.Generator().manual_seed(7)
    adapters = {}
    for path, module in modules(net):
        parent, leaf = path.rpartition(".")[0], path.rpartition(".")[2]
        adapter = None
        if lora:
            a = torch.randn(3, module.in_features, generator=generator) * 0.1
            b = torch.randn(module.out_features, 3, generator=generator) * 0.1
            written[f"adapter.{path}.lora_A.weight"], written[f"adapter.{path}.lora_B.weight"] = a, b
            adapter = [t.to(dtype).requires_grad_() for t in (a, b)]
            adapters[path] = adapter
        setattr(net.get_submodule(parent), leaf, Fake(name, module.weight, adapter))
    # transformers computes norms and probabilities in f32 whatever the model is in.
    narrow, torch.float32 = torch.float32, dtype
    logits = net(reference["input_ids"]).logits[:, :-1]
    torch.float32 = narrow
    labels = reference["labels"][:, 1:]
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100)
    loss.backward()
    case = f"{name}.{'lora' if lora else 'full'}.{'f64' if dtype == torch.float64 else 'f32'}"
    written[f"{case}.loss"] = loss.detach().reshape(1)
    gradients = {path: p.grad for path, p in net.named_parameters()}
    if lora:
        gradients = {f"{p}.lora_{ab}.weight": t.grad for p, both in adapters.items() for ab, t in zip("AB", both)}
    for path, gradient in gradients.items():
        written[f"{case}.gradient.{path}"] = gradient.flatten()[::EVERY].clone()
save_file(written, OUT / "model.safetensors")
