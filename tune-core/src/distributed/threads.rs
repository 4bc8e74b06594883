//! Processes that are threads of this one: all that is done among processes can be tried without any.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::launched::Launched;
use super::transport::places;
use super::{Group, Place, Transport, as_current, join_by_cards};
use crate::{Error, Result};

/// Where the threads meet for a collective.
struct Meeting {
    /// What those who meet are called.
    ranks: Vec<usize>,
    state: Mutex<State>,
    changed: Condvar,
    /// Where some of them meet, by the number of the collective in which they parted and what they named.
    parted: Mutex<HashMap<(u64, usize), Arc<Meeting>>>,
}

impl Meeting {
    fn of(ranks: Vec<usize>) -> Arc<Self> {
        let state =
            State { here: ranks.iter().map(|_| None).collect(), gone: vec![false; ranks.len()], ..State::default() };
        Arc::new(Self { ranks, state: Mutex::new(state), changed: Condvar::new(), parted: Mutex::default() })
    }
}

#[derive(Default)]
struct State {
    /// Collectives that are over.
    over: u64,
    /// What those have brought that are here for the next one.
    here: Vec<Option<Arc<Brought>>>,
    /// What all brought to the last one.
    last: Arc<Vec<Arc<Brought>>>,
    /// Whose thread has ended.
    gone: Vec<bool>,
}

/// What one brings to a collective.
struct Brought {
    kind: &'static str,
    bytes: Vec<u8>,
    /// The bytes for each of the others.
    for_each: Vec<usize>,
}

struct ByMemory {
    rank: usize,
    meeting: Arc<Meeting>,
}

impl Drop for ByMemory {
    fn drop(&mut self) {
        let mut state = self.meeting.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.gone[self.rank] = true;
        self.meeting.changed.notify_all();
    }
}

impl ByMemory {
    /// What all bring to the same collective.
    fn meet(&self, kind: &'static str, bytes: &[u8], for_each: &[usize]) -> Result<Arc<Vec<Arc<Brought>>>> {
        self.meet_as(kind, bytes, for_each).map(|(_, all)| all)
    }

    /// The same with the number of the collective.
    fn meet_as(&self, kind: &'static str, bytes: &[u8], for_each: &[usize]) -> Result<(u64, Arc<Vec<Arc<Brought>>>)> {
        let name = |rank: usize| self.meeting.ranks[rank];
        let mut state = self.meeting.state.lock().unwrap_or_else(PoisonError::into_inner);
        let this = state.over;
        let brought = Brought { kind, bytes: bytes.to_vec(), for_each: for_each.to_vec() };
        state.here[self.rank] = Some(Arc::new(brought));
        if state.here.iter().all(Option::is_some) {
            state.last = Arc::new(state.here.iter_mut().filter_map(Option::take).collect());
            state.over += 1;
            self.meeting.changed.notify_all();
        }
        while state.over == this {
            let missing = |(rank, gone): (usize, &bool)| (*gone && state.here[rank].is_none()).then_some(rank);
            if let Some(rank) = state.gone.iter().enumerate().find_map(missing) {
                return Err(Error::Training(format!("rank {} has ended", name(rank))));
            }
            state = self.meeting.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let all = Arc::clone(&state.last);
        drop(state);
        match all.iter().enumerate().find(|(_, other)| other.kind != kind) {
            Some((rank, other)) => {
                Err(Error::Training(format!("rank {} is in another collective, {}", name(rank), other.kind)))
            }
            None => Ok((this, all)),
        }
    }
}

impl Transport for ByMemory {
    fn all_gather(&mut self, mine: &[u8], counts: &[usize], all: &mut [u8]) -> Result<()> {
        let (parts, places) = (self.meet("all-gather", mine, &[])?, places(counts));
        for (part, place) in parts.iter().zip(places.windows(2)) {
            all[place[0]..place[1]].copy_from_slice(&part.bytes);
        }
        Ok(())
    }

    fn all_to_all(&mut self, parts: &[u8], for_each: &[usize], mine: &mut [u8], from_each: &[usize]) -> Result<()> {
        let (others, to) = (self.meet("all-to-all", parts, for_each)?, places(from_each));
        for (other, to) in others.iter().zip(to.windows(2)) {
            let from = places(&other.for_each);
            mine[to[0]..to[1]].copy_from_slice(&other.bytes[from[self.rank]..from[self.rank + 1]]);
        }
        Ok(())
    }

    fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<()> {
        let mine: &[u8] = if root == self.rank { bytes } else { &[] };
        let parts = self.meet("broadcast", mine, &[])?;
        bytes.copy_from_slice(&parts[root].bytes);
        Ok(())
    }

    fn split(&mut self, color: usize) -> Result<Box<dyn Transport>> {
        let (number, all) = self.meet_as("split", &color.to_le_bytes(), &[])?;
        let ranks: Vec<usize> = (0..all.len()).filter(|&rank| all[rank].bytes == color.to_le_bytes()).collect();
        let rank = ranks.iter().filter(|&&rank| rank < self.rank).count();
        let mut parted = self.meeting.parted.lock().unwrap_or_else(PoisonError::into_inner);
        let names = || ranks.iter().map(|&rank| self.meeting.ranks[rank]).collect();
        let meeting = Arc::clone(parted.entry((number, color)).or_insert_with(|| Meeting::of(names())));
        Ok(Box::new(Self { rank, meeting }))
    }
}

/// Runs `f` in `world_size` threads that are the processes of a group, each with one thread to compute on, and returns what they
/// return in the order of their ranks. In each, [`current`](super::current) is the group. No collective is waited for longer
/// than `limit`.
///
/// # Errors
/// Where a thread cannot be started.
///
/// # Panics
/// If `f` does.
pub fn run<R: Send>(world_size: usize, limit: Duration, f: impl Fn(Group) -> R + Sync) -> Result<Vec<R>> {
    let meeting = Meeting::of((0..world_size).collect());
    let join = |rank: usize| {
        let meeting = Arc::clone(&meeting);
        Group::join(limit, move || {
            let place = Place { rank, world_size, local_rank: rank, local_world_size: world_size };
            Ok((Box::new(ByMemory { rank, meeting }) as Box<dyn Transport>, place))
        })
    };
    run_joined(world_size, join, f).into_iter().collect()
}

/// The same with a card for each, by which they are connected, as processes are that were started without MPI: they meet at a port of
/// this machine. Each has its own error where that fails.
///
/// # Panics
/// If `f` does.
pub fn run_by_cards<R: Send>(
    world_size: usize,
    port: u16,
    limit: Duration,
    f: impl Fn(Group) -> R + Sync,
) -> Vec<Result<R>> {
    let join = |rank: usize| {
        let variable = |name: &str| match name {
            "MASTER_ADDR" => Some("127.0.0.1".to_owned()),
            "MASTER_PORT" => Some(port.to_string()),
            "RANK" | "LOCAL_RANK" => Some(rank.to_string()),
            "WORLD_SIZE" | "LOCAL_WORLD_SIZE" => Some(world_size.to_string()),
            _ => None,
        };
        match Launched::of(&variable)? {
            Some(launched) => join_by_cards(&launched, &variable, limit),
            None => Ok(Group::single()),
        }
    };
    run_joined(world_size, join, f)
}

fn run_joined<R: Send>(
    world_size: usize,
    join: impl Fn(usize) -> Result<Group> + Sync,
    f: impl Fn(Group) -> R + Sync,
) -> Vec<Result<R>> {
    let process = |rank: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pool = pool.map_err(|e| Error::setup(format!("cannot start a thread: {e}")))?;
        let group = join(rank)?;
        Ok(pool.install(|| as_current(&group, || f(group.clone()))))
    };
    std::thread::scope(|scope| {
        let process = &process;
        let threads: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || process(rank))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
