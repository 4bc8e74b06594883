//! Names of recipes.

use crate::Result;

/// A name in the forms in which a recipe bears it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    /// Of the function, the binary, the config folder and the test: `my_recipe`.
    pub(super) snake: String,
    /// Of the types: `MyRecipe`.
    pub(super) camel: String,
}

impl Name {
    /// From `my_recipe` or `my-recipe`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let refuse = |why: &str| Err(format!("`{text}` cannot be a recipe's name: {why}").into());
        if text.is_empty() || text.len() > 50 {
            return refuse("it needs 1 to 50 letters");
        }
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return refuse("it must begin with a small letter from a to z");
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if let Some(c) = text.chars().find(|&c| !allowed(c)) {
            return refuse(&format!("`{c}` is none of a-z, 0-9, `_` and `-`"));
        }
        let words: Vec<&str> = text.split(['_', '-']).collect();
        if words.contains(&"") {
            return refuse("one `_` or `-` separates two words, and none stands at the end");
        }
        let camel = |word: &&str| word[..1].to_ascii_uppercase() + &word[1..];
        Ok(Self { snake: words.join("_"), camel: words.iter().map(camel).collect() })
    }

    /// Refuses what Rust, Cargo or this workspace uses already.
    pub(super) fn check_free(&self) -> Result<()> {
        let name = self.snake.as_str();
        let why = if syn::parse_str::<syn::Ident>(name).is_err() || FUTURE_KEYWORDS.contains(&name) {
            "it is a keyword of Rust"
        } else if RESERVED.contains(&name) {
            "this workspace or Cargo uses it already"
        } else if WINDOWS.contains(&name) {
            "Windows allows no file of that name"
        } else {
            return Ok(());
        };
        Err(format!("`{name}` cannot be a recipe's name: {why}").into())
    }
}

/// Words that are no keywords everywhere, and read as such.
const FUTURE_KEYWORDS: &[&str] = &["auto", "default", "gen", "macro_rules", "raw", "safe", "union"];

/// Packages, folders and binaries here; crates of the standard library; folders in which
/// Cargo puts binaries; names that would shadow what every recipe uses.
const RESERVED: &[&str] = &[
    "alloc",
    "bench",
    "bin",
    "build",
    "common",
    "config",
    "core",
    "deps",
    "examples",
    "fixtures",
    "incremental",
    "lib",
    "main",
    "proc_macro",
    "python",
    "recipe",
    "recipes",
    "std",
    "test",
    "tests",
    "tune",
    "tune_config",
    "tune_core",
    "tune_macros",
    "tune_yaml",
    "ui",
    "xtask",
];

const WINDOWS: &[&str] = &[
    "aux", "com1", "com2", "com3", "com4", "com5", "com6", "com7", "com8", "com9", "con", "lpt1", "lpt2", "lpt3",
    "lpt4", "lpt5", "lpt6", "lpt7", "lpt8", "lpt9", "nul", "prn",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_cases_give_the_same_name() {
        let name = Name::parse("my-second_dpo2").unwrap();
        assert_eq!((name.snake.as_str(), name.camel.as_str()), ("my_second_dpo2", "MySecondDpo2"));
        assert_eq!(Name::parse("my_second-dpo2").unwrap(), name);
        name.check_free().unwrap();
    }

    #[test]
    fn bad_names_are_refused_with_the_reason() {
        let too_long = "a".repeat(51);
        for (name, why) in [
            ("", "1 to 50 letters"),
            (too_long.as_str(), "1 to 50 letters"),
            ("2nd", "begin with a small letter"),
            ("_x", "begin with a small letter"),
            ("../x", "begin with a small letter"),
            ("Lora", "begin with a small letter"),
            ("été", "begin with a small letter"),
            ("loRa", "`R` is none of"),
            ("a/b", "`/` is none of"),
            ("a.b", "`.` is none of"),
            ("a b", "` ` is none of"),
            ("naïve", "`ï` is none of"),
            ("a--b", "separates two words"),
            ("a_", "separates two words"),
            ("fn", "keyword"),
            ("self", "keyword"),
            ("try", "keyword"),
            ("async", "keyword"),
            ("gen", "keyword"),
            ("tune", "uses it already"),
            ("main", "uses it already"),
            ("test", "uses it already"),
            ("tune-core", "uses it already"),
            ("con", "Windows"),
        ] {
            let error = Name::parse(name).and_then(|n| n.check_free()).unwrap_err().to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
    }
}
