//! What a token's loss has beside its cross-entropy.

use tune_config::Config;

/// What is minimized of each trained token: `(1 - s) · CE + s · U + z · L²`, where `CE` is the cross-entropy with the token that came,
/// `U` its mean over all tokens of the vocabulary, and `L` the logarithm of the sum that softmax divides by. Cross-entropy alone by
/// default; what is measured on validation data is always that.
#[derive(Debug, Clone, Copy, PartialEq, Default, Config)]
#[config(crate = tune_config)]
pub struct TokenLoss {
    /// The share `s` of a token's loss that asks for all tokens alike, so that a model does not grow too sure (Szegedy et al. 2015,
    /// <https://arxiv.org/abs/1512.00567>): 0.1, say.
    #[config(default = 0.0, range = 0.0..1.0)]
    pub label_smoothing: f64,
    /// The factor `z`, which keeps logits from drifting away from 0 (z-loss, Chowdhery et al. 2022, <https://arxiv.org/abs/2204.02311>):
    /// 1e-4, say.
    #[config(default = 0.0, range = 0.0..)]
    pub z_loss: f64,
}

impl TokenLoss {
    /// Cross-entropy alone.
    pub const CROSS_ENTROPY: Self = Self { label_smoothing: 0.0, z_loss: 0.0 };
}
