//! Decoder-only language models, built from a checkpoint's `config.json` in Hugging Face names.
//!
//! A family is a function from `config.json` to a [`DecoderConfig`]: what it
//! shares with the others is here once. To add one, name its `model_type` in
//! [`DecoderConfig::from_json`] and say how it differs.

mod adapter;
mod architecture;
mod block;
mod config;
mod decoder;
mod linear;
mod slots;
mod weights;

pub use adapter::{Adapter, LoraOptions, OfLayer};
pub use architecture::{Architecture, ModelConfig};
pub use block::Block;
pub use config::{DecoderConfig, RopeScaling};
pub(crate) use decoder::nothing_to_train;
pub use decoder::{Decoder, LoadOptions};
pub use linear::Linear;
pub(crate) use slots::PerSlot;
pub use slots::{Dim, Half, Slot};
pub(crate) use weights::uniform;
pub use weights::{RandomWeights, WeightSource};
