//! Fresh weights: those of a model that is trained from nothing.

use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tune_config::Config;

use super::slots::Slot;
use super::spec::ModelSpec;
use super::weights::{WeightSource, normal};
use crate::kernels::Dropout;
use crate::{Error, Result};

/// Where a `config.json` says how wide fresh weights are spread, and transformers' default.
const INITIALIZER_RANGE: (&str, f64) = ("initializer_range", 0.02);

/// The layers that write into the residual stream.
const RESIDUAL: [Slot; 2] = [Slot::OProj, Slot::DownProj];

/// How fresh weights are drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct InitConfig {
    /// Standard deviation of fresh weights; where null, `initializer_range` of config.json, or 0.02.
    #[config(range = 0.0..)]
    pub std: Option<f64>,
    /// Divide it by the root of twice the number of blocks for layers that write into the residual stream (o_proj and down_proj), as GPT-2 does.
    #[config(default = false)]
    pub scale_residual: bool,
}

/// Fresh weights for a model, as transformers draws them: matrices are normal, norms begin as the identity, biases are zero, and so
/// is the row of the embedding table that stands for padding, if it gets no gradient where it enters the model. One that does is
/// drawn as any other: the first norm would multiply the gradient of a row of zeros by the root of `1 / eps`.
#[derive(Debug, Clone)]
pub struct FreshWeights {
    /// The model.
    model: ModelSpec,
    /// The same seed gives the same weights, whatever the order in which they are asked for.
    seed: u64,
    std: f64,
    scale_residual: bool,
}

impl FreshWeights {
    /// For the model that a `config.json` describes.
    ///
    /// # Errors
    /// An `initializer_range` that is no number from 0 on.
    pub fn new(model: &ModelSpec, config: &Value, init: &InitConfig, seed: u64) -> Result<Self> {
        let (key, default) = INITIALIZER_RANGE;
        let std = match (init.std, &config[key]) {
            (Some(std), _) => std,
            (None, Value::Null) => default,
            (None, value) => value.as_f64().filter(|std| *std >= 0.0).ok_or_else(|| {
                Error::setup(format!(
                    "`{key}` in config.json is {value}; expected a standard deviation such as {default}, or set init.std"
                ))
            })?,
        };
        Ok(Self { model: model.clone(), seed, std, scale_residual: init.scale_residual })
    }

    /// The standard deviation of a matrix.
    fn std_of(&self, name: &str) -> f64 {
        let layer = name.strip_suffix(".weight").and_then(|name| name.rsplit('.').next());
        match self.scale_residual && RESIDUAL.iter().any(|slot| Some(slot.name()) == layer) {
            true => self.std / (2.0 * self.model.blocks.len() as f64).sqrt(),
            false => self.std,
        }
    }
}

impl WeightSource for FreshWeights {
    fn weight(&self, name: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
        let count = shape.iter().product();
        let values = if name.ends_with(".bias") {
            vec![0.0; count]
        } else if shape.len() == 1 {
            vec![if self.model.norm.from_one { 0.0 } else { 1.0 }; count]
        } else {
            let mut values = normal(Dropout::mix_name(self.seed, name), count, self.std_of(name));
            if let (true, Some(row)) = (name == super::TABLE, self.model.embedding.padding) {
                let width = self.model.hidden_size;
                values.iter_mut().skip(row as usize * width).take(width).for_each(|value| *value = 0.0);
            }
            values
        };
        Ok(Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// One parameter as transformers draws it (`tests/python/make_fresh_weights.py`).
    #[derive(serde::Deserialize)]
    struct Drawn {
        mean: f64,
        std: f64,
        zero_rows: Vec<usize>,
    }

    #[derive(serde::Deserialize)]
    struct Case {
        config: Value,
        parameters: BTreeMap<String, Drawn>,
    }

    fn cases() -> BTreeMap<String, Case> {
        serde_json::from_str(include_str!("../../../tests/fixtures/fresh_weights.json")).unwrap()
    }

    fn fresh(case: &Case, init: InitConfig, seed: u64) -> (ModelSpec, FreshWeights) {
        let model = ModelSpec::from_json(&case.config).unwrap();
        let fresh = FreshWeights::new(&model, &case.config, &init, seed).unwrap();
        (model, fresh)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Mean and standard deviation.
    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let square = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        (mean, square.sqrt())
    }

    #[test]
    fn every_family_is_drawn_as_transformers_draws_it() {
        let cases = cases();
        assert!(cases.len() >= 10, "{}", cases.len());
        for (family, case) in &cases {
            let (model, fresh) = fresh(case, InitConfig::default(), 5);
            let weights = model.weights();
            let mut compared = 0;
            for (name, shape) in &weights {
                let tensor = fresh.weight(name, shape, DType::F32, &Device::Cpu).unwrap();
                let values = values(&tensor);
                // transformers keeps all experts of a block in one parameter, of which Hugging Face's files have parts.
                let Some(theirs) = case.parameters.get(name) else {
                    assert!(name.contains(".experts."), "{family} has no {name}");
                    continue;
                };
                compared += 1;
                let (mean, std) = moments(&values);
                // Both are estimates from as many values.
                let near = if theirs.std > 0.0 { 6.0 * theirs.std / (values.len() as f64).sqrt() } else { 1e-9 };
                assert!((mean - theirs.mean).abs() <= 1.5 * near, "{family} {name}: mean {mean}, {}", theirs.mean);
                assert!((std - theirs.std).abs() <= near, "{family} {name}: std {std}, {}", theirs.std);
                let rows = if shape.len() == 2 { shape[0] } else { 0 };
                let zero_rows: Vec<usize> = (0..rows)
                    .filter(|row| values.chunks(shape[1]).nth(*row).unwrap().iter().all(|x| *x == 0.0))
                    .collect();
                let expected = if model.embedding.padding.is_some() { &theirs.zero_rows[..] } else { &[] };
                assert_eq!(zero_rows, expected, "{family} {name}");
            }
            assert!(compared >= 10, "{family}: {compared}");
        }
    }

    #[test]
    fn a_seed_is_a_model_and_what_writes_into_the_stream_may_be_smaller() {
        let case = &cases()["llama"];
        let (model, one) = fresh(case, InitConfig::default(), 1);
        let draw = |fresh: &FreshWeights, name: &str| {
            let shape = model.weights().into_iter().find(|(found, _)| found == name).unwrap().1;
            values(&fresh.weight(name, &shape, DType::F32, &Device::Cpu).unwrap())
        };
        let [query, down] = ["model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"];
        assert_eq!(draw(&one, query), draw(&one, query));
        assert_ne!(draw(&one, query), draw(&fresh(case, InitConfig::default(), 2).1, query));
        let (_, scaled) = fresh(case, InitConfig { std: Some(0.5), scale_residual: true }, 1);
        let ratio = |name: &str, to: f64| {
            let (of_one, of_scaled) = (draw(&one, name), draw(&scaled, name));
            let expected = to / case.config["initializer_range"].as_f64().unwrap();
            of_one.iter().zip(of_scaled).all(|(a, b)| (f64::from(*a) * expected - f64::from(b)).abs() < 1e-5)
        };
        assert!(ratio(query, 0.5));
        assert!(ratio(down, 0.5 / (2.0 * model.blocks.len() as f64).sqrt()));
    }

    #[test]
    fn bf16_is_f32_rounded_to_nearest() {
        let (_, fresh) = fresh(&cases()["llama"], InitConfig::default(), 1);
        let [wide, narrow] =
            [DType::F32, DType::BF16].map(|dtype| fresh.weight("x.weight", &[16, 32], dtype, &Device::Cpu).unwrap());
        assert_eq!(values(&wide.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap()), {
            values(&narrow.to_dtype(DType::F32).unwrap())
        });
    }

    #[test]
    fn what_is_no_standard_deviation_is_refused() {
        let case = &cases()["llama"];
        let (model, _) = fresh(case, InitConfig::default(), 1);
        for wrong in [serde_json::json!("wide"), serde_json::json!(-0.1)] {
            let mut config = case.config.clone();
            config["initializer_range"] = wrong;
            let error = FreshWeights::new(&model, &config, &InitConfig::default(), 1).unwrap_err().to_string();
            assert!(error.contains("`initializer_range`") && error.contains("init.std"), "{error}");
        }
    }
}
