//! What a repository holds, and what is said where there is none.

use serde::Deserialize;
use ureq::Body;
use ureq::http::Response;

use crate::cache::stays_inside;
use crate::hash::Hash;
use crate::http::{header, part, path};
use crate::{Error, Hub, Kind, Repo, Result};

/// The files of a repository at a commit.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The commit that the revision stands for.
    pub commit: String,
    /// Every file, in the hub's order.
    pub files: Vec<File>,
}

/// A file of a repository.
#[derive(Debug, Clone)]
pub struct File {
    /// Its path.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// Of its contents.
    pub(crate) hash: Hash,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

/// Whether this is the name of a commit, and of nothing else in the cache.
pub(crate) fn is_commit(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

impl Hub {
    /// Asks the hub what the repository holds.
    ///
    /// # Errors
    /// The hub cannot be reached, has no such repository or does not show it; the message says what to do.
    pub fn list(&self, repo: &Repo) -> Result<Listing> {
        let address =
            format!("api/{}/{}/revision/{}?blobs=true", repo.kind.plural(), path(&repo.name), part(&repo.revision));
        let info: Info = self.json(&address, |response| self.refusal(repo, response))?;
        let odd = |what: &str| Error::Refused(format!("{} lists {what} in {repo}, which is not taken", self.host()));
        if !is_commit(&info.sha) {
            return Err(odd(&format!("the commit {:?}", info.sha)));
        }
        let mut files = Vec::with_capacity(info.siblings.len());
        for Sibling { rfilename: name, size, blob_id, lfs } in info.siblings {
            let digits = lfs.map(|lfs| lfs.sha256).or(blob_id).unwrap_or_default();
            let (Some(size), Some(hash)) = (size, Hash::new(&digits)) else {
                return Err(odd(&format!("`{name}` without size or hash")));
            };
            // What a server says must not reach other folders.
            if !stays_inside(&name) {
                return Err(odd(&format!("`{name}`")));
            }
            files.push(File { name, size, hash });
        }
        Ok(Listing { commit: info.sha, files })
    }

    /// Why a repository is not shown, and what to do.
    pub(crate) fn refusal(&self, repo: &Repo, response: &Response<Body>) -> Error {
        let Repo { kind, name, .. } = repo;
        let code = header(response, "x-error-code").unwrap_or_default();
        let status = response.status().as_u16();
        let page = match kind {
            Kind::Model => format!("{}/{name}", self.shown_endpoint()),
            Kind::Dataset => format!("{}/datasets/{name}", self.shown_endpoint()),
        };
        let tokens = format!("{}/settings/tokens", self.shown_endpoint());
        Error::Refused(match (status, code) {
            (_, "GatedRepo") | (403, _) => match self.token {
                None => format!(
                    "{kind} {name} is gated: accept its conditions at {page}, then give a token of your account \
                     (HF_TOKEN or `--token`), which {tokens} makes"
                ),
                Some(_) => {
                    format!("{kind} {name} is gated, and the account of this token has no access: ask for it at {page}")
                }
            },
            (_, "RevisionNotFound") => {
                format!("{kind} {name} has no revision `{}`{}", repo.revision, self.nearest_revision(repo))
            }
            (401, _) if self.token.is_some() && code != "RepoNotFound" => {
                format!("{} does not know the token; {tokens} makes one", self.host())
            }
            (401 | 404, _) => {
                let private = match self.token {
                    None => {
                        format!(", or it is private: then give a token (HF_TOKEN or `--token`), which {tokens} makes")
                    }
                    Some(_) => ", or the account of this token may not see it".to_owned(),
                };
                format!("{} has no {kind} {name}{private}{}", self.host(), self.nearest_repo(repo))
            }
            (429, _) => format!("{} has had too many requests from here; try again later", self.host()),
            _ => match header(response, "x-error-message") {
                Some(message) => format!("{} refuses {kind} {name}: {message} (status {status})", self.host()),
                None => format!("{} refuses {kind} {name} (status {status})", self.host()),
            },
        })
    }

    /// A repository of nearly that name, or of that name and the other kind.
    fn nearest_repo(&self, repo: &Repo) -> String {
        #[derive(Deserialize)]
        struct Found {
            id: String,
        }
        let (other, hint) = match repo.kind {
            Kind::Model => (Kind::Dataset, "; there is a dataset of that name: `--repo-type dataset`"),
            Kind::Dataset => (Kind::Model, "; there is a model of that name: `--repo-type model`"),
        };
        let exists = self.get(&format!("api/{}/{}", other.plural(), path(&repo.name)), 0);
        if exists.is_ok_and(|response| response.status().is_success()) {
            return hint.to_owned();
        }
        let word = repo.name.rsplit('/').next().unwrap_or_default();
        // What was typed wrong is more often found by its beginning.
        let head: String = word.chars().take(word.chars().count().div_ceil(2).max(3)).collect();
        let search = |word: &str| {
            let address = format!("api/{}?search={}&limit=50", repo.kind.plural(), part(word));
            self.json::<Vec<Found>>(&address, |_| Error::Refused(String::new())).unwrap_or_default()
        };
        let found = search(word).into_iter().chain(search(&head)).map(|found| found.id);
        did_you_mean(&repo.name, found)
    }

    fn nearest_revision(&self, repo: &Repo) -> String {
        #[derive(Deserialize)]
        struct Refs {
            #[serde(default)]
            branches: Vec<Ref>,
            #[serde(default)]
            tags: Vec<Ref>,
        }
        #[derive(Deserialize)]
        struct Ref {
            name: String,
        }
        let address = format!("api/{}/{}/refs", repo.kind.plural(), path(&repo.name));
        match self.json::<Refs>(&address, |_| Error::Refused(String::new())) {
            Ok(refs) => {
                did_you_mean(&repo.revision, refs.branches.into_iter().chain(refs.tags).map(|found| found.name))
            }
            Err(_) => String::new(),
        }
    }
}

/// `; did you mean ...?` where something is near.
pub(crate) fn did_you_mean(name: &str, candidates: impl Iterator<Item = String>) -> String {
    let score = |candidate: &String| strsim::jaro_winkler(&candidate.to_lowercase(), &name.to_lowercase());
    match candidates.max_by(|a, b| score(a).total_cmp(&score(b))) {
        Some(best) if score(&best) > 0.8 => format!("; did you mean `{best}`?"),
        _ => String::new(),
    }
}
