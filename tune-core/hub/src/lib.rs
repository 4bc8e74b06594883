//! Models and datasets from the Hugging Face hub.
//!
//! Files go into the cache that Python's `huggingface_hub` uses, in its layout, so that neither downloads what the
//! other has. A download that breaks off goes on where it was, in this run or the next, and a file is in the cache
//! only whole: of the size and with the hash that the hub states. What another program has put there is checked once.
//!
//! The client is our own, on `ureq`: the crate `hf-hub` 1.0 cannot resume a download and brings an asynchronous
//! runtime and a second C library for TLS along.

mod cache;
mod download;
mod error;
mod hash;
mod http;
mod listing;
mod plain;
mod repo;
mod room;
mod snapshot;

pub use error::{Error, Result};
pub use listing::{File, Listing};
pub use plain::plain;
pub use repo::{Kind, Location, Repo, SCHEME};
pub use snapshot::Selection;

use std::path::{Path, PathBuf};
use std::time::Duration;

/// The hub, and the cache on this machine.
#[derive(Debug, Clone)]
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    cache: PathBuf,
    /// Where it is noted which contents of the cache were checked; the cache itself may be one that cannot be written.
    notes: Option<PathBuf>,
    offline: bool,
    agent: ureq::Agent,
    /// Before the first repetition of a request.
    pause: Duration,
}

/// What happens during a download.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A file begins, or goes on after `done` of its `size` bytes.
    Begin {
        /// Its path in the repository.
        file: &'a str,
        /// All of it, in bytes.
        size: u64,
        /// What is there already.
        done: u64,
    },
    /// So many bytes more of it are there.
    Bytes(u64),
    /// The file is there, whole.
    End,
    /// Something that a person should know.
    Note(&'a str),
}

impl Hub {
    /// As the environment has it, with the variables of `huggingface_hub`: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`,
    /// `HF_HUB_CACHE`, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// Nothing says where the cache is, or it is not clear whether the hub may be asked.
    pub fn from_env() -> Result<Self> {
        let endpoint = cache::variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let offline = is_offline(cache::variable("HF_HUB_OFFLINE").as_deref())?;
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: cache::token(),
            cache: cache::folder()?,
            notes: cache::notes(),
            offline,
            agent: http::agent(),
            pause: Duration::from_secs(1),
        })
    }

    /// Another server, such as `http://localhost:8080`.
    #[must_use]
    pub fn endpoint(mut self, url: &str) -> Self {
        self.endpoint = url.trim_end_matches('/').to_owned();
        self
    }

    /// The token that says who asks.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The cache's folder.
    pub fn folder(&self) -> &Path {
        &self.cache
    }

    /// Another cache.
    #[must_use]
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = folder.into();
        self
    }

    /// Another folder for notes of which contents of the cache were checked.
    #[must_use]
    pub fn notes(mut self, folder: impl Into<PathBuf>) -> Self {
        self.notes = Some(folder.into());
        self
    }

    /// Whether only the cache is asked.
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// How long to wait before a request is repeated the first time; then twice as long, and so on.
    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }
}

/// Whether the hub is not to be asked, by what `HF_HUB_OFFLINE` says. `huggingface_hub` takes what it does not know for no; who wrote that
/// may have meant yes.
fn is_offline(said: Option<&str>) -> Result<bool> {
    let Some(said) = said else { return Ok(false) };
    let is_among = |words: [&str; 4]| words.iter().any(|word| said.eq_ignore_ascii_case(word));
    if is_among(["1", "on", "yes", "true"]) {
        return Ok(true);
    }
    match is_among(["0", "off", "no", "false"]) {
        true => Ok(false),
        false => Err(Error::Refused(format!(
            "HF_HUB_OFFLINE={said}: 1 was expected, where the hub is not to be asked, or 0, or not set"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_the_hub_is_asked_is_yes_or_no() {
        for (said, expected) in
            [(None, false), (Some("1"), true), (Some("Yes"), true), (Some("0"), false), (Some("OFF"), false)]
        {
            assert_eq!(is_offline(said).unwrap(), expected, "{said:?}");
        }
        let error = is_offline(Some("y")).unwrap_err().to_string();
        assert!(error.starts_with("HF_HUB_OFFLINE=y: 1 was expected"), "{error}");
    }
}
