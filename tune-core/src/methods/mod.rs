//! What methods of training minimize besides the cross-entropy of the next token: functions of the log-probabilities of whole
//! answers, with their derivatives, for [`engine::minimize`](crate::engine::minimize).

mod distillation;
mod experience;
pub(crate) mod judged;
mod math;
mod metrics;
mod policy;
mod ppo;
mod preference;
mod reference;
mod reward;
mod rollout;
mod scores;
mod token_loss;

pub use distillation::{DivergenceLoss, ForwardKl, Mixture, ReverseKl, SymmetricKl};
pub use experience::{Experience, Penalties, PpoMetrics};
pub use metrics::PreferenceMetrics;
pub use policy::{AnswerLoss, DapoLoss, DrGrpoLoss, Drawn, GrpoLoss, GspoLoss, PolicyLoss, Totals};
pub use ppo::{AdvantageKeys, Clipped, PpoLoss, UpdateKeys};
pub use preference::{
    DpoLoss, HingeLoss, IpoLoss, KtoLoss, OrpoLoss, Pair, PairLoss, PreferenceLoss, Seen, SimPoLoss, objective, pairs,
};
pub use reference::{Reference, ReferenceChoice};
pub use reward::{ExactReward, OverlapReward, ProgramReward, Reward, RewardConfig};
pub use rollout::{Answer, PolicyMetrics, Prompt, Rollout, prompts, texts};
pub use scores::{PairwiseLoss, ScoreLoss, ScoreMetrics, classification};
pub use token_loss::TokenLoss;
