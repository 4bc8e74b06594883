//! Adapters that are for all experts of a block at once.
//!
//! transformers 5 has the layers of a block's experts as one parameter, and gate and input as one; an adapter that peft trains or
//! saves there is one on each parameter. Its `A` is `[experts * rank, in]`, expert by expert, and its `B` `[out, rank * experts]`, with
//! the experts next to each other. It is exactly as many adapters of single experts, of which gate and input have the same `A`.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use super::config::{AdapterConfig, TargetModules, is_named};
use super::{DOWN, UP, modules};
use crate::models::Slot;

/// The parameters, and the layers that are in each of them.
const PARAMETERS: [(&str, &[&str]); 2] = [
    (Slot::GateUpProj.name(), &[Slot::GateProj.name(), Slot::UpProj.name()]),
    (Slot::DownProj.name(), &[Slot::DownProj.name()]),
];

/// Whether a parameter is one of these.
pub(super) fn is_of_experts(parameter: &str) -> bool {
    PARAMETERS.iter().any(|(name, _)| is_named(parameter, name))
}

/// The same adapter on the layers of single experts.
///
/// # Errors
/// What is wrong, as the rest of a sentence about the file.
pub(super) fn take_apart(
    mut config: AdapterConfig,
    mut tensors: BTreeMap<String, Tensor>,
) -> Result<(AdapterConfig, BTreeMap<String, Tensor>), String> {
    let targets = |last: &str| config.target_parameters.iter().any(|name| is_named(name, last));
    let of = |module: &str| -> Option<(String, &'static str, &'static [&'static str])> {
        // Where both parameters are adapted, the first is inside.
        let (experts, (name, layers)) = match module.strip_suffix(".base_layer") {
            Some(experts) => (experts, PARAMETERS[0]),
            None => (module, PARAMETERS[usize::from(targets(PARAMETERS[1].0))]),
        };
        experts.ends_with(".experts").then(|| (experts.to_owned(), name, layers))
    };
    let found: Vec<_> = modules(tensors.keys()).into_iter().filter_map(|m| Some((m.to_owned(), of(m)?))).collect();
    let mut patterns: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
    for (module, (experts, parameter, layers)) in found {
        let whole = format!("{experts}.{parameter}");
        let (rank, _) = config.of_module(&whole)?;
        let alpha = config.layers.alpha(&whole)?.unwrap_or(config.alpha);
        if *patterns.entry(parameter).or_insert((rank, alpha)) != (rank, alpha) {
            return Err(format!(
                "has adapters of several ranks or alphas for `{parameter}` of experts, which is not supported"
            ));
        }
        let mut take = |end: &str| {
            let name = format!("{module}{end}");
            tensors.remove(&name).ok_or_else(|| format!("has no `{name}`"))
        };
        apart(&take(DOWN)?, &take(UP)?, rank, layers.len())
            .map_err(|e| e.to_string())?
            .ok_or_else(|| format!("holds matrices for `{module}` that are not of rank {rank} for each expert"))?
            .into_iter()
            .for_each(|OfLayer { expert, part, a, b }| {
                let layer = format!("{experts}.{expert}.{}", layers[part]);
                tensors.insert(format!("{layer}{DOWN}"), a);
                tensors.insert(format!("{layer}{UP}"), b);
            });
    }
    let has = |name: &str| {
        PARAMETERS.iter().any(|(parameter, _)| is_named(name, parameter) && patterns.contains_key(parameter))
    };
    if let Some(name) = config.target_parameters.iter().find(|name| is_of_experts(name) && !has(name)) {
        return Err(format!("has no adapter on `{name}`, which target_parameters names"));
    }
    for (parameter, (rank, alpha)) in patterns {
        for (_, layers) in PARAMETERS.iter().filter(|(name, _)| *name == parameter) {
            let key = format!(r"experts\.\d+\.(?:{})", layers.join("|"));
            config.layers.rank_pattern.insert(0, (key.clone(), rank));
            config.layers.alpha_pattern.insert(0, (key, alpha));
            if let TargetModules::Names(names) = &mut config.target_modules {
                names.extend(layers.iter().map(|&layer| layer.to_owned()));
            }
        }
    }
    let others: BTreeSet<String> =
        config.target_parameters.iter().filter(|name| !is_of_experts(name)).cloned().collect();
    config.target_parameters = others;
    Ok((config, tensors))
}

/// The adapter of one layer of one expert.
struct OfLayer {
    expert: usize,
    /// Which of the layers in the parameter it is.
    part: usize,
    /// `[rank, in]`.
    a: Tensor,
    /// `[out, rank]`.
    b: Tensor,
}

/// Those of each expert and each of the layers in the parameter; `None` where the shapes are others.
fn apart(a: &Tensor, b: &Tensor, rank: usize, layers: usize) -> candle_core::Result<Option<Vec<OfLayer>>> {
    let ((rows, _), (out, columns)) = (a.dims2()?, b.dims2()?);
    if rows != columns || rows % rank != 0 || out % layers != 0 {
        return Ok(None);
    }
    let experts = rows / rank;
    let b = b.reshape((out, rank, experts))?;
    let mut apart = Vec::new();
    for expert in 0..experts {
        let a = a.narrow(0, expert * rank, rank)?.force_contiguous()?;
        let b = b.narrow(2, expert, 1)?.squeeze(2)?;
        for part in 0..layers {
            let b = b.narrow(0, part * (out / layers), out / layers)?.force_contiguous()?;
            apart.push(OfLayer { expert, part, a: a.clone(), b });
        }
    }
    Ok(Some(apart))
}
