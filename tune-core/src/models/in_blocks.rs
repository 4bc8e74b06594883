//! Which weights of a frozen base model stay in blocks, and the model's weights with these.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::linear::Weight;
use super::slots::Slot;
use super::spec::ModelSpec;
use super::weights::WeightSource;
use crate::checkpoint::Checkpoint;
use crate::kernels::Format;
use crate::{Error, Result};

/// How a frozen base model is held in memory. By default all of its weights are of the model's dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantization {
    /// Whether the linear layers of the blocks are quantized to NF4, those that are not in other blocks (QLoRA).
    pub nf4: bool,
    /// Whether what a GGUF file has in blocks stays in these; `None` leaves that to the program, which has it so.
    pub keep: Option<bool>,
}

impl Default for Quantization {
    fn default() -> Self {
        Self { nf4: false, keep: Some(false) }
    }
}

/// The matrices of a model that are held in blocks, by their Hugging Face names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InBlocks {
    /// Each with its rows and columns.
    formats: BTreeMap<String, (Format, [usize; 2])>,
    bytes: u64,
}

impl InBlocks {
    /// What `base` has in blocks, or has as numbers that are to be quantized, for a model whose other weights are of `dtype`.
    ///
    /// # Errors
    /// A matrix that cannot be quantized.
    pub fn of(base: &Checkpoint, model: &ModelSpec, dtype: DType, how: Quantization) -> Result<Self> {
        let mut in_blocks = Self::default();
        // Whoever asks for rounded weights asks for other numbers than the blocks have.
        let keep = how.keep != Some(false) && !base.rounds();
        for (name, [rows, cols], of_block) in matrices(model) {
            let of_file = base.format(&name).filter(|&format| keep && of_dtype(format) != Some(dtype));
            let kept = of_file.and_then(|format| Some((format, format.bytes(rows, cols)?)));
            let found = match kept {
                // Numbers of sixteen bits are not quantized yet.
                Some((format, _)) if how.nf4 && of_block && of_dtype(format).is_some() => None,
                kept => kept,
            };
            let (format, bytes) = match found {
                Some(found) => found,
                None if how.nf4 && of_block => {
                    let bytes = Format::Nf4.bytes(rows, cols).ok_or_else(|| not_in_nf4(&name, [rows, cols]))?;
                    (Format::Nf4, bytes)
                }
                None => continue,
            };
            in_blocks.formats.insert(name, (format, [rows, cols]));
            in_blocks.bytes += bytes;
        }
        Ok(in_blocks)
    }

    /// The linear layers of a model's blocks, all in one format, as [`Quantization::nf4`] has them.
    ///
    /// # Errors
    /// A layer that is no whole blocks.
    pub fn of_layers(model: &ModelSpec, format: Format) -> Result<Self> {
        let mut in_blocks = Self::default();
        for (name, [rows, cols], _) in matrices(model).into_iter().filter(|(.., of_block)| *of_block) {
            let not_whole =
                || Error::setup(format!("`{name}` has {rows} x {cols} elements, no whole blocks of {format}"));
            in_blocks.bytes += format.bytes(rows, cols).ok_or_else(not_whole)?;
            in_blocks.formats.insert(name, (format, [rows, cols]));
        }
        Ok(in_blocks)
    }

    /// The same without these weights, which are trained: a trained weight is numbers.
    #[must_use]
    pub fn without(mut self, whole: &BTreeSet<String>) -> Self {
        let Self { formats, bytes } = &mut self;
        for (_, (format, [rows, cols])) in formats.extract_if(.., |name, _| whole.contains(name)) {
            *bytes -= format.bytes(rows, cols).unwrap_or(0);
        }
        self
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.formats.is_empty()
    }

    /// The format of a weight, if it is in blocks.
    #[must_use]
    pub fn format(&self, name: &str) -> Option<Format> {
        self.formats.get(name).map(|(format, _)| *format)
    }

    /// The elements of all of them.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.share(1).0
    }

    /// The bytes of the largest of them.
    pub(crate) fn largest(&self) -> u64 {
        let of = |&(format, [rows, cols]): &(Format, [usize; 2])| format.bytes(rows, cols).unwrap_or_default();
        self.formats.values().map(of).max().unwrap_or_default()
    }

    /// The elements of all of them, and their bytes, of which one of some processes has its share: the first, which has no less than
    /// any other.
    pub(crate) fn share(&self, processes: usize) -> (u64, u64) {
        let of = |&(format, [rows, cols]): &(Format, [usize; 2])| {
            format.size_of_units((rows, cols), format.units((rows, cols)).div_ceil(processes))
        };
        self.formats.values().map(of).fold((0, 0), |(elements, bytes), (e, b)| (elements + e, bytes + b))
    }

    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Their formats, each with the number of matrices, the most frequent first: `168 in Q4_K, 29 in Q6_K`.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut counts = BTreeMap::<Format, usize>::new();
        self.formats.values().for_each(|&(format, _)| *counts.entry(format).or_default() += 1);
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        counts.iter().map(|(format, count)| format!("{count} in {format}")).collect::<Vec<_>>().join(", ")
    }
}

/// The type of tensors that has the very numbers of a format.
fn of_dtype(format: Format) -> Option<DType> {
    match format {
        Format::F16 => Some(DType::F16),
        Format::Bf16 => Some(DType::BF16),
        _ => None,
    }
}

fn not_in_nf4(name: &str, [rows, cols]: [usize; 2]) -> Error {
    Error::setup(format!(
        "model.quantize_base: `{name}` has {rows} x {cols} elements, which are no whole blocks of 64, so it cannot be \
         quantized to NF4; set model.quantize_base=false"
    ))
}

/// The matrices of a model: their names, their sizes, and whether each is of a block's layer that is quantized if all are.
fn matrices(model: &ModelSpec) -> Vec<(String, [usize; 2], bool)> {
    let table = [model.vocab_size, model.hidden_size];
    let mut all = vec![("model.embed_tokens.weight".to_owned(), table, false)];
    for (name, layer) in model.named_layers() {
        if layer.site.slot == Slot::LmHead && model.tie_word_embeddings {
            continue;
        }
        // What chooses experts is small, and decides.
        let of_block = layer.site.slot.half().is_some() && layer.site.slot != Slot::Router;
        all.push((format!("{name}.weight"), [layer.out, layer.inner], of_block));
    }
    all
}

/// The weights of a base model that is frozen: some are in blocks.
#[derive(Debug, Clone, Copy)]
pub struct FrozenBase<'a> {
    /// Where they are.
    pub checkpoint: &'a Checkpoint,
    /// Which of them are in blocks.
    pub in_blocks: &'a InBlocks,
}

impl WeightSource for FrozenBase<'_> {
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        self.checkpoint.weight(name, shape, dtype, device)
    }

    fn matrix(&self, name: &str, shape: [usize; 2], dtype: DType, device: &Device) -> Result<Weight> {
        let Some(format) = self.in_blocks.format(name) else {
            return self.checkpoint.matrix(name, shape, dtype, device);
        };
        self.checkpoint.check_shape(name, &shape)?;
        Ok(Weight::Quantized(self.checkpoint.quantized(name, format)?.into()))
    }

    fn is_in_blocks(&self, name: &str) -> bool {
        self.in_blocks.format(name).is_some()
    }

    fn rows(&self, name: &str, shape: &[usize], rows: Range<usize>, dtype: DType, device: &Device) -> Result<Tensor> {
        WeightSource::rows(self.checkpoint, name, shape, rows, dtype, device)
    }

    fn names(&self) -> Vec<String> {
        WeightSource::names(self.checkpoint)
    }
}
