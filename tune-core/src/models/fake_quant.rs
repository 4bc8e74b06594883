//! Which weights are trained as if they were quantized, and to which levels.

use tune_config::Config;

use super::Site;
use super::slots::Slot;
use super::spec::{LayerSpec, MlpSpec, ModelSpec};
use crate::checkpoint::gguf::{FileKind, TensorFormat, layer_name};
use crate::kernels::fake_quant::Levels;
use crate::{Error, Result};

/// How a model is quantized after training, and computed as if it were so while it trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub enum FakeQuantizer {
    /// Weights in 4 bits, symmetric about zero, with a scale for each group; the inputs of layers in 8 bits, each token between
    /// its own least and largest element.
    #[config(
        name = "int8_dyn_act_int4_weight",
        alias = "torchtune.training.quantization.Int8DynActInt4WeightQATQuantizer",
        default
    )]
    Int8DynActInt4Weight(Groups),
    /// Weights in 4 bits, with a scale and a zero point in bf16 for each group; inputs as they are.
    #[config(name = "int4_weight_only", alias = "torchtune.training.quantization.Int4WeightOnlyQATQuantizer")]
    Int4WeightOnly(Groups),
    /// Weights as a GGUF file stores them: a file that `tune export` or `tune quantize` writes in this format has exactly the
    /// weights that training computed with.
    #[config(name = "gguf")]
    Gguf(GgufLevels),
}

/// Groups of neighbouring elements of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub struct Groups {
    /// How many elements have a scale of their own. Rows are made of whole groups.
    #[config(default = 256, range = 2..)]
    pub groupsize: usize,
}

/// The levels of a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub struct GgufLevels {
    /// The kind of file.
    #[config(default)]
    pub format: GgufFormat,
}

/// The kinds of GGUF files whose weights are in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub enum GgufFormat {
    /// 4 bits and a scale for 32 numbers.
    #[config(name = "q4_0", default)]
    Q4_0,
    /// 8 bits and a scale for 32 numbers.
    #[config(name = "q8_0")]
    Q8_0,
    /// 4 bits with scales and offsets in 6 bits; some tensors in 6 bits. The scales are searched for in each pass, which takes
    /// many times as long as the other formats.
    #[config(name = "q4_k_m")]
    Q4KM,
}

impl GgufFormat {
    fn kind(self) -> FileKind {
        match self {
            Self::Q4_0 => FileKind::Q4_0,
            Self::Q8_0 => FileKind::Q8_0,
            Self::Q4KM => FileKind::Q4KM,
        }
    }
}

impl FakeQuantizer {
    /// Its name in configs.
    fn name(self) -> &'static str {
        match self {
            Self::Int8DynActInt4Weight(_) => "int8_dyn_act_int4_weight",
            Self::Int4WeightOnly(_) => "int4_weight_only",
            Self::Gguf(_) => "gguf",
        }
    }

    /// Whether the inputs of layers are rounded too.
    pub(crate) fn rounds_inputs(self) -> bool {
        matches!(self, Self::Int8DynActInt4Weight(_))
    }

    /// The levels of a layer's weight in a block; `None` where it stays as it is.
    pub(crate) fn of_layer(self, model: &ModelSpec, block: usize, layer: &LayerSpec) -> Option<Levels> {
        match (self, layer.site.slot) {
            (_, Slot::Router) => None,
            (Self::Int8DynActInt4Weight(Groups { groupsize: group }), _) => Some(Levels::Int4 { group }),
            (Self::Int4WeightOnly(Groups { groupsize: group }), _) => Some(Levels::Int4Affine { group }),
            (Self::Gguf(GgufLevels { format }), _) => {
                let name = format!("blk.{block}.{}.weight", layer_name(layer.site));
                of_file(format, model, &name, [layer.out, layer.inner])
            }
        }
    }

    /// The same of the output layer. A tied one is the embedding table, which only a file quantizes.
    pub(crate) fn of_output(self, model: &ModelSpec) -> Option<Levels> {
        match self {
            _ if model.tie_word_embeddings => self.of_embedding(model),
            Self::Gguf(GgufLevels { format }) => {
                of_file(format, model, "output.weight", [model.vocab_size, model.hidden_size])
            }
            _ => self.of_layer(model, 0, &model.output()),
        }
    }

    /// The same of the embedding table.
    pub(crate) fn of_embedding(self, model: &ModelSpec) -> Option<Levels> {
        match self {
            Self::Gguf(GgufLevels { format }) => {
                of_file(format, model, "token_embd.weight", [model.vocab_size, model.hidden_size])
            }
            _ => None,
        }
    }

    /// Checks that a model can be trained so, whose adapters may have magnitudes, and whose weights may be in blocks: `in_blocks` says
    /// in which.
    ///
    /// # Errors
    /// Rows that are not made of whole groups, experts whose inputs would be rounded, adapters with magnitudes, and weights that
    /// are in blocks already.
    pub(crate) fn check(self, model: &ModelSpec, has_magnitudes: bool, in_blocks: Option<&str>) -> Result<()> {
        if has_magnitudes {
            return Err(Error::setup(
                "quantizer: magnitudes (DoRA) are over the norms of weights that are not rounded: set model.use_dora=false",
            ));
        }
        if let Some(in_blocks) = in_blocks {
            return Err(Error::setup(format!(
                "quantizer: the base is held quantized already ({in_blocks}), and cannot be trained to be quantized otherwise: \
                 start from weights in full precision, or train adapters on it with `lora`"
            )));
        }
        let has_experts = model.blocks.iter().any(|block| matches!(block.mlp, MlpSpec::Experts { .. }));
        if self.rounds_inputs() && has_experts {
            return Err(Error::setup(
                "quantizer=int8_dyn_act_int4_weight rounds the inputs of layers, which is not done for a mixture of experts: \
                 set quantizer=int4_weight_only or quantizer=gguf",
            ));
        }
        let blocks = (0..model.blocks.len()).flat_map(|block| {
            let of_layer = move |layer: LayerSpec| (self.of_layer(model, block, &layer), layer.site, layer.inner);
            model.layers(block).into_iter().map(of_layer)
        });
        let output = model.output();
        for (levels, site, inner) in blocks.chain([(self.of_output(model), output.site, output.inner)]) {
            let Some(group) = levels.map(Levels::group).filter(|group| !inner.is_multiple_of(*group)) else { continue };
            let fitting = [256, 128, 64, 32, 16].into_iter().find(|group| self.fits(model, *group));
            let advice = fitting.map_or_else(String::new, |group| format!(": set quantizer.groupsize={group}"));
            return Err(Error::setup(format!(
                "quantizer={}: rows of `{}` have {inner} elements, which is no multiple of groupsize={group}{advice}",
                self.name(),
                Site::path(site),
            )));
        }
        Ok(())
    }

    /// Whether all layers' rows are made of whole groups of this size.
    fn fits(self, model: &ModelSpec, group: usize) -> bool {
        let blocks = (0..model.blocks.len()).flat_map(|block| model.layers(block));
        let mut rounded = blocks.filter(|layer| layer.site.slot != Slot::Router);
        let of_output = model.tie_word_embeddings || model.hidden_size.is_multiple_of(group);
        of_output && rounded.all(|layer| layer.inner.is_multiple_of(group))
    }
}

/// What a file of this kind has a tensor in, if that is not as it is.
fn of_file(format: GgufFormat, model: &ModelSpec, name: &str, shape: [usize; 2]) -> Option<Levels> {
    let format = format.kind().of_tensor(name, &shape, model.blocks.len(), !model.tie_word_embeddings);
    (format != TensorFormat::F32).then_some(Levels::Blocks(format))
}
