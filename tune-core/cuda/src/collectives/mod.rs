//! What the cards of several processes do together, by NCCL.
//!
//! Collectives have a stream of their own: they go on while the card computes. One that begins waits for the work that was queued
//! before it, and work that is queued after [`Collective::wait`] waits for it; the processor waits for neither. All communicators of
//! a process share that stream, so that collectives are done in the order in which they were begun, which is the same in all processes.
//!
//! Sums are made by NCCL, in an order of its own: the same number of cards that are connected in the same way gives the same bits.

mod courier;
mod lane;

use std::any::Any;
use std::ffi::c_int;
use std::sync::Arc;
use std::time::Duration;

use bytemuck::Pod;

use crate::buffer::Buffer;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::nccl::{BYTES, Comm, F32, ID_BYTES, Id, Nccl, SUM};
pub use courier::{COURIER, Courier};
use lane::{Done, Lane, Passed};

/// What the processes of a communicator find each other by: one makes it and gives it to all others.
#[derive(Clone, Copy)]
pub struct UniqueId(Id);

impl UniqueId {
    /// A new one.
    ///
    /// # Errors
    /// No NCCL, and a network that it cannot use.
    pub fn new() -> Result<Self> {
        let nccl = Nccl::get()?;
        let mut id = Id([0; ID_BYTES]);
        // SAFETY: writes this many bytes.
        let code = unsafe { (nccl.unique_id)(&raw mut id) };
        nccl.check(code, "opening a port for the other processes", std::ptr::null_mut()).map(|()| Self(id))
    }

    /// Its bytes, to be given to others.
    pub fn bytes(&self) -> &[u8; ID_BYTES] {
        &self.0.0
    }

    /// The one that has these bytes; `None` if they are too few or too many.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(Id(bytes)))
    }
}

impl std::fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UniqueId")
    }
}

/// Some processes, each with a card, as one of them sees them. A clone is the same.
///
/// All of them are to begin the same collectives in the same order. What goes wrong is remembered by the context, as for all of its
/// work: one that is not done within the time limit, a process that NCCL has lost.
#[derive(Debug, Clone)]
pub struct Communicator {
    lane: Arc<Lane>,
    comm: Passed,
    rank: usize,
    size: usize,
}

/// A collective that was begun, and what it gives. Dropped, its results are lost; its memory is free when it is done.
#[derive(Debug)]
#[must_use = "the results of a collective are there for those that wait for it"]
pub struct Collective<R> {
    /// Dropped before the memory, which may be another's as soon as it is given back.
    done: Done,
    /// What is read until it is done.
    _reads: Box<dyn Any + Send>,
    result: R,
}

impl<R> Collective<R> {
    /// What it gives: whatever is queued from now on finds it there. Returns at once.
    pub fn wait(self) -> R {
        drop(self.done);
        self.result
    }

    /// Whether it is over on the card.
    pub fn is_done(&self) -> bool {
        self.done.is_over()
    }
}

impl Context {
    /// Has this error from now on, if it is the first: another process is gone, of which something else than NCCL has learnt. What waits
    /// for that process on the card is ended.
    pub fn lose(&self, why: &str) {
        self.0.remember(Error::Lost(why.to_owned()));
    }
}

impl Communicator {
    /// Joins the other processes that have this `id`: `size` of them, of which this is number `rank`. Returns when all have come. No
    /// collective may take longer than `limit`, this one included.
    ///
    /// # Errors
    /// No NCCL; a rank that is not below the size; processes that do not come, or that have the same card.
    pub fn join(context: &Context, id: UniqueId, rank: usize, size: usize, limit: Duration) -> Result<Self> {
        let (Ok(of_rank), Ok(of_all), true) = (c_int::try_from(rank), c_int::try_from(size), rank < size) else {
            return Err(Error::Failed(format!("rank {rank} is none of {size} processes")));
        };
        let nccl = Nccl::get()?;
        let lane = Lane::new(context, nccl, limit)?;
        let comm = lane.joined(&format!("connecting the cards of {size} processes"), move |comm| {
            // SAFETY: writes one handle.
            unsafe { (nccl.init)(comm, of_all, id.0, of_rank) }
        })?;
        Ok(Self { lane, comm, rank, size })
    }

    /// Those of the processes that name the same `color`, in the order of their ranks here. All processes are to ask at the same time, and
    /// `size` says how many name it, `rank` how many of these are before this one.
    ///
    /// # Errors
    /// Processes that do not ask.
    pub fn split(&self, color: usize, rank: usize, size: usize) -> Result<Self> {
        let (nccl, comm) = (self.lane.nccl(), self.comm);
        let [color, key] = [color, self.rank].map(|n| c_int::try_from(n).unwrap_or(c_int::MAX));
        let part = self.lane.joined("dividing the cards of some processes", move |part| {
            // SAFETY: writes one handle; where no settings are given, they are the usual ones.
            unsafe { (nccl.split)(comm.get(), color, key, part, std::ptr::null_mut()) }
        })?;
        Ok(Self { lane: Arc::clone(&self.lane), comm: part, rank, size })
    }

    /// The number of this process.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Ends all collectives of this process, those that go on as well: the context has this error from now on.
    pub fn abort(&self, why: &str) {
        self.lane.lose(why.to_owned());
    }

    /// The parts of all processes one behind the other, in the order of their ranks, of each of some arrays. `counts` are the numbers of
    /// each process's part.
    ///
    /// # Panics
    /// If a part is not as long as its counts say.
    pub fn all_gather<T: Pod + Send + Sync>(
        &self,
        of: &str,
        parts: Vec<(Arc<Buffer<T>>, Vec<usize>)>,
    ) -> Collective<Vec<Buffer<T>>> {
        let context = self.lane.context();
        let mut gathered: Vec<Buffer<T>> = Vec::with_capacity(parts.len());
        let mut calls = Vec::new();
        for (mine, counts) in &parts {
            assert!(counts.len() == self.size && counts[self.rank] == mine.len(), "all-gather of {of}");
            let all = context.buffer(counts.iter().sum());
            let bytes: Vec<usize> = counts.iter().map(|count| count * size_of::<T>()).collect();
            calls.push((mine.address(), all.address(), bytes));
            gathered.push(all);
        }
        self.begin("all-gather", of, (parts, gathered), |call| {
            calls.iter().try_for_each(|(mine, all, bytes)| call.all_gather(*mine, *all, bytes))
        })
    }

    /// This process's part of the sum over all processes. `counts` are the numbers of each part. Where `then` is given, that part is
    /// summed over those processes, too.
    ///
    /// # Panics
    /// If `all` is not as long as its counts say.
    pub fn reduce_scatter(
        &self,
        of: &str,
        all: Buffer<f32>,
        counts: &[usize],
        then: Option<&Self>,
    ) -> Collective<Buffer<f32>> {
        let fits = counts.len() == self.size && counts.iter().sum::<usize>() == all.len();
        assert!(fits, "reduce-scatter of {of}");
        let mine = self.lane.context().buffer(counts[self.rank]);
        let (from, to, len) = (all.address(), mine.address(), mine.len());
        self.begin("reduce-scatter", of, (all, mine), |call| {
            call.reduce_scatter(from, to, counts)?;
            then.map_or(Ok(()), |then| then.call().all_reduce(to, len))
        })
    }

    /// The sum over all processes, in place.
    pub fn all_reduce(&self, of: &str, numbers: Buffer<f32>) -> Collective<Buffer<f32>> {
        let (at, len) = (numbers.address(), numbers.len());
        self.begin("all-reduce", of, ((), numbers), |call| call.all_reduce(at, len))
    }

    /// What the process of rank `root` has, to all, in place.
    ///
    /// # Panics
    /// If there is no such process.
    pub fn broadcast<T: Pod + Send>(&self, of: &str, root: usize, numbers: Buffer<T>) -> Collective<Buffer<T>> {
        assert!(root < self.size, "broadcast of {of}");
        let (at, bytes) = (numbers.address(), numbers.len() * size_of::<T>());
        self.begin("broadcast", of, ((), numbers), |call| call.broadcast(at, at, bytes, root))
    }

    /// The calls of `calls`, which NCCL begins together.
    fn grouped(&self, calls: impl FnOnce(Call<'_>) -> Result<()>) -> Result<()> {
        let (nccl, call) = (self.lane.nccl(), self.call());
        // SAFETY: no arguments; ended below, whatever is in between.
        call.check(unsafe { (nccl.group_start)() })?;
        let result = calls(self.call());
        // SAFETY: begun above.
        let ended = call.check(unsafe { (nccl.group_end)() });
        result.and(ended)
    }

    fn call(&self) -> Call<'_> {
        Call { of: self, nccl: self.lane.nccl(), comm: self.comm.get() }
    }

    /// Begins a collective, `kind` of `of`: what it reads and what it gives is kept until it is waited for.
    fn begin<K: Any + Send, R>(
        &self,
        kind: &str,
        of: &str,
        (reads, result): (K, R),
        calls: impl FnOnce(Call<'_>) -> Result<()>,
    ) -> Collective<R> {
        let done = self.lane.queue(|| format!("{kind} of {of}"), || self.grouped(calls));
        Collective { done, _reads: Box::new(reads), result }
    }
}

/// Calls of a group, on the stream of collectives. Addresses are of memory that is there until the collective is over.
#[derive(Clone, Copy)]
struct Call<'a> {
    of: &'a Communicator,
    nccl: &'static Nccl,
    comm: Comm,
}

impl Call<'_> {
    fn check(&self, code: c_int) -> Result<()> {
        self.nccl.check(code, "queueing a collective", self.comm)
    }

    /// Whether all parts are of one size, and this is not nothing: then one call does.
    fn is_even(counts: &[usize]) -> bool {
        counts.iter().all(|count| *count == counts[0])
    }

    /// The ranks that have something, and where it begins.
    fn places(counts: &[usize]) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut next = 0;
        let place = move |(rank, count): (usize, &usize)| {
            let at = next;
            next += count;
            (rank, at, *count)
        };
        counts.iter().enumerate().map(place).filter(|(_, _, count)| *count > 0)
    }

    fn all_gather(self, mine: u64, all: u64, bytes: &[usize]) -> Result<()> {
        let stream = self.of.lane.stream();
        match Self::is_even(bytes) {
            true if bytes[0] == 0 => Ok(()),
            // SAFETY: as many bytes as counted, here and there.
            true => self.check(unsafe { (self.nccl.all_gather)(mine, all, bytes[0], BYTES, self.comm, stream) }),
            // What NCCL has no call for: each gives its part to all.
            false => Self::places(bytes).try_for_each(|(rank, at, count)| {
                self.broadcast(if rank == self.of.rank { mine } else { 0 }, all + at as u64, count, rank)
            }),
        }
    }

    fn reduce_scatter(self, all: u64, mine: u64, counts: &[usize]) -> Result<()> {
        let stream = self.of.lane.stream();
        match Self::is_even(counts) {
            true if counts[0] == 0 => Ok(()),
            true => {
                // SAFETY: as many numbers as counted, here and there.
                self.check(unsafe { (self.nccl.reduce_scatter)(all, mine, counts[0], F32, SUM, self.comm, stream) })
            }
            false => Self::places(counts).try_for_each(|(rank, at, count)| {
                let from = all + (at * size_of::<f32>()) as u64;
                let root = c_int::try_from(rank).unwrap_or(c_int::MAX);
                // SAFETY: as above; what is not the root's own is written nowhere.
                self.check(unsafe { (self.nccl.reduce)(from, mine, count, F32, SUM, root, self.comm, stream) })
            }),
        }
    }

    fn all_reduce(self, at: u64, len: usize) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        // SAFETY: this many numbers, in place.
        self.check(unsafe { (self.nccl.all_reduce)(at, at, len, F32, SUM, self.comm, self.of.lane.stream()) })
    }

    /// So many bytes to the process of rank `to`, which receives as many.
    fn send(self, from: u64, bytes: usize, to: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let to = c_int::try_from(to).unwrap_or(c_int::MAX);
        // SAFETY: the caller has so many there.
        self.check(unsafe { (self.nccl.send)(from, bytes, BYTES, to, self.comm, self.of.lane.stream()) })
    }

    /// So many bytes of the process of rank `from`, which sends as many.
    fn receive(self, to: u64, bytes: usize, from: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let from = c_int::try_from(from).unwrap_or(c_int::MAX);
        // SAFETY: as above.
        self.check(unsafe { (self.nccl.receive)(to, bytes, BYTES, from, self.comm, self.of.lane.stream()) })
    }

    /// `from` is read where this process is the root.
    fn broadcast(self, from: u64, to: u64, bytes: usize, root: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let root = c_int::try_from(root).unwrap_or(c_int::MAX);
        // SAFETY: as many bytes, here and there.
        self.check(unsafe { (self.nccl.broadcast)(from, to, bytes, BYTES, root, self.comm, self.of.lane.stream()) })
    }
}
