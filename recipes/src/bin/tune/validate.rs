//! `validate`, `check`, `plan` and `convert`: what the recipe's program says of a config.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tune_core::config::{files, recipe_of_torchtune};

use crate::launch::{self, Action};
use crate::{Result, Start, forecast, shipped};

/// No config is longer.
const LARGEST: u64 = 2 << 20;

/// A recipe with its config and overrides, or a config that tells its recipe.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// tune-core's folder, or a checkout, for a recipe of your own.
    #[arg(long, value_name = "FOLDER")]
    core: Option<PathBuf>,
    /// A recipe with `--config CONFIG` and `key=value`; or a config alone, whose recipe is known from its name, its
    /// folder or its `$schema`; or from torchtune's model in it.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_names = ["RECIPE", "ARGS"])]
    command: Vec<OsString>,
}

impl Args {
    /// What was typed: a recipe or a config, and what follows.
    pub(crate) fn command(&self) -> &[OsString] {
        &self.command
    }
}

/// The same for a run of several processes.
#[derive(clap::Args)]
pub(crate) struct OnProcesses {
    /// Of a run on N processes, among which parameters, gradients and the optimizer's state are divided: what each of them takes.
    #[arg(long, alias = "world_size", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    world_size: Option<u16>,
    #[command(flatten)]
    of: Args,
}

/// What is planned: a run here, or one on cards that need not be here.
#[derive(clap::Args)]
pub(crate) struct Plan {
    /// Of a run on N processes or cards, among which parameters, gradients and the optimizer's state are divided: what each takes.
    #[arg(long, alias = "world_size", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    world_size: Option<u16>,
    /// tune-core's folder, or a checkout, for a recipe of your own.
    #[arg(long, value_name = "FOLDER")]
    core: Option<PathBuf>,
    #[command(flatten)]
    forecast: forecast::Args,
    /// A recipe with `--config CONFIG` and `key=value`; or a config alone, whose recipe is known from its name, its
    /// folder or its `$schema`; or from torchtune's model in it.
    #[arg(
        required_unless_present = "device",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_names = ["RECIPE", "ARGS"]
    )]
    command: Vec<OsString>,
}

/// Shows what a run would take.
///
/// # Errors
/// As [`run`], and a card or a model that is not known.
pub(crate) fn plan(args: Plan) -> Result<ExitCode> {
    let Plan { world_size, core, forecast, command } = args;
    match forecast.is_asked() {
        true => forecast.show(world_size.unwrap_or(1).into()),
        false => on_processes(Action::Plan, OnProcesses { world_size, of: Args { core, command } }),
    }
}

/// Starts the recipe with the option of `action`, and says of how many processes.
///
/// # Errors
/// As [`run`].
pub(crate) fn on_processes(action: Action, args: OnProcesses) -> Result<ExitCode> {
    let OnProcesses { world_size, of: Args { core, mut command } } = args;
    if let Some(processes) = world_size {
        command.extend(["--world-size".into(), processes.to_string().into()]);
    }
    run(action, Args { core, command })
}

/// Starts the recipe with the option of `action`.
///
/// # Errors
/// Nothing tells which recipe a config is for; else those of [`launch::run`].
pub(crate) fn run(action: Action, args: Args) -> Result<ExitCode> {
    let Args { core, mut command } = args;
    if let Some(first) = command.first().filter(|first| is_config(first)).cloned() {
        let recipe = recipe_of(action, &first)?;
        command.splice(..1, [recipe.into(), "--config".into(), first]);
    }
    launch::run(action, &Start { core, nproc_per_node: None, no_mpi: false, restarts: Default::default(), command })
}

/// Whether an argument is the name of a config, or its file.
pub(crate) fn is_config(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().unwrap_or_default();
    extension == "yaml" || extension == "yml" || shipped::config(&name.to_string_lossy()).is_some()
}

/// The recipe that a config is for: that of its name, of its schema's title, or of its folder.
///
/// # Errors
/// Nothing tells, or there is no such config.
pub(crate) fn recipe_of(action: Action, config: &OsStr) -> Result<String> {
    let path = Path::new(config);
    if !path.exists()
        && let Some((recipe, _)) = shipped::config(&config.to_string_lossy())
    {
        return Ok(recipe.name.to_owned());
    }
    let path = PathBuf::from(launch::config("", config)?);
    if let Some(recipe) = text_of(&path).as_deref().and_then(recipe_of_torchtune) {
        return Ok(recipe.to_owned());
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    if let Some(recipe) = schema_title(&path, folder) {
        return Ok(recipe);
    }
    let folder = folder.file_name().unwrap_or_default().to_string_lossy();
    match shipped::RECIPES.iter().find(|recipe| recipe.name == folder) {
        Some(recipe) => Ok(recipe.name.to_owned()),
        None => {
            let (command, path) = (action.command(), path.display());
            Err(format!("which recipe is {path} for? Say it: `tune {command} RECIPE --config {path}`").into())
        }
    }
}

/// The text of a config that is a file; a pipe can be read only once, by the recipe.
pub(crate) fn text_of(config: &Path) -> Option<String> {
    let mut text = String::new();
    files::open_file(config).ok()?.take(LARGEST).read_to_string(&mut text).ok()?;
    Some(text)
}

/// What the schema that a config names for editors calls itself.
fn schema_title(config: &Path, folder: &Path) -> Option<String> {
    let text = text_of(config)?;
    let (_, schema) = text.lines().next()?.split_once("$schema=")?;
    let schema: serde_json::Value = serde_json::from_str(&fs::read_to_string(folder.join(schema.trim())).ok()?).ok()?;
    let title = schema.get("title")?.as_str()?;
    shipped::RECIPES.iter().any(|recipe| recipe.name == title).then(|| title.to_owned())
}
