//! Decoder-only language models, built from a checkpoint's `config.json` in Hugging Face names.
//!
//! A model is a [`ModelSpec`], which says what it computes. `families` makes one of a `config.json`, a file for each
//! family; everything else reads the spec and knows no family.

mod adapter;
mod architecture;
mod block;
mod decoder;
mod families;
mod fields;
mod in_blocks;
mod linear;
mod parameter;
mod rotary;
mod shard;
mod shared;
mod slots;
mod spec;
mod weights;

pub use crate::kernels::{AttentionShape, Format, Quantized, Share};
pub use adapter::{Adapter, LoraOptions, Magnitude, OfLayer, Start};
pub use architecture::{Architecture, ModelConfig};
pub use block::Block;
pub(crate) use decoder::nothing_to_train;
pub use decoder::{Decoder, LoadOptions, Piece};
pub use in_blocks::{FrozenBase, InBlocks, Quantization};
pub(crate) use linear::merged;
pub use linear::{Linear, Weight};
pub(crate) use parameter::{Of, ParamId};
pub use parameter::{Parameter, Trainable};
pub use rotary::{RopeScaling, RotarySpec};
pub(crate) use shard::{Gathered, Here, Shard, gather};
pub(crate) use slots::Layers;
pub use slots::{Half, Slot};
pub use spec::{
    Activation, AttentionSpec, BlockNorm, BlockSpec, EmbeddingSpec, HeadNorm, LayerSpec, MlpSpec, ModelSpec, NormSpec,
    Norms, Site,
};
pub(crate) use weights::uniform;
pub use weights::{RandomWeights, WeightSource};
