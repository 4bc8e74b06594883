//! How a program ends, and how it is started again.

use std::error::Error;
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

/// The end of a program that did not fail by itself and yet has not done all: as an error, or the cause of one, it decides what is
/// said and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// The exit code.
    pub code: u8,
    /// What is said on the standard error; nothing where it is empty.
    pub message: String,
}

impl Exit {
    /// The end of a program whose reader has gone: there is nothing to say, and nobody to hear it.
    #[must_use]
    pub fn quietly() -> Self {
        Self { code: 0, message: String::new() }
    }

    /// The one among an error and its causes.
    #[must_use]
    pub fn of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        error.downcast_ref().or_else(|| Self::of(error.source()?))
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Exit {}

/// The command that starts this program again, to be followed by its arguments.
#[must_use]
pub fn this_program() -> String {
    let file = program();
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    match (by_tune(), by_cargo()) {
        (Some((tune, recipe)), _) => format!("{tune} run {recipe}"),
        (None, Some(cargo)) => format!("{cargo} --bin {name} --"),
        (None, None) => quoted(file.as_os_str()),
    }
}

/// The command that starts another recipe of those that are shipped, to be followed by its arguments.
#[must_use]
pub fn other_program(name: &str) -> String {
    let beside = program().with_file_name(name);
    match (by_tune(), by_cargo()) {
        (Some((tune, _)), _) => format!("{tune} run {name}"),
        (None, Some(cargo)) => format!("{cargo} --bin {name} --"),
        (None, None) if beside.is_file() => quoted(beside.as_os_str()),
        (None, None) => format!("tune run {name}"),
    }
}

/// As it was written by whoever started it.
fn program() -> std::path::PathBuf {
    std::env::args_os().next().unwrap_or_default().into()
}

/// The variable in which `tune` says how it was called, and the recipe that it started.
pub const STARTED_BY: &str = "TUNE_STARTED_BY";

fn by_tune() -> Option<(String, String)> {
    let text = std::env::var(STARTED_BY).ok()?;
    let (tune, recipe) = text.split_once('\n')?;
    Some((quoted(OsStr::new(tune)), quoted(OsStr::new(recipe))))
}

/// `cargo run` sets the package's name for the program that it starts.
fn by_cargo() -> Option<String> {
    let package = std::env::var("CARGO_PKG_NAME").ok()?;
    let release = program().parent().is_some_and(|folder| folder.ends_with("release"));
    Some(format!("cargo run{} -p {package}", if release { " --release" } else { "" }))
}

/// A word as a shell takes it.
#[must_use]
pub fn quoted(word: impl AsRef<OsStr>) -> String {
    let word = Path::new(word.as_ref()).display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-=:,@%+~".contains(c);
    match !word.is_empty() && word.chars().all(plain) && !word.starts_with('~') {
        true => word,
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_split_them() {
        for (word, expected) in
            [("out/lora-1", "out/lora-1"), ("my out", "'my out'"), ("it's", r"'it'\''s'"), ("", "''")]
        {
            assert_eq!(quoted(word), expected);
        }
    }

    #[test]
    fn an_exit_is_found_among_causes() {
        #[derive(Debug)]
        struct Wrapped(Exit);
        impl fmt::Display for Wrapped {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("wrapped")
            }
        }
        impl Error for Wrapped {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.0)
            }
        }
        let exit = Exit { code: 143, message: "stopped".to_owned() };
        assert_eq!(Exit::of(&Wrapped(exit.clone())), Some(&exit));
        assert_eq!(Exit::of(&fmt::Error), None);
    }
}
