use half::bf16;

use super::*;
use crate::kernels::{Dropout, Format, Quantized};

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
    let (size, stored) = ((dst.rows(), dst.cols()), matches!(finish, Finish::Store));
    let len = workspace::<T, D>(Isa::get(), size, &sides, stored, rayon::current_num_threads());
    multiply(terms, dst, finish, &mut vec![f32::NAN; len]);
}

/// What is there before counts for nothing, also where there is nothing to sum.
#[test]
fn a_sum_of_nothing_is_zero() {
    for m in [1, 3] {
        let (nothing, one, row) = (View::new(&[], m), numbers::<f32>(m, 1), numbers::<f32>(40, 2));
        let empty = Term::Across { g: nothing, x: View::new(&[], 40) };
        let mut dst = vec![f32::NAN; m * 40];
        multiply_all(&[empty], &ViewMut::new(&mut dst, 40), Finish::Store);
        assert_eq!(dst, vec![0.0; m * 40]);

        dst.fill(f32::NAN);
        let outer = Term::Across { g: View::new(&one, m), x: View::new(&row, 40) };
        multiply_all(&[empty, outer], &ViewMut::new(&mut dst, 40), Finish::Store);
        let products: Vec<f32> = one.iter().flat_map(|a| row.iter().map(move |b| a * b)).collect();
        assert_eq!(dst, products);
    }
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
            let mut stored = vec![f32::NAN; m * (n + 3)];
            multiply_all(&terms, &ViewMut::strided(&mut stored, (m, n), n + 3), Finish::Store);
            for (i, (sum, from)) in stored.iter().zip(&residual).enumerate() {
                if i % (n + 3) < n {
                    assert_eq!(from + sum, dst[i], "{m} {n} {k} form {form} at {i}");
                } else {
                    assert!(sum.is_nan(), "{m} {n} {k} form {form}: {i} is outside");
                }
            }
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

/// A row's results are the same bits alone and among others: a new token's are those that training gives it.
fn check_rows<T: Element>() {
    if T::IS_BF16 && matches!(Isa::get(), Isa::Amx | Isa::AmxPlain) {
        return tune_config::complain!("rows of bf16 products in tiles are NOT compared here");
    }
    for (n, k) in [(1, 40), (17, 512), (64, 513), (130, 1300)] {
        for count in [2, 3, 9, 70] {
            let (x, w) = (numbers::<T>(count * k, 1), numbers::<T>(n * k, 2));
            let product = |rows: std::ops::Range<usize>| {
                let mut results = vec![f32::NAN; rows.len() * n];
                let x = View::new(&x, k).part(rows, 0..k);
                multiply_all(&[Term::Up { x, w: View::new(&w, k) }], &ViewMut::new(&mut results, n), Finish::Store);
                results
            };
            let all = product(0..count);
            for row in [0, count / 2, count - 1] {
                assert_eq!(product(row..row + 1), all[row * n..(row + 1) * n], "row {row} of {count}, {n} by {k}");
            }
            assert_eq!(product(1..count), all[n..], "all but the first of {count}, {n} by {k}");
        }
    }
}

#[test]
fn a_row_s_results_do_not_depend_on_the_others() {
    check_rows::<f32>();
    check_rows::<bf16>();
}

/// A few rows, whose weights are read where they are, have the bits of rows among many, which the crate computes from packed weights.
#[cfg(target_arch = "x86_64")]
fn check_in_order<T: Element>() {
    let many = in_order::MOST_ROWS + 4;
    for (n, k) in [(1, 1), (7, 8), (8, 9), (33, 511), (40, 512), (65, 1031), (19, 1)] {
        let (x, w, h, b) =
            (numbers::<T>(many * (k + 3), 1), numbers::<T>(n * (k + 2), 2), numbers(many * 5, 3), numbers(n * 5, 4));
        let product = |rows: std::ops::Range<usize>, parallel: bool| {
            let m = rows.len();
            let (x, h) = (View::new(&x, k + 3).part(rows.clone(), 0..k), View::new(&h, 5).part(rows, 0..5));
            let terms =
                [Term::Up { x, w: View::new(&w, k + 2).part(0..n, 0..k) }, Term::Up { x: h, w: View::new(&b, 5) }];
            let [left, right] = portable::widened::<T>((m, n), terms.iter().map(Term::sides));
            let mut memory = vec![f32::NAN; portable::sums(m, n) + left + right + 64];
            let mut results = vec![f32::NAN; m * n];
            portable::multiply(&terms, &ViewMut::new(&mut results, n), &store, parallel, &mut memory);
            results
        };
        let all = product(0..many, false);
        for m in [1, 2, 3, 4, 5, 8, in_order::MOST_ROWS] {
            for first in [0, many - m] {
                for parallel in [false, true] {
                    let found = product(first..first + m, parallel);
                    assert_eq!(found, all[first * n..][..m * n], "{m} rows from {first} on, {n} by {k}");
                }
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn few_rows_are_summed_in_the_order_of_many() {
    if !in_order::is_here() {
        return tune_config::complain!(
            "this processor has no AVX2; few rows of products in their order are NOT compared here"
        );
    }
    check_in_order::<f32>();
    check_in_order::<bf16>();
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

/// Weights in blocks give what the same weights give as numbers: to the last bit where both are packed.
fn check_quantized<T: Element>() {
    let weights = |rows: usize, cols: usize| {
        let values = numbers::<f32>(rows * cols, 7);
        let halves = values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
        let bytes = |format: Format| {
            let len = format.bytes(rows, cols).unwrap() as usize;
            let mut state = 77u32;
            let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .take(len)
            .collect();
            // Scales that are no infinities.
            let (_, size) = format.block();
            let scales: &[usize] = if format == Format::Q4K { &[0, 2] } else { &[0] };
            for block in bytes.chunks_exact_mut(size) {
                scales.iter().for_each(|&at| block[at + 1] = 0x1c);
            }
            Quantized::of_file(format, (rows, cols), bytes)
        };
        let mut all = vec![Quantized::nf4(rows, cols, &values), Quantized::of_file(Format::F16, (rows, cols), halves)];
        all.push(bytes(Format::Q8_0));
        all.extend(cols.is_multiple_of(256).then(|| bytes(Format::Q4K)));
        all
    };
    for (m, rows, cols) in [(1, 64, 64), (9, 100, 256), (70, 33, 1792), (520, 160, 96), (65, 700, 32), (3, 20, 2048)] {
        let (x, g) = (numbers::<T>(m * cols, 1), numbers::<T>(m * (rows - 1), 2));
        for of in weights(rows, cols) {
            let plain: Vec<T> = of.dequantized().into_iter().map(T::from_f32).collect();
            // Not from the first row on.
            let (w, plain) = (Rows::new(&of, 1, rows - 1), View::new(&plain[cols..], cols));
            let (x, g) = (View::new(&x, cols), View::new(&g, rows - 1));
            let up = [Term::UpQuantized { x, w }, Term::Up { x, w: plain }];
            let down = [Term::DownQuantized { g, w }, Term::Down { g, w: plain }];
            for ([ours, right], n) in [(up, rows - 1), (down, cols)] {
                let mut results = [vec![f32::NAN; m * n], vec![f32::NAN; m * n]];
                for (term, y) in [ours, right].iter().zip(&mut results) {
                    multiply_all(&[*term, *term], &ViewMut::new(y, n), Finish::Store);
                }
                let [ours, right] = results;
                let what = format!("{} {m} {rows} {cols} {n}", of.format());
                match Isa::get() {
                    Isa::Portable => {
                        let largest = right.iter().fold(0f32, |largest, x| largest.max(x.abs()));
                        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * largest;
                        assert!(ours.iter().zip(&right).all(near), "{what}");
                    }
                    _ => assert!(ours == right, "{what}"),
                }
            }
        }
    }
}

#[test]
fn quantized_weights_give_what_their_numbers_give_in_f32() {
    check_quantized::<f32>();
}

#[test]
fn quantized_weights_give_what_their_numbers_give_in_bf16() {
    check_quantized::<bf16>();
}
