use half::bf16;

use super::*;

fn numbers<T: Element>(count: usize, seed: u32) -> Vec<T> {
    let number = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    (0..count as u32).map(|i| T::from_f32(number(i.wrapping_mul(seed)))).collect()
}

/// Those that this processor has.
fn kernels<T: Element>() -> Vec<Kernel> {
    let mut kernels = vec![Kernel::Portable];
    #[cfg(target_arch = "x86_64")]
    {
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        kernels.extend(has_avx2.then_some(Kernel::Avx2));
        kernels.extend(is_x86_feature_detected!("avx512f").then_some(Kernel::Avx512));
        let has_pairs = T::IS_BF16 && is_x86_feature_detected!("avx512bf16");
        kernels.extend(has_pairs.then_some(Kernel::Pairs));
    }
    kernels
}

fn product<T: Element>(
    kernel: Kernel,
    terms: &[Term<'_, T>],
    dst: &ViewMut<'_, f32>,
    epilogue: &impl Epilogue<f32>,
    team: &Team,
) {
    let threads = rayon::current_num_threads();
    let lefts = terms.iter().map(|term| room(dst.rows() * kernel.layout::<T>().words(term.inner())));
    let len = lefts.sum::<usize>() + threads * room(dst.rows() * COLS);
    let mut workspace = vec![f32::NAN; len];
    Product::new(kernel, terms, dst, &mut workspace, threads).compute(dst, epilogue, team);
}

/// Sums of two products, at sizes around the edges of tiles and groups, against sums in f64. A row's results do not depend on
/// what rows there are beside it.
fn check<T: Element>() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for kernel in kernels::<T>() {
        for (m, n, k) in [(1, 1, 1), (1, 77, 64), (2, 33, 31), (3, 32, 33), (5, 7, 100), (8, 40, 7), (17, 130, 96)] {
            // Rows of a weight that begin anywhere.
            let (x, w) = (numbers::<T>(m * k, 1), numbers::<T>(n * (k + 1), 2));
            let (h, b) = (numbers::<T>(m * 8, 3), numbers::<T>(n * 8, 4));
            let w = View::strided(&w[1..], (n, k), k + 1);
            let b = View::new(&b, 8);
            let (x, h) = (View::new(&x, k), View::new(&h, 8));
            let residual = numbers::<f32>(m * (n + 3), 5);
            let mut dst = residual.clone();
            pool.install(|| {
                let terms = [Term::Up { x, w }, Term::Up { x: h, w: b }];
                let to = ViewMut::strided(&mut dst, (m, n), n + 3);
                let team = Team::new();
                team.lead(|| product(kernel, &terms, &to, &add, &team));
            });
            for i in 0..m {
                let row =
                    |of: View<'_, T>, i: usize| of.row(i).iter().map(|x| f64::from(x.to_f32())).collect::<Vec<_>>();
                let dot = |a: Vec<f64>, b: Vec<f64>| a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>();
                let mut alone = residual[i * (n + 3)..][..n].to_vec();
                let terms = [Term::Up { x: x.part(i..i + 1, 0..k), w }, Term::Up { x: h.part(i..i + 1, 0..8), w: b }];
                product(kernel, &terms, &ViewMut::new(&mut alone, n), &add, &Team::new());
                assert_eq!(dst[i * (n + 3)..][..n], alone, "{kernel:?} {m} {n} {k}: row {i} alone");
                for j in 0..n + 3 {
                    let sum = if j < n { dot(row(x, i), row(w, j)) + dot(row(h, i), row(b, j)) } else { 0.0 };
                    let at = i * (n + 3) + j;
                    let right = f64::from(residual[at]) + sum;
                    let got = f64::from(dst[at]);
                    assert!(
                        (got - right).abs() < 1e-6 * (100 + k) as f64,
                        "{kernel:?} {m} {n} {k} at {i} {j}: {got} {right}"
                    );
                }
            }
        }
    }
}

#[test]
fn products_of_few_rows_in_f32() {
    check::<f32>();
}

#[test]
fn products_of_few_rows_in_bf16() {
    check::<bf16>();
}
