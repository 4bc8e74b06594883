//! Names: `hf://org/name@revision/path`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// What a name on the hub begins with.
pub const SCHEME: &str = "hf://";

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A model.
    Model,
    /// A dataset.
    Dataset,
}

impl Kind {
    /// In the addresses of the hub.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        })
    }
}

/// A repository at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repo {
    /// What it holds.
    pub kind: Kind,
    /// `org/name`.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
}

impl Repo {
    /// `org/name`, or `org/name@revision`.
    ///
    /// # Errors
    /// It is no such name.
    pub fn new(kind: Kind, name: &str) -> Result<Self> {
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
        };
        // A revision may be a branch with slashes, but leads nowhere else.
        let is_revision = revision.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        let parts: Vec<&str> = name.split('/').collect();
        // The oldest models have no organization.
        if parts.len() > 2 || !parts.into_iter().all(plain) || !is_revision {
            let revision = if revision == "main" { String::new() } else { format!("@{revision}") };
            return Err(Error::Refused(format!(
                "`{name}{revision}` is no name on the Hugging Face hub: those are `org/name` or `org/name@revision`"
            )));
        }
        Ok(Self { kind, name: name.to_owned(), revision: revision.to_owned() })
    }

    /// The folder in the cache.
    pub(crate) fn folder(&self) -> String {
        format!("{}--{}", self.kind.plural(), self.name.replace('/', "--"))
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// A repository, or a file or folder in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// Where it is.
    pub repo: Repo,
    /// The file or folder; all of it where there is none.
    pub path: Option<String>,
}

impl Location {
    /// `hf://org/name[@revision][/path]`; `hf://datasets/` and `hf://models/` say what it is, else it is a `kind`.
    /// A revision with a slash has it as `%2F`. `None` where `text` does not begin with `hf://`.
    ///
    /// # Errors
    /// It begins so and goes on otherwise.
    pub fn parse(text: &str, kind: Kind) -> Option<Result<Self>> {
        let rest = text.strip_prefix(SCHEME)?;
        let (kind, rest) = match rest.split_once('/') {
            Some(("datasets", rest)) => (Kind::Dataset, rest),
            Some(("models", rest)) => (Kind::Model, rest),
            _ => (kind, rest),
        };
        // A folder may be named with a slash behind it.
        let inside = rest.strip_suffix('/').filter(|rest| rest.contains('/')).unwrap_or(rest);
        let leads_elsewhere = |part: &str| part.is_empty() || part == "." || part == "..";
        if inside.split('/').any(leads_elsewhere) {
            return Some(Err(Error::Refused(format!(
                "`{text}` has a part that is empty or no name; on the Hugging Face hub names are `{SCHEME}org/name`, \
                 `{SCHEME}org/name@revision` or `{SCHEME}org/name/path`"
            ))));
        }
        let mut parts = inside.splitn(3, '/');
        let org = parts.next().unwrap_or_default();
        let name = parts.next().map_or_else(|| org.to_owned(), |name| format!("{org}/{name}"));
        let path = parts.next().map(str::to_owned);
        let repo = Repo::new(kind, &name.replace("%2F", "/")).or_else(|error| match name.split_once('@') {
            // Only the revision may have it.
            Some((name, revision)) if !name.contains("%2F") => {
                Repo::new(kind, &format!("{name}@{}", revision.replace("%2F", "/")))
            }
            _ => Err(error),
        });
        Some(repo.map(|repo| Self { repo, path }))
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "model" | "models" => Ok(Self::Model),
            "dataset" | "datasets" => Ok(Self::Dataset),
            _ => Err(format!("`{text}` is neither `model` nor `dataset`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_what_is_none() {
        let parse = |text| Location::parse(text, Kind::Model).map(|found| found.map_err(|e| e.to_string()));
        let location = parse("hf://org/name@v1/sub/model.gguf").unwrap().unwrap();
        assert_eq!((&*location.repo.name, &*location.repo.revision), ("org/name", "v1"));
        assert_eq!(location.path.as_deref(), Some("sub/model.gguf"));
        assert_eq!(location.repo.folder(), "models--org--name");
        let location = parse("hf://datasets/org/name@refs%2Fconvert").unwrap().unwrap();
        assert_eq!((location.repo.kind, &*location.repo.revision), (Kind::Dataset, "refs/convert"));
        assert_eq!(parse("hf://gpt2").unwrap().unwrap().repo.name, "gpt2");
        assert!(parse("models/gpt2").is_none());
        assert_eq!(parse("hf://org/name/sub/").unwrap().unwrap().path.as_deref(), Some("sub"));
        assert_eq!(parse("hf://org/name/").unwrap().unwrap().path, None);
        for bad in [
            "hf://",
            "hf:///",
            "hf://org/",
            "hf://../name",
            "hf://org/na me",
            "hf://org/name@",
            "hf://org/name@..%2Fx",
            "hf://a//b",
            "hf://org/name//x",
            "hf://org/name/a//b",
            "hf://org/name/../x",
            "hf://org/name/a/.",
            "hf:////",
            "hf://datasets/",
            "hf://datasets/org/",
            "hf://org/name//",
        ] {
            assert!(parse(bad).unwrap().is_err_and(|e| e.contains("org/name@revision")), "{bad}");
        }
    }
}
