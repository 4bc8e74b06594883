//! `hf://org/name[@revision][/path]` wherever a model, an adapter or a dataset is named: from the cache that Python's
//! `huggingface_hub` uses, downloaded into it where that lacks it.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tune_hub::{File, Listing, Location};

pub use tune_hub::{Event, Hub, Kind, Repo, SCHEME, Selection};

use crate::data::{self, EXTENSIONS};
use crate::{Error, Result};

type Watcher = Box<dyn FnMut(Event<'_>) + Send>;

static WATCHER: Mutex<Option<Watcher>> = Mutex::new(None);

/// Tells `watcher` of every download from now on, such as [`Downloads`](crate::metrics::Downloads).
pub fn watch(watcher: impl FnMut(Event<'_>) + Send + 'static) {
    *WATCHER.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(watcher));
}

impl From<tune_hub::Error> for Error {
    fn from(error: tune_hub::Error) -> Self {
        Self::setup(error.to_string())
    }
}

/// The folder, or the GGUF file, of a model or an adapter; a path that is none of the hub's is what it was.
///
/// Of a repository, what makes a model: its JSON files, weights in safetensors (else its one GGUF file) and the
/// tokenizer. `files` are weight files that are wanted besides.
///
/// # Errors
/// The hub and the cache have no such thing, or the download fails.
pub fn model<'a>(path: &'a Path, files: &[String]) -> Result<Cow<'a, Path>> {
    let Some(location) = location(path, Kind::Model)? else { return here(path, "model or adapter") };
    let inside = location.path.as_deref();
    snapshot(&location, |listing| match of_model(listing, inside, files) {
        chosen if chosen.iter().any(|file| is_weights(&file.name)) => Ok(chosen),
        _ => Err(no_model(listing, &location)),
    })
}

/// The file, or the folder with the data files, of a dataset; a path that is none of the hub's is what it was.
///
/// # Errors
/// As [`model`]; and where a repository has data in several folders, of which one is to be named.
pub fn dataset(path: &Path) -> Result<Cow<'_, Path>> {
    let Some(location) = location(path, Kind::Dataset)? else { return here(path, "dataset") };
    let inside = location.path.as_deref();
    let found = snapshot(&location, |listing| {
        let is_inside = |name: &str| inside.is_none_or(|inside| Path::new(name).starts_with(inside));
        let data = |file: &&File| is_inside(&file.name) && (is_data(&file.name) || inside == Some(&file.name));
        let all: Vec<&File> = listing.files.iter().filter(data).collect();
        match all.is_empty() {
            false => Ok(all),
            true => Err(tune_hub::Error::Refused(format!("{} has no data file ({EXTENSIONS})", path.display()))),
        }
    })?;
    let folders = data_folders(&found);
    match folders.as_slice() {
        [] => Ok(found),
        [one] => Ok(one.clone().into()),
        _ if folders.contains(&found.to_path_buf()) => Ok(found),
        several => {
            let name = |folder: &PathBuf| folder.strip_prefix(&found).unwrap_or(folder).display().to_string();
            let names: Vec<String> = several.iter().map(name).collect();
            Err(Error::setup(format!(
                "{} has data in several folders: name one, such as {0}/{}; there are {}",
                path.display(),
                names[0],
                names.join(", ")
            )))
        }
    }
}

/// What the hub calls a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `org/name`.
    pub name: String,
    /// The branch, tag or commit; `None` for `main`.
    pub revision: Option<String>,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at revision {}", self.name, self.revision.as_deref().unwrap_or("main"))
    }
}

/// What the hub calls the model that was `given` and is in `folder`: as the user named it, else as the cache has it.
/// `None` for a folder that is not from the hub.
pub fn origin(given: &Path, folder: &Path) -> Option<Origin> {
    if let Ok(Some(location)) = location(given, Kind::Model) {
        let Repo { name, revision, .. } = location.repo;
        return Some(Origin { name, revision: Some(revision).filter(|revision| revision != "main") });
    }
    in_cache(folder)
}

/// What the hub calls the model in a folder of its cache. The commit is its revision, unless it is the one that
/// `main` is at.
fn in_cache(folder: &Path) -> Option<Origin> {
    let commit = folder.ancestors().find(|path| path.parent().is_some_and(|p| p.ends_with("snapshots")))?;
    let repo = commit.parent()?.parent()?;
    let name = repo.file_name()?.to_str()?.strip_prefix("models--")?.replace("--", "/");
    let commit = commit.file_name()?.to_str()?;
    let main = fs::read_to_string(repo.join("refs/main")).unwrap_or_default();
    Some(Origin { name, revision: Some(commit.to_owned()).filter(|commit| commit != main.trim()) })
}

/// A path that is none of the hub's; one that looks like a name there is told, where nothing is at it.
fn here<'a>(path: &'a Path, what: &str) -> Result<Cow<'a, Path>> {
    match on_the_hub(path).filter(|_| !path.exists()) {
        Some(name) => {
            Err(Error::file(path, format!("does not exist; a {what} on the Hugging Face hub is written {name}")))
        }
        None => Ok(path.into()),
    }
}

/// How a path such as `org/name` would be written if it is a name on the hub; `None` where it cannot be one, or where
/// there is such a folder, or one that it would be in.
pub(crate) fn on_the_hub(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    let (org, name) = text.split_once('/')?;
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '~'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (repo, revision) = name.split_once('@').unwrap_or((name, "main"));
    (plain(org) && plain(repo) && !revision.is_empty() && !Path::new(org).exists()).then(|| format!("{SCHEME}{text}"))
}

fn location(path: &Path, kind: Kind) -> Result<Option<Location>> {
    let location = path.to_str().and_then(|text| Location::parse(text, kind));
    Ok(location.transpose()?)
}

/// Where the chosen files of a location are.
fn snapshot(
    location: &Location,
    choose: impl for<'a> FnOnce(&'a Listing) -> tune_hub::Result<Vec<&'a File>>,
) -> Result<Cow<'static, Path>> {
    let mut watcher = WATCHER.lock().unwrap_or_else(PoisonError::into_inner);
    let mut events = |event: Event<'_>| {
        if let Some(watcher) = watcher.as_mut() {
            watcher(event);
        }
    };
    let folder = Hub::from_env()?.snapshot(&location.repo, choose, &mut events)?;
    let path = location.path.as_ref().map_or(folder.clone(), |inside| folder.join(inside));
    match path.exists() {
        true => Ok(path.into()),
        // Offline, or it would have been downloaded.
        false => {
            Err(Error::file(&folder, format!("is what the cache has of {}; the rest needs the hub", location.repo)))
        }
    }
}

fn extension(name: &str) -> Option<&str> {
    Path::new(name).extension()?.to_str()
}

fn is_weights(name: &str) -> bool {
    matches!(extension(name), Some("safetensors" | "gguf"))
}

/// Of the folder itself: what is below it are the same weights in other formats.
fn of_model<'a>(listing: &'a Listing, inside: Option<&str>, files: &[String]) -> Vec<&'a File> {
    if let Some(exact) = listing.files.iter().find(|file| inside == Some(&file.name)) {
        return vec![exact];
    }
    let folder = inside.map(|inside| format!("{inside}/")).unwrap_or_default();
    let named = || listing.files.iter().filter_map(|file| Some((file, file.name.strip_prefix(&folder)?)));
    // `consolidated*` is Mistral's own copy of the same weights under other names.
    let is_safetensors =
        |name: &str| extension(name) == Some("safetensors") && !name.contains('/') && !name.starts_with("consolidated");
    let is_description = |name: &str| match extension(name) {
        Some("json" | "jinja") => !name.contains('/') || name.starts_with("chat_templates/"),
        _ => ["merges.txt", "tokenizer.model"].contains(&name),
    };
    if files.is_empty() && !named().any(|(_, name)| is_safetensors(name)) {
        let mut ggufs = named().filter(|(_, name)| extension(name) == Some("gguf") && !name.contains('/'));
        // It has its own config and tokenizer.
        if let (Some((gguf, _)), None) = (ggufs.next(), ggufs.next()) {
            return vec![gguf];
        }
    }
    let is_asked_for = |name: &str| files.iter().any(|file| file == name);
    let wanted = named().filter(|(_, name)| is_safetensors(name) || is_description(name) || is_asked_for(name));
    wanted.map(|(file, _)| file).collect()
}

fn no_model(listing: &Listing, location: &Location) -> tune_hub::Error {
    let ggufs: Vec<&str> =
        listing.files.iter().map(|file| &*file.name).filter(|name| extension(name) == Some("gguf")).collect();
    let repo = &location.repo;
    tune_hub::Error::Refused(match ggufs.first() {
        Some(first) => format!(
            "{repo} has several GGUF files: name one, such as {SCHEME}{repo}/{first}; there are {}",
            ggufs.join(", ")
        ),
        None => format!("{repo} has no weights in safetensors or GGUF; others are not read"),
    })
}

/// Whether a file holds records, and is no description of them.
fn is_data(name: &str) -> bool {
    let described = Path::new(name).file_name().is_some_and(|name| name.to_string_lossy().starts_with("dataset_info"));
    data::is_data(Path::new(name)) && !described
}

/// The folders with data files in them, in order.
fn data_folders(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().is_some_and(is_data) && !found.contains(&folder) {
                found.push(folder.clone());
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_the_hub_is_told_from_a_path() {
        let told = |path: &str| model(Path::new(path), &[]).map(|_| ()).map_err(|error| error.to_string());
        for name in ["some-org/Model-1B", "org/m@v2"] {
            let error = told(name).unwrap_err();
            assert!(error.contains(&format!("is written hf://{name}")), "{error}");
        }
        let error = dataset(Path::new("org/data")).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("a dataset on the Hugging Face hub is written hf://org/data"), "{error}");
        // Of paths it is for those who open them to say what is missing.
        for path in
            ["src/no-such-model", "./org/name", "/org/name", "org/name/more", "name", "../org/name", "~/name", "a b/c"]
        {
            assert_eq!(told(path), Ok(()), "{path}");
        }
    }
}
