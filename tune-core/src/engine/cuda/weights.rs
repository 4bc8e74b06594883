//! Parameters as a card has them: numbers, or blocks that are dequantized for each product and lookup.

use std::any::Any;
use std::sync::Arc;

use candle_core::{Tensor, TensorId};
use tune_cuda::{Beside, BlockFormat, Blocks, Buffer, FileFormat, Onto, ViewMut};

use super::card::{Card, lock};
use super::gathered::Pieces;
use super::{Cuda, Number, scale, view};
use crate::Result;
use crate::checkpoint::gguf::TensorFormat;
use crate::engine::backend::{Reads, Term};
use crate::engine::cpu::Cpu;
use crate::kernels::fake_quant::Levels;
use crate::kernels::quantized::QuantizedId;
use crate::kernels::{Format, Quantized};
use crate::models::EmbeddingSpec;

/// Elements of a weight in blocks that are numbers at a time, at most, but for a few: 256 MiB in bf16, more than a layer of most models
/// has.
pub(in crate::engine) const AT_ONCE: usize = 1 << 27;

/// A parameter on a card.
pub(in crate::engine) enum Param<T> {
    Numbers(Arc<Buffer<T>>),
    Blocks(Arc<Blocks>),
}

impl<T> Param<T> {
    /// Its numbers, where it is no matrix, or belongs to an adapter.
    ///
    /// # Panics
    /// If it is in blocks.
    pub(super) fn numbers(&self) -> &Buffer<T> {
        self.shared()
    }

    /// The same, to be kept.
    ///
    /// # Panics
    /// As above.
    pub(super) fn shared(&self) -> &Arc<Buffer<T>> {
        match self {
            Self::Numbers(numbers) => numbers,
            Self::Blocks(_) => unreachable!("frozen matrices alone are in blocks"),
        }
    }
}

/// What is frozen on a card, each kind by what tells it from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Frozen {
    /// A tensor, and whether it is bf16 there.
    Tensor(TensorId, bool),
    Blocks(QuantizedId),
    /// What is here of such.
    Share(QuantizedId),
}

impl Card {
    /// A frozen tensor on the card, where it stays.
    pub(super) fn frozen<T: Number>(&self, tensor: &Tensor) -> Result<Arc<Buffer<T>>> {
        let upload = || Ok(self.context.upload(&Cpu::<T>::new().param(tensor)?));
        self.kept(Frozen::Tensor(tensor.id(), T::IS_BF16), upload)
    }

    /// A frozen matrix in blocks on the card, where it stays as it is.
    pub(super) fn blocks(&self, of: &Quantized) -> Result<Arc<Blocks>> {
        let (bytes, scales) = of.parts();
        let upload = || Ok(self.context.upload_blocks(format(of.format()), of.dims(), bytes, scales));
        self.kept(Frozen::Blocks(of.id()), upload)
    }

    /// What is here of a frozen matrix in blocks.
    pub(super) fn kept_share(&self, of: QuantizedId, upload: impl FnOnce() -> Result<Pieces>) -> Result<Arc<Pieces>> {
        self.kept(Frozen::Share(of), upload)
    }

    fn kept<K: Send + Sync + 'static>(&self, key: Frozen, upload: impl FnOnce() -> Result<K>) -> Result<Arc<K>> {
        let kept = lock(&self.frozen).get(&key).map(Arc::clone);
        if let Some(Ok(kept)) = kept.map(Arc::<dyn Any + Send + Sync>::downcast::<K>) {
            return Ok(kept);
        }
        let param = Arc::new(upload()?);
        self.change();
        lock(&self.frozen).insert(key, Arc::<K>::clone(&param));
        Ok(param)
    }
}

pub(super) fn format(format: Format) -> BlockFormat {
    match format {
        Format::F16 => BlockFormat::F16,
        Format::Bf16 => BlockFormat::Bf16,
        Format::Q4_0 => BlockFormat::Q4_0,
        Format::Q4_1 => BlockFormat::Q4_1,
        Format::Q5_0 => BlockFormat::Q5_0,
        Format::Q5_1 => BlockFormat::Q5_1,
        Format::Q8_0 => BlockFormat::Q8_0,
        Format::Iq4Nl => BlockFormat::Iq4Nl,
        Format::Q2K => BlockFormat::Q2K,
        Format::Q3K => BlockFormat::Q3K,
        Format::Q4K => BlockFormat::Q4K,
        Format::Q5K => BlockFormat::Q5K,
        Format::Q6K => BlockFormat::Q6K,
        Format::Nf4 => BlockFormat::Nf4,
    }
}

/// The levels that a weight is rounded to; `None` where a file stores numbers as they are.
pub(super) fn fake_levels(levels: Levels) -> Option<tune_cuda::Levels> {
    let format = match levels {
        Levels::Int4 { group } => return Some(tune_cuda::Levels::Int4 { group }),
        Levels::Int4Affine { group } => return Some(tune_cuda::Levels::Int4Affine { group }),
        Levels::Blocks(TensorFormat::F32) => return None,
        Levels::Blocks(TensorFormat::F16) => FileFormat::F16,
        Levels::Blocks(TensorFormat::Bf16) => FileFormat::Bf16,
        Levels::Blocks(TensorFormat::Q4_0) => FileFormat::Q4_0,
        Levels::Blocks(TensorFormat::Q4_1) => FileFormat::Q4_1,
        Levels::Blocks(TensorFormat::Q5_0) => FileFormat::Q5_0,
        Levels::Blocks(TensorFormat::Q5_1) => FileFormat::Q5_1,
        Levels::Blocks(TensorFormat::Q8_0) => FileFormat::Q8_0,
        Levels::Blocks(TensorFormat::Q4K) => FileFormat::Q4K,
        Levels::Blocks(TensorFormat::Q5K) => FileFormat::Q5K,
        Levels::Blocks(TensorFormat::Q6K) => FileFormat::Q6K,
    };
    Some(tune_cuda::Levels::File(format))
}

/// Whether the weight of a product is in blocks.
pub(super) fn is_in_blocks<T: Number>(term: &Term<'_, Cuda<T>>) -> bool {
    match term {
        Term::Up { w, .. } | Term::Down { w, .. } => matches!(w.param, Param::Blocks(_)),
        Term::Across { .. } => false,
    }
}

impl<T: Number> Cuda<T> {
    /// One product of a sum: `y = factor · term (+ bias for each row) (+ onto)`. With a weight in blocks there is no bias.
    pub(super) fn multiply_one<D: tune_cuda::Element>(
        &self,
        term: &Term<'_, Self>,
        factor: f32,
        bias: Option<&Buffer<D>>,
        onto: Onto<'_, D>,
        y: ViewMut<'_, D>,
    ) {
        let (beside, w) = match term {
            Term::Up { x, w } => (Beside::Up(view(*x)), w),
            Term::Down { g, w } => (Beside::Down(view(*g)), w),
            Term::Across { g, x } => {
                let term = tune_cuda::Term::Across { g: view(*g), x: view(*x) };
                return self.context().multiply(term, factor, bias, onto, y);
            }
        };
        match w.param {
            Param::Numbers(numbers) => {
                let w = numbers.part(w.first * w.inner, (w.out, w.inner), w.inner);
                let term = match beside {
                    Beside::Up(x) => tune_cuda::Term::Up { x, w },
                    Beside::Down(g) => tune_cuda::Term::Down { g, w },
                };
                self.context().multiply(term, factor, bias, onto, y);
            }
            Param::Blocks(of) => {
                debug_assert!(bias.is_none(), "a bias of a weight in blocks is added apart");
                self.context().multiply_blocks(beside, of.rows(w.first, w.out), AT_ONCE, factor, onto, y);
            }
        }
    }

    /// Rows of a table, times the scale of embeddings.
    pub(super) fn rows_of_table(
        &self,
        table: &Param<T>,
        width: usize,
        ids: &[u32],
        how: EmbeddingSpec,
        y: &mut Buffer<T>,
    ) {
        let of_step = self.of_step(|step| step.list(ids));
        let (ids, factor) = (of_step.unwrap_or_else(|| self.context().upload_ahead(ids).into()), scale::<T>(how));
        match table {
            Param::Numbers(table) => self.context().lookup(table.view(width), &ids, factor, y.view_mut(width)),
            Param::Blocks(table) => {
                self.context().lookup_blocks(table, &ids, y.view_mut(width));
                if how.scale.is_some() {
                    let factors = self.context().upload_ahead(&vec![factor; ids.len()]);
                    self.context().scale_rows(y.view_mut(width), &factors);
                }
            }
        }
    }
}
