//! Steps by one token of each sequence, which are recorded and done again: to queue their kernels takes longer than the kernels do.
//!
//! What differs from step to step (tokens, where they are, angles) is in lists on the card, at addresses that stay. All else of a step
//! is decided by its shape: the model, how many sequences there are, and in how many parts attention reads their keys. The first step of a
//! shape is done as any other, but in memory that the recording will have, so that kernels are loaded and algorithms chosen when
//! the second is recorded; from then on there is one call. What cannot be recorded (experts whose
//! weights are in blocks: the processor asks how many tokens go to each) is done as any other step again and again.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tune_cuda::{Buffer, Graph, KeptMemory, Lists, Spans};

use super::card::{Angles, lock, of_card, stretch};
use super::{Cuda, Number, attention};
use crate::Result;
use crate::engine::backend::Reads;
use crate::engine::new_tokens::{Answered, Drawn, NewTokens};
use crate::kernels::attention::Attention;
use crate::kernels::{Draw, Rotary};
use crate::models::{Decoder, ModelSpec};

/// Shapes whose recordings are kept; the one that was used longest ago goes first.
const MOST: usize = 16;

/// Steps of a model that could not be recorded, one after the other, until no more are tried.
const TRIALS: usize = 3;

/// The lists of a step; those of each table of angles, cosines and sines, come behind them.
const IDS: usize = 0;
const ROWS: usize = 1;
const WANTED: usize = 2;
const KEYS: usize = 3;
const DRAWS: usize = 4;
const TABLES: usize = 5;

/// What a card keeps of steps of newest tokens.
#[derive(Debug, Default)]
pub(super) struct Newest {
    /// By how many sequences there are, and how many tokens are drawn.
    lists: BTreeMap<(usize, usize), Lists>,
    shapes: BTreeMap<Shape, Seen>,
    /// How many steps of a model could not be recorded, since one could.
    failed: BTreeMap<usize, usize>,
    memory: Option<KeptMemory>,
    steps: u64,
}

/// All that decides what a step queues.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    /// Where the model is, which lives longer than its sequences.
    model: usize,
    sequences: usize,
    /// Tokens that are drawn.
    draws: usize,
    /// Rows of keys that there is memory for.
    keys: usize,
    /// Of the keys of each sequence, for each kind of attention.
    parts: Vec<usize>,
}

/// A shape that there was a step of.
#[derive(Debug)]
struct Seen {
    /// When, and what the card had changed until then of what it keeps.
    step: u64,
    changes: u64,
    /// The work, and what it writes, which is that of other works after these.
    recorded: Option<(Graph, Arc<Results>)>,
}

/// What is on the card when a step is done: logits `[wanted, vocab]`, and tokens that were drawn by them, with their log-probabilities.
#[derive(Debug)]
struct Results {
    logits: Buffer<f32>,
    drawn: Option<Buffer<u32>>,
}

impl Results {
    /// In the memory of recorded work.
    fn lent(self, memory: &KeptMemory) -> Self {
        Self { logits: self.logits.lent(memory), drawn: self.drawn.map(|drawn| drawn.lent(memory)) }
    }
}

/// The step that is computed, whose lists are on the card.
#[derive(Debug)]
pub(super) struct Step {
    ids: (usize, Arc<Buffer<u32>>),
    rows: (usize, Arc<Buffer<u32>>),
    wanted: (usize, Arc<Buffer<u32>>),
    stretches: usize,
    keys: usize,
    spans: Arc<Spans>,
    /// By the cosines that are here.
    angles: Vec<(usize, Arc<Angles>)>,
    /// How tokens are drawn, if any are.
    draws: Option<Arc<Buffer<u32>>>,
}

/// Where a slice is: which of several it is, whatever it holds. A step's live as long as it.
fn place<E>(of: &[E]) -> usize {
    of.as_ptr().addr()
}

impl Step {
    /// A list that is there already, if it is one.
    pub(super) fn list<E>(&self, numbers: &[E]) -> Option<Arc<Buffer<u32>>> {
        let found = [&self.ids, &self.rows, &self.wanted].into_iter().find(|(at, _)| *at == place(numbers));
        found.map(|(_, list)| Arc::clone(list))
    }

    pub(super) fn spans(&self, how: &Attention<'_>, keys: usize) -> Option<Arc<Spans>> {
        (place(how.stretches) == self.stretches && keys == self.keys).then(|| Arc::clone(&self.spans))
    }

    pub(super) fn angles(&self, angles: &Rotary) -> Option<Arc<Angles>> {
        self.angles.iter().find(|(at, _)| *at == place(&angles.cos)).map(|(_, angles)| Arc::clone(angles))
    }
}

impl NewTokens<'_> {
    /// Whether all that a step queues is decided by its shape.
    fn are_regular(&self) -> bool {
        let Self { model, ids, rows, wanted, stretches, draws, .. } = self;
        // Rows of single tokens are looked up where such tokens come. What is divided comes from other processes.
        let is_plain = !model.mesh().divides() && model.tokens().is_none();
        is_plain
            && stretches.iter().all(|s| s.len == 1)
            && [rows.len(), wanted.len(), stretches.len()] == [ids.len(); 3]
            && draws.len() <= ids.len()
    }

    /// Tokens that a regular step draws: one of each sequence, if it draws any. Those that nobody wants are a few.
    fn drawn(&self) -> usize {
        if self.draws.is_empty() { 0 } else { self.ids.len() }
    }

    /// How `count` tokens are drawn, as the card is told; behind those that are wanted, the likeliest by the first logits.
    fn words(&self, count: usize) -> Vec<u32> {
        let of_draw = |&(row, draw): &(usize, Draw)| tune_cuda::Draw {
            random: draw.random,
            share: draw.share().unwrap_or(0),
            row: row as u32,
            most: draw.most().map_or(0, |most| u32::try_from(most).unwrap_or(u32::MAX)),
            factor: draw.factor().unwrap_or(0.0),
            scored: draw.scored_factor().unwrap_or(0.0),
        };
        let rest = std::iter::repeat(&(0, Draw::LIKELIEST));
        self.draws.iter().chain(rest).take(count).flat_map(|draw| of_draw(draw).words()).collect()
    }

    fn lists(&self) -> Vec<usize> {
        let (count, angles) = (self.ids.len(), self.rotary.iter().flat_map(|table| [table.cos.len(), table.sin.len()]));
        let draws = self.drawn() * tune_cuda::Draw::WORDS;
        [count, count, count, 2 * count, draws].into_iter().chain(angles).collect()
    }
}

/// In how many parts the kinds of attention of a model read keys, in the order of the blocks that are the first of each.
fn parts(model: &ModelSpec, count: usize, longest: usize) -> Vec<usize> {
    let mut kinds: Vec<tune_cuda::Attention> = Vec::new();
    for block in &model.blocks {
        let kind = attention(&Attention { shape: block.attention.shape, stretches: &[] });
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds.iter().map(|kind| kind.parts_of_newest(count, longest)).collect()
}

impl<T> Cuda<T> {
    /// Asks the step that is computed for something that it may have on the card.
    pub(super) fn of_step<R>(&self, ask: impl FnOnce(&Step) -> Option<R>) -> Option<R> {
        self.step.read().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(ask)
    }
}

/// Ends a step, also one that panics.
struct Under<'a>(&'a RwLock<Option<Step>>);

impl<'a> Under<'a> {
    fn way(of: &'a RwLock<Option<Step>>, step: Step) -> Self {
        *of.write().unwrap_or_else(PoisonError::into_inner) = Some(step);
        Self(of)
    }
}

impl Drop for Under<'_> {
    fn drop(&mut self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl<T: Number> Cuda<T> {
    /// What comes of a step whose logits `compute` queues, by a recording of it if there is one.
    pub(super) fn newest_step(
        &self,
        new: &NewTokens<'_>,
        compute: &mut dyn FnMut() -> Result<Buffer<f32>>,
    ) -> Result<Answered> {
        let results = self.results(new, compute)?;
        let drawn = results.drawn.as_ref().map(|drawn| self.context().read_later(drawn));
        let logits = if new.wants_logits { self.numbers(&results.logits) } else { Vec::new() };
        let drawn = drawn.map_or_else(|| Ok(Vec::new()), |drawn| drawn.wait()).map_err(of_card)?;
        let of_draw = |((_, draw), found): (&(usize, Draw), &[u32])| Drawn {
            token: found[0],
            log_prob: draw.scored.map(|_| f64::from(f32::from_bits(found[1]))),
        };
        let drawn = new.draws.iter().zip(drawn.chunks_exact(2)).map(of_draw).collect();
        Ok(Answered { logits, drawn })
    }

    fn results(&self, new: &NewTokens<'_>, compute: &mut dyn FnMut() -> Result<Buffer<f32>>) -> Result<Arc<Results>> {
        if !new.are_regular() {
            let logits = compute()?;
            let draws = (!new.draws.is_empty()).then(|| self.context().upload_ahead(&new.words(new.draws.len())));
            return Ok(self.drawn_by(new, logits, draws.as_ref()).into());
        }
        let mut newest = lock(&self.newest);
        let newest = &mut *newest;
        let step = self.write(&mut newest.lists, new);
        let draws = step.draws.clone();
        let _under_way = Under::way(&self.step, step);
        let mut compute = || compute().map(|logits| self.drawn_by(new, logits, draws.as_deref()));
        self.by_recording(newest, new, &mut compute)
    }

    /// Draws tokens by logits as `draws` has it.
    fn drawn_by(&self, new: &NewTokens<'_>, logits: Buffer<f32>, draws: Option<&Buffer<u32>>) -> Results {
        let view = logits.view(new.model.config.vocab_size);
        let drawn = draws.map(|draws| self.context().sample(view, draws));
        Results { logits, drawn }
    }

    /// Brings what is new to the card.
    fn write(&self, lists: &mut BTreeMap<(usize, usize), Lists>, new: &NewTokens<'_>) -> Step {
        let context = self.context();
        let lists = lists.entry((new.ids.len(), new.drawn())).or_insert_with(|| context.lists(&new.lists()));
        let numbers = |rows: &[usize]| rows.iter().map(|&row| row as u32).collect::<Vec<_>>();
        let stretches: Vec<_> = new.stretches.iter().map(stretch).collect();
        lists.set(IDS, new.ids);
        lists.set(ROWS, &numbers(new.rows));
        lists.set(WANTED, &numbers(new.wanted));
        lists.set(KEYS, &stretches.iter().flat_map(tune_cuda::Stretch::newest).collect::<Vec<_>>());
        lists.set(DRAWS, &new.words(new.drawn()));
        let mut angles = Vec::with_capacity(new.rotary.len());
        for (i, table) in new.rotary.iter().enumerate() {
            let [cos, sin] = [TABLES + 2 * i, TABLES + 2 * i + 1];
            lists.set(cos, &table.cos);
            lists.set(sin, &table.sin);
            let on_card = Angles { of: Arc::clone(&table.cos), cos: lists.on_card(cos), sin: lists.on_card(sin) };
            angles.push((place(&table.cos), Arc::new(on_card)));
        }
        context.write_lists(lists);
        let spans = Spans::behind(&stretches, new.ids.len(), new.keys).with_newest(lists.on_card(KEYS));
        Step {
            ids: (place(new.ids), lists.on_card(IDS).into()),
            rows: (place(new.rows), lists.on_card(ROWS).into()),
            wanted: (place(new.wanted), lists.on_card(WANTED).into()),
            stretches: place(new.stretches),
            keys: new.keys,
            spans: Arc::new(spans),
            angles,
            draws: (new.drawn() > 0).then(|| Arc::new(lists.on_card(DRAWS))),
        }
    }

    fn by_recording(
        &self,
        newest: &mut Newest,
        new: &NewTokens<'_>,
        compute: &mut dyn FnMut() -> Result<Results>,
    ) -> Result<Arc<Results>> {
        let (context, model) = (self.context(), std::ptr::from_ref::<Decoder>(new.model).addr());
        if !context.uses_graphs() || newest.failed.get(&model).is_some_and(|&failed| failed >= TRIALS) {
            return compute().map(Arc::new);
        }
        let (sequences, longest) = (new.ids.len(), new.stretches.iter().map(|s| s.past + s.len).max().unwrap_or(0));
        let parts = parts(&new.model.config, sequences, longest);
        let shape = Shape { model, sequences, draws: new.drawn(), keys: new.keys, parts };
        newest.steps += 1;
        let (number, changes) = (newest.steps, self.card.changes());
        let seen = newest.shapes.get_mut(&shape).filter(|seen| seen.changes == changes);
        if let Some(Seen { step, recorded, .. }) = seen {
            *step = number;
            if let Some((graph, results)) = recorded {
                context.launch(graph);
                return Ok(Arc::clone(results));
            }
            let memory = newest.memory.get_or_insert_with(|| context.kept_memory());
            match context.record(memory, &mut *compute) {
                Ok((graph, results)) => {
                    let results = Arc::new(results?.lent(memory));
                    context.launch(&graph);
                    newest.failed.remove(&model);
                    *recorded = Some((graph, Arc::clone(&results)));
                    return Ok(results);
                }
                // What was to be kept from then on was not computed.
                Err(why) if self.card.changes() != changes => return Err(of_card(why)),
                Err(_) => {
                    self.card.check()?;
                    newest.fail(&shape);
                    return compute().map(Arc::new);
                }
            }
        }
        let memory = newest.memory.get_or_insert_with(|| context.kept_memory());
        let results = context.within(memory, compute)?;
        newest.shapes.insert(shape, Seen { step: number, changes: self.card.changes(), recorded: None });
        if newest.shapes.len() > MOST {
            let oldest = newest.shapes.iter().min_by_key(|(_, seen)| seen.step).map(|(shape, _)| shape.clone());
            oldest.map(|shape| newest.shapes.remove(&shape));
        }
        Ok(Arc::new(results))
    }
}

impl Newest {
    /// A shape could not be recorded. It may be another time, where memory was missing, or never.
    fn fail(&mut self, shape: &Shape) {
        *self.failed.entry(shape.model).or_default() += 1;
        self.shapes.remove(shape);
        if self.shapes.is_empty() {
            self.memory = None;
        }
    }
}
