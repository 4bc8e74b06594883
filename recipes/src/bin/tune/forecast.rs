//! `plan --device`: what a run would take on cards that need not be here.

use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use tune_core::config::cli::show;
use tune_core::models::{Architecture, ModelSpec};
use tune_core::planner::{CARDS, Card, Cluster, Forecast, Job, Kept, Logits, Sharding, Trained};

use crate::{Result, shipped};

/// A run on cards that need not be here.
#[derive(clap::Args)]
#[command(next_help_heading = "A forecast for cards that need not be here")]
pub(crate) struct Args {
    /// Forecast memory, time and cost on this card from published rates, with --model in place of a recipe: `h100-80g`.
    #[arg(long, value_name = "CARD", requires = "model", conflicts_with = "command")]
    device: Option<String>,
    /// A model of a known size, such as `llama3_1_405b`, or a `config.json`, or its folder.
    #[arg(long, value_name = "MODEL", requires = "device")]
    model: Option<String>,
    /// Train adapters of this rank on all linear layers of the blocks, in place of all weights.
    #[arg(long, value_name = "RANK", requires = "device", value_parser = clap::value_parser!(u32).range(1..))]
    lora_rank: Option<u32>,
    /// Hold the base of adapters in NF4.
    #[arg(long, requires = "lora_rank")]
    quantize_base: bool,
    /// Tokens of a sequence.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = positive)]
    max_seq_len: usize,
    /// Sequences of a micro-batch, on each card.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    batch_size: usize,
    /// Micro-batches of a step, on each card.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    gradient_accumulation_steps: usize,
    /// What is kept of the forward pass.
    #[arg(long, value_enum, default_value_t = Checkpointing::Blocks)]
    activation_checkpointing: Checkpointing,
    /// What is divided among the cards.
    #[arg(long, value_enum, default_value_t = Divided::Blocks)]
    sharding: Divided,
    /// The type that weights are kept in where all are trained.
    #[arg(long, value_enum, default_value_t = Kind::Bf16)]
    dtype: Kind,
    /// Cards of a machine.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = positive)]
    nproc_per_node: usize,
    /// Gbit/s of each card to other machines.
    #[arg(long, value_name = "GBIT", default_value_t = 400.0, value_parser = above_zero)]
    network: f64,
    /// Watts that a card is held to.
    #[arg(long, value_name = "WATTS", value_parser = above_zero)]
    power: Option<f64>,
    /// Tokens a second that one card was seen to train: what follows is forecast from that.
    #[arg(long, value_name = "RATE", value_parser = above_zero)]
    measured: Option<f64>,
    /// What a card costs an hour.
    #[arg(long, value_name = "PRICE", value_parser = above_zero)]
    price: Option<f64>,
    /// Tokens to train on in all, for time and cost of the whole: `15e12`.
    #[arg(long, value_name = "N", value_parser = above_zero)]
    tokens: Option<f64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Checkpointing {
    /// Everything that the backward pass needs is kept.
    None,
    /// The attention's results and every second product are.
    Selective,
    /// The inputs of blocks are, which are run again.
    Blocks,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Divided {
    /// Weights, gathered for a block at a time, gradients and the optimizer's state.
    Blocks,
    /// The same, but gathered weights stay until the backward pass has used them (`reshard_after_forward: false`).
    Steps,
    /// Nothing: plain data parallel.
    None,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Bf16,
    Fp32,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|&n| n > 0 && n <= 1 << 24)
        .ok_or_else(|| "a whole number from 1 on was expected".to_owned())
}

fn above_zero(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|n| n.is_finite() && *n > 0.0).ok_or_else(|| "a number above 0 was expected".to_owned())
}

impl Args {
    /// Whether a forecast is asked for.
    pub(crate) fn is_asked(&self) -> bool {
        self.device.is_some()
    }

    /// Shows it for this number of cards. The exit code says whether the run fits.
    ///
    /// # Errors
    /// A card or a model that is not known.
    pub(crate) fn show(&self, cards: usize) -> Result<ExitCode> {
        let name = self.device.as_deref().unwrap_or_default();
        let known = || CARDS.iter().map(|card| card.name);
        let card = Card::named(name).ok_or_else(|| {
            let all: Vec<&str> = known().collect();
            format!("the rates of a card `{name}` are not known; known are {}", all.join(", "))
        })?;
        let card = self.power.map_or(card, |watts| card.held_to(watts));
        let model = spec(self.model.as_deref().unwrap_or_default())?;
        let trained = match self.lora_rank {
            None => Trained::All,
            Some(rank) if self.quantize_base => Trained::AdaptersOnNf4(adapters(&model, rank)),
            Some(rank) => Trained::Adapters(adapters(&model, rank)),
        };
        let job = Job {
            model,
            trained,
            weight_bytes: match self.dtype {
                Kind::Bf16 => 2.0,
                Kind::Fp32 => 4.0,
            },
            sequences: self.batch_size,
            length: self.max_seq_len,
            micro_batches: self.gradient_accumulation_steps,
            kept: match self.activation_checkpointing {
                Checkpointing::None => Kept::All,
                Checkpointing::Selective => Kept::Selected,
                Checkpointing::Blocks => Kept::Inputs,
            },
            sharding: match self.sharding {
                Divided::Blocks => Sharding::Blocks,
                Divided::Steps => Sharding::Steps,
                Divided::None => Sharding::None,
            },
            logits: Logits::Some,
            measured: self.measured,
        };
        let in_a_machine = self.nproc_per_node.min(cards);
        let cluster = Cluster { card, cards, in_a_machine, network: self.network / 8.0 * 1e9 };
        let forecast = Forecast::new(job, cluster, self.price, self.tokens);
        let shown = show(&forecast.to_string());
        Ok(if forecast.is_possible() { shown } else { ExitCode::FAILURE })
    }
}

/// The shape of a model: by name, or of its `config.json`.
fn spec(name: &str) -> Result<ModelSpec> {
    if let Some(architecture) = Architecture::named(name) {
        return Ok(architecture.spec()?);
    }
    let path = Path::new(name);
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    if !file.is_file() {
        let hint = shipped::nearest(name, Architecture::names().map(str::to_owned));
        return Err(format!("there is no model `{name}` whose size is known, and no such file{hint}").into());
    }
    let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
    let text = std::fs::read_to_string(&file).map_err(|error| wrong(&error))?;
    let config: serde_json::Value = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
    Ok(ModelSpec::from_json(&config).map_err(|error| wrong(&error))?)
}

/// Parameters of adapters of this rank on all linear layers of the blocks.
fn adapters(model: &ModelSpec, rank: u32) -> u64 {
    let layers = (0..model.blocks.len()).flat_map(|block| model.layers(block));
    layers.map(|layer| u64::from(rank) * (layer.out + layer.inner) as u64).sum()
}
