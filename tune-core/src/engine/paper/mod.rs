//! A training step on paper: the engine itself takes and drops the buffers that it would, and nothing is computed.

mod gradients;
mod memory;
mod parameters;
mod sharded;
mod step;
#[cfg(test)]
mod tests;
mod work;

pub(crate) use gradients::State;
pub(crate) use memory::Paper;
pub use step::Loss;
pub(crate) use step::StepOnPaper;
pub use work::Work;
