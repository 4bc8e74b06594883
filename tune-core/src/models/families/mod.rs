//! Model families: from a `config.json` to a [`ModelSpec`].
//!
//! A family is a file here and a line in [`FAMILIES`]. What it does not say is an error, see
//! [`Fields::finish`](super::fields::Fields::finish); its defaults are those of its class in transformers.

mod common;
mod gemma;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rope;
mod smollm3;

use std::path::Path;

use serde_json::Value;
use tune_config::nearest;

use super::fields::Fields;
use super::spec::ModelSpec;
use crate::Result;
use crate::checkpoint::Checkpoint;

type Family = fn(&Fields<'_>) -> Result<ModelSpec>;

/// By `model_type`.
const FAMILIES: &[(&str, Family)] = &[
    ("gemma", gemma::spec),
    ("gemma2", gemma2::spec),
    ("gemma3", gemma3::of_multimodal),
    ("gemma3_text", gemma3::spec),
    ("llama", llama::spec),
    ("mistral", mistral::spec),
    ("olmo2", olmo2::spec),
    ("phi3", phi3::spec),
    ("qwen2", qwen2::spec),
    ("qwen3", qwen3::spec),
    ("qwen3_moe", qwen3_moe::spec),
    ("smollm3", smollm3::spec),
];

/// Models that see images or hear, as transformers names them.
const MULTIMODAL: &[&str] = &[
    "aria",
    "aya_vision",
    "blip-2",
    "chameleon",
    "florence2",
    "fuyu",
    "gemma3n",
    "gemma4",
    "glm4v",
    "glm4v_moe",
    "got_ocr2",
    "idefics",
    "idefics2",
    "idefics3",
    "instructblip",
    "internvl",
    "janus",
    "kosmos-2",
    "llama4",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "mistral3",
    "mllama",
    "molmo",
    "ovis2",
    "paligemma",
    "phi3_v",
    "phi4_multimodal",
    "phi4mm",
    "pixtral",
    "qwen2_5_omni",
    "qwen2_5_vl",
    "qwen2_audio",
    "qwen2_vl",
    "qwen3_omni_moe",
    "qwen3_vl",
    "qwen3_vl_moe",
    "smolvlm",
    "video_llava",
    "vipllava",
    "voxtral",
];

impl ModelSpec {
    /// Reads the content of a `config.json`, in the form of transformers 4 or 5.
    ///
    /// # Errors
    /// An unknown `model_type`, a missing or wrong field, or a setting that could change what the model computes and is
    /// not known here.
    pub fn from_json(json: &Value) -> Result<Self> {
        Self::read(json, Some(Path::new("config.json")), "")
    }

    /// The model of a checkpoint, by its `config.json`.
    ///
    /// # Errors
    /// As [`Self::from_json`]; the message has the file's path.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        Self::read(checkpoint.config(), Some(&checkpoint.config_path()), checkpoint.part())
    }

    /// As [`Self::from_json`], of what is read from `file`, where there is one; `part` stands before the names of fields in
    /// messages.
    pub(crate) fn read(json: &Value, file: Option<&Path>, part: &str) -> Result<Self> {
        let fields = Fields::new(json, file, part.to_owned())?;
        let model_type = fields.text("model_type")?;
        let Some((_, family)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
            return Err(fields.error(unknown(model_type, fields.get("vision_config").is_some())));
        };
        let spec = family(&fields)?;
        fields.finish()?;
        Ok(spec)
    }
}

fn unknown(model_type: &str, sees: bool) -> String {
    let names = || FAMILIES.iter().map(|(name, _)| *name);
    if sees || MULTIMODAL.contains(&model_type) {
        return format!(
            "model_type `{model_type}` is a model of images or sound, and only models of text are trained \
             here; supported are {}",
            list(names())
        );
    }
    let meant = nearest(model_type, names()).map_or(String::new(), |name| format!("; the nearest is {name}"));
    format!("model_type `{model_type}` is not supported; supported are {}{meant}", list(names()))
}

/// Words as a sentence has them.
fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<_> = words.collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => words.concat(),
    }
}

#[cfg(test)]
mod tests;
