//! Where processes find each other that MPI does not connect: at an address that all have been told, by TCP.
//!
//! Rank 0 listens, the others come and say who they are. When all are there, each is told what NCCL connects their cards by. No
//! tensor passes here. The connections stay: by them each process learns at once that another one has ended ([`lines`]).
//!
//! torchrun's own store often listens at `MASTER_PORT` itself, so rank 0 takes the next port that is free, and the others ask one after
//! the other. Whoever is not of this run is told so, and comes to nothing.

mod guest;
mod host;
mod lines;
mod message;
#[cfg(test)]
mod tests;

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

pub(super) use lines::{Line, Lines};
pub(super) use message::Hello;

use super::group::LIMIT;
use super::launched::{Launched, RUN_ID};
use crate::{Error, Result};

/// How many ports behind `MASTER_PORT` rank 0 may take.
const MORE_PORTS: u16 = 8;
/// How long a process that cannot go on looks for the others, to tell them.
const TO_TELL: Duration = Duration::from_secs(10);

/// An address that all processes of a run have been told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meeting {
    host: String,
    port: u16,
    /// Whether another program listens at the port: torchrun says so.
    is_taken: bool,
    /// What tells this run from others that may meet here.
    run: String,
}

/// What a process knows when all have met.
pub(super) struct Met {
    /// Its number among those of its machine, and how many these are.
    pub(super) local: (usize, usize),
    /// What NCCL connects the cards by.
    pub(super) id: Vec<u8>,
    /// The others, by rank: of rank 0 all, of each other one rank 0.
    pub(super) lines: Vec<Line>,
}

impl Meeting {
    /// What the environment says; `None` without `MASTER_ADDR`.
    ///
    /// # Errors
    /// A port that is missing or no number.
    pub(super) fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let Some(host) = variable("MASTER_ADDR").filter(|host| !host.trim().is_empty()) else { return Ok(None) };
        // As it is written in addresses.
        let host = host.trim().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match variable("MASTER_PORT") {
            None => {
                return Err(Error::setup(format!(
                    "MASTER_ADDR={host} is set and MASTER_PORT is not: set it to a port of that machine that is free, the same \
                     in all processes"
                )));
            }
            Some(port) => match port.trim().parse::<u16>() {
                Ok(port) if port > 0 => port,
                _ => return Err(Error::setup(format!("MASTER_PORT={port}: a port was expected, from 1 to 65535"))),
            },
        };
        let parts = [RUN_ID, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID"]
            .map(|name| variable(name).unwrap_or_default());
        let is_taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|said| said.eq_ignore_ascii_case("true"));
        Ok(Some(Self { host, port, is_taken, run: format!("{port} {}", parts.join(" ")) }))
    }

    /// The ports where rank 0 may listen, in the order in which it tries them.
    fn ports(&self) -> impl Iterator<Item = u16> {
        let first = self.port.saturating_add(u16::from(self.is_taken));
        first..=self.port.saturating_add(MORE_PORTS)
    }

    /// How the place is named in messages.
    fn shown(&self) -> String {
        let (Self { host, port, .. }, last) = (self, self.port.saturating_add(MORE_PORTS));
        match host.contains(':') {
            true => format!("[{host}], ports {port} to {last}"),
            false => format!("{host}, ports {port} to {last}"),
        }
    }

    /// The addresses of the host, with each of these ports.
    fn addresses(&self, port: u16) -> Result<Vec<SocketAddr>> {
        let found = (self.host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        let why = match found {
            Ok(found) if !found.is_empty() => return Ok(found),
            Ok(_) => "it has no address".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(Error::setup(format!(
            "MASTER_ADDR={}: {why}; it is to be the name or the address of the machine of rank 0, as all others see it",
            self.host
        )))
    }
}

/// Meets the other processes of a run. `make_id` makes what NCCL connects cards by, and is called by rank 0 when all are there. Nobody is
/// waited for longer than `limit`.
///
/// # Errors
/// Processes that do not come, with their ranks; what one of them says it cannot go on for; a place that cannot be reached or listened at;
/// a rank that is there twice; cards that are.
pub(super) fn meet(
    meeting: &Meeting,
    me: &Hello,
    limit: Duration,
    make_id: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Met> {
    match me.rank {
        0 => host::receive(meeting, me, limit, make_id),
        _ => guest::join(meeting, me, limit),
    }
}

impl Hello {
    /// What a process says of itself that was started so.
    ///
    /// # Errors
    /// A launcher that does not say which of the processes this is.
    pub(super) fn of(launched: &Launched, run: &Meeting) -> Result<Self> {
        let Launched { by, processes, rank, local, .. } = *launched;
        match rank {
            Some(rank) if rank < processes => Ok(Self {
                run: run.run.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                world_size: processes,
                rank,
                local,
                machine: machine(),
                card: String::new(),
                problem: None,
            }),
            Some(rank) => Err(Error::setup(format!(
                "{by}: RANK={rank} of WORLD_SIZE={processes}: ranks are counted from 0 to {}",
                processes - 1
            ))),
            None => Err(Error::setup(format!(
                "{by} started {processes} processes, and does not say to this one which it is"
            ))),
        }
    }
}

/// What tells this machine from others: its name.
#[cfg(unix)]
fn machine() -> String {
    let mut name = [0u8; 256];
    // SAFETY: writes at most so many bytes.
    let found = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) } == 0;
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    if found { String::from_utf8_lossy(&name[..len]).into_owned() } else { String::new() }
}

#[cfg(not(unix))]
fn machine() -> String {
    std::env::var("COMPUTERNAME").unwrap_or_default()
}

/// Which of these ranks are named, in words.
fn named(ranks: &[usize]) -> String {
    let all: Vec<String> = ranks.iter().map(ToString::to_string).collect();
    match all.split_last() {
        Some((last, [])) => format!("rank {last}"),
        Some((last, others)) => format!("ranks {} and {last}", others.join(", ")),
        None => "no rank".to_owned(),
    }
}

/// What is said of a time limit.
fn longer() -> String {
    format!("A longer limit is set by {LIMIT} (seconds)")
}
