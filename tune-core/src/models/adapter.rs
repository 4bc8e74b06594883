//! Low-rank adapters on frozen layers (LoRA, Hu et al. 2021, <https://arxiv.org/abs/2106.09685>).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use candle_core::{DType, Device, Tensor, Var};
use tune_config::Config;

use super::linear::Weight;
use super::mixture;
use super::slots::Slot;
use super::spec::{ModelSpec, Site};
use super::start::Begun;
use super::targets::Targets;
use super::tokens::TrainedTokens;
use super::weights::{normal, uniform};
use crate::Result;
use crate::distributed::Group;
use crate::kernels::Dropout;

/// The adapters to add to a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoraOptions {
    /// The layers that get one, unless `targets` name others.
    pub modules: Vec<Slot>,
    /// Rows of `A` and columns of `B`, where `targets` say nothing else of a layer.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`; see `rank`.
    pub alpha: f64,
    /// The update is scaled by `alpha / sqrt(rank)` instead (rsLoRA, Kalajdzievski 2023, <https://arxiv.org/abs/2312.03732>).
    pub rslora: bool,
    /// Whether the rows of the adapted weight have lengths that are trained apart from their directions (DoRA, Liu et al. 2024,
    /// <https://arxiv.org/abs/2402.09353>). The norms that magnitudes are divided by count as constants on the way back. Dropout
    /// meets the adapter's input alone, as in torchtune; peft drops the weight's input, too.
    pub dora: bool,
    /// Probability of dropping an element of an adapter's input, while training.
    pub dropout: f64,
    /// How a fresh adapter begins.
    pub start: Start,
    /// Products with a weight and its transpose that PiSSA may take for its singular vectors; as many as it needs where `None`.
    pub iterations: Option<usize>,
    /// The adapters as they began, where they began earlier and `start` takes a part of the weights.
    pub begun: Begun,
    /// Where a fresh `A` comes from; a fresh `B` is zero.
    pub seed: u64,
    /// Layers by patterns, and what is otherwise in single ones.
    pub targets: Targets,
    /// Modules whose weights are trained whole beside the adapters, by the ends of their names: peft's `modules_to_save`.
    pub save: Vec<String>,
    /// Folders of adapters that are merged into the base before training begins, in this order.
    pub base_adapters: Vec<PathBuf>,
    /// Tokens to add to the tokenizer, whose embeddings are trained.
    pub new_tokens: Vec<String>,
    /// Tokens whose rows of the embedding table are trained beside the adapters, while all others stay: peft's `trainable_token_indices`.
    pub tokens: TrainedTokens,
    /// The same of an output layer that is not the embedding table.
    pub output_tokens: TrainedTokens,
    /// The names of the weights that are trained whole, in options that are [resolved](Self::resolved).
    pub whole: BTreeSet<String>,
    /// By their names, the only layers that get one, each with a rank and scale of its own; where there are none, what is
    /// above says which.
    pub layers: BTreeMap<String, OfLayer>,
}

/// The adapter of one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OfLayer {
    /// Rows of `A` and columns of `B`.
    pub rank: usize,
    /// What the update is scaled by.
    pub scale: f64,
}

/// How a fresh adapter begins, by peft's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub enum Start {
    /// `A` uniform, `B` zero: the model is at first what it was.
    #[config(name = "kaiming", alias = "true", default)]
    #[default]
    Kaiming,
    /// `A` normal with a deviation of 1 / rank, `B` zero.
    #[config(name = "gaussian")]
    Gaussian,
    /// The weight's largest singular values and vectors, which are taken out of the frozen weight (PiSSA).
    #[config(name = "pissa")]
    Pissa,
    /// The first columns and rows of the weight's QR decomposition, which are taken out of the frozen weight (OLoRA).
    #[config(name = "olora")]
    Olora,
}

impl Start {
    /// Its name in a config.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kaiming => "kaiming",
            Self::Gaussian => "gaussian",
            Self::Pissa => "pissa",
            Self::Olora => "olora",
        }
    }

    /// Whether the frozen weight lacks what the adapter begins with.
    pub(crate) fn takes_of_weight(self) -> bool {
        matches!(self, Self::Pissa | Self::Olora)
    }
}

impl LoraOptions {
    /// The adapters of a model's layers, by their names.
    ///
    /// # Errors
    /// A pattern that fits no layer, or is none; a rank of 0; adapters on experts that no file holds.
    pub fn of_model(&self, model: &ModelSpec) -> Result<BTreeMap<String, OfLayer>> {
        if !self.layers.is_empty() {
            return Ok(self.layers.clone());
        }
        self.targets.check_expressions()?;
        let mut layers = BTreeMap::new();
        for (name, layer) in model.named_layers() {
            let is_named = match self.targets.modules.is_empty() {
                true => self.adapts(layer.site),
                false => self.targets.name(&name, layer.site)?,
            };
            if is_named && !self.targets.leave_out(&name)? {
                let (rank, alpha) = (self.targets.rank(&name)?, self.targets.alpha(&name)?);
                let (rank, alpha) = (rank.unwrap_or(self.rank), alpha.unwrap_or(self.alpha));
                layers.insert(name, OfLayer { rank, scale: self.scale(rank, alpha) });
            }
        }
        self.targets.check(model, &layers)?;
        mixture::check(model, &layers, self.dora)?;
        Ok(layers)
    }

    /// The same with the layers of a model by their names.
    ///
    /// # Errors
    /// As [`LoraOptions::of_model`]; modules to save that the model does not have, or that get adapters; tokens that it does not have.
    pub fn resolved(&self, model: &ModelSpec) -> Result<Self> {
        let layers = self.of_model(model)?;
        Ok(Self { whole: self.whole_of(model, &layers)?, layers, ..self.clone() })
    }

    /// The adapter of a layer, by options that are [resolved](Self::resolved).
    pub(crate) fn of_layer(&self, name: &str) -> Option<OfLayer> {
        self.layers.get(name).copied()
    }

    /// What the update of an adapter is scaled by.
    pub(crate) fn scale(&self, rank: usize, alpha: f64) -> f64 {
        alpha / self.divisor(rank)
    }

    /// The alpha that gives a scale.
    pub(crate) fn alpha_of(&self, of: OfLayer) -> f64 {
        of.scale * self.divisor(of.rank)
    }

    /// The same adapter as it is saved. One that took a part of its weight has that part's matrices, with a minus, beside its
    /// own, at the same scale: it is then an adapter for the weight as it was.
    pub(crate) fn saved(&self, of: OfLayer) -> OfLayer {
        OfLayer { rank: if self.start.takes_of_weight() { 2 * of.rank } else { of.rank }, ..of }
    }

    pub(crate) fn divisor(&self, rank: usize) -> f64 {
        let rank = rank as f64;
        if self.rslora { rank.sqrt() } else { rank }
    }

    /// Whether `modules` name a layer, or a part of it.
    fn adapts(&self, site: Site) -> bool {
        let named = |slot: &Slot| *slot == site.slot || slot.fused() == Some(site.slot);
        self.modules.iter().any(named)
    }
}

/// A low-rank adapter on a frozen layer.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// `[rank, in]`.
    pub a: Var,
    /// `[out, rank]`.
    pub b: Var,
    /// Rows of all of `A`, of which some may be in other processes.
    pub rank: usize,
    /// What the update is scaled by.
    pub scale: f64,
    /// The lengths of the adapted weight's rows, where they are trained (DoRA).
    pub magnitude: Option<Magnitude>,
    /// Dropout probability on the adapter's input.
    pub dropout: f64,
    /// The `A` and `B` that it began with, where the frozen weight lacks `scale · B A` of them.
    pub begun: Option<(Tensor, Tensor)>,
}

/// The lengths that the rows of a weight have with an adapter's update.
#[derive(Debug, Clone)]
pub struct Magnitude {
    /// `[out]`.
    pub weight: Var,
    /// The squares of the lengths of the frozen weight's own rows, `[out]`, of the same type.
    pub squares: Tensor,
}

impl Magnitude {
    /// Those of the weight as it is, for a model of `dtype`; `rest` is what is frozen of it.
    pub(super) fn of(weight: &Weight, rest: &Weight, dtype: DType) -> Result<Self> {
        let lengths = weight.squares(dtype)?.iter().map(|square| square.sqrt()).collect();
        let squares = rest.squares(dtype)?;
        let of_adapters = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let tensor = |values: Vec<f64>| Tensor::new(values, &Device::Cpu)?.to_dtype(of_adapters);
        Ok(Self { weight: Var::from_tensor(&tensor(lengths)?)?, squares: tensor(squares)? })
    }
}

/// A fresh adapter for a model of `dtype`, in f32 also on bf16 weights, whose precision would swallow most steps: `A`, of this name, uniform in
/// `±1 / sqrt(in)`, as PEFT and torchtune draw it (Kaiming with `a = sqrt(5)`), or normal with a deviation of `1 / rank`, `B` zero, so
/// that the model starts unchanged. The weight is `[out, inner]`; of `A` and `B` there are the rows that are this process's.
pub(super) fn fresh_adapter(
    name_of_a: &str,
    (out, inner): (usize, usize),
    dtype: DType,
    lora: &LoraOptions,
    OfLayer { rank, scale }: OfLayer,
    group: &Group,
) -> Result<Adapter> {
    let seed = Dropout::mix_name(lora.seed, name_of_a);
    let a = match lora.start {
        Start::Gaussian => normal(seed, rank * inner, 1.0 / rank as f64),
        _ => uniform(seed, rank * inner, 1.0 / (inner as f64).sqrt()),
    };
    let a = Tensor::from_vec(a, (rank, inner), &Device::Cpu)?;
    let dtype = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let share = group.share(rank);
    let a = if group.is_single() { a } else { a.narrow(0, share.start, share.len())?.force_contiguous()? };
    let a = Var::from_tensor(&a.to_dtype(dtype)?)?;
    let b = Var::zeros((group.share(out).len(), rank), dtype, &Device::Cpu)?;
    Ok(Adapter { a, b, rank, scale, magnitude: None, dropout: lora.dropout, begun: None })
}
