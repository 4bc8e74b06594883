use half::bf16;

use super::*;
use crate::kernels::Dropout;

fn numbers<T: Element>(count: usize, seed: u32) -> Vec<T> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            T::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        })
        .collect()
}

/// [`multiply`] with as much memory as it says that it needs.
fn multiply_all<T: Element, D: Element>(terms: &[Term<'_, T>], dst: &ViewMut<'_, D>, finish: Finish<'_, D>) {
    let sides: Vec<_> = terms.iter().map(Term::sides).collect();
    let len = workspace::<T>(Isa::get(), (dst.rows(), dst.cols()), &sides, rayon::current_num_threads());
    multiply(terms, dst, finish, &mut vec![f32::NAN; len]);
}

/// Every form of a term, at sizes around the edges of tiles, against sums in f64.
fn check<T: Element>() {
    for (m, n, k) in
        [(1, 1, 1), (8, 48, 16), (9, 49, 17), (70, 64, 33), (3, 130, 7), (33, 8, 100), (600, 100, 40), (20, 50, 1701)]
    {
        for form in 0..3 {
            let (x, w) = (numbers::<T>(m * k, 1), numbers::<T>(n * k, 2));
            let (h, b) = (numbers::<T>(m * 8, 3), numbers::<T>(n * 8, 4));
            let first = match form {
                0 => Term::Up { x: View::new(&x, k), w: View::new(&w, k) },
                1 => Term::Down { g: View::new(&x, k), w: View::new(&w, n) },
                _ => Term::Across { g: View::new(&x, m), x: View::new(&w, n) },
            };
            let terms = [first, Term::Up { x: View::new(&h, 8), w: View::new(&b, 8) }];
            let residual = numbers::<f32>(m * (n + 3), 5);
            let mut dst = residual.clone();
            multiply_all(&terms, &ViewMut::strided(&mut dst, (m, n), n + 3), Finish::Add);
            let mut here = residual.clone();
            let mut memory = vec![f32::NAN; workspace_here::<T>(Isa::get(), (m, n), &terms.map(|t| t.sides()))];
            multiply_here(&terms, &ViewMut::strided(&mut here, (m, n), n + 3), add, &mut memory);
            assert_eq!(dst, here);
            for i in 0..m {
                for j in 0..n + 3 {
                    let at = |data: &[T], i: usize| f64::from(data[i].to_f32());
                    let mut sum = 0.0;
                    for p in 0..if j < n { k } else { 0 } {
                        let l = if form < 2 { i * k + p } else { p * m + i };
                        let r = if form == 0 { j * k + p } else { p * n + j };
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

/// What each way to finish makes of the sums, for operands that are columns of wider matrices.
fn check_finishes<T: Element>() {
    let (m, n, k) = (70, 60, 33);
    let (x, w, before) = (numbers::<T>(m * (k + 5), 1), numbers::<T>(n * (k + 2), 2), numbers::<T>(m * (n + 4), 3));
    let other = numbers::<T>(m * (n + 7), 4);
    let columns = |data: &[T], width: usize, rows, cols: usize| -> Vec<T> {
        let view = View::new(data, width).part(0..rows, 0..cols);
        (0..rows).flat_map(|row| view.row(row).to_vec()).collect()
    };
    let (dense_x, dense_w) = (columns(&x, k + 5, m, k), columns(&w, k + 2, n, k));
    let mut sums = vec![0f32; m * n];
    let dense = Term::Up { x: View::new(&dense_x, k), w: View::new(&dense_w, k) };
    multiply_all(&[dense], &ViewMut::new(&mut sums, n), Finish::Store);

    let term = Term::Up { x: View::new(&x, k + 5).part(0..m, 0..k), w: View::new(&w, k + 2).part(0..n, 0..k) };
    let dropout = Dropout::new(0.4, 9);
    let rows: Vec<usize> = (0..m).map(|row| 3 * row + 1).collect();
    let ways = [
        Finish::Store,
        Finish::Add,
        Finish::Scaled(0.25),
        Finish::Onto(View::strided(&other, (m, n), n + 7)),
        Finish::Plus(&other[3..]),
        Finish::AddDropped(dropout, None),
        Finish::AddDropped(dropout, Some(&rows)),
    ];
    for finish in ways {
        let mut dst = before.clone();
        multiply_all(&[term], &ViewMut::strided(&mut dst, (m, n), n + 4), finish);
        for row in 0..m {
            for col in 0..n + 4 {
                let (old, got) = (before[row * (n + 4) + col], dst[row * (n + 4) + col]);
                if col >= n {
                    assert_eq!(got, old, "what lies between the rows is left alone");
                    continue;
                }
                let sum = sums[row * n + col];
                let right = match finish {
                    Finish::Store => sum,
                    Finish::Add => old.to_f32() + sum,
                    Finish::Scaled(factor) => sum * factor,
                    Finish::Onto(other) => other.row(row)[col].to_f32() + sum,
                    Finish::Plus(added) => sum + added[col].to_f32(),
                    Finish::AddDropped(dropout, rows) => {
                        let row = rows.map_or(row, |rows| rows[row]);
                        old.to_f32() + sum * dropout.factor(row * n + col) as f32
                    }
                };
                assert_eq!(got, T::from_f32(right), "{finish:?} at {row} {col}");
            }
        }
    }
}

#[test]
fn sums_are_finished_as_is_said() {
    check_finishes::<f32>();
    check_finishes::<bf16>();
}

#[test]
#[should_panic(expected = "is not 2 by 2")]
fn operands_of_other_shapes_are_refused() {
    let (x, w, mut y) = ([0f32; 6], [0f32; 8], [0f32; 4]);
    multiply_all(&[Term::Up { x: View::new(&x, 3), w: View::new(&w, 4) }], &ViewMut::new(&mut y, 2), Finish::Store);
}
