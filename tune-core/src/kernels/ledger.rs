//! The arena of [`super::buffers`] on paper, or the memory of a card: what a sequence of buffers would touch, without any memory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::rc::Rc;

use super::buffers::{self, Arena, HUGE, Source};

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// What the forward pass makes and the backward pass needs, and what either needs on the way.
    Activations,
    /// Gradients of parameters.
    Gradients,
    /// The last norm, the output layer and the loss.
    Output,
    /// The state of an optimizer, which stays. On the processor it is elsewhere.
    State,
    /// Parameters of which this process has some rows, gathered for a while.
    Gathered,
}

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct InUse {
    pub(crate) activations: u64,
    pub(crate) gradients: u64,
    pub(crate) output: u64,
    pub(crate) state: u64,
    pub(crate) gathered: u64,
}

impl InUse {
    pub(crate) fn total(&self) -> u64 {
        self.activations + self.gradients + self.output + self.state + self.gathered
    }

    fn of(&mut self, purpose: Purpose) -> &mut u64 {
        match purpose {
            Purpose::Activations => &mut self.activations,
            Purpose::Gradients => &mut self.gradients,
            Purpose::Output => &mut self.output,
            Purpose::State => &mut self.state,
            Purpose::Gathered => &mut self.gathered,
        }
    }
}

/// An arena whose memory is made up. It places buffers by the arithmetic of the real one, and keeps account of
/// the bytes that were ever part of a buffer: what was written to once stays with the process.
#[derive(Clone)]
pub(crate) struct Ledger(Rc<RefCell<Book>>);

struct Book {
    memory: Memory,
    /// Stretches that were part of a buffer: beginnings and ends. They neither overlap nor meet.
    touched: BTreeMap<usize, usize>,
    in_use: InUse,
    /// What was in use when it was most.
    worst: InUse,
}

/// Who places buffers.
enum Memory {
    Processor(Arena<MadeUp>),
    /// With what recorded work has for itself, and whether buffers are taken from that.
    Card(tune_cuda::Ranges, Option<tune_cuda::Pool>, bool),
}

/// Addresses from the top down, as a system gives them.
struct MadeUp {
    next: usize,
    /// The bytes that were asked for, with what it takes to begin at a page.
    asked: u64,
}

impl Source for MadeUp {
    fn grow(&mut self, size: usize) -> (usize, usize) {
        let size = buffers::slab(size);
        // Two pieces never meet: they would become one, which those of the system do not.
        self.next = (self.next - size - 1) / HUGE * HUGE;
        self.asked += (size + HUGE) as u64;
        (self.next, size)
    }
}

impl Ledger {
    /// That of the processor.
    pub(crate) fn new() -> Self {
        Self::of(Memory::Processor(Arena::new(MadeUp { next: usize::MAX / 2, asked: 0 })))
    }

    /// That of a card.
    pub(crate) fn of_card() -> Self {
        Self::of(Memory::Card(tune_cuda::Ranges::default(), None, false))
    }

    fn of(memory: Memory) -> Self {
        Self(Rc::new(RefCell::new(Book {
            memory,
            touched: BTreeMap::new(),
            in_use: InUse::default(),
            worst: InUse::default(),
        })))
    }

    /// A buffer of `len` elements; it goes back when the entry is dropped.
    pub(crate) fn take<T>(&self, len: usize, purpose: Purpose) -> Entry {
        let mut book = self.0.borrow_mut();
        let (start, size, kept) = match &mut book.memory {
            Memory::Processor(arena) => {
                let size = buffers::bytes::<T>(len);
                (if size == 0 { 0 } else { arena.take(size) }, size, false)
            }
            Memory::Card(ranges, pool, kept) => {
                let size = tune_cuda::Ranges::rounded((len * size_of::<T>()) as u64);
                let from_pool = if *kept { pool.as_mut() } else { None };
                let taken = from_pool.map(|pool| pool.take(size, |size| Ok::<_, Infallible>(ranges.take(size))));
                (taken.map_or_else(|| ranges.take(size), |Ok(at)| at) as usize, size as usize, *kept)
            }
        };
        book.touch(start, size);
        *book.in_use.of(purpose) += size as u64;
        if book.in_use.total() > book.worst.total() {
            book.worst = book.in_use;
        }
        Entry { ledger: self.clone(), start, size, purpose, kept }
    }

    /// Does work as a card does that will be recorded: in memory of its own, which [`Ledger::forget_kept`] gives back. On the processor
    /// nothing is recorded.
    pub(crate) fn keeping<R>(&self, work: impl FnOnce() -> R) -> R {
        self.keeps(true);
        let result = work();
        self.keeps(false);
        result
    }

    /// Whether memory is taken from what is kept.
    pub(crate) fn is_keeping(&self) -> bool {
        matches!(self.0.borrow().memory, Memory::Card(_, _, true))
    }

    fn keeps(&self, yes: bool) {
        if let Memory::Card(_, pool, kept) = &mut self.0.borrow_mut().memory {
            *kept = yes;
            pool.get_or_insert_default();
        }
    }

    /// What was recorded is forgotten, whose buffers are gone.
    pub(crate) fn forget_kept(&self) {
        if let Memory::Card(ranges, pool, _) = &mut self.0.borrow_mut().memory {
            let given = pool.take().into_iter().flat_map(tune_cuda::Pool::into_given);
            given.for_each(|(at, bytes)| ranges.give(at, bytes));
        }
    }

    /// Bytes that were ever touched, in whole pages of `page` bytes.
    pub(crate) fn touched(&self, page: usize) -> u64 {
        let (mut pages, mut end) = (0, 0);
        for (&start, &stop) in &self.0.borrow().touched {
            let first = (start / page).max(end);
            end = stop.div_ceil(page);
            pages += end.saturating_sub(first);
        }
        pages as u64 * page as u64
    }

    /// Bytes of addresses that the arena takes, be they touched or not.
    pub(crate) fn asked(&self) -> u64 {
        match &self.0.borrow().memory {
            Memory::Processor(arena) => arena.source().asked,
            Memory::Card(ranges, ..) => ranges.end(),
        }
    }

    /// What was in use at the most demanding moment.
    pub(crate) fn worst(&self) -> InUse {
        self.0.borrow().worst
    }
}

impl Book {
    fn touch(&mut self, mut start: usize, size: usize) {
        if size == 0 {
            return;
        }
        let mut end = start + size;
        while let Some((&from, &to)) = self.touched.range(..=end).next_back()
            && to >= start
        {
            self.touched.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.touched.insert(start, end);
    }
}

/// A buffer on paper.
pub(crate) struct Entry {
    ledger: Ledger,
    start: usize,
    size: usize,
    purpose: Purpose,
    /// Whether it is of the memory of recorded work.
    kept: bool,
}

impl Entry {
    /// Another buffer of this many bytes.
    pub(crate) fn of_size(&self, size: usize, purpose: Purpose) -> Self {
        self.ledger.take::<u8>(size, purpose)
    }

    /// Its bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.size > 0 {
            let mut book = self.ledger.0.borrow_mut();
            match &mut book.memory {
                Memory::Processor(arena) => arena.give_back(self.start, self.size),
                Memory::Card(ranges, pool, _) => match pool.as_mut().filter(|_| self.kept) {
                    Some(pool) => pool.give(self.start as u64, self.size as u64),
                    None => ranges.give(self.start as u64, self.size as u64),
                },
            }
            *book.in_use.of(self.purpose) -= self.size as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_was_touched_stays_and_is_used_again() {
        let ledger = Ledger::new();
        let take = |mib: usize| ledger.take::<u8>(mib * MIB, Purpose::Activations);
        let (a, b) = (take(3), take(5));
        drop(a);
        // Fits where the first was.
        let c = take(2);
        assert_eq!(ledger.touched(1), 8 << 20);
        assert_eq!(ledger.worst().total(), 8 << 20);
        drop((b, c));
        let _all = take(9);
        assert_eq!(ledger.touched(1), 9 << 20);
    }

    #[test]
    fn pages_are_counted_once() {
        let ledger = Ledger::new();
        let _small = [1, 2, 3].map(|_| ledger.take::<f32>(1, Purpose::Output));
        assert_eq!(ledger.touched(1), 3 * 64);
        assert_eq!(ledger.touched(HUGE), HUGE as u64);
        // A piece of its own, larger than what the system is asked for at once.
        let _large = ledger.take::<u8>(300 * MIB, Purpose::Output);
        assert_eq!(ledger.touched(HUGE), (HUGE + 300 * MIB) as u64);
        assert_eq!(ledger.asked(), (buffers::slab(1) + buffers::slab(300 * MIB) + 2 * HUGE) as u64);
    }

    /// What work that is recorded has had stays its own until it is forgotten, and no buffer of others is put there.
    #[test]
    fn what_is_recorded_has_memory_of_its_own() {
        let ledger = Ledger::of_card();
        let take = |kib: usize| ledger.take::<u8>(kib << 10, Purpose::Activations);
        let step = || {
            let (a, b) = (take(4), take(2));
            drop(a);
            drop((b, take(3)));
        };
        ledger.keeping(step);
        ledger.keeping(step);
        assert_eq!(ledger.asked(), 6 << 10);
        drop(take(6));
        assert_eq!(ledger.asked(), 12 << 10);
        ledger.forget_kept();
        let _other = take(12);
        assert_eq!(ledger.asked(), 12 << 10);
    }
}
