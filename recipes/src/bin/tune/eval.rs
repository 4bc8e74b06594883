//! `eval`: what a model can do, alone or beside another.

use std::path::{Path, PathBuf};

use serde_json::json;
use tune_core::artifact::{Receipt, Source, part};
use tune_core::checkpoint::merge::Part;
use tune_core::config::{complain, output};
use tune_core::device::{Compute, DeviceConfig, Precision};
use tune_core::eval::{self, Asking, Item, Outcome, Program, Resampling, Row, Task};
use tune_core::models::LoadOptions;

use crate::Result;

/// What is measured, and on what.
#[derive(clap::Args)]
#[command(after_help = "Items are JSON lines, each of one kind:
  {\"text\": \"...\"}                                     perplexity, bits for each byte
  {\"prompt\": \"...\", \"answer\": \"...\"}                exact match, of one answer or one of a list
  {\"messages\": [...]}                                 exact match; the assistant's last message is right
  {\"prompt\": \"...\", \"choices\": [...], \"answer\": 0}  multiple choice by log-likelihood: raw, per token, per byte
  {\"prompt\": \"...\", \"regex\": \"...\"}                 a pattern that the answer must have
  {\"prompt\": \"...\", \"schema\": {...}}                the answer must be JSON of this schema
With --program, a program judges answers: for each it reads a line {\"record\", \"prompt\", \"answer\"} and writes {\"score\": 0..1}.")]
pub(crate) struct Args {
    /// A model's folder, a GGUF file, `hf://org/name`, an adapter, a checkpoint, or a run's folder (its newest checkpoint).
    model: PathBuf,
    /// Files of items (JSON lines). Each is a task.
    #[arg(required = true, value_name = "FILE")]
    tasks: Vec<PathBuf>,
    /// Put this adapter on the model; `ADAPTER=0.5` takes half of it. Can be said several times.
    #[arg(long, value_name = "ADAPTER[=WEIGHT]", value_parser = part)]
    adapter: Vec<Part>,
    /// The model that an adapter is for; by default the one that it names.
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Measure this model, too, and compare; by default, an adapter is compared with its base.
    #[arg(long, value_name = "MODEL", conflicts_with = "alone")]
    against: Option<PathBuf>,
    /// Measure the model alone.
    #[arg(long)]
    alone: bool,
    /// Write a page (HTML) that says where it got better and worse, with the examples.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// Write what the models made of each item, as JSON lines.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// A command that judges answers.
    #[arg(long, value_name = "COMMAND")]
    program: Option<String>,
    /// What stands before each conversation or prompt.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Give prompts to the model as they are, without its chat template.
    #[arg(long)]
    no_chat_template: bool,
    /// Take the first N items of each task alone.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// The most tokens of an answer: a longer one is cut off.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    max_new_tokens: u64,
    /// How many tokens are computed at a time.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..))]
    batch_tokens: u64,
    /// Draws of the bootstrap.
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    resamples: u64,
    /// Where the drawing of the bootstrap starts.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// fp32 or bf16: the precision that is computed in.
    #[arg(long, value_name = "TYPE", default_value = "fp32", value_parser = crate::chat::precision)]
    dtype: Precision,
    /// cpu, cuda, cuda:N or auto.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = crate::chat::device)]
    device: DeviceConfig,
}

/// Measures one model or two.
///
/// # Errors
/// A model or a task that cannot be read, an item that cannot be asked, a program that fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let source = Source::find(&args.model, args.base.as_deref(), &args.adapter)?;
    let other = match &args.against {
        Some(model) => Some(Source::find(model, None, &[])?),
        None if args.alone || source.parts.is_empty() => None,
        None => Some(Source { base: source.base.clone(), parts: Vec::new() }),
    };
    // All of the tasks are known to be sound before a weight is read.
    let tasks = args.tasks.iter().map(|file| items(file, args)).collect::<Result<Vec<_>>>()?;
    // And so are the files that the results go to: what was computed for hours is not to be lost for a folder that is not there.
    args.results.iter().chain(&args.page).try_for_each(|file| can_be_written(file))?;
    let (device, chosen) = args.device.choose()?;
    chosen.iter().for_each(|line| complain!("{line}"));
    let mut program = args.program.as_deref().map(Program::start).transpose()?;
    let mut measured = |source: &Source| measure(source, &tasks, args, &device, program.as_mut());
    // One model after the other: two may not fit into memory.
    let base = other.as_ref().map(&mut measured).transpose()?;
    let tuned = measured(&source)?;

    let resampling = Resampling { resamples: usize::try_from(args.resamples)?, seed: args.seed };
    let of_base = |i: usize| base.as_ref().map(|base| &base[i][..]);
    let rows: Vec<Vec<Row>> =
        tuned.iter().enumerate().map(|(i, tuned)| eval::rows(tuned, of_base(i), resampling)).collect();
    let names: Vec<String> = args.tasks.iter().map(|file| file.display().to_string()).collect();
    let shown = other.as_ref().map(Source::shown);
    let mut text = source.shown();
    if let Some(shown) = &shown {
        text += &format!(", compared with {shown}");
    }
    text += ". In brackets: intervals of 95 %.\n";
    for (name, rows) in names.iter().zip(&rows) {
        text += &format!("{name}\n{}", eval::table(rows));
    }
    let printed = output::show(&text);
    if let Some(file) = &args.results {
        let lines = (0..tasks.len()).map(|i| results(&tasks[i], &tuned[i], of_base(i))).collect::<String>();
        write(file, &lines)?;
    }
    if let Some(file) = &args.page {
        let sections: Vec<Task<'_>> = (0..tasks.len())
            .map(|i| Task { name: &names[i], items: &tasks[i], tuned: &tuned[i], base: of_base(i), rows: &rows[i] })
            .collect();
        write(file, &eval::page((&source.shown(), shown.as_deref()), &sections, resampling))?;
    }
    printed?;
    Ok(())
}

fn items(file: &Path, args: &Args) -> Result<Vec<Item>> {
    let mut items = Item::read(file, args.program.is_some())?;
    if let Some(limit) = args.limit {
        items.truncate(usize::try_from(limit)?);
    }
    Ok(items)
}

/// What a model makes of each task's items.
fn measure(
    source: &Source,
    tasks: &[Vec<Item>],
    args: &Args,
    device: &Compute,
    mut program: Option<&mut Program>,
) -> Result<Vec<Vec<Outcome>>> {
    complain!("measuring {}", source.shown());
    let merged = source.open()?;
    merged.warnings().iter().for_each(|warning| complain!("warning: {warning}"));
    if let Some(said) = Receipt::brief(merged.base().path()) {
        complain!("{said}");
    }
    let options = LoadOptions { dtype: args.dtype.dtype(), device: device.clone(), train_weights: false, lora: None };
    let model = merged.trained(&options)?;
    let asking = Asking {
        system: args.system.clone(),
        chat: args.no_chat_template.then_some(false),
        max_new_tokens: usize::try_from(args.max_new_tokens)?,
        tokens: usize::try_from(args.batch_tokens)?,
    };
    let outcomes =
        tasks.iter().map(|items| eval::measure(&model, merged.tokenizer(), items, &asking, program.as_deref_mut()));
    Ok(outcomes.collect::<Result<_, _>>()?)
}

/// A line for each item: where it is from, what was expected, and what the models made of it.
fn results(items: &[Item], tuned: &[Outcome], base: Option<&[Outcome]>) -> String {
    let of = |outcome: &Outcome| {
        let numbers: serde_json::Map<String, serde_json::Value> =
            outcome.parts.iter().map(|(name, (sum, count))| ((*name).to_owned(), json!([sum, count]))).collect();
        let mut said = json!({ "answer": outcome.said, "why": outcome.why, "metrics": numbers });
        if !outcome.log_likelihoods.is_empty() {
            said["log_likelihoods"] = json!(outcome.log_likelihoods);
        }
        said
    };
    let line = |i: usize| {
        let mut line = json!({ "origin": items[i].origin, "record": items[i].record, "model": of(&tuned[i]) });
        if let Some(base) = base {
            line["base"] = of(&base[i]);
        }
        format!("{line}\n")
    };
    (0..items.len()).map(line).collect()
}

/// Whether a file can be written later on; one that is there stays as it is.
fn can_be_written(file: &Path) -> Result<()> {
    let meta = std::fs::metadata(file);
    // A pipe would end for its reader.
    if meta.as_ref().is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
        return Ok(());
    }
    let is_new = meta.is_err();
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    if is_new {
        std::fs::remove_file(file).map_err(|error| format!("cannot remove {}: {error}", file.display()))?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    complain!("wrote {}", file.display());
    Ok(())
}
