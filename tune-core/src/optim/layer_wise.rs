//! Learning rates that fall from block to block, from the output layer down (Clark et al. 2020, <https://arxiv.org/abs/2003.10555>;
//! the exponents are those of Bao et al. 2021, <https://arxiv.org/abs/2106.08254>).

use super::scaled::Rates;
use crate::models::Parameter;
use crate::{Error, Result};

/// Moves the output layer and the last norm at the learning rate, the uppermost block that is trained at a share of it, the block below
/// at that share of its share, and so on; the embedding table is below the lowest block.
#[derive(Debug, Clone, Copy)]
pub struct LayerWise {
    decay: f64,
    /// One more than the index of the uppermost block that is trained, once that is known.
    blocks: Option<usize>,
}

/// Where a parameter is in a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Embedding,
    Block(usize),
    Top,
}

impl Layer {
    fn of(name: &str) -> Self {
        let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        match block {
            Some(block) => Self::Block(block),
            None if name.starts_with("model.embed_tokens.") => Self::Embedding,
            None => Self::Top,
        }
    }
}

impl LayerWise {
    /// The learning rate of a block is that of the block above it times `decay`.
    #[must_use]
    pub fn new(decay: f64) -> Self {
        Self { decay, blocks: None }
    }
}

impl Rates for LayerWise {
    fn see(&mut self, parameter: &Parameter) {
        let above = if let Layer::Block(block) = Layer::of(parameter.name()) { block + 1 } else { 0 };
        self.blocks = Some(self.blocks.unwrap_or(0).max(above));
    }

    fn of(&self, parameter: &Parameter) -> Result<f64> {
        let Some(blocks) = self.blocks else {
            return Err(Error::Training(
                "the optimizer was not told what is trained: a recipe calls `prepare_all` before each step".to_owned(),
            ));
        };
        let below_top = match Layer::of(parameter.name()) {
            Layer::Embedding => blocks + 1,
            Layer::Block(block) => blocks.saturating_sub(block),
            Layer::Top => 0,
        };
        Ok(self.decay.powf(below_top as f64))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor, Var};
    use tune_config::{Input, load};

    use crate::models::Trainable;
    use crate::optim::OptimizerConfig;

    /// With three blocks and a decay of a half: 1 above, then 1/2, 1/4, 1/8 for the blocks, and 1/16 for the table.
    #[test]
    fn each_block_moves_half_as_far_as_the_one_above_it() {
        let names = [
            ("lm_head.weight", 1.0),
            ("model.norm.weight", 1.0),
            ("model.layers.2.mlp.up_proj.lora_A.weight", 0.5),
            ("model.layers.1.input_layernorm.weight", 0.25),
            ("model.layers.0.self_attn.q_proj.weight", 0.125),
            ("model.embed_tokens.weight", 0.0625),
        ];
        let var = || Var::zeros(1, DType::F32, &Device::Cpu).unwrap();
        let parameters: Trainable = names.iter().map(|(name, _)| ((*name).to_owned(), var())).collect();
        let gradient = Tensor::ones(1, DType::F32, &Device::Cpu).unwrap().into();
        let config = Input::yaml("o.yaml", "{_component_: sgd, lr: 1.0, layerwise_lr_decay: 0.5}");
        let mut optimizer = load::<OptimizerConfig>(config).unwrap().config.build();
        let first = parameters.at(0).unwrap();
        let error = optimizer.update(first, &gradient, 1.0, 1.0, 1).unwrap_err().to_string();
        assert!(error.contains("prepare_all"), "{error}");

        optimizer.prepare_all(&parameters, 1).unwrap();
        for parameter in &parameters {
            optimizer.update(parameter, &gradient, 1.0, 1.0, 1).unwrap();
        }
        for (name, expected) in names {
            let moved = -parameters.get(name).unwrap().var().to_vec1::<f32>().unwrap()[0];
            assert_eq!(moved, expected, "{name}");
        }
    }
}
