//! `config.json` as the model needs it, every field checked.

use serde_json::Value;

use super::slots::{Dim, Half, Slot};
use crate::kernels::AttentionShape;
use crate::{Error, Result};

/// How rotary frequencies are stretched beyond the length a model was first trained at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor` (position interpolation).
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 {
        /// The stretch of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The length first trained at.
        original_max_position_embeddings: f64,
    },
}

/// The shape of a Llama-like decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// `model_type` of `config.json`.
    pub model_type: String,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside an MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The longest sequence that the model is made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in a norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their stretch.
    pub rope_scaling: RopeScaling,
    /// How many positions a token sees, itself included; all earlier ones if `None`.
    pub sliding_window: Option<usize>,
    /// Whether the output layer is the embedding table.
    pub tie_word_embeddings: bool,
}

impl DecoderConfig {
    /// A size of this model.
    pub fn dim(&self, dim: Dim) -> usize {
        match dim {
            Dim::Vocab => self.vocab_size,
            Dim::Hidden => self.hidden_size,
            Dim::Intermediate => self.intermediate_size,
            Dim::Queries => self.num_attention_heads * self.head_dim,
            Dim::Keys => self.num_key_value_heads * self.head_dim,
        }
    }

    /// The rows and columns `[out, in]` of a linear layer.
    pub fn sides(&self, slot: Slot) -> (usize, usize) {
        let [out, inner] = slot.dims().map(|dim| self.dim(dim));
        (out, inner)
    }

    /// The elements of a linear layer.
    pub fn elements(&self, slot: Slot) -> u64 {
        let (out, inner) = self.sides(slot);
        out as u64 * inner as u64
    }

    /// How many layers of a kind there are.
    pub(crate) fn count(&self, slot: Slot) -> u64 {
        if slot.half().is_some() { self.num_hidden_layers as u64 } else { 1 }
    }

    /// The elements of all weights; a tied output layer counts once.
    pub fn parameter_count(&self) -> u64 {
        let norms = (Half::ALL.len() * self.num_hidden_layers + 1) * self.hidden_size;
        let linears: u64 = Slot::ALL.into_iter().map(|slot| self.count(slot) * self.elements(slot)).sum();
        let embedding = self.elements(Slot::LmHead);
        let tied = if self.tie_word_embeddings { embedding } else { 0 };
        linears + embedding - tied + norms as u64
    }

    /// What attention is told of each block.
    pub(crate) fn attention(&self) -> AttentionShape {
        AttentionShape {
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f64).sqrt(),
            window: self.sliding_window,
        }
    }

    /// Reads the content of a `config.json`, in the form of transformers 4 (`rope_theta`,
    /// `rope_scaling`) or 5 (`rope_parameters`).
    ///
    /// # Errors
    /// An unknown `model_type`, a missing field, or a setting that the model here does not have.
    pub fn from_json(json: &Value) -> Result<Self> {
        let fields = Fields(json);
        let model_type = fields.text("model_type")?;
        match model_type {
            "llama" => fields.refuse_if_true(&["attention_bias", "mlp_bias"])?,
            "mistral" => {}
            other => {
                return Err(Error::setup(format!(
                    "config.json: model_type `{other}` is not supported; supported are llama and mistral"
                )));
            }
        }
        fields.expect_text("hidden_act", "silu")?;
        let hidden_size = fields.size("hidden_size")?;
        let heads = fields.size("num_attention_heads")?;
        let kv_heads = fields.optional_size("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            return Err(Error::setup(format!(
                "config.json: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})"
            )));
        }
        let head_dim = match fields.optional_size("head_dim")? {
            Some(d) => d,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                return Err(Error::setup(format!(
                    "config.json: hidden_size ({hidden_size}) must be a multiple of num_attention_heads ({heads}), \
                     or head_dim must be given"
                )));
            }
        };
        if head_dim % 2 != 0 {
            return Err(Error::setup(format!("config.json: head_dim ({head_dim}) must be even for rotary embeddings")));
        }
        let rope = fields.rope()?;
        Ok(Self {
            model_type: model_type.to_string(),
            vocab_size: fields.size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers: fields.size("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            max_position_embeddings: fields.size("max_position_embeddings")?,
            rms_norm_eps: fields.optional_number("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: rope.0,
            rope_scaling: rope.1,
            sliding_window: if model_type == "mistral" { fields.optional_size("sliding_window")? } else { None },
            tie_word_embeddings: fields.optional_bool("tie_word_embeddings")?.unwrap_or(false),
        })
    }

    /// Radians a position for each pair of elements of a head, `[head_dim / 2]`.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        (0..self.head_dim / 2)
            .map(|i| {
                let plain = 1.0 / self.rope_theta.powf(2.0 * i as f64 / self.head_dim as f64);
                self.rope_scaling.stretch(plain) as f32
            })
            .collect()
    }
}

impl RopeScaling {
    fn stretch(&self, frequency: f64) -> f64 {
        match *self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings: original } => {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength < original / high_freq_factor {
                    frequency
                } else if wavelength > original / low_freq_factor {
                    frequency / factor
                } else {
                    let blend = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - blend) * frequency / factor + blend * frequency
                }
            }
        }
    }
}

/// Typed access to a JSON object, with messages that name the field.
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    fn wrong(name: &str, wanted: &str, found: &Value) -> Error {
        Error::setup(format!("config.json: `{name}` must be {wanted}, not {found}"))
    }

    fn missing(name: &str) -> Error {
        Error::setup(format!("config.json: `{name}` is missing"))
    }

    fn text(&self, name: &str) -> Result<&'a str> {
        let v = self.get(name).ok_or_else(|| Self::missing(name))?;
        v.as_str().ok_or_else(|| Self::wrong(name, "a string", v))
    }

    fn expect_text(&self, name: &str, only: &str) -> Result<()> {
        match self.get(name) {
            Some(v) if v.as_str() != Some(only) => Err(Error::setup(format!(
                "config.json: `{name}` is {v}; only \"{only}\" is supported for this model_type"
            ))),
            _ => Ok(()),
        }
    }

    fn optional_size(&self, name: &str) -> Result<Option<usize>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        match v.as_u64().map(usize::try_from) {
            Some(Ok(n)) if (1..1 << 31).contains(&n) => Ok(Some(n)),
            _ => Err(Self::wrong(name, "a positive integer", v)),
        }
    }

    fn size(&self, name: &str) -> Result<usize> {
        self.optional_size(name)?.ok_or_else(|| Self::missing(name))
    }

    fn optional_number(&self, name: &str) -> Result<Option<f64>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        match v.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(Self::wrong(name, "a positive number", v)),
        }
    }

    fn number(&self, name: &str) -> Result<f64> {
        self.optional_number(name)?.ok_or_else(|| Self::missing(name))
    }

    fn optional_bool(&self, name: &str) -> Result<Option<bool>> {
        let Some(v) = self.get(name) else { return Ok(None) };
        v.as_bool().map(Some).ok_or_else(|| Self::wrong(name, "true or false", v))
    }

    fn refuse_if_true(&self, names: &[&str]) -> Result<()> {
        for name in names {
            if self.optional_bool(name)? == Some(true) {
                return Err(Error::setup(format!("config.json: `{name}: true` is not supported for this model_type")));
            }
        }
        Ok(())
    }

    /// Base and stretch of the rotary frequencies, from whichever of the two places holds them.
    fn rope(&self) -> Result<(f64, RopeScaling)> {
        let (theta, scaling) = match self.get("rope_parameters") {
            Some(parameters) => (Fields(parameters).optional_number("rope_theta")?, Some(parameters)),
            None => (None, self.get("rope_scaling")),
        };
        let theta = match theta {
            Some(t) => t,
            None => self.optional_number("rope_theta")?.unwrap_or(10_000.0),
        };
        let Some(scaling) = scaling else { return Ok((theta, RopeScaling::None)) };
        let fields = Fields(scaling);
        let kind = match fields.get("rope_type").or_else(|| fields.get("type")) {
            Some(v) => v.as_str().ok_or_else(|| Self::wrong("rope_type", "a string", v))?,
            None => "default",
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: fields.number("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: fields.number("factor")?,
                low_freq_factor: fields.number("low_freq_factor")?,
                high_freq_factor: fields.number("high_freq_factor")?,
                original_max_position_embeddings: fields.number("original_max_position_embeddings")?,
            },
            other => {
                return Err(Error::setup(format!(
                    "config.json: rope scaling `{other}` is not supported; supported are default, linear and llama3"
                )));
            }
        };
        Ok((theta, scaling))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn minimal() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256,
        })
    }

    #[test]
    fn both_forms_of_rope_settings_mean_the_same() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 32});
        let (mut four, mut five) = (minimal(), minimal());
        four["rope_theta"] = json!(5e5);
        four["rope_scaling"] = scaling.clone();
        five["rope_parameters"] = scaling;
        five["rope_parameters"]["rope_theta"] = json!(5e5);
        let (four, five) = (DecoderConfig::from_json(&four).unwrap(), DecoderConfig::from_json(&five).unwrap());
        assert_eq!(four, five);
        assert_eq!(four.rope_theta, 5e5);
        assert!(matches!(four.rope_scaling, RopeScaling::Llama3 { .. }));
    }

    #[test]
    fn a_window_is_mistrals_alone() {
        let mut json = minimal();
        json["sliding_window"] = json!(16);
        assert_eq!(DecoderConfig::from_json(&json).unwrap().sliding_window, None);
        json["model_type"] = json!("mistral");
        assert_eq!(DecoderConfig::from_json(&json).unwrap().sliding_window, Some(16));
    }

    #[test]
    fn messages_name_the_field() {
        let broken = |name: &str, value: Value| {
            let mut json = minimal();
            json[name] = value;
            DecoderConfig::from_json(&json).unwrap_err().to_string()
        };
        assert_eq!(broken("hidden_size", json!(-1)), "config.json: `hidden_size` must be a positive integer, not -1");
        assert!(broken("model_type", json!("mamba")).contains("model_type `mamba` is not supported"));
        assert!(broken("num_key_value_heads", json!(3)).contains("multiple of num_key_value_heads"));
        assert!(broken("attention_bias", json!(true)).contains("`attention_bias: true` is not supported"));
        assert!(broken("rope_scaling", json!({"rope_type": "yarn"})).contains("rope scaling `yarn`"));
    }
}
