//! What a student learns from a teacher: its probabilities of every next token, and not only which one came.

use tune_config::Config;

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

impl DivergenceLoss {
    /// What is minimized where the divergence counts `ratio` and cross-entropy the rest.
    pub fn mixed(&self, ratio: f64) -> Mixture {
        Mixture::new(
            ratio,
            match self {
                Self::Forward(_) => 1.0,
                Self::Reverse(_) => 0.0,
                Self::Symmetric(SymmetricKl { sym_kd_ratio }) => *sym_kd_ratio,
            },
        )
    }
}

/// A mixture of cross-entropy and of divergence from a teacher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixture {
    /// The share of the divergence; the rest is cross-entropy.
    pub(crate) ratio: f64,
    /// The share of the forward divergence in it; the rest is the reverse one.
    forward: f64,
}

impl Mixture {
    /// The divergence counts `ratio` and cross-entropy the rest; of the divergence, `forward` is the forward one and the rest
    /// the reverse one. Both are from 0 to 1.
    pub fn new(ratio: f64, forward: f64) -> Self {
        Self { ratio, forward }
    }

    /// What is minimized, of a cross-entropy and a divergence.
    pub fn of(&self, cross_entropy: f64, divergence: f64) -> f64 {
        (1.0 - self.ratio) * cross_entropy + self.ratio * divergence
    }

    /// What forward and reverse divergence count in the divergence.
    pub(crate) fn shares(&self) -> [f64; 2] {
        [self.forward, 1.0 - self.forward]
    }

    /// What cross-entropy, forward and reverse divergence count in what is minimized.
    pub(crate) fn parts(&self) -> [f64; 3] {
        let [forward, reverse] = self.shares();
        [1.0 - self.ratio, self.ratio * forward, self.ratio * reverse]
    }
}
