//! Our recipes against torchtune and against transformers with PEFT: speed, memory, time to the first step.

mod cases;
mod data;
mod flops;
mod machine;
mod model;
mod ours;
mod peers;
mod process;
mod report;
mod run;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tune_core::config::say;
use tune_core::models::ModelSpec;

use crate::Result;
use cases::{ALL, Base, Case, GOALS, Model, QUICK};
use machine::Place;
use ours::Ours;
use peers::{Compile, Peer};
use report::{Measured, Report};
use run::{Program, WARM_UP};
use tune_core::engine;

/// What `bench` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure: `{lora|full}_{fp32|bf16}_{tokens in a row}[_chat][_ckpt]`, any of them, or `lora_bf16_1b5[_nf4|_q4_k_m]`;
    /// by default a list that takes hours.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<Case>,
    /// Two cases, one round, few steps.
    #[arg(long)]
    quick: bool,
    /// One processor's column: LoRA and full fine-tuning in both precisions at 512 tokens, and generation by one and by sixteen.
    #[arg(long, conflicts_with_all = ["quick", "cases"])]
    goals: bool,
    /// How often each program is run, in turn: 3 times, once with --quick.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Steps of a run, of which the first two do not count: 8, 5 with --quick.
    #[arg(long, value_parser = clap::value_parser!(u32).range(WARM_UP as i64 + 1..=1000))]
    steps: Option<u32>,
    /// Whom to compare with.
    #[arg(long, value_delimiter = ',', default_value = "torchtune,peft")]
    peers: Vec<Choice>,
    /// Threads of each program; by default all cores.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Whether the peers go through torch.compile; by default the faster way is found out before each case.
    #[arg(long, value_enum)]
    compile_peers: Option<Compile>,
    /// Folder with the model as `tests/fixtures/smollm2/prepare.sh` makes it; made there if it is missing.
    #[arg(long, default_value = "target/bench/smollm2")]
    model: PathBuf,
    /// Folder of the peers' Python environments; made there if they are missing (several GB).
    #[arg(long, default_value = "target/bench/venv")]
    venv: PathBuf,
    /// Where the results go.
    #[arg(long, default_value = "benches/results")]
    results: PathBuf,
}

/// A peer, or none of them.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Choice {
    Torchtune,
    Peft,
    None,
}

impl Choice {
    fn program(self) -> Option<Program> {
        match self {
            Self::Torchtune => Some(Program::Torchtune),
            Self::Peft => Some(Program::Peft),
            Self::None => None,
        }
    }
}

/// What is the same for every program in a case.
#[derive(Clone)]
struct Setting {
    root: PathBuf,
    /// Data, logs and records of the case.
    folder: PathBuf,
    model: PathBuf,
    /// What is trained, where that is another file than `model` with the same tokenizer.
    checkpoint: PathBuf,
    steps: usize,
    threads: usize,
    lr: f64,
}

/// Measures the cases one after the other; in each, the programs train in turn, round after round.
pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    let names = match (args.quick, args.goals) {
        (true, _) => QUICK,
        (_, true) => GOALS,
        _ => ALL,
    };
    let cases = match args.cases.as_slice() {
        [] => names.iter().map(|name| name.parse()).collect::<Result<Vec<Case>, _>>()?,
        chosen => chosen.to_vec(),
    };
    let rounds = args.rounds.unwrap_or(if args.quick { 1 } else { 3 }) as usize;
    let steps = args.steps.unwrap_or(if args.quick { 5 } else { 8 }) as usize;
    let threads =
        args.threads.map_or_else(|| std::thread::available_parallelism().map(usize::from), |n| Ok(n as usize))?;
    let compile = args.compile_peers.unwrap_or(if args.quick { Compile::Never } else { Compile::Try });
    let work = root.join("target/bench");
    fs::create_dir_all(&work)?;

    let place = Place::here(root)?;
    let smollm2 = model::smollm2(root, &root.join(&args.model))?;
    let ours = Ours::build(root)?;
    let mut accounts = vec![(Program::Ours, ours::SETTINGS.to_owned())];
    let mut peers = Vec::new();
    for program in args.peers.iter().filter_map(|choice| choice.program()) {
        match Peer::install(program, root, &root.join(&args.venv)) {
            Ok(peer) => peers.push(peer),
            Err(reason) => {
                say!("{program} cannot be installed, so ours are not compared with it: {reason}");
                accounts.push((program, format!("could not be installed: {reason}")));
            }
        }
    }

    let path = report::free_path(&root.join(&args.results), &place)?;
    let mut report =
        Report { path, place, rounds, steps, threads, accounts, cases: Vec::new(), generation: String::new() };
    if args.cases.is_empty() && !args.quick {
        say!("\nGeneration");
        report.generation = ours.generation(&smollm2, threads)?;
        say!("{}", report.generation.trim_end());
    }
    for case in cases {
        let folder = work.join("cases").join(case.to_string());
        fs::create_dir_all(&folder)?;
        let (model, peers) = match case.model {
            Model::SmolLm2 => (smollm2.clone(), peers.as_mut_slice()),
            Model::Random1b5 => (model::random_1b5(&smollm2, &work.join("random_1b5"))?, [].as_mut_slice()),
        };
        let checkpoint = match case.base {
            Base::Q4KM => model::in_q4_k_m(&model, &work.join("random_1b5.Q4_K_M.gguf"))?,
            Base::Plain | Base::Nf4 => model.clone(),
        };
        let lr = if case.recipe == "lora" { 3e-4 } else { 2e-5 };
        let setting = Setting { root: root.to_owned(), folder, model, checkpoint, steps, threads, lr };
        let measured = measure(&case, &setting, rounds, &ours, peers, compile)?;
        for peer in peers {
            if let Some(account) = &peer.account {
                report.accounts.retain(|(program, _)| *program != peer.program);
                report.accounts.push((peer.program, account.clone()));
            }
        }
        for stranger in measured.strangers() {
            say!("{case}: the first loss of {stranger} is not ours: it did not compute the same");
        }
        report.cases.push(measured);
        // After each case: a long run that is stopped leaves what it has.
        report.write()?;
    }
    say!("\n{}\nWritten to {}.json and .md", report.table(), report.path.display());
    if report.cases.iter().any(|c| c.failures.iter().any(|(program, _)| *program == Program::Ours)) {
        return Err("a run of ours failed".into());
    }
    Ok(())
}

/// One case: yardstick, ours, the peers; and again.
fn measure(
    case: &Case,
    setting: &Setting,
    rounds: usize,
    ours: &Ours,
    peers: &mut [Peer],
    compile: Compile,
) -> Result<Measured> {
    let source = setting.root.join("tests/fixtures/torchtune/humaneval_messages.jsonl");
    let data = data::prepare(case, setting.steps, &setting.model, &source, &setting.folder)?;
    let config: Value = serde_json::from_str(&fs::read_to_string(setting.model.join("config.json"))?)?;
    let model = ModelSpec::from_json(&config)?;
    let flops: Vec<engine::Work> =
        data.steps.iter().map(|work| flops::of_step(&model, case.recipe, work)).collect::<Result<_, _>>()?;
    let (mut peaks, mut runs, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    say!("\n{case}: {}", case.words());
    let mut compiled = Vec::new();
    for peer in peers.iter_mut() {
        if match compile {
            Compile::Never => false,
            Compile::Always => true,
            Compile::Try => peer.is_faster_compiled(case, &data, setting),
        } {
            compiled.push(peer.program);
        }
    }
    for round in 1..=rounds {
        peaks.push(ours.peak(setting.threads)?);
        let mut note = |program: Program, result: Result<run::Run>| match result {
            Ok(run) => {
                say!(
                    "  round {round}  {program:<10} {:>6.0} tokens/s  {:>6.2} GB  {:>5.1} s to the first forward pass",
                    run.tokens_per_second(&data.steps),
                    run.peak_memory as f64 / 1e9,
                    run.to_first_forward(),
                );
                runs.push((program, round, run));
            }
            Err(reason) => {
                say!("  round {round}  {program:<10} {reason}");
                failures.push((program, reason.to_string()));
            }
        };
        note(Program::Ours, ours.train(case, &data, setting));
        for peer in peers.iter_mut() {
            note(peer.program, peer.train(case, &data, setting, compiled.contains(&peer.program)));
        }
    }
    Ok(Measured { case: *case, steps: data.steps, flops, compiled, peaks, runs, failures })
}
