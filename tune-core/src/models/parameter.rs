//! What a model's parameters are called, and which of them are trained.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Tensor, Var};

use super::shard::{Here, Shard, gather};
use super::spec::{BlockNorm, ModelSpec, Site};
use super::tokens::{OUTPUT_ROWS, TOKEN_ROWS};
use crate::Result;
use crate::engine::Card;

/// A parameter of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ParamId {
    /// The embedding table, and with it a tied output layer.
    Embedding,
    /// Rows of single tokens that stand in for those of the embedding table.
    Tokens,
    /// Rows of single tokens that stand in for those of an output layer of its own.
    OutputTokens,
    /// A norm of a block.
    Norm(usize, BlockNorm),
    /// A part of a layer of a block.
    InBlock(usize, Site, Of),
    /// The norm below the output layer.
    LastNorm,
    /// A part of the output layer.
    Output(Of),
}

/// A part of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Of {
    /// Its weight, `[out, in]`.
    Weight,
    /// Its bias, `[out]`.
    Bias,
    /// Its adapter's `A`, `[rank, in]`.
    LoraA,
    /// Its adapter's `B`, `[out, rank]`.
    LoraB,
    /// Its adapter's magnitudes, `[out]`.
    LoraMagnitude,
}

impl ParamId {
    /// Its Hugging Face name; that of an adapter is `<layer>.lora_A.weight` or `<layer>.lora_B.weight`.
    pub(crate) fn name(self, model: &ModelSpec) -> String {
        match self {
            Self::Embedding => "model.embed_tokens.weight".to_string(),
            Self::Tokens => TOKEN_ROWS.to_string(),
            Self::OutputTokens => OUTPUT_ROWS.to_string(),
            Self::Norm(block, norm) => {
                format!("model.layers.{block}.{}.weight", norm.path(model.blocks[block].norms))
            }
            Self::InBlock(block, site, of) => format!("model.layers.{block}.{}.{}", site.path(), of.name()),
            Self::LastNorm => "model.norm.weight".to_string(),
            Self::Output(of) => format!("{}.{}", model.output_name(), of.name()),
        }
    }
}

impl ParamId {
    /// Whether a backend may be given the gradient that earlier micro-batches have begun: those of large weights, which are products.
    pub(crate) fn is_begun(self) -> bool {
        match self {
            Self::Embedding | Self::Output(Of::Weight) => true,
            Self::InBlock(_, site, Of::Weight) => site.expert.is_none(),
            _ => false,
        }
    }
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
            Self::LoraA => "lora_A.weight",
            Self::LoraB => "lora_B.weight",
            Self::LoraMagnitude => "lora_magnitude_vector",
        }
    }
}

/// A parameter that is trained. Gradients and an optimizer's state are kept by its place, and written under its name.
#[derive(Debug, Clone)]
pub struct Parameter {
    place: usize,
    name: Arc<str>,
    var: Var,
    shard: Option<Shard>,
    card: Option<Arc<Card>>,
}

impl Parameter {
    /// Its place among those that its model trains, which are in the order of their names.
    pub fn place(&self) -> usize {
        self.place
    }

    /// Its Hugging Face name; that of an adapter is `<layer>.lora_A.weight` or `<layer>.lora_B.weight`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its numbers; where several processes train together, those of the rows that are here.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// The card that its model is computed on, if that is not the processor: it has a copy, and may have the newest numbers.
    pub(crate) fn card(&self) -> Option<&Arc<Card>> {
        self.card.as_ref()
    }

    /// What part of it is here, if not all.
    pub(crate) fn shard(&self) -> Option<&Shard> {
        self.shard.as_ref()
    }

    /// The shape of all of it.
    pub fn dims(&self) -> Vec<usize> {
        let mut dims = self.var.dims().to_vec();
        if let (Some(shard), Some(rows)) = (&self.shard, dims.first_mut()) {
            *rows = shard.rows;
        }
        dims
    }

    /// How many numbers all of it has.
    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }

    /// All of it, or what an optimizer has for all of it, from the rows `here` of that: all processes that divide it are to ask at the same time.
    ///
    /// # Errors
    /// Where another process is gone.
    pub fn whole(&self, here: &Tensor) -> Result<Tensor> {
        let Some(shard) = &self.shard else { return Ok(here.clone()) };
        let gathered = gather(shard.mesh.shards(), &self.name, vec![Here::Rows(here.clone(), shard.rows)]).wait()?;
        let mut whole = gathered.into_iter().map(|gathered| gathered.into_tensor(&self.dims()));
        whole.next().unwrap_or_else(|| Ok(here.clone()))
    }

    /// The rows that are here of a tensor for all of it.
    ///
    /// # Errors
    /// Those of the tensor library.
    pub fn here(&self, whole: &Tensor) -> Result<Tensor> {
        let Some(shard) = &self.shard else { return Ok(whole.clone()) };
        let rows = shard.range();
        Ok(whole.narrow(0, rows.start, rows.len())?.force_contiguous()?)
    }
}

/// What a model trains, in the order of names.
#[derive(Debug, Clone, Default)]
pub struct Trainable {
    parameters: Vec<Parameter>,
    places: BTreeMap<ParamId, usize>,
}

impl Trainable {
    /// The parameters of a model, by name.
    pub(super) fn new(found: BTreeMap<String, (ParamId, Var, Option<Shard>)>) -> Self {
        let places = found.values().enumerate().map(|(place, (id, ..))| (*id, place)).collect();
        let mut parameters = Vec::with_capacity(found.len());
        for (place, (name, (_, var, shard))) in found.into_iter().enumerate() {
            parameters.push(Parameter { place, name: name.into(), var, shard, card: None });
        }
        Self { parameters, places }
    }

    /// Notes where its model is computed.
    pub(super) fn compute_on(&mut self, card: Option<&Arc<Card>>) {
        self.parameters.iter_mut().for_each(|parameter| parameter.card = card.map(Arc::clone));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.parameters.len()
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    /// All of them, in the order of their places and names.
    pub fn iter(&self) -> std::slice::Iter<'_, Parameter> {
        self.parameters.iter()
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        let place = self.parameters.binary_search_by(|parameter| (*parameter.name).cmp(name)).ok()?;
        self.parameters.get(place)
    }

    /// The one in this place.
    pub fn at(&self, place: usize) -> Option<&Parameter> {
        self.parameters.get(place)
    }

    /// All of them, with what they are of the model.
    pub(crate) fn with_ids(&self) -> impl Iterator<Item = (ParamId, &Parameter)> {
        self.places.iter().filter_map(|(id, place)| Some((*id, self.at(*place)?)))
    }

    /// The one that this is of the model, if it is trained.
    pub(crate) fn of(&self, id: ParamId) -> Option<&Parameter> {
        self.at(*self.places.get(&id)?)
    }
}

impl FromIterator<(String, Var)> for Trainable {
    fn from_iter<I: IntoIterator<Item = (String, Var)>>(named: I) -> Self {
        let by_name: BTreeMap<String, Var> = named.into_iter().collect();
        let parameter = |(place, (name, var)): (usize, (String, Var))| Parameter {
            place,
            name: name.into(),
            var,
            shard: None,
            card: None,
        };
        Self { parameters: by_name.into_iter().enumerate().map(parameter).collect(), places: BTreeMap::new() }
    }
}

impl<'a> IntoIterator for &'a Trainable {
    type Item = &'a Parameter;
    type IntoIter = std::slice::Iter<'a, Parameter>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn parameters_are_found_by_name_and_place() {
        let var = |len: usize| Var::zeros(len, DType::F32, &Device::Cpu).unwrap();
        let all: Trainable =
            [("b".to_string(), var(2)), ("c".to_string(), var(3)), ("a".to_string(), var(1))].into_iter().collect();
        for (place, name) in ["a", "b", "c"].into_iter().enumerate() {
            let parameter = all.get(name).unwrap();
            assert_eq!(
                (parameter.place(), &**parameter.name(), parameter.var().elem_count()),
                (place, name, place + 1)
            );
            assert_eq!(&**all.at(place).unwrap().name(), name);
        }
        assert!(all.get("d").is_none() && all.at(3).is_none() && all.of(ParamId::LastNorm).is_none());
    }
}
