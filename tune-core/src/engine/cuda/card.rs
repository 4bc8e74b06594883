//! A card that models are computed on, and what it keeps from one run to the next.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::TensorId;
use tune_cuda::{Adapted, Buffer, Context, Driver, Spans, Table, View};

use super::Number;
use super::trained::Trained;
use super::weights::Frozen;
use crate::kernels::Rotary;
use crate::kernels::attention::{Attention, Stretch};
use crate::models::Magnitude;
use crate::{Error, Result};

/// Angles of so many tables are kept: models have two at most.
const TABLES: usize = 2;

/// Tables of experts' weights that are kept: more than several large models have. What is beyond belongs to weights that are gone.
const MOST_TABLES: usize = 4096;

/// A card that models may be computed on, with what it has of them.
#[derive(Debug)]
pub struct Card {
    pub(super) context: Context,
    /// What is frozen: numbers, and matrices in blocks.
    pub(super) frozen: Mutex<HashMap<Frozen, Arc<dyn Any + Send + Sync>>>,
    /// What is trained, by tensor.
    pub(super) trained: Mutex<HashMap<TensorId, Trained>>,
    /// What layers' results are scaled by, by their magnitudes, until something is trained.
    factors: Mutex<HashMap<TensorId, Arc<Buffer<f32>>>>,
    angles: Mutex<Vec<Arc<Angles>>>,
    spans: Mutex<Option<Last>>,
    /// Where the weights of experts are, by what tells these from others.
    tables: Mutex<HashMap<Vec<u64>, Arc<Table>>>,
    /// Numbers that are one, f32 and bf16.
    ones: [Mutex<Option<Arc<dyn Any + Send + Sync>>>; 2],
    /// How often something of all this came or went.
    changes: AtomicU64,
}

/// The stretches of the batch that was run last.
#[derive(Debug)]
struct Last {
    of: Vec<Stretch>,
    /// Of queries and of keys.
    rows: [usize; 2],
    spans: Arc<Spans>,
}

/// The angles of a batch by one of a model's tables.
#[derive(Debug)]
pub(super) struct Angles {
    pub(super) of: Arc<Vec<f32>>,
    pub(super) cos: Buffer<f32>,
    pub(super) sin: Buffer<f32>,
}

/// The magnitudes of a layer's results on a card, and what these are scaled by.
#[derive(Debug)]
pub(in crate::engine) struct Scaling {
    of: TensorId,
    magnitudes: Arc<Buffer<f32>>,
    /// Of the lengths of the weight's own rows.
    pub(super) squares: Arc<Buffer<f32>>,
    /// Factors and one over lengths, `[2, out]`; empty until they are computed.
    factors: Arc<Buffer<f32>>,
}

impl Scaling {
    /// Whether the factors are computed.
    pub(super) fn is_scaled(&self) -> bool {
        !self.factors.is_empty()
    }

    /// The factors of `cols` results from `first` on.
    pub(super) fn factors(&self, first: usize, cols: usize) -> View<'_, f32> {
        self.factors.part(first, (1, cols), cols)
    }

    /// One over the lengths of as many rows.
    pub(super) fn inverses(&self, first: usize, cols: usize) -> View<'_, f32> {
        self.factors.part(self.magnitudes.len() + first, (1, cols), cols)
    }
}

impl Card {
    /// Opens a card by its number.
    ///
    /// # Errors
    /// What is missing for it, in one line.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let context = Context::open(ordinal).map_err(of_card)?;
        Ok(Arc::new(Self {
            context,
            frozen: Mutex::default(),
            trained: Mutex::default(),
            factors: Mutex::default(),
            angles: Mutex::default(),
            spans: Mutex::default(),
            tables: Mutex::default(),
            ones: Default::default(),
            changes: AtomicU64::new(0),
        }))
    }

    /// How many cards the driver shows.
    ///
    /// # Errors
    /// As [`Card::open`].
    pub fn count() -> Result<usize> {
        Ok(Driver::probe().map_err(of_card)?.cards.len())
    }

    /// Opens the first card that can be used.
    ///
    /// # Errors
    /// Why none can be.
    pub fn open_first() -> Result<Arc<Self>> {
        let mut cards = (0..Self::count()?).map(Self::open);
        let first = cards.next().unwrap_or_else(|| Self::open(0));
        first.or_else(|why| cards.find_map(Result::ok).ok_or(why))
    }

    /// What it is asked by.
    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.context.card().ordinal
    }

    /// What tells it from all other cards.
    pub(crate) fn id(&self) -> String {
        self.context.uuid().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The maker's name for it.
    pub fn name(&self) -> &str {
        &self.context.card().name
    }

    /// How much of its memory this program uses.
    pub fn usage(&self) -> tune_cuda::Usage {
        self.context.usage()
    }

    /// Bytes that there are for models: what this program holds already, and what is free.
    pub fn available(&self) -> u64 {
        self.context.usage().held + self.context.free()
    }

    /// Does some work on it and says what its time went to: a line for each kernel, the longest first.
    ///
    /// # Errors
    /// What failed on the card.
    pub fn profile(&self, work: impl FnOnce()) -> Result<String> {
        let spent = self.context.profile(work).map_err(of_card)?;
        let all: f64 = spent.iter().map(|one| one.milliseconds).sum();
        let lines = spent.iter().map(|one| {
            let (share, each) = (100.0 * one.milliseconds / all, 1e3 * one.milliseconds / one.count as f64);
            format!("{:>8.2} ms {share:>5.1} % {:>6} x {each:>8.1} us  {}\n", one.milliseconds, one.count, one.what)
        });
        Ok(format!("{all:>8.2} ms in all\n") + &lines.collect::<String>())
    }

    /// Has steps that generate tokens be recorded and done again, or not; they have the same bits. They are, unless the environment says
    /// `TUNE_CUDA_GRAPHS=none`.
    pub fn use_graphs(&self, yes: bool) {
        self.context.use_graphs(yes);
    }

    /// How many steps were done again by a recording.
    pub fn steps_by_graphs(&self) -> u64 {
        self.context.launched()
    }

    /// Something of what it keeps came or went: what was recorded may read what is not there any more.
    pub(super) fn change(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// How often that was so.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Whether all went well so far.
    ///
    /// # Errors
    /// The first thing that failed.
    pub(crate) fn check(&self) -> Result<()> {
        self.context.check().map_err(of_card)
    }

    /// The magnitudes of a layer's results, and what was computed of them since something was trained.
    ///
    /// # Errors
    /// Tensors that a card does not read.
    pub(super) fn scaling(&self, of: &Magnitude) -> Result<Scaling> {
        let id = of.weight.id();
        let kept = lock(&self.factors).get(&id).map(Arc::clone);
        Ok(Scaling {
            of: id,
            magnitudes: self.trained(&of.weight)?,
            squares: self.frozen(&of.squares)?,
            factors: kept.unwrap_or_else(|| Arc::new(self.context.buffer(0))),
        })
    }

    /// Computes what results are scaled by, and keeps it.
    pub(super) fn rescale<T: Number>(&self, scaling: &mut Scaling, of: Adapted<'_, T>) {
        self.change();
        scaling.factors = Arc::new(self.context.column_factors(&scaling.magnitudes, of));
        lock(&self.factors).insert(scaling.of, Arc::clone(&scaling.factors));
    }

    /// Something was trained: layers' results are scaled otherwise.
    pub(super) fn forget_factors(&self) {
        self.change();
        lock(&self.factors).clear();
    }

    /// The stretches of `how` on the card, for so many rows of queries and of keys.
    pub(super) fn spans(&self, how: &Attention<'_>, queries: usize, keys: usize) -> Arc<Spans> {
        let mut last = lock(&self.spans);
        if let Some(last) = last.as_ref().filter(|last| last.of == how.stretches && last.rows == [queries, keys]) {
            return Arc::clone(&last.spans);
        }
        let spans = Spans::behind(&how.stretches.iter().map(stretch).collect::<Vec<_>>(), queries, keys);
        let spans = Arc::new(spans);
        *last = Some(Last { of: how.stretches.to_vec(), rows: [queries, keys], spans: Arc::clone(&spans) });
        spans
    }

    /// The angles of a batch on the card.
    pub(super) fn angles(&self, angles: &Rotary) -> Arc<Angles> {
        let mut known = lock(&self.angles);
        if let Some(found) = known.iter().find(|known| Arc::ptr_eq(&known.of, &angles.cos)) {
            return Arc::clone(found);
        }
        let [cos, sin] = [&angles.cos, &angles.sin].map(|table| self.context.upload_ahead(table));
        known.truncate(TABLES - 1);
        known.insert(0, Arc::new(Angles { of: Arc::clone(&angles.cos), cos, sin }));
        Arc::clone(&known[0])
    }

    /// Where weights of experts are, for kernels that look there themselves. It stays on the card while they stay where they are.
    pub(super) fn table<T>(&self, weights: &[View<'_, T>]) -> Arc<Table> {
        let (mut tables, addresses) = (lock(&self.tables), tune_cuda::addresses(weights));
        if let Some(found) = tables.get(&addresses) {
            return Arc::clone(found);
        }
        self.change();
        if tables.len() >= MOST_TABLES {
            tables.clear();
        }
        let table = Arc::new(self.context.table(addresses.clone()));
        tables.insert(addresses, Arc::clone(&table));
        table
    }

    /// At least so many numbers that are one.
    pub(super) fn ones<T: Number>(&self, len: usize) -> Arc<Buffer<T>> {
        let mut kept = lock(&self.ones[usize::from(T::IS_BF16)]);
        let found = kept.as_ref().map(|ones| Arc::clone(ones).downcast::<Buffer<T>>());
        match found {
            Some(Ok(ones)) if ones.len() >= len => ones,
            _ => {
                self.change();
                let ones = Arc::new(self.context.upload(&vec![T::from_f32(1.0); len]));
                *kept = Some(Arc::<Buffer<T>>::clone(&ones));
                ones
            }
        }
    }
}

/// A stretch as a card has it.
pub(super) fn stretch(s: &Stretch) -> tune_cuda::Stretch {
    tune_cuda::Stretch { queries: s.queries, len: s.len, keys: s.keys, past: s.past }
}

pub(super) fn of_card(error: tune_cuda::Error) -> Error {
    match error {
        tune_cuda::Error::Unavailable(_) => Error::setup(error.to_string()),
        tune_cuda::Error::Lost(why) => Error::lost(why),
        error => Error::Training(error.to_string()),
    }
}

pub(super) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
