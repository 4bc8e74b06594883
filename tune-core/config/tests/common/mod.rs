//! A config with a bit of everything, for the tests of this folder.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use tune_config::{Config, Input, Loaded, load};

/// Trains low-rank adapters on a frozen base model.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config, ignored(compile = "there is nothing to compile", profiler = "use a profiler"))]
pub(crate) struct Train {
    /// Checkpoints and logs go here.
    pub(crate) output_dir: PathBuf,
    /// Sequences per micro-batch.
    #[config(default = 2, range = 1..=1024)]
    pub(crate) batch_size: usize,
    /// Passes over the data.
    #[config(default = 1, range = 1.., alias = "num_epochs")]
    pub(crate) epochs: u32,
    /// `null` for a random one.
    pub(crate) seed: Option<u64>,
    /// A name for the run.
    #[config(default = "run")]
    pub(crate) name: String,
    /// How numbers are held.
    #[config(default = "fp32")]
    pub(crate) dtype: Dtype,
    /// Saves memory for time.
    #[config(default = false)]
    pub(crate) enable_activation_checkpointing: bool,
    /// The model.
    #[config(default)]
    pub(crate) model: Model,
    /// What moves the weights.
    #[config(default)]
    pub(crate) optimizer: Optimizer,
    /// What to train on.
    #[config(one_or_many, alias = "dataset")]
    pub(crate) datasets: Vec<Dataset>,
    #[config(flatten)]
    pub(crate) log: Log,
}

/// How numbers are held.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
pub(crate) enum Dtype {
    /// 32 bits.
    #[config(name = "fp32", alias = "float32")]
    F32,
    /// Brain float.
    #[config(name = "bf16")]
    Bf16,
}

/// The shape of the adapters.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
pub(crate) struct Model {
    /// The rank of each adapter.
    #[config(default = 8, range = 1..)]
    pub(crate) lora_rank: usize,
    /// Which projections get one.
    #[config(default = ["q_proj", "v_proj"], one_of = ["q_proj", "k_proj", "v_proj", "o_proj"])]
    pub(crate) lora_attn_modules: Vec<String>,
    /// The share of inputs that is dropped.
    #[config(default = 0.0, range = 0.0..1.0)]
    pub(crate) lora_dropout: f32,
}

/// What moves the weights.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
pub(crate) enum Optimizer {
    /// Adam with decoupled weight decay.
    #[config(name = "adamw", alias = "torch.optim.AdamW", default)]
    AdamW(AdamW),
    /// Gradient descent.
    #[config(name = "sgd", alias = "torch.optim.SGD")]
    Sgd(Sgd),
    /// Nothing moves.
    #[config(name = "none")]
    Frozen,
}

/// Adam with decoupled weight decay.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config, ignored(fused = "all of it is fused here"))]
pub(crate) struct AdamW {
    /// The learning rate.
    #[config(default = 2e-5, range = 0.0..)]
    pub(crate) lr: f64,
    /// How long gradients are remembered, and their squares.
    #[config(default = [0.9, 0.999], range = 0.0..1.0)]
    pub(crate) betas: [f64; 2],
    /// Pulls the weights to zero.
    #[config(default = 0.01)]
    pub(crate) weight_decay: f64,
}

/// Gradient descent.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
pub(crate) struct Sgd {
    /// The learning rate.
    #[config(default = 1e-3, range = 0.0..)]
    pub(crate) lr: f64,
    /// What is kept of the last step.
    #[config(default = 0.0, range = 0.0..1.0)]
    pub(crate) momentum: f64,
}

/// What to train on.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
pub(crate) enum Dataset {
    /// Columns of a file.
    #[config(name = "instruct")]
    Instruct(Instruct),
}

/// Columns of a file.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
pub(crate) struct Instruct {
    /// The file.
    pub(crate) path: PathBuf,
    /// Our columns, and what the file calls them.
    #[config(default)]
    pub(crate) column_map: BTreeMap<String, String>,
}

/// What is logged.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config)]
pub(crate) struct Log {
    /// Steps between two lines.
    #[config(default = 1, range = 1..)]
    pub(crate) log_every_n_steps: usize,
}

/// The least that runs.
pub(crate) const LEAST: &str = "output_dir: out\ndatasets: {_component_: instruct, path: a.json}\n";

pub(crate) fn read(yaml: &str, overrides: &[&str]) -> Result<Loaded<Train>, String> {
    let overrides = overrides.iter().copied();
    load(Input::yaml("lora.yaml", yaml).command("lora --config lora.yaml").overrides(overrides))
        .map_err(|report| report.to_string())
}

/// The config, or its errors as the test's own.
pub(crate) fn good(yaml: &str, overrides: &[&str]) -> Train {
    match read(yaml, overrides) {
        Ok(loaded) => loaded.config,
        Err(report) => panic!("{report}"),
    }
}

/// The errors.
pub(crate) fn bad(yaml: &str, overrides: &[&str]) -> String {
    match read(yaml, overrides) {
        Ok(loaded) => panic!("accepted: {:?}", loaded.config),
        Err(report) => report,
    }
}

/// Compares with `snapshots/NAME.txt`; `UPDATE=1 cargo test` accepts the text.
pub(crate) fn snapshot(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, text).expect("the snapshot is written");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == text, "{} differs; the text is now\n\n{text}\n", path.display());
}
