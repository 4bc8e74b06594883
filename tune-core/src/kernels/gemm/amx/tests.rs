use std::io::Write;

use half::bf16;

use super::plain::Plain;
use super::tiles::Units;
use super::*;
use crate::kernels::gemm::{add, store as round};
use crate::kernels::quantized::{Quantized, Rows};
use crate::kernels::view::View;

/// Whether this processor has what everything around tiles is written in.
/// Whether the processor has what a test needs; says so past the capture of a test's output where it has not.
fn has(feature: &str) -> bool {
    let there = Isa::features().contains(&feature);
    if !there {
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let mut seen = tune_config::output::stderr();
        writeln!(seen, "NOTICE: {test} did NOT run: this processor has no {feature}").unwrap();
    }
    there
}

fn numbers(count: usize, seed: u32) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        })
        .collect()
}

/// The sums of some products onto `before`, `[m, n]` in rows of `width` elements.
fn product<X: Tiles>(terms: &[Term<'_, bf16>], before: &[f32], (m, n): (usize, usize), team: Team) -> Vec<f32> {
    let width = before.len() / m;
    let sides: Vec<_> = terms.iter().map(Term::sides).collect();
    let mut memory = vec![f32::NAN; workspace((m, n), &sides, team)];
    let mut dst = before.to_vec();
    let to = ViewMut::strided(&mut dst, (m, n), width);
    compute::<X, bf16, f32>(terms, &to, &add, team, &mut memory);
    dst
}

/// Every form of a term with an adapter beside it, at sizes around the edges of tiles, blocks, steps and groups, against sums in
/// f64; to the same bits on any number of threads, and for some rows as for all.
fn check<X: Tiles>() {
    let sizes = [
        (1, 1, 1),
        (16, 16, 32),
        (17, 17, 33),
        (32, 32, 64),
        (33, 31, 31),
        (64, 48, 100),
        (70, 64, 33),
        (8, 300, 576),
        (100, 8, 96),
        (5, 20, 1701),
        (90, 260, 800),
        (66, 260, 2048),
        (1100, 40, 40),
        (530, 70, 790),
    ];
    for (m, n, k) in sizes {
        for form in 0..3 {
            let (x, w) = (numbers(m * (k + 3), 1), numbers(n * (k + 1), 2));
            let (h, b) = (numbers(m * 8, 3), numbers(n * 8, 4));
            let (left, right) = match form {
                0 => (View::strided(&x, (m, k), k + 3), View::strided(&w, (n, k), k + 1)),
                1 => (View::new(&x[..m * k], k), View::new(&w[..n * k], n)),
                _ => (View::new(&x[..m * k], m), View::new(&w[..n * k], n)),
            };
            let first = match form {
                0 => Term::Up { x: left, w: right },
                1 => Term::Down { g: left, w: right },
                _ => Term::Across { g: left, x: right },
            };
            let adapter = Term::Up { x: View::new(&h, 8), w: View::new(&b, 8) };
            let before: Vec<f32> = numbers(m * (n + 3), 5).into_iter().map(|x| x.to_f32()).collect();
            let got = product::<X>(&[first, adapter], &before, (m, n), Team::This);
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let team = Team::Threads(threads);
                let on_pool = pool.install(|| product::<X>(&[first, adapter], &before, (m, n), team));
                assert!(on_pool == got, "{m} {n} {k} form {form} on {threads} threads");
            }
            if let (Term::Up { x, w }, true) = (first, m > 3) {
                let some = [
                    Term::Up { x: x.part(3..m, 0..k), w },
                    Term::Up { x: View::new(&h[24..], 8), w: View::new(&b, 8) },
                ];
                let rows = product::<X>(&some, &before[3 * (n + 3)..], (m - 3, n), Team::This);
                assert!(rows == got[3 * (n + 3)..], "{m} {n} {k}: without three rows");
            }
            let at = |of: View<'_, bf16>, row: usize, col: usize| f64::from(of.row(row)[col].to_f32());
            for i in 0..m {
                for j in 0..n + 3 {
                    let inner = if j < n { k } else { 0 };
                    let of_first = |p: usize| match form {
                        0 => at(left, i, p) * at(right, j, p),
                        1 => at(left, i, p) * at(right, p, j),
                        _ => at(left, p, i) * at(right, p, j),
                    };
                    let of_adapter = |p: usize| at(View::new(&h, 8), i, p) * at(View::new(&b, 8), j, p);
                    let sum: f64 = (0..inner).map(of_first).chain((0..inner.min(1) * 8).map(of_adapter)).sum();
                    let place = i * (n + 3) + j;
                    let (got, right) = (f64::from(got[place]), f64::from(before[place]) + sum);
                    let near = (got - right).abs() < 1e-6 * (100 + k) as f64;
                    assert!(near, "{m} {n} {k} form {form} at {i} {j}: {got} {right}");
                }
            }
        }
    }
}

#[test]
fn products_are_right_around_tiles() {
    if has("avx512") {
        check::<Plain>();
    }
}

#[test]
fn products_are_right_in_tiles() {
    // CI says where there are none.
    if has("amx") {
        check::<Units>();
    }
}

/// Weights in blocks give what their numbers give.
#[test]
fn quantized_weights_are_packed_as_their_numbers_are() {
    if !has("avx512") {
        return;
    }
    for (m, rows, cols) in [(1, 64, 64), (40, 100, 256), (33, 33, 1792), (65, 700, 32)] {
        let values: Vec<f32> = numbers(rows * cols, 7).into_iter().map(|x| x.to_f32()).collect();
        let of = Quantized::nf4(rows, cols, &values);
        let plain: Vec<bf16> = of.dequantized().into_iter().map(bf16::from_f32).collect();
        // Not from the first row on.
        let (w, plain) = (Rows::new(&of, 1, rows - 1), View::new(&plain[cols..], cols));
        let (x, g) = (numbers(m * cols, 1), numbers(m * (rows - 1), 2));
        let (x, g) = (View::new(&x, cols), View::new(&g, rows - 1));
        let up = [Term::UpQuantized { x, w }, Term::Up { x, w: plain }];
        let down = [Term::DownQuantized { g, w }, Term::Down { g, w: plain }];
        for ([ours, right], n) in [(up, rows - 1), (down, cols)] {
            let [ours, right] =
                [ours, right].map(|term| product::<Plain>(&[term], &vec![0.0; m * n], (m, n), Team::This));
            assert!(ours == right, "{m} {rows} {cols} {n}");
        }
    }
}

/// A tile times a tile, onto a third.
fn dot<X: Tiles>(a: &[[bf16; 32]; 16], b: &[[bf16; 32]; 16], onto: &[[f32; 16]; 16]) -> [[f32; 16]; 16] {
    let mut sums = *onto;
    // SAFETY: the processor has these tiles, as whoever calls this found; all of them are 16 rows of 64 bytes.
    unsafe {
        let mut tiles = X::new();
        tiles.load::<0>(sums.as_ptr().cast(), TILE_ROW);
        tiles.load_once::<1>(a.as_ptr().cast(), TILE_ROW);
        tiles.load::<2>(b.as_ptr().cast(), TILE_ROW);
        tiles.dot::<0, 1, 2>();
        tiles.store::<0>(sums.as_mut_ptr().cast(), TILE_ROW);
    }
    sums
}

const NOTHING: [[bf16; 32]; 16] = [[bf16::ZERO; 32]; 16];

/// What Intel's manual says of the instruction.
fn check_dot<X: Tiles>() {
    let mut onto = [[0f32; 16]; 16];
    let (mut a, mut b) = (NOTHING, NOTHING);
    let (one, small) = (bf16::from_f32(1.0), bf16::from_f32(2f32.powi(-24)));
    // Row 0: numbers with odd places are summed apart, else each would be lost beside the one.
    (a[0][0], a[0][1], a[0][3]) = (one, small, small);
    // Row 1: products are summed before they meet what was there.
    (a[1][0], a[1][2]) = (small, small);
    onto[1] = [1.0; 16];
    // Row 2: a product that is denormal is none; so is what was there.
    a[2][0] = bf16::from_f32(f32::MIN_POSITIVE);
    onto[2][0] = f32::from_bits(1);
    b[0] = [one; 32];
    b[1] = [one; 32];
    (b[0][2], b[0][3]) = (bf16::from_f32(0.5), bf16::from_f32(0.5));
    let sums = dot::<X>(&a, &b, &onto);
    let above = 1.0 + 2f32.powi(-23);
    assert_eq!((sums[0][0], sums[1][0], sums[2][0]), (above, above, f32::MIN_POSITIVE));
    // The second column's numbers are halves.
    assert_eq!((sums[0][1], sums[2][1]), (0.5 + 1.5 * 2f32.powi(-24), 0.0));
    assert_eq!(sums[3], [0.0; 16]);

    // Which element meets which: whole numbers, whose sums are exact in any order.
    let whole = |i: usize, of: usize| bf16::from_f32((i * 37 % of) as f32 - (of / 2) as f32);
    let a: [[bf16; 32]; 16] = std::array::from_fn(|m| std::array::from_fn(|k| whole(m * 32 + k + 1, 23)));
    let b: [[bf16; 32]; 16] = std::array::from_fn(|p| std::array::from_fn(|i| whole(p * 32 + i + 5, 29)));
    let onto = std::array::from_fn(|m| std::array::from_fn(|n| (m * 16 + n) as f32));
    let sums = dot::<X>(&a, &b, &onto);
    for (m, row) in sums.iter().enumerate() {
        for (n, sum) in row.iter().enumerate() {
            let products = (0..32).map(|k| a[m][k].to_f32() * b[k / 2][2 * n + k % 2].to_f32());
            assert_eq!(*sum, onto[m][n] + products.sum::<f32>(), "{m} {n}");
        }
    }
}

#[test]
fn tiles_without_units_multiply_as_the_manual_says() {
    check_dot::<Plain>();
}

#[test]
fn units_multiply_as_the_manual_says() {
    if has("amx") {
        check_dot::<Units>();
    }
}

/// The instruction rounds as the loops do; what is denormal becomes zero.
#[test]
fn sums_are_narrowed_to_the_nearest() {
    if !has("avx512bf16") {
        return;
    }
    let special = [0x7f80_0000, 0xff80_0000, 0x7fc0_0001, 0x7f7f_ffff, 0x3f80_8000, 0x3f81_8000, 0x8000_0000];
    let all: Vec<f32> = (0..u32::MAX - 70_000).step_by(65_521).chain(special).map(f32::from_bits).collect();
    for sums in all.chunks_exact(32) {
        let [mut ours, mut right] = [[bf16::ZERO; 32]; 2];
        store(At { row: 0, col: 0 }, sums, &mut ours);
        round(At { row: 0, col: 0 }, sums, &mut right);
        for ((ours, right), sum) in ours.iter().zip(right).zip(sums) {
            let denormal = sum.abs() < f32::MIN_POSITIVE;
            let same = *ours == right || (ours.is_nan() && right.is_nan()) || (denormal && ours.to_f32() == 0.0);
            assert!(same, "{sum}: {ours} {right}");
        }
    }
}
