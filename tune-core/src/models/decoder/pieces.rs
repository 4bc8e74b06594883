//! The weights of a model as they are saved: whole, with adapters merged in, each made when it is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::Decoder;
use crate::Result;
use crate::models::adapter::Adapter;
use crate::models::linear::{Linear, merged};
use crate::models::shard::{Here, gather};
use crate::models::spec::LayerSpec;
use crate::models::tokens::TokenRows;

/// A weight of a model as it is saved, which is made when it is asked for.
pub struct Piece<'a> {
    /// Its Hugging Face name.
    pub name: String,
    /// The type of its elements.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
    make: Box<dyn Fn() -> Result<Tensor> + 'a>,
    /// Begins to copy it as it is now.
    copy: Option<Box<dyn Fn() -> Option<CopyOfPiece> + 'a>>,
}

/// A copy of a [`Piece`] that was begun while training went on: the tensor, when the copy is there.
pub(crate) type CopyOfPiece = Arc<dyn Fn() -> Result<Tensor> + Send + Sync>;

impl std::fmt::Debug for Piece<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Piece({} {:?} {:?})", self.name, self.dtype, self.shape)
    }
}

impl<'a> Piece<'a> {
    /// One that `make` makes.
    pub(crate) fn new(name: String, dtype: DType, shape: Vec<usize>, make: impl Fn() -> Result<Tensor> + 'a) -> Self {
        Self { name, dtype, shape, make: Box::new(make), copy: None }
    }

    /// A tensor that is there.
    pub(crate) fn of(name: &str, tensor: &'a Tensor) -> Self {
        Self::new(name.to_owned(), tensor.dtype(), tensor.dims().to_vec(), || Ok(tensor.clone()))
    }

    /// The same, of which `copy` begins a copy while training goes on, or says that there is none to be had so.
    pub(crate) fn copied_by(self, copy: impl Fn() -> Option<CopyOfPiece> + 'a) -> Self {
        Self { copy: Some(Box::new(copy)), ..self }
    }

    /// The same once more.
    pub(crate) fn again(&self) -> Piece<'_> {
        let again = Piece::new(self.name.clone(), self.dtype, self.shape.clone(), || self.make());
        again.copied_by(|| self.begin_copy())
    }

    /// Begins to copy it as it is now, where a card does that beside its work; `None` elsewhere.
    pub(crate) fn begin_copy(&self) -> Option<CopyOfPiece> {
        self.copy.as_ref().and_then(|copy| copy())
    }

    /// The bytes that it takes.
    pub(crate) fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.size_in_bytes() as u64
    }

    /// Makes it. Where a model is divided among several processes, each is to ask for it at the same time.
    ///
    /// # Errors
    /// Those of the tensor library, and another process that is gone.
    pub fn make(&self) -> Result<Tensor> {
        (self.make)()
    }
}

impl Decoder {
    /// The model's own weights as they are now, adapters merged in, by Hugging Face name.
    ///
    /// A tied output layer stays tied (and is left out) unless an adapter on it was merged;
    /// the second value says whether it still is.
    ///
    /// # Errors
    /// As [`Decoder::pieces`] and [`Piece::make`].
    pub fn merged_weights(&self) -> Result<(BTreeMap<String, Tensor>, bool)> {
        let (pieces, tied) = self.pieces()?;
        let made = pieces.iter().map(|piece| Ok((piece.name.clone(), piece.make()?)));
        Ok((made.collect::<Result<_>>()?, tied))
    }

    /// The weights of [`Decoder::merged_weights`], each to be made when it is asked for, in the order of names.
    ///
    /// # Errors
    /// A weight in blocks.
    pub fn pieces(&self) -> Result<(Vec<Piece<'_>>, bool)> {
        let c = &self.config;
        let mut pieces = Vec::new();
        let table = self.embed_tokens.tensor("model.embed_tokens")?;
        let table = self.piece("model.embed_tokens.weight".to_owned(), table, c.vocab_size, None);
        pieces.push(self.with_tokens(table, self.tokens.as_ref()));
        pieces.push(self.piece("model.norm.weight".to_owned(), &self.norm, c.hidden_size, None));
        for block in &self.blocks {
            let prefix = format!("model.layers.{}", block.index);
            let norms = c.blocks[block.index].norms;
            for ((norm, weight), (_, width)) in block.norms.iter().zip(c.norms(block.index)) {
                pieces.push(self.piece(format!("{prefix}.{}.weight", norm.path(norms)), weight, width, None));
            }
            for ((_, linear), LayerSpec { out, .. }) in block.linears.iter().zip(c.layers(block.index)) {
                pieces.push(self.layer_piece(linear, out)?);
                if let Some(bias) = &linear.bias {
                    pieces.push(self.piece(format!("{}.bias", linear.name), bias, out, None));
                }
            }
        }
        let tied = c.tie_word_embeddings && self.lm_head.adapter.is_none();
        if !tied {
            let head = self.layer_piece(&self.lm_head, c.outputs())?;
            pieces.push(self.with_tokens(head, self.output_tokens.as_ref()));
        }
        pieces.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((pieces, tied))
    }

    /// A table with rows of single tokens in it, if there are such.
    fn with_tokens<'a>(&'a self, table: Piece<'a>, tokens: Option<&'a TokenRows>) -> Piece<'a> {
        let Some(tokens) = tokens else { return table };
        let (name, dtype, shape) = (table.name.clone(), table.dtype, table.shape.clone());
        let make = move || {
            self.fetch()?;
            let rows = self.whole("the rows of trained tokens", &tokens.rows, tokens.ids.len())?;
            tokens.put_into(&table.make()?, &rows)
        };
        Piece::new(name, dtype, shape, make)
    }

    fn layer_piece<'a>(&'a self, linear: &'a Linear, out: usize) -> Result<Piece<'a>> {
        let weight = linear.weight.tensor(&linear.name)?;
        Ok(self.piece(format!("{}.weight", linear.name), weight, out, linear.adapter.as_ref()))
    }

    /// A weight of this many rows, with an adapter's update added.
    fn piece<'a>(&'a self, name: String, here: &'a Tensor, rows: usize, adapter: Option<&'a Adapter>) -> Piece<'a> {
        let mut shape = here.dims().to_vec();
        shape[0] = rows;
        let of = name.clone();
        let make = move || {
            self.fetch()?;
            let weight = self.whole(&of, here, rows)?;
            let Some(adapter) = adapter else { return Ok(weight) };
            let (a, b) = (self.whole(&of, &adapter.a, adapter.rank)?, self.whole(&of, &adapter.b, rows)?);
            let magnitudes = adapter.magnitude.as_ref().map(|magnitude| magnitude.weight.as_tensor());
            merged(&weight, std::iter::once((&a, &b, adapter.scale)), magnitudes)
        };
        let piece = Piece::new(name, here.dtype(), shape, make);
        match self.card.as_ref().filter(|_| adapter.is_none() && self.mesh.is_single()) {
            Some(card) => piece.copied_by(move || card.copy_of(here)),
            None => piece,
        }
    }

    /// All of a weight with this many rows, of which some are here.
    fn whole(&self, name: &str, here: &Tensor, rows: usize) -> Result<Tensor> {
        if !self.mesh.divides() {
            return Ok(here.detach());
        }
        let mut dims = here.dims().to_vec();
        dims[0] = rows;
        let gathered = gather(self.mesh.shards(), name, vec![Here::Rows(here.clone(), rows)]).wait()?;
        gathered.into_iter().next().map_or_else(|| Ok(here.detach()), |gathered| gathered.into_tensor(&dims))
    }
}
