//! One run on many processes.
//!
//! A [`Group`] is the processes that train together, and what they do together: collectives, each of which can go on while its
//! caller computes. Bytes are moved by a [`Transport`]; sums are made here, in the order of ranks, so that their bits depend on the
//! number of processes alone. With one process nothing here does anything. A [`Mesh`] says who divides a model with whom, and who has the same
//! part of it.

mod cards;
mod group;
mod launched;
mod mesh;
pub mod threads;
mod transport;

use std::cell::RefCell;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use group::WeakGroup;
pub(crate) use group::others_failed;
pub use group::{Group, Pending, Place, Spent};
use launched::Launched;
pub use mesh::{Layout, Mesh, MeshKeys};
pub use transport::{Transport, places};

use crate::{Error, Result};

/// Joins the processes that were started together, and says who this one is.
pub type Connect = fn() -> Result<(Box<dyn Transport>, Place)>;

/// What this program connects processes by.
static CONNECT: OnceLock<Connect> = OnceLock::new();

/// The group that this process has joined.
static JOINED: Mutex<WeakGroup> = Mutex::new(WeakGroup::new());

thread_local! {
    /// The group of a thread that stands for a process.
    static OF_THREAD: RefCell<Option<Group>> = const { RefCell::new(None) };
}

/// How long a collective is waited for, unless [`group::LIMIT`] says so.
const LIMIT: Duration = Duration::from_secs(600);

/// Has [`init_process_group`] connect processes by `connect`: what was named first stays.
pub fn connect_by(connect: Connect) {
    let _ = CONNECT.set(connect);
}

/// The group that this process belongs to: itself alone, before [`init_process_group`] and without others to join.
#[must_use]
pub fn current() -> Group {
    let joined = || JOINED.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
    OF_THREAD.with_borrow(Clone::clone).or_else(joined).unwrap_or_default()
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

/// Joins the other processes of the run, as long as what is returned lives. A run of one process has nobody to join. The processor's threads are
/// divided among the processes of a machine, and all but one of them keep the standard output to themselves.
///
/// # Errors
/// Processes that were started by what this program cannot communicate through, and a time limit that is no number.
pub fn init_process_group() -> Result<Group> {
    let there = current();
    if !there.is_single() {
        return Ok(there);
    }
    let Some(launched) = Launched::of(&|name| std::env::var(name).ok())? else { return Ok(Group::single()) };
    let group = join(&launched, limit(std::env::var(group::LIMIT).ok().as_deref())?)?;
    *JOINED.lock().unwrap_or_else(PoisonError::into_inner) = group.downgrade();
    tune_config::output::as_rank(group.rank());
    launched::divide_threads(group.place());
    Ok(group)
}

fn limit(said: Option<&str>) -> Result<Duration> {
    let Some(said) = said else { return Ok(LIMIT) };
    match said.parse::<u64>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(Error::setup(format!("{}={said}: a number of seconds was expected", group::LIMIT))),
    }
}

fn join(launched: &Launched, limit: Duration) -> Result<Group> {
    if let Some(&connect) = CONNECT.get() {
        return Group::join(limit, connect);
    }
    Err(Error::setup(format!(
        "{} started {} processes, and this program was built without MPI, by which they would communicate: build it with \
         `cargo build --release -p recipes --features mpi` (a system MPI is needed: on Debian `apt-get install libopenmpi-dev \
         openmpi-bin libclang-dev`), or start one process",
        launched.by, launched.processes
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_is_a_number_of_seconds() {
        assert_eq!(limit(None).unwrap(), LIMIT);
        assert_eq!(limit(Some("7")).unwrap(), Duration::from_secs(7));
        for wrong in ["0", "-1", "7s", ""] {
            assert!(limit(Some(wrong)).unwrap_err().to_string().contains("a number of seconds"), "{wrong}");
        }
    }
}
