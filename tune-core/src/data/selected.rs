//! Which of a dataset's records are taken: those of its files that its filter lets through, and of these the ones that are trained on or
//! those that are held out.

use super::kind::DataConfig;
use super::order::draw;
use super::records::Records;
use super::source;
use crate::words::count;
use crate::{Error, Result};

/// Part of what is drawn, see [`draw`].
const PURPOSE: &[u8; 7] = b"holdout";

/// The part of a dataset's records that is taken. What is held out is drawn by the seed and the number of records: a share of them where
/// the number is below 1, else so many.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Share {
    #[default]
    All,
    /// All but those that are held out.
    Trained(f64),
    /// Those that are held out.
    HeldOut(f64),
}

/// A dataset's records.
pub(super) struct Selected {
    pub(super) records: Records,
    /// How many its filter did not let through.
    pub(super) filtered: usize,
}

/// Finds the records, of all shares.
///
/// # Errors
/// Files that cannot be read; a filter that cannot be applied.
pub(super) fn find(config: &DataConfig) -> Result<Selected> {
    let records = source::find(config.files(), &config.all_columns())?;
    let found = records.len();
    let records = match &config.files().filter {
        Some(filter) => filter.apply(records)?,
        None => records,
    };
    Ok(Selected { filtered: found - records.len(), records })
}

impl Share {
    /// The records of this share.
    ///
    /// # Errors
    /// A number that holds out nothing, or everything.
    pub(super) fn of(self, records: Records, seed: u64) -> Result<Records> {
        let (size, is_held_out) = match self {
            Self::All => return Ok(records),
            Self::Trained(size) => (size, false),
            Self::HeldOut(size) => (size, true),
        };
        let n = records.len();
        let held_out = held_out(size, n)?;
        let drawn = draw(held_out, n, seed, PURPOSE, 0);
        if is_held_out {
            return Ok(records.only(&drawn));
        }
        let mut drawn = drawn.into_iter().peekable();
        let rest: Vec<usize> = (0..n).filter(|i| drawn.next_if_eq(i).is_none()).collect();
        Ok(records.only(&rest))
    }
}

/// How many of `n` records are held out.
fn held_out(size: f64, n: usize) -> Result<usize> {
    let wrong = |what: String| Err(Error::setup(format!("val_set_size={size}: {what}")));
    if size >= 1.0 && size.fract() != 0.0 {
        return wrong("it is a share below 1 or, from 1 on, a whole number of records".to_owned());
    }
    let held_out = if size < 1.0 { (size * n as f64).round() as usize } else { size as usize };
    match held_out {
        0 => wrong(format!("of {} none would be validated on", count(n, "record"))),
        all if all >= n => wrong(format!("of {} none would be left to train on", count(n, "record"))),
        some => Ok(some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_or_a_number_is_held_out() {
        for (size, n, expected) in [(0.1, 100, 10), (0.05, 10, 1), (3.0, 10, 3), (9.0, 10, 9), (1.0, 2, 1)] {
            assert_eq!(held_out(size, n).unwrap(), expected, "{size} of {n}");
        }
        for (size, n, expected) in [
            (0.01, 10, "of 10 records none would be validated on"),
            (0.99, 10, "of 10 records none would be left to train on"),
            (10.0, 10, "none would be left"),
            (2.5, 10, "a share below 1 or, from 1 on, a whole number of records"),
        ] {
            let error = held_out(size, n).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
