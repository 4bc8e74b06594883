//! Parameters that are divided among processes, on paper: gathered as [`crate::engine::sharded`] gathers them.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::memory::Machine;
use super::parameters::Stored;
use super::{Paper, StepOnPaper};
use crate::Result;
use crate::engine::parameters::{BlockParams, LayerParams, NormParams, Parameters, TokenParams};
use crate::kernels::Element;
use crate::kernels::ledger::{Entry, Purpose};

/// A model of which each process has some rows.
pub(super) struct ShardedOnPaper<'a, T: Element> {
    step: StepOnPaper<'a>,
    ahead: RefCell<Ahead>,
    /// Whether the parameters of blocks stay until the backward pass has used them.
    keeps: bool,
    kept: RefCell<HashMap<usize, BlockParams<Paper<T>>>>,
}

/// What is on its way, or has come.
#[derive(Default)]
struct Ahead {
    block: Option<(usize, Fetched)>,
    top: Option<Fetched>,
    /// Whether the pass goes down.
    turned: bool,
}

/// Memory for parameters, in the order in which they are read.
type Fetched = VecDeque<Entry>;

/// Takes memory for one.
fn fetch<T: Element>(paper: &Paper<T>, stored: Stored) -> Entry {
    match stored {
        Stored::Own(len) => paper.ledger.take::<T>(len, Purpose::Gathered),
        // A card rounds its part before it is gathered.
        Stored::F32(len) if paper.machine == Machine::Card => paper.ledger.take::<T>(len, Purpose::Gathered),
        Stored::F32(len) => paper.ledger.take::<f32>(len, Purpose::Gathered),
        Stored::Blocks(bytes) => paper.ledger.take::<u8>(bytes, Purpose::Gathered),
    }
}

/// Takes the next one of those that were fetched; what is of another type is converted.
fn open<T: Element>(paper: &Paper<T>, fetched: &mut Fetched, stored: Stored) -> Option<Entry> {
    let gathered = fetched.pop_front();
    match stored {
        Stored::F32(len) if T::IS_BF16 && paper.machine != Machine::Card => {
            Some(paper.ledger.take::<T>(len, Purpose::Gathered))
        }
        _ => gathered,
    }
}

impl<'a, T: Element> ShardedOnPaper<'a, T> {
    /// `goes_back` says whether there is a backward pass.
    pub(super) fn new(step: StepOnPaper<'a>, goes_back: bool) -> Self {
        let keeps = goes_back && step.layout.keeps_gathered;
        Self { step, ahead: RefCell::default(), keeps, kept: RefCell::default() }
    }

    fn fetch_block(&self, paper: &Paper<T>, block: usize) -> Fetched {
        let mut fetched = Fetched::new();
        self.step.block(paper, block, &mut |stored| {
            fetched.push_back(fetch(paper, stored));
            None
        });
        fetched
    }

    fn fetch_top(&self, paper: &Paper<T>) -> Fetched {
        let mut fetched = Fetched::new();
        self.step.head(paper, &mut |stored| {
            fetched.push_back(fetch(paper, stored));
            None
        });
        fetched
    }
}

impl<T: Element> Parameters<Paper<T>> for ShardedOnPaper<'_, T> {
    fn open(&self, paper: &Paper<T>, block: usize, next: Option<usize>) -> Result<BlockParams<Paper<T>>> {
        if let Some(kept) = self.kept.borrow_mut().remove(&block) {
            return Ok(kept);
        }
        let mut ahead = self.ahead.borrow_mut();
        let mut fetched = match ahead.block.take() {
            Some((of, fetched)) if of == block => fetched,
            _ => self.fetch_block(paper, block),
        };
        ahead.block = next.map(|next| (next, self.fetch_block(paper, next)));
        if next.is_none() && !ahead.turned {
            ahead.top = Some(self.fetch_top(paper));
        }
        Ok(self.step.block(paper, block, &mut |stored| open(paper, &mut fetched, stored)))
    }

    fn give_back(&self, block: usize, params: BlockParams<Paper<T>>) {
        if self.keeps {
            self.kept.borrow_mut().insert(block, params);
        }
    }

    fn embedding(&self, paper: &Paper<T>) -> Result<Option<Entry>> {
        let table = self.step.table(paper, &mut |stored| Some(fetch(paper, stored)));
        self.ahead.borrow_mut().block = (!self.step.model.blocks.is_empty()).then(|| (0, self.fetch_block(paper, 0)));
        Ok(table)
    }

    fn top(&self, paper: &Paper<T>) -> Result<(NormParams<Paper<T>>, LayerParams<Paper<T>>)> {
        let mut ahead = self.ahead.borrow_mut();
        ahead.turned = true;
        let mut fetched = ahead.top.take().unwrap_or_else(|| self.fetch_top(paper));
        Ok(self.step.head(paper, &mut |stored| open(paper, &mut fetched, stored)))
    }

    fn trains_embedding(&self) -> bool {
        Parameters::<Paper<T>>::trains_embedding(&self.step)
    }

    fn tokens(&self, paper: &Paper<T>) -> Result<Option<TokenParams<Paper<T>>>> {
        let mut fetched = Fetched::new();
        self.step.token_rows::<T>(&mut |stored| {
            fetched.push_back(fetch(paper, stored));
            None
        });
        Ok(self.step.token_rows(&mut |stored| open(paper, &mut fetched, stored)))
    }

    fn trained_tokens(&self) -> Option<&Arc<[u32]>> {
        self.step.ids()
    }

    fn lowest_trained_block(&self) -> usize {
        Parameters::<Paper<T>>::lowest_trained_block(&self.step)
    }
}
