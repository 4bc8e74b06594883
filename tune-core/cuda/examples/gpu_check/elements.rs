//! Norms, rotary embeddings, gates, rows, columns, dropout, the loss.

use tune_cuda::{Activation, Context, Dropout, Norm, Onto, TokenLoss, Turn};
use tune_reference as reference;
use tune_reference::ViewMut;

use super::checks::Checks;
use super::numbers::{Matrix, Number, random, read, widened};

/// Rows and columns that are awkward, and memory between rows: aligned, and not.
const SHAPES: [(usize, usize, usize); 5] = [(1, 1, 0), (3, 7, 1), (5, 64, 8), (33, 1000, 0), (130, 4096, 16)];

pub(crate) fn check<T: Number>(context: &Context, checks: &mut Checks, most: usize) {
    for (i, &(rows, cols, pad)) in SHAPES.iter().enumerate().take(most) {
        let seed = 100 * i as u64;
        for heads in [1, 3] {
            norm::<T>(context, checks, (rows, cols, heads, pad), seed, heads == 3);
        }
        gate::<T>(context, checks, (rows, cols, pad), seed);
        rows_of::<T>(context, checks, (rows, cols, pad), seed);
        dropout::<T>(context, checks, (rows, cols, pad), seed);
        scaled_rows::<T>(context, checks, (rows, cols, pad), seed);
        columns_of_tokens::<T>(context, checks, (rows, cols, pad), seed);
    }
    rotary::<T>(context, checks);
}

fn tolerance<T: Number>() -> f64 {
    if T::NAME == "f32" { 5e-6 } else { 4e-3 }
}

fn norm<T: Number>(
    context: &Context,
    checks: &mut Checks,
    (rows, width, heads, pad): (usize, usize, usize, usize),
    seed: u64,
    from_one: bool,
) {
    let (cols, eps) = (heads * width, 1e-5);
    let shape = (rows, cols);
    let [x, other, g, before] = [1, 2, 3, 4].map(|n| Matrix::<T>::random(context, seed + n, shape, pad, 2.0));
    let weight: Vec<T> = random(seed + 5, width, 1.5);
    let (w, on_card) = (widened(&weight), context.upload(&weight));
    let (ours, theirs) = (Norm { eps: eps as f32, from_one }, reference::norm::Norm { eps, from_one });
    let [hx, ho, hg] = [&x, &other, &g].map(|m| m.host.clone());
    let mut y = vec![0.0; rows * cols];
    let rv = |x| reference::View::new(x, cols);
    reference::norm::forward(rv(&hx), &w, theirs, Some(rv(&ho)), &mut ViewMut::new(&mut y, cols));
    let name = format!("[{rows}, {heads} x {width}] + {pad}");
    checks.compare("norm", T::NAME, &name, tolerance::<T>(), &[y], || {
        let mut y = Matrix::<T>::poisoned(context, shape, pad);
        context.norm(x.view(), &on_card, ours, None, Some(other.view()), y.view_mut());
        Ok(vec![y.read(context)?])
    });

    let sum: Vec<f64> = hx.iter().zip(&ho).map(|(a, b)| T::of(a + b).widened()).collect();
    let mut y = vec![0.0; rows * cols];
    reference::norm::forward(reference::View::new(&sum, cols), &w, theirs, None, &mut ViewMut::new(&mut y, cols));
    checks.compare("norm with residual", T::NAME, &name, tolerance::<T>(), &[y, sum], || {
        let [mut y, mut sum] = [(); 2].map(|()| Matrix::<T>::poisoned(context, shape, pad));
        let residual = Some((other.view(), sum.view_mut()));
        context.norm(x.view(), &on_card, ours, residual, None, y.view_mut());
        Ok(vec![y.read(context)?, sum.read(context)?])
    });

    let (mut dx, mut dw) = (before.host.clone(), vec![0.0; width]);
    reference::norm::backward(rv(&hx), &w, theirs, rv(&hg), &mut ViewMut::new(&mut dx, cols), Some(&mut dw));
    checks.compare("norm gradient", T::NAME, &name, 2.0 * tolerance::<T>(), &[dx, dw], || {
        let host: Vec<T> = before.host.iter().map(|&x| T::of(x)).collect();
        let mut dx = Matrix::<T>::of(context, &host, shape, pad);
        let mut dw = context.zeros::<f32>(width);
        context.norm_back(x.view(), &on_card, ours, g.view(), (dx.view_mut(), true), Some(&mut dw));
        Ok(vec![dx.read(context)?, read(context, &dw)?])
    });
}

fn gate<T: Number>(context: &Context, checks: &mut Checks, (rows, cols, pad): (usize, usize, usize), seed: u64) {
    let shape = (rows, cols);
    let [gate, up, g] = [1, 2, 3].map(|n| Matrix::<T>::random(context, seed + n, shape, pad, 4.0));
    let acts = [
        (Activation::Silu, reference::gate::Activation::Silu),
        (Activation::GeluTanh, reference::gate::Activation::GeluTanh),
    ];
    for (ours, theirs) in acts {
        let rv = |m| reference::View::new(m, cols);
        let (mut y, mut of_gate, mut of_up) = (vec![0.0; rows * cols], vec![0.0; rows * cols], vec![0.0; rows * cols]);
        reference::gate::forward(theirs, rv(&gate.host), rv(&up.host), &mut ViewMut::new(&mut y, cols));
        reference::gate::backward(
            theirs,
            rv(&gate.host),
            rv(&up.host),
            rv(&g.host),
            &mut ViewMut::new(&mut of_gate, cols),
            &mut ViewMut::new(&mut of_up, cols),
        );
        let name = format!("[{rows}, {cols}] + {pad} {ours:?}");
        checks.compare("gate", T::NAME, &name, tolerance::<T>(), std::slice::from_ref(&y), || {
            let mut y = Matrix::<T>::poisoned(context, shape, pad);
            context.gate(ours, gate.view(), up.view(), y.view_mut());
            Ok(vec![y.read(context)?])
        });
        checks.compare("gate gradient", T::NAME, &name, tolerance::<T>(), &[of_gate, of_up, y], || {
            let mut copies = [&gate, &up, &g].map(|m| {
                let host: Vec<T> = m.host.iter().map(|&x| T::of(x)).collect();
                Matrix::<T>::of(context, &host, shape, pad)
            });
            let [a, b, c] = &mut copies;
            context.gate_back(ours, a.view_mut(), b.view_mut(), c.view_mut());
            copies.iter().map(|m| m.read(context)).collect()
        });
    }
}

fn rows_of<T: Number>(context: &Context, checks: &mut Checks, (rows, cols, pad): (usize, usize, usize), seed: u64) {
    let (vocab, name) = (rows + 2, format!("[{rows}, {cols}] + {pad}"));
    let table = Matrix::<T>::random(context, seed + 1, (vocab, cols), pad, 1.0);
    let g = Matrix::<T>::random(context, seed + 2, (rows, cols), pad, 1.0);
    let ids: Vec<u32> = (0..rows as u64).map(|i| (reference::dropout::mix(seed, i) % vocab as u64) as u32).collect();
    let on_card = context.upload(&ids);
    let rv = |m| reference::View::new(m, cols);
    let mut y = vec![0.0; rows * cols];
    reference::rows::lookup(rv(&table.host), &ids, 0.5, &mut ViewMut::new(&mut y, cols));
    checks.compare("lookup", T::NAME, &name, tolerance::<T>(), &[y], || {
        let mut y = Matrix::<T>::poisoned(context, (rows, cols), pad);
        context.lookup(table.view(), &on_card, 0.5, y.view_mut());
        Ok(vec![y.read(context)?])
    });
    let mut own = vec![0.0; vocab * cols];
    reference::rows::lookup_back(rv(&g.host), &ids, 0.5, &mut ViewMut::new(&mut own, cols));
    checks.compare("lookup gradient", T::NAME, &name, 5e-6, &[own], || {
        let mut own = Matrix::<f32>::of(context, &vec![0.0; vocab * cols], (vocab, cols), pad);
        context.lookup_back(g.view(), &context.group(&ids), 0.5, own.view_mut());
        Ok(vec![own.read(context)?])
    });
    let mut sums = vec![0.0; cols];
    reference::products::bias_back(rv(&g.host), &mut sums);
    checks.compare("sum of rows", T::NAME, &name, 5e-6, &[sums], || {
        let mut sums = Matrix::<f32>::poisoned(context, (1, cols), 0);
        context.sum_rows(g.view(), sums.view_mut());
        Ok(vec![sums.read(context)?])
    });
    // Some rows, no one twice, the last first.
    let some: Vec<usize> = (0..rows).rev().step_by(2).collect();
    let some_on_card = context.upload(&some.iter().map(|&i| i as u32).collect::<Vec<_>>());
    let mut y = vec![0.0; some.len() * cols];
    reference::rows::gather(rv(&g.host), &some, &mut ViewMut::new(&mut y, cols));
    checks.compare("gather", T::NAME, &name, 0.0, std::slice::from_ref(&y), || {
        let mut y = Matrix::<T>::poisoned(context, (some.len(), cols), pad);
        context.gather(g.view(), &some_on_card, y.view_mut());
        Ok(vec![y.read(context)?])
    });
    let part = Matrix::<T>::random(context, seed + 3, (some.len(), cols), pad, 1.0);
    let mut y = g.host.clone();
    reference::rows::scatter_add(rv(&part.host), &some, None, &mut ViewMut::new(&mut y, cols));
    checks.compare("scatter", T::NAME, &name, tolerance::<T>(), &[y], || {
        let host: Vec<T> = g.host.iter().map(|&x| T::of(x)).collect();
        let mut y = Matrix::<T>::of(context, &host, (rows, cols), pad);
        context.scatter(part.view(), &some_on_card, true, y.view_mut());
        Ok(vec![y.read(context)?])
    });
    let right = [g.host.iter().map(|x| 3.0 * x).collect(), g.host.iter().map(|x| 0.5 * x).collect()];
    checks.compare("convert, add", T::NAME, &name, 4e-3, &right, || {
        let mut y =
            Matrix::<f32>::of(context, &g.host.iter().map(|&x| x as f32).collect::<Vec<_>>(), (rows, cols), pad);
        context.convert(g.view(), 2.0, true, y.view_mut());
        let mut narrow = Matrix::<half::bf16>::poisoned(context, (rows, cols), pad);
        context.convert(g.view(), 0.5, false, narrow.view_mut());
        Ok(vec![y.read(context)?, narrow.read(context)?])
    });
}

fn dropout<T: Number>(context: &Context, checks: &mut Checks, (rows, cols, pad): (usize, usize, usize), seed: u64) {
    let [x, onto] = [1, 2].map(|n| Matrix::<T>::random(context, seed + n, (rows, cols), pad, 1.0));
    let of: Vec<usize> = (0..rows).map(|i| 7 * i + 3).collect();
    let on_card = context.upload(&of.iter().map(|&i| i as u32).collect::<Vec<_>>());
    let (p, key) = (0.3, 0x1234_5678_9abc_def0);
    let mut y = onto.host.clone();
    reference::dropout::apply(
        reference::View::new(&x.host, cols),
        (p, key),
        Some(&of),
        true,
        &mut ViewMut::new(&mut y, cols),
    );
    checks.compare("dropout", T::NAME, &format!("[{rows}, {cols}] + {pad}"), tolerance::<T>(), &[y], || {
        let mut y = Matrix::<T>::poisoned(context, (rows, cols), pad);
        context.dropped(x.view(), Dropout { p, key }, Some(on_card.view(rows)), Onto::Other(onto.view()), y.view_mut());
        Ok(vec![y.read(context)?])
    });
}

fn scaled_rows<T: Number>(context: &Context, checks: &mut Checks, (rows, cols, pad): (usize, usize, usize), seed: u64) {
    let (x, factors) = (random::<T>(seed + 1, rows * cols, 2.0), random::<f32>(seed + 2, rows, 2.0));
    let scaled = widened(&x).into_iter().zip(0..).map(|(x, i)| x * f64::from(factors[i / cols])).collect();
    checks.compare("rows scaled", T::NAME, &format!("[{rows}, {cols}] + {pad}"), tolerance::<T>(), &[scaled], || {
        let mut x = Matrix::<T>::of(context, &x, (rows, cols), pad);
        context.scale_rows(x.view_mut(), &context.upload(&factors));
        Ok(vec![x.read(context)?])
    });
}

/// Columns that are taken out, and what is left; and the same of f32 put back.
fn columns_of_tokens<T: Number>(
    context: &Context,
    checks: &mut Checks,
    (rows, cols, pad): (usize, usize, usize),
    seed: u64,
) {
    let x = random::<T>(seed + 1, rows * cols, 2.0);
    let columns: Vec<u32> = (0..cols as u32).rev().step_by(3).collect();
    let (all, mut left) = (widened(&x), widened(&x));
    let mut taken = Vec::new();
    for row in left.chunks_mut(cols) {
        taken.extend(columns.iter().map(|&column| std::mem::take(&mut row[column as usize])));
    }
    let name = format!("{} of [{rows}, {cols}] + {pad}", columns.len());
    checks.compare("columns taken", T::NAME, &name, 0.0, &[taken, left], || {
        let mut x = Matrix::<T>::of(context, &x, (rows, cols), pad);
        let mut y = context.buffer(rows * columns.len());
        context.take_columns(x.view_mut(), &context.upload(&columns), &mut y);
        Ok(vec![read(context, &y)?, x.read(context)?])
    });
    checks.compare("columns put", "f32", &name, 0.0, &[all], || {
        let x: Vec<f32> = x.iter().map(|x| x.widened() as f32).collect();
        let mut x = Matrix::<f32>::of(context, &x, (rows, cols), pad);
        let (mut y, columns) = (context.buffer(rows * columns.len()), context.upload(&columns));
        context.take_columns(x.view_mut(), &columns, &mut y);
        context.put_columns(&y, &columns, x.view_mut());
        Ok(vec![x.read(context)?])
    });
}

fn rotary<T: Number>(context: &Context, checks: &mut Checks) {
    for (rows, heads, dim, half, pad) in [(1, 1, 2, 1, 0), (5, 3, 10, 3, 1), (70, 4, 64, 32, 0), (9, 2, 128, 32, 8)] {
        let x = Matrix::<T>::random(context, 1, (rows, heads * dim), pad, 1.0);
        let angles: Vec<f32> = random(2, rows * half, 3.0);
        let [cos, sin] = [f32::cos, f32::sin].map(|f| angles.iter().map(|&a| f(a)).collect::<Vec<f32>>());
        let [on_card_cos, on_card_sin] = [&cos, &sin].map(|t| context.upload(t));
        let [cos, sin] = [&cos, &sin].map(|t| widened(t));
        for (ours, theirs) in
            [(Turn::Forward, reference::rotary::Turn::Forward), (Turn::Back, reference::rotary::Turn::Back)]
        {
            let mut y = x.host.clone();
            let tables = (reference::View::new(&cos, half), reference::View::new(&sin, half));
            reference::rotary::turn(&mut ViewMut::new(&mut y, heads * dim), dim, tables, theirs);
            let name = format!("[{rows}, {heads} x {dim}] {half} pairs + {pad}");
            checks.compare("rotary", T::NAME, &name, tolerance::<T>(), &[y], || {
                let host: Vec<T> = x.host.iter().map(|&x| T::of(x)).collect();
                let mut y = Matrix::<T>::of(context, &host, (rows, heads * dim), pad);
                context.rotate(y.view_mut(), dim, (on_card_cos.view(half), on_card_sin.view(half)), ours);
                Ok(vec![y.read(context)?])
            });
        }
    }
}

/// Cross-entropy of logits of type `T` with a gradient of type `D`, alone and with smoothed labels and z-loss.
pub(crate) fn loss<T: Number, D: Number>(context: &Context, checks: &mut Checks, most: usize) {
    let shapes = [(1, 1, 0, None), (5, 33, 3, None), (7, 1000, 0, Some(6.0)), (3, 50_257, 7, None)];
    let beside = [("cross-entropy", 0.0, 0.0), ("smoothed labels, z-loss", 0.1, 0.01)];
    let cases = shapes.into_iter().take(most).flat_map(|shape| beside.map(|beside| (shape, beside)));
    for ((rows, cols, pad, softcap), (what, smoothing, z)) in cases {
        let logits = Matrix::<T>::random(context, 3, (rows, cols), pad, 12.0);
        let weights: Vec<f32> = random(4, rows, 1.0);
        let targets: Vec<u32> = (0..rows).map(|i| if i == 3 { u32::MAX } else { ((i * 7919) % cols) as u32 }).collect();
        let (on_card, of_rows) = (context.upload(&targets), context.upload(&weights));
        let mut capped = logits.host.clone();
        if let Some(cap) = softcap {
            reference::softcap::forward(&mut ViewMut::new(&mut capped, cols), cap);
        }
        let view = reference::View::new(&capped, cols);
        let wide = widened(&weights);
        let losses: Vec<f64> =
            reference::loss::token_losses(view, &targets, smoothing, z).iter().zip(&wide).map(|(l, w)| l * w).collect();
        let scaled: Vec<f64> = wide.iter().map(|w| w * 0.25).collect();
        let mut g = vec![0.0; rows * cols];
        reference::loss::token_losses_back(view, &targets, &scaled, smoothing, z, &mut ViewMut::new(&mut g, cols));
        if let Some(cap) = softcap {
            reference::softcap::backward(view, cap, &mut ViewMut::new(&mut g, cols));
        }
        let (name, tolerance) =
            (format!("[{rows}, {cols}] + {pad} to {}", D::NAME), if D::NAME == "f32" { 2e-5 } else { 4e-3 });
        let total = losses.iter().sum::<f64>();
        checks.compare(what, T::NAME, &name, tolerance, &[losses, vec![total], g], || {
            let host: Vec<T> = logits.host.iter().map(|&x| T::of(x)).collect();
            let stride = cols + pad;
            let mut wide = vec![T::of(0.0); rows * stride];
            for (to, from) in wide.chunks_exact_mut(stride).zip(host.chunks_exact(cols)) {
                to[..cols].copy_from_slice(from);
            }
            let mut memory = context.upload(&wide);
            let mut losses = context.buffer::<f32>(rows);
            context.fill(&mut losses, 0xff);
            let view = memory.part_mut(0, (rows, cols), stride);
            let how = TokenLoss { smoothing: smoothing as f32, z: z as f32, softcap: softcap.map(|cap| cap as f32) };
            context.cross_entropy::<T, D>(view, &on_card, Some(&of_rows), Some(0.25), None, how, &mut losses);
            let mut sum = context.zeros::<f64>(1);
            context.sum(&losses, false, &mut sum);
            let bytes: Vec<T> = context.download(&memory).map_err(|e| e.to_string())?;
            let row_bytes = stride * size_of::<T>();
            let of_row = |row: usize| {
                let start = row * row_bytes;
                let bytes: &[u8] = &bytemuck::cast_slice(&bytes)[start..start + cols * size_of::<D>()];
                bytes.chunks_exact(size_of::<D>()).map(|b| bytemuck::pod_read_unaligned::<D>(b).widened()).collect()
            };
            let g: Vec<Vec<f64>> = (0..rows).map(of_row).collect();
            let sum = context.download(&sum).map_err(|e| e.to_string())?;
            Ok(vec![read(context, &losses)?, sum, g.concat()])
        });
    }
}
