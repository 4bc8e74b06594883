//! Parameters of which each process has some rows: a block's are gathered before it runs and freed when it has run, and those
//! of the next block are on their way meanwhile. Where it is asked for, they stay from the forward pass to the backward pass.

use std::cell::{RefCell, RefMut};
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Tensor, TensorId};

use super::backend::Reads;
use super::parameters::{BlockParams, Held, LayerParams, NormParams, Parameters, Source, TokenParams, token_rows};
use crate::models::{Decoder, Here, Linear, Share, TokenRows, Weight};
use crate::{Error, Result};

/// A model that is divided among processes, with the key of a pass's dropout.
pub(super) struct Sharded<'m, B: Reads<'m>> {
    held: Held<'m>,
    ahead: RefCell<Ahead<B::OnTheWay>>,
    /// Whether the parameters of blocks stay until the backward pass has used them.
    keeps: bool,
    kept: RefCell<HashMap<usize, BlockParams<B>>>,
}

/// What is on its way.
struct Ahead<W> {
    /// The block that will come next.
    block: Option<(usize, Fetched<W>)>,
    /// What comes above the last block.
    top: Option<Fetched<W>>,
    /// Whether that has come: then the pass goes down.
    turned: bool,
}

impl<W> Default for Ahead<W> {
    fn default() -> Self {
        Self { block: None, top: None, turned: false }
    }
}

/// Parameters on their way, by what they are here.
struct Fetched<W> {
    parts: Vec<Part>,
    gathered: W,
}

/// What is here of a parameter, to be found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Rows(TensorId),
    /// The address of what is here.
    Blocks(usize),
}

impl Part {
    fn of(here: &Here) -> Self {
        match here {
            Here::Rows(tensor, _) => Self::Rows(tensor.id()),
            Here::Blocks(share) => Self::Blocks(address(share)),
        }
    }
}

fn address(share: &Arc<Share>) -> usize {
    Arc::as_ptr(share).addr()
}

impl<W> Fetched<W> {
    fn wait<'m, B: Reads<'m, OnTheWay = W>>(self, backend: &B) -> Result<HashMap<Part, B::Gathered>> {
        Ok(self.parts.into_iter().zip(backend.arrived(self.gathered)?).collect())
    }
}

impl<'m, B: Reads<'m>> Sharded<'m, B> {
    /// `keeps` says whether the parameters of blocks stay until the backward pass has used them.
    pub(super) fn new(model: &'m Decoder, dropout: Option<u64>, keeps: bool) -> Self {
        Self { held: Held { model, dropout }, ahead: RefCell::default(), keeps, kept: RefCell::default() }
    }

    /// Has a backend read all that is here of the model, ahead of its use.
    pub(super) fn keep(model: &'m Decoder, backend: &B) -> Result<()> {
        let all = Self::new(model, None, false);
        let table = part_of(model.embedding(), model.config.vocab_size).into_iter();
        let below = table.chain(model.tokens().map(part_of_tokens));
        let blocks = (0..model.blocks.len()).flat_map(|block| all.here_of_block(block));
        below.chain(blocks).chain(all.here_of_top()).try_for_each(|here| backend.keep(&here))
    }

    fn fetch(&self, backend: &B, of: &str, here: &[Here]) -> Result<Fetched<B::OnTheWay>> {
        let parts = here.iter().map(Part::of).collect();
        Ok(Fetched { parts, gathered: backend.bring(self.held.model.mesh(), of, here)? })
    }

    fn ahead(&self) -> RefMut<'_, Ahead<B::OnTheWay>> {
        self.ahead.borrow_mut()
    }

    fn here_of_top(&self) -> Vec<Here> {
        let ((norm, head), spec) = (self.held.model.top(), &self.held.model.config);
        let mut parts = vec![Here::Rows(norm.clone(), spec.hidden_size)];
        parts.extend(parts_of(head, spec.outputs()));
        parts.extend(self.held.model.output_tokens().map(part_of_tokens));
        parts
    }

    fn fetch_top(&self, backend: &B) -> Result<Fetched<B::OnTheWay>> {
        self.fetch(backend, "the output layer", &self.here_of_top())
    }

    fn here_of_block(&self, block: usize) -> Vec<Here> {
        let (own, spec) = (&self.held.model.blocks[block], &self.held.model.config);
        let norms = own.norms.iter().zip(spec.norms(block));
        let mut parts: Vec<Here> = norms.map(|((_, weight), (_, width))| Here::Rows(weight.clone(), width)).collect();
        for ((_, linear), spec) in own.linears.iter().zip(spec.layers(block)) {
            parts.extend(parts_of(linear, spec.out));
        }
        parts
    }

    fn fetch_block(&self, backend: &B, block: usize) -> Result<Fetched<B::OnTheWay>> {
        self.fetch(backend, &format!("block {block}"), &self.here_of_block(block))
    }
}

/// What is here of a layer with `out` results.
fn parts_of(linear: &Linear, out: usize) -> impl Iterator<Item = Here> {
    let rows = |tensor: &Tensor, rows| Here::Rows(tensor.clone(), rows);
    let bias = linear.bias.iter().map(move |bias| rows(bias, out));
    let adapter = linear.adapter.iter().flat_map(move |a| [rows(&a.a, a.rank), rows(&a.b, out)]);
    part_of(&linear.weight, out).into_iter().chain(bias).chain(adapter)
}

/// What is here of a matrix, if not all of it is.
fn part_of(weight: &Weight, rows: usize) -> Option<Here> {
    match weight {
        Weight::Tensor(tensor) => Some(Here::Rows(tensor.clone(), rows)),
        Weight::Share(share) => Some(Here::Blocks(Arc::clone(share))),
        Weight::Quantized(_) => None,
    }
}

/// What is here of rows of single tokens.
fn part_of_tokens(TokenRows { ids, rows }: &TokenRows) -> Here {
    Here::Rows(rows.as_tensor().clone(), ids.len())
}

/// Takes one of those that were gathered.
fn take<'m, B: Reads<'m>>(backend: &B, from: &mut HashMap<Part, B::Gathered>, source: Source<'_>) -> Result<B::Param> {
    let gathered = from.remove(&match source {
        Source::Tensor(tensor) => Part::Rows(tensor.id()),
        Source::Share(share) => Part::Blocks(address(share)),
    });
    let lost =
        || Error::Training("a parameter was not gathered; this is a bug of the program, please report it".into());
    backend.gathered(gathered.ok_or_else(lost)?)
}

impl<'m, B: Reads<'m>> Parameters<B> for Sharded<'m, B> {
    fn open(&self, backend: &B, block: usize, next: Option<usize>) -> Result<BlockParams<B>> {
        if let Some(kept) = self.kept.borrow_mut().remove(&block) {
            return Ok(kept);
        }
        let mut ahead = self.ahead();
        let fetched = match ahead.block.take() {
            Some((of, fetched)) if of == block => fetched,
            _ => self.fetch_block(backend, block)?,
        };
        ahead.block = next.map(|next| Ok::<_, Error>((next, self.fetch_block(backend, next)?))).transpose()?;
        if next.is_none() && !ahead.turned {
            ahead.top = Some(self.fetch_top(backend)?);
        }
        drop(ahead);
        let mut gathered = fetched.wait(backend)?;
        self.held.block(backend, block, &mut |source| take(backend, &mut gathered, source))
    }

    fn give_back(&self, block: usize, params: BlockParams<B>) {
        if self.keeps {
            self.kept.borrow_mut().insert(block, params);
        }
    }

    fn embedding(&self, backend: &B) -> Result<B::Param> {
        let model = self.held.model;
        let table = match model.embedding() {
            Weight::Quantized(of) => return backend.quantized(of),
            Weight::Tensor(table) => Source::Tensor(table),
            Weight::Share(share) => Source::Share(share),
        };
        let parts: Vec<Here> = part_of(model.embedding(), model.config.vocab_size).into_iter().collect();
        let fetched = self.fetch(backend, "the embedding table", &parts)?;
        self.ahead().block = match model.blocks.is_empty() {
            true => None,
            false => Some((0, self.fetch_block(backend, 0)?)),
        };
        self.held.table(backend, take(backend, &mut fetched.wait(backend)?, table)?)
    }

    fn top(&self, backend: &B) -> Result<(NormParams<B>, LayerParams<B>)> {
        let mut ahead = self.ahead();
        ahead.turned = true;
        let fetched = ahead.top.take().map_or_else(|| self.fetch_top(backend), Ok)?;
        drop(ahead);
        let mut gathered = fetched.wait(backend)?;
        self.held.head(backend, &mut |source| take(backend, &mut gathered, source))
    }

    fn trains_embedding(&self) -> bool {
        self.held.model.trains_embedding()
    }

    fn tokens(&self, backend: &B) -> Result<Option<TokenParams<B>>> {
        let Some(tokens) = self.held.model.tokens() else { return Ok(None) };
        let fetched = self.fetch(backend, "the rows of trained tokens", &[part_of_tokens(tokens)])?;
        let mut gathered = fetched.wait(backend)?;
        token_rows(Some(tokens), &mut |source| take(backend, &mut gathered, source))
    }

    fn trained_tokens(&self) -> Option<&Arc<[u32]>> {
        self.held.model.tokens().map(|tokens| &tokens.ids)
    }

    fn lowest_trained_block(&self) -> usize {
        Parameters::<B>::lowest_trained_block(&self.held)
    }

    fn total(&self, of_tokens: f64) -> Result<f64> {
        Parameters::<B>::total(&self.held, of_tokens)
    }
}
