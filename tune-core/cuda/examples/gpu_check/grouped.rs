//! Products of experts that have few rows each: what they give, and how long they take beside a product for each expert.

use half::bf16;
use tune_config::say;
use tune_cuda::{Buffer, ByExperts, Choice, Context, Onto, Result, Term, View, addresses};
use tune_reference as reference;
use tune_reference::ViewMut;

use super::checks::Checks;
use super::numbers::{Matrix, Number, random, widened};
use super::times::{Limits, filled, time};

/// Experts, and the layers of each.
struct Shape {
    tokens: usize,
    count: usize,
    chosen: usize,
    out: usize,
    inner: usize,
    /// Of adapters; 0: there are none.
    rank: usize,
}

const SHAPES: [Shape; 4] = [
    Shape { tokens: 1, count: 8, chosen: 2, out: 64, inner: 128, rank: 0 },
    Shape { tokens: 5, count: 33, chosen: 3, out: 31, inner: 100, rank: 3 },
    // More rows than a block takes at a time.
    Shape { tokens: 70, count: 4, chosen: 3, out: 72, inner: 515, rank: 16 },
    Shape { tokens: 64, count: 128, chosen: 8, out: 96, inner: 2048, rank: 16 },
];

pub(crate) fn check<T: Number>(context: &Context, checks: &mut Checks, most: usize) {
    for (i, shape) in SHAPES.iter().enumerate().take(most) {
        of_shape::<T>(context, checks, shape, 700 + 50 * i as u64);
    }
}

fn of_shape<T: Number>(context: &Context, checks: &mut Checks, shape: &Shape, seed: u64) {
    let &Shape { tokens, count, chosen, out, inner, rank } = shape;
    let (choice, places) = (Choice { count, chosen, renormalized: true }, tokens * chosen);
    let logits = random::<f32>(seed, tokens * count, 4.0);
    let right = reference::experts::route(reference::View::new(&widened(&logits), count), chosen, true);
    let mut order: Vec<usize> = (0..places).collect();
    order.sort_by_key(|&i| right.experts[i]);
    let matrices = |seed: u64, shape, of| -> Vec<Matrix<T>> {
        (0..of).map(|i| Matrix::random(context, seed + 1000 * i as u64, shape, 0, 1.0)).collect()
    };
    let (x, h) = (matrices(seed + 1, (tokens, inner), 2), matrices(seed + 2, (places, rank), 2));
    let (w, b) = (matrices(seed + 3, (out, inner), 2 * count), matrices(seed + 4, (out, rank), 2 * count));
    let product = |which: usize| {
        let mut y = vec![0.0; places * out];
        for (place, &i) in order.iter().enumerate() {
            let (row, expert) = (i / chosen, which * count + right.experts[i]);
            let mut y = ViewMut::new(&mut y[place * out..][..out], out);
            let mut add = |x: &[f64], w: &Matrix<T>| {
                let w = reference::View::new(&w.host, x.len());
                reference::products::up(reference::View::new(x, x.len()), w, 0.5, &mut y);
            };
            add(&x[which].host[row * inner..][..inner], &w[expert]);
            if rank > 0 {
                add(&h[which].host[place * rank..][..rank], &b[expert]);
            }
        }
        y
    };
    let name = format!("{tokens} tokens at {chosen} of {count} experts, {out} x {inner}, rank {rank}");
    let tolerance = if T::NAME == "f32" { 5e-6 } else { 4e-3 };
    checks.compare("experts at once", T::NAME, &name, tolerance, &[product(0), product(1)], || {
        let on_card = context.upload(&logits);
        let routes = context.route(on_card.view(count), choice);
        let [x, h, w, b] = [&x, &h, &w, &b].map(|of| of.iter().map(Matrix::view).collect::<Vec<_>>());
        let [of_weights, of_adapters] = [&w, &b].map(|of| context.table(addresses(of)));
        let own = ByExperts { x: &x, of_tokens: true, weights: &w, table: &of_weights };
        let beside = ByExperts { x: &h, of_tokens: false, weights: &b, table: &of_adapters };
        let mut both = [0; 2].map(|_| Matrix::<T>::poisoned(context, (places, out), 0));
        let mut y: Vec<_> = both.iter_mut().map(Matrix::view_mut).collect();
        context.multiply_grouped(&routes, own, (rank > 0).then_some(beside), 0.5, &mut y);
        drop(y);
        both.iter().map(|y| y.read(context)).collect()
    });
}

/// The experts of a layer of Qwen3-30B-A3B for the newest tokens of some sequences, at once and by cuBLASLt, which is told how many rows each
/// has.
pub(crate) fn measure(context: &Context, limits: &Limits) -> Result<()> {
    let (count, chosen, hidden, inner) = (128, 8, 2048, 768);
    let weights: Vec<Buffer<bf16>> = (0..3 * count).map(|_| filled(context, hidden * inner)).collect();
    let (gates, downs) = (views(&weights[..2 * count], hidden), views(&weights[2 * count..], inner));
    let [of_gates, of_downs] = [&gates, &downs].map(|of| context.table(addresses(of)));
    for tokens in [1, 16, 128] {
        let (choice, places) = (Choice { count, chosen, renormalized: true }, tokens * chosen);
        let logits = context.upload(&random::<f32>(tokens as u64, tokens * count, 4.0));
        let mut routes = context.route(logits.view(count), choice);
        let occupied = context.starts(&mut routes)?.windows(2).filter(|ends| ends[0] < ends[1]).count();
        let bytes = 2.0 * (occupied * hidden * inner) as f64;
        let (x, activated) = (filled::<bf16>(context, tokens * hidden), filled::<bf16>(context, places * inner));
        let [mut gate, mut up] = [(); 2].map(|()| context.zeros::<bf16>(places * inner));
        let mut y = context.zeros::<bf16>(places * hidden);
        let both = [x.view(hidden); 2];
        let seconds = time(context, &mut || {
            let of = ByExperts { x: &both, of_tokens: true, weights: &gates, table: &of_gates };
            context.multiply_grouped(&routes, of, None, 1.0, &mut [gate.view_mut(inner), up.view_mut(inner)]);
        })?;
        limits.bytes(&format!("gate, up of {tokens} tokens, {occupied} experts"), seconds, 2.0 * bytes);
        let rows = [activated.view(inner)];
        let seconds = time(context, &mut || {
            let of = ByExperts { x: &rows, of_tokens: false, weights: &downs, table: &of_downs };
            context.multiply_grouped(&routes, of, None, 1.0, &mut [y.view_mut(hidden)]);
        })?;
        limits.bytes("  down", seconds, bytes);
        let in_order = filled::<bf16>(context, places * hidden);
        let mut failed = None;
        let seconds = time(context, &mut || {
            let mut routes = context.route(logits.view(count), choice);
            let starts = match context.starts(&mut routes) {
                Ok(starts) => starts.to_vec(),
                Err(error) => return failed = Some(error),
            };
            for (expert, ends) in starts.windows(2).enumerate().filter(|(_, ends)| ends[0] < ends[1]) {
                let (first, count_of_rows) = (ends[0], ends[1] - ends[0]);
                let x = some_rows(&in_order, (first, count_of_rows), hidden);
                for (y, w) in [(&mut gate, expert), (&mut up, count + expert)] {
                    let y = y.part_mut(first * inner, (count_of_rows, inner), inner);
                    context.multiply(Term::Up { x, w: gates[w] }, 1.0, None, Onto::Nothing, y);
                }
                let x = some_rows(&activated, (first, count_of_rows), inner);
                let y = y.part_mut(first * hidden, (count_of_rows, hidden), hidden);
                context.multiply(Term::Up { x, w: downs[expert] }, 1.0, None, Onto::Nothing, y);
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        say!(
            "  all three by a product for each expert {:>9.1} us, of which the routes and a wait are a part",
            seconds * 1e6
        );
    }
    Ok(())
}

fn views(of: &[Buffer<bf16>], cols: usize) -> Vec<View<'_, bf16>> {
    of.iter().map(|of| of.view(cols)).collect()
}

/// `count` rows from `first` on.
fn some_rows(of: &Buffer<bf16>, (first, count): (usize, usize), cols: usize) -> View<'_, bf16> {
    of.part(first * cols, (count, cols), cols)
}
