//! Several datasets in the proportions of their weights.

use super::kind::DataConfig;
use super::order::draw;
use crate::{Error, Result};

/// Part of what is drawn, see [`draw`].
const PURPOSE: &[u8; 7] = b"mixture";

/// Which records an epoch is made of.
#[derive(Debug, PartialEq)]
pub(super) struct Mixture {
    /// Records of all datasets, counted through: each dataset's are spread evenly.
    pub(super) records: Vec<usize>,
    /// How many of them are of each dataset.
    pub(super) taken: Vec<usize>,
}

impl Mixture {
    /// The mixture of datasets with this many records each, or `None` where they have no weights.
    ///
    /// # Errors
    /// Weights of some datasets and not of others; one that is too small.
    pub(super) fn of(datasets: &[(&DataConfig, usize)], seed: u64) -> Result<Option<Self>> {
        let weights: Vec<f64> = datasets.iter().filter_map(|(config, _)| config.weight()).collect();
        if weights.is_empty() {
            return Ok(None);
        }
        if weights.len() < datasets.len() {
            return Err(Error::setup("of several datasets either all or none must have a `weight`"));
        }
        let lens: Vec<usize> = datasets.iter().map(|(_, records)| *records).collect();
        let taken = shares(lens.iter().sum(), &weights);
        if let Some(i) = taken.iter().position(|&taken| taken == 0) {
            return Err(Error::setup(format!(
                "{}: `weight: {}` is so small that none of an epoch's {} records is of this dataset",
                datasets[i].0.name(),
                weights[i],
                lens.iter().sum::<usize>()
            )));
        }
        Ok(Some(Self { records: spread(&lens, &taken, seed), taken }))
    }
}

/// `n` things in parts that are as `weights` to each other: of parts that are not whole, the largest remainders are rounded up.
fn shares(n: usize, weights: &[f64]) -> Vec<usize> {
    let all: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| n as f64 * weight / all).collect();
    let mut parts: Vec<usize> = exact.iter().map(|part| part.floor() as usize).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by(|&a, &b| (exact[b] - exact[b].floor()).total_cmp(&(exact[a] - exact[a].floor())));
    let left = n.saturating_sub(parts.iter().sum());
    by_remainder.into_iter().cycle().take(left).for_each(|i| parts[i] += 1);
    parts
}

/// `taken` records of each dataset, so that every stretch of the result has about the same mixture. A dataset's records are taken as
/// often as is whole, in their order; those that are taken once more are drawn.
fn spread(lens: &[usize], taken: &[usize], seed: u64) -> Vec<usize> {
    let starts = lens.iter().scan(0, |start, len| {
        *start += len;
        Some(*start - len)
    });
    let mut sources: Vec<_> = starts
        .zip(lens.iter().zip(taken))
        .enumerate()
        .map(|(i, (start, (&len, &taken)))| {
            let once_more = draw(taken % len, len, seed, PURPOSE, i);
            let whole = (0..taken / len).flat_map(move |_| 0..len);
            whole.chain(once_more).map(move |record| start + record)
        })
        .collect();
    let mut given = vec![0u128; lens.len()];
    let mut records = Vec::with_capacity(taken.iter().sum());
    // The k-th of n records has its place at (2k + 1) / 2n of the way; the next is that with the first place.
    while let Some(next) = (0..lens.len())
        .filter(|&i| given[i] < taken[i] as u128)
        .min_by(|&a, &b| ((2 * given[a] + 1) * taken[b] as u128).cmp(&((2 * given[b] + 1) * taken[a] as u128)))
    {
        given[next] += 1;
        records.extend(sources[next].next());
    }
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_the_weights_and_nothing_is_left() {
        for (n, weights, expected) in [
            (10, vec![1.0, 1.0], vec![5, 5]),
            (10, vec![3.0, 1.0], vec![8, 2]),
            (10, vec![0.2, 0.3, 0.5], vec![2, 3, 5]),
            (7, vec![1.0, 1.0, 1.0], vec![3, 2, 2]),
            (1000, vec![1e-6, 1e6], vec![0, 1000]),
        ] {
            assert_eq!(shares(n, &weights), expected, "{n} {weights:?}");
        }
    }

    #[test]
    fn every_stretch_has_the_same_mixture_and_repeats_are_even() {
        let (lens, taken) = ([500, 40, 300], [420, 210, 210]);
        let records = spread(&lens, &taken, 3);
        assert_eq!(records.len(), 840);
        let part = |record: usize| usize::from(record >= 500) + usize::from(record >= 540);
        for (i, stretch) in records.chunks(40).enumerate() {
            let of = |wanted| stretch.iter().filter(|&&record| part(record) == wanted).count();
            assert_eq!([of(0), of(1), of(2)], [20, 10, 10], "stretch {i}");
        }
        let times = |record| records.iter().filter(|&&other| other == record).count();
        // Of the first and the last a part, none twice; of the second all five times, and ten of them once more.
        assert!((0..500).chain(540..840).all(|record| times(record) <= 1));
        assert_eq!((500..540).map(times).filter(|&times| times == 5).count(), 30);
        assert_eq!((500..540).map(times).filter(|&times| times == 6).count(), 10);
        // What is drawn depends on the seed, and on nothing else.
        assert_eq!(records, spread(&lens, &taken, 3));
        assert_ne!(records, spread(&lens, &taken, 4));
    }
}
