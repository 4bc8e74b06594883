//! What buffers a thread really takes and gives back, for tests of what is said on paper.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::ledger::{Entry, Ledger, Purpose};

thread_local! {
    static EVENTS: RefCell<Option<Sender<Event>>> = const { RefCell::new(None) };
}

/// A buffer that came or went.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event {
    Taken { start: usize, size: usize },
    GivenBack { start: usize },
}

pub(super) fn taken(start: usize, size: usize) {
    tell(Event::Taken { start, size });
}

pub(super) fn given_back(start: usize) {
    tell(Event::GivenBack { start });
}

fn tell(event: Event) {
    // A thread that ends drops buffers when this is gone already.
    let _ = EVENTS.try_with(|events| events.borrow().as_ref().map(|events| events.send(event)));
}

/// Runs `f` on a pool of `threads` fresh threads, and enters into a ledger what buffers these took.
pub(crate) fn record(threads: usize, f: impl FnOnce() + Send) -> Ledger {
    let (sender, receiver) = channel();
    let listen = move |_| EVENTS.set(Some(sender.clone()));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).start_handler(listen).build().expect("threads");
    pool.install(f);
    drop(pool);
    enter(&receiver)
}

fn enter(events: &Receiver<Event>) -> Ledger {
    let ledger = Ledger::new();
    let mut entries = HashMap::<usize, Entry>::new();
    for event in events.try_iter() {
        match event {
            Event::Taken { start, size } => {
                entries.insert(start, ledger.take::<u8>(size, Purpose::Activations));
            }
            // One that was there before is none of this run's.
            Event::GivenBack { start } => drop(entries.remove(&start)),
        }
    }
    ledger
}
