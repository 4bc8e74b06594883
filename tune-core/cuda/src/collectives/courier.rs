//! What processes say to each other where NCCL alone connects them: bytes of the machines' memory go by way of the cards.
//!
//! It has a stream and a communicator of its own, so that a word about a step need not wait for the work of the step before. Pieces of
//! a size that all know go through one buffer of the card's: a tensor of any size takes no more memory there.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys;

use super::lane::Place;
use super::{Call, Communicator, UniqueId};
use crate::buffer::Buffer;
use crate::context::Context;
use crate::error::{Error, Result};

/// Bytes of the card's that pieces leave from, and as many that they come to.
const BUFFER: usize = 8 << 20;
/// Bytes of the card's that a courier takes, with those that are split off it.
pub const COURIER: usize = 2 * BUFFER;
/// How long the card is asked for the end of a piece without a pause.
const EAGER: Duration = Duration::from_micros(50);
/// The pause between two questions after that: the processor is needed by those who compute.
const PAUSE: Duration = Duration::from_micros(50);

/// Moves bytes between the processes of a communicator. Each call is a collective: all make the same ones in the same order. It
/// returns when this process's part is done.
#[derive(Debug)]
pub struct Courier {
    /// Before the buffers: with it what goes on in them ends.
    of: Communicator,
    buffers: Rc<Buffers>,
}

/// Where pieces leave from, and where they come to.
#[derive(Debug)]
struct Buffers {
    out: Buffer<u8>,
    into: Buffer<u8>,
}

/// Where parts begin that follow each other, and where the last ends.
fn places(counts: &[usize]) -> Vec<usize> {
    let mut places = vec![0];
    counts.iter().for_each(|count| places.push(places[places.len() - 1] + count));
    places
}

/// What the piece of this number has of each part, where a piece has at most `most` bytes of each.
fn of_piece(counts: &[usize], number: usize, most: usize) -> Vec<usize> {
    counts.iter().map(|count| count.saturating_sub(number * most).min(most)).collect()
}

impl Courier {
    /// Joins the other processes that have this `id`, as [`Communicator::join`] does.
    ///
    /// # Errors
    /// As there, and no memory on the card.
    pub fn join(context: &Context, id: UniqueId, rank: usize, size: usize, limit: Duration) -> Result<Self> {
        let of = Communicator::join(context, id, rank, size, limit)?;
        let buffers = Rc::new(Buffers { out: context.buffer(BUFFER), into: context.buffer(BUFFER) });
        // Work so far may have had that memory before.
        context.synchronize()?;
        Ok(Self { of, buffers })
    }

    /// That of the processes which name the same `color`, in the order of their ranks here. All are to ask at the same time; `size` says
    /// how many name it, and `rank` how many of these are before this one.
    ///
    /// # Errors
    /// As [`Communicator::split`].
    pub fn split(&self, color: usize, rank: usize, size: usize) -> Result<Self> {
        Ok(Self { of: self.of.split(color, rank, size)?, buffers: Rc::clone(&self.buffers) })
    }

    /// The number of this process.
    pub fn rank(&self) -> usize {
        self.of.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.of.size
    }

    /// The parts of all processes one behind the other, in the order of their ranks, into `all`; `counts` are their bytes.
    ///
    /// # Errors
    /// The context's first error: a process that is lost, a time limit that is over.
    ///
    /// # Panics
    /// If `mine` or `all` are not as long as `counts` says.
    pub fn all_gather(&mut self, mine: &[u8], counts: &[usize], all: &mut [u8]) -> Result<()> {
        let (rank, places, most) = (self.of.rank, places(counts), BUFFER / self.of.size);
        assert!(counts[rank] == mine.len() && places[self.of.size] == all.len(), "all-gather of bytes");
        let pieces = counts.iter().max().map_or(0, |count| count.div_ceil(most));
        for number in 0..pieces {
            let (here, at) = (of_piece(counts, number, most), number * most);
            let (out, into) = (self.buffers.out.address(), self.buffers.into.address());
            let sent = [(out, mine.get(at..at + here[rank]).unwrap_or_default())];
            let got = self.exchange(&sent, here.iter().sum(), |call| call.all_gather(out, into, &here))?;
            let mut got = got.as_slice();
            for (part, count) in here.iter().enumerate().filter(|(_, count)| **count > 0) {
                let (first, rest) = got.split_at(*count);
                all[places[part] + at..][..*count].copy_from_slice(first);
                got = rest;
            }
        }
        Ok(())
    }

    /// From each process the part of its `parts` that is for this one, in the order of their ranks, into `mine`. `for_each` are the bytes
    /// for each process, `from_each` those from each.
    ///
    /// # Errors
    /// As [`Courier::all_gather`].
    ///
    /// # Panics
    /// If `parts` or `mine` are not as long as that says.
    pub fn all_to_all(&mut self, parts: &[u8], for_each: &[usize], mine: &mut [u8], from_each: &[usize]) -> Result<()> {
        let (rank, size, most) = (self.of.rank, self.of.size, BUFFER / self.of.size);
        let (from, to) = (places(for_each), places(from_each));
        assert!(from[size] == parts.len() && to[size] == mine.len(), "all-to-all of bytes");
        mine[to[rank]..to[rank + 1]].copy_from_slice(&parts[from[rank]..from[rank + 1]]);
        let others = |counts: &[usize]| -> Vec<usize> {
            counts.iter().enumerate().map(|(other, count)| if other == rank { 0 } else { *count }).collect()
        };
        // Of two processes both know how much goes from one to the other, and so in how many pieces.
        let (for_each, from_each) = (others(for_each), others(from_each));
        let pieces = for_each.iter().chain(&from_each).max().map_or(0, |count| count.div_ceil(most));
        for number in 0..pieces {
            let (go, come) = (of_piece(&for_each, number, most), of_piece(&from_each, number, most));
            let (out, into, at) = (self.buffers.out.address(), self.buffers.into.address(), number * most);
            let (gone, got) = (places(&go), places(&come));
            let sent: Vec<(u64, &[u8])> = (0..size)
                .filter(|&other| go[other] > 0)
                .map(|other| (out + gone[other] as u64, &parts[from[other] + at..][..go[other]]))
                .collect();
            let received = self.exchange(&sent, got[size], |call| {
                (0..size).try_for_each(|other| {
                    call.send(out + gone[other] as u64, go[other], other)?;
                    call.receive(into + got[other] as u64, come[other], other)
                })
            })?;
            for other in (0..size).filter(|&other| come[other] > 0) {
                mine[to[other] + at..][..come[other]].copy_from_slice(&received[got[other]..got[other + 1]]);
            }
        }
        Ok(())
    }

    /// What the process of rank `root` has in `bytes`, to all.
    ///
    /// # Errors
    /// As [`Courier::all_gather`].
    ///
    /// # Panics
    /// If there is no such process.
    pub fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<()> {
        assert!(root < self.of.size, "broadcast of bytes");
        let (is_root, into) = (root == self.of.rank, self.buffers.into.address());
        for piece in bytes.chunks_mut(BUFFER) {
            let len = piece.len();
            let sent: &[(u64, &[u8])] = if is_root { &[(into, &*piece)] } else { &[] };
            let got =
                self.exchange(sent, if is_root { 0 } else { len }, |call| call.broadcast(into, into, len, root))?;
            if !is_root {
                piece.copy_from_slice(got.as_slice());
            }
        }
        Ok(())
    }

    /// Copies what is `sent` to the card, has NCCL called, and copies so many bytes back from where pieces come to.
    fn exchange(
        &self,
        sent: &[(u64, &[u8])],
        received: usize,
        calls: impl FnOnce(Call<'_>) -> Result<()>,
    ) -> Result<Vec<u8>> {
        let (lane, context) = (&self.of.lane, self.of.lane.context());
        let shared = &context.0;
        context.check()?;
        let no_memory =
            || Error::Failed("the system gives no memory that a card copies to (`ulimit -l` limits it)".into());
        let block = if received > 0 { Some(shared.block(received).ok_or_else(no_memory)?) } else { None };
        let done = lane.queue_apart(
            || "exchange of what processes say to each other".to_owned(),
            || {
                sent.iter().filter(|(_, bytes)| !bytes.is_empty()).for_each(|(to, bytes)| {
                    shared.stage(*to, bytes, lane.stream());
                });
                self.of.grouped(calls)?;
                if let Some(block) = &block {
                    shared.run("copying from the card", || {
                        let (to, from) = (block.address().cast(), self.buffers.into.address());
                        // SAFETY: both have so many bytes; the block is not read before the copy is done.
                        unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, received, lane.stream()) }
                    });
                }
                context.check()
            },
        );
        // Where that fails, the card may write to the block still: it is nobody's any more.
        done.map_or_else(|| context.check(), |done| wait(context, &done))?;
        let Some(block) = block else { return Ok(Vec::new()) };
        // SAFETY: the block is as long, and the copy into it is done.
        let got = unsafe { std::slice::from_raw_parts(block.address().cast_const(), received) }.to_vec();
        shared.give_block(block);
        Ok(got)
    }
}

/// Waits until a place is passed. Who watches the stream ends it if that takes too long.
fn wait(context: &Context, place: &Arc<Place>) -> Result<()> {
    let begun = Instant::now();
    loop {
        // In this order: what was ended is passed, too.
        let is_passed = place.is_passed();
        context.check()?;
        if is_passed {
            return Ok(());
        }
        match begun.elapsed() < EAGER {
            true => std::thread::yield_now(),
            false => std::thread::sleep(PAUSE),
        }
    }
}
