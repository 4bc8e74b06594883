//! `doctor`: what this machine has to train with.

use std::env;

use tune_core::doctor::Examination;
use tune_core::hub::Hub;

use crate::Result;

/// Looks at the machine, the folder that one is in, and the cache of downloads.
///
/// # Errors
/// The folder that one is in is gone.
pub(crate) fn run() -> Result<String> {
    let here = env::current_dir()?;
    let hub = Hub::from_env().ok();
    let mut folders = vec![("this folder", here.as_path())];
    folders.extend(hub.as_ref().map(|hub| ("downloads", hub.folder())));
    Ok(Examination::of_this_machine(&folders).to_string())
}
