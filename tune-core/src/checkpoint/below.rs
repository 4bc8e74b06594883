//! Adapters that stand on others: they were trained on a base into which these had been merged, and mean nothing without them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::merge::Part;
use super::{of_file, peft};
use crate::{Error, Result, hub};

/// An adapter that another one stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Below {
    /// Its folder, or its name on the hub.
    pub dir: PathBuf,
    /// The checksum of its weights.
    pub crc32c: u32,
}

/// No adapter stands on so many others.
const DEEPEST: usize = 32;

impl Below {
    /// The adapter in a folder.
    ///
    /// # Errors
    /// A folder without one.
    pub fn of(dir: &Path) -> Result<Self> {
        let crc32c = checksum(dir)?;
        // A relative path means nothing to whoever reads it from another place; a name of the hub is none.
        let dir = if dir.exists() { std::path::absolute(dir).map_err(Error::io("find", dir))? } else { dir.to_owned() };
        Ok(Self { dir, crc32c })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({ "path": self.dir.display().to_string(), "crc32c": self.crc32c })
    }

    pub(super) fn parse(value: &Value) -> Option<Self> {
        let crc32c = u32::try_from(value["crc32c"].as_u64()?).ok()?;
        Some(Self { dir: value["path"].as_str()?.into(), crc32c })
    }
}

fn checksum(dir: &Path) -> Result<u32> {
    peft::read_config(dir)?;
    Ok(of_file(&hub::model(dir, &[])?.join(peft::WEIGHTS))?.crc32c)
}

/// The adapters with those that they stand on before them, in the order in which they are to be merged.
///
/// # Errors
/// One that is missing, that is not what it was, or that is named behind one that stands on it.
pub(super) fn with_below(parts: &[Part]) -> Result<Vec<Part>> {
    let mut all: Vec<(Part, Option<u32>)> = Vec::new();
    for part in parts {
        let stands_here = all.iter().any(|(other, crc)| crc.is_some() && other.dir == part.dir);
        if stands_here {
            return Err(Error::file(
                &part.dir,
                "is named behind an adapter that stands on it: name it before that one, or leave it out, for it comes along",
            ));
        }
        put(part, &mut all, 0)?;
    }
    Ok(all.into_iter().map(|(part, _)| part).collect())
}

fn put(part: &Part, all: &mut Vec<(Part, Option<u32>)>, depth: usize) -> Result<()> {
    if depth > DEEPEST {
        return Err(Error::file(&part.dir, "stands on adapters that stand on it"));
    }
    for below in peft::read_config(&part.dir)?.base_adapters {
        let mut is_there = false;
        for (other, _) in all.iter() {
            is_there |= checksum(&other.dir)? == below.crc32c;
        }
        if !is_there {
            let dir = found(&below, &part.dir)?;
            let before = all.len();
            put(&Part { dir, weight: 1.0 }, all, depth + 1)?;
            all[before..].iter_mut().for_each(|(_, crc)| *crc = crc.or(Some(below.crc32c)));
        }
    }
    all.push((part.clone(), None));
    Ok(())
}

/// Where an adapter is that another one stands on: where it was, or beside that one.
fn found(below: &Below, above: &Path) -> Result<PathBuf> {
    let beside = above.parent().zip(below.dir.file_name()).map(|(parent, name)| parent.join(name));
    let mut other = None;
    for dir in std::iter::once(below.dir.clone()).chain(beside) {
        match checksum(&dir) {
            Ok(crc) if crc == below.crc32c => return Ok(dir),
            Ok(_) => other = Some(dir),
            Err(_) => {}
        }
    }
    let what = match other {
        None => format!(
            "stands on the adapter in {}, which is not there; without it, it computes something else. Put it back, or name it \
             before this one",
            below.dir.display()
        ),
        Some(dir) => format!(
            "stands on the adapter that was in {}, and the one in {} has other weights: put the first one back, or name it before \
             this one",
            below.dir.display(),
            dir.display()
        ),
    };
    Err(Error::file(above, what))
}
