//! From the arguments of a recipe to its config, and from its end to an exit code. [`start`] prints nothing: the
//! generated `main` does what it says.

mod exit;
pub mod heaps;
pub mod signals;

use std::ffi::OsString;
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};

pub use exit::{Exit, STARTED_BY, other_program, quoted, this_program};

use crate::load::explore;
use crate::output;
use crate::{
    Config, Input, Loaded, Report, Schema, Sources, codes, completions, convert, help, json_schema, load, other_tool,
};

/// What `#[recipe]` knows about a recipe.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    /// The name of the function.
    pub name: &'static str,
    /// The function's documentation.
    pub doc: &'static str,
    /// The version of its package.
    pub version: &'static str,
    /// The configs that it ships with: path and text.
    pub configs: &'static [(&'static str, &'static str)],
    /// Whether it can say what would become of a run: `--check` and `--plan`.
    pub preflight: bool,
}

/// What a recipe is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To do what it does.
    Run,
    /// To say whether that would succeed, on this many processes: `--check`.
    Check(usize),
    /// To say how much memory each of these processes would take: `--plan`.
    Plan(usize),
}

/// What a recipe's `main` is to do.
#[derive(Debug)]
pub enum Start<T> {
    /// Print the warnings, then do what is asked for; other than [`Purpose::Run`] only where there is a
    /// [`Recipe::preflight`].
    Run(Box<Loaded<T>>, Purpose),
    /// Print this and be done.
    Show(String),
    /// Print this to the standard error and exit with [`USAGE`].
    Fail(String),
}

/// The exit code where the arguments or the config are wrong.
pub const USAGE: u8 = 2;

/// The exit code where another process of the run was lost: it has died or hangs. Nothing is wrong with this one or its config, and the
/// run can go on from its newest checkpoint. (`EX_TEMPFAIL` of `sysexits.h`.)
pub const LOST: u8 = 75;

/// Reads the arguments (the program's name first) and the config that they
/// name. With `color`, messages are for a terminal.
pub fn start<T: Config>(recipe: &Recipe, args: impl IntoIterator<Item = OsString>, color: bool) -> Start<T> {
    let args: Vec<OsString> = args.into_iter().collect();
    let matches = match command(recipe).try_get_matches_from(&args) {
        Ok(matches) => matches,
        Err(error) => return Start::Fail(usage(recipe, &T::SCHEMA, &error, &args)),
    };
    if matches.get_flag("version") {
        return Start::Show(format!("{} {}\n", recipe.name, recipe.version));
    }
    if matches.get_flag("print-schema") {
        return Start::Show(json_schema(&T::SCHEMA, recipe.name));
    }
    if matches.get_flag("print-reference") {
        return Start::Show(help::keys(&T::SCHEMA, None, &Sources::default()));
    }
    if let Some(code) = matches.get_one::<String>("explain") {
        return match codes::explain(code) {
            Some(explanation) => Start::Show(explanation.to_string()),
            None => Start::Fail(format!("error: there is no error `{code}`: codes are such as E0020\n")),
        };
    }
    if let Some(shell) = matches.get_one::<String>("completions") {
        return Start::Show(completions::script(shell, recipe, &T::SCHEMA));
    }
    let mut input = match matches.get_one::<PathBuf>("config") {
        None => Input::new(),
        Some(path) => match read(path).map(String::from_utf8) {
            Ok(Ok(text)) if matches.get_flag("convert") => {
                let overrides: Vec<String> = matches.get_many("overrides").unwrap_or_default().cloned().collect();
                return match convert::<T>(recipe.name, &path.display().to_string(), &text, &overrides) {
                    Ok(converted) => Start::Show(converted),
                    Err(report) => Start::Fail(mistakes(recipe, &report, color)),
                };
            }
            Ok(Ok(text)) => Input::yaml(path.display().to_string(), text),
            Ok(Err(_)) => {
                return Start::Fail(format!("error: {} is not text (UTF-8)\n", path.display()));
            }
            Err(error) => {
                let hint = shipped(recipe, path).unwrap_or_default();
                return Start::Fail(format!("error: cannot read the config {}: {error}\n{hint}", path.display()));
            }
        },
    };
    let mut line = recipe.name.to_owned();
    if let Some(path) = matches.get_one::<PathBuf>("config") {
        let _ = write!(line, " --config {}", path.display());
    } else if !matches.contains_id("overrides") && !matches.get_flag("help") && !T::SCHEMA.has_default() {
        return Start::Fail(format!(
            "error: which config?\n\n{}\n`{} --help` lists the keys.\n",
            usage_line(recipe),
            recipe.name
        ));
    }
    let overrides = matches.get_many::<String>("overrides").unwrap_or_default();
    let other = matches.get_one::<PathBuf>("config").zip(input.text().and_then(other_tool));
    input = input.command(line).overrides(overrides);
    if matches.get_flag("help") {
        return match help_text::<T>(recipe, input) {
            Ok(text) => Start::Show(text),
            Err(report) => Start::Fail(report.render(color)),
        };
    }
    match load::<T>(input) {
        Err(report) => {
            let mut text = mistakes(recipe, &report, color);
            if let Some((path, tool)) = other {
                let path = quoted(path);
                let _ = writeln!(
                    text,
                    "This is a config of {tool}'s; `tune convert {path} > mine.yaml` makes one of ours of it"
                );
            }
            Start::Fail(text)
        }
        Ok(loaded) if matches.get_flag("print-config") => Start::Show(loaded.resolved.to_yaml_with_origins()),
        Ok(loaded) if matches.get_flag("validate") => Start::Show(warnings(&loaded.warnings, color) + &valid(&matches)),
        Ok(loaded) => Start::Run(Box::new(loaded), purpose(recipe, &matches)),
    }
}

fn purpose(recipe: &Recipe, matches: &ArgMatches) -> Purpose {
    if !recipe.preflight {
        return Purpose::Run;
    }
    let processes = matches.get_one::<u16>("world-size").map_or(1, |&processes| usize::from(processes));
    match (matches.get_flag("check"), matches.get_flag("plan")) {
        (true, _) => Purpose::Check(processes),
        (_, true) => Purpose::Plan(processes),
        _ => Purpose::Run,
    }
}

/// Whether the standard error wants colour.
pub fn stderr_color() -> bool {
    color(output::stderr().is_terminal())
}

/// Whether the standard output wants colour.
pub fn stdout_color() -> bool {
    color(output::stdout_is_terminal())
}

/// Terminals do, unless they cannot; `NO_COLOR` and `CLICOLOR_FORCE` in the environment say it for both.
fn color(terminal: bool) -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
    let can = terminal && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    !is_set("NO_COLOR") && (can || is_set("CLICOLOR_FORCE"))
}

/// Shows what was asked for, as `--help` is. The exit code says whether it could be written.
pub fn show(text: &str) -> ExitCode {
    match output::show(text) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            output::complaint(format_args!("error: {}", output::unwritten(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Says on the standard error what is wrong, with the line breaks that it has.
pub fn complain(text: &str) {
    let _ = std::io::Write::write_all(&mut output::stderr(), text.as_bytes());
}

/// Says why a run has ended. Returns the exit code.
pub fn ended(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    let Some(exit) = Exit::of(error) else {
        complain(&failure(error));
        return ExitCode::FAILURE;
    };
    if exit.code == LOST {
        complain(&failure(error));
    } else if !exit.message.is_empty() {
        output::complaint(format_args!("{}", exit.message));
    }
    ExitCode::from(exit.code)
}

/// `error: ...` for a run that has failed, with what it was caused by.
pub fn failure(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error.to_string();
    let mut text = format!("error: {last}\n");
    let mut source = error.source();
    while let Some(cause) = source {
        let message = cause.to_string();
        // Many messages already end with that of their cause.
        if !last.contains(&message) {
            let _ = writeln!(text, "  caused by: {message}");
        }
        last = message;
        source = cause.source();
    }
    text
}

/// What is wrong with a config, and where more is said about it.
fn mistakes(recipe: &Recipe, report: &Report, color: bool) -> String {
    let mut text = report.render(color);
    if let Some(code) = report.diagnostics.iter().find_map(|diagnostic| diagnostic.code) {
        let _ = writeln!(text, "\nMore about an error: `{} --explain {code}`", recipe.name);
    }
    text
}

/// What `--validate` says where nothing is wrong.
fn valid(matches: &ArgMatches) -> String {
    match matches.get_one::<PathBuf>("config") {
        Some(path) => format!("{} is valid\n", path.display()),
        None => "the config is valid\n".to_owned(),
    }
}

/// The report as it is shown before a run; empty where there is nothing to say.
pub fn warnings(report: &Report, color: bool) -> String {
    match report.is_empty() {
        true => String::new(),
        false => report.render(color),
    }
}

fn command(recipe: &Recipe) -> Command {
    let command = Command::new(recipe.name)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .arg(
            Arg::new("config").long("config").short('c').value_name("FILE").value_parser(
                // `-` is the standard input, as for most programs.
                PathBufValueParser::new()
                    .map(|path| if path == Path::new("-") { PathBuf::from("/dev/stdin") } else { path }),
            ),
        )
        .arg(Arg::new("help").long("help").short('h').action(ArgAction::SetTrue))
        .arg(Arg::new("version").long("version").short('V').action(ArgAction::SetTrue))
        .arg(Arg::new("validate").long("validate").action(ArgAction::SetTrue))
        .arg(Arg::new("print-config").long("print-config").action(ArgAction::SetTrue))
        .arg(
            Arg::new("convert")
                .long("convert")
                .action(ArgAction::SetTrue)
                .requires("config")
                .conflicts_with_all(["help", "print-config"]),
        )
        .arg(Arg::new("print-schema").long("print-schema").action(ArgAction::SetTrue))
        .arg(Arg::new("print-reference").long("print-reference").action(ArgAction::SetTrue))
        .arg(Arg::new("explain").long("explain").value_name("CODE"))
        .arg(Arg::new("completions").long("completions").value_name("SHELL").value_parser(completions::SHELLS))
        .arg(Arg::new("overrides").value_name("KEY=VALUE").num_args(0..).action(ArgAction::Append));
    if !recipe.preflight {
        return command;
    }
    command
        .arg(Arg::new("check").long("check").action(ArgAction::SetTrue).conflicts_with_all(["plan", "convert"]))
        .arg(Arg::new("plan").long("plan").action(ArgAction::SetTrue).conflicts_with("convert"))
        .group(ArgGroup::new("preflight").args(["check", "plan"]))
        .arg(
            Arg::new("world-size")
                .long("world-size")
                .value_name("N")
                .value_parser(value_parser!(u16).range(1..))
                .requires("preflight"),
        )
}

/// The bytes of a file, a little more than a config may have at most.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    crate::files::read_beginning(path, 2 << 20)
}

/// Where the config of a recipe's own is that `tune` would call `path`.
fn shipped(recipe: &Recipe, path: &Path) -> Option<String> {
    let own = path.strip_prefix(recipe.name).ok()?.with_extension("yaml");
    recipe.configs.iter().find(|(file, _)| Path::new(file).ends_with(Path::new(recipe.name).join(&own)))?;
    let (name, path) = (recipe.name, path.display());
    Some(format!("It ships with `{name}`: `tune run {name} --config {path}` finds it\n"))
}

fn usage_line(recipe: &Recipe) -> String {
    format!("Usage: {} [--config FILE] [KEY=VALUE | ~KEY]...\n", recipe.name)
}

/// Whether torchrun's option takes a value; `None` where torchrun has no such option.
pub fn torchrun_takes_value(option: &str) -> Option<bool> {
    const WITHOUT: [&str; 5] = ["standalone", "no-python", "module", "run-path", "virtual-local-rank"];
    const WITH: [&str; 21] = [
        "nnodes",
        "nproc-per-node",
        "node-rank",
        "master-addr",
        "master-port",
        "local-addr",
        "rdzv-backend",
        "rdzv-endpoint",
        "rdzv-id",
        "rdzv-conf",
        "max-restarts",
        "monitor-interval",
        "start-method",
        "role",
        "log-dir",
        "redirects",
        "tee",
        "local-ranks-filter",
        "logs-specs",
        "event-log-handler",
        "numa-binding",
    ];
    let name = option.strip_prefix("--")?.replace('_', "-");
    match (WITH.contains(&&*name), WITHOUT.contains(&&*name)) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

/// What is wrong with the arguments. Other tools take keys as options, so that
/// is the mistake to expect.
fn usage(recipe: &Recipe, schema: &Schema, error: &clap::Error, args: &[OsString]) -> String {
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else {
        return format!("{}\n", error.to_string().trim_end());
    };
    if error.kind() != ErrorKind::UnknownArgument {
        return format!("{}\n", error.to_string().trim_end());
    }
    if matches!(option.as_str(), "--check" | "--plan") {
        let name = recipe.name;
        return format!(
            "error: `{name}` has no `{option}`, which is for recipes that train\n\n\
             `{name} --validate` checks its config. A recipe of your own has it with `#[recipe(preflight = TYPE)]`.\n"
        );
    }
    let mut text = format!("error: unknown option `{option}`\n\n");
    if torchrun_takes_value(option).is_some() {
        let name = recipe.name;
        let _ = match option.replace('_', "-").as_str() {
            "--max-restarts" => {
                writeln!(
                    text,
                    "It is for `tune run`, and stands before the recipe: `tune run --max-restarts N {name}`."
                )
            }
            _ => writeln!(
                text,
                "It is for torchrun, which starts several processes; here `tune run --nproc-per-node N {name}` does. Leave it out."
            ),
        };
        let _ = writeln!(text, "`{name} --help` lists options and keys.");
        return text;
    }
    let key = option.trim_start_matches('-').replace('-', "_");
    let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let value = args.iter().enumerate().find_map(|(at, arg)| {
        let rest = arg.strip_prefix(option.as_str())?;
        match rest.strip_prefix('=') {
            Some(value) => Some(value),
            None => args.get(at + 1).map(|next| &**next).filter(|next| !next.starts_with('-')),
        }
    });
    let exact = known(schema, &key).filter(|known| *known == key);
    let options = command(recipe);
    let options = options.get_arguments().filter_map(Arg::get_long);
    if option.starts_with("--")
        && exact.is_none()
        && let Some(name) = tune_yaml::nearest(&option[2..], options)
    {
        let _ = writeln!(text, "Did you mean `--{name}`?");
    } else if option.starts_with("--")
        && let Some(key) = known(schema, &key)
    {
        let value = value.unwrap_or("VALUE");
        let _ = writeln!(text, "A key of the config is set without dashes: `{key}={value}`");
    }
    let _ = writeln!(text, "{}`{} --help` lists options and keys.", usage_line(recipe), recipe.name);
    text
}

/// The path of a key, or of the nearest one.
fn known(schema: &Schema, path: &str) -> Option<String> {
    let Schema::Struct(fields) = schema else { return None };
    let (first, rest) = path.split_at(path.find('.').unwrap_or(path.len()));
    let names = || fields.all_keys().flat_map(|key| std::iter::once(&key.name).chain(key.aliases).copied());
    let name = names().find(|name| *name == first).or_else(|| tune_yaml::nearest(first, names()))?;
    Some(format!("{name}{rest}"))
}

fn help_text<T: Config>(recipe: &Recipe, input: Input) -> Result<String, Report> {
    let (value, sources) = explore(&T::SCHEMA, input)?;
    let mut text = String::new();
    if !recipe.doc.is_empty() {
        let _ = writeln!(text, "{}\n", recipe.doc.trim());
    }
    let _ = writeln!(text, "{}", usage_line(recipe));
    text += "Options:\n";
    let preflight = [
        ("    --check", "say whether the run would succeed: model, data, masks, disk, memory; show samples"),
        ("    --plan", "say how much memory the run would take"),
    ];
    let options = [
        ("-c, --config FILE", "the YAML file with the keys below; `-` is the standard input"),
        ("    --validate", "say whether the config is right, and do nothing else"),
        ("    --print-config", "show the config as it would run, with the origin of each value"),
        ("    --convert", "show a config of torchtune's in our names, with a comment on each change"),
        ("    --print-schema", "show the keys as JSON Schema, for editors"),
        ("    --print-reference", "show every key of every component"),
        ("    --explain CODE", "say more about an error, such as E0020"),
        ("    --completions SHELL", "show a script that completes keys: for bash, zsh or fish"),
        ("-h, --help", "show this; with a config or overrides, what they set"),
        ("-V, --version", "show the version"),
    ];
    let (first, rest) = options.split_at(2);
    let preflight = if recipe.preflight { &preflight[..] } else { &[] };
    for (flag, what) in first.iter().chain(preflight).chain(rest) {
        let _ = writeln!(text, "  {flag:<23}  {what}");
    }
    text += "\nOverrides, in the order in which they are given:\n";
    for (form, what) in [
        ("a.b=VALUE", "sets a key; the value is YAML, but for text and paths"),
        ("text=a: b # c", "text and paths are taken as typed, but for quotes around all of it"),
        ("text=null", "clears a text or a path that may be none"),
        ("a.0.b=VALUE", "sets a key of a list's first item; of a list of one also a.b=VALUE"),
        ("a=NAME", "chooses another component; keys that it lacks go, which is told"),
        ("~a.b", "removes a key"),
    ] {
        let _ = writeln!(text, "  {form:<23}  {what}");
    }
    text += "\nKeys (type = default; => what is set, and where):\n";
    text += &help::keys(&T::SCHEMA, value.as_ref(), &sources);
    Ok(text)
}
