//! The config type of the cases, and of the test that compares what the
//! compiler says with what a recipe says that is started with the same file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tune_config::Config;

/// What `train` is told.
#[derive(Debug, Config)]
#[config(crate = tune_config, ignored(compile = "there is nothing to compile"))]
pub(crate) struct TrainConfig {
    /// Checkpoints go here.
    pub(crate) output_dir: PathBuf,
    /// Passes over the data.
    #[config(default = 1, range = 1..=1000, alias = "num_epochs")]
    pub(crate) epochs: u32,
    /// Where all randomness starts.
    pub(crate) seed: Option<u64>,
    /// How numbers are held.
    #[config(default = "fp32")]
    pub(crate) dtype: Dtype,
    /// Takes the samples in a new order.
    #[config(default = true)]
    pub(crate) shuffle: bool,
    /// The shape of the adapters.
    #[config(default)]
    pub(crate) model: Model,
    /// What moves the weights.
    #[config(default)]
    pub(crate) optimizer: Optimizer,
    /// What is trained on.
    #[config(one_or_many)]
    pub(crate) dataset: Vec<Dataset>,
    #[config(flatten)]
    pub(crate) log: Log,
}

/// How numbers are held.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
pub(crate) enum Dtype {
    /// 32 bits.
    #[config(name = "fp32", alias = "float32")]
    F32,
    /// Brain float.
    #[config(name = "bf16", alias = "bfloat16")]
    Bf16,
}

/// The shape of the adapters.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
pub(crate) struct Model {
    /// The rank of each adapter.
    #[config(default = 8, range = 1..)]
    pub(crate) lora_rank: u8,
    /// Which projections get one.
    #[config(default = ["q_proj"], one_of = ["q_proj", "k_proj", "v_proj"])]
    pub(crate) lora_attn_modules: Vec<String>,
    /// The share of inputs that is dropped.
    #[config(default = 0.0, range = 0.0..1.0)]
    pub(crate) lora_dropout: f32,
}

/// What moves the weights.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
pub(crate) enum Optimizer {
    /// Adam with decoupled weight decay.
    #[config(name = "adamw", alias = "torch.optim.AdamW", default)]
    AdamW(AdamW),
    /// Gradient descent.
    #[config(name = "sgd", alias = "torch.optim.SGD")]
    Sgd(Sgd),
}

/// Adam with decoupled weight decay.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
pub(crate) struct AdamW {
    /// The learning rate.
    #[config(default = 2e-5, range = 0.0..)]
    pub(crate) lr: f64,
    /// How long gradients are remembered, and their squares.
    #[config(default = [0.9, 0.999], range = 0.0..1.0)]
    pub(crate) betas: [f64; 2],
}

/// Gradient descent.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
pub(crate) struct Sgd {
    /// The learning rate.
    pub(crate) lr: f64,
    /// What is kept of the last step.
    #[config(default = 0.0, range = 0.0..1.0)]
    pub(crate) momentum: f64,
}

/// What is trained on.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
pub(crate) enum Dataset {
    /// Columns of a file.
    #[config(name = "instruct", alias = "torchtune.datasets.instruct_dataset")]
    Instruct(Instruct),
    /// Conversations.
    #[config(name = "chat")]
    Chat(Chat),
}

/// Columns of a file.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
pub(crate) struct Instruct {
    /// The file.
    pub(crate) path: PathBuf,
    /// Our columns, and what the file calls them.
    #[config(default)]
    pub(crate) column_map: BTreeMap<String, String>,
    /// Another source.
    pub(crate) mixed_with: Option<Mixed>,
}

/// Conversations.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
pub(crate) struct Chat {
    /// The files.
    #[config(one_or_many)]
    pub(crate) data_files: Vec<PathBuf>,
}

/// Another source.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
pub(crate) struct Mixed {
    /// Its share.
    #[config(default = 0.5, range = 0.0..=1.0)]
    pub(crate) share: f64,
}

/// What is logged.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
pub(crate) struct Log {
    /// Steps between two lines.
    #[config(default = 1, range = 1..)]
    pub(crate) log_every_n_steps: usize,
}
