//! The command that finds, copies, checks and starts recipes.
//!
//!     cargo run -p recipes --bin tune -- ls

mod artifacts;
mod build;
mod chat;
mod copy;
mod doctor;
mod download;
mod eval;
mod forecast;
mod launch;
mod others;
mod paths;
mod ranks;
mod restart;
mod shipped;
mod tokenize;
mod torchtune;
mod validate;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tune_core::config::cli::{show, signals};
use tune_core::config::{codes, complain};
use tune_core::environment;

use launch::Action;
use shipped::Named;

/// What a command returns; the error is shown to whoever called it.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Recipes for training language models: find, copy, check and start them.
#[derive(Parser)]
#[command(name = "tune", version, disable_help_subcommand = true, infer_subcommands = false)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the recipes and their configs.
    Ls,
    /// Show a recipe or a config: `lora`, `lora/tiny`.
    Cat {
        /// The name of a recipe or a config.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Copy a recipe with its configs, or one config, to change it.
    Cp(copy::Args),
    /// Start a recipe: a shipped one, or a file of your own.
    Run(Start),
    /// Check a config and overrides; no model and no data is read.
    Validate(validate::Args),
    /// Say whether a run would succeed, before a weight is read; show samples as the model sees them.
    Check(validate::OnProcesses),
    /// Say how much memory a run would take, before a weight is read, and what would make it fit; with --device, what it would take
    /// on cards that need not be here.
    Plan(Box<validate::Plan>),
    /// Say what this machine has to train with: driver, cards, libraries, processor, memory, disk; and what is missing.
    Doctor,
    /// Show a config of torchtune's, Axolotl's, LLaMA-Factory's, TRL's or Unsloth's in our names, with a comment on each change.
    Convert(validate::Args),
    /// Say what Axolotl, LLaMA-Factory, TRL or Unsloth do with a config of theirs and do not tell: keys that they drop, settings
    /// without effect, a stop token that is not learned.
    Lint(others::Lint),
    /// Download a model or a dataset from the Hugging Face hub.
    Download(download::Args),
    /// Tokenize documents once, into a file that `pretrain` trains on.
    Tokenize(tokenize::Args),
    /// Merge adapters into their base: a folder that transformers loads.
    Merge(artifacts::merge::Args),
    /// Write a model or an adapter as a GGUF file, for llama.cpp and Ollama.
    Export(artifacts::export::Args),
    /// Make a GGUF file smaller.
    Quantize(artifacts::export::Quantize),
    /// Say whether what was written is what was trained.
    Verify(artifacts::verify::Args),
    /// Talk to a model, an adapter or a run in the terminal.
    Chat(chat::Args),
    /// Measure a model, an adapter or a run on tasks of yours, beside its base; say where it got better and worse.
    Eval(Box<eval::Args>),
    /// Serve a model, an adapter or a run to OpenAI's clients; `tune serve --help` lists the options.
    #[command(disable_help_flag = true)]
    Serve {
        /// What is served, and how.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "MODEL")]
        args: Vec<OsString>,
    },
    /// What `tune run --no-mpi` becomes.
    #[command(hide = true)]
    Ranks(ranks::Args),
    /// Say more about an error of a config, such as E0020; without a code, list all.
    Explain {
        /// The code in the message.
        code: Option<String>,
    },
    /// Show a script that completes these commands.
    Completions {
        /// The shell that is to read it.
        shell: clap_complete::Shell,
    },
}

/// A recipe, and what it is told.
#[derive(clap::Args)]
struct Start {
    /// tune-core's folder, or a checkout, for a recipe of your own.
    #[arg(long, value_name = "FOLDER")]
    core: Option<PathBuf>,
    /// Train on N processes of this machine, which MPI connects, and among which its processors are divided. Where no mpirun is, but
    /// cards are, NCCL alone connects them, by a card of each.
    #[arg(long, alias = "nproc_per_node", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    nproc_per_node: Option<u16>,
    /// Have a card of each connect these processes, and MPI start none, even where an mpirun is.
    #[arg(long, alias = "no_mpi", requires = "nproc_per_node")]
    no_mpi: bool,
    #[command(flatten)]
    restarts: restart::Restarts,
    /// `lora` or `my/lora.rs`, then what it is told: `--config lora/tiny` (or a file), `key=value`, `--help`.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_names = ["RECIPE", "ARGS"])]
    command: Vec<OsString>,
}

impl Start {
    /// The options before the recipe that torchrun has, too, as they would be typed.
    fn typed(&self) -> String {
        let options = [(torchtune::NPROC, self.nproc_per_node), (torchtune::RESTARTS, self.restarts.max_restarts)];
        options.iter().filter_map(|(name, value)| value.map(|value| format!(" {name} {value}"))).collect()
    }
}

fn main() -> ExitCode {
    signals::handle();
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            complain!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether a command computes in this process, and starts no other that does, or says how this machine computes.
fn computes(command: &Command) -> bool {
    use Command::{Chat, Doctor, Eval, Export, Merge, Quantize, Tokenize, Verify};
    matches!(command, Doctor | Tokenize(_) | Merge(_) | Export(_) | Quantize(_) | Verify(_) | Chat(_) | Eval(_))
}

fn run(command: Command) -> Result<ExitCode> {
    if computes(&command) {
        environment::check()?;
    }
    Ok(match command {
        Command::Ls => show(&shipped::list()),
        Command::Cat { name } => show(match shipped::named(&name)? {
            Named::Recipe(recipe) => recipe.source,
            Named::Config(_, config) => config.yaml,
        }),
        Command::Cp(args) => show(&copy::run(&args)?),
        Command::Run(start) => launch::run(Action::Run, &start)?,
        Command::Validate(args) => validate::run(Action::Validate, args)?,
        Command::Check(args) => validate::on_processes(Action::Check, args)?,
        Command::Plan(args) => validate::plan(*args)?,
        Command::Doctor => show(&doctor::run()?),
        Command::Convert(args) => match others::convert(args.command()) {
            Some(converted) => converted?,
            None => validate::run(Action::Convert, args)?,
        },
        Command::Lint(args) => others::lint(&args)?,
        Command::Download(args) => show(&download::run(&args)?),
        Command::Tokenize(args) => show(&tokenize::run(args)?),
        Command::Merge(args) => done(artifacts::merge::run(&args))?,
        Command::Export(args) => done(artifacts::export::run(&args))?,
        Command::Quantize(args) => done(artifacts::export::quantize(args))?,
        Command::Verify(args) => done(artifacts::verify::run(&args))?,
        Command::Chat(args) => done(chat::run(&args))?,
        Command::Eval(args) => done(eval::run(&args))?,
        Command::Ranks(args) => ranks::run(&args)?,
        Command::Serve { args } => launch::serve(&args)?,
        Command::Explain { code } => show(&explain(code.as_deref())?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tune", &mut script);
            show(&String::from_utf8(script)?)
        }
    })
}

/// The exit code of a command that says what it has to say on its way.
fn done(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

fn explain(code: Option<&str>) -> Result<String> {
    match code {
        None => Ok(codes::EXPLANATIONS.iter().map(|e| format!("{}  {}\n", e.code, e.title)).collect()),
        // `20` and `E20` are understood.
        Some(code) => codes::explain(&format!("E{:0>4}", code.trim_start_matches(['E', 'e'])))
            .map(ToString::to_string)
            .ok_or_else(|| format!("there is no error `{code}`; `tune explain` lists them").into()),
    }
}
