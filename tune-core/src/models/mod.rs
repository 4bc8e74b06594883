//! Decoder-only language models, built from a checkpoint's `config.json` in Hugging Face names.
//!
//! A model is a [`ModelSpec`], which says what it computes. `families` makes one of a `config.json`, a file for each
//! family; everything else reads the spec and knows no family.

mod adapter;
mod architecture;
mod block;
mod decoder;
mod fake_quant;
mod families;
mod fields;
mod fresh;
mod grown;
mod head;
mod in_blocks;
mod linear;
mod mixture;
mod parameter;
mod shard;
mod shared;
mod slots;
mod spec;
mod start;
mod targets;
mod tokens;
mod weights;
mod whole;

pub use crate::kernels::{Activation, AttentionShape, Format, Quantized, RopeScaling, RotarySpec, Share};
pub use adapter::{Adapter, LoraOptions, Magnitude, OfLayer, Start};
pub use architecture::{Architecture, ModelConfig};
pub use block::Block;
pub(crate) use decoder::CopyOfPiece;
pub use decoder::{Decoder, LoadOptions, Piece};
pub(crate) use decoder::{nothing_to_train, tied_start};
pub use fake_quant::{FakeQuantizer, GgufFormat, GgufLevels, Groups};
pub use fresh::{FreshWeights, InitConfig};
pub use grown::Grown;
pub(crate) use grown::set_vocab_size;
pub use head::{Head, WithHead};
pub use in_blocks::{FrozenBase, InBlocks, Quantization};
pub(crate) use linear::merged;
pub use linear::{Linear, Weight};
pub(crate) use parameter::{Of, ParamId};
pub use parameter::{Parameter, Trainable};
pub(crate) use shard::{Gathered, Here, Shard, counts_of_blocks, gather, row_of};
pub(crate) use slots::Layers;
pub use slots::{Half, Slot};
pub use spec::{
    AttentionSpec, BlockNorm, BlockSpec, EmbeddingSpec, HeadNorm, LayerSpec, MlpSpec, ModelSpec, NormSpec, Norms, Site,
};
pub use start::Begun;
pub use targets::Targets;
pub use tokens::TrainedTokens;
pub(crate) use tokens::{OUTPUT_ROWS, TOKEN_ROWS, TokenRows};
pub(crate) use weights::uniform;
pub use weights::{RandomWeights, WeightSource};
pub(crate) use whole::{HEAD, SCORE, SCORES_SEQUENCES, TABLE, is_saved, module_of};
