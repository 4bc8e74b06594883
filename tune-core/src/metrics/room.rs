//! A disk that is full: the run waits for room.

use std::time::{Duration, Instant};

use tune_config::cli::signals;

use super::Console;
use crate::environment::{WAIT_FOR_ROOM, seconds_to_wait};
use crate::{Error, Result};

/// How long a run waits, unless [`WAIT_FOR_ROOM`] says so. Unit tests do not: what waiting is like, `tests/stopping.rs` shows.
const LONGEST: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 600 });
/// Between the first two attempts; it doubles from attempt to attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Between two attempts, at most.
const PAUSE: Duration = Duration::from_secs(20);

/// Does what may find the disk full, again and again until it is done or there is still no room after a while; whoever
/// sees the console may make room meanwhile.
///
/// # Errors
/// As the attempt, where room does not help, does not come, or the run is asked to end; a [`WAIT_FOR_ROOM`] that is no number, which
/// [`environment::check`](crate::environment::check) has refused before.
pub(crate) fn wait_for_room<T>(console: &mut Console, attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let longest = seconds_to_wait()?.map_or(LONGEST, Duration::from_secs);
    wait(console, longest, &mut Since(Instant::now()), attempt)
}

/// The time that a run waits in.
trait Clock {
    /// How long the run has waited.
    fn elapsed(&self) -> Duration;
    /// Lets so much time pass, less if the run is asked to end.
    fn pause(&mut self, time: Duration);
    /// Whether the run is asked to end.
    fn is_stopped(&self) -> bool;
}

fn wait<T>(
    console: &mut Console,
    longest: Duration,
    clock: &mut impl Clock,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut pause = FIRST_PAUSE;
    let mut told = false;
    loop {
        let error = match attempt() {
            Err(error) if error.may_pass() && clock.elapsed() < longest && !clock.is_stopped() => error,
            result => {
                if told && result.is_ok() {
                    console.note("There is room again: the run goes on");
                }
                return result;
            }
        };
        if !told {
            told = true;
            console.warn(&waiting(&error, longest));
        }
        clock.pause(pause.min(longest.saturating_sub(clock.elapsed())));
        pause = (pause * 2).min(PAUSE);
    }
}

fn waiting(error: &Error, longest: Duration) -> String {
    let error = error.to_string();
    let time = match longest.as_secs() {
        1 => "1 second".to_owned(),
        seconds if seconds < 120 => format!("{seconds} seconds"),
        seconds => format!("{} minutes", seconds / 60),
    };
    format!("{error}. The run waits up to {time} for room ({WAIT_FOR_ROOM}=SECONDS in the environment changes that)")
}

/// The time since a moment.
struct Since(Instant);

impl Clock for Since {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    fn pause(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.is_stopped() {
            std::thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
        }
    }

    fn is_stopped(&self) -> bool {
        signals::requested().is_some()
    }
}

#[cfg(test)]
#[path = "room_tests.rs"]
mod tests;
