//! What DoRA and distillation compute: columns scaled and multiplied, a student's divergence from its teacher, capped logits.

use half::bf16;
use tune_cuda::{Adapted, Context, Distillation, Result, Top};
use tune_reference as reference;
use tune_reference::{View, ViewMut};

use super::checks::Checks;
use super::numbers::{Matrix, Number, random, read, widened};
use super::times::{Limits, filled, time};

fn tolerance<T: Number>() -> f64 {
    if T::NAME == "f32" { 5e-6 } else { 4e-3 }
}

/// Results scaled column by column, and the lengths of rows that they are scaled by.
pub(crate) fn columns<T: Number>(context: &Context, checks: &mut Checks, most: usize) {
    let shapes = [(1, 1, 0), (5, 33, 3), (70, 1000, 0), (300, 4096, 16), (4100, 264, 8)];
    for (rows, cols, pad) in shapes.into_iter().take(most) {
        let name = format!("[{rows}, {cols}] + {pad}");
        let [x, other] = [1, 2].map(|seed| Matrix::<T>::random(context, seed, (rows, cols), pad, 1.0));
        let factors = random::<f32>(3, cols, 2.0);
        let (wide, on_card) = (widened(&factors), context.upload(&factors));
        let with = |scaled: &dyn Fn(usize) -> f64| (0..rows * cols).map(scaled).collect::<Vec<f64>>();
        let right = with(&|i| x.host[i] * wide[i % cols] + other.host[i]);
        checks.compare("columns scaled", T::NAME, &name, tolerance::<T>(), &[right], || {
            let mut y = Matrix::<T>::poisoned(context, (rows, cols), pad);
            context.scale_columns(on_card.view(cols), Some(x.view()), Some(other.view()), y.view_mut());
            Ok(vec![y.read(context)?])
        });
        let dot =
            |col: usize| (0..rows).map(|row| x.host[row * cols + col] * other.host[row * cols + col]).sum::<f64>();
        let right: Vec<f64> = (0..cols).map(|col| wide[col] * dot(col)).collect();
        checks.compare("columns multiplied", T::NAME, &name, 5e-6, &[right], || {
            let mut y = Matrix::<f32>::poisoned(context, (1, cols), 0);
            context.column_dots(x.view(), other.view(), on_card.view(cols), y.view_mut());
            Ok(vec![y.read(context)?])
        });
    }
    for (out, inner, rank) in [(1, 5, 1), (33, 70, 16), (513, 96, 40)].into_iter().take(most) {
        let (w, a) = (random::<f32>(4, out * inner, 1.0), random::<f32>(5, rank * inner, 1.0));
        let (b, magnitudes) = (random::<T>(6, out * rank, 0.3), random::<f32>(7, out, 2.0));
        let [w, a, wide_b, wide] = [widened(&w), widened(&a), widened(&b), widened(&magnitudes)];
        let scale = 1.5;
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let row = |of: &[f64], i: usize| of[i * inner..][..inner].to_vec();
        let against = |rows: &[f64], count: usize| -> Vec<f32> {
            let pairs = (0..rank).flat_map(|i| (0..count).map(move |k| (i, k)));
            pairs.map(|(i, k)| dot(&row(&a, i), &row(rows, k)) as f32).collect()
        };
        let squares: Vec<f32> = (0..out).map(|i| dot(&row(&w, i), &row(&w, i)) as f32).collect();
        let length = |i: usize| {
            let update = |col: usize| (0..rank).map(|k| wide_b[i * rank + k] * a[k * inner + col]).sum::<f64>();
            (0..inner).map(|col| (w[i * inner + col] + scale * update(col)).powi(2)).sum::<f64>().sqrt()
        };
        let lengths: Vec<f64> = (0..out).map(length).collect();
        let right = [
            lengths.iter().zip(&wide).map(|(length, m)| m / length).collect::<Vec<f64>>(),
            lengths.iter().map(|length| 1.0 / length).collect(),
        ];
        checks.compare(
            "lengths of rows",
            T::NAME,
            &format!("[{out}, {inner}], {rank}"),
            5e-6,
            &[right.concat()],
            || {
                let (b, magnitudes) = (context.upload(&b), context.upload(&magnitudes));
                let [squares, with_weight, with_itself] =
                    [&squares, &against(&w, out), &against(&a, rank)].map(|numbers| context.upload(numbers));
                let of = Adapted {
                    b: &b,
                    squares: &squares,
                    with_weight: &with_weight,
                    with_itself: &with_itself,
                    scale: scale as f32,
                };
                Ok(vec![read(context, &context.column_factors(&magnitudes, of))?])
            },
        );
    }
}

/// A student's losses, its divergences from its teacher, and their gradient of type `D`.
pub(crate) fn distillation<D: Number>(context: &Context, checks: &mut Checks, most: usize) {
    let shapes =
        [(1, 2, 0, None), (5, 33, 3, None), (7, 1000, 0, Some(6.0)), (3, 50_257, 7, None), (2, 151_936, 0, None)];
    for (n, (rows, cols, pad, softcap)) in shapes.into_iter().enumerate().take(most) {
        let [student, teacher] = [8, 9].map(|seed| random::<f32>(seed, rows * cols, 6.0));
        let (scales, [ratio, forward]) = (random::<f32>(10, rows, 1.0), [(0.5, 1.0), (0.75, 0.25)][n % 2].into());
        let targets: Vec<u32> = (0..rows).map(|i| ((i * 7919) % cols) as u32).collect();
        let (mut capped, wide) = (widened(&student), widened(&scales));
        if let Some(cap) = softcap {
            reference::softcap::forward(&mut ViewMut::new(&mut capped, cols), cap);
        }
        let beside = widened(&teacher);
        let (of, theirs) = (View::new(&capped, cols), View::new(&beside, cols));
        let mut g = vec![0.0; rows * cols];
        let of_target: Vec<f64> = wide.iter().map(|scale| scale * (1.0 - ratio)).collect();
        reference::loss::cross_entropy_back(of, &targets, &of_target, &mut ViewMut::new(&mut g, cols));
        let shares = [ratio * forward, ratio * (1.0 - forward)];
        reference::loss::divergences_back(of, theirs, shares, &wide, &mut ViewMut::new(&mut g, cols));
        if let Some(cap) = softcap {
            reference::softcap::backward(of, cap, &mut ViewMut::new(&mut g, cols));
        }
        let apart = reference::loss::divergences(of, theirs);
        let apart =
            apart.into_iter().map(|[to_teacher, to_student]| forward * to_teacher + (1.0 - forward) * to_student);
        let right = [reference::loss::cross_entropy(of, &targets), apart.collect(), g];
        let name = format!("[{rows}, {cols}] + {pad} to {}", D::NAME);
        checks.compare("distillation", D::NAME, &name, tolerance::<D>().max(2e-5), &right, || {
            let mut memory = Matrix::<f32>::of(context, &student, (rows, cols), pad);
            let teacher = Matrix::<f32>::of(context, &teacher, (rows, cols), 2 * pad);
            let (targets, scales) = (context.upload(&targets), context.upload(&scales));
            let [mut losses, mut divergences] = [(); 2].map(|()| context.buffer::<f32>(rows));
            context.fill(&mut losses, 0xff);
            context.fill(&mut divergences, 0xff);
            let how = Distillation::new(ratio as f32, forward as f32);
            context.distill::<D>(
                (memory.view_mut(), teacher.view()),
                &targets,
                (how, softcap.map(|cap| cap as f32)),
                Some(&scales),
                (&mut losses, &mut divergences),
            );
            let g = memory.beginnings::<D>(context)?;
            Ok(vec![read(context, &losses)?, read(context, &divergences)?, g])
        });
    }
    distillation_at_a_temperature::<D>(context, checks, most);
    distillation_by_top::<D>(context, checks, most, false);
    distillation_by_top::<D>(context, checks, most, true);
    for len in [1, 1003, 70_000] {
        let x = random::<f32>(11, len, 9.0);
        let right = widened(&x).iter().map(|&x| reference::softcap::cap(x, 3.0)).collect();
        checks.compare("softcap", "f32", &len.to_string(), 5e-6, &[right], || {
            let mut x = context.upload(&x);
            context.softcap(&mut x, 3.0);
            Ok(vec![read(context, &x)?])
        });
    }
}

/// The same at a temperature, and from the mean of the two.
fn distillation_at_a_temperature<D: Number>(context: &Context, checks: &mut Checks, most: usize) {
    // Of two logits that are far apart, one has nearly all of the probability. Loss and gradient are then differences of numbers that
    // nearly cancel out: 4.6 + 6e-5 - 4.6, of which f32 keeps two digits. They are near each other where they are all there is.
    let shapes = [
        (1, 2, 0, None, 1.0, (0.5, 0.5, 1.0, true)),
        (5, 33, 3, None, 6.0, (0.75, 0.25, 2.0, false)),
        (7, 1000, 0, Some(6.0), 6.0, (0.5, 0.1, 1.5, true)),
        (3, 50_257, 7, None, 6.0, (1.0, 0.9, 0.7, true)),
        (2, 151_936, 0, None, 6.0, (0.5, 1.0, 4.0, false)),
    ];
    for (rows, cols, pad, softcap, size, (ratio, share, temperature, from_middle)) in shapes.into_iter().take(most) {
        let [student, teacher] = [18, 19].map(|seed| random::<f32>(seed, rows * cols, size));
        let scales = random::<f32>(20, rows, 1.0);
        let targets: Vec<u32> = (0..rows).map(|i| ((i * 7919) % cols) as u32).collect();
        let (mut capped, wide, beside) = (widened(&student), widened(&scales), widened(&teacher));
        if let Some(cap) = softcap {
            reference::softcap::forward(&mut ViewMut::new(&mut capped, cols), cap);
        }
        let (of, theirs) = (View::new(&capped, cols), View::new(&beside, cols));
        let general = reference::loss::General { temperature, shares: [share, 1.0 - share], from_middle };
        let mut g = vec![0.0; rows * cols];
        let part = |part: f64| wide.iter().map(|scale| scale * part).collect::<Vec<_>>();
        reference::loss::cross_entropy_back(of, &targets, &part(1.0 - ratio), &mut ViewMut::new(&mut g, cols));
        let into = &mut ViewMut::new(&mut g, cols);
        reference::loss::general_divergences_back(of, theirs, general, &part(ratio), into);
        if let Some(cap) = softcap {
            reference::softcap::backward(of, cap, &mut ViewMut::new(&mut g, cols));
        }
        let apart = reference::loss::general_divergences(of, theirs, general).into_iter();
        let apart = apart.map(|[of_teacher, of_student]| share * of_teacher + (1.0 - share) * of_student);
        let right = [reference::loss::cross_entropy(of, &targets), apart.collect(), g];
        let name = format!("[{rows}, {cols}] + {pad} at {temperature}, from the middle: {from_middle}, to {}", D::NAME);
        checks.compare("general distillation", D::NAME, &name, tolerance::<D>().max(2e-5), &right, || {
            let mut memory = Matrix::<f32>::of(context, &student, (rows, cols), pad);
            let teacher = Matrix::<f32>::of(context, &teacher, (rows, cols), 2 * pad);
            let (targets, scales) = (context.upload(&targets), context.upload(&scales));
            let [mut losses, mut divergences] = [(); 2].map(|()| context.buffer::<f32>(rows));
            context.fill(&mut losses, 0xff);
            context.fill(&mut divergences, 0xff);
            let how = Distillation {
                ratio: ratio as f32,
                forward: share as f32,
                temperature: temperature as f32,
                from_middle,
            };
            context.distill::<D>(
                (memory.view_mut(), teacher.view()),
                &targets,
                (how, softcap.map(|cap| cap as f32)),
                Some(&scales),
                (&mut losses, &mut divergences),
            );
            let g = memory.beginnings::<D>(context)?;
            Ok(vec![read(context, &losses)?, read(context, &divergences)?, g])
        });
    }
}

/// The same where of the teacher `k` tokens are known, and from the mean of the two.
fn distillation_by_top<D: Number>(context: &Context, checks: &mut Checks, most: usize, from_middle: bool) {
    let shapes = [
        (1, 2, 0, 1, None),
        (5, 33, 3, 33, None),
        (7, 1000, 0, 64, Some(6.0)),
        (3, 50_257, 7, 5, None),
        (2, 151_936, 0, 64, None),
    ];
    for (n, (rows, cols, pad, k, softcap)) in shapes.into_iter().enumerate().take(most) {
        let (student, scales) = (random::<f32>(12, rows * cols, 6.0), random::<f32>(13, rows, 1.0));
        let [ratio, forward]: [f64; 2] = [(0.5, 1.0), (0.75, 0.25)][n % 2].into();
        // Their mean has a part of each.
        let forward = if from_middle { 0.5 * forward } else { forward };
        // Tokens far apart; every other target is known.
        let ids: Vec<u32> = (0..rows * k).map(|i| ((i % k) * (cols / k)) as u32).collect();
        let targets: Vec<u32> = (0..rows).map(|i| if i % 2 == 0 { ids[i * k] } else { (cols - 1) as u32 }).collect();
        let log_probs: Vec<f32> = (0..rows * k).map(|i| (0.9 / k as f32).ln() - 0.01 * (i % 7) as f32).collect();
        let rest: Vec<f32> = (0..rows).map(|i| (0.1f32 + 0.01 * i as f32).ln()).collect();
        let [wide, of_known, of_rest] = [&scales, &log_probs, &rest].map(|x| widened(x));
        let mut capped = widened(&student);
        if let Some(cap) = softcap {
            reference::softcap::forward(&mut ViewMut::new(&mut capped, cols), cap);
        }
        let (of, theirs) =
            (View::new(&capped, cols), reference::loss::Top { k, ids: &ids, log_probs: &of_known, rest: &of_rest });
        let mut g = vec![0.0; rows * cols];
        let of_target: Vec<f64> = wide.iter().map(|scale| scale * (1.0 - ratio)).collect();
        reference::loss::cross_entropy_back(of, &targets, &of_target, &mut ViewMut::new(&mut g, cols));
        let general = reference::loss::General { temperature: 1.0, shares: [forward, 1.0 - forward], from_middle };
        let of_divergence: Vec<f64> = wide.iter().map(|scale| scale * ratio).collect();
        let into = &mut ViewMut::new(&mut g, cols);
        reference::loss::top_divergences_back(of, theirs, general, &of_divergence, into);
        if let Some(cap) = softcap {
            reference::softcap::backward(of, cap, &mut ViewMut::new(&mut g, cols));
        }
        let apart = reference::loss::top_divergences(of, theirs, general).into_iter();
        let apart = apart.map(|[to_teacher, to_student]| forward * to_teacher + (1.0 - forward) * to_student);
        let right = [reference::loss::cross_entropy(of, &targets), apart.collect(), g];
        let name = format!("[{rows}, {cols}] + {pad}, {k} known, from the middle: {from_middle}, to {}", D::NAME);
        checks.compare("distillation by tokens", D::NAME, &name, tolerance::<D>().max(2e-5), &right, || {
            let mut memory = Matrix::<f32>::of(context, &student, (rows, cols), pad);
            let (targets, scales, ids) = (context.upload(&targets), context.upload(&scales), context.upload(&ids));
            let [log_probs, rest] = [&log_probs, &rest].map(|numbers| context.upload(numbers));
            let [mut losses, mut divergences] = [(); 2].map(|()| context.buffer::<f32>(rows));
            context.fill(&mut losses, 0xff);
            context.fill(&mut divergences, 0xff);
            let how = Distillation { from_middle, ..Distillation::new(ratio as f32, forward as f32) };
            context.distill_top::<D>(
                (memory.view_mut(), Top { ids: &ids, log_probs: &log_probs, rest: &rest }),
                &targets,
                (how, softcap.map(|cap| cap as f32)),
                Some(&scales),
                (&mut losses, &mut divergences),
            );
            let g = memory.beginnings::<D>(context)?;
            Ok(vec![read(context, &losses)?, read(context, &divergences)?, g])
        });
    }
}

/// How long they take, beside what memory allows: the logits of both models are read twice where there is a gradient, or three
/// times.
pub(crate) fn measure(context: &Context, limits: &Limits) -> Result<()> {
    let (rows, cols) = (8192, 4096);
    let count = (rows * cols) as f64;
    let [x, other] = [(); 2].map(|()| filled::<bf16>(context, rows * cols));
    let (factors, mut y, mut own) =
        (filled::<f32>(context, cols), context.zeros::<bf16>(rows * cols), context.zeros::<f32>(cols));
    let seconds = time(context, &mut || {
        context.scale_columns(factors.view(cols), Some(x.view(cols)), Some(other.view(cols)), y.view_mut(cols));
    })?;
    limits.bytes("columns scaled, added, 8192 x 4096", seconds, 6.0 * count);
    let seconds = time(context, &mut || {
        context.column_dots(x.view(cols), other.view(cols), factors.view(cols), own.view_mut(cols));
    })?;
    limits.bytes("columns multiplied, 8192 x 4096", seconds, 4.0 * count);
    let (rows, vocab) = (1024, 151_936);
    let [mut student, teacher] = [(); 2].map(|()| filled::<f32>(context, rows * vocab));
    let targets = context.upload(&(0..rows as u32).collect::<Vec<_>>());
    let scales = filled::<f32>(context, rows);
    let [mut losses, mut divergences] = [(); 2].map(|()| context.zeros::<f32>(rows));
    let jensen = Distillation { from_middle: true, ..Distillation::new(0.5, 0.5) };
    for (what, mixture, scales, each) in [
        ("distillation 1024 x 151936 f32", Distillation::new(0.5, 1.0), None, 8.0),
        ("  with its gradient in bf16", Distillation::new(0.5, 1.0), Some(&scales), 18.0),
        ("  of Jensen-Shannon, with its gradient", jensen, Some(&scales), 26.0),
    ] {
        let seconds = time(context, &mut || {
            let of = (student.view_mut(vocab), teacher.view(vocab));
            context.distill::<bf16>(of, &targets, (mixture, None), scales, (&mut losses, &mut divergences));
        })?;
        limits.bytes(what, seconds, each * (rows * vocab) as f64);
    }
    Ok(())
}
