//! The `optimizer` and `lr_scheduler` keys.

mod optimizer;
mod scheduler;
mod settings;

pub use optimizer::OptimizerConfig;
pub use scheduler::{
    CosineConfig, InverseSqrtConfig, PolynomialConfig, RestartsConfig, SchedulerConfig, StableDecayConfig, WarmupConfig,
};
pub use settings::{AdafactorConfig, AdamWConfig, GroupKeys, LionConfig, MuonConfig, ScheduleFreeConfig, SgdConfig};
