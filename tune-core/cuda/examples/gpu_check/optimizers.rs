//! Optimizers: steps, means of weights, state in eight bits.

use tune_cuda::{AdamW, Buffer, Context, Lion, Maps, Moved, Moved8bit, ScheduleFree, Sgd};
use tune_reference as reference;

use super::checks::Checks;
use super::numbers::{Number, random, read, widened};

/// Steps of AdamW with clipping, of SGD and of Lion, and what the functions below are for.
pub(crate) fn check<T: Number>(context: &Context, checks: &mut Checks) {
    for (count, odd) in [(1, 0), (1003, 0), (70_000, 3)] {
        let [w, g] = [1, 2].map(|n| random::<T>(n, count, 1.0));
        let [m, v] = [3, 4].map(|n| random::<f32>(n, count, 0.1).iter().map(|x| x.abs()).collect::<Vec<f32>>());
        let ours = AdamW { lr: 0.01, betas: [0.9, 0.99], eps: 1e-6, weight_decay: 0.1 };
        let theirs = reference::optim::AdamW { lr: 0.01, betas: [0.9, 0.99], eps: 1e-6, weight_decay: 0.1 };
        let [mut rw, mut rm, mut rv] = [widened(&w), widened(&m), widened(&v)];
        theirs.step(&mut rw, [&mut rm, &mut rv], &widened(&g), 0.5, 3);
        let name = format!("{count} and {odd}");
        // Rounded at random, a bf16 weight is off by up to a step.
        let tolerance = if T::NAME == "f32" { 2e-6 } else { 8e-3 };
        let norm = 0.5 * reference::optim::squared_norm(&widened(&g)).sqrt();
        let right = [rw, rm, rv, vec![norm, (0.25 / (norm + 1e-6)).min(1.0)]];
        checks.compare("AdamW, clipping", T::NAME, &name, tolerance, &right, || {
            let (mut w, g) = (context.upload(&w), context.upload(&g));
            let (mut m, mut v) = (context.upload(&m), context.upload(&v));
            let [mut norm, mut factor] = [(); 2].map(|()| context.zeros::<f32>(1));
            let moved = vec![Moved {
                weight: &mut w,
                first: Some(&mut m),
                second: Some(&mut v),
                third: None,
                gradient: &g,
                key: 77,
                copy: None,
            }];
            let mut sweep = context.sweep(moved);
            context.clip(&sweep, 0.5, Some(0.25), &mut norm, &mut factor);
            context.adamw(&mut sweep, ours, 0.5, None, 3);
            drop(sweep);
            let clipped = [read(context, &norm)?, read(context, &factor)?].concat();
            Ok(vec![read(context, &w)?, read(context, &m)?, read(context, &v)?, clipped])
        });
        let (mut rw, mut ru) = (widened(&w), widened(&m));
        reference::optim::Sgd { lr: 0.1, momentum: 0.5, weight_decay: 0.1 }.step(
            &mut rw,
            Some(&mut ru),
            &widened(&g),
            0.5,
        );
        checks.compare("SGD", T::NAME, &name, tolerance, &[rw, ru], || {
            let (mut w, mut u, g) = (context.upload(&w), context.upload(&m), context.upload(&g));
            let moved = vec![Moved {
                weight: &mut w,
                first: Some(&mut u),
                second: None,
                third: None,
                gradient: &g,
                key: 77,
                copy: None,
            }];
            let mut sweep = context.sweep(moved);
            context.sgd(&mut sweep, Sgd { lr: 0.1, momentum: 0.5, weight_decay: 0.1 }, 0.5, None);
            drop(sweep);
            Ok(vec![read(context, &w)?, read(context, &u)?])
        });
        let (mut rw, mut ru) = (widened(&w), widened(&m));
        let lion = reference::optim::Lion { lr: 0.01, betas: [0.9, 0.99], weight_decay: 0.1 };
        lion.step(&mut rw, &mut ru, &widened(&g), 0.5);
        checks.compare("Lion", T::NAME, &name, tolerance, &[rw, ru], || {
            let (mut w, mut u, g) = (context.upload(&w), context.upload(&m), context.upload(&g));
            let moved = vec![Moved {
                weight: &mut w,
                first: Some(&mut u),
                second: None,
                third: None,
                gradient: &g,
                key: 77,
                copy: None,
            }];
            let mut sweep = context.sweep(moved);
            context.lion(&mut sweep, Lion { lr: 0.01, betas: [0.9, 0.99], weight_decay: 0.1 }, 0.5, None);
            drop(sweep);
            Ok(vec![read(context, &w)?, read(context, &u)?])
        });
        means::<T>(context, checks, [&w, &g], tolerance);
        eight_bits::<T>(context, checks, [&w, &g], tolerance);
    }
}

/// Optimizers by which a model has a mean of its weights.
fn means<T: Number>(context: &Context, checks: &mut Checks, [w, g]: [&[T]; 2], tolerance: f64) {
    let (count, g) = (w.len(), g.iter().map(|g| g.widened() as f32).collect::<Vec<f32>>());
    let [first, mean, second] = [5, 6, 7].map(|n| random::<f32>(n, count, 0.5));
    let second: Vec<f32> = second.iter().map(|x| x.abs()).collect();
    let name = count.to_string();
    let theirs = reference::optim::ScheduleFree { lr: 0.02, beta2: 0.99, eps: 1e-6, weight_decay: 0.1, new: 0.25 };
    let [mut y, mut z, mut v, mut x] = [widened(w), widened(&first), widened(&second), widened(&mean)];
    theirs.step(&mut y, [&mut z, &mut v, &mut x], &widened(&g), 0.5, 3);
    checks.compare("schedule-free AdamW", T::NAME, &name, tolerance, &[y, z, v, x], || {
        let (mut w, g) = (context.upload(w), context.upload(&g));
        let [mut z, mut v, mut x] = [&first, &second, &mean].map(|numbers| context.upload(numbers));
        let state = [&mut z, &mut v, &mut x].map(Some);
        let mut sweep = context.sweep(vec![moved(&mut w, &g, state)]);
        let ours = ScheduleFree { lr: 0.02, beta2: 0.99, eps: 1e-6, weight_decay: 0.1, new: 0.25 };
        context.schedule_free(&mut sweep, ours, 0.5, 3);
        drop(sweep);
        Ok(vec![read(context, &w)?, read(context, &z)?, read(context, &v)?, read(context, &x)?])
    });
    let right = reference::optim::between(&widened(&mean), &widened(&g), 0.1);
    checks.compare("between two weights", T::NAME, &name, tolerance, &[right], || {
        let (mut w, g, mut x) = (context.upload(w), context.upload(&g), context.upload(&mean));
        let mut sweep = context.sweep(vec![moved(&mut w, &g, [Some(&mut x), None, None])]);
        context.between(&mut sweep, 0.1);
        drop(sweep);
        Ok(vec![read(context, &w)?])
    });
    let right = reference::optim::between(&widened(&mean), &widened(w), 0.25);
    checks.compare("averaged weights", T::NAME, &name, tolerance, &[right.clone(), widened(w), right], || {
        let (mut on_card, g) = (context.upload(w), context.upload(&g));
        let [mut kept, mut x] = [&first, &mean].map(|numbers| context.upload(numbers));
        let mut sweep = context.sweep(vec![moved(&mut on_card, &g, [Some(&mut kept), Some(&mut x), None])]);
        context.averaged(&mut sweep, 0.25);
        drop(sweep);
        Ok(vec![read(context, &on_card)?, read(context, &kept)?, read(context, &x)?])
    });
}

fn moved<'a, T: Number>(
    weight: &'a mut Buffer<T>,
    gradient: &'a Buffer<f32>,
    [first, second, third]: [Option<&'a mut Buffer<f32>>; 3],
) -> Moved<'a, T, f32> {
    Moved { weight, first, second, third, gradient, key: 77, copy: None }
}

/// What codes stand for, of both signs or of one, and where each one's numbers end.
fn map(signed: bool) -> [[f32; 256]; 2] {
    let part = |i: usize| if signed { (i as f32 - 127.0) / 128.0 } else { i as f32 / 255.0 };
    let values: [f32; 256] = std::array::from_fn(|i| part(i) * part(i).abs());
    let end = |i: usize| values.get(i + 1).map_or(f32::INFINITY, |next| values[i] + (next - values[i]) * 0.5);
    [values, std::array::from_fn(end)]
}

/// AdamW with its two means in blocks of eight bits.
fn eight_bits<T: Number>(context: &Context, checks: &mut Checks, [w, g]: [&[T]; 2], tolerance: f64) {
    const BLOCK: usize = 256;
    let (count, g) = (w.len(), g.iter().map(|g| g.widened() as f32).collect::<Vec<f32>>());
    let maps = [map(true), map(false)];
    let codes = [3u64, 5].map(|n| (0..count as u64).map(|i| (i * n * 37 % 251) as u8).collect::<Vec<u8>>());
    let scales = [8, 9]
        .map(|n| random::<f32>(n, count.div_ceil(BLOCK), 0.1).iter().map(|x| x.abs() + 1e-3).collect::<Vec<f32>>());
    let decoded = |part: usize, codes: &[u8], scales: &[f32]| -> Vec<f64> {
        let number =
            |(i, code): (usize, &u8)| f64::from(maps[part][0][usize::from(*code)]) * f64::from(scales[i / BLOCK]);
        codes.iter().enumerate().map(number).collect()
    };
    let mut rw = widened(w);
    let [mut m, mut v] = [0, 1].map(|part| decoded(part, &codes[part], &scales[part]));
    let theirs = reference::optim::AdamW { lr: 0.01, betas: [0.9, 0.99], eps: 1e-6, weight_decay: 0.1 };
    theirs.step(&mut rw, [&mut m, &mut v], &widened(&g), 0.5, 3);
    for (part, state) in [&mut m, &mut v].into_iter().enumerate() {
        reference::optim::in_blocks(state, BLOCK, &widened(&maps[part][0]));
    }
    // A number near the border between two codes may have either.
    checks.compare("AdamW in eight bits", T::NAME, &count.to_string(), tolerance.max(2e-3), &[rw, m, v], || {
        let (mut w, g) = (context.upload(w), context.upload(&g));
        let [mut first, mut second] = [0, 1].map(|part| context.upload(&codes[part]));
        let [mut of_first, mut of_second] = [0, 1].map(|part| context.upload(&scales[part]));
        let one = Moved8bit {
            weight: &mut w,
            first: (&mut first, &mut of_first),
            second: (&mut second, &mut of_second),
            gradient: &g,
            key: 77,
            copy: None,
        };
        let ours = AdamW { lr: 0.01, betas: [0.9, 0.99], eps: 1e-6, weight_decay: 0.1 };
        let maps = Maps { first: maps[0].each_ref(), second: maps[1].each_ref() };
        context.adamw_8bit(vec![one], maps, ours, 0.5, 3);
        let after = |part: usize, codes: &Buffer<u8>, scales: &Buffer<f32>| -> Result<Vec<f64>, String> {
            let codes = context.download(codes).map_err(|e| e.to_string())?;
            let scales = context.download(scales).map_err(|e| e.to_string())?;
            Ok(decoded(part, &codes, &scales))
        };
        Ok(vec![read(context, &w)?, after(0, &first, &of_first)?, after(1, &second, &of_second)?])
    });
}
