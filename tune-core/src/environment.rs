//! Variables of the environment, with one form for what cannot be read: it is refused, and never ignored.

use crate::{Error, Result};

/// How many threads compute, in this process. Rayon reads it, too, and ignores what is no number.
const THREADS: &str = "RAYON_NUM_THREADS";
/// Seconds for which a run waits for room on a full disk; 0 does not wait.
pub(crate) const WAIT_FOR_ROOM: &str = "TUNE_WAIT_FOR_ROOM";
/// The most threads that can be asked for on a machine with fewer processors: starting tens of thousands looks like a hang.
const MOST_THREADS: usize = 1024;

/// Checks the variables that are read late, on a full disk, or by rayon.
///
/// # Errors
/// The first one whose value cannot be read.
pub fn check() -> Result<()> {
    threads()?;
    seconds_to_wait()?;
    Ok(())
}

/// What a variable says; one that is empty says nothing.
pub(crate) fn said(name: &str) -> Option<String> {
    let value = std::env::var_os(name)?.to_string_lossy().into_owned();
    Some(value).filter(|value| !value.is_empty())
}

/// The refusal of a variable that says `value`; `expected` are the words for what it can say.
pub(crate) fn refused(name: &str, value: &str, expected: impl std::fmt::Display) -> Error {
    Error::setup(format!("{name}={value}: {expected}"))
}

/// How many threads compute, where that is said.
///
/// # Errors
/// What is no number of threads, or more than make sense.
pub(crate) fn threads() -> Result<Option<usize>> {
    threads_of(said(THREADS).as_deref(), std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
}

fn threads_of(said: Option<&str>, processors: usize) -> Result<Option<usize>> {
    let Some(said) = said else { return Ok(None) };
    let most = MOST_THREADS.max(processors);
    match said.parse::<usize>() {
        // To rayon this is as if nothing were said.
        Ok(0) => Ok(None),
        Ok(threads) if threads <= most => Ok(Some(threads)),
        _ => Err(refused(
            THREADS,
            said,
            format_args!(
                "a number of threads from 1 to {most} was expected; where it is not set, there are as many as processors ({processors})"
            ),
        )),
    }
}

/// For how many seconds a run waits for room, where that is said.
///
/// # Errors
/// What is no number.
pub(crate) fn seconds_to_wait() -> Result<Option<u64>> {
    seconds_of(said(WAIT_FOR_ROOM).as_deref())
}

fn seconds_of(said: Option<&str>) -> Result<Option<u64>> {
    let Some(said) = said else { return Ok(None) };
    let seconds = said.trim().parse().map_err(|_| {
        refused(
            WAIT_FOR_ROOM,
            said,
            "a number of seconds was expected, such as 600; with 0 a run on a full disk ends at once",
        )
    })?;
    Ok(Some(seconds))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn threads_are_a_number_that_a_machine_can_start() {
        let of = |said| threads_of(Some(said), 4).map_err(|error| error.to_string());
        assert_eq!(threads_of(None, 4).unwrap(), None);
        assert_eq!((of("0"), of("1"), of("1024")), (Ok(None), Ok(Some(1)), Ok(Some(1024))));
        assert_eq!(threads_of(Some("2000"), 2048).unwrap(), Some(2000), "a machine that has so many processors");
        // Rayon takes no spaces either: it would use all processors.
        for wrong in ["1025", "100000", "99999999999999999999", "abc", "-1", " 4", "4.0"] {
            let expected = format!(
                "RAYON_NUM_THREADS={wrong}: a number of threads from 1 to 1024 was expected; where it is not set, there are as many as \
                 processors (4)"
            );
            assert_eq!(of(wrong), Err(expected));
        }
    }

    #[test]
    fn a_wait_is_a_number_of_seconds() {
        assert_eq!(seconds_of(None).unwrap(), None);
        assert_eq!(seconds_of(Some(" 20 ")).unwrap(), Some(20));
        for wrong in ["abc", "10m", "-1", "1.5"] {
            let error = seconds_of(Some(wrong)).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("TUNE_WAIT_FOR_ROOM={wrong}: a number of seconds was expected")),
                "{error}"
            );
        }
    }

    /// Variables that the programs set for each other.
    const OWN: [&str; 2] = ["TUNE_RUN_ID", "TUNE_STARTED_BY"];

    #[test]
    fn the_documentation_has_every_variable() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let table = fs::read_to_string(root.join("docs/environment.md")).unwrap();
        let mut found = BTreeSet::new();
        for sources in ["tune-core/src", "tune-core/hub/src", "tune-core/cuda/src", "recipes/src", "tune-serve/src"] {
            look(&root.join(sources), &mut found);
        }
        assert!(found.contains("TUNE_MEMORY") && found.contains("HF_ENDPOINT"), "{found:?}");
        found.retain(|name| !OWN.contains(&name.as_str()) && !table.contains(&format!("`{name}")));
        assert!(found.is_empty(), "docs/environment.md lacks {found:?}");
    }

    /// Adds the texts in the sources of a folder that look like names of variables.
    fn look(folder: &Path, found: &mut BTreeSet<String>) {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                look(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let words = text.split('"').filter(|word| word.starts_with("TUNE_") || word.starts_with("HF_"));
                let is_name = |word: &&str| word.chars().all(|c| c.is_ascii_uppercase() || c == '_');
                found.extend(words.filter(is_name).map(str::to_owned));
            }
        }
    }
}
