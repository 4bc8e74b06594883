//! The models and batches whose bits are compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tune_core::checkpoint::Checkpoint;
use tune_core::data::{Batch, IGNORE, Span};
use tune_core::device::Compute;
use tune_core::models::{Decoder, LoadOptions, ModelSpec, RandomWeights};
use tune_core::peft::LoraOptions;

use crate::Result;

/// A model by its folder's name.
pub(super) struct Model {
    pub name: String,
    pub(super) config: Value,
    /// Those of a checkpoint, or random ones.
    weights: Option<BTreeMap<String, Tensor>>,
    /// Token ids and labels that it comes with, `[rows, len]`.
    rows: Option<[Vec<Vec<i64>>; 2]>,
}

/// All of them: the families' fixtures, the tiny model that ships with the project, and one whose sizes take
/// the kernels through more than one task, panel and group of inner steps.
pub(super) fn all(root: &Path) -> Result<Vec<Model>> {
    let families = root.join("tests/fixtures/families");
    let mut folders = Vec::new();
    for entry in fs::read_dir(&families).map_err(|e| format!("{}: {e}", families.display()))? {
        folders.extend(Some(entry?.path()).filter(|path| path.join("config.json").is_file()));
    }
    folders.sort();
    let mut models: Vec<Model> = folders.iter().map(|folder| Model::read(folder)).collect::<Result<_>>()?;
    models.push(Model { name: "tiny".to_owned(), ..Model::read(&root.join("recipes/tiny/model"))? });
    let config = json!({
        "model_type": "llama", "hidden_act": "silu", "hidden_size": 144, "intermediate_size": 1300,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24, "vocab_size": 20011,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048, "tie_word_embeddings": true,
    });
    models.push(Model { name: "random".to_owned(), config, weights: None, rows: None });
    Ok(models)
}

impl Model {
    fn read(folder: &Path) -> Result<Self> {
        let tensors = |file: &str| -> Result<BTreeMap<String, Tensor>> {
            Ok(candle_core::safetensors::load(folder.join(file), &Device::Cpu)?.into_iter().collect())
        };
        let rows = match folder.join("reference.safetensors").is_file() {
            false => None,
            true => {
                let reference = tensors("reference.safetensors")?;
                let rows = |name: &str| -> Result<Vec<Vec<i64>>> {
                    let values = reference.get(name).ok_or_else(|| format!("{} lacks `{name}`", folder.display()))?;
                    Ok(values.to_vec2()?)
                };
                Some([rows("input_ids")?, rows("labels")?])
            }
        };
        let checkpoint = Checkpoint::open(folder)?;
        let weight = |name: &str| Ok((name.to_owned(), checkpoint.tensor(name, DType::F32, &Device::Cpu)?));
        Ok(Self {
            name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            config: checkpoint.config().clone(),
            weights: Some(checkpoint.names().map(weight).collect::<Result<_>>()?),
            rows,
        })
    }

    /// The model with all its weights trained, or with adapters.
    pub(super) fn load(&self, dtype: DType, lora: Option<LoraOptions>) -> Result<Decoder> {
        let config = ModelSpec::from_json(&self.config)?;
        let options = LoadOptions { dtype, device: Compute::Processor, train_weights: lora.is_none(), lora };
        Ok(match &self.weights {
            Some(weights) => Decoder::load(config, weights, &options)?,
            None => Decoder::load(config, &RandomWeights { seed: 1, std: 0.05 }, &options)?,
        })
    }

    /// Batches by name: packed rows, padded rows, and what the model's fixture holds.
    pub(super) fn batches(&self) -> Vec<(&'static str, Batch)> {
        let vocab = self.config["vocab_size"].as_u64().unwrap_or(1) as u32;
        let longest = self.config["max_position_embeddings"].as_u64().unwrap_or(1) as usize;
        // Longer than a block of keys where the model allows for it.
        let long = longest.min(560);
        let mut batches = vec![
            ("packed", batch(long + 60, &[&[long, 40, 1], &[17, long / 2, 23]], vocab)),
            ("padded", batch(long, &[&[long], &[9], &[long / 3]], vocab)),
        ];
        if let Some([ids, labels]) = &self.rows {
            batches.push(("own", of_rows(ids, labels)));
        }
        batches
    }
}

/// Rows of `len` positions with samples of the given lengths, one behind the other; the first third of each is not trained.
fn batch(len: usize, rows: &[&[usize]], vocab: u32) -> Batch {
    let tokens = rows.len() * len;
    let mut batch = Batch {
        rows: rows.len(),
        len,
        input_ids: vec![0; tokens],
        targets: vec![IGNORE; tokens],
        positions: vec![0; tokens],
        spans: Vec::new(),
        origins: Vec::new(),
        labels: Vec::new(),
    };
    for (row, lens) in rows.iter().enumerate() {
        let mut start = 0;
        for &len in *lens {
            for i in 0..len {
                let at = row * batch.len + start + i;
                batch.input_ids[at] = (at as u32 * 31 + 7) % vocab;
                batch.positions[at] = i as u32;
                if i >= len / 3 {
                    batch.targets[at] = (at as u32 * 17 + 3) % vocab;
                }
            }
            batch.spans.push(Span { row, start, len });
            batch.origins.push(String::new());
            start += len;
        }
    }
    batch
}

/// Rows without padding, each of which is to predict the next label.
fn of_rows(ids: &[Vec<i64>], labels: &[Vec<i64>]) -> Batch {
    let len = ids.first().map_or(0, Vec::len);
    let next = |row: &Vec<i64>| -> Vec<u32> {
        row.iter().skip(1).chain([&-100]).map(|&label| u32::try_from(label).unwrap_or(IGNORE)).collect()
    };
    Batch {
        rows: ids.len(),
        len,
        input_ids: ids.iter().flatten().map(|&id| id as u32).collect(),
        targets: labels.iter().flat_map(next).collect(),
        positions: ids.iter().flat_map(|_| 0..len as u32).collect(),
        spans: (0..ids.len()).map(|row| Span { row, start: 0, len }).collect(),
        origins: vec![String::new(); ids.len()],
        labels: Vec::new(),
    }
}
