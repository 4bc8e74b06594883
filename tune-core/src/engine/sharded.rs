//! Parameters of which each process has some rows: a block's are gathered before it runs and freed when it has run, and those
//! of the next block are on their way meanwhile.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{Tensor, TensorId};

use super::backend::Reads;
use super::parameters::{BlockParams, Held, LayerParams, NormParams, Parameters};
use crate::distributed::Pending;
use crate::models::{Decoder, Gathered, Linear, Weight, gather};
use crate::{Error, Result};

/// A model that is divided among processes, with the key of a pass's dropout.
pub(super) struct Sharded<'m> {
    held: Held<'m>,
    ahead: Mutex<Ahead>,
}

/// What is on its way.
#[derive(Default)]
struct Ahead {
    /// The block that will come next.
    block: Option<(usize, Fetched)>,
    /// What comes above the last block.
    top: Option<Fetched>,
    /// Whether that has come: then the pass goes down.
    turned: bool,
}

/// Parameters on their way, by what they are here.
struct Fetched {
    tensors: Vec<TensorId>,
    gathered: Pending<Vec<Gathered>>,
}

impl Fetched {
    fn wait(self) -> Result<HashMap<TensorId, Gathered>> {
        Ok(self.tensors.into_iter().zip(self.gathered.wait()?).collect())
    }
}

impl<'m> Sharded<'m> {
    pub(super) fn new(model: &'m Decoder, dropout: Option<u64>) -> Self {
        Self { held: Held { model, dropout }, ahead: Mutex::default() }
    }

    fn fetch(&self, of: &str, tensors: Vec<(&'m Tensor, usize)>) -> Fetched {
        let ids = tensors.iter().map(|(tensor, _)| tensor.id()).collect();
        let tensors = tensors.into_iter().map(|(tensor, rows)| (tensor.clone(), rows)).collect();
        Fetched { tensors: ids, gathered: gather(self.held.model.group(), of, tensors) }
    }

    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fetch_top(&self) -> Fetched {
        let ((norm, head), spec) = (self.held.model.top(), &self.held.model.config);
        let mut tensors = vec![(norm, spec.hidden_size)];
        tensors.extend(tensors_of(head, spec.vocab_size));
        self.fetch("the output layer", tensors)
    }

    fn fetch_block(&self, block: usize) -> Fetched {
        let (own, spec) = (&self.held.model.blocks[block], &self.held.model.config);
        let mut tensors: Vec<_> =
            own.norms.iter().zip(spec.norms(block)).map(|((_, weight), (_, width))| (weight, width)).collect();
        for ((_, linear), spec) in own.linears.iter().zip(spec.layers(block)) {
            tensors.extend(tensors_of(linear, spec.out));
        }
        self.fetch(&format!("block {block}"), tensors)
    }
}

/// The tensors of a layer with `out` results, with the rows that each has in all.
fn tensors_of(linear: &Linear, out: usize) -> impl Iterator<Item = (&Tensor, usize)> {
    let weight = match &linear.weight {
        Weight::Tensor(tensor) => Some((tensor, out)),
        Weight::Quantized(_) => None,
    };
    let adapter = linear.adapter.iter().flat_map(move |a| [(a.a.as_tensor(), a.rank), (a.b.as_tensor(), out)]);
    weight.into_iter().chain(linear.bias.iter().map(move |bias| (bias, out))).chain(adapter)
}

/// Takes one of those that were gathered.
fn take<'m, B: Reads<'m>>(backend: &B, from: &mut HashMap<TensorId, Gathered>, tensor: &Tensor) -> Result<B::Param> {
    let gathered = from.remove(&tensor.id());
    let lost =
        || Error::Training("a parameter was not gathered; this is a bug of the program, please report it".into());
    backend.gathered(gathered.ok_or_else(lost)?)
}

impl<'m, B: Reads<'m>> Parameters<B> for Sharded<'m> {
    fn open(&self, backend: &B, block: usize, next: Option<usize>) -> Result<BlockParams<B>> {
        let mut ahead = self.ahead();
        let fetched = match ahead.block.take() {
            Some((of, fetched)) if of == block => fetched,
            _ => self.fetch_block(block),
        };
        ahead.block = next.map(|next| (next, self.fetch_block(next)));
        if next.is_none() && !ahead.turned {
            ahead.top = Some(self.fetch_top());
        }
        drop(ahead);
        let mut gathered = fetched.wait()?;
        self.held.block(backend, block, &mut |tensor| take(backend, &mut gathered, tensor))
    }

    fn embedding(&self, backend: &B) -> Result<B::Param> {
        match self.held.model.embedding() {
            Weight::Quantized(of) => backend.quantized(of),
            Weight::Tensor(table) => {
                let rows = self.held.model.config.vocab_size;
                let fetched = self.fetch("the embedding table", vec![(table, rows)]);
                self.ahead().block = (!self.held.model.blocks.is_empty()).then(|| (0, self.fetch_block(0)));
                take(backend, &mut fetched.wait()?, table)
            }
        }
    }

    fn top(&self, backend: &B) -> Result<(NormParams<B>, LayerParams<B>)> {
        let mut ahead = self.ahead();
        ahead.turned = true;
        let fetched = ahead.top.take().unwrap_or_else(|| self.fetch_top());
        drop(ahead);
        let mut gathered = fetched.wait()?;
        self.held.head(backend, &mut |tensor| take(backend, &mut gathered, tensor))
    }

    fn trains_embedding(&self) -> bool {
        self.held.model.trains_embedding()
    }

    fn lowest_trained_block(&self) -> usize {
        Parameters::<B>::lowest_trained_block(&self.held)
    }

    fn total(&self, of_tokens: f64) -> Result<f64> {
        let totals = self.held.model.group().all_reduce("the loss", vec![of_tokens]).wait()?;
        Ok(totals.into_iter().sum())
    }
}
