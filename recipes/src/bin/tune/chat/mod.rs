//! `chat`: a conversation in the terminal.

mod command;
mod editor;
mod line;
mod session;

use std::path::PathBuf;

use tune_core::artifact::{Receipt, Source, part};
use tune_core::checkpoint::merge::Part;
use tune_core::config::{complain, files};
use tune_core::device::{DeviceConfig, Precision, choose_seed};
use tune_core::generate::{Sampler, SamplerOptions, StopOptions};
use tune_core::models::LoadOptions;

use crate::Result;
use command::Command;
use editor::{Editor, Line};
use session::Session;

/// No chat template is longer.
const LARGEST: u64 = 16 << 20;

/// Whom to talk to, and how it answers.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A model's folder, a GGUF file, `hf://org/name`, an adapter, a checkpoint, or a run's folder (its newest checkpoint).
    model: PathBuf,
    /// Put this adapter on the model; `ADAPTER=0.5` takes half of it. Can be said several times.
    #[arg(long, value_name = "ADAPTER[=WEIGHT]", value_parser = part)]
    adapter: Vec<Part>,
    /// The model that an adapter is for; by default the one that it names.
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// What stands before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Begin with a conversation that /save has written.
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// A chat template (Jinja) in place of the model's.
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// The most tokens of an answer: a longer one is cut off.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    max_new_tokens: usize,
    /// Divides the logits; at 0 the likeliest token is always taken.
    #[arg(long, value_name = "X", default_value_t = 0.7, value_parser = temperature)]
    temperature: f64,
    /// Draw from the N likeliest tokens only.
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Draw from the fewest likeliest tokens whose probabilities add up to this.
    #[arg(long, value_name = "P", value_parser = probability)]
    top_p: Option<f64>,
    /// Where the drawing starts; by default a fresh one, which is shown.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// fp32 or bf16: the precision that is computed in.
    #[arg(long, value_name = "TYPE", default_value = "fp32", value_parser = precision)]
    dtype: Precision,
    /// cpu, cuda, cuda:N or auto.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    device: DeviceConfig,
}

/// Talks until there is nothing more to be said.
///
/// # Errors
/// A model that cannot be read, or one without a chat template.
pub(crate) fn run(args: &Args) -> Result<()> {
    let source = Source::find(&args.model, args.base.as_deref(), &args.adapter)?;
    let merged = source.open()?;
    merged.warnings().iter().for_each(|warning| complain!("warning: {warning}"));
    if let Some(said) = Receipt::brief(merged.base().path()) {
        complain!("{said}");
    }
    let mut tokenizer = merged.tokenizer().clone();
    if let Some(file) = &args.chat_template {
        let bytes = files::read(file, LARGEST).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let text = String::from_utf8(bytes).map_err(|_| format!("{}: is not UTF-8 text", file.display()))?;
        tokenizer = tokenizer.with_chat_template(&text)?;
    }
    if tokenizer.chat_template().is_none() {
        return Err(format!(
            "{} has no chat template, so it is no model for conversations; `tune run generate` continues a text, and \
             --chat-template FILE gives it one",
            source.shown()
        )
        .into());
    }
    let (device, chosen) = args.device.choose()?;
    chosen.iter().for_each(|line| complain!("{line}"));
    let options = LoadOptions { dtype: args.dtype.dtype(), device, train_weights: false, lora: None };
    let model = merged.trained(&options)?;
    let seed = choose_seed(args.seed);
    let drawing = SamplerOptions { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    let stop = StopOptions {
        max_new_tokens: args.max_new_tokens,
        stop_tokens: tokenizer.stop_tokens().iter().copied().collect(),
    };
    let mut session = Session::new(&model, &tokenizer, Sampler::new(drawing, seed), stop, args.system.clone());
    if let Some(file) = &args.load {
        complain!("{}", session.load(file)?);
    }
    let mut editor = Editor::open();
    if editor.is_terminal() {
        complain!("talking to {}; /help lists commands, Ctrl-D ends", source.shown());
        if args.temperature > 0.0 {
            complain!("seed {seed}");
        }
    }
    loop {
        let said = match editor.read()? {
            Line::End => return Ok(()),
            Line::Nothing => continue,
            Line::Text(text) => text,
        };
        let command = match command::parse(&said) {
            Ok(command) => command,
            Err(what) => {
                complain!("{what}");
                continue;
            }
        };
        // What fails in a conversation does not end it.
        match command {
            Command::Quit => return Ok(()),
            Command::Say(text) => attempt(session.say(&text)),
            Command::Regenerate => attempt(session.regenerate()),
            Command::Help => complain!("{}", command::HELP),
            Command::Reset => {
                session.reset();
                complain!("the conversation begins anew");
            }
            Command::System(text) => complain!("{}", session.instruct(text)),
            Command::Save(file) => told(session.save(&file)),
            Command::Load(file) => told(session.load(&file)),
        }
        if session.is_over() {
            return Ok(());
        }
    }
}

fn attempt(result: Result<()>) {
    if let Err(error) = result {
        complain!("error: {error}");
    }
}

fn told(result: Result<String>) {
    match result {
        Ok(said) => complain!("{said}"),
        Err(error) => complain!("error: {error}"),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0);
    number.ok_or_else(|| format!("`{text}` is no temperature; it is a number from 0 on"))
}

fn probability(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x: &f64| (0.0..=1.0).contains(x));
    number.ok_or_else(|| format!("`{text}` is no probability; it is a number from 0 to 1"))
}

pub(crate) fn precision(text: &str) -> Result<Precision, String> {
    match text {
        "fp32" => Ok(Precision::Fp32),
        "bf16" => Ok(Precision::Bf16),
        other => Err(format!("`{other}` is no precision that is computed in; use fp32 or bf16")),
    }
}

pub(crate) fn device(text: &str) -> Result<DeviceConfig, String> {
    text.parse()
}
