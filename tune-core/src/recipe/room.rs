//! A disk that is full: the run waits for room.

use std::time::{Duration, Instant};

use crate::checkpoint::may_pass;
use crate::metrics::Console;
use crate::{Error, Result};

use super::check_stop;

/// How long a run waits, unless [`VARIABLE`] says so. Unit tests do not: what waiting is like, `tests/stopping.rs` shows.
const LONGEST: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 600 });
/// Seconds to wait for room; 0 does not wait.
const VARIABLE: &str = "TUNE_WAIT_FOR_ROOM";
/// Between two attempts, at most.
const PAUSE: Duration = Duration::from_secs(20);

/// Does what may find the disk full, again and again until it is done or there is still no room after a while; whoever
/// sees the console may make room meanwhile.
///
/// # Errors
/// As the attempt, where room does not help, does not come, or the run is asked to end.
pub(crate) fn wait_for_room<T>(console: &mut Console, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let longest = longest();
    let mut pause = Duration::from_millis(500);
    let mut told = false;
    loop {
        let error = match attempt() {
            Err(error) if may_pass(&error) && begun.elapsed() < longest && check_stop().is_ok() => error,
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
        let until = Instant::now() + pause.min(longest.saturating_sub(begun.elapsed()));
        while Instant::now() < until && check_stop().is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
        pause = (pause * 2).min(PAUSE);
    }
}

fn waiting(error: &Error, longest: Duration) -> String {
    let error = error.to_string();
    let seconds = longest.as_secs();
    let time = if seconds < 120 { format!("{seconds} seconds") } else { format!("{} minutes", seconds / 60) };
    format!("{error}. The run waits up to {time} for room ({VARIABLE}=SECONDS in the environment changes that)")
}

fn longest() -> Duration {
    let seconds = std::env::var(VARIABLE).ok().and_then(|text| text.trim().parse().ok());
    seconds.map_or(LONGEST, Duration::from_secs)
}
