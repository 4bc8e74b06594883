//! The project's own chores: `cargo xtask <TASK>`, one module each.

mod bench;
mod bits;
mod codegen;
mod gpu_check;
mod kernels;
mod make_tiny;
mod new_recipe;
mod parity;
mod python;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tune_core::config::complain;

/// What a task returns; the error is shown to whoever called it.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// The project's own chores.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Write what is made from the recipes: schema and reference beside their configs.
    Codegen(codegen::Args),
    /// Train the tiny model that ships with the project and write it to recipes/tiny.
    MakeTiny(make_tiny::Args),
    /// Compare the recipes' losses with torchtune's on SmolLM2-135M, in fp32 and bf16 (downloads 100 MB; about ten minutes).
    Parity(parity::Args),
    /// Compare the recipes' speed and memory with torchtune's and PEFT's (installs both; `--quick` for a first look).
    Bench(bench::Args),
    /// Checksums of losses, gradients and steps on the test models, to compare two builds on one machine (minutes).
    Bits(bits::Args),
    /// Compile the CUDA kernels for every generation of cards and embed them (nvcc comes from PyPI; minutes the first time).
    Kernels(kernels::Args),
    /// Put together a folder that checks and measures CUDA on a machine with a card (`sh run.sh` there).
    GpuCheck(gpu_check::Args),
    /// Write a new recipe, its config and its test, which build and run as they are.
    NewRecipe(new_recipe::Args),
}

fn main() -> ExitCode {
    // As cargo says now: a target folder that several checkouts share may hold another one's build.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let root = Path::new(&package).parent().unwrap_or(Path::new("."));
    let result = match Cli::parse().task {
        Task::Codegen(args) => codegen::run(root, &args),
        Task::MakeTiny(args) => make_tiny::run(root, &args),
        Task::Parity(args) => parity::run(root, &args),
        Task::Bench(args) => bench::run(root, &args),
        Task::Bits(args) => bits::run(root, &args),
        Task::Kernels(args) => kernels::run(root, &args),
        Task::GpuCheck(args) => gpu_check::run(root, &args),
        Task::NewRecipe(args) => new_recipe::run(root, &args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
