//! What is trained beside a frozen base, as tensors by name: set from an adapter's folder, and as it is saved.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};

use super::{LoraOptions, Tensors};
use crate::checkpoint::same_bits;
use crate::models::{Decoder, HEAD, OUTPUT_ROWS, Parameter, Piece, TABLE, TOKEN_ROWS};
use crate::{Error, Result};

impl LoraOptions {
    /// Sets the model's adapters to those in a PEFT folder.
    ///
    /// # Errors
    /// An adapter of another rank, scale or choice of layers, or one that cannot be read.
    pub fn load_into(&self, model: &Decoder, dir: &Path) -> Result<()> {
        let (config, tensors) = crate::checkpoint::peft::read(dir)?;
        self.check(&config, dir, &model.config)?;
        let (mut tensors, begun) = self.parted(tensors)?;
        if model.config.tie_word_embeddings
            && let (Some(head), Some(table)) = (tensors.get(HEAD), tensors.get(TABLE))
        {
            if !same_bits(head, table)? {
                return Err(Error::file(
                    dir,
                    "its embedding table and its output layer are two, and this model's are one: merge it, and go on from the \
                     merged model",
                ));
            }
            tensors.remove(HEAD);
        }
        for (layer, (a, b)) in model.begun() {
            let is_same = |of: &str, here: &Tensor| -> Result<bool> {
                let there = begun.get(&format!("{layer}.lora_{of}.weight"));
                let same = |there: &Tensor| Ok(there.dims() == here.dims() && flat(there)? == flat(here)?);
                there.map_or(Ok(false), same)
            };
            if !is_same("A", a)? || !is_same("B", b)? {
                return Err(Error::file(
                    dir,
                    format!("its adapter of `{layer}` began with another part of the weight than this one"),
                ));
            }
        }
        set_trainable(model, &tensors, &dir.display().to_string())
    }
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Sets what is trained to `values`, all of it and nothing else, by the names of [`Decoder::trainable`].
///
/// # Errors
/// A name that only one side has, or another shape.
pub fn set_trainable(model: &Decoder, values: &BTreeMap<String, Tensor>, origin: &str) -> Result<()> {
    let trainable = model.trainable();
    if let Some(name) = values.keys().find(|name| trainable.get(name).is_none()) {
        return Err(Error::setup(format!(
            "{origin} has `{name}`, for which there is no place: the model has other layers, or others of them carry adapters"
        )));
    }
    for parameter in trainable {
        let (name, var) = (parameter.name(), parameter.var());
        let value = values.get(&**name).ok_or_else(|| {
            Error::setup(format!(
                "{origin} lacks `{name}`, which is among the adapters here: the model has other layers, or others of them \
                 carry adapters"
            ))
        })?;
        if value.dims() != parameter.dims() {
            return Err(Error::setup(format!(
                "{origin}: `{name}` has shape {:?}, and {:?} is needed here; check the rank and the base model",
                value.dims(),
                parameter.dims()
            )));
        }
        let value = parameter.here(value)?;
        var.set(&value.to_dtype(var.dtype())?.to_device(var.device())?.contiguous()?)?;
    }
    model.changed();
    Ok(())
}

/// The adapters' weights as they are now and as they are saved, by the names of [`Decoder::trainable`], in f32, and beside them the
/// weights that are trained whole, a tied output layer under both its names. Adapters that took a
/// part of their weights have it beside them, with a minus: `[A; A₀]` and `[B, −B₀]` are adapters for the weights as they were.
pub fn adapter_weights(model: &Decoder) -> Result<Tensors> {
    model.fetch()?;
    let now = |of: &Parameter| {
        let here = of.var().as_detached_tensor();
        of.whole(&if is_of_adapter(of) { here.to_dtype(DType::F32)? } else { here.copy()? })
    };
    let mut all: Tensors =
        model.trainable().iter().map(|of| Ok((of.name().to_string(), now(of)?))).collect::<Result<_>>()?;
    if let (true, Some(table)) = (model.config.tie_word_embeddings, all.get(TABLE).cloned()) {
        all.insert(HEAD.to_owned(), table);
    }
    for (layer, (a, b)) in model.begun() {
        let joined = [("A", a.clone(), 0), ("B", b.neg()?, 1)];
        for (of, begun, by) in joined {
            if let Some(tensor) = all.get_mut(&format!("{layer}.lora_{of}.weight")) {
                *tensor = Tensor::cat(&[&*tensor, &begun], by)?;
            }
        }
    }
    Ok(all)
}

/// Whether it is saved in f32. The model's own weights stay in its type.
fn is_of_adapter(of: &Parameter) -> bool {
    of.name().contains(".lora_") || [TOKEN_ROWS, OUTPUT_ROWS].contains(&&**of.name())
}

/// The same as [`adapter_weights`], for a checkpoint: what a card has made is read from it when a piece is asked for, or copied beside its
/// work.
///
/// # Errors
/// As [`adapter_weights`].
pub(crate) fn adapter_pieces(model: &Decoder) -> Result<Vec<Piece<'_>>> {
    let Some(card) = model.card().filter(|_| model.mesh().is_single() && model.begun().is_empty()) else {
        let piece = |(name, tensor): (String, Tensor)| {
            Piece::new(name, tensor.dtype(), tensor.dims().to_vec(), move || Ok(tensor.clone()))
        };
        return Ok(adapter_weights(model)?.into_iter().map(piece).collect());
    };
    let piece = |name: &str, of: &'_ Parameter| {
        let var = of.var().clone();
        let dtype = if is_of_adapter(of) { DType::F32 } else { var.dtype() };
        let (shape, read) = (var.dims().to_vec(), var.clone());
        let make = move || {
            card.fetch([&read])?;
            Ok(read.as_detached_tensor().to_dtype(dtype)?.copy()?)
        };
        let piece = Piece::new(name.to_owned(), dtype, shape, make);
        let copy = move || card.copy_of(var.as_tensor()).filter(|_| var.dtype() == dtype);
        piece.copied_by(copy)
    };
    let is_tied = model.config.tie_word_embeddings;
    let names = |of: &Parameter| [Some(of.name().to_string()), (is_tied && **of.name() == *TABLE).then(|| HEAD.into())];
    let all = model.trainable().iter().flat_map(|of| names(of).into_iter().flatten().map(move |name| (name, of)));
    Ok(all.map(|(name, of)| piece(&name, of)).collect())
}
