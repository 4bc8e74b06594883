//! Products, and the memory that all is in.

use tune_cuda::{Context, Error, Onto, Term};
use tune_reference as reference;
use tune_reference::ViewMut;

use super::checks::Checks;
use super::numbers::{Matrix, Number, widened};

pub(crate) fn check<T: Number, D: Number>(context: &Context, checks: &mut Checks, most: usize) {
    let shapes = [(1, 1, 1, 0), (3, 5, 7, 1), (65, 130, 72, 8), (256, 384, 512, 0), (17, 4096, 256, 16)];
    for (m, n, k, pad) in shapes.into_iter().take(most) {
        let name = format!("{m} x {n} x {k} + {pad} to {}", D::NAME);
        let tolerance = if D::NAME == "f32" { 5e-6 } else { 4e-3 };
        let x = Matrix::<T>::random(context, 1, (m, k), pad, 1.0);
        let w = Matrix::<T>::random(context, 2, (n, k), pad, 1.0);
        let g = Matrix::<T>::random(context, 3, (m, n), pad, 1.0);
        let other = Matrix::<D>::random(context, 4, (m, n), pad, 1.0);
        let bias: Vec<D> = super::numbers::random(5, n, 1.0);
        let on_card = context.upload(&bias);
        let rv = |m, cols| reference::View::new(m, cols);

        let mut plain = vec![0.0; m * n];
        reference::products::up(rv(&x.host, k), rv(&w.host, k), 0.5, &mut ViewMut::new(&mut plain, n));
        let onto: Vec<f64> = plain.iter().zip(&other.host).map(|(a, b)| a + b).collect();
        let mut biased = plain.clone();
        reference::products::bias(&widened(&bias), &mut ViewMut::new(&mut biased, n));
        let twice: Vec<f64> = plain.iter().map(|x| 2.0 * x).collect();
        checks.compare("x wT, bias, onto", T::NAME, &name, 2.0 * tolerance, &[plain, onto, biased, twice], || {
            let up = || Term::Up { x: x.view(), w: w.view() };
            let run = |bias, onto| {
                let mut y = Matrix::<D>::poisoned(context, (m, n), pad);
                context.multiply(up(), 0.5, bias, onto, y.view_mut());
                y
            };
            let plain = run(None, Onto::Nothing);
            let onto = run(None, Onto::Other(other.view()));
            let biased = run(Some(&on_card), Onto::Nothing);
            let mut twice = run(None, Onto::Nothing);
            context.multiply(up(), 0.5, None, Onto::Itself, twice.view_mut());
            [&plain, &onto, &biased, &twice].map(|y| y.read(context)).into_iter().collect()
        });
        let mut down = vec![0.0; m * k];
        reference::products::down(rv(&g.host, n), rv(&w.host, k), 1.0, &mut ViewMut::new(&mut down, k));
        checks.compare("g w", T::NAME, &name, tolerance, &[down], || {
            let mut y = Matrix::<D>::poisoned(context, (m, k), pad);
            context.multiply(Term::Down { g: g.view(), w: w.view() }, 1.0, None, Onto::Nothing, y.view_mut());
            Ok(vec![y.read(context)?])
        });
        let mut across = vec![0.0; n * k];
        reference::products::across(rv(&g.host, n), rv(&x.host, k), 1.0, &mut ViewMut::new(&mut across, k));
        checks.compare("gT x", T::NAME, &name, tolerance, &[across], || {
            let mut y = Matrix::<D>::poisoned(context, (n, k), pad);
            context.multiply(Term::Across { g: g.view(), x: x.view() }, 1.0, None, Onto::Nothing, y.view_mut());
            Ok(vec![y.read(context)?])
        });
    }
}

/// Memory is counted, comes back, and its end is an error and no crash.
pub(crate) fn memory(checks: &mut Checks) {
    let Ok(context) = Context::open(0) else { return checks.is_true("a second context opens", false) };
    let before = context.usage();
    let buffers: Vec<_> = (1..20).map(|i| context.upload(&vec![i as f32; i * 1_000_003])).collect();
    let intact = buffers
        .iter()
        .enumerate()
        .all(|(i, b)| context.download(b).is_ok_and(|x| x.iter().all(|&x| x == (i + 1) as f32)));
    checks.is_true("buffers do not overlap", intact);
    let held = context.usage();
    drop(buffers);
    checks.is_true("dropped memory is free", context.usage().used == before.used);
    let again: Vec<_> = (1..20).map(|i| context.buffer::<f32>(i * 1_000_003)).collect();
    checks.is_true("freed memory is used again", context.usage().held == held.held);
    drop(again);
    let huge = context.buffer::<u8>(1 << 40);
    checks.is_true("a full card is an error", matches!(context.check(), Err(Error::OutOfMemory { .. })));
    drop(huge);
    let later = context.upload(&[1f32]);
    checks.is_true("after an error nothing is done", context.download(&later).is_err());
}
