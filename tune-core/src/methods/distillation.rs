//! What a student learns from a teacher: its probabilities of every next token, and not only which one came.

use tune_config::Config;

use crate::kernels::Mixture;
use crate::{Error, Result};

/// How far a student's probabilities `p` of the next token are from its teacher's `q`: summed over the vocabulary, in nats, a
/// mean over trained tokens (Hinton et al. 2015, <https://arxiv.org/abs/1503.02531>; Gu et al. 2023,
/// <https://arxiv.org/abs/2306.08543>).
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub enum DivergenceLoss {
    /// `q (ln q - ln p)`: the student gives probability to all that the teacher may say.
    #[config(name = "forward_kl", alias = "torchtune.modules.loss.ForwardKLWithChunkedOutputLoss", default)]
    Forward(ForwardKl),
    /// `p (ln p - ln q)`: the student says only what the teacher may say.
    #[config(name = "reverse_kl", alias = "torchtune.modules.loss.ReverseKLWithChunkedOutputLoss")]
    Reverse(ReverseKl),
    /// A share of the first, and the rest of the second.
    #[config(name = "symmetric_kl", alias = "torchtune.modules.loss.SymmetricKLWithChunkedOutputLoss")]
    Symmetric(SymmetricKl),
    /// With `m = beta q + (1 - beta) p`: `beta q (ln q - ln m) + (1 - beta) p (ln p - ln m)`, which is bounded.
    #[config(name = "generalized_jsd")]
    JensenShannon(GeneralizedJsd),
}

/// See [`DivergenceLoss::Forward`]. torchtune's loss of this name lacks `q ln q`, which does not depend on the student: its
/// value is larger by the entropy of the teacher, and its gradient is the same.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
#[config(ignored(
    num_output_chunks = "chunks are as large as memory allows",
    ignore_index = "the data says what is trained"
))]
pub struct ForwardKl {}

/// See [`DivergenceLoss::Reverse`].
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
#[config(ignored(
    num_output_chunks = "chunks are as large as memory allows",
    ignore_index = "the data says what is trained"
))]
pub struct ReverseKl {}

/// See [`DivergenceLoss::Symmetric`].
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
#[config(ignored(
    num_output_chunks = "chunks are as large as memory allows",
    ignore_index = "the data says what is trained"
))]
pub struct SymmetricKl {
    /// The share of the forward divergence.
    #[config(default = 0.5, range = 0.0..=1.0)]
    pub sym_kd_ratio: f64,
}

/// See [`DivergenceLoss::JensenShannon`]: the generalized Jensen-Shannon divergence (Agarwal et al. 2024,
/// <https://arxiv.org/abs/2306.13649>), with values and ends as TRL's `GKDTrainer` has them.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct GeneralizedJsd {
    /// The teacher's share: 0 is forward_kl and 1 reverse_kl.
    #[config(default = 0.5, range = 0.0..=1.0)]
    pub beta: f64,
}

impl DivergenceLoss {
    /// What is minimized where the divergence counts `ratio` and cross-entropy the rest.
    pub fn mixed(&self, ratio: f64) -> Mixture {
        let forward = match *self {
            Self::Forward(_) => 1.0,
            Self::Reverse(_) => 0.0,
            Self::Symmetric(SymmetricKl { sym_kd_ratio }) => sym_kd_ratio,
            // The formula itself is zero at both ends; divided by what goes to zero there it is these.
            Self::JensenShannon(GeneralizedJsd { beta }) if beta == 0.0 || beta == 1.0 => 1.0 - beta,
            Self::JensenShannon(GeneralizedJsd { beta }) => {
                return Mixture::from_middle(ratio, beta);
            }
        };
        Mixture::new(ratio, forward)
    }
}

impl Mixture {
    /// Refuses what cannot be known of a teacher of which the likeliest tokens are stored.
    ///
    /// # Errors
    /// A temperature other than 1.
    pub fn check_stored(&self) -> Result<()> {
        if self.temperature() == 1.0 {
            return Ok(());
        }
        Err(Error::setup(
            "kd_temperature needs the teacher's logits of all tokens, for what the tokens that are not stored have together at \
             another temperature is not known: remove teacher_logits, or set kd_temperature=1",
        ))
    }
}
