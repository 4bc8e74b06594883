//! How fast the processor multiplies.

use std::time::{Duration, Instant};

use crate::kernels::Element;
use crate::kernels::buffers::Buffer;
use crate::kernels::gemm::{Term, multiply, set};

/// Rows and columns of all three matrices.
const SIZE: usize = 2048;
/// How long it is measured.
const TIME: Duration = Duration::from_millis(1500);

/// See [`crate::engine::matmul_peak`].
pub(in crate::engine) fn matmul_peak<T: Element>() -> f64 {
    let mut state = 1u64;
    let mut matrix = || {
        let mut matrix = Buffer::<T>::new(SIZE * SIZE);
        for x in matrix.iter_mut() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *x = T::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0);
        }
        matrix
    };
    let (x, weight, mut y) = (matrix(), matrix(), Buffer::<T>::new(SIZE * SIZE));
    let mut product = || multiply((SIZE, SIZE), &[Term::nt(&x, &weight, SIZE)], &mut y, SIZE, set);
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
