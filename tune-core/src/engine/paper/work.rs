//! How many operations a training step has.

use super::{Paper, StepOnPaper};
use crate::Result;
use crate::data::{Batch, IGNORE, Span};
use crate::distributed::Layout;
use crate::models::{InBlocks, LoraOptions, ModelSpec};

/// Floating-point operations that a training step cannot do without, a multiplication and an addition being two.
///
/// What is done again instead of kept (scores in the backward pass), what is computed and then masked, padding, and everything
/// that is not a product (a few operations an element) is not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Products with the weights of the blocks' layers and of their adapters.
    pub layers: f64,
    /// Scores and values of attention.
    pub attention: f64,
    /// Products with the weights of the output layer, for trained tokens.
    pub output: f64,
}

impl Work {
    /// Of a step on samples of these lengths, so many of whose tokens are trained, with activations kept.
    ///
    /// # Errors
    /// As [`crate::engine::forward_backward`].
    pub fn of_step(model: &ModelSpec, lora: Option<&LoraOptions>, samples: &[usize], trained: usize) -> Result<Self> {
        let len = samples.iter().sum();
        let mut start = 0;
        let spans = samples.iter().map(|&len| {
            start += len;
            Span { row: 0, start: start - len, len }
        });
        let batch = Batch {
            rows: 1,
            len,
            input_ids: vec![0; len],
            targets: (0..len).map(|i| if i < trained { 0 } else { IGNORE }).collect(),
            positions: vec![0; len],
            spans: spans.collect(),
            origins: vec![String::new(); samples.len()],
            labels: Vec::new(),
        };
        let in_blocks = &InBlocks::default();
        let lora = lora.map(|lora| lora.resolved(model)).transpose()?;
        let lora = lora.as_ref();
        let (activation_checkpointing, optimizer_in_backward, layout) = (false, true, Layout::ONE);
        let step = StepOnPaper {
            model,
            in_blocks,
            lora,
            activation_checkpointing,
            offloads_inputs: false,
            optimizer_in_backward,
            layout,
            teacher: None,
            fake: None,
        };
        let paper = Paper::<f32>::new(1);
        step.train(&[&batch], &paper)?;
        Ok(paper.work.into_inner())
    }

    /// All of them.
    pub fn total(&self) -> f64 {
        self.layers + self.attention + self.output
    }
}
