//! One run on many processes.
//!
//! A [`Group`] is the processes that train together, and what they do together: collectives, each of which can go on while its
//! caller computes. Bytes are moved by a [`Transport`]; sums are made here, in the order of ranks, so that their bits depend on the
//! number of processes alone. With one process nothing here does anything.

mod group;
pub mod threads;
mod transport;

use std::cell::RefCell;
use std::sync::OnceLock;

pub use group::{Group, Pending, Place};
pub use transport::Transport;

use crate::Result;

/// The group that this process has joined.
static JOINED: OnceLock<Group> = OnceLock::new();

thread_local! {
    /// The group of a thread that stands for a process.
    static OF_THREAD: RefCell<Option<Group>> = const { RefCell::new(None) };
}

/// The group that this process belongs to: itself alone, before [`init_process_group`] and without others to join.
#[must_use]
pub fn current() -> Group {
    let of_thread = OF_THREAD.with_borrow(Clone::clone);
    of_thread.or_else(|| JOINED.get().cloned()).unwrap_or_default()
}

/// Calls `f` on a thread that stands for a process of `group`.
fn as_current<R>(group: &Group, f: impl FnOnce() -> R) -> R {
    struct Reset(Option<Group>);
    impl Drop for Reset {
        fn drop(&mut self) {
            OF_THREAD.set(self.0.take());
        }
    }
    let _reset = Reset(OF_THREAD.replace(Some(group.clone())));
    f()
}

/// Joins the other processes of the run. A run of one process has nobody to join.
///
/// # Errors
/// None yet; joining others can fail.
pub fn init_process_group() -> Result<Group> {
    Ok(JOINED.get_or_init(Group::single).clone())
}
