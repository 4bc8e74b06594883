//! A Hugging Face hub in miniature, on this machine, with the faults of real ones.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The commit that `main` is at.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server holds and how it behaves.
#[derive(Default)]
pub struct Content {
    /// By `models/org/name`.
    pub repos: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// In large-file storage: the name, and the SHA-256 that the listing states.
    pub large: BTreeMap<String, String>,
    /// Sizes that the listing states, where they are not those of the files.
    pub stated_sizes: BTreeMap<String, u64>,
    /// Git's names for contents that the listing states, where they are not those of the files.
    pub stated_blobs: BTreeMap<String, String>,
    /// The address of the storage of large files, where it is not this server by another name.
    pub storage: Option<String>,
    /// Only who has this token is shown anything.
    pub gated: Option<String>,
    /// How many bytes of a file are sent before the connection breaks, one entry a request.
    pub breaks: Vec<usize>,
    /// `Range` is not understood.
    pub ignores_range: bool,
    /// Requests that are answered by "overloaded" first.
    pub overloaded: usize,
}

/// A request, as it was made.
#[derive(Debug, Clone)]
pub struct Request {
    pub host: String,
    pub path: String,
    pub from: Option<usize>,
    pub authorization: Option<String>,
}

/// The server; it ends with the process.
pub struct Server {
    pub url: String,
    pub content: Arc<Mutex<Content>>,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(content: Content) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (content, requests) = (Arc::new(Mutex::new(content)), Arc::new(Mutex::new(Vec::new())));
        let server = Self { url, content: content.clone(), requests: requests.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(request) = read(&stream) {
                    requests.lock().unwrap().push(request.clone());
                    answer(stream, &request, &mut content.lock().unwrap());
                }
            }
        });
        server
    }

    /// What has been asked for since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut request = Request { host: String::new(), path, from: None, authorization: None };
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ")?;
        match &*name.to_ascii_lowercase() {
            "host" => request.host = value.to_owned(),
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => request.from = value.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok(),
            _ => {}
        }
    }
    Some(request)
}

fn send(mut stream: TcpStream, status: &str, headers: &str, body: &[u8], until: usize) {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body[..until.min(body.len())]);
}

fn answer(stream: TcpStream, request: &Request, content: &mut Content) {
    let text = |status: &str, headers: &str, body: &str| (status.to_owned(), headers.to_owned(), body.to_owned());
    if content.overloaded > 0 {
        content.overloaded -= 1;
        return send(stream, "503 Service Unavailable", "", b"", 0);
    }
    if let Some(file) = request.path.strip_prefix("/storage/") {
        return send_file(stream, request, file, content);
    }
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    if let Some(rest) = path.strip_prefix("/api/") {
        let (status, headers, body) = match rest.split_once("/revision/") {
            _ if content
                .gated
                .as_ref()
                .is_some_and(|token| request.authorization != Some(format!("Bearer {token}"))) =>
            {
                text("401 Unauthorized", "X-Error-Code: GatedRepo\r\n", "")
            }
            Some((repo, _)) if !content.repos.contains_key(repo) => {
                text("401 Unauthorized", "X-Error-Code: RepoNotFound\r\n", "")
            }
            Some((repo, "main")) => text("200 OK", "", &listing(repo, content)),
            Some((repo, revision)) if revision == COMMIT => text("200 OK", "", &listing(repo, content)),
            Some(_) => text("404 Not Found", "X-Error-Code: RevisionNotFound\r\n", ""),
            None if rest.ends_with("/refs") => {
                text("200 OK", "", r#"{"branches": [{"name": "main"}], "tags": [{"name": "v1.0"}]}"#)
            }
            None if query.starts_with("search=") => {
                let word = query["search=".len()..].split('&').next().unwrap();
                let found = content.repos.keys().filter_map(|key| key.strip_prefix(&format!("{rest}/")));
                let found: Vec<String> =
                    found.filter(|name| name.contains(word)).map(|name| format!("{{\"id\": \"{name}\"}}")).collect();
                text("200 OK", "", &format!("[{}]", found.join(",")))
            }
            None if content.repos.contains_key(rest) => text("200 OK", "", "{}"),
            None => text("401 Unauthorized", "", ""),
        };
        return send(stream, &status, &headers, body.as_bytes(), usize::MAX);
    }
    // `/org/name/resolve/<commit>/<file>`: large files are elsewhere, on what is another host for a client.
    let (repo, file) = path[1..].split_once(&format!("/resolve/{COMMIT}/")).unwrap();
    let kind = if repo.starts_with("datasets/") { "" } else { "models/" };
    let key = format!("{kind}{repo}/{file}");
    if content.large.contains_key(&*file.replace("%20", " ")) {
        let port = request.host.rsplit(':').next().unwrap();
        let storage = content.storage.clone().unwrap_or_else(|| format!("http://localhost:{port}"));
        let location = format!("Location: {storage}/storage/{key}\r\n");
        return send(stream, "302 Found", &location, b"", 0);
    }
    send_file(stream, request, &key, content);
}

/// `models/org/name/<file>`.
fn send_file(stream: TcpStream, request: &Request, key: &str, content: &mut Content) {
    let key = key.replace("%20", " ");
    let (repo, file) = content
        .repos
        .iter()
        .find_map(|(repo, files)| Some((repo, key.strip_prefix(&format!("{repo}/"))?.to_owned(), files)))
        .map(|(_, file, files)| (files, file))
        .unwrap();
    let body = repo[&file].clone();
    let until = if content.breaks.is_empty() { usize::MAX } else { content.breaks.remove(0) };
    match request.from {
        Some(from) if content.ignores_range || from == 0 => send(stream, "200 OK", "", &body, until),
        Some(from) if from >= body.len() => send(stream, "416 Range Not Satisfiable", "", b"", 0),
        Some(from) => {
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
            send(stream, "206 Partial Content", &range, &body[from..], until);
        }
        None => send(stream, "200 OK", "", &body, until),
    }
}

/// What git calls these contents.
pub fn git_blob(bytes: &[u8]) -> String {
    use sha1::Digest;
    let hash = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn listing(repo: &str, content: &Content) -> String {
    let files = content.repos[repo].iter().map(|(name, bytes)| {
        let size = content.stated_sizes.get(name).copied().unwrap_or(bytes.len() as u64);
        let lfs = content.large.get(name).map(|sha256| format!(r#", "lfs": {{"sha256": "{sha256}"}}"#));
        let stated = content.stated_blobs.get(name).cloned();
        let blob = stated.unwrap_or_else(|| git_blob(bytes));
        let name = serde_json::to_string(name).unwrap();
        let lfs = lfs.unwrap_or_default();
        format!(r#"{{"rfilename": {name}, "size": {size}, "blobId": "{blob}"{lfs}}}"#)
    });
    format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, files.collect::<Vec<_>>().join(","))
}
