use half::bf16;

use super::*;

fn numbers<T: Element>(count: usize, seed: u32) -> Vec<T> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            T::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        })
        .collect()
}

/// Every form of a term, at sizes around the edges of tiles, against sums in f64.
fn check<T: Element>() {
    for (m, n, k) in
        [(1, 1, 1), (8, 48, 16), (9, 49, 17), (70, 64, 33), (3, 130, 7), (33, 8, 100), (600, 100, 40), (20, 50, 1701)]
    {
        for form in 0..4 {
            let (x, w) = (numbers::<T>(m * k, 1), numbers::<T>(n * k, 2));
            let (h, b) = (numbers::<T>(m * 8, 3), numbers::<T>(n * 8, 4));
            let left = if form & 1 == 0 { Left::Rows(Rows::new(&x, k)) } else { Left::Columns(Rows::new(&x, m)) };
            let right = if form & 2 == 0 { Right::Columns(Rows::new(&w, k)) } else { Right::Rows(Rows::new(&w, n)) };
            let terms = [Term { left, right, inner: k }, Term::nt(&h, &b, 8)];
            let residual = numbers::<f32>(m * (n + 3), 5);
            let mut dst = residual.clone();
            multiply((m, n), &terms, &mut dst, n + 3, add);
            let mut here = residual.clone();
            multiply_here((m, n), &terms, &mut here, n + 3, add);
            assert_eq!(dst, here);
            for i in 0..m {
                for j in 0..n + 3 {
                    let at = |data: &[T], i: usize| f64::from(data[i].to_f32());
                    let mut sum = 0.0;
                    for p in 0..if j < n { k } else { 0 } {
                        let l = if form & 1 == 0 { i * k + p } else { p * m + i };
                        let r = if form & 2 == 0 { j * k + p } else { p * n + j };
                        sum += at(&x, l) * at(&w, r);
                    }
                    for p in 0..if j < n { 8 } else { 0 } {
                        sum += at(&h, i * 8 + p) * at(&b, j * 8 + p);
                    }
                    let (got, right) = (f64::from(dst[i * (n + 3) + j]), f64::from(residual[i * (n + 3) + j]) + sum);
                    assert!(
                        (got - right).abs() < 1e-6 * (100 + k) as f64,
                        "{m} {n} {k} form {form} at {i} {j}: {got} {right}"
                    );
                }
            }
        }
    }
}

#[test]
fn products_are_right_in_f32() {
    check::<f32>();
}

#[test]
fn products_are_right_in_bf16() {
    check::<bf16>();
}
