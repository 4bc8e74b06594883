//! Models of known sizes, by name: a config can say which one it is meant for.

use std::path::Path;

use tune_config::schema::{Choice, Choices};
use tune_config::{Config, Mismatch, Schema, Value};

use super::ModelSpec;
use crate::{Error, Result};

/// The `model` key of recipes that train all weights.
#[derive(Debug, Clone, Default, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct ModelConfig {
    /// The model that `checkpoint_dir` must hold; any that is there where null.
    #[config(alias = "_component_", may_change)]
    pub architecture: Option<Architecture>,
}

/// A model of a known size: a name of the `model.architecture` key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Architecture(&'static Shape);

/// What tells models apart in their `config.json`.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    name: &'static str,
    family: &'static str,
    model_type: &'static str,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
}

/// Shapes, and the choices of the schema, which have the names of torchtune's builders as aliases.
macro_rules! architectures {
    ($($family:literal $name:literal $model_type:literal
       [$hidden:literal, $intermediate:literal, $layers:literal, $heads:literal, $kv_heads:literal],)*) => {
        static SHAPES: &[Shape] = &[$(Shape {
            name: $name,
            family: $family,
            model_type: $model_type,
            hidden_size: $hidden,
            intermediate_size: $intermediate,
            num_hidden_layers: $layers,
            num_attention_heads: $heads,
            num_key_value_heads: $kv_heads,
        }),*];
        static CHOICES: Choices = Choices {
            name: "Architecture",
            doc: "A model of a known size.",
            choices: &[$(Choice {
                name: $name,
                aliases: &[
                    concat!("torchtune.models.", $family, ".", $name),
                    concat!("torchtune.models.", $family, ".lora_", $name),
                ],
                doc: "",
            }),*],
            default: None,
        };
    };
}

architectures! {
    "llama2" "llama2_7b" "llama" [4096, 11008, 32, 32, 32],
    "llama2" "llama2_13b" "llama" [5120, 13824, 40, 40, 40],
    "llama2" "llama2_70b" "llama" [8192, 28672, 80, 64, 8],
    "code_llama2" "code_llama2_7b" "llama" [4096, 11008, 32, 32, 32],
    "code_llama2" "code_llama2_13b" "llama" [5120, 13824, 40, 40, 40],
    "code_llama2" "code_llama2_70b" "llama" [8192, 28672, 80, 64, 8],
    "llama3" "llama3_8b" "llama" [4096, 14336, 32, 32, 8],
    "llama3" "llama3_70b" "llama" [8192, 28672, 80, 64, 8],
    "llama3_1" "llama3_1_8b" "llama" [4096, 14336, 32, 32, 8],
    "llama3_1" "llama3_1_70b" "llama" [8192, 28672, 80, 64, 8],
    "llama3_1" "llama3_1_405b" "llama" [16384, 53248, 126, 128, 8],
    "llama3_2" "llama3_2_1b" "llama" [2048, 8192, 16, 32, 8],
    "llama3_2" "llama3_2_3b" "llama" [3072, 8192, 28, 24, 8],
    "llama3_3" "llama3_3_70b" "llama" [8192, 28672, 80, 64, 8],
    "mistral" "mistral_7b" "mistral" [4096, 14336, 32, 32, 8],
    "gemma" "gemma_2b" "gemma" [2048, 16384, 18, 8, 1],
    "gemma" "gemma_7b" "gemma" [3072, 24576, 28, 16, 16],
    "gemma2" "gemma2_2b" "gemma2" [2304, 9216, 26, 8, 4],
    "gemma2" "gemma2_9b" "gemma2" [3584, 14336, 42, 16, 8],
    "gemma2" "gemma2_27b" "gemma2" [4608, 36864, 46, 32, 16],
    "phi3" "phi3_mini" "phi3" [3072, 8192, 32, 32, 32],
    "phi4" "phi4_14b" "phi3" [5120, 17920, 40, 40, 10],
    "qwen2" "qwen2_0_5b" "qwen2" [896, 4864, 24, 14, 2],
    "qwen2" "qwen2_1_5b" "qwen2" [1536, 8960, 28, 12, 2],
    "qwen2" "qwen2_7b" "qwen2" [3584, 18944, 28, 28, 4],
    "qwen2_5" "qwen2_5_0_5b" "qwen2" [896, 4864, 24, 14, 2],
    "qwen2_5" "qwen2_5_1_5b_base" "qwen2" [1536, 8960, 28, 12, 2],
    "qwen2_5" "qwen2_5_1_5b_instruct" "qwen2" [1536, 8960, 28, 12, 2],
    "qwen2_5" "qwen2_5_3b" "qwen2" [2048, 11008, 36, 16, 2],
    "qwen2_5" "qwen2_5_7b_base" "qwen2" [3584, 18944, 28, 28, 4],
    "qwen2_5" "qwen2_5_7b_instruct" "qwen2" [3584, 18944, 28, 28, 4],
    "qwen2_5" "qwen2_5_14b_base" "qwen2" [5120, 13824, 48, 40, 8],
    "qwen2_5" "qwen2_5_14b_instruct" "qwen2" [5120, 13824, 48, 40, 8],
    "qwen2_5" "qwen2_5_32b_base" "qwen2" [5120, 27648, 64, 40, 8],
    "qwen2_5" "qwen2_5_32b_instruct" "qwen2" [5120, 27648, 64, 40, 8],
    "qwen2_5" "qwen2_5_72b_base" "qwen2" [8192, 29568, 80, 64, 8],
    "qwen2_5" "qwen2_5_72b_instruct" "qwen2" [8192, 29568, 80, 64, 8],
}

impl Shape {
    /// Rows of the embedding table, and whether it is the output layer, too.
    fn table(&self) -> (usize, bool) {
        match (self.family, self.name) {
            ("llama2" | "mistral", _) => (32_000, false),
            ("code_llama2", _) => (32_016, false),
            ("llama3_2", _) => (128_256, true),
            ("gemma" | "gemma2", _) => (256_000, true),
            (_, "phi3_mini") => (32_064, false),
            (_, "phi4_14b") => (100_352, false),
            ("qwen2" | "qwen2_5", _) if self.hidden_size <= 2048 => (151_936, true),
            ("qwen2" | "qwen2_5", _) => (152_064, false),
            _ => (128_256, false),
        }
    }

    /// Elements of a head, where they are not the model's width over its heads.
    fn head_dim(&self) -> Option<usize> {
        match (self.family, self.name) {
            (_, "gemma2_27b") => Some(128),
            ("gemma" | "gemma2", _) => Some(256),
            _ => None,
        }
    }
}

impl Architecture {
    /// The model of this name.
    pub fn named(name: &str) -> Option<Self> {
        SHAPES.iter().find(|shape| shape.name == name).map(Self)
    }

    /// The names of all.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHAPES.iter().map(|shape| shape.name)
    }

    /// Its whole shape, for what is known of a model without its files: rotary tables, sliding windows and the like are those of a
    /// `config.json` that does not mention them.
    ///
    /// # Errors
    /// As [`ModelSpec::from_json`].
    pub fn spec(self) -> Result<ModelSpec> {
        let shape = self.0;
        let (vocab_size, tied) = shape.table();
        let mut config = serde_json::json!({
            "model_type": shape.model_type, "vocab_size": vocab_size, "max_position_embeddings": 1 << 20,
            "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_hidden_layers, "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads, "tie_word_embeddings": tied,
        });
        if let Some(head_dim) = shape.head_dim() {
            config["head_dim"] = head_dim.into();
        }
        ModelSpec::from_json(&config)
    }

    /// Checks that the model in `checkpoint` is this one.
    ///
    /// # Errors
    /// It is another one: both are named, with all that differs.
    pub fn check(self, found: &ModelSpec, checkpoint: &Path) -> Result<()> {
        let shape = self.0;
        let mut differs = Vec::new();
        if shape.model_type != found.model_type {
            differs.push(format!("model_type is {}, not {}", found.model_type, shape.model_type));
        }
        let block = found.blocks.first();
        let heads = block.map_or((0, 0), |block| (block.attention.shape.heads, block.attention.shape.kv_heads));
        for (name, found, expected) in [
            ("hidden_size", found.hidden_size, shape.hidden_size),
            ("intermediate_size", block.map_or(0, |block| block.mlp.inner()), shape.intermediate_size),
            ("num_hidden_layers", found.blocks.len(), shape.num_hidden_layers),
            ("num_attention_heads", heads.0, shape.num_attention_heads),
            ("num_key_value_heads", heads.1, shape.num_key_value_heads),
        ] {
            if found != expected {
                differs.push(format!("{name} is {found}, not {expected}"));
            }
        }
        if differs.is_empty() {
            return Ok(());
        }
        Err(Error::setup(format!(
            "model.architecture is {}, but {} holds another model: {}; set checkpointer.checkpoint_dir to the folder of \
             that model, or model.architecture=null to train the one that is there",
            shape.name,
            checkpoint.display(),
            differs.join(", ")
        )))
    }
}

impl std::fmt::Debug for Architecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.name)
    }
}

impl Config for Architecture {
    const SCHEMA: Schema = Schema::Choice(&CHOICES);

    fn from_value(value: &Value) -> Result<Self, Mismatch> {
        let name = value.text()?;
        let shape = SHAPES.iter().find(|shape| shape.name == name);
        shape.map(Self).ok_or_else(|| value.refuse(format!("`{name}` is no model whose size is known")))
    }

    fn to_value(&self) -> Value {
        Value::from_text(self.0.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(shape: &Shape) -> ModelSpec {
        let json = json!({
            "model_type": shape.model_type, "vocab_size": 32000, "max_position_embeddings": 4096,
            "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_hidden_layers, "num_attention_heads": shape.num_attention_heads,
            "num_key_value_heads": shape.num_key_value_heads,
        });
        ModelSpec::from_json(&json).unwrap()
    }

    /// A name of a family that the engine does not have would promise too much.
    #[test]
    fn every_architecture_is_one_that_the_engine_has() {
        for shape in SHAPES {
            Architecture(shape).check(&config(shape), Path::new("model")).unwrap();
        }
    }

    /// Billions of parameters as they are published, of one of each family that has a table of its own.
    #[test]
    fn shapes_have_as_many_parameters_as_is_published() {
        for (name, billions) in [
            ("llama2_7b", 6.738),
            ("llama3_1_8b", 8.030),
            ("llama3_1_405b", 405.9),
            ("llama3_2_1b", 1.236),
            ("gemma_7b", 8.538),
            ("gemma2_2b", 2.614),
            ("gemma2_27b", 27.23),
            ("phi3_mini", 3.821),
            ("phi4_14b", 14.66),
            ("qwen2_5_0_5b", 0.494),
            ("qwen2_5_7b_base", 7.616),
            ("qwen2_5_72b_base", 72.71),
        ] {
            let weights = Architecture::named(name).unwrap().spec().unwrap().weights();
            let parameters: usize = weights.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            let off = parameters as f64 / 1e9 / billions - 1.0;
            assert!(off.abs() < 2e-3, "{name}: {parameters}");
        }
    }

    #[test]
    fn another_model_is_told_with_all_that_differs() {
        let named = |name| SHAPES.iter().find(|shape| shape.name == name).unwrap();
        let found = config(named("mistral_7b"));
        let error = Architecture(named("llama3_8b")).check(&found, Path::new("models/m")).unwrap_err().to_string();
        assert!(error.contains("models/m holds another model: model_type is mistral, not llama;"), "{error}");
        let error = Architecture(named("llama3_2_1b")).check(&found, Path::new("m")).unwrap_err().to_string();
        assert!(
            error.contains("hidden_size is 4096, not 2048") && error.contains("num_hidden_layers is 32"),
            "{error}"
        );
        assert!(error.contains("model.architecture=null"), "{error}");
    }
}
