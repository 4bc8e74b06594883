//! Threads that wait awake for the next of many small pieces of work.
//!
//! A new token is some two hundred products of microseconds each. Threads of a pool go to sleep between them, and waking one
//! takes longer than its share of the product. So for the time of a token the pool's other threads are one team, which looks for
//! work all the time and gives the processor to others only while there is none for long.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Looks at what there is to do before the processor is given to others, for so many times.
const LOOKS: usize = 2000;

/// A piece of work in parts.
type Work<'a> = &'a (dyn Fn(usize) + Sync);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Team {
    /// Points to the [`Work`] whose parts are being done.
    work: AtomicPtr<()>,
    /// Its parts that nobody has taken yet: each thread's share.
    left: Box<[Share]>,
    /// Its parts that are done.
    done: AtomicUsize,
    /// Whether the others are to go.
    is_over: AtomicBool,
}

impl Team {
    pub(crate) fn new() -> Self {
        Self {
            work: AtomicPtr::new(std::ptr::null_mut()),
            left: (0..rayon::current_num_threads().max(1)).map(|_| Share::default()).collect(),
            done: AtomicUsize::new(0),
            is_over: AtomicBool::new(true),
        }
    }

    /// Runs `f`, whose calls of [`Team::run`] are helped with by the other threads of the pool, until it ends.
    ///
    /// # Panics
    /// Where it is led already.
    pub(crate) fn lead<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        /// Sends the others away, also where something panics.
        struct Over<'a>(&'a Team);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.is_over.store(true, Ordering::Release);
            }
        }
        assert!(self.is_over.swap(false, Ordering::AcqRel), "a team has one leader");
        rayon::scope(|scope| {
            let _over = Over(self);
            if rayon::current_num_threads() > 1 {
                scope.spawn_broadcast(|_, _| self.help());
            }
            f()
        })
    }

    /// Does parts `0..parts` of `work` on all threads of the team. Only who leads it may call this, one call at a time.
    pub(crate) fn run(&self, parts: usize, work: impl Fn(usize) + Sync) {
        if parts <= 1 || self.is_over.load(Ordering::Relaxed) {
            return (0..parts).for_each(work);
        }
        let work: Work<'_> = &work;
        self.done.store(0, Ordering::Relaxed);
        self.work.store(std::ptr::from_ref(&work).cast_mut().cast(), Ordering::Relaxed);
        let end = End { team: self, parts };
        let threads = self.left.len();
        for (thread, share) in self.left.iter().enumerate() {
            share.set(parts * thread / threads..parts * (thread + 1) / threads);
        }
        while self.take_part() {}
        drop(end);
    }

    fn help(&self) {
        let mut looks = 0;
        while !self.is_over.load(Ordering::Acquire) {
            match self.take_part() {
                true => looks = 0,
                false => wait(&mut looks),
            }
        }
    }

    /// Does one part, if there is one left: the next of this thread's share, or else the last of another's.
    fn take_part(&self) -> bool {
        let own = rayon::current_thread_index().unwrap_or(0) % self.left.len();
        let (before, after) = self.left.split_at(own);
        let others = || after[1..].iter().chain(before).find_map(Share::take_last);
        let Some(part) = after[0].take_first().or_else(others) else { return false };
        let _done = Done(&self.done);
        // SAFETY: whoever leads the team waits until each part that was taken is done before the work goes, and this one
        // is not; what was stored before the shares is seen by who took from one.
        let work = unsafe { *self.work.load(Ordering::Relaxed).cast_const().cast::<Work<'_>>() };
        work(part);
        true
    }
}

/// What is left of a thread's share of the parts. The thread takes the first, so that it reads on where it has read; others take
/// the last. The first and the end are halves of one number. Shares are apart in the cache.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Share(AtomicU64);

impl Share {
    fn set(&self, parts: Range<usize>) {
        self.0.store(Self::packed(parts), Ordering::Release);
    }

    fn take_first(&self) -> Option<usize> {
        let taken = self.take(|parts| parts.start + 1..parts.end)?;
        Some(taken.start)
    }

    fn take_last(&self) -> Option<usize> {
        let taken = self.take(|parts| parts.start..parts.end - 1)?;
        Some(taken.end - 1)
    }

    /// Leaves nothing; returns how many parts were left.
    fn empty(&self) -> usize {
        Self::parts(self.0.swap(0, Ordering::Relaxed)).len()
    }

    /// What was left, of which `rest` leaves all but one; `None` where it was nothing.
    fn take(&self, rest: impl Fn(Range<usize>) -> Range<usize>) -> Option<Range<usize>> {
        let rest =
            |left| Some(Self::parts(left)).filter(|parts| !parts.is_empty()).map(|parts| Self::packed(rest(parts)));
        self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, rest).ok().map(Self::parts)
    }

    fn packed(parts: Range<usize>) -> u64 {
        let half = |part| u64::from(u32::try_from(part).expect("fewer parts than there can be columns"));
        half(parts.start) << 32 | half(parts.end)
    }

    fn parts(packed: u64) -> Range<usize> {
        (packed >> 32) as usize..(packed & u64::from(u32::MAX)) as usize
    }
}

/// Counts a part, also where it panics.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// Waits until all parts that were taken are done, also where one of them panics.
struct End<'a> {
    team: &'a Team,
    parts: usize,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let taken = self.parts - self.team.left.iter().map(Share::empty).sum::<usize>();
        let mut looks = 0;
        while self.team.done.load(Ordering::Acquire) < taken {
            wait(&mut looks);
        }
    }
}

fn wait(looks: &mut usize) {
    if *looks < LOOKS {
        *looks += 1;
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn every_part_is_done_once() {
        for threads in [1, 2, 5] {
            pool(threads).install(|| {
                let team = Team::new();
                for _ in 0..3 {
                    team.lead(|| {
                        for parts in (0..300).chain([5000]) {
                            let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                            team.run(parts, |i| _ = counts[i].fetch_add(1, Ordering::Relaxed));
                            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "{threads} {parts}");
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn without_a_leader_one_thread_does_it_all() {
        let sum = AtomicUsize::new(0);
        Team::new().run(10, |i| _ = sum.fetch_add(i, Ordering::Relaxed));
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn a_panic_reaches_who_leads() {
        pool(3).install(|| {
            let team = Team::new();
            for bad in [0, 57, 99] {
                let lead = || team.lead(|| team.run(100, |i| assert_ne!(i, bad, "part {bad}")));
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(lead));
                assert!(result.is_err());
            }
            let sum = AtomicUsize::new(0);
            team.lead(|| team.run(100, |i| _ = sum.fetch_add(i, Ordering::Relaxed)));
            assert_eq!(sum.into_inner(), 4950);
        });
    }
}
