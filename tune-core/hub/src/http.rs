//! Requests, and what their failures mean.

use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

use crate::{Error, Hub, Result};

/// In a part of a path, everything else is escaped.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// How often a request is made.
const TRIES: u32 = 4;

/// How often in a row a server may send on to another address.
const REDIRECTS: u32 = 10;

pub(crate) fn agent() -> Agent {
    let config = Agent::config_builder()
        .user_agent(concat!("tune/", env!("CARGO_PKG_VERSION")))
        // What a status means is said below.
        .http_status_as_error(false)
        // The hub sends on to its storage, which is to get no token: followed below.
        .max_redirects(0)
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
        let server = rest.split('/').next().unwrap_or(rest);
        // What stands before it is a name and a password.
        server.rsplit_once('@').map_or(server, |(_, server)| server)
    }

    /// The address of the hub, without a name and a password.
    pub(crate) fn shown_endpoint(&self) -> String {
        self.without_password(&self.endpoint)
    }

    /// `text` without the name and the password that the address of the hub may have.
    fn without_password(&self, text: &str) -> String {
        let rest = self.endpoint.split_once("://").map_or(&*self.endpoint, |(_, rest)| rest);
        let server = rest.split('/').next().unwrap_or(rest);
        match server.rsplit_once('@') {
            Some((who, _)) => text.replace(&format!("{who}@"), ""),
            None => text.to_owned(),
        }
    }

    /// Asks for `path` of the hub, from byte `from` on; again where the server is overloaded.
    ///
    /// # Errors
    /// It does not answer. A status that is no success is an answer.
    pub(crate) fn get(&self, path: &str, from: u64) -> Result<Response<Body>> {
        let url = format!("{}/{path}", self.endpoint);
        let (mut tried, mut followed) = (1, 0);
        let mut to = url.clone();
        loop {
            let mut request = self.agent.get(&to);
            if let Some(token) = self.token.as_ref().filter(|_| origin(&to) == origin(&url)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let answer = request.call();
            if let Ok(response) = &answer
                && response.status().is_redirection()
                && let Some(next) = header(response, "location").and_then(|location| resolve(&to, location))
            {
                followed += 1;
                if followed > REDIRECTS {
                    return Err(Error::Refused(format!(
                        "{} sends from one address to the next, without end",
                        self.host()
                    )));
                }
                to = next;
                continue;
            }
            let again = match &answer {
                Ok(response) => response.status() == 429 || response.status().is_server_error(),
                Err(error) => matches!(error, ureq::Error::Io(e) if e.kind() != std::io::ErrorKind::ConnectionRefused),
            };
            if !again || tried == TRIES {
                return answer.map_err(|error| self.failure(&error));
            }
            std::thread::sleep(self.pause * 2u32.pow(tried - 1));
            tried += 1;
            // An address of the storage is good for a while only.
            (to, followed) = (url.clone(), 0);
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
                let why = self.without_password(&error.to_string());
                Error::Refused(format!("`{}` is no address of a server: {why}", self.shown_endpoint()))
            }
            ureq::Error::HostNotFound => {
                Error::Unreachable { host: self.host().to_owned(), why: "its name cannot be resolved".to_owned() }
            }
            ureq::Error::Io(error) => Error::Unreachable { host: self.host().to_owned(), why: error.to_string() },
            error => {
                Error::Unreachable { host: self.host().to_owned(), why: self.without_password(&error.to_string()) }
            }
        }
    }
}

/// The parts of an address that say who answers: protocol, server and port.
fn origin(address: &str) -> Option<(String, String, u16)> {
    let uri: Uri = address.parse().ok()?;
    let protocol = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if protocol == "https" { 443 } else { 80 });
    Some((protocol, uri.host()?.to_ascii_lowercase(), port))
}

/// The address that a `location` means, as an answer from `address` has it.
fn resolve(address: &str, location: &str) -> Option<String> {
    let protocol_end = address.find("://")? + 3;
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    if location.starts_with("//") {
        return Some(format!("{}:{location}", &address[..protocol_end - 3]));
    }
    let server_end = address[protocol_end..].find('/').map_or(address.len(), |end| protocol_end + end);
    if location.starts_with('/') {
        return Some(format!("{}{location}", &address[..server_end]));
    }
    let path = address.split(['?', '#']).next()?;
    let folder_end = path.rfind('/').filter(|&end| end >= server_end).map_or(server_end, |end| end);
    Some(format!("{}/{location}", &address[..folder_end]))
}

/// A header as text.
pub(crate) fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}
