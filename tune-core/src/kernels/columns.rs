//! Results scaled column by column: magnitude over norm, as DoRA has it (Liu et al. 2024, <https://arxiv.org/abs/2402.09353>).

use super::view::{View, ViewMut};
use super::{Element, parallel, simd};

/// Rows that one task handles.
const ROWS: usize = 32;

/// Columns that one task handles where rows are summed.
const COLS: usize = 64;

/// What results are scaled by, and one over the norms: `factors` `[2, out]`. The norms are those of the rows of `W + scale · B A`,
/// of whose squares `squares` has the part of `W` alone, `with_weight` is `A Wᵀ` `[rank, out]` and `with_itself` `A Aᵀ`
/// `[rank, rank]`; `b` is `[out, rank]`. A row of zeros has no direction, and stays as it is.
pub(crate) fn factors<T: Element>(
    (magnitudes, squares): (&[f32], &[f32]),
    b: &[T],
    (with_weight, with_itself): (&[f32], &[f32]),
    scale: f64,
    factors: &mut [f32],
) {
    let out = magnitudes.len();
    let rank = b.len() / out;
    let (scales, inverses) = factors.split_at_mut(out);
    let rows = (parallel::chunks(scales, 1), parallel::chunks(inverses, 1));
    parallel::each_part(rows, |row, (factor, inverse)| {
        let b = |i: usize| f64::from(b[row * rank + i].to_f32());
        let mut square = f64::from(squares[row]);
        for i in 0..rank {
            let own: f64 = (0..rank).map(|k| f64::from(with_itself[i * rank + k]) * b(k)).sum();
            square += scale * b(i) * (2.0 * f64::from(with_weight[i * out + row]) + scale * own);
        }
        let norm = square.max(0.0).sqrt();
        (factor[0], inverse[0]) = match norm > 0.0 {
            true => ((f64::from(magnitudes[row]) / norm) as f32, (1.0 / norm) as f32),
            false => (1.0, 0.0),
        };
    });
}

/// `y = x · factors + onto`, column by column; where there is no `x`, it is `y`.
pub(crate) fn scale<T: Element>(factors: &[f32], x: Option<View<'_, T>>, onto: Option<View<'_, T>>, y: ViewMut<'_, T>) {
    y.each_task(ROWS, |first, mut y| {
        simd(
            #[inline(always)]
            || {
                for row in 0..y.rows() {
                    let y = y.row(row);
                    if let Some(x) = x {
                        y.copy_from_slice(x.row(first + row));
                    }
                    match onto {
                        None => y.iter_mut().zip(factors).for_each(|(y, f)| *y = T::from_f32(y.to_f32() * f)),
                        Some(onto) => {
                            for ((y, f), onto) in y.iter_mut().zip(factors).zip(onto.row(first + row)) {
                                *y = T::from_f32(y.to_f32() * f + onto.to_f32());
                            }
                        }
                    }
                }
            },
        );
    });
}

/// The products of the columns of `g` with those of `x`, times `inverses`.
pub(crate) fn dots<T: Element>(g: View<'_, T>, x: View<'_, T>, inverses: &[f32], own: &mut [f32]) {
    parallel::each_chunk(own, COLS, |chunk, own| {
        own.fill(0.0);
        let from = chunk * COLS;
        for row in 0..g.rows() {
            let pairs = g.row(row)[from..].iter().zip(&x.row(row)[from..]);
            own.iter_mut().zip(pairs).for_each(|(own, (g, x))| *own += g.to_f32() * x.to_f32());
        }
        own.iter_mut().zip(&inverses[from..]).for_each(|(own, inverse)| *own *= inverse);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::uniform;

    /// Against the norms of the whole sum, in f64.
    #[test]
    fn factors_are_magnitudes_over_norms() {
        let (out, inner, rank, scale) = (7, 11, 3, 1.5);
        let (w, a, b) = (uniform(1, out * inner, 1.0), uniform(2, rank * inner, 1.0), uniform(3, out * rank, 1.0));
        let magnitudes = uniform(4, out, 2.0);
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
        let squares: Vec<f32> = w.chunks(inner).map(|row| dot(row, row)).collect();
        let against = |rows: &[f32]| -> Vec<f32> {
            a.chunks(inner).flat_map(|a| rows.chunks(inner).map(|row| dot(a, row)).collect::<Vec<_>>()).collect()
        };
        let mut found = vec![f32::NAN; 2 * out];
        factors((&magnitudes, &squares), &b, (&against(&w), &against(&a)), scale, &mut found);
        for row in 0..out {
            let element = |col: usize| {
                let update: f64 = (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * inner + col])).sum();
                f64::from(w[row * inner + col]) + scale * update
            };
            let norm = (0..inner).map(|col| element(col).powi(2)).sum::<f64>().sqrt();
            assert!((f64::from(found[row]) - f64::from(magnitudes[row]) / norm).abs() < 1e-5, "{row}");
            assert!((f64::from(found[out + row]) - 1.0 / norm).abs() < 1e-5, "{row}");
        }
        // A row of zeros.
        factors((&[3.0], &[0.0]), &[0f32; 3], (&[0.0; 3], &[0.0; 9]), scale, &mut found[..2]);
        assert_eq!(found[..2], [1.0, 0.0]);
    }

    #[test]
    fn columns_are_scaled_and_multiplied() {
        let (rows, cols) = (70, 130);
        let (x, onto, f) = (uniform(1, rows * cols, 1.0), uniform(2, rows * cols, 1.0), uniform(3, cols, 1.0));
        let mut y = vec![f32::NAN; rows * cols];
        scale(&f, Some(View::new(&x, cols)), Some(View::new(&onto, cols)), ViewMut::new(&mut y, cols));
        assert!((0..rows * cols).all(|i| (y[i] - (x[i] * f[i % cols] + onto[i])).abs() < 1e-6));
        scale(&f, None, None, ViewMut::new(&mut y, cols));
        assert!((0..rows * cols).all(|i| (y[i] - (x[i] * f[i % cols] + onto[i]) * f[i % cols]).abs() < 1e-6));
        let mut own = vec![f32::NAN; cols];
        dots(View::new(&x, cols), View::new(&onto, cols), &f, &mut own);
        for col in 0..cols {
            let sum: f32 = (0..rows).map(|row| x[row * cols + col] * onto[row * cols + col]).sum();
            assert!((own[col] - sum * f[col]).abs() < 1e-4, "{col}");
        }
    }
}
