//! Against a server on this machine.

#![allow(clippy::unwrap_used)]

#[path = "../../../tests/common/hub_server.rs"]
mod hub_server;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hub_server::{COMMIT, Content, Server};
use tempfile::TempDir;
use tune_hub::{Event, Hub, Kind, Repo, Selection};

const CONFIG: &str = "{\"model_type\": \"llama\"}";

fn weights() -> Vec<u8> {
    (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// Of `weights`, by `sha256sum`.
const SHA256: &str = "6899be7bb4c845a914bb47265b1124653015b95fe6fd02aaa9c2a7241392b9a6";

fn content() -> Content {
    let files: BTreeMap<String, Vec<u8>> = [
        ("config.json", CONFIG.as_bytes().to_vec()),
        ("model.safetensors", weights()),
        ("sub folder/notes.txt", b"a name with a blank".to_vec()),
        (".gitkeep", Vec::new()),
    ]
    .into_iter()
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .collect();
    Content {
        repos: [("models/org/tiny".to_owned(), files)].into(),
        large: [("model.safetensors".to_owned(), SHA256.to_owned())].into(),
        ..Content::default()
    }
}

struct Setting {
    server: Server,
    cache: TempDir,
    notes: TempDir,
    hub: Hub,
}

fn setting(content: Content) -> Setting {
    let (server, cache, notes) = (Server::start(content), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = Hub::from_env()
        .unwrap()
        .endpoint(&server.url)
        .cache(cache.path())
        .notes(notes.path())
        .offline(false)
        .token("hf_secret")
        .pause(Duration::from_millis(1));
    Setting { server, cache, notes, hub }
}

fn tiny() -> Repo {
    Repo::new(Kind::Model, "org/tiny").unwrap()
}

fn download(hub: &Hub, repo: &Repo, include: &[&str]) -> Result<(PathBuf, Vec<String>), String> {
    let selection = Selection::new(include, &[]).unwrap();
    let mut events = Vec::new();
    let mut note = |event: Event<'_>| match event {
        Event::Begin { file, done, .. } => events.push(format!("{file} from {done}")),
        Event::Note(note) => events.push(note.to_owned()),
        _ => {}
    };
    let folder = hub.snapshot(repo, |listing| selection.of(listing, repo), &mut note);
    folder.map(|folder| (folder, events)).map_err(|error| error.to_string())
}

#[test]
fn files_come_into_the_layout_of_huggingface_hub_and_only_once() {
    let Setting { server, cache, hub, notes: _notes } = setting(content());
    let (folder, _) = download(&hub, &tiny(), &[]).unwrap();
    assert_eq!(folder, cache.path().join("models--org--tiny/snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(folder.join("config.json")).unwrap(), CONFIG);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read_to_string(folder.join("sub folder/notes.txt")).unwrap(), "a name with a blank");
    assert_eq!(fs::read(folder.join(".gitkeep")).unwrap(), b"");
    assert_eq!(fs::read_to_string(cache.path().join("models--org--tiny/refs/main")).unwrap(), COMMIT);
    let blobs = cache.path().join("models--org--tiny/blobs");
    assert_eq!(fs::read(blobs.join(SHA256)).unwrap(), weights());
    assert!(fs::read_dir(blobs).unwrap().all(|entry| entry.unwrap().path().extension().is_none()));

    // The storage is another host: the token is not for it.
    let requests = server.requests();
    let (storage, own): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.path.starts_with("/storage"));
    assert_eq!(storage.len(), 1);
    assert!(storage.iter().all(|request| request.authorization.is_none()), "{storage:?}");
    assert!(own.iter().all(|request| request.authorization.as_deref() == Some("Bearer hf_secret")), "{own:?}");

    let (again, events) = download(&hub, &tiny(), &[]).unwrap();
    assert_eq!((again, events.len(), server.requests().len()), (folder.clone(), 0, 1));
    // The cache alone.
    let (offline, _) = download(&hub.offline(true), &tiny(), &[]).unwrap();
    assert_eq!((offline, server.requests().len()), (folder, 0));
}

#[test]
fn a_broken_download_goes_on_where_it_was() {
    let Setting { server, hub, cache, notes: _notes } = setting(Content { breaks: vec![100_000, 50_000], ..content() });
    let (folder, _) = download(&hub, &tiny(), &["*.safetensors"]).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    let from: Vec<_> = server.requests().iter().filter(|r| r.path.starts_with("/storage")).map(|r| r.from).collect();
    assert_eq!(from, [None, Some(100_000), Some(150_000)]);

    // In another run, too; and where the server has to begin anew.
    for ignores_range in [false, true] {
        fs::remove_dir_all(cache.path().join("models--org--tiny")).unwrap();
        *server.content.lock().unwrap() = Content { breaks: vec![70_000, 0, 0, 0], ..content() };
        let error = download(&hub, &tiny(), &["*.safetensors"]).unwrap_err();
        assert!(error.contains("model.safetensors goes on from byte 70000 next time"), "{error}");
        *server.content.lock().unwrap() = Content { ignores_range, ..content() };
        server.requests();
        let (folder, events) = download(&hub, &tiny(), &["*.safetensors"]).unwrap();
        assert_eq!(events[0], "model.safetensors from 70000");
        assert_eq!(server.requests().last().unwrap().from, Some(70_000));
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights());
    }
}

#[test]
fn what_is_not_as_promised_is_not_kept() {
    let wrong_hash = [("model.safetensors".to_owned(), "ab".repeat(32))];
    for (content, said) in [
        (Content { large: wrong_hash.into(), ..content() }, "model.safetensors of org/tiny was damaged on its way"),
        (
            Content { stated_sizes: [("model.safetensors".to_owned(), 400_001)].into(), ..content() },
            "but it sends less",
        ),
        (
            Content { stated_sizes: [("model.safetensors".to_owned(), 399_999)].into(), ..content() },
            "but it sends more",
        ),
    ] {
        let Setting { hub, server: _server, .. } = setting(content);
        let error = download(&hub, &tiny(), &["*.safetensors"]).unwrap_err();
        assert!(error.contains(said), "{error}");
        assert!(hub.cached(&tiny()).is_none_or(|folder| !folder.join("model.safetensors").exists()));
    }
}

#[test]
fn a_refusal_says_what_to_do() {
    let Setting { server, hub, .. } = setting(content());
    let fail = |hub: &Hub, kind, name: &str| download(hub, &Repo::new(kind, name).unwrap(), &[]).unwrap_err();
    let error = fail(&hub, Kind::Model, "org/tinny");
    assert!(error.contains("has no model org/tinny") && error.ends_with("did you mean `org/tiny`?"), "{error}");
    let error = fail(&hub, Kind::Dataset, "org/tiny");
    assert!(error.ends_with("there is a model of that name: `--repo-type model`"), "{error}");
    let error = fail(&hub, Kind::Model, "org/tiny@v1.1");
    assert!(error.ends_with("has no revision `v1.1`; did you mean `v1.0`?"), "{error}");
    let error = download(&hub, &tiny(), &["model.safetensor"]).unwrap_err();
    assert!(error.ends_with("did you mean `model.safetensors`?"), "{error}");
    let error = download(&hub, &tiny(), &["*.gguf"]).unwrap_err();
    assert!(error.contains("it has .gitkeep, config.json, model.safetensors"), "{error}");

    server.content.lock().unwrap().gated = Some("hf_right".to_owned());
    let error = fail(&hub, Kind::Model, "org/tiny");
    assert!(error.contains("the account of this token has no access: ask for it at http"), "{error}");
    let (folder, _) = download(&hub.token("hf_right"), &tiny(), &["config.json"]).unwrap();
    assert!(folder.join("config.json").exists());
}

#[test]
fn a_hub_that_is_away_is_not_needed_for_what_the_cache_has() {
    let Setting { server, hub, .. } = setting(Content { overloaded: 2, ..content() });
    // Overloaded is not away.
    let (folder, _) = download(&hub, &tiny(), &["config.json"]).unwrap();
    assert_eq!(server.requests().len(), 4);
    // A port that nothing listens on.
    let away = hub.endpoint("http://127.0.0.1:9");
    let (cached, events) = download(&away, &tiny(), &[]).unwrap();
    assert_eq!(cached, folder);
    assert!(events[0].contains("127.0.0.1:9 cannot be reached") && events[0].contains("from the cache"), "{events:?}");
    let other = Repo::new(Kind::Model, "org/other").unwrap();
    let error = download(&away, &other, &[]).unwrap_err();
    assert!(error.contains("127.0.0.1:9 cannot be reached"), "{error}");
    let error = download(&away.offline(true), &other, &[]).unwrap_err();
    assert!(error.contains("org/other is not in the cache") && error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn what_the_server_says_does_not_reach_other_folders() {
    let mut content = content();
    let files = content.repos.get_mut("models/org/tiny").unwrap();
    files.insert("../../outside".to_owned(), b"x".to_vec());
    let Setting { hub, cache, server: _server, notes: _notes } = setting(content);
    let error = download(&hub, &tiny(), &[]).unwrap_err();
    assert!(error.contains("`../../outside`"), "{error}");
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn every_file_is_checked_by_its_hash() {
    // A small one, whose only hash is git's name for it.
    let stated_blobs = [("config.json".to_owned(), "ab".repeat(20))];
    let Setting { hub, cache, server: _server, notes: _notes } =
        setting(Content { stated_blobs: stated_blobs.into(), ..content() });
    let error = download(&hub, &tiny(), &["config.json"]).unwrap_err();
    let found = hub_server::git_blob(CONFIG.as_bytes());
    let expected = format!("config.json of org/tiny was damaged on its way (git's SHA-1 {found} instead of abab");
    assert!(error.starts_with(&expected), "{error}");
    let blobs = cache.path().join("models--org--tiny/blobs");
    assert_eq!(fs::read_dir(blobs).unwrap().count(), 0);

    // Git says so of it: `printf 'hello\n' | git hash-object --stdin`.
    assert_eq!(hub_server::git_blob(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");

    // A part that holds something else, as of another file, is no beginning of this one.
    let Setting { hub, cache, server: _server, notes: _notes } = setting(content());
    let blobs = cache.path().join("models--org--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{}.part", hub_server::git_blob(CONFIG.as_bytes()))), "{\"model").unwrap();
    fs::write(blobs.join(format!("{SHA256}.part")), [0; 1000]).unwrap();
    download(&hub, &tiny(), &["config.json"]).unwrap();
    let error = download(&hub, &tiny(), &["*.safetensors"]).unwrap_err();
    assert!(error.contains("was damaged on its way (SHA-256 "), "{error}");
    download(&hub, &tiny(), &["*.safetensors"]).unwrap();
}

#[test]
fn what_a_power_cut_left_in_the_cache_is_fetched_again() {
    let Setting { server, hub, cache, notes } = setting(content());
    let repo = cache.path().join("models--org--tiny");
    let noted = || fs::read_dir(notes.path()).unwrap().map(|note| note.unwrap().path()).collect::<Vec<_>>();
    let names = ["config.json", "model.safetensors"];
    let (folder, _) = download(&hub, &tiny(), &names).unwrap();
    assert_eq!(noted().len(), 2);
    // The cache has what `huggingface_hub` puts there, and nothing else.
    assert_eq!(fs::read_dir(&repo).unwrap().count(), 3);
    for name in names {
        let blob = fs::canonicalize(folder.join(name)).unwrap();
        let whole = fs::read(&blob).unwrap();
        fs::write(&blob, vec![0; whole.len()]).unwrap();
        // As by another program, which keeps no account.
        noted().iter().for_each(|note| fs::remove_file(note).unwrap());
        let error = download(&hub.clone().offline(true), &tiny(), &[name]).unwrap_err();
        assert!(error.starts_with(&format!("{name} of org/tiny is damaged in the cache (")), "{error}");
        let away = hub.clone().endpoint("http://127.0.0.1:9");
        assert!(download(&away, &tiny(), &[name]).unwrap_err().contains("is damaged in the cache"));
        let (_, events) = download(&hub, &tiny(), &names).unwrap();
        assert!(events[0].starts_with(&format!("{name} is damaged in the cache (")), "{events:?}");
        assert_eq!(fs::read(&blob).unwrap(), whole);
    }
    // Checked once: what is whole is left alone, and not read again.
    server.requests();
    let (_, events) = download(&hub, &tiny(), &names).unwrap();
    assert_eq!((events.len(), server.requests().len()), (0, 1));

    // A branch that is at no commit is none.
    fs::write(repo.join("refs/main"), "").unwrap();
    assert_eq!(hub.cached(&tiny()), None);
    download(&hub, &tiny(), &names).unwrap();
    assert_eq!(hub.cached(&tiny()), Some(folder));
}

#[cfg(unix)]
#[test]
fn what_does_not_fit_the_disk_is_refused_before_it_is_fetched() {
    let stated_sizes = [("model.safetensors".to_owned(), 1 << 60)];
    let Setting { hub, server, .. } = setting(Content { stated_sizes: stated_sizes.into(), ..content() });
    let error = download(&hub, &tiny(), &[]).unwrap_err();
    assert!(
        error.starts_with("the download takes 1152921504.6 GB, and ") && error.contains(" free; HF_HUB_CACHE"),
        "{error}"
    );
    assert_eq!(server.requests().len(), 1, "only the listing was asked for");
}

#[test]
fn a_token_is_for_the_hub_alone() {
    let storage = Server::start(content());
    // The same host, and another port.
    let Setting { hub, server, .. } = setting(Content { storage: Some(storage.url.clone()), ..content() });
    download(&hub, &tiny(), &["*.safetensors"]).unwrap();
    let sent: Vec<_> = storage.requests().into_iter().map(|request| request.authorization).collect();
    assert_eq!(sent, [None]);
    assert!(server.requests().iter().all(|request| request.authorization.as_deref() == Some("Bearer hf_secret")));
}

#[test]
fn a_password_in_the_address_of_the_hub_is_not_shown() {
    let Setting { hub, server, .. } = setting(content());
    let errors = |endpoint: &str| {
        let hub = hub.clone().endpoint(endpoint);
        let other = Repo::new(Kind::Model, "org/other").unwrap();
        download(&hub, &other, &[]).unwrap_err()
    };
    for error in [
        errors("http://me:pass-word@127.0.0.1:9"),
        errors("http://me:pass-word@no host"),
        errors(&server.url.replace("http://", "http://me:pass-word@")),
        errors("http://me:pass-word@127.0.0.1:99999"),
    ] {
        assert!(!error.contains("pass-word") && !error.contains("me:"), "{error}");
        assert!(error.contains("127.0.0.1:") || error.contains("no host"), "{error}");
    }
}

#[test]
fn names_from_elsewhere_do_not_reach_the_terminal_as_they_are() {
    let mut content = content();
    let files = content.repos.get_mut("models/org/tiny").unwrap();
    files.insert("a\u{1b}[2J\u{202e}.json".to_owned(), b"x".to_vec());
    let Setting { hub, server: _server, .. } = setting(content);
    let error = download(&hub, &tiny(), &["*.gguf"]).unwrap_err();
    assert!(error.contains(r"a\u{1b}[2J\u{202e}.json") && !error.contains('\u{1b}'), "{error}");
}
