//! What methods of training minimize besides the cross-entropy of the next token: functions of the log-probabilities of whole
//! answers, with their derivatives, for [`engine::minimize`](crate::engine::minimize).

mod distillation;
mod math;
mod metrics;
mod policy;
mod preference;
mod reference;
mod reward;
mod rollout;
mod scores;
mod token_loss;
mod unpaired;

pub use distillation::{DivergenceLoss, ForwardKl, Mixture, ReverseKl, SymmetricKl};
pub use metrics::PreferenceMetrics;
pub use policy::{AnswerLoss, DapoLoss, DrGrpoLoss, Drawn, GrpoLoss, GspoLoss, PolicyLoss, Totals};
pub use preference::{
    DpoLoss, HingeLoss, IpoLoss, KtoLoss, OrpoLoss, Pair, PairLoss, PreferenceLoss, Seen, SimPoLoss, objective, pairs,
};
pub use reference::{Reference, ReferenceChoice};
pub use reward::{ExactReward, OverlapReward, ProgramReward, Reward, RewardConfig};
pub use rollout::{Answer, PolicyMetrics, Prompt, Rollout, prompts};
pub use scores::{PairwiseLoss, ScoreLoss, ScoreMetrics, classification};
pub use token_loss::TokenLoss;
pub use unpaired::{
    LabelWeights, Labelled, LabelledLoss, Moved, UnpairedLoss, UnpairedMetrics, labelled, labelled_objective,
    mismatched,
};
