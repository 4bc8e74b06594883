//! How long a run waits for room, and how often it looks, by a clock that takes no time.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use super::*;

/// Time that passes in pauses alone.
#[derive(Default)]
struct Counted {
    elapsed: Duration,
    pauses: Vec<Duration>,
    stopped_after: Option<Duration>,
}

impl Clock for Counted {
    fn elapsed(&self) -> Duration {
        self.elapsed
    }

    fn pause(&mut self, time: Duration) {
        self.pauses.push(time);
        self.elapsed += time;
    }

    fn is_stopped(&self) -> bool {
        self.stopped_after.is_some_and(|after| self.elapsed >= after)
    }
}

#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn full() -> Error {
    Error::Full { path: "out".into(), message: "no room".into() }
}

/// Attempts of which the first `failures` find no room: what came of them, how many there were, and what was said.
fn waited(clock: &mut Counted, longest: u64, failures: usize) -> (Result<usize>, usize, String) {
    let said = Said::default();
    let mut attempts = 0;
    let result = wait(&mut Console::lines(said.clone()), Duration::from_secs(longest), clock, || {
        attempts += 1;
        if attempts > failures { Ok(attempts) } else { Err(full()) }
    });
    let said = said.0.lock().unwrap().clone();
    (result, attempts, String::from_utf8(said).unwrap())
}

fn seconds(pauses: &[Duration]) -> Vec<f64> {
    pauses.iter().map(Duration::as_secs_f64).collect()
}

#[test]
fn pauses_grow_to_a_limit_and_end_with_the_time() {
    let mut clock = Counted::default();
    let (result, attempts, said) = waited(&mut clock, 60, usize::MAX);
    assert!(matches!(result, Err(Error::Full { .. })));
    // The last one is cut, and one more attempt is made when it is over.
    assert_eq!(seconds(&clock.pauses), [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 8.5]);
    assert_eq!(attempts, 9);
    assert_eq!(said.matches("The run waits up to 60 seconds for room").count(), 1, "{said}");
    assert!(said.starts_with("warning: out: no room. The run"), "{said}");
    assert!(!said.contains("room again"), "{said}");
}

#[test]
fn room_that_comes_is_told_once() {
    let mut clock = Counted::default();
    let (result, _, said) = waited(&mut clock, 60, 3);
    assert_eq!(result.unwrap(), 4);
    assert_eq!(seconds(&clock.pauses), [0.5, 1.0, 2.0]);
    assert!(said.ends_with("There is room again: the run goes on\n"), "{said}");
    // What succeeds at once says nothing.
    let (result, _, said) = waited(&mut Counted::default(), 60, 0);
    assert_eq!((result.unwrap(), said.as_str()), (1, ""));
}

#[test]
fn nobody_waits_who_was_asked_to_end_or_not_to_wait() {
    let mut clock = Counted { stopped_after: Some(Duration::from_secs(3)), ..Counted::default() };
    let (result, attempts, _) = waited(&mut clock, 60, usize::MAX);
    assert!(result.is_err());
    assert_eq!((seconds(&clock.pauses), attempts), (vec![0.5, 1.0, 2.0], 4));
    let mut clock = Counted::default();
    let (result, attempts, said) = waited(&mut clock, 0, usize::MAX);
    assert!(result.is_err() && clock.pauses.is_empty() && said.is_empty());
    assert_eq!(attempts, 1);
    // Another failure than a full disk does not pass.
    let mut attempts = 0;
    let result: Result<()> = wait(&mut Console::silent(), Duration::from_secs(60), &mut clock, || {
        attempts += 1;
        Err(Error::setup("another"))
    });
    assert!(result.is_err() && clock.pauses.is_empty());
    assert_eq!(attempts, 1);
}

#[test]
fn times_are_said_as_people_say_them() {
    let said = |seconds| {
        let said = waiting(&full(), Duration::from_secs(seconds));
        let (_, said) = said.split_once("The run waits up to ").unwrap();
        said.split_once(" for room (TUNE_WAIT_FOR_ROOM=SECONDS in").unwrap().0.to_owned()
    };
    let all = [1, 2, 119, 120, 179, 600].map(said);
    assert_eq!(all, ["1 second", "2 seconds", "119 seconds", "2 minutes", "2 minutes", "10 minutes"]);
}

#[test]
fn a_pause_takes_its_time() {
    let mut clock = Since(Instant::now());
    clock.pause(Duration::from_millis(120));
    let elapsed = clock.elapsed();
    assert!(elapsed >= Duration::from_millis(120) && elapsed < Duration::from_secs(20), "{elapsed:?}");
    assert!(!clock.is_stopped());
}
