//! How sure one can be of a number that some items gave.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::measure::Part;

/// From and to, of 95 %.
pub type Interval = (f64, f64);

/// The sum of the first numbers by the sum of the second.
pub fn share(parts: impl Iterator<Item = Part>) -> f64 {
    let (numerator, denominator) = parts.fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    numerator / denominator
}

/// The percentile bootstrap: items are drawn with replacement, as many as there are, `resamples` times, and `of` is what is
/// made of each draw of their numbers. Which items are drawn depends on the seed and their number alone; so two models that
/// are measured on the same draws are compared in pairs.
pub fn bootstrap(items: usize, resamples: usize, seed: u64, of: impl Fn(&[usize]) -> f64) -> Interval {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0; items];
    let mut found: Vec<f64> = (0..resamples)
        .map(|_| {
            drawn.iter_mut().for_each(|item| *item = random.random_range(0..items));
            of(&drawn)
        })
        .collect();
    found.sort_by(f64::total_cmp);
    let at = |share: f64| found[((found.len() as f64 * share) as usize).min(found.len() - 1)];
    (at(0.025), at(0.975))
}

/// The exact interval of Clopper and Pearson (1934) for a share of which `right` of `all` were seen.
pub fn exact(right: u64, all: u64) -> Interval {
    let bisect = |is_below: &dyn Fn(f64) -> bool| {
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            if is_below(middle) { low = middle } else { high = middle }
        }
        (low + high) / 2.0
    };
    // The chance of so many or more rises with the share, that of so many or fewer falls.
    let low = if right == 0 { 0.0 } else { bisect(&|p| 1.0 - at_most(right - 1, all, p) < 0.025) };
    let high = if right == all { 1.0 } else { bisect(&|p| at_most(right, all, p) > 0.025) };
    (low, high)
}

/// The chance that such a difference or a larger one comes of nothing: of `better` and `worse` items, each is as likely
/// (the exact sign test, which is McNemar's).
pub fn sign_test(better: u64, worse: u64) -> f64 {
    match better + worse {
        0 => 1.0,
        all => (2.0 * at_most(better.min(worse), all, 0.5)).min(1.0),
    }
}

/// The chance of `most` successes or fewer in `all` attempts.
fn at_most(most: u64, all: u64, p: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return f64::from(u8::from(p <= 0.0 || most >= all));
    }
    let (log_p, log_q) = (p.ln(), (1.0 - p).ln());
    let mut log_choose = 0.0;
    let mut sum = 0.0;
    for k in 0..=most.min(all) {
        if k > 0 {
            log_choose += ((all - k + 1) as f64).ln() - (k as f64).ln();
        }
        sum += (log_choose + k as f64 * log_p + (all - k) as f64 * log_q).exp();
    }
    sum.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64, within: f64) {
        assert!((a - b).abs() < within, "{a} is not {b}");
    }

    /// Numbers of scipy 1.14: `binomtest(k, n).proportion_ci()`, `binomtest(k, n).pvalue`.
    #[test]
    fn intervals_and_chances_are_those_of_scipy() {
        for (right, all, low, high) in [
            (0, 10, 0.0, 0.308_497_1),
            (10, 10, 0.691_502_9, 1.0),
            (7, 10, 0.347_547_1, 0.933_260_6),
            (150, 400, 0.327_386_2, 0.424_478_2),
        ] {
            let found = exact(right, all);
            near(found.0, low, 1e-6);
            near(found.1, high, 1e-6);
        }
        near(sign_test(9, 1), 0.021_484_375, 1e-12);
        near(sign_test(3, 3), 1.0, 1e-12);
        near(sign_test(0, 0), 1.0, 1e-12);
    }

    #[test]
    fn a_bootstrap_has_the_width_of_the_standard_error() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 5)).collect();
        let mean = |drawn: &[usize]| share(drawn.iter().map(|&i| (values[i], 1.0)));
        let (low, high) = bootstrap(values.len(), 4000, 7, mean);
        // The mean is 2, the deviation √2: 1.96 standard errors are 0.1386.
        near(low, 2.0 - 0.1386, 0.012);
        near(high, 2.0 + 0.1386, 0.012);
        assert_eq!((low, high), bootstrap(values.len(), 4000, 7, mean));
        assert_ne!((low, high), bootstrap(values.len(), 4000, 8, mean));
    }
}
