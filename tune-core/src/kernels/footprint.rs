//! What kernels take of the arena besides the buffers of their callers, on paper.
//!
//! Each kernel that takes buffers has a function beside it (`footprint.rs`) that takes the same ones, of the same
//! sizes and in the same order, from a [`Ledger`].

use std::cell::{Cell, RefCell};

use super::isa::Isa;
use super::ledger::{Entry, Ledger, Purpose};

/// A processor on paper: where kernels account for their buffers.
pub(crate) struct Paper {
    pub(crate) ledger: Ledger,
    pub(super) isa: Isa,
    /// Threads that compute.
    pub(super) threads: usize,
    /// What each thread keeps from one product to the next.
    scratch: RefCell<Vec<Scratch>>,
    purpose: Cell<Purpose>,
}

/// See `SCRATCH` in `gemm/stripe.rs`: as many f32 as were ever asked for.
#[derive(Default)]
struct Scratch {
    packed: Option<(usize, Entry)>,
    sums: Option<(usize, Entry)>,
}

impl Paper {
    /// This processor, with so many threads.
    pub(crate) fn new(threads: usize) -> Self {
        let threads = threads.max(1);
        Self {
            ledger: Ledger::new(),
            isa: Isa::get(),
            threads,
            scratch: RefCell::new((0..threads).map(|_| Scratch::default()).collect()),
            purpose: Cell::new(Purpose::Activations),
        }
    }

    /// A buffer of `len` elements.
    pub(crate) fn buffer<T>(&self, len: usize) -> Entry {
        self.ledger.take::<T>(len, self.purpose.get())
    }

    /// A parameter's gradient of `len` elements.
    pub(crate) fn gradient(&self, len: usize) -> Entry {
        self.ledger.take::<f32>(len, Purpose::Gradients)
    }

    /// Accounts what `f` takes to `purpose`.
    pub(crate) fn accounting<R>(&self, purpose: Purpose, f: impl FnOnce() -> R) -> R {
        let before = self.purpose.replace(purpose);
        let result = f();
        self.purpose.set(before);
        result
    }

    /// So many threads have scratch of these lengths from now on.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn scratch(&self, threads: usize, packed: usize, sums: usize) {
        let grow = |slot: &mut Option<(usize, Entry)>, len: usize| {
            if slot.as_ref().is_none_or(|(there, _)| *there < len) {
                *slot = None;
                *slot = Some((len, self.ledger.take::<f32>(len, Purpose::Activations)));
            }
        };
        for scratch in self.scratch.borrow_mut().iter_mut().take(threads) {
            grow(&mut scratch.packed, packed);
            grow(&mut scratch.sums, sums);
        }
    }
}
