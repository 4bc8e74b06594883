//! Sequences that grow token by token, their past in memory.

use super::backend::{Backend, Reads};
use super::block::Past;
use super::cpu::Cpu;
use super::cuda::Cuda;
use super::parameters::Held;
use super::reference::Reference;
use super::run::Run;
use super::{Precision, on_a_worker};
use crate::data::{Batch, IGNORE, Span};
use crate::kernels::attention::Stretch;
use crate::models::{BlockSpec, Decoder};
use crate::{Error, Result};

/// Sequences of tokens that a model reads, and their keys and values in each of its blocks.
///
/// Their tokens are computed as those of a training batch are: what comes out for one does not depend, to the last bit, on
/// which others come with it or before it. (On a card it may, in the last bits: kernels for one new token are others than those
/// for many.)
///
/// Where the frequencies of a model's rotary table depend on a sequence's length, the keys of a growing sequence are those of
/// the length that it had when they came, as in transformers; with `dynamic` frequencies they stay so. With `longrope` there are
/// two sets of frequencies, for sequences up to the original length and for longer ones: a sequence that grows beyond it is
/// computed again as a whole, once, as Phi-3's class in transformers does (and no other class there, see
/// [`RopeScaling`](crate::models::RopeScaling)).
pub struct Sequences<'m> {
    model: &'m Decoder,
    places: Vec<Place>,
    /// The tokens of each sequence, which are needed again where it is computed again.
    ids: Vec<Vec<u32>>,
    past: Box<dyn Grow + Send + 'm>,
}

/// Where a sequence lies in the memory of all.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: usize,
    len: usize,
    capacity: usize,
    /// Whether its keys may be those of a longer sequence, which it was.
    was_longer: bool,
}

impl<'m> Sequences<'m> {
    /// Empty sequences, one for each number of tokens that they may come to have.
    ///
    /// # Errors
    /// A model on a device or in a type that is not computed in.
    pub fn new(model: &'m Decoder, capacities: &[usize]) -> Result<Self> {
        let mut rows = 0;
        let places = capacities.iter().map(|&capacity| {
            rows += capacity;
            Place { start: rows - capacity, len: 0, capacity, was_longer: false }
        });
        let places: Vec<_> = places.collect();
        let past: Box<dyn Grow + Send + 'm> = match Precision::of(model)? {
            Precision::F32 => Box::new(Growing::new(model, Cpu::<f32>::new(), rows)),
            Precision::Bf16 => Box::new(Growing::new(model, Cpu::<half::bf16>::new(), rows)),
            Precision::F64 => Box::new(Growing::new(model, Reference, rows)),
            Precision::F32On(card) => Box::new(Growing::new(model, Cuda::<f32>::new(card), rows)),
            Precision::Bf16On(card) => Box::new(Growing::new(model, Cuda::<half::bf16>::new(card), rows)),
        };
        Ok(Self { model, ids: vec![Vec::new(); places.len()], places, past })
    }

    /// The tokens of a sequence.
    #[must_use]
    pub fn len(&self, sequence: usize) -> usize {
        self.places[sequence].len
    }

    /// Whether a sequence has no tokens yet.
    #[must_use]
    pub fn is_empty(&self, sequence: usize) -> bool {
        self.len(sequence) == 0
    }

    /// Forgets a sequence's tokens from `len` on.
    pub fn truncate(&mut self, sequence: usize, len: usize) {
        let place = &mut self.places[sequence];
        place.was_longer |= len < place.len;
        place.len = place.len.min(len);
        self.ids[sequence].truncate(len);
    }

    /// Whether a sequence that comes to have `len` tokens has other keys for those that it has.
    fn begins_anew(&self, place: Place, len: usize) -> bool {
        place.len > 0
            && self.model.config.rotary.iter().any(|table| {
                table.depends_on_length() && (place.was_longer || table.scaling.switches_between(place.len, len))
            })
    }

    /// Adds tokens to sequences, given by their numbers, and returns the logits `[vocab]` behind the last token of each.
    ///
    /// # Errors
    /// A token outside the vocabulary, a sequence without new tokens, named twice, or that has no room for them.
    pub fn extend(&mut self, new: &[(usize, &[u32])]) -> Result<Vec<Vec<f32>>> {
        let mut batch = Batch {
            rows: 1,
            len: 0,
            input_ids: Vec::new(),
            targets: Vec::new(),
            positions: Vec::new(),
            spans: Vec::new(),
            origins: Vec::new(),
        };
        let (mut stretches, mut rows, mut last) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &(sequence, ids)) in new.iter().enumerate() {
            let place = self.places[sequence];
            if ids.is_empty() || new[..i].iter().any(|&(other, _)| other == sequence) {
                return Err(Error::setup(format!("sequence {sequence} is to grow by no token, or twice at a time")));
            }
            if place.len + ids.len() > place.capacity {
                return Err(Error::setup(format!(
                    "a sequence of {} tokens cannot grow by {}: there is room for {}",
                    place.len,
                    ids.len(),
                    place.capacity
                )));
            }
            let first = batch.input_ids.len();
            let past = if self.begins_anew(place, place.len + ids.len()) { 0 } else { place.len };
            let positions = past..place.len + ids.len();
            let len = positions.len();
            stretches.push(Stretch { queries: first, len, keys: place.start, past });
            rows.extend(positions.clone().map(|position| place.start + position));
            last.push(first + len - 1);
            batch.spans.push(Span { row: 0, start: first, len });
            batch.input_ids.extend(self.ids[sequence][past..].iter().chain(ids));
            batch.positions.extend(positions.map(|position| position as u32));
        }
        batch.len = batch.input_ids.len();
        batch.targets = vec![IGNORE; batch.len];
        let past = &mut self.past;
        let logits = on_a_worker(|| past.grow(&batch, stretches, rows, &last))?;
        for &(sequence, ids) in new {
            let place = &mut self.places[sequence];
            *place = Place { len: place.len + ids.len(), was_longer: false, ..*place };
            self.ids[sequence].extend(ids);
        }
        Ok(logits.chunks_exact(self.model.config.vocab_size).map(<[f32]>::to_vec).collect())
    }
}

/// [`Growing`] on any backend.
trait Grow {
    /// Takes in the tokens of `batch`, whose keys go into `rows`, and returns the logits `[last, vocab]` of some of them.
    fn grow(&mut self, batch: &Batch, stretches: Vec<Stretch>, rows: Vec<usize>, last: &[usize]) -> Result<Vec<f32>>;
}

/// The past of sequences in a backend's memory.
struct Growing<'m, B: Backend> {
    model: &'m Decoder,
    backend: B,
    /// Of each block.
    past: Vec<Past<B>>,
}

impl<'m, B: Backend> Growing<'m, B> {
    fn new(model: &'m Decoder, backend: B, rows: usize) -> Self {
        let past = |block: &BlockSpec| {
            let width = block.attention.widths().1;
            Past { keys: backend.zeros(rows, width), values: backend.zeros(rows, width), rows }
        };
        let past = model.config.blocks.iter().map(past).collect();
        Self { model, backend, past }
    }
}

impl<'m, B: Reads<'m>> Grow for Growing<'m, B> {
    fn grow(&mut self, batch: &Batch, stretches: Vec<Stretch>, rows: Vec<usize>, last: &[usize]) -> Result<Vec<f32>> {
        let held = Held { model: self.model, dropout: None };
        let run = Run { stretches, rows_in_past: rows, ..Run::new(&self.backend, &self.model.config, &held, batch) };
        let x = run.through_blocks_on(&mut self.past)?;
        let logits = self.backend.numbers(&run.logits(&x, last)?);
        self.backend.check()?;
        Ok(logits)
    }
}
