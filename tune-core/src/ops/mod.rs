//! The operations that training lives on, each with a backward pass.
//!
//! candle's own fused operations lose the gradient without an error, and its
//! matrix product computes the gradient of frozen weights, so what a model is
//! made of stands here. On the CPU each is one custom operation over slices,
//! parallel, with reductions that are split by shape alone: a result never
//! depends on the number of threads. On other devices it is the plain
//! composition of [`mod@reference`], against which the CPU one is tested.
//!
//! Training in fp32 and bf16 on the CPU does not pass here: its engine calls `kernels` for whole halves
//! of a block, and is tested against these operations in f64.
//!
//! A weight is trained exactly if it is a [`candle_core::Var`].

mod attention;
mod cross_entropy;
mod embedding;
mod linear;
mod matmul;
mod real;
pub mod reference;
mod rms_norm;
mod rope;
mod swiglu;

pub use attention::{attention, attention_with_cache};
pub use cross_entropy::{HeadGradients, HeadLoss, OutputHead, cross_entropy};
pub use embedding::embedding;
pub use linear::{LoraFactors, linear, lora_linear};
pub(crate) use real::{Real, Values};
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use swiglu::swiglu;

pub use crate::kernels::{AttentionShape, Dropout, Rotary};
