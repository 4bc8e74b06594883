//! What the processor computes: loops over slices, without tensors or graphs.
//!
//! Everything runs in f32 or bf16, sums in f32, and is split by shape, never by thread, so that
//! the same input gives the same bits. A kernel writes into buffers that its caller owns; what
//! a buffer held before does not matter.

pub(crate) mod attention;
pub(crate) mod buffers;
pub(crate) mod columns;
pub(crate) mod distillation;
mod draw;
mod dropout;
mod element;
pub(crate) mod experts;
pub(crate) mod fake_quant;
pub(crate) mod gate;
pub(crate) mod gemm;
mod general_distillation;
mod ids;
pub(crate) mod isa;
pub(crate) mod ledger;
mod math;
mod mixture;
mod noise;
pub(crate) mod parallel;
pub(crate) mod quantized;
#[cfg(test)]
pub(crate) mod recorder;
pub(crate) mod rms_norm;
pub(crate) mod rope;
mod rotary;
mod shared;
pub(crate) mod softmax;
pub(crate) mod team;
mod token_loss;
pub(crate) mod top_distillation;
mod top_tokens;
pub(crate) mod view;
mod workspace;

pub use attention::AttentionShape;
pub use draw::{Draw, SamplerOptions};
pub(crate) use dropout::Dropout;
pub(crate) use element::{Element, widen, widen_rows};
pub use gate::Activation;
pub use ids::IGNORE;
pub(crate) use ids::{check_targets, check_token_ids};
pub(crate) use isa::{Isa, simd};
pub(crate) use math::sum;
pub use mixture::Mixture;
pub(crate) use noise::Noise;
pub use quantized::{Format, Quantized, Share};
pub(crate) use rope::Rotary;
pub use rotary::{RopeScaling, RotarySpec};
pub(crate) use shared::Shared;
pub use token_loss::TokenLoss;
pub(crate) use top_tokens::TopRows;
pub use top_tokens::TopTokens;

#[cfg(test)]
mod candle_tests;
#[cfg(test)]
mod tests;
