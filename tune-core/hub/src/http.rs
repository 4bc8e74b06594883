//! Requests, and what their failures mean.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::{Error, Hub, Result};

/// In a part of a path, everything else is escaped.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// How often a request is made.
const TRIES: u32 = 4;

pub(crate) fn agent() -> Agent {
    let config = Agent::config_builder()
        .user_agent(concat!("tune/", env!("CARGO_PKG_VERSION")))
        // What a status means is said below.
        .http_status_as_error(false)
        // The hub sends on to its storage, which is another host: no token for that one.
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .build();
    Agent::new_with_config(config)
}

/// A path with what is special in addresses escaped, slashes kept.
pub(crate) fn path(text: &str) -> String {
    text.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// One part of a path, slashes escaped.
pub(crate) fn part(text: &str) -> String {
    utf8_percent_encode(text, PART).to_string()
}

impl Hub {
    /// The server without what goes before and after.
    pub(crate) fn host(&self) -> &str {
        let rest = self.endpoint.split_once("://").map_or(&*self.endpoint, |(_, rest)| rest);
        rest.split('/').next().unwrap_or(rest)
    }

    /// Asks for `path` of the hub, from byte `from` on; again where the server is overloaded.
    ///
    /// # Errors
    /// It does not answer. A status that is no success is an answer.
    pub(crate) fn get(&self, path: &str, from: u64) -> Result<Response<Body>> {
        let url = format!("{}/{path}", self.endpoint);
        let mut tried = 1;
        loop {
            let mut request = self.agent.get(&url);
            if let Some(token) = &self.token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let answer = request.call();
            let again = match &answer {
                Ok(response) => response.status() == 429 || response.status().is_server_error(),
                Err(error) => matches!(error, ureq::Error::Io(e) if e.kind() != std::io::ErrorKind::ConnectionRefused),
            };
            if !again || tried == TRIES {
                return answer.map_err(|error| self.failure(&error));
            }
            std::thread::sleep(self.pause * 2u32.pow(tried - 1));
            tried += 1;
        }
    }

    /// The JSON at `path`.
    ///
    /// # Errors
    /// `refused` says what a status means; and where the answer is not what it should be.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        refused: impl FnOnce(&Response<Body>) -> Error,
    ) -> Result<T> {
        let mut response = self.get(path, 0)?;
        if !response.status().is_success() {
            return Err(refused(&response));
        }
        let text = response.body_mut().with_config().limit(256 << 20).read_to_vec().map_err(|e| self.failure(&e))?;
        let wrong =
            |error| Error::Refused(format!("{} does not answer as the Hugging Face hub does: {error}", self.host()));
        serde_json::from_slice(&text).map_err(wrong)
    }

    fn failure(&self, error: &ureq::Error) -> Error {
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                Error::Refused(format!("`{}` is no address of a server: {error}", self.endpoint))
            }
            ureq::Error::HostNotFound => {
                Error::Unreachable { host: self.host().to_owned(), why: "its name cannot be resolved".to_owned() }
            }
            ureq::Error::Io(error) => Error::Unreachable { host: self.host().to_owned(), why: error.to_string() },
            error => Error::Unreachable { host: self.host().to_owned(), why: error.to_string() },
        }
    }
}

/// A header as text.
pub(crate) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}
