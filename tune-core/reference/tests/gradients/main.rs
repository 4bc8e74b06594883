//! Each backward pass against central differences of its forward pass, over awkward shapes.

mod attention;
mod elements;
mod optim;
mod products;

/// Numbers between -1 and 1 that look random, the same for the same seed.
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    (0..count as u64)
        .map(|i| (tune_reference::dropout::mix(seed, i) >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
        .collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Holds `gradient` against central differences of `f` at `x`.
#[track_caller]
fn agrees(what: &str, x: &[f64], gradient: &[f64], f: impl Fn(&[f64]) -> f64) {
    assert_eq!(x.len(), gradient.len(), "{what}");
    let step = 1e-5;
    let mut moved = x.to_vec();
    let differences: Vec<f64> = (0..x.len())
        .map(|i| {
            moved[i] = x[i] + step;
            let above = f(&moved);
            moved[i] = x[i] - step;
            let below = f(&moved);
            moved[i] = x[i];
            (above - below) / (2.0 * step)
        })
        .collect();
    close(what, gradient, &differences, 1e-7);
}

/// The norm of the difference over the norm of what is right.
#[track_caller]
fn close(what: &str, found: &[f64], right: &[f64], tolerance: f64) {
    assert_eq!(found.len(), right.len(), "{what}");
    let difference: Vec<f64> = found.iter().zip(right).map(|(f, r)| f - r).collect();
    let (error, size) = (dot(&difference, &difference).sqrt(), dot(right, right).sqrt());
    assert!(error <= tolerance * size.max(1e-3), "{what}: an error of {error:e} for a norm of {size:e}");
}
