//! How fast the processor multiplies.

use std::time::{Duration, Instant};

use super::Cpu;
use crate::kernels::Element;
use crate::kernels::gemm::{Finish, Term};
use crate::kernels::view::{View, ViewMut};
use crate::models::uniform;

/// Rows and columns of all three matrices.
const SIZE: usize = 2048;
/// How long it is measured.
const TIME: Duration = Duration::from_millis(1500);

/// See [`crate::engine::matmul_peak`].
pub(in crate::engine) fn matmul_peak<T: Element>() -> f64 {
    let matrix = |seed| uniform(seed, SIZE * SIZE, 1.0).into_iter().map(T::from_f32).collect::<Vec<T>>();
    let (x, weight, mut y) = (matrix(1), matrix(2), vec![T::from_f32(0.0); SIZE * SIZE]);
    let mut product = || {
        let term = Term::Up { x: View::new(&x, SIZE), w: View::new(&weight, SIZE) };
        Cpu::new().product(&[term], Finish::Store, &ViewMut::new(&mut y, SIZE));
    };
    product();
    let begun = Instant::now();
    let mut seconds = Vec::new();
    while begun.elapsed() < TIME || seconds.len() < 5 {
        let one = Instant::now();
        product();
        seconds.push(one.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    2.0 * (SIZE as f64).powi(3) / seconds[seconds.len() / 2] / 1e9
}
