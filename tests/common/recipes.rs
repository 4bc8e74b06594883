//! The training recipes as modules of a test.

#![allow(dead_code)]

#[path = "../../recipes/src/bin/distill.rs"]
pub(crate) mod distill;
#[path = "../../recipes/src/bin/dpo.rs"]
pub(crate) mod dpo;
#[path = "../../recipes/src/bin/full.rs"]
pub(crate) mod full;
#[path = "../../recipes/src/bin/grpo.rs"]
pub(crate) mod grpo;
#[path = "../../recipes/src/bin/kto.rs"]
pub(crate) mod kto;
#[path = "../../recipes/src/bin/lora.rs"]
pub(crate) mod lora;
#[path = "../../recipes/src/bin/ppo.rs"]
pub(crate) mod ppo;
#[path = "../../recipes/src/bin/pretrain.rs"]
pub(crate) mod pretrain;
#[path = "../../recipes/src/bin/qat.rs"]
pub(crate) mod qat;
#[path = "../../recipes/src/bin/reward.rs"]
pub(crate) mod reward;
