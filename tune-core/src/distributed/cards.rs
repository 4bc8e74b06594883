//! Processes that have a card each: what is large goes from card to card, by NCCL.

use std::sync::Arc;
use std::time::Duration;

use bytemuck::Pod;
use tune_cuda::{Buffer, Collective, Communicator, UniqueId};

use super::{Group, Layout};
use crate::engine::Card;
use crate::{Error, Result};

/// The cards of the processes of a mesh, as one of them sees them. Counts, agreements and what is saved go from process to process,
/// as they do without cards.
#[derive(Debug, Clone)]
pub(crate) struct Cards {
    card: Arc<Card>,
    all: Communicator,
    /// Those that divide a model, if not all of it is here.
    shards: Option<Communicator>,
    /// Those that have the same part of it, where it is divided and there are several copies.
    replicas: Option<Communicator>,
}

impl Cards {
    /// Connects the cards of all processes, of which this one has `card`; all are to ask at the same time. `shards` and `replicas` are
    /// the groups of a mesh that has this layout.
    ///
    /// # Errors
    /// No NCCL, processes that have the same card, cards that cannot be connected: where one process cannot, all fail.
    pub(super) fn connect(
        all: &Group,
        (shards, replicas): (&Group, &Group),
        layout: Layout,
        card: &Arc<Card>,
        limit: Duration,
    ) -> Result<Self> {
        let has_nccl = tune_cuda::open_nccl().map_err(|error| Error::setup(error.to_string()));
        all.agreed("the library that connects cards", has_nccl)?;
        refuse_shared(all, card)?;
        let made = match all.is_main() {
            true => UniqueId::new().map(|id| id.bytes().to_vec()),
            false => Ok(Vec::new()),
        };
        let id = all.agreed("the meeting place of cards", made.map_err(of_nccl))?;
        let id = all.gathered("the meeting place of cards", id)?;
        let id = UniqueId::of(&id).ok_or_else(|| Error::Training("the meeting place of cards is none".to_owned()))?;
        let joined = Communicator::join(card.context(), id, all.rank(), all.world_size(), limit);
        let of_all = all.agreed("the cards of all processes", joined.map_err(of_nccl))?;
        let part = |of: &Group, color: usize| -> Result<Option<Communicator>> {
            match of.world_size() {
                1 => Ok(None),
                size if size == all.world_size() => Ok(Some(of_all.clone())),
                size => {
                    let part = of_all.split(color, of.rank(), size).map_err(of_nccl);
                    all.agreed("the cards of some processes", part).map(Some)
                }
            }
        };
        let divided = part(shards, all.rank() / layout.shards)?;
        let copies = if divided.is_some() { part(replicas, all.rank() % layout.shards)? } else { None };
        Ok(Self { card: Arc::clone(card), all: of_all, shards: divided, replicas: copies })
    }

    /// The card of this process.
    pub(crate) fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// The parts of all that divide a model, one behind the other, of some arrays.
    pub(crate) fn gather<T: Pod + Send + Sync>(
        &self,
        of: &str,
        parts: Vec<(Arc<Buffer<T>>, Vec<usize>)>,
    ) -> Collective<Vec<Buffer<T>>> {
        self.shards.as_ref().unwrap_or(&self.all).all_gather(of, parts)
    }

    /// This process's part of the sum over all processes of something that is divided. `counts` are the numbers of each part.
    pub(crate) fn reduce_scatter(&self, of: &str, all: Buffer<f32>, counts: &[usize]) -> Collective<Buffer<f32>> {
        self.shards.as_ref().unwrap_or(&self.all).reduce_scatter(of, all, counts, self.replicas.as_ref())
    }

    /// The sum over all processes, in place.
    pub(crate) fn all_reduce(&self, of: &str, numbers: Buffer<f32>) -> Collective<Buffer<f32>> {
        self.all.all_reduce(of, numbers)
    }
}

/// Refuses processes that would compute on the same card, which NCCL does not connect to itself.
fn refuse_shared(all: &Group, card: &Card) -> Result<()> {
    let ids = all.texts("the cards", &card.id())?;
    let same = |(rank, id): (usize, &String)| Some((ids[..rank].iter().position(|other| other == id)?, rank));
    match ids.iter().enumerate().find_map(same) {
        None => Ok(()),
        Some((first, second)) => Err(Error::setup(format!(
            "ranks {first} and {second} have the same card: start as many processes on a machine as it has cards, and have \
             CUDA_VISIBLE_DEVICES, if it is set, show all of them to each"
        ))),
    }
}

pub(super) fn of_nccl(error: tune_cuda::Error) -> Error {
    match error {
        tune_cuda::Error::Unavailable(why) => Error::setup(why),
        tune_cuda::Error::Lost(why) => Error::lost(why),
        error => Error::Training(error.to_string()),
    }
}
