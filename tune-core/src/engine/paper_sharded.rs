//! Parameters that are divided among processes, on paper: gathered as [`super::sharded`] gathers them.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::paper::{Paper, StepOnPaper, Stored};
use super::parameters::{BlockParams, LayerParams, NormParams, Parameters};
use crate::Result;
use crate::kernels::Element;
use crate::kernels::ledger::{Entry, Purpose};

/// A model of which each process has some rows.
pub(super) struct ShardedOnPaper<'a> {
    step: StepOnPaper<'a>,
    ahead: RefCell<Ahead>,
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
        Stored::F32(len) => paper.ledger.take::<f32>(len, Purpose::Gathered),
        Stored::Blocks(bytes) => paper.ledger.take::<u8>(bytes, Purpose::Gathered),
    }
}

/// Takes the next one of those that were fetched; what is of another type is converted.
fn open<T: Element>(paper: &Paper<T>, fetched: &mut Fetched, stored: Stored) -> Option<Entry> {
    let gathered = fetched.pop_front();
    match stored {
        Stored::F32(len) if T::IS_BF16 => Some(paper.ledger.take::<T>(len, Purpose::Gathered)),
        _ => gathered,
    }
}

impl<'a> ShardedOnPaper<'a> {
    pub(super) fn new(step: StepOnPaper<'a>) -> Self {
        Self { step, ahead: RefCell::default() }
    }

    fn fetch_block<T: Element>(&self, paper: &Paper<T>, block: usize) -> Fetched {
        let mut fetched = Fetched::new();
        self.step.block(paper, block, &mut |stored| {
            fetched.push_back(fetch(paper, stored));
            None
        });
        fetched
    }

    fn fetch_top<T: Element>(&self, paper: &Paper<T>) -> Fetched {
        let mut fetched = Fetched::new();
        self.step.head(paper, &mut |stored| {
            fetched.push_back(fetch(paper, stored));
            None
        });
        fetched
    }
}

impl<T: Element> Parameters<Paper<T>> for ShardedOnPaper<'_> {
    fn open(&self, paper: &Paper<T>, block: usize, next: Option<usize>) -> Result<BlockParams<Paper<T>>> {
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

    fn embedding(&self, paper: &Paper<T>) -> Result<Option<Entry>> {
        let table = self.step.table(&mut |stored| Some(fetch(paper, stored)));
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

    fn lowest_trained_block(&self) -> usize {
        Parameters::<Paper<T>>::lowest_trained_block(&self.step)
    }
}
