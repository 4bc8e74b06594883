//! Rotary tables of a `config.json`, from whichever of the places that transformers 4 and 5 have for them.

use super::super::fields::Fields;
use super::common::Sizes;
use crate::Result;
use crate::kernels::{RopeScaling, RotarySpec};

/// What a class in transformers has for settings that are not there.
#[derive(Clone, Copy)]
pub(super) struct RopeDefaults {
    pub(super) theta: f64,
    /// Whether "su" and "yarn" mean "longrope", as in Phi-3's older files.
    pub(super) is_phi: bool,
}

impl Default for RopeDefaults {
    fn default() -> Self {
        Self { theta: 10_000.0, is_phi: false }
    }
}

/// The one table of a model: `rope_parameters`, or `rope_theta` and `rope_scaling`.
pub(super) fn table(fields: &Fields<'_>, sizes: &Sizes, defaults: RopeDefaults) -> Result<RotarySpec> {
    let theta = fields.optional_number("rope_theta")?.unwrap_or(defaults.theta);
    // Phi-3's and Phi-4's files have it without a stretch, too.
    fields.unused(&["original_max_position_embeddings"]);
    // Files that have both mean the same by them; transformers 5 prefers the old one.
    let (old, new) = (fields.object("rope_scaling")?, fields.object("rope_parameters")?);
    match old.or(new) {
        Some(own) => {
            let table = with(fields, &own, sizes, theta, defaults.is_phi)?;
            own.finish()?;
            Ok(table)
        }
        None => Ok(RotarySpec { dim: rotated(fields, None, sizes)?, theta, scaling: RopeScaling::None }),
    }
}

/// A table by its own settings `own`, where these do not say it by those of the model and `theta`.
pub(super) fn with(
    fields: &Fields<'_>,
    own: &Fields<'_>,
    sizes: &Sizes,
    theta: f64,
    is_phi: bool,
) -> Result<RotarySpec> {
    let theta = own.optional_number("rope_theta")?.unwrap_or(theta);
    let dim = rotated(fields, Some(own), sizes)?;
    let (kind, old_kind) = (own.optional_text("rope_type")?, own.optional_text("type")?);
    let kind = match kind.or(old_kind).unwrap_or("default") {
        "su" | "yarn" if is_phi => "longrope",
        kind => kind,
    };
    let original = || -> Result<f64> {
        let (outer, inner) =
            ("original_max_position_embeddings", own.optional_number("original_max_position_embeddings")?);
        Ok(fields.optional_number(outer)?.or(inner).unwrap_or(sizes.longest as f64))
    };
    let scaling = match kind {
        "default" => {
            // Left over: a table without a stretch does not read them.
            own.unused(&["factor", "original_max_position_embeddings"]);
            RopeScaling::None
        }
        "linear" => RopeScaling::Linear { factor: own.number("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: own.number("factor")?, trained: sizes.longest as f64 },
        "llama3" => RopeScaling::Llama3 {
            factor: own.number("factor")?,
            low_freq_factor: own.number("low_freq_factor")?,
            high_freq_factor: own.number("high_freq_factor")?,
            original_max_position_embeddings: original()?,
        },
        "yarn" => {
            let original = original()?;
            let factor = own.optional_number("factor")?.unwrap_or(sizes.longest as f64 / original);
            let scale = |of: f64| if factor <= 1.0 { 1.0 } else { 0.1 * of * factor.ln() + 1.0 };
            let (mscale, all) = (own.optional_number("mscale")?, own.optional_number("mscale_all_dim")?);
            let by_factor = match (mscale, all) {
                (Some(mscale), Some(all)) => scale(mscale) / scale(all),
                _ => scale(1.0),
            };
            own.unused(&["finetuned"]);
            RopeScaling::Yarn {
                factor,
                attention_factor: own.optional_number("attention_factor")?.unwrap_or(by_factor),
                beta_fast: own.optional_number("beta_fast")?.unwrap_or(32.0),
                beta_slow: own.optional_number("beta_slow")?.unwrap_or(1.0),
                original_max_position_embeddings: original,
                truncate: own.bool("truncate", true)?,
            }
        }
        "longrope" => {
            let original = original()?;
            let factor = own.optional_number("factor")?.unwrap_or(sizes.longest as f64 / original);
            let by_factor = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
            RopeScaling::LongRope {
                short_factor: divisors(own, "short_factor", dim)?,
                long_factor: divisors(own, "long_factor", dim)?,
                attention_factor: own.optional_number("attention_factor")?.unwrap_or(by_factor),
                original_max_position_embeddings: original,
            }
        }
        other => {
            return Err(own.bad(
                if own.optional_text("rope_type")?.is_some() { "rope_type" } else { "type" },
                format!("is \"{other}\"; supported are default, linear, dynamic, llama3, yarn and longrope"),
            ));
        }
    };
    fields.unused(&["original_max_position_embeddings"]);
    Ok(RotarySpec { dim, theta, scaling })
}

/// The elements of a head that are turned.
fn rotated(fields: &Fields<'_>, own: Option<&Fields<'_>>, sizes: &Sizes) -> Result<usize> {
    const NAME: &str = "partial_rotary_factor";
    let outer = fields.optional_number(NAME)?;
    let inner = own.map_or(Ok(None), |own| own.optional_number(NAME))?;
    let dim = (sizes.head_dim as f64 * inner.or(outer).unwrap_or(1.0)) as usize;
    if dim < 4 || !dim.is_multiple_of(2) || dim > sizes.head_dim {
        return Err(fields.bad(
            NAME,
            format!(
                "leaves {dim} of {} elements of a head to be turned; it must be an even number from 4 to all of them",
                sizes.head_dim
            ),
        ));
    }
    Ok(dim)
}

fn divisors(own: &Fields<'_>, name: &'static str, dim: usize) -> Result<Vec<f64>> {
    let positive = |v: &serde_json::Value| v.as_f64().filter(|x| x.is_finite() && *x > 0.0);
    match own.list(name, "a list of positive numbers", positive)? {
        Some(list) if list.len() == dim / 2 => Ok(list),
        Some(list) => Err(own.bad(name, format!("has {} numbers for {} frequencies", list.len(), dim / 2))),
        None => Err(own.bad(name, "is missing")),
    }
}
