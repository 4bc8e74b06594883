//! `download`: a repository of the Hugging Face hub, into the cache or a folder.

use std::fs;
use std::path::{Path, PathBuf};

use tune_core::hub::{Event, Hub, Kind, Repo, SCHEME, Selection};
use tune_core::metrics::Downloads;

use crate::Result;

/// What is downloaded, and where to.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `org/name`.
    repo: String,
    /// A branch, a tag or a commit.
    #[arg(long)]
    revision: Option<String>,
    /// What it is: `model` or `dataset`.
    #[arg(long, value_name = "TYPE", default_value = "model")]
    repo_type: Kind,
    /// Only files that match one of these, such as `*.safetensors`; may be repeated.
    #[arg(long, value_name = "PATTERN", num_args = 1..)]
    include: Vec<String>,
    /// No files that match one of these; may be repeated.
    #[arg(long, visible_alias = "ignore-patterns", value_name = "PATTERN", num_args = 1..)]
    exclude: Vec<String>,
    /// Copy the files here, besides keeping them in the cache.
    #[arg(long, value_name = "FOLDER")]
    output_dir: Option<PathBuf>,
    /// Who asks, for gated and private repositories; by default HF_TOKEN.
    #[arg(long, visible_alias = "hf-token")]
    token: Option<String>,
    /// Another server than huggingface.co; by default that of HF_ENDPOINT.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

/// Downloads what is not there yet, and says where it is.
///
/// # Errors
/// The hub does not have it, does not show it, or sends something else than it said.
pub(crate) fn run(args: &Args) -> Result<String> {
    let mut name = args.repo.trim_start_matches(SCHEME).to_owned();
    if let Some(revision) = &args.revision {
        name = format!("{name}@{revision}");
    }
    let repo = Repo::new(args.repo_type, &name)?;
    let mut hub = Hub::from_env()?;
    if let Some(token) = &args.token {
        hub = hub.token(token);
    }
    if let Some(endpoint) = &args.endpoint {
        hub = hub.endpoint(endpoint);
    }
    let selection = Selection::new(&args.include, &args.exclude)?;
    let mut show = Downloads::stderr();
    let folder = hub.snapshot(&repo, |listing| selection.of(listing, &repo), &mut |event: Event<'_>| show(event))?;
    let place = match &args.output_dir {
        None => folder,
        Some(to) => {
            copy(&folder, to, &|name| selection.takes(name), "")?;
            to.clone()
        }
    };
    Ok(format!("{}\n", place.display()))
}

/// Copies what is wanted of a folder; `name` is its own in the repository, with a slash where it has one.
fn copy(from: &Path, to: &Path, wanted: &dyn Fn(&str) -> bool, name: &str) -> Result<()> {
    let failed = |error| format!("cannot read {}: {error}", from.display());
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = format!("{name}{}", entry.file_name().to_string_lossy());
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to, wanted, &format!("{name}/"))?;
        } else if wanted(&name) {
            place(&from, &to)?;
        }
    }
    Ok(())
}

/// From here on a file is not copied where a link to the same bytes will do.
const LARGE: u64 = 32 << 20;

/// A file of the cache at another place. Small ones are copied, since they may be edited there.
fn place(from: &Path, to: &Path) -> Result<()> {
    let failed = |error| format!("cannot write {}: {error}", to.display());
    let from = from.canonicalize().map_err(|error| format!("cannot read {}: {error}", from.display()))?;
    fs::create_dir_all(to.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    if to.exists() {
        fs::remove_file(to).map_err(failed)?;
    }
    let large = fs::metadata(&from).map_err(failed)?.len() >= LARGE;
    if !(large && fs::hard_link(&from, to).is_ok()) {
        fs::copy(&from, to).map_err(failed)?;
    }
    Ok(())
}
