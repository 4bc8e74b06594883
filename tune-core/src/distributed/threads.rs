//! Processes that are threads of this one: all that is done among processes can be tried without any.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::transport::places;
use super::{Group, Place, Transport, as_current};
use crate::{Error, Result};

/// Where the threads meet for a collective.
struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Collectives that are over.
    over: u64,
    /// What those have brought that are here for the next one.
    here: Vec<Option<Arc<Brought>>>,
    /// What all brought to the last one.
    last: Arc<Vec<Arc<Brought>>>,
    /// Whose thread has ended.
    gone: Vec<bool>,
}

/// What one brings to a collective.
struct Brought {
    kind: &'static str,
    bytes: Vec<u8>,
    /// The bytes for each of the others.
    for_each: Vec<usize>,
}

struct ByMemory {
    rank: usize,
    meeting: Arc<Meeting>,
}

impl Drop for ByMemory {
    fn drop(&mut self) {
        let mut state = self.meeting.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.gone[self.rank] = true;
        self.meeting.changed.notify_all();
    }
}

impl ByMemory {
    /// What all bring to the same collective.
    fn meet(&self, kind: &'static str, bytes: &[u8], for_each: &[usize]) -> Result<Arc<Vec<Arc<Brought>>>> {
        let mut state = self.meeting.state.lock().unwrap_or_else(PoisonError::into_inner);
        let this = state.over;
        let brought = Brought { kind, bytes: bytes.to_vec(), for_each: for_each.to_vec() };
        state.here[self.rank] = Some(Arc::new(brought));
        if state.here.iter().all(Option::is_some) {
            state.last = Arc::new(state.here.iter_mut().filter_map(Option::take).collect());
            state.over += 1;
            self.meeting.changed.notify_all();
        }
        while state.over == this {
            let missing = |(rank, gone): (usize, &bool)| (*gone && state.here[rank].is_none()).then_some(rank);
            if let Some(rank) = state.gone.iter().enumerate().find_map(missing) {
                return Err(Error::Training(format!("rank {rank} has ended")));
            }
            state = self.meeting.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let all = Arc::clone(&state.last);
        drop(state);
        match all.iter().enumerate().find(|(_, other)| other.kind != kind) {
            Some((rank, other)) => {
                Err(Error::Training(format!("rank {rank} is in another collective, {}", other.kind)))
            }
            None => Ok(all),
        }
    }
}

impl Transport for ByMemory {
    fn all_gather(&mut self, mine: &[u8], counts: &[usize], all: &mut [u8]) -> Result<()> {
        let (parts, places) = (self.meet("all-gather", mine, &[])?, places(counts));
        for (part, place) in parts.iter().zip(places.windows(2)) {
            all[place[0]..place[1]].copy_from_slice(&part.bytes);
        }
        Ok(())
    }

    fn all_to_all(&mut self, parts: &[u8], for_each: &[usize], mine: &mut [u8], from_each: &[usize]) -> Result<()> {
        let (others, to) = (self.meet("all-to-all", parts, for_each)?, places(from_each));
        for (other, to) in others.iter().zip(to.windows(2)) {
            let from = places(&other.for_each);
            mine[to[0]..to[1]].copy_from_slice(&other.bytes[from[self.rank]..from[self.rank + 1]]);
        }
        Ok(())
    }

    fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<()> {
        let mine: &[u8] = if root == self.rank { bytes } else { &[] };
        let parts = self.meet("broadcast", mine, &[])?;
        bytes.copy_from_slice(&parts[root].bytes);
        Ok(())
    }
}

/// Runs `f` in `world_size` threads that are the processes of a group, each with one thread to compute on, and returns what they
/// return in the order of their ranks. In each, [`current`](super::current) is the group. No collective is waited for longer
/// than `limit`.
///
/// # Errors
/// Where a thread cannot be started.
///
/// # Panics
/// If `f` does.
pub fn run<R: Send>(world_size: usize, limit: Duration, f: impl Fn(Group) -> R + Sync) -> Result<Vec<R>> {
    let state =
        State { here: (0..world_size).map(|_| None).collect(), gone: vec![false; world_size], ..State::default() };
    let meeting = Arc::new(Meeting { state: Mutex::new(state), changed: Condvar::new() });
    let process = |rank: usize| {
        let meeting = Arc::clone(&meeting);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pool = pool.map_err(|e| Error::setup(format!("cannot start a thread: {e}")))?;
        let group = Group::join(limit, move || {
            let place = Place { rank, world_size, local_rank: rank, local_world_size: world_size };
            Ok((ByMemory { rank, meeting }, place))
        })?;
        Ok(pool.install(|| as_current(&group, || f(group.clone()))))
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || process(rank))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn on<R: Send>(world_size: usize, f: impl Fn(Group) -> R + Sync) -> Vec<R> {
        run(world_size, LIMIT, f).unwrap()
    }

    #[test]
    fn shares_are_all_rows_and_differ_by_one_at_most() {
        for world_size in [1, 2, 3, 5] {
            for rows in [0, 1, 3, 5, 7, 64] {
                let shares = on(world_size, |group| group.share(rows));
                assert!(shares.iter().map(ExactSizeIterator::len).max() <= shares.iter().map(|s| s.len() + 1).min());
                assert!(shares.into_iter().flatten().eq(0..rows), "{rows} rows of {world_size}");
            }
        }
    }

    #[test]
    fn collectives_give_what_their_names_say() {
        let all = on(3, |group| {
            let rank = group.rank();
            // 7 rows of 2 columns; two collectives are under way at a time.
            let counts = group.counts(7, 2);
            let mine: Vec<f32> = group.share(7).flat_map(|row| [row as f32, rank as f32]).collect();
            let gathered = group.all_gather("rows", mine, counts.clone(), vec![0f32; 14]);
            let parts: Vec<f32> = (0..14).map(|i| (i * (rank + 1)) as f32).collect();
            let scattered = group.reduce_scatter("sums", parts, counts.clone(), vec![0f32; counts[rank]]);
            let (gathered, scattered) = (gathered.wait().unwrap(), scattered.wait().unwrap());
            let sums = group.all_reduce("numbers", vec![rank as f64, 1.0]).wait().unwrap();
            let told = group.broadcast("a number", 1, vec![rank as u32 * 10]).wait().unwrap();
            group.barrier("the end").wait().unwrap();
            let texts = group.texts("names", &"x".repeat(rank)).unwrap();
            (gathered, scattered, sums, told, texts)
        });
        let rows: Vec<f32> = (0..7)
            .flat_map(|row| {
                [
                    row as f32,
                    if row < 3 {
                        0.0
                    } else if row < 5 {
                        1.0
                    } else {
                        2.0
                    },
                ]
            })
            .collect();
        let summed: Vec<f32> = all.iter().flat_map(|one| one.1.clone()).collect();
        assert_eq!(summed, (0..14).map(|i| (6 * i) as f32).collect::<Vec<_>>());
        for (gathered, _, sums, told, texts) in all {
            assert_eq!((gathered, sums, told), (rows.clone(), vec![3.0, 3.0], vec![10]));
            assert_eq!(texts, ["", "x", "xx"]);
        }
    }

    #[test]
    fn a_process_alone_communicates_with_nobody() {
        let group = Group::single();
        let numbers = vec![1f32, 2.0];
        assert_eq!(group.all_gather("x", numbers.clone(), vec![2], vec![0.0; 2]).wait().unwrap(), numbers);
        assert_eq!(group.reduce_scatter("x", numbers.clone(), vec![2], vec![0.0; 2]).wait().unwrap(), numbers);
        assert_eq!(group.all_reduce("x", numbers.clone()).wait().unwrap(), numbers);
        assert_eq!(group.broadcast("x", 0, numbers.clone()).wait().unwrap(), numbers);
        assert_eq!(group.texts("x", "me").unwrap(), ["me"]);
        group.barrier("x").wait().unwrap();
    }

    #[test]
    fn one_that_ends_is_named_at_once() {
        let errors = on(3, |group| match group.rank() {
            1 => String::new(),
            _ => group.barrier("block 2").wait().unwrap_err().to_string(),
        });
        assert_eq!(errors[0], "rank 0 of 3, barrier of block 2: rank 1 has ended");
        assert_eq!(errors[2], "rank 2 of 3, barrier of block 2: rank 1 has ended");
    }

    #[test]
    fn one_that_is_elsewhere_is_named() {
        let errors = on(2, |group| match group.rank() {
            0 => group.all_reduce("the loss", vec![0f64]).wait().map(drop).unwrap_err().to_string(),
            _ => group.broadcast("the seed", 0, vec![0u8]).wait().map(drop).unwrap_err().to_string(),
        });
        assert_eq!(errors[0], "rank 0 of 2, all-reduce of the loss: rank 1 is in another collective, broadcast");
        assert_eq!(errors[1], "rank 1 of 2, broadcast of the seed: rank 0 is in another collective, all-gather");
    }

    /// Who waits says where, and everything after that fails at once with the same words.
    #[test]
    fn one_that_hangs_is_waited_for_until_the_limit() {
        let (ends, end) = std::sync::mpsc::channel::<()>();
        let end = Mutex::new(end);
        let ends = Mutex::new(Some(ends));
        let errors = run(2, Duration::from_millis(300), |group| {
            if group.rank() == 1 {
                let _ = end.lock().unwrap().recv();
                return Vec::new();
            }
            let first = group.all_reduce("gradients of block 4", vec![0f32]).wait().unwrap_err().to_string();
            let begun = std::time::Instant::now();
            let second = group.barrier("the end").wait().unwrap_err().to_string();
            assert!(begun.elapsed() < Duration::from_millis(200));
            ends.lock().unwrap().take();
            vec![first, second]
        })
        .unwrap();
        assert!(errors[0][0].starts_with("rank 0 of 2 has waited 0 s in the all-reduce of gradients of block 4: "));
        assert_eq!(errors[0][0], errors[0][1]);
    }
}
