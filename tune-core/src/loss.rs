//! The `loss` key.

use tune_config::Config;

/// What is minimized.
#[derive(Debug, Clone, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub enum LossConfig {
    /// Cross-entropy of the next token, a mean over the trained tokens of a step. It is always computed
    /// chunk by chunk and for trained tokens only, see [`crate::ops::cross_entropy()`].
    #[config(
        name = "cross_entropy",
        alias = "torch.nn.CrossEntropyLoss",
        alias = "torchtune.modules.loss.CEWithChunkedOutputLoss",
        alias = "torchtune.modules.loss.LinearCrossEntropyLoss",
        default
    )]
    CrossEntropy(CrossEntropyConfig),
}

/// Cross-entropy has nothing to set.
#[derive(Debug, Clone, PartialEq, Eq, Config)]
#[config(crate = tune_config, ignored(num_output_chunks = "chunks are sized by memory"))]
pub struct CrossEntropyConfig {}
