//! A repository's files on this machine: all, or some.

use std::path::{Path, PathBuf};

use glob::Pattern;

use crate::cache::Has;
use crate::listing::did_you_mean;
use crate::{Error, Event, File, Hub, Listing, Repo, Result, room};

/// Which files are wanted. `*` goes through folders, as in `huggingface_hub`.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Selection {
    /// Files that one of `include` matches, or any where there is none, and none of `exclude`. A pattern that ends in
    /// `/` is a folder with all that is in it.
    ///
    /// # Errors
    /// A pattern is none.
    pub fn new<T: AsRef<str>>(include: &[T], exclude: &[T]) -> Result<Self> {
        let pattern = |text: &T| {
            let text = text.as_ref();
            let whole = if text.ends_with('/') { format!("{text}*") } else { text.to_owned() };
            Pattern::new(&whole).map_err(|error| Error::Refused(format!("`{text}` is no pattern for files: {error}")))
        };
        Ok(Self {
            include: include.iter().map(pattern).collect::<Result<_>>()?,
            exclude: exclude.iter().map(pattern).collect::<Result<_>>()?,
        })
    }

    /// Whether a file is wanted.
    #[must_use]
    pub fn takes(&self, name: &str) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(name));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    /// The files of a listing that are wanted.
    ///
    /// # Errors
    /// There are none; the message has the nearest name.
    pub fn of<'a>(&self, listing: &'a Listing, repo: &Repo) -> Result<Vec<&'a File>> {
        let files: Vec<&File> = listing.files.iter().filter(|file| self.takes(&file.name)).collect();
        if files.is_empty() {
            let names = || listing.files.iter().map(|file| file.name.clone());
            let hint = self.include.first().map(|wanted| did_you_mean(wanted.as_str(), names())).unwrap_or_default();
            let hint = match hint.is_empty() {
                true => format!("; it has {}", names().take(20).collect::<Vec<_>>().join(", ")),
                false => hint,
            };
            return Err(Error::Refused(format!("{} {repo} has no file of those that are wanted{hint}", repo.kind)));
        }
        Ok(files)
    }
}

impl Hub {
    /// The folder with the wanted files of a repository, downloaded where they are not in the cache. Without the hub
    /// (`HF_HUB_OFFLINE`, or it cannot be reached), what the cache has.
    ///
    /// `choose` picks from what there is, such as [`Selection::of`].
    ///
    /// # Errors
    /// As [`Self::list`]; where a download fails or is damaged; and offline, where the cache has nothing of it.
    pub fn snapshot(
        &self,
        repo: &Repo,
        choose: impl for<'a> FnOnce(&'a Listing) -> Result<Vec<&'a File>>,
        events: &mut dyn FnMut(Event<'_>),
    ) -> Result<PathBuf> {
        if self.offline {
            let folder = self.cached(repo).ok_or_else(|| {
                let (cache, kind) = (self.cache.display(), repo.kind);
                Error::Refused(format!("{kind} {repo} is not in the cache ({cache}), and HF_HUB_OFFLINE is set"))
            })?;
            self.check_cached(repo, &folder, choose, events)?;
            return Ok(folder);
        }
        let listing = match (self.list(repo), self.cached(repo)) {
            (Ok(listing), _) => listing,
            (Err(error @ Error::Unreachable { .. }), Some(folder)) => {
                events(Event::Note(&format!("{error}; {repo} is taken from the cache")));
                self.check_cached(repo, &folder, choose, events)?;
                return Ok(folder);
            }
            (Err(error), _) => return Err(error),
        };
        let chosen = choose(&listing)?;
        let missing = chosen.iter().map(|file| self.missing(repo, file)).sum();
        room::check(&self.snapshot_folder(repo, &listing.commit), missing)?;
        for file in chosen {
            self.fetch(repo, &listing.commit, file, events)?;
            self.link(repo, &listing.commit, &file.name, file.hash.digits())?;
        }
        self.remember(repo, &listing.commit)?;
        Ok(self.snapshot_folder(repo, &listing.commit))
    }

    /// Checks what is wanted of a folder of the cache, where the hub cannot be asked.
    fn check_cached(
        &self,
        repo: &Repo,
        folder: &Path,
        choose: impl for<'a> FnOnce(&'a Listing) -> Result<Vec<&'a File>>,
        events: &mut dyn FnMut(Event<'_>),
    ) -> Result<()> {
        let listing = self.files_of(folder);
        // What is missing is told by who wants it.
        for file in choose(&listing).unwrap_or_default() {
            if let Has::Damaged(what) = self.has(repo, file, events)? {
                let (name, folder) = (&file.name, folder.display());
                return Err(Error::Damaged(format!(
                    "{name} of {repo} is damaged in the cache ({folder}: {what}); with the hub at hand it is fetched again"
                )));
            }
        }
        Ok(())
    }
}
