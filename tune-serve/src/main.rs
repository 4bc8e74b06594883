//! A model behind an HTTP interface that OpenAI's clients speak: `tune serve`.
//!
//! A request goes from [`http`] (who may ask, and how much) through [`completions`] or [`chat`] (what is asked) into the queue
//! of [`engine`], whose one thread computes all sequences together, a token at a time; [`answers`] makes text of what comes, and
//! [`respond`] a response of that.

mod answers;
mod chat;
mod completions;
mod engine;
mod error;
mod fields;
mod http;
mod listen;
mod load;
mod metrics;
mod respond;
mod server;
mod text;
mod tools;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tune_core::artifact::part;
use tune_core::checkpoint::merge::Part;
use tune_core::config::cli::signals;
use tune_core::config::{complain, files, say};
use tune_core::device::{DeviceConfig, Precision};
use tune_core::generate::{Continuous, Kernels};
use tune_core::memory_plan::parse_size;
use tune_core::metrics::Downloads;
use tune_core::{environment, hub};

use engine::{Queue, work};
use load::Loaded;
use server::{Limits, Server};

/// What a command returns; the error is shown to whoever called it.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// No file with a key or a chat template is longer.
const LARGEST: u64 = 16 << 20;

/// Serve a model to OpenAI's clients: /v1/completions and /v1/chat/completions.
#[derive(Parser)]
#[command(name = "serve", bin_name = "tune serve", version)]
struct Args {
    /// A model's folder, a GGUF file, `hf://org/name`, an adapter, a checkpoint, or a run's folder (its newest checkpoint).
    model: PathBuf,
    /// Put this adapter on the model; `ADAPTER=0.5` takes half of it. Can be said several times.
    #[arg(long, value_name = "ADAPTER[=WEIGHT]", value_parser = part)]
    adapter: Vec<Part>,
    /// The model that an adapter is for; by default the one that it names.
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// What clients call the model; by default as its folder or file is called.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Serve this adapter (or run) on the same base, too, under a name of its own. Can be said several times.
    #[arg(long, value_name = "NAME=ADAPTER", value_parser = named)]
    also: Vec<(String, PathBuf)>,
    /// A chat template (Jinja) in place of the model's.
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// fp32 or bf16: the precision that is computed in.
    #[arg(long, value_name = "TYPE", default_value = "fp32", value_parser = precision)]
    dtype: Precision,
    /// cpu, cuda, cuda:N or auto.
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    device: DeviceConfig,
    /// Listen at this address. One that other machines reach wants an API key.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Listen at this port; at 0 the system chooses one, which is shown.
    #[arg(long, value_name = "N", default_value_t = 8000)]
    port: u16,
    /// A file with the API key that clients must send; by default TUNE_API_KEY in the environment, if it is set.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Answer at most N sequences at a time.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    max_sequences: u16,
    /// Memory for what running sequences have read; by default 1GiB, or less where less is enough.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    cache_memory: Option<u64>,
    /// How many more may wait; beyond them clients are told to come back later.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_waiting: usize,
    /// Tokens that a prompt may have; by default as many as the model reads.
    #[arg(long, value_name = "N")]
    max_prompt: Option<usize>,
    /// Tokens that an answer may have, and has in a chat where nothing is said of them.
    #[arg(long, value_name = "N", default_value_t = 2048)]
    max_answer: usize,
    /// The size that the body of a request may have.
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = size)]
    max_body: u64,
    /// Connections at a time; others wait to be accepted.
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_connections: usize,
    /// From a request to the end of its answer, which is cut off then.
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    timeout: Duration,
    /// For a client to send its request, and to take a part of its answer.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    patience: Duration,
    /// For running answers to end after SIGTERM or Ctrl-C; then they are cut off.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    grace: Duration,
    /// Tokens of prompts that are read between two tokens of running answers.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(2..))]
    prefill: u16,
    /// End at once when the standard input ends: for a program that starts this one, and may itself be killed.
    #[arg(long)]
    until_stdin_ends: bool,
}

fn main() -> ExitCode {
    signals::handle();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    environment::check()?;
    hub::watch(Downloads::stderr());
    if args.until_stdin_ends {
        // Whoever held the other end has gone, and with it whoever asked.
        std::thread::spawn(|| {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            std::process::exit(0);
        });
    }
    let key = key(args)?;
    // Nobody waits for a model only to hear that the port is taken.
    let (listener, address) = listen::bind(&args.host, args.port, key.is_some())?;
    let Loaded { models, decoders } = load::load(args)?;
    let spec = decoders[0].config.clone();
    let room = load::room(&decoders[0], args.max_sequences.into(), args.cache_memory)?;
    let limits = Limits {
        body: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        prompt: args.max_prompt.unwrap_or(spec.max_position_embeddings),
        answer: args.max_answer.max(1),
        sequences: args.max_sequences.into(),
        room,
        time: args.timeout,
        patience: args.patience,
        connections: args.max_connections.max(1),
    };
    let of_models: Vec<_> = decoders.iter().collect();
    let batch = Continuous::new(&of_models, room, args.prefill.into(), Kernels::Fast)?;
    let names: Vec<String> = models.iter().map(|model| format!("`{}`", model.name)).collect();
    let server = Arc::new(Server::new(models, spec, limits, args.max_waiting, key));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build()?;
    let listening = signals::Listening::begin();
    say!("serving {} at http://{address}/v1, {room} tokens at a time", names.join(", "));
    let (listened, worked) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let _over = Over(&server.queue);
            work(batch, &server.queue, args.max_sequences.into(), &server.metrics)
        });
        let listened = runtime.block_on(listen::listen(&server, listener, args.grace));
        // Where listening has failed, too.
        server.queue.end(Duration::ZERO);
        (listened, worker.join())
    });
    drop(listening);
    listened.map_err(|error| format!("cannot listen any more: {error}"))?;
    match worked {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("the model cannot be computed any more: {error}").into()),
        Err(_) => Err("the thread that computes has panicked; this is a bug of the program, please report it".into()),
    }
}

/// Ends the queue when the thread that computes ends, however that came.
struct Over<'a>(&'a Queue);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

/// The key that clients must know.
fn key(args: &Args) -> Result<Option<String>> {
    let key = match &args.api_key_file {
        Some(file) => {
            let shown = file.display();
            let bytes = files::read(file, LARGEST).map_err(|error| format!("cannot read {shown}: {error}"))?;
            Some(String::from_utf8(bytes).map_err(|_| format!("{shown}: is not UTF-8 text"))?)
        }
        None => match std::env::var("TUNE_API_KEY") {
            Ok(key) => Some(key),
            Err(std::env::VarError::NotPresent) => None,
            Err(error) => return Err(format!("TUNE_API_KEY: {error}").into()),
        },
    };
    match key.as_deref().map(str::trim) {
        None => Ok(None),
        Some("") => Err("the API key is empty".into()),
        Some(key) if key.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(key.to_owned())),
        Some(_) => {
            Err("the API key has characters that no header can carry; letters, digits and signs are fine".into())
        }
    }
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    let named = text.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty());
    let (name, path) =
        named.ok_or_else(|| format!("`{text}`: a name and an adapter were expected, as in mine=out/lora"))?;
    Ok((name.to_owned(), path.into()))
}

fn precision(text: &str) -> Result<Precision, String> {
    match text {
        "fp32" => Ok(Precision::Fp32),
        "bf16" => Ok(Precision::Bf16),
        other => Err(format!("`{other}` is no precision that is computed in; use fp32 or bf16")),
    }
}

fn device(text: &str) -> Result<DeviceConfig, String> {
    text.parse()
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| format!("`{text}` is no size; 1GiB or 800MiB is one"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    // Longer ones cannot be added to a moment.
    let seconds = seconds.filter(|seconds| *seconds <= Duration::from_secs(1 << 30));
    seconds.ok_or_else(|| format!("`{text}` is no time in seconds"))
}
