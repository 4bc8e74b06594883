//! What methods of training minimize besides the cross-entropy of the next token: functions of the log-probabilities of whole
//! answers, with their derivatives, for [`engine::minimize`](crate::engine::minimize).

mod distillation;
mod experience;
pub(crate) mod judged;
mod math;
mod metrics;
mod on_policy;
mod policy;
mod ppo;
mod preference;
mod reference;
mod reward;
mod rollout;
mod scores;
mod teacher_files;
mod unpaired;

pub use crate::kernels::{Mixture, TokenLoss, TopTokens};
pub use distillation::{DivergenceLoss, ForwardKl, GeneralizedJsd, ReverseKl, SymmetricKl};
pub use experience::{Experience, Penalties, PpoMetrics};
pub use metrics::PreferenceMetrics;
pub use on_policy::OnPolicyConfig;
pub use policy::{AnswerLoss, DapoLoss, DrGrpoLoss, Drawn, GrpoLoss, GspoLoss, PolicyLoss, Totals};
pub use ppo::{AdvantageKeys, Clipped, PpoLoss, UpdateKeys};
pub use preference::{
    DpoLoss, HingeLoss, IpoLoss, KtoLoss, OrpoLoss, Pair, PairLoss, PreferenceLoss, Seen, SimPoLoss, objective, pairs,
};
pub(crate) use reference::said_in;
pub use reference::{Questions, Reference, ReferenceChoice};
pub use reward::{ExactReward, OverlapReward, ProgramReward, Reward, RewardConfig};
pub use rollout::{Answer, PolicyMetrics, Prompt, Rollout, prompts, texts};
pub use scores::{PairwiseLoss, ScoreLoss, ScoreMetrics, classification};
pub use teacher_files::{Header, Teacher, TeacherFiles};
pub use unpaired::{
    LabelWeights, Labelled, LabelledLoss, Moved, UnpairedLoss, UnpairedMetrics, labelled, labelled_objective,
    mismatched,
};
