//! Low-rank adapters on frozen layers (LoRA, Hu et al. 2021, <https://arxiv.org/abs/2106.09685>).

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor, Var};

use super::slots::Slot;
use super::spec::{ModelSpec, Site};
use super::weights::uniform;
use crate::distributed::Group;
use crate::kernels::Dropout;
use crate::{Error, Result};

/// The adapters to add to a model.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// The layers that get one.
    pub modules: Vec<Slot>,
    /// Rows of `A` and columns of `B`.
    pub rank: usize,
    /// The update is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Probability of dropping an element of an adapter's input, while training.
    pub dropout: f64,
    /// Where a fresh `A` comes from; a fresh `B` is zero.
    pub seed: u64,
    /// By their names, the only layers that get one, each with a rank and scale of its own; where there are none, all of
    /// `modules` do.
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

impl LoraOptions {
    /// The adapter that a layer gets, if it does.
    pub(crate) fn of_layer(&self, name: &str, site: Site) -> Option<OfLayer> {
        if !self.adapts(site) {
            return None;
        }
        if self.layers.is_empty() {
            return Some(OfLayer { rank: self.rank, scale: self.alpha / self.rank as f64 });
        }
        self.layers.get(name).copied()
    }

    /// Whether a layer gets an adapter: it is named, or has a part that is. Experts get none.
    pub fn adapts(&self, site: Site) -> bool {
        let named = |slot: &Slot| *slot == site.slot || slot.fused() == Some(site.slot);
        site.expert.is_none() && site.slot != Slot::Router && self.modules.iter().any(named)
    }

    /// The layers of a model that get an adapter, by the last parts of their names.
    ///
    /// # Errors
    /// Layers of experts are named, which cannot carry adapters here.
    pub fn names(&self, model: &ModelSpec) -> Result<BTreeSet<&'static str>> {
        let mut names = BTreeSet::new();
        for &module in &self.modules {
            let layers = model.layers_of(module);
            if layers.iter().any(|layer| layer.site.expert.is_some()) {
                return Err(Error::setup(format!(
                    "layers of experts cannot carry adapters here, and model.lora_attn_modules and \
                     model.apply_lora_to_mlp name `{}`: set model.apply_lora_to_mlp=false",
                    module.name()
                )));
            }
            let fused = || module.fused().filter(|fused| !model.layers_of(*fused).is_empty());
            names.extend(if layers.is_empty() { fused() } else { Some(module) }.map(Slot::name));
        }
        Ok(names)
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
    /// `alpha / rank`.
    pub scale: f64,
    /// Dropout probability on the adapter's input.
    pub dropout: f64,
}

/// A fresh adapter for a model of `dtype`, in f32 also on bf16 weights, whose precision would swallow most steps: `A`, of this name, uniform in
/// `±1 / sqrt(in)`, as PEFT and torchtune draw it (Kaiming with `a = sqrt(5)`), `B` zero, so that the model starts unchanged.
/// The weight is `[out, inner]`; of `A` and `B` there are the rows that are this process's.
pub(super) fn fresh_adapter(
    name_of_a: &str,
    (out, inner): (usize, usize),
    dtype: DType,
    lora: &LoraOptions,
    OfLayer { rank, scale }: OfLayer,
    group: &Group,
) -> Result<Adapter> {
    let seed = Dropout::mix_name(lora.seed, name_of_a);
    let a = Tensor::from_vec(uniform(seed, rank * inner, 1.0 / (inner as f64).sqrt()), (rank, inner), &Device::Cpu)?;
    let dtype = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let share = group.share(rank);
    let a = if group.is_single() { a } else { a.narrow(0, share.start, share.len())?.force_contiguous()? };
    let a = Var::from_tensor(&a.to_dtype(dtype)?)?;
    let b = Var::zeros((group.share(out).len(), rank), dtype, &Device::Cpu)?;
    Ok(Adapter { a, b, rank, scale, dropout: lora.dropout })
}
