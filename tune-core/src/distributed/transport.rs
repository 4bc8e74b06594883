//! What moves bytes between processes.

use crate::Result;

/// Moves bytes between the processes of a group. Each call is a collective: every process makes the same ones in the same
/// order. All else (reductions, shards, waiting) is made of these three by [`Group`](super::Group).
///
/// A group calls it from one thread of its own, on which it was made.
pub trait Transport {
    /// The parts of all processes one behind the other, in the order of their ranks, into `all`; `counts` are their bytes.
    ///
    /// # Errors
    /// Another process is gone, or is in another collective.
    fn all_gather(&mut self, mine: &[u8], counts: &[usize], all: &mut [u8]) -> Result<()>;

    /// From each process the part of its `parts` that is for this one, in the order of their ranks, into `mine`. `for_each` are
    /// the bytes for each process, `from_each` those from each.
    ///
    /// # Errors
    /// As [`Transport::all_gather`].
    fn all_to_all(&mut self, parts: &[u8], for_each: &[usize], mine: &mut [u8], from_each: &[usize]) -> Result<()>;

    /// What the process of rank `root` has in `bytes`, to all.
    ///
    /// # Errors
    /// As [`Transport::all_gather`].
    fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<()>;

    /// What moves bytes between some of these processes, this one among them: those that name the same `color`, in the order of their
    /// ranks. All processes call it at the same time.
    ///
    /// # Errors
    /// As [`Transport::all_gather`].
    fn split(&mut self, color: usize) -> Result<Box<dyn Transport>>;

    /// Tells the others that this process ends in peace, where they would else take it for lost. Called of all processes when they have
    /// come to the end of what they do together.
    fn part(&mut self) {}
}

/// What the communicating thread moves bytes by: between all processes first, then between some of them.
pub(super) struct Transports(pub(super) Vec<Box<dyn Transport>>);

impl Transports {
    pub(super) fn of(&mut self, which: usize) -> &mut dyn Transport {
        &mut *self.0[which]
    }
}

/// Where each of some parts begins that follow each other, and where the last ends.
#[must_use]
pub fn places(counts: &[usize]) -> Vec<usize> {
    std::iter::once(0)
        .chain(counts.iter().scan(0, |end, count| {
            *end += count;
            Some(*end)
        }))
        .collect()
}
