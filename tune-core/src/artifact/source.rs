//! What people name when they mean a model: a folder, a GGUF file, an adapter, a run.

use std::path::{Path, PathBuf};

use crate::checkpoint::merge::{Merged, Part};
use crate::checkpoint::{Checkpoint, peft, run};
use crate::{Error, Result, hub};

/// A base and adapters for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The base model.
    pub base: PathBuf,
    /// Adapters, and how much of each.
    pub parts: Vec<Part>,
}

impl Source {
    /// What `named` is: a run (its newest checkpoint is meant), an adapter (with the base that it names, or `base`), or a model.
    /// `adapters` are put on it besides.
    ///
    /// # Errors
    /// An adapter whose base is not known, a folder that is nothing of the kind.
    pub fn find(named: &Path, base: Option<&Path>, adapters: &[Part]) -> Result<Self> {
        let newest = newest(named)?;
        let named = newest.as_deref().unwrap_or(named);
        let mut parts = adapters.to_vec();
        if !is_adapter(named) {
            if let Some(base) = base {
                return Err(Error::setup(format!(
                    "{} is a model, which has no base: name adapters with --adapter, or leave --base={} out",
                    named.display(),
                    base.display()
                )));
            }
            return Ok(Self { base: named.to_owned(), parts });
        }
        parts.insert(0, Part { dir: named.to_owned(), weight: 1.0 });
        Self::of_adapters(&parts, base)
    }

    /// Adapters with the base that the first of them names, or `base`. Where a run is named, its newest checkpoint is meant.
    ///
    /// # Errors
    /// As [`Source::find`].
    pub fn of_adapters(parts: &[Part], base: Option<&Path>) -> Result<Self> {
        let mut found = Vec::new();
        for part in parts {
            let dir = newest(&part.dir)?.unwrap_or_else(|| part.dir.clone());
            if is_model(&dir) {
                let shown = dir.display();
                return Err(Error::setup(format!(
                    "{shown} is a model and no adapter: name adapters, and it as what they go into, by --base {shown}"
                )));
            }
            found.push(Part { dir, weight: part.weight });
        }
        let Some(first) = found.first() else { return Err(Error::setup("no adapter is named")) };
        let base = match base {
            Some(base) => base.to_owned(),
            None => base_of(&first.dir)?,
        };
        Ok(Self { base, parts: found })
    }

    /// Opens base and adapters.
    ///
    /// # Errors
    /// As [`Merged::open`].
    pub fn open(&self) -> Result<Merged> {
        Merged::open(Checkpoint::open(&self.base)?, &self.parts)
    }

    /// In a few words.
    #[must_use]
    pub fn shown(&self) -> String {
        let mut text = self.base.display().to_string();
        for part in &self.parts {
            text += &format!(" + {}", part.dir.display());
            if part.weight != 1.0 {
                text += &format!(" × {}", part.weight);
            }
        }
        text
    }
}

/// An adapter as it is written on a command line: its folder, or `FOLDER=WEIGHT`.
///
/// # Errors
/// A weight that is no number.
pub fn part(text: &str) -> Result<Part, String> {
    if Path::new(text).exists() {
        return Ok(Part { dir: text.into(), weight: 1.0 });
    }
    match text.rsplit_once('=') {
        None => Ok(Part { dir: text.into(), weight: 1.0 }),
        Some((dir, weight)) => {
            let weight = weight.trim().parse::<f64>().ok().filter(|weight| weight.is_finite());
            let weight = weight.ok_or_else(|| format!("`{text}`: a weight is a number, as in {dir}=0.5"))?;
            Ok(Part { dir: dir.into(), weight })
        }
    }
}

/// The newest checkpoint of a run's folder; nothing if it is none.
pub(crate) fn newest(dir: &Path) -> Result<Option<PathBuf>> {
    let is_other = ["config.json", "adapter_config.json"].iter().any(|name| dir.join(name).exists());
    if is_other || !dir.is_dir() {
        return Ok(None);
    }
    Ok(run::latest(dir)?.map(|saved| saved.path))
}

fn is_model(dir: &Path) -> bool {
    dir.join("config.json").is_file() && !dir.join("adapter_config.json").is_file()
}

fn is_adapter(dir: &Path) -> bool {
    dir.join("adapter_config.json").is_file() && !dir.join("config.json").is_file()
}

/// The base that an adapter names.
fn base_of(dir: &Path) -> Result<PathBuf> {
    let config = peft::read_config(dir)?;
    let unknown = |what: String| {
        Error::file(
            dir,
            format!("{what}; say it: --base BASE, or in a config checkpoint_dir=BASE and adapter_dir=ADAPTER"),
        )
    };
    let Some(name) = config.base_model_name_or_path.as_deref().filter(|name| !name.is_empty()) else {
        return Err(unknown("the adapter does not name its base".to_owned()));
    };
    let path = Path::new(name);
    if path.exists() || name.starts_with(hub::SCHEME) {
        return Ok(path.to_owned());
    }
    match hub::on_the_hub(path) {
        Some(on_the_hub) => Ok(on_the_hub.into()),
        None => Err(unknown(format!("the adapter's base was {name}, which is not there now"))),
    }
}
