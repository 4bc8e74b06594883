//! `train`, `train[:10%]`, `test[200:]`: which part of the records a dataset takes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::source::compressed;
use crate::tokenizer::listed;
use crate::words::count;
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

    /// Those of a folder's files that hold this split. Their names tell it; where no name tells any, all of them are `train`.
    ///
    /// # Errors
    /// The folder has no file of the split.
    pub(super) fn among(&self, folder: &Path, mut files: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
        if !files.iter().any(|file| word_of(file).is_some() || self.is_told_by(file)) {
            return match self.is_all_of(folder) {
                true => Ok(files),
                false => Err(Error::file(
                    folder,
                    format!(
                        "has no split `{}`: no file's name tells a split, so all of its records are `train`. Write `split: {}`, or set \
                         `data_files` to the files of the split",
                        self.name,
                        self.of_train()
                    ),
                )),
            };
        }
        let names: Vec<String> =
            files.iter().filter_map(|file| Some(file.file_name()?.to_string_lossy().into_owned())).collect();
        let is_told = |file: &PathBuf| self.is_told_by(file);
        // `my_train-00000-of-00002.parquet` is the split `my_train`, and `train` as long as there is no other such as `train_sft`.
        let by_word = |file: &PathBuf| word_of(file) == Some(meaning(&self.name));
        let stems: BTreeSet<_> = files.iter().filter(|file| by_word(file)).filter_map(|file| stem(file)).collect();
        match files.iter().any(is_told) || stems.len() > 1 {
            true => files.retain(is_told),
            false => files.retain(by_word),
        }
        match files.is_empty() {
            false => Ok(files),
            true => Err(Error::file(
                folder,
                format!("no file of the split `{}`; the folder has {}", self.name, listed(names)),
            )),
        }
    }

    /// Checks that a file which is named by itself holds this split. It is `train`, whatever its name, as with `data_files` of Python's
    /// `datasets`; or the split that its name, or that of its folder, tells.
    ///
    /// # Errors
    /// It does not hold it.
    pub(super) fn check(&self, file: &Path) -> Result<()> {
        if self.is_all_of(file) || file.parent().is_some_and(|folder| self.is_all_of(folder)) {
            return Ok(());
        }
        Err(Error::file(
            file,
            format!(
                "has no split `{}`: the records of a file that is named by itself are `train`, unless its name tells another split, as in \
                 `test.jsonl`. Write `split: {}`, or set `data_files` to the file of the split",
                self.name,
                self.of_train()
            ),
        ))
    }

    /// Whether all that is in a file or a folder can be called by this split's name.
    fn is_all_of(&self, path: &Path) -> bool {
        meaning(&self.name) == "train"
            || path.file_name().is_some_and(|name| name == self.name.as_str())
            || self.is_told_by(path)
    }

    /// Whether a name tells this split.
    fn is_told_by(&self, path: &Path) -> bool {
        match stem(path) {
            Some((stem, _)) if stem == self.name => true,
            // Of files that `datasets` wrote the name is known as a whole.
            Some((stem, true)) => meaning(&stem) == meaning(&self.name),
            _ => word_of(path) == Some(meaning(&self.name)),
        }
    }

    /// The same range of `train`.
    fn of_train(&self) -> String {
        format!("train{}", &self.text[self.name.len()..])
    }

    /// The part of `all` that is in the range.
    pub(super) fn cut<T>(&self, mut all: Vec<T>) -> Result<Vec<T>> {
        let n = all.len();
        let from = self.from.map_or(0, |b| b.index(n));
        let to = self.to.map_or(n, |b| b.index(n));
        if from >= to {
            return Err(Error::setup(format!("the split `{}` takes none of {}", self.text, count(n, "record"))));
        }
        all.truncate(to);
        all.drain(..from);
        Ok(all)
    }
}

/// The part of `all` in a file that a split such as `train[-5%:]` takes.
///
/// # Errors
/// What is no split or none of the file, or takes nothing.
pub(crate) fn part<T>(split: &str, file: &Path, all: Vec<T>) -> Result<Vec<T>> {
    let split: Split = split.parse()?;
    split.check(file)?;
    split.cut(all)
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

/// What a split is called: `val` is `validation`.
fn meaning(name: &str) -> &str {
    WORDS.iter().find(|(word, _)| *word == name).map_or(name, |(_, meaning)| meaning)
}

/// A file's name without its ending and without the number of a part, and whether it has such a number: `train_sft` and true of
/// `train_sft-00000-of-00003.parquet`.
fn stem(path: &Path) -> Option<(String, bool)> {
    let name = compressed::plain_name(path);
    let stem = name.file_stem()?.to_str()?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let part = stem.rsplit_once("-of-").filter(|(_, all)| is_number(all)).and_then(|(front, _)| front.rsplit_once('-'));
    let (stem, is_part) = part.filter(|(_, number)| is_number(number)).map_or((stem, false), |(name, _)| (name, true));
    Some((stem.to_owned(), is_part))
}

/// The split that a word in a file's name tells: `train-00000-of-00002.parquet`, `my_test.jsonl`.
fn word_of(path: &Path) -> Option<&'static str> {
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

    fn among(split: &str, files: &[&str]) -> Result<Vec<String>, String> {
        let files = files.iter().map(PathBuf::from).collect();
        let found = split.parse::<Split>().unwrap().among(Path::new("data"), files);
        found
            .map(|files| files.iter().map(|file| file.display().to_string()).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn file_names_tell_their_split() {
        let files = [
            "a/my_test.json",
            "a/test-00000-of-00001.parquet",
            "a/train.jsonl.gz",
            "a/validation.csv",
            "a/contest.jsonl",
        ];
        assert_eq!(among("test[:5]", &files).unwrap(), files[..2]);
        assert_eq!(among("train", &files).unwrap(), files[2..3]);
        assert_eq!(among("val", &files).unwrap(), files[3..4]);
        let said = among("held_out", &files).unwrap_err();
        assert!(said.contains("no file of the split `held_out`; the folder has `my_test.json`, "), "{said}");
    }

    /// `HuggingFaceH4/ultrachat_200k` has these.
    #[test]
    fn splits_of_a_stage_are_kept_apart() {
        let [sft, sft_1, generated, test] = [
            "train_sft-00000-of-00002.parquet",
            "train_sft-00001-of-00002.parquet",
            "train_gen-00000-of-00001.parquet",
            "test_sft-00000-of-00001.parquet",
        ];
        let files = [generated, sft, sft_1, test];
        assert_eq!(among("train_sft[:10%]", &files).unwrap(), [sft, sft_1]);
        assert_eq!(among("train_gen", &files).unwrap(), [generated]);
        assert!(among("train", &files).unwrap_err().contains("no file of the split `train`"), "which of the two?");
        assert_eq!(among("train", &files[1..]).unwrap(), [sft, sft_1], "there is one alone");
        assert_eq!(among("train_sft", &["train_sft.jsonl", "train_gen.jsonl"]).unwrap(), ["train_sft.jsonl"]);
    }

    #[test]
    fn what_tells_no_split_is_train() {
        let files = ["contest.jsonl", "mine-00000-of-00001.parquet"];
        assert_eq!(among("train[-10%:]", &files).unwrap(), files);
        assert_eq!(among("mine", &files).unwrap(), files[1..]);
        let said = among("tset[:10%]", &files).unwrap_err();
        assert!(said.starts_with("data: has no split `tset`: no file's name tells a split"), "{said}");
        assert!(said.contains("Write `split: train[:10%]`"), "{said}");
    }

    #[test]
    fn a_file_that_is_named_is_train() {
        let check = |split: &str, file: &str| {
            split.parse::<Split>().unwrap().check(Path::new(file)).map_err(|error| error.to_string())
        };
        for (split, file) in [
            ("train[-10%:]", "data/chats.jsonl"),
            // Whoever names a file means it.
            ("train", "data/test.jsonl"),
            ("test", "data/test.jsonl.gz"),
            ("val", "data/validation-00000-of-00001.parquet"),
            ("test", "data/test/a.jsonl"),
            ("v1.0", "data/v1.0/a.arrow"),
            ("chats", "data/chats.jsonl"),
        ] {
            assert_eq!(check(split, file), Ok(()), "{split} of {file}");
        }
        let said = check("tset[5:]", "data/chats.jsonl").unwrap_err();
        assert!(said.starts_with("data/chats.jsonl: has no split `tset`: the records of a file"), "{said}");
        assert!(said.ends_with("Write `split: train[5:]`, or set `data_files` to the file of the split"), "{said}");
        assert!(check("validation", "data/train.jsonl").is_err());
        assert!(check("test", "test/data/chats.jsonl").is_err());
    }
}
