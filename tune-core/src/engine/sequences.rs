//! Sequences that grow token by token, their past in memory.

use std::sync::Arc;

use half::bf16;

use super::backend::{Backend, Reads};
use super::block::Past;
use super::cpu::Cpu;
use super::cuda::Cuda;
use super::new_tokens::{Answered, Behind, Drawn, New, NewTokens, Wanted};
use super::reference::Reference;
use super::run::Run;
use super::{Precision, on_a_worker, parameters};
use crate::data::{Batch, IGNORE, Span};
use crate::kernels::attention::Stretch;
use crate::kernels::team::Team;
use crate::kernels::{Draw, Element, check_token_ids};
use crate::models::{BlockSpec, Decoder, Linear, ModelSpec};
use crate::{Error, Result};

/// What computes the tokens of sequences that grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Those of training: every token is computed as those of a training batch are, to the last bit, so that its
    /// log-probability is the one that training begins with. Reinforcement learning wants this. (On a card the last bits may
    /// differ: kernels for one new token are others than those for many.)
    OfTraining,
    /// The fastest: new tokens, one of each sequence, are computed by kernels that read every weight once, where it is. They
    /// round otherwise than those of training.
    Fast,
}

/// Sequences of tokens that a model reads, and their keys and values in each of its blocks.
///
/// What comes out for one does not depend, to the last bit, on which others come with it or on the number of threads.
///
/// Where the frequencies of a model's rotary table depend on a sequence's length, the keys of a growing sequence are those of
/// the length that it had when they came, as in transformers; with `dynamic` frequencies they stay so. With `longrope` there are
/// two sets of frequencies, for sequences up to the original length and for longer ones: a sequence that grows beyond it is
/// computed again as a whole, once, as Phi-3's class in transformers does (and no other class there, see
/// [`RopeScaling`](crate::models::RopeScaling)).
///
/// Sequences may come and go ([`Sequences::join`], [`Sequences::leave`]), and be of several models that differ in their adapters.
pub struct Sequences<'m> {
    models: Vec<&'m Decoder>,
    places: Vec<Place>,
    /// The tokens that there is memory for.
    room: usize,
    /// The tokens of each sequence, which are needed again where it is computed again.
    ids: Vec<Vec<u32>>,
    past: Box<dyn Grow<'m> + Send + 'm>,
    /// Who computes new tokens, if these have kernels of their own.
    team: Option<Arc<Team>>,
}

/// Where a sequence is in the memory of all.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The number of its model.
    model: usize,
    start: usize,
    len: usize,
    /// 0 where the sequence has left.
    capacity: usize,
    /// Whether its keys may be those of a longer sequence, which it was.
    was_longer: bool,
}

impl<'m> Sequences<'m> {
    /// Empty sequences, one for each number of tokens that they may come to have.
    ///
    /// # Errors
    /// A model on a device or in a type that is not computed in.
    pub fn new(model: &'m Decoder, capacities: &[usize], kernels: Kernels) -> Result<Self> {
        let mut sequences = Self::of_many(&[model], capacities.iter().sum(), kernels)?;
        let mut start = 0;
        sequences.places.extend(capacities.iter().map(|&capacity| {
            start += capacity;
            Place { model: 0, start: start - capacity, len: 0, capacity, was_longer: false }
        }));
        sequences.ids = vec![Vec::new(); capacities.len()];
        Ok(sequences)
    }

    /// Memory for `room` tokens of sequences that will join. `models` share their weights and differ in their adapters, and in what these
    /// bring along: tables of other tokens, for one.
    ///
    /// # Errors
    /// As [`Sequences::new`]; no model, models of different shapes, or of more than [`Draw::MOST_TOKENS`] tokens.
    pub fn of_many(models: &[&'m Decoder], room: usize, kernels: Kernels) -> Result<Self> {
        let Some(&model) = models.first() else { return Err(Error::setup("there is no model to read sequences")) };
        let tables = |of: &Decoder| ModelSpec { vocab_size: 0, tie_word_embeddings: false, ..of.config.clone() };
        let is_other = |other: &&Decoder| tables(other) != tables(model) || other.dtype() != model.dtype();
        if models.iter().any(is_other) {
            return Err(Error::setup("models that read sequences together have one base"));
        }
        let vocab = models.iter().map(|model| model.config.vocab_size).max().unwrap_or(0);
        if vocab > Draw::MOST_TOKENS {
            return Err(Error::setup(format!(
                "a model of {vocab} tokens cannot generate any: they are drawn of at most {}",
                Draw::MOST_TOKENS
            )));
        }
        let precision = Precision::of(model)?;
        // Weights in blocks have kernels of training alone, which the whole pool computes.
        let is_in_blocks = |linear: &Linear| linear.weight.format().is_some();
        let mut layers = model.blocks.iter().flat_map(|block| block.linears.iter().map(|(_, linear)| linear));
        let is_quantized = layers.any(is_in_blocks) || is_in_blocks(model.top().1);
        let has_few = matches!(precision, Precision::F32 | Precision::Bf16) && !is_quantized;
        let team = (has_few && kernels == Kernels::Fast).then(|| Arc::new(Team::new()));
        let past: Box<dyn Grow<'m> + Send + 'm> = match precision {
            Precision::F32 => Box::new(Growing::<Cpu<'_, f32>>::of_cpu(model, room, team.as_ref())),
            Precision::Bf16 => Box::new(Growing::<Cpu<'_, bf16>>::of_cpu(model, room, team.as_ref())),
            Precision::F64 => Box::new(Growing::new(model, Reference, None, room)),
            Precision::F32On(card) => Box::new(Growing::new(model, Cuda::<f32>::new(card), None, room)),
            Precision::Bf16On(card) => Box::new(Growing::new(model, Cuda::<bf16>::new(card), None, room)),
        };
        Ok(Self { models: models.to_vec(), ids: Vec::new(), places: Vec::new(), room, past, team })
    }

    /// The bytes of keys and values that a token of a sequence takes.
    #[must_use]
    pub fn bytes_per_token(model: &Decoder) -> usize {
        model.config.kept_per_token() * model.dtype().size_in_bytes()
    }

    /// A fresh sequence of the model with this number, which may come to have `capacity` tokens. Nothing where that many
    /// are not free side by side.
    ///
    /// # Panics
    /// If there is no such model.
    pub fn join(&mut self, model: usize, capacity: usize) -> Option<usize> {
        assert!(model < self.models.len(), "model {model} of {}", self.models.len());
        let mut taken: Vec<(usize, usize)> =
            self.places.iter().filter(|place| place.capacity > 0).map(|place| (place.start, place.capacity)).collect();
        taken.sort_unstable();
        // The first gap that is large enough.
        let mut start = 0;
        for (next, len) in taken {
            if next - start >= capacity {
                break;
            }
            start = next + len;
        }
        if capacity == 0 || self.room - start < capacity {
            return None;
        }
        let place = Place { model, start, len: 0, capacity, was_longer: false };
        match self.places.iter().position(|place| place.capacity == 0) {
            Some(free) => {
                self.places[free] = place;
                self.ids[free].clear();
                Some(free)
            }
            None => {
                self.places.push(place);
                self.ids.push(Vec::new());
                Some(self.places.len() - 1)
            }
        }
    }

    /// Ends a sequence: its number and its memory are free for another.
    pub fn leave(&mut self, sequence: usize) {
        let place = &mut self.places[sequence];
        *place = Place { len: 0, capacity: 0, ..*place };
        self.ids[sequence].clear();
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

    /// Gives sequences that have no tokens yet those of others, `(from, to)`. Keys and values are copied and not computed again.
    ///
    /// # Errors
    /// A sequence of another model, one that has tokens or no room for them.
    pub fn copy(&mut self, copies: &[(usize, usize)]) -> Result<()> {
        let (mut from_rows, mut to_rows) = (Vec::new(), Vec::new());
        for (i, &(from, to)) in copies.iter().enumerate() {
            let (of, into) = (self.places[from], self.places[to]);
            let is_again = copies[..i].iter().any(|&(_, other)| other == to);
            if into.len > 0 || into.capacity < of.len || into.model != of.model || is_again {
                return Err(Error::setup(format!(
                    "sequence {to}, which has {} tokens and room for {}, cannot become a copy of sequence {from}, which has {}",
                    into.len, into.capacity, of.len
                )));
            }
            from_rows.extend(of.start..of.start + of.len);
            to_rows.extend(into.start..into.start + of.len);
        }
        if from_rows.is_empty() {
            return Ok(());
        }
        let past = &mut self.past;
        on_a_worker(|| past.copy(&from_rows, &to_rows))?;
        for &(from, to) in copies {
            let Place { len, was_longer, .. } = self.places[from];
            self.places[to] = Place { len, was_longer, ..self.places[to] };
            self.ids[to] = self.ids[from].clone();
        }
        Ok(())
    }

    /// Whether a sequence that comes to have `len` tokens has other keys for those that it has.
    fn begins_anew(&self, place: Place, len: usize) -> bool {
        place.len > 0
            && self.models[place.model].config.rotary.iter().any(|table| {
                table.depends_on_length() && (place.was_longer || table.scaling.switches_between(place.len, len))
            })
    }

    /// Adds tokens to sequences, given by their numbers, and returns the logits `[vocab]` behind the last token of each.
    ///
    /// # Errors
    /// A token outside the vocabulary, a sequence without new tokens, named twice, or that has no room for them.
    pub fn extend(&mut self, new: &[(usize, &[u32])]) -> Result<Vec<Vec<f32>>> {
        let last: Vec<New<'_>> =
            new.iter().map(|&(sequence, ids)| New { sequence, ids, wanted: Wanted::Last }).collect();
        Ok(self.extend_with(&last)?.into_iter().map(Behind::into_logits).collect())
    }

    /// Adds tokens to sequences, given by their numbers, and draws the token that follows each.
    ///
    /// # Errors
    /// As [`Sequences::extend`].
    pub fn draw(&mut self, new: &[(usize, &[u32], Draw)]) -> Result<Vec<Drawn>> {
        let new = new.iter().map(|(sequence, ids, draw)| New {
            sequence: *sequence,
            ids,
            wanted: Wanted::Tokens(std::slice::from_ref(draw)),
        });
        let behind = self.extend_with(&new.collect::<Vec<_>>())?;
        Ok(behind.into_iter().flat_map(Behind::into_tokens).collect())
    }

    /// Adds tokens to sequences, and returns of each what is wanted.
    ///
    /// # Errors
    /// As [`Sequences::extend`].
    pub fn extend_with(&mut self, new: &[New<'_>]) -> Result<Vec<Behind>> {
        for (i, &New { sequence, ids, .. }) in new.iter().enumerate() {
            let place = self.places[sequence];
            if ids.is_empty() || new[..i].iter().any(|other| other.sequence == sequence) {
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
        }
        // Apart, so that neither depends on the other: what comes first is computed by the kernels of training.
        let is_newest = |new: &New<'_>| {
            let place = self.places[new.sequence];
            place.len > 0 && new.ids.len() == 1 && !self.begins_anew(place, place.len + 1)
        };
        let has_few: Vec<bool> = new.iter().map(|new| self.team.is_some() && is_newest(new)).collect();
        let mut behind = vec![Behind::Tokens(Vec::new()); new.len()];
        for (model, are_few) in (0..self.models.len()).flat_map(|model| [(model, false), (model, true)]) {
            let is_meant = |&i: &usize| has_few[i] == are_few && self.places[new[i].sequence].model == model;
            let which: Vec<usize> = (0..new.len()).filter(is_meant).collect();
            let some: Vec<New<'_>> = which.iter().map(|&i| new[i]).collect();
            let team = self.team.clone().filter(|_| are_few);
            for (i, of_one) in which.into_iter().zip(self.compute(model, &some, team.as_deref())?) {
                behind[i] = of_one;
            }
        }
        for &New { sequence, ids, .. } in new {
            let place = &mut self.places[sequence];
            *place = Place { len: place.len + ids.len(), was_longer: false, ..*place };
            self.ids[sequence].extend(ids);
        }
        Ok(behind)
    }

    /// What is wanted of some sequences of a model with their new tokens, by a team if that is given.
    fn compute(&mut self, model: usize, new: &[New<'_>], team: Option<&Team>) -> Result<Vec<Behind>> {
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let mut batch = Batch {
            rows: 1,
            len: 0,
            input_ids: Vec::new(),
            targets: Vec::new(),
            positions: Vec::new(),
            spans: Vec::new(),
            origins: Vec::new(),
            labels: Vec::new(),
        };
        let (mut stretches, mut rows) = (Vec::new(), Vec::new());
        let mut asked = Asked { of: Vec::new(), draws: Vec::new(), wants_logits: false };
        for &New { sequence, ids, wanted } in new {
            let place = self.places[sequence];
            let first = batch.input_ids.len();
            let past = if self.begins_anew(place, place.len + ids.len()) { 0 } else { place.len };
            let positions = past..place.len + ids.len();
            let len = positions.len();
            stretches.push(Stretch { queries: first, len, keys: place.start, past });
            rows.extend(positions.clone().map(|position| place.start + position));
            let end = first + len;
            asked.add(end, ids.len(), wanted);
            batch.spans.push(Span { row: 0, start: first, len });
            batch.input_ids.extend(self.ids[sequence][past..].iter().chain(ids));
            batch.positions.extend(positions.map(|position| position as u32));
        }
        batch.len = batch.input_ids.len();
        batch.targets = vec![IGNORE; batch.len];
        let (past, model) = (&mut self.past, self.models[model]);
        let Answered { logits, drawn } = match team {
            None => on_a_worker(|| past.grow(model, &batch, stretches, rows, &asked, false))?,
            Some(team) => team.lead(|| past.grow(model, &batch, stretches, rows, &asked, true))?,
        };
        let (vocab, mut rest, mut drawn) = (model.config.vocab_size, logits.as_slice(), drawn.into_iter());
        let of_one = |new: &New<'_>| {
            let rows = if let Wanted::Every = new.wanted { new.ids.len() } else { 1 };
            let (own, others) = rest.split_at(if asked.wants_logits { rows * vocab } else { 0 });
            rest = others;
            match new.wanted {
                Wanted::Tokens(draws) => Behind::Tokens(drawn.by_ref().take(draws.len()).collect()),
                Wanted::Last | Wanted::Every => Behind::Logits(own.to_vec()),
            }
        };
        Ok(new.iter().map(of_one).collect())
    }
}

/// What is asked of a step.
struct Asked {
    /// The tokens whose logits are computed.
    of: Vec<usize>,
    /// What is drawn by these, each given by its place.
    draws: Vec<(usize, Draw)>,
    wants_logits: bool,
}

impl Asked {
    /// Of a sequence whose new tokens, so many, end at `end`.
    fn add(&mut self, end: usize, len: usize, wanted: Wanted<'_>) {
        match wanted {
            Wanted::Tokens(draws) => self.draws.extend(draws.iter().map(|draw| (self.of.len(), *draw))),
            Wanted::Last | Wanted::Every => self.wants_logits = true,
        }
        self.of.extend(end - if let Wanted::Every = wanted { len } else { 1 }..end);
    }
}

/// [`Growing`] on any backend.
trait Grow<'m> {
    /// Takes in the tokens of `batch`, whose keys go into `rows`, and returns what is asked of some of them.
    fn grow(
        &mut self,
        model: &'m Decoder,
        batch: &Batch,
        stretches: Vec<Stretch>,
        rows: Vec<usize>,
        asked: &Asked,
        are_newest: bool,
    ) -> Result<Answered>;

    /// Copies the keys and values of some rows to others, which are as many.
    fn copy(&mut self, from: &[usize], to: &[usize]) -> Result<()>;
}

/// The past of sequences in a backend's memory.
struct Growing<B: Backend> {
    backend: B,
    /// For new tokens, one of each sequence.
    of_newest: Option<B>,
    /// Of each block.
    past: Vec<Past<B>>,
}

impl<'m, T: Element> Growing<Cpu<'m, T>> {
    fn of_cpu(model: &Decoder, rows: usize, team: Option<&Arc<Team>>) -> Self {
        let cpu = Cpu::keeping();
        let of_newest = team.map(|team| cpu.of_newest(team));
        Self::new(model, cpu, of_newest, rows)
    }
}

impl<B: Backend> Growing<B> {
    fn new(model: &Decoder, backend: B, of_newest: Option<B>, rows: usize) -> Self {
        let past = |block: &BlockSpec| {
            let width = block.attention.widths().1;
            Past { keys: backend.zeros(rows, width), values: backend.zeros(rows, width), rows, width }
        };
        let past = model.config.blocks.iter().map(past).collect();
        Self { backend, of_newest, past }
    }
}

impl<'m, B: Reads<'m>> Grow<'m> for Growing<B> {
    fn grow(
        &mut self,
        model: &'m Decoder,
        batch: &Batch,
        stretches: Vec<Stretch>,
        rows: Vec<usize>,
        asked: &Asked,
        are_newest: bool,
    ) -> Result<Answered> {
        let parameters = parameters(model, None, false);
        let backend = self.of_newest.as_ref().filter(|_| are_newest).unwrap_or(&self.backend);
        let run = Run { stretches, rows_in_past: rows, ..Run::new(backend, &model.config, &*parameters, batch) };
        // A step that is done again does not ask.
        check_token_ids(&batch.input_ids, model.config.vocab_size)?;
        let new = NewTokens {
            model,
            ids: &batch.input_ids,
            rows: &run.rows_in_past,
            keys: self.past.first().map_or(0, |past| past.rows),
            stretches: &run.stretches,
            rotary: &run.rotary,
            wanted: &asked.of,
            draws: &asked.draws,
            wants_logits: asked.wants_logits,
        };
        let past = &mut self.past;
        let mut compute = || run.logits(&run.through_blocks_on(past)?, &asked.of);
        let answered = backend.newest(&new, &mut compute)?;
        backend.check()?;
        Ok(answered)
    }

    fn copy(&mut self, from: &[usize], to: &[usize]) -> Result<()> {
        let backend = &self.backend;
        for Past { keys, values, width, .. } in &mut self.past {
            for rows in [keys, values] {
                let mut copied = backend.acts(from.len(), *width);
                backend.gather(rows, *width, from, &mut copied);
                backend.scatter(&copied, *width, to, rows);
            }
        }
        backend.check()
    }
}
