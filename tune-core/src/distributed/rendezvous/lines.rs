//! The connections to other processes after all have met: whoever ends without a word is lost, and all learn of it.
//!
//! Rank 0 has one to each other process, which has one to rank 0 alone. A process that ends in peace says so before; one whose connection
//! is closed, or that has said nothing for nearly as long as a collective may take, is lost.

use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::message::{Inbox, Message, send};
use crate::{Error, Result};

/// How often it is looked what others say.
const LOOK: Duration = Duration::from_millis(50);
/// How often each says that it is there, at least.
const BEAT: Duration = Duration::from_secs(2);
/// How long the others are waited for at the end, where all have done what they do together.
const LAST: Duration = Duration::from_secs(10);

/// A connection to a process.
pub(in crate::distributed) struct Line {
    rank: usize,
    stream: TcpStream,
    inbox: Inbox,
    heard: Instant,
    /// Whether it is at the end, too.
    parted: bool,
}

impl Line {
    /// A connection that does not wait, and what has come of it.
    pub(super) fn new(rank: usize, stream: TcpStream, inbox: Inbox) -> Self {
        Self { rank, stream, inbox, heard: Instant::now(), parted: false }
    }
}

/// All of a process's connections, which a thread watches. Dropped before they have parted, the others take this process for lost.
pub(in crate::distributed) struct Lines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whether this process is at the end.
    parts: bool,
    /// Whether nobody watches any more.
    over: bool,
    /// Whether the connections are to be closed.
    closes: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    /// Watches the connections of a process. `lost` is called with what to say of a process that is lost, once. `limit` is how long a
    /// collective may take.
    ///
    /// # Errors
    /// No thread can be started.
    pub(in crate::distributed) fn watch(
        lines: Vec<Line>,
        limit: Duration,
        lost: impl FnOnce(&str) + Send + 'static,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        let watch = move || {
            let mut watch = Watch { lines, limit, told: Instant::now(), said_parted: false };
            let why = watch.run(&watched);
            if let Some(why) = why {
                // The others first: what this process does of it may take a while.
                watch.tell(&Message::Lost(why.clone()));
                lost(&why);
            }
            watched.state().over = true;
            watched.changed.notify_all();
        };
        std::thread::Builder::new()
            .name("lines".to_owned())
            .spawn(watch)
            .map_err(|e| Error::setup(format!("cannot start a thread: {e}")))?;
        Ok(Self(shared))
    }

    /// Parts from the others, which all have come to the end of what they do together: waits for them, but not for long.
    pub(in crate::distributed) fn part(&self) {
        let mut state = self.0.state();
        state.parts = true;
        let _over = self.0.changed.wait_timeout_while(state, LAST, |state| !state.over);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.0.state().closes = true;
    }
}

/// What the thread has.
struct Watch {
    lines: Vec<Line>,
    limit: Duration,
    /// When this process has last said that it is there.
    told: Instant,
    /// Whether it has said that it is at the end.
    said_parted: bool,
}

impl Watch {
    /// Watches until all part, or one is lost: returned is what to say of that.
    fn run(&mut self, shared: &Shared) -> Option<String> {
        // Where waiting is to be short, so is silence.
        let (beat, silence) = (BEAT.min(self.limit / 20), self.limit / 10 * 9);
        loop {
            let (parts, closes) = {
                let state = shared.state();
                (state.parts, state.closes)
            };
            if closes {
                return None;
            }
            for line in &mut self.lines {
                if let Some(why) = line.look(silence) {
                    return Some(why);
                }
            }
            let is_main = self.lines.iter().all(|line| line.rank > 0);
            let all_parted = self.lines.iter().all(|line| line.parted);
            // Rank 0 says it when all others have.
            if parts && !self.said_parted && (!is_main || all_parted) {
                self.tell(&Message::Parted);
                self.said_parted = true;
            }
            if self.said_parted && all_parted {
                return None;
            }
            if self.told.elapsed() >= beat {
                self.tell(&Message::Alive);
                self.told = Instant::now();
            }
            std::thread::sleep(LOOK.min(beat));
        }
    }

    /// Says something to all. Who does not hear it is found out by what comes from there.
    fn tell(&mut self, message: &Message) {
        for line in &mut self.lines {
            _ = send(&mut line.stream, message);
        }
    }
}

impl Line {
    /// What has come; why the process is lost, if it is.
    fn look(&mut self, silence: Duration) -> Option<String> {
        let rank = self.rank;
        loop {
            match self.inbox.next(&mut self.stream) {
                Ok(Some(Message::Lost(why))) => return Some(why),
                Ok(Some(message)) => {
                    self.parted |= message == Message::Parted;
                    self.heard = Instant::now();
                }
                Ok(None) => break,
                Err(_) if self.parted => return None,
                Err(_) => {
                    return Some(format!("rank {rank} has ended: its own log, or the standard error, says why"));
                }
            }
        }
        (!self.parted && self.heard.elapsed() > silence).then(|| {
            let seconds = silence.as_secs();
            format!("rank {rank} has said nothing for {seconds} s: it was stopped, or its machine cannot be reached")
        })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // What was said last is still sent.
        _ = self.stream.shutdown(Shutdown::Write);
    }
}
