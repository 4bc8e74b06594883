//! One run on many processes.
//!
//! A [`Group`] is the processes that train together, and what they do together: collectives, each of which can go on while its
//! caller computes. Bytes are moved by a [`Transport`]; sums are made here, in the order of ranks, so that their bits depend on the
//! number of processes alone. With one process nothing here does anything. A [`Mesh`] says who divides a model with whom, and who has the same
//! part of it. MPI connects processes where the program has it and started them; else NCCL does, by a card of each, and they find each
//! other by TCP (`rendezvous`).

mod by_cards;
mod cards;
mod group;
mod launched;
mod mesh;
mod rendezvous;
pub mod threads;
mod transport;

use std::cell::RefCell;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use group::WeakGroup;
pub(crate) use group::others_failed;
pub use group::{Group, Pending, Place, Spent};
use launched::Launched;
pub use launched::RUN_ID;
pub use mesh::{Layout, Mesh, MeshKeys};
use rendezvous::Meeting;
pub use transport::{Transport, places};

use crate::{Error, Result, environment};

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
/// Processes that were started by what this program cannot communicate through, and variables of the environment that cannot be read
/// ([`environment::check`]). Without MPI, what
/// is missing for cards to connect them, and others that do not come.
pub fn init_process_group() -> Result<Group> {
    let there = current();
    if !there.is_single() {
        return Ok(there);
    }
    environment::check()?;
    let variable = |name: &str| std::env::var(name).ok();
    let Some(launched) = Launched::of(&variable)? else { return Ok(Group::single()) };
    // So that what goes wrong from here on says whose it is.
    launched.rank.iter().for_each(|rank| tune_config::output::as_rank(*rank));
    let limit = limit(variable(group::LIMIT).as_deref())?;
    let group = match CONNECT.get() {
        Some(&connect) if launched.by_mpi => Group::join(limit, connect)?,
        _ => join_by_cards(&launched, &variable, limit)?,
    };
    *JOINED.lock().unwrap_or_else(PoisonError::into_inner) = group.downgrade();
    tune_config::output::as_rank(group.rank());
    launched::divide_threads(group.place())?;
    Ok(group)
}

fn limit(said: Option<&str>) -> Result<Duration> {
    let Some(said) = said else { return Ok(LIMIT) };
    match said.parse::<u64>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err(environment::refused(group::LIMIT, said, "a number of seconds was expected")),
    }
}

/// Joins others by a card of each, at a place that the environment names.
fn join_by_cards(launched: &Launched, variable: &dyn Fn(&str) -> Option<String>, limit: Duration) -> Result<Group> {
    let Launched { by, processes, .. } = *launched;
    match Meeting::of(variable)? {
        Some(meeting) => by_cards::join(launched, &meeting, limit),
        None if launched.by_mpi => Err(Error::setup(format!(
            "{by} started {processes} processes, and this program was built without MPI, by which they would communicate: build it with \
             `cargo build --release -p recipes --features mpi` (a system MPI is needed: on Debian `apt-get install libopenmpi-dev \
             openmpi-bin libclang-dev`), or start one process. If each has an NVIDIA card, MPI is not needed: set MASTER_ADDR to the \
             machine of the first process and MASTER_PORT to a free port of it"
        ))),
        None => Err(Error::setup(format!(
            "RANK and WORLD_SIZE={processes} say that there are {processes} processes, and MASTER_ADDR and MASTER_PORT do not say where \
             they meet: torchrun sets all of them; or MPI starts and connects them: `tune run --nproc-per-node {processes} RECIPE ...` \
             or `mpirun -n {processes} PROGRAM ...`"
        ))),
    }
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
