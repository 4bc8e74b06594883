//! LoRA+ (Hayou et al. 2024, <https://arxiv.org/abs/2402.12354>): `B` learns faster than `A`.

use super::scaled::Rates;
use crate::Result;
use crate::models::Parameter;

/// Moves an adapter's `B` at this multiple of the learning rate. As in peft, a vector is moved as `B` is.
#[derive(Debug, Clone, Copy)]
pub struct LoraPlus(pub f64);

impl Rates for LoraPlus {
    fn of(&self, parameter: &Parameter) -> Result<f64> {
        let is_fast = parameter.name().ends_with(".lora_B.weight") || parameter.var().rank() == 1;
        Ok(if is_fast { self.0 } else { 1.0 })
    }
}
