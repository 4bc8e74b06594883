"""The same operations as `gpu_check times` in PyTorch, on the same card."""

import statistics

import torch
import torch.nn.functional as F


def time(run, warm=3, runs=12):
    """The median in seconds."""
    for _ in range(warm):
        run()
    marks = []
    for _ in range(runs):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        run()
        after.record()
        marks.append((before, after))
    torch.cuda.synchronize()
    return statistics.median(b.elapsed_time(a) for b, a in marks) / 1e3


def random(*shape, dtype=torch.bfloat16, grad=False):
    return torch.randn(*shape, dtype=dtype, device="cuda").requires_grad_(grad)


def of_bytes(what, seconds, count):
    print(f"  {what:<40} {seconds * 1e6:9.1f} us  {count / seconds / 1e12:6.2f} TB/s", flush=True)


def of_operations(what, seconds, count):
    print(f"  {what:<40} {seconds * 1e6:9.1f} us  {count / seconds / 1e12:6.0f} TF/s", flush=True)


print("PyTorch", torch.__version__)
for m, n, k in [(8192, 8192, 8192), (4096, 2048, 2048), (4096, 12288, 2048), (8192, 14336, 4096), (4096, 16, 2048)]:
    x, w = random(m, k), random(n, k)
    of_operations(f"bf16 {m} x {n} x {k}", time(lambda: F.linear(x, w)), 2 * m * n * k)
x, w = random(2048, 2048, dtype=torch.float32), random(2048, 2048, dtype=torch.float32)
of_operations("f32 2048 x 2048 x 2048", time(lambda: F.linear(x, w)), 2 * 2048**3)

x, w, g = random(16384, 4096, grad=True), random(4096, grad=True), random(16384, 4096)
count = x.numel()
of_bytes("rms_norm 16384 x 4096 bf16", time(lambda: F.rms_norm(x.detach(), (4096,), w.detach(), 1e-5)), 4 * count)
y = F.rms_norm(x, (4096,), w, 1e-5)
of_bytes(
    "rms_norm gradient with weight",
    time(lambda: torch.autograd.grad(y, (x, w), g, retain_graph=True)),
    6 * count,
)
gate, up = random(16384, 4096), random(16384, 4096)
of_bytes("SiLU gate", time(lambda: F.silu(gate) * up), 6 * count)
del x, y, g, gate, up

logits = random(2048, 151936, dtype=torch.float32, grad=True)
targets = torch.arange(2048, device="cuda")
of_bytes(
    "cross_entropy, gradient 2048 x 151936",
    time(lambda: torch.autograd.grad(F.cross_entropy(logits, targets), logits), runs=6),
    8 * logits.numel(),
)
del logits

parameter = random(200 << 20)
parameter.grad = torch.randn_like(parameter)
optimizer = torch.optim.AdamW([parameter], lr=1e-5, fused=True)
of_bytes("AdamW fused 210 M bf16, state bf16", time(optimizer.step), 14 * parameter.numel())
del optimizer, parameter

for what, heads, kv_heads, dim, spans, length in [
    ("32/8 x 128, 4 x 4096", 32, 8, 128, 4, 4096),
    ("16/8 x 128, 2 x 2048", 16, 8, 128, 2, 2048),
    ("32/8 x 64, 4 x 4096", 32, 8, 64, 4, 4096),
    ("8/4 x 256, 2 x 4096", 8, 4, 256, 2, 4096),
]:
    q = random(spans, heads, length, dim, grad=True)
    # As many heads as the queries have: the library's fastest way.
    k, v = random(spans, heads, length, dim, grad=True), random(spans, heads, length, dim, grad=True)
    g = torch.randn_like(q)
    operations = 2 * spans * length * length * heads * dim
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with torch.no_grad():
        forward = time(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    backward = time(lambda: torch.autograd.grad(out, (q, k, v), g, retain_graph=True))
    of_operations(f"sdpa {what}", forward, operations)
    of_operations("  gradient", backward, 2.5 * operations)
    of_operations("  both", forward + backward, 3.5 * operations)
