//! Rotary tables of a GGUF file, as a `config.json` says them.

use serde_json::{Map, Value, json};

use super::family::Sizes;
use super::header::TensorInfo;
use super::metadata::{Metadata, decimal};
use crate::Result;
use crate::checkpoint::source::DataFile;

/// How positions beyond the original context are scaled, as `rope_scaling` says it.
pub(super) fn scaling(
    metadata: &Metadata,
    architecture: &str,
    sizes: &Sizes,
    file: &DataFile,
    [freqs, short, long]: [Option<TensorInfo>; 3],
    config: &Map<String, Value>,
) -> Result<Option<Value>> {
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let original = metadata.u64(&key("original_context_length"))?;
    if let Some(info) = freqs {
        let theta = config.get("rope_theta").and_then(Value::as_f64).unwrap_or(10000.0);
        let factors = read_factors(metadata, sizes, file, &info)?;
        return llama3_scaling(theta, sizes.head_dim, &factors, original)
            .map(Some)
            .ok_or_else(|| {
                metadata.bad(
                    "its `rope_freqs.weight` is not Llama 3's scaling with the usual parameters, and no other kind is known to be stored that way",
                )
            });
    }
    if let (Some(short), Some(long)) = (&short, &long) {
        let mut scaling = json!({
            "rope_type": "longrope",
            "short_factor": read_factors(metadata, sizes, file, short)?,
            "long_factor": read_factors(metadata, sizes, file, long)?,
        });
        if let (Some(factor), Some(object)) = (metadata.f64(&key("attn_factor"))?, scaling.as_object_mut()) {
            object.insert("attention_factor".into(), factor.into());
        }
        return Ok(Some(scaling));
    }
    if short.is_some() || long.is_some() {
        return Err(metadata.bad("has only one of `rope_factors_short.weight` and `rope_factors_long.weight`"));
    }
    let kind = metadata.text(&key("type"))?.unwrap_or("none");
    let factor = metadata.f64(&key("factor"))?;
    match (kind, factor) {
        ("none", None) => Ok(None),
        (_, None) => Err(metadata.bad(format!("has `{}` but no factor", key("type")))),
        // Old files have a factor and no type; it was linear then.
        ("none" | "linear", Some(factor)) => {
            Ok((factor != 1.0).then(|| json!({"rope_type": "linear", "factor": factor})))
        }
        ("yarn", Some(factor)) => {
            let mut scaling = json!({"rope_type": "yarn", "factor": factor});
            if let (Some(length), Some(object)) = (original, scaling.as_object_mut()) {
                object.insert("original_max_position_embeddings".into(), length.into());
            }
            Ok(Some(scaling))
        }
        (other, _) => {
            Err(metadata.bad(format!("scales its rotary embedding by `{other}`, which is not supported in GGUF files")))
        }
    }
}

fn read_factors(metadata: &Metadata, sizes: &Sizes, file: &DataFile, info: &TensorInfo) -> Result<Vec<f64>> {
    let half = sizes.rotated / 2;
    if info.shape != [half] || info.bytes != 4 * half as u64 {
        return Err(
            metadata.bad(format!("`{}` has the shape {:?}; {half} f32 numbers were expected", info.name, info.shape))
        );
    }
    let mut raw = vec![0; info.bytes as usize];
    file.read_at(&mut raw, info.start)?;
    Ok(raw.as_chunks::<4>().0.iter().map(|&b| decimal(f32::from_le_bytes(b))).collect())
}

/// The parameters of Llama 3's scaling that give these divisors of the frequencies: the factor is the
/// largest of them; of the rest, all published models share the values tried here.
fn llama3_scaling(theta: f64, head_dim: usize, factors: &[f64], original: Option<u64>) -> Option<Value> {
    let factor = factors.iter().copied().fold(1.0, f64::max);
    let (low, high) = (1.0, 4.0);
    [original, Some(8192)].into_iter().flatten().find_map(|length| {
        let fits = factors.iter().enumerate().all(|(i, &given)| {
            let wavelength = std::f64::consts::TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
            let turns = length as f64 / wavelength;
            let expected = if turns > high {
                1.0
            } else if turns < low {
                factor
            } else {
                let smooth = (turns - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            };
            (given - expected).abs() <= 1e-4 * expected
        });
        fits.then(|| {
            json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            })
        })
    })
}
