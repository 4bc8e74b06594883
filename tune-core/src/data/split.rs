//! `train`, `train[:10%]`, `test[200:]`: which part of the records a dataset takes.

use std::path::Path;
use std::str::FromStr;

use crate::{Error, Result};

/// Words in a file's name that tell its split, and the split that they mean.
const WORDS: [(&str, &str); 8] = [
    ("train", "train"),
    ("training", "train"),
    ("validation", "validation"),
    ("valid", "validation"),
    ("val", "validation"),
    ("dev", "validation"),
    ("test", "test"),
    ("eval", "test"),
];

/// A split's name and a range of its records.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Split {
    name: String,
    from: Option<Bound>,
    to: Option<Bound>,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    /// Negative: from the end.
    Count(i64),
    /// The same in percent.
    Percent(f64),
}

impl Split {
    /// The name in front of the brackets.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether a file's name tells its split.
    pub(super) fn names_a_split(path: &Path) -> bool {
        split_of(path).is_some()
    }

    /// Whether a file's name tells this split.
    pub(super) fn is_named_by(&self, path: &Path) -> bool {
        let meant =
            WORDS.iter().find(|(word, _)| *word == self.name).map_or(self.name.as_str(), |(_, meaning)| meaning);
        split_of(path) == Some(meant)
    }

    /// The part of `all` that is in the range.
    pub(super) fn cut<T>(&self, mut all: Vec<T>) -> Result<Vec<T>> {
        let n = all.len();
        let from = self.from.map_or(0, |b| b.index(n));
        let to = self.to.map_or(n, |b| b.index(n));
        if from >= to {
            return Err(Error::setup(format!("the split `{}` takes none of the {n} records", self.text)));
        }
        all.truncate(to);
        all.drain(..from);
        Ok(all)
    }
}

/// The part of `all` that a split such as `train[-5%:]` takes.
///
/// # Errors
/// What is no split, or takes nothing.
pub(crate) fn part<T>(split: &str, all: Vec<T>) -> Result<Vec<T>> {
    split.parse::<Split>()?.cut(all)
}

impl Bound {
    fn index(self, n: usize) -> usize {
        let share = |percent: f64| (percent * n as f64 / 100.0).round() as i64;
        let from_start = match self {
            Self::Count(count) if count < 0 => count.saturating_add(n as i64),
            Self::Count(count) => count,
            // A share from the end that rounds to nothing is still one from the end: `[:-10%]` of three records has all of them.
            Self::Percent(percent) if percent < 0.0 => (n as i64).saturating_add(share(percent)),
            Self::Percent(percent) => share(percent),
        };
        from_start.clamp(0, n as i64) as usize
    }
}

/// The split that a file's name tells: `train-00000-of-00002.parquet`, `my_test.jsonl`.
fn split_of(path: &Path) -> Option<&'static str> {
    let stem = path.file_stem()?.to_str()?.to_ascii_lowercase();
    stem.split(|c: char| !c.is_ascii_alphanumeric())
        .find_map(|word| WORDS.iter().find(|(known, _)| *known == word))
        .map(|&(_, meaning)| meaning)
}

impl FromStr for Split {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::setup(format!(
                "the split `{text}` is not understood: expected a name with or without a range, like `train`, \
                 `train[:10%]`, `train[200:]` or `train[-50:]`"
            ))
        };
        let (name, from, to) = match text.split_once('[') {
            None => (text, None, None),
            Some((name, range)) => {
                let range = range.strip_suffix(']').ok_or_else(wrong)?;
                let (from, to) = range.split_once(':').ok_or_else(wrong)?;
                let bound = |text: &str| bound(text.trim()).ok_or_else(wrong);
                (name, bound(from)?, bound(to)?)
            }
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), from, to, text: text.to_owned() })
    }
}

/// `Some(None)` is a bound left out, `None` one that is wrong.
fn bound(text: &str) -> Option<Option<Bound>> {
    if text.is_empty() {
        return Some(None);
    }
    let bound = match text.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.parse().ok()?;
            if !(-100.0..=100.0).contains(&percent) {
                return None;
            }
            Bound::Percent(percent)
        }
        None => Bound::Count(text.parse().ok()?),
    };
    Some(Some(bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str, n: usize) -> (usize, usize) {
        let split: Split = text.parse().unwrap();
        (split.from.map_or(0, |b| b.index(n)), split.to.map_or(n, |b| b.index(n)))
    }

    #[test]
    fn ranges() {
        for (text, n, expected) in [
            ("train", 7, (0, 7)),
            ("train[:10%]", 164, (0, 16)),
            ("train[10%:]", 164, (16, 164)),
            ("train[:200]", 164, (0, 164)),
            ("train[200:]", 164, (164, 164)),
            ("train[5:9]", 164, (5, 9)),
            ("train[-50:]", 164, (114, 164)),
            ("train[:-10%]", 100, (0, 90)),
            // A share that rounds to nothing leaves all to the others, from whichever end it is.
            ("train[:-10%]", 3, (0, 3)),
            ("train[-10%:]", 3, (3, 3)),
            ("train[:10%]", 3, (0, 0)),
            ("train[10%:]", 3, (0, 3)),
        ] {
            assert_eq!(range(text, n), expected, "{text}");
        }
        for wrong in ["", "train[", "train[5]", "train[a:]", "train[:101%]", "a b", "[1:2]", "train[1:2:3]"] {
            assert!(wrong.parse::<Split>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn file_names_tell_their_split() {
        let test: Split = "test".parse().unwrap();
        assert!(test.is_named_by(Path::new("d/test-00000-of-00001.parquet")));
        assert!(!test.is_named_by(Path::new("d/train.jsonl")));
        let val: Split = "val".parse().unwrap();
        assert!(val.is_named_by(Path::new("my_validation.json")));
        assert!(!Split::names_a_split(Path::new("contest.jsonl")));
    }
}
