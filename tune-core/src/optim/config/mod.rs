//! The `optimizer` and `lr_scheduler` keys.

mod optimizer;
mod scheduler;

pub use optimizer::{AdamW8bitConfig, AdamWConfig, GroupKeys, LionConfig, OptimizerConfig, SgdConfig};
pub use scheduler::{
    CosineConfig, InverseSqrtConfig, PolynomialConfig, RestartsConfig, SchedulerConfig, StableDecayConfig, WarmupConfig,
};
