//! Processes that were started without MPI, and have a card each: NCCL connects them, and moves what they say to each other, too.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tune_cuda::{Courier, UniqueId};

use super::cards::of_nccl;
use super::launched::Launched;
use super::rendezvous::{Hello, Lines, Meeting, meet};
use super::{Group, Place, Transport};
use crate::engine::Card;
use crate::{Error, Result};

/// The processes of a run, or some of them.
struct ByCards {
    courier: Courier,
    /// Of all processes; dropped with the last of these.
    lines: Rc<Lines>,
}

/// Joins the other processes that were started so, at the place that all were told.
///
/// # Errors
/// No card or no NCCL, of any of them; and as [`meet`].
pub(super) fn join(launched: &Launched, meeting: &Meeting, limit: Duration) -> Result<Group> {
    let Launched { by, processes, .. } = *launched;
    let mut me = Hello::of(launched, meeting)?;
    let card = own_card(launched).and_then(|card| match tune_cuda::open_nccl() {
        Ok(_) => Ok(card),
        Err(error) => Err(of_nccl(error)),
    });
    match &card {
        Ok(card) => me.card = card.id(),
        Err(error) => {
            me.problem = Some(format!(
                "{by} started {processes} processes, which without MPI are connected by a card of each: {error}. On processors MPI \
                 starts and connects them: `tune run --nproc-per-node {processes} RECIPE ...` or `mpirun -n {processes} PROGRAM ...`"
            ));
        }
    }
    let met = meet(meeting, &me, limit, || UniqueId::new().map(|id| id.bytes().to_vec()).map_err(of_nccl))?;
    let card = card?;
    let id = UniqueId::of(&met.id).ok_or_else(|| Error::Training("the meeting place of cards is none".to_owned()))?;
    let context = card.context().clone();
    let lines = Lines::watch(met.lines, limit, move |why| context.lose(why))?;
    let (local_rank, local_world_size) = met.local;
    let place = Place { rank: me.rank, world_size: processes, local_rank, local_world_size };
    let context = card.context().clone();
    Group::join_by(limit, Some(card), move || {
        let courier = Courier::join(&context, id, place.rank, processes, limit).map_err(of_nccl)?;
        Ok((Box::new(ByCards { courier, lines: Rc::new(lines) }) as Box<dyn Transport>, place))
    })
}

/// The card of a process: the one of its number on its machine, or the only one that it sees.
fn own_card(launched: &Launched) -> Result<Arc<Card>> {
    match (Card::count()?, launched.local.0) {
        (1, _) => Card::open(0),
        (cards, Some(local)) if local < cards => Card::open(local),
        (cards, Some(local)) => Err(Error::setup(format!(
            "its LOCAL_RANK is {local} (they are counted from 0), and its machine has {cards} cards: start as many processes as that"
        ))),
        (cards, None) => Err(Error::setup(format!(
            "its machine has {cards} cards, and LOCAL_RANK does not say which is its own: set it to a number from 0 to {}",
            cards - 1
        ))),
    }
}

impl Transport for ByCards {
    fn all_gather(&mut self, mine: &[u8], counts: &[usize], all: &mut [u8]) -> Result<()> {
        self.courier.all_gather(mine, counts, all).map_err(of_nccl)
    }

    fn all_to_all(&mut self, parts: &[u8], for_each: &[usize], mine: &mut [u8], from_each: &[usize]) -> Result<()> {
        self.courier.all_to_all(parts, for_each, mine, from_each).map_err(of_nccl)
    }

    fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<()> {
        self.courier.broadcast(root, bytes).map_err(of_nccl)
    }

    fn split(&mut self, color: usize) -> Result<Box<dyn Transport>> {
        let (mine, size) = ((color as u64).to_le_bytes(), self.courier.size());
        let mut colors = vec![0; mine.len() * size];
        self.courier.all_gather(&mine, &vec![mine.len(); size], &mut colors).map_err(of_nccl)?;
        let same: Vec<usize> = (0..size).filter(|rank| colors[rank * mine.len()..][..mine.len()] == mine).collect();
        let before = same.iter().filter(|rank| **rank < self.courier.rank()).count();
        let courier = self.courier.split(color, before, same.len()).map_err(of_nccl)?;
        Ok(Box::new(Self { courier, lines: Rc::clone(&self.lines) }))
    }

    fn part(&mut self) {
        self.lines.part();
    }
}
