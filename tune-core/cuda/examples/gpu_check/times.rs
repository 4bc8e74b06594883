//! How long things take, beside what the card's memory and its matrix units allow.

use half::bf16;
use tune_config::say;
use tune_cuda::{
    Activation, AdamW, Attention, BlockFormat, Buffer, Context, Element, Moved, Norm, Onto, Qkv, QkvMut, Result, Spans,
    Stretch, Term, TokenLoss, Turn,
};

use super::numbers::{Number, random};

/// What was measured of the card itself.
pub(crate) struct Limits {
    /// Bytes a second of a copy, read and written.
    bandwidth: f64,
    /// Operations a second of a large product of bf16.
    rate: f64,
}

/// The median of several runs, in seconds, after some to warm up.
pub(crate) fn time(context: &Context, run: &mut dyn FnMut()) -> Result<f64> {
    for _ in 0..3 {
        run();
    }
    let marks: Vec<_> = (0..12)
        .map(|_| {
            let before = context.mark();
            run();
            (before, context.mark())
        })
        .collect();
    let mut times = Vec::new();
    for (before, after) in &marks {
        times.push(f64::from(context.milliseconds(before, after)?) / 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Numbers that are not zero, repeated: uploading as many as a test needs would take longer than the test.
pub(crate) fn filled<T: Number>(context: &Context, len: usize) -> Buffer<T> {
    let some = context.upload(&random::<T>(len as u64, 1 << 20, 1.0));
    let mut all = context.buffer::<T>(len);
    for at in (0..len).step_by(1 << 20) {
        let count = (len - at).min(1 << 20);
        context.convert(some.part(0, (1, count), count), 1.0, false, all.part_mut(at, (1, count), count));
    }
    all
}

pub(crate) fn measure(context: &Context) -> Result<()> {
    let limits = limits(context)?;
    say!(
        "time, and the share of the limit (bytes over {:.2} TB/s, or operations over {:.0} TFLOP/s):",
        limits.bandwidth / 1e12,
        limits.rate / 1e12
    );
    products(context, &limits)?;
    elements(context, &limits)?;
    super::methods::measure(context, &limits)?;
    super::sample::measure(context, &limits)?;
    attention(context, &limits)?;
    newest(context, &limits)?;
    super::grouped::measure(context, &limits)?;
    blocks(context, &limits)?;
    launches(context)
}

/// Distillation and DoRA alone.
pub(crate) fn of_methods(context: &Context) -> Result<()> {
    super::methods::measure(context, &limits(context)?)
}

/// How long weights in blocks take to become numbers, beside a copy.
pub(crate) fn measure_blocks(context: &Context) -> Result<()> {
    let limits = limits(context)?;
    say!("time, and the share of the limit (bytes over {:.2} TB/s):", limits.bandwidth / 1e12);
    blocks(context, &limits)
}

/// A layer of a model of 8 B in blocks becomes numbers; some of its rows do.
fn blocks(context: &Context, limits: &Limits) -> Result<()> {
    let (rows, cols) = (14_336, 4096);
    let some: Vec<u8> = (0..1u64 << 20).map(|i| tune_reference::dropout::mix(7, i) as u8).collect();
    let ids = context.upload(&(0..8192u32).map(|i| i * 7919 % rows as u32).collect::<Vec<_>>());
    let mut y = context.zeros::<bf16>(rows * cols);
    let mut wide = context.zeros::<f32>(rows * cols);
    for format in BlockFormat::ALL {
        let (elements, bytes) = format.block();
        let blocks = rows * cols / elements;
        let all: Vec<u8> = some.iter().copied().cycle().take(blocks * bytes).collect();
        let (codes, factors) = (vec![3i8; blocks], vec![90f32; blocks.div_ceil(256)]);
        let scales = (format == BlockFormat::Nf4).then_some((&codes[..], &factors[..], 0.03));
        let of = context.upload_blocks(format, (rows, cols), &all, scales);
        let read = (all.len() + scales.map_or(0, |_| blocks)) as f64;
        let count = (rows * cols) as f64;
        let seconds = time(context, &mut || context.dequantize(&of, (0, 0), y.view_mut(cols)))?;
        limits.bytes(&format!("{format:?} {rows} x {cols} to bf16"), seconds, read + 2.0 * count);
        if matches!(format, BlockFormat::Nf4 | BlockFormat::Q4K) {
            let seconds = time(context, &mut || context.dequantize(&of, (0, 0), wide.view_mut(cols)))?;
            limits.bytes("  to f32", seconds, read + 4.0 * count);
            let wanted = ids.len();
            let seconds = time(context, &mut || {
                context.lookup_blocks(&of, &ids, y.part_mut(0, (wanted, cols), cols));
            })?;
            let share = wanted as f64 / rows as f64;
            limits.bytes("  8192 rows by number", seconds, share * (read + 2.0 * count));
        }
    }
    Ok(())
}

fn limits(context: &Context) -> Result<Limits> {
    let from = filled::<f32>(context, 1 << 28);
    let mut to = context.buffer::<f32>(1 << 28);
    let copy = time(context, &mut || context.copy(&from, &mut to))?;
    let n = 8192;
    let (a, b) = (filled::<bf16>(context, n * n), filled::<bf16>(context, n * n));
    let mut y = context.buffer::<bf16>(n * n);
    let product = time(context, &mut || {
        context.multiply(Term::Up { x: a.view(n), w: b.view(n) }, 1.0, None, Onto::Nothing, y.view_mut(n));
    })?;
    Ok(Limits { bandwidth: 2.0 * 4.0 * (1u64 << 28) as f64 / copy, rate: 2.0 * (n as f64).powi(3) / product })
}

impl Limits {
    pub(crate) fn bytes(&self, what: &str, seconds: f64, bytes: f64) {
        let share = 100.0 * bytes / self.bandwidth / seconds;
        say!("  {what:<40} {:>9.1} us  {:>6.2} TB/s  {share:>4.0} %", seconds * 1e6, bytes / seconds / 1e12);
    }

    fn operations(&self, what: &str, seconds: f64, operations: f64) {
        let share = 100.0 * operations / self.rate / seconds;
        say!("  {what:<40} {:>9.1} us  {:>6.0} TF/s  {share:>4.0} %", seconds * 1e6, operations / seconds / 1e12);
    }
}

fn products(context: &Context, limits: &Limits) -> Result<()> {
    fn one<T: Number, D: Element>(
        context: &Context,
        limits: &Limits,
        what: &str,
        (m, n, k): (usize, usize, usize),
        onto: bool,
    ) -> Result<()> {
        let (x, w) = (filled::<T>(context, m * k), filled::<T>(context, n * k));
        let mut y = context.zeros::<D>(m * n);
        let other = context.zeros::<D>(m * n);
        let seconds = time(context, &mut || {
            let onto = if onto { Onto::Other(other.view(n)) } else { Onto::Nothing };
            context.multiply(Term::Up { x: x.view(k), w: w.view(k) }, 1.0, None, onto, y.view_mut(n));
        })?;
        limits.operations(&format!("{what} {m} x {n} x {k}"), seconds, 2.0 * m as f64 * n as f64 * k as f64);
        Ok(())
    }
    one::<bf16, bf16>(context, limits, "bf16", (4096, 2048, 2048), false)?;
    one::<bf16, bf16>(context, limits, "bf16", (4096, 12_288, 2048), false)?;
    one::<bf16, bf16>(context, limits, "bf16 onto", (4096, 2048, 6144), true)?;
    one::<bf16, bf16>(context, limits, "bf16", (8192, 14_336, 4096), false)?;
    one::<bf16, bf16>(context, limits, "bf16 adapter", (4096, 16, 2048), false)?;
    one::<bf16, f32>(context, limits, "bf16 to f32", (2048, 151_936, 2048), false)?;
    one::<f32, f32>(context, limits, "f32", (2048, 2048, 2048), false)?;
    let (m, n, k) = (8192, 4096, 14_336);
    let (g, x) = (filled::<bf16>(context, m * n), filled::<bf16>(context, m * k));
    let mut y = context.zeros::<f32>(n * k);
    let seconds = time(context, &mut || {
        context.multiply(Term::Across { g: g.view(n), x: x.view(k) }, 1.0, None, Onto::Itself, y.view_mut(k));
    })?;
    limits.operations(
        &format!("bf16 weight gradient to f32 {n} x {k} x {m}"),
        seconds,
        2.0 * m as f64 * n as f64 * k as f64,
    );
    Ok(())
}

fn elements(context: &Context, limits: &Limits) -> Result<()> {
    let (rows, cols) = (16_384, 4096);
    let count = (rows * cols) as f64;
    let [x, g, r] = [(); 3].map(|()| filled::<bf16>(context, rows * cols));
    let [mut y, mut sum] = [(); 2].map(|()| context.zeros::<bf16>(rows * cols));
    let w = filled::<bf16>(context, cols);
    let norm = Norm { eps: 1e-5, from_one: false };
    let seconds = time(context, &mut || context.norm(x.view(cols), &w, norm, None, None, y.view_mut(cols)))?;
    limits.bytes("norm 16384 x 4096 bf16", seconds, 4.0 * count);
    let seconds = time(context, &mut || {
        let residual = Some((r.view(cols), sum.view_mut(cols)));
        context.norm(x.view(cols), &w, norm, residual, None, y.view_mut(cols));
    })?;
    limits.bytes("norm with residual", seconds, 8.0 * count);
    let mut own = context.zeros::<f32>(cols);
    let seconds = time(context, &mut || {
        context.norm_back(x.view(cols), &w, norm, g.view(cols), (y.view_mut(cols), true), Some(&mut own));
    })?;
    limits.bytes("norm gradient, added, with weight", seconds, 8.0 * count);
    let head = filled::<bf16>(context, 128);
    let seconds = time(context, &mut || context.norm(x.view(cols), &head, norm, None, None, y.view_mut(cols)))?;
    limits.bytes("norm of heads of 128", seconds, 4.0 * count);
    let (cos, sin) = (filled::<f32>(context, rows * 64), filled::<f32>(context, rows * 64));
    let seconds =
        time(context, &mut || context.rotate(y.view_mut(cols), 128, (cos.view(64), sin.view(64)), Turn::Forward))?;
    limits.bytes("rotary, 32 heads of 128", seconds, 4.0 * count + 2.0 * 4.0 * 64.0 * rows as f64);
    let act = Activation::Silu;
    let seconds = time(context, &mut || context.gate(act, x.view(cols), g.view(cols), y.view_mut(cols)))?;
    limits.bytes("SiLU gate", seconds, 6.0 * count);
    let [mut a, mut b, mut c] = [(); 3].map(|()| filled::<bf16>(context, rows * cols));
    let seconds = time(context, &mut || context.gate_back(act, a.view_mut(cols), b.view_mut(cols), c.view_mut(cols)))?;
    limits.bytes("SiLU gate gradient", seconds, 12.0 * count);

    let (rows, vocab) = (2048, 151_936);
    let mut logits = filled::<f32>(context, rows * vocab);
    let targets = context.upload(&(0..rows as u32).collect::<Vec<_>>());
    let mut losses = context.zeros::<f32>(rows);
    let seconds = time(context, &mut || {
        let view = logits.view_mut(vocab);
        context.cross_entropy::<f32, bf16>(view, &targets, None, Some(1e-3), None, TokenLoss::default(), &mut losses);
    })?;
    limits.bytes("loss, gradient 2048 x 151936 f32, bf16", seconds, 6.0 * (rows * vocab) as f64);

    let count = 200 << 20;
    let (mut w, g) = (filled::<bf16>(context, count), filled::<bf16>(context, count));
    let (mut m, mut v) = (context.zeros::<f32>(count), context.zeros::<f32>(count));
    let moved = vec![Moved {
        weight: &mut w,
        first: Some(&mut m),
        second: Some(&mut v),
        third: None,
        gradient: &g,
        key: 7,
        copy: None,
    }];
    let mut sweep = context.sweep(moved);
    let rule = AdamW { lr: 1e-5, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 };
    let seconds = time(context, &mut || context.adamw(&mut sweep, rule, 1.0, None, 10))?;
    limits.bytes("AdamW 210 M bf16, state f32", seconds, 22.0 * count as f64);
    let [mut norm, mut factor] = [(); 2].map(|()| context.zeros::<f32>(1));
    let seconds = time(context, &mut || context.clip(&sweep, 1.0, Some(1.0), &mut norm, &mut factor))?;
    limits.bytes("norm of 210 M bf16 gradients", seconds, 2.0 * count as f64);
    Ok(())
}

fn attention(context: &Context, limits: &Limits) -> Result<()> {
    for (what, heads, kv_heads, head_dim, spans, len) in [
        ("32/8 x 128, 4 x 4096", 32, 8, 128, 4, 4096),
        ("16/8 x 128, 2 x 2048", 16, 8, 128, 2, 2048),
        ("32/8 x 64, 4 x 4096", 32, 8, 64, 4, 4096),
        ("8/4 x 256, 2 x 4096", 8, 4, 256, 2, 4096),
    ] {
        let tokens = spans * len;
        let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
        let [q, g] = [(); 2].map(|()| filled::<bf16>(context, tokens * wide));
        let [k, v] = [(); 2].map(|()| filled::<bf16>(context, tokens * narrow));
        let how =
            Attention { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), window: None, softcap: None };
        let spans = Spans::new(&(0..spans).map(|s| s * len..(s + 1) * len).collect::<Vec<_>>(), tokens);
        let qkv = || Qkv { q: q.view(wide), k: k.view(narrow), v: v.view(narrow) };
        let (mut out, mut lse) = (context.zeros::<bf16>(tokens * wide), context.zeros::<f32>(heads * tokens));
        let forward = time(context, &mut || context.attend(&how, &spans, qkv(), out.view_mut(wide), &mut lse))?;
        // Half of the scores, four operations each with the values.
        let operations = 2.0 * tokens as f64 * len as f64 * wide as f64;
        limits.operations(&format!("attention {what}"), forward, operations);
        let (mut dq, mut dk, mut dv) = (
            context.zeros::<bf16>(tokens * wide),
            context.zeros::<bf16>(tokens * narrow),
            context.zeros::<bf16>(tokens * narrow),
        );
        let backward = time(context, &mut || {
            let into = QkvMut { q: dq.view_mut(wide), k: dk.view_mut(narrow), v: dv.view_mut(narrow) };
            context.attend_back(&how, &spans, qkv(), (out.view(wide), &lse), g.view(wide), into);
        })?;
        limits.operations("  gradient", backward, 2.5 * operations);
        limits.operations("  both", forward + backward, 3.5 * operations);
    }
    Ok(())
}

/// Attention of one new token for each of some sequences: their keys and values are read.
fn newest(context: &Context, limits: &Limits) -> Result<()> {
    for (count, len) in [(1, 4096), (16, 4096), (128, 1024)] {
        let (heads, kv_heads, head_dim) = (32, 8, 128);
        let (wide, narrow, rows) = (heads * head_dim, kv_heads * head_dim, count * len);
        let q = filled::<bf16>(context, count * wide);
        let [k, v] = [(); 2].map(|()| filled::<bf16>(context, rows * narrow));
        let (mut out, mut lse) = (context.zeros::<bf16>(count * wide), context.zeros::<f32>(heads * count));
        let how = Attention { heads, kv_heads, head_dim, scale: 0.09, window: None, softcap: None };
        let stretches: Vec<_> =
            (0..count).map(|s| Stretch { queries: s, len: 1, keys: s * len, past: len - 1 }).collect();
        let spans = Spans::behind(&stretches, count, rows);
        let qkv = || Qkv { q: q.view(wide), k: k.view(narrow), v: v.view(narrow) };
        let seconds = time(context, &mut || context.attend(&how, &spans, qkv(), out.view_mut(wide), &mut lse))?;
        limits.bytes(&format!("a token of {count} sequences of {len}"), seconds, 4.0 * (rows * narrow) as f64);
    }
    Ok(())
}

/// What a launch and a piece of memory cost the processor.
fn launches(context: &Context) -> Result<()> {
    let x = context.zeros::<f32>(64);
    let mut y = context.zeros::<f32>(64);
    context.synchronize()?;
    let count = 5_000;
    let start = std::time::Instant::now();
    (0..count).for_each(|_| context.convert(x.view(64), 1.0, false, y.view_mut(64)));
    let queued = start.elapsed().as_secs_f64() / f64::from(count);
    context.synchronize()?;
    let done = start.elapsed().as_secs_f64() / f64::from(count);
    let start = std::time::Instant::now();
    (0..count).for_each(|_| drop(context.buffer::<f32>(1 << 20)));
    let memory = start.elapsed().as_secs_f64() / f64::from(count);
    let (m, k) = (64, 64);
    let (a, b) = (context.zeros::<bf16>(m * k), context.zeros::<bf16>(m * k));
    let mut c = context.zeros::<bf16>(m * m);
    let mut product = || {
        context.multiply(Term::Up { x: a.view(k), w: b.view(k) }, 1.0, None, Onto::Nothing, c.view_mut(m));
    };
    product();
    context.synchronize()?;
    let start = std::time::Instant::now();
    (0..count).for_each(|_| product());
    let multiplied = start.elapsed().as_secs_f64() / f64::from(count);
    context.synchronize()?;
    say!(
        "  a launch: {:.1} us to queue, {:.1} us until done; a product: {:.1} us to queue; memory: {:.2} us",
        queued * 1e6,
        done * 1e6,
        multiplied * 1e6,
        memory * 1e6
    );
    Ok(())
}
