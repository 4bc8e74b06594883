//! Loops whose turns run on all threads of the pool, each turn as a task of its own.
//!
//! Rayon's loops are compiled anew for each body and each type of number. These all end in one function that is compiled once,
//! which calls the body of a loop through a pointer: a turn is to be some thousands of elements, not one.

use std::ops::RangeInclusive;

use rayon::prelude::*;

use super::Shared;

/// Runs `task` for each of `0..count`.
pub(crate) fn each(count: usize, task: impl Fn(usize) + Sync) {
    run(count, 1..=usize::MAX, &task);
}

/// The same, of which neighbours are handed out together: so many at a time, as far as their number allows.
pub(crate) fn each_together(count: usize, together: RangeInclusive<usize>, task: impl Fn(usize) + Sync) {
    run(count, together, &task);
}

#[inline(never)]
fn run(count: usize, together: RangeInclusive<usize>, task: &(dyn Fn(usize) + Sync)) {
    let (least, most) = together.into_inner();
    (0..count).into_par_iter().with_min_len(least).with_max_len(most).for_each(task);
}

/// What `of` makes of each of `0..count`, in their order.
pub(crate) fn map<R: Send>(count: usize, of: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let mut results = Vec::with_capacity(count);
    each_chunk(&mut results.spare_capacity_mut()[..count], 1, |i, result| _ = result[0].write(of(i)));
    // SAFETY: each was written, for where a task panics the loop does, too.
    unsafe { results.set_len(count) };
    results
}

/// What is written by several tasks, each of which has a part of its own.
///
/// # Safety
/// Parts of different numbers have no element in common.
pub(crate) unsafe trait Parts: Sync {
    /// What one task has.
    type Part;

    /// How many there are.
    fn count(&self) -> usize;

    /// One of them.
    ///
    /// # Safety
    /// The number is below [`Parts::count`], and no part is taken twice.
    unsafe fn part(&self, number: usize) -> Self::Part;
}

/// Runs `task` for each of the parts, given its number.
pub(crate) fn each_part<P: Parts>(parts: P, task: impl Fn(usize, P::Part) + Sync) {
    // SAFETY: each of them is taken once, and the whole is gone then.
    each(parts.count(), move |i| task(i, unsafe { parts.part(i) }));
}

/// What `of` makes of each of the parts, given its number, in their order.
pub(crate) fn map_parts<P: Parts, R: Send>(parts: P, of: impl Fn(usize, P::Part) -> R + Sync) -> Vec<R> {
    // SAFETY: as above.
    map(parts.count(), move |i| of(i, unsafe { parts.part(i) }))
}

/// A slice in parts of `size` elements, the last of which may be shorter.
pub(crate) fn chunks<T: Send>(values: &mut [T], size: usize) -> Chunks<'_, T> {
    Chunks { len: values.len(), size, values: Shared::new(values) }
}

/// See [`chunks`].
pub(crate) struct Chunks<'a, T> {
    values: Shared<'a, T>,
    len: usize,
    size: usize,
}

// SAFETY: each begins where the one before ends.
unsafe impl<'a, T: Send> Parts for Chunks<'a, T> {
    type Part = &'a mut [T];

    fn count(&self) -> usize {
        self.len.div_ceil(self.size)
    }

    unsafe fn part(&self, number: usize) -> &'a mut [T] {
        let start = number * self.size;
        // SAFETY: no chunk overlaps another, and the caller takes none twice.
        unsafe { self.values.part(start, self.size.min(self.len - start)) }
    }
}

/// Pairs of parts with the same number, as many as the shorter has.
// SAFETY: those of either side have no element in common, and the sides are apart.
unsafe impl<A: Parts, B: Parts> Parts for (A, B) {
    type Part = (A::Part, B::Part);

    fn count(&self) -> usize {
        self.0.count().min(self.1.count())
    }

    unsafe fn part(&self, number: usize) -> Self::Part {
        // SAFETY: as the caller promises.
        unsafe { (self.0.part(number), self.1.part(number)) }
    }
}

/// Runs `task` for each chunk of `size` elements, given its number; the last may be shorter.
pub(crate) fn each_chunk<T: Send>(values: &mut [T], size: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    each_part(chunks(values, size), task);
}

/// What `of` makes of each chunk of `size` elements, given its number, in their order; the last may be shorter.
pub(crate) fn map_chunks<T: Sync, R: Send>(values: &[T], size: usize, of: impl Fn(usize, &[T]) -> R + Sync) -> Vec<R> {
    let of = |i: usize| of(i, &values[i * size..values.len().min((i + 1) * size)]);
    map(values.len().div_ceil(size), of)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// On one thread, on two, and on more than there may be processors.
    fn on_pools(test: impl Fn() + Sync) {
        for threads in [1, 2, 5] {
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&test);
        }
    }

    #[test]
    fn every_task_runs_once() {
        on_pools(|| {
            for count in [0, 1, 2, 7, 1000] {
                for together in [1..=usize::MAX, 1..=1, 1..=4, 16..=usize::MAX] {
                    let counts: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    each_together(count, together, |i| _ = counts[i].fetch_add(1, Ordering::Relaxed));
                    each(count, |i| _ = counts[i].fetch_add(1, Ordering::Relaxed));
                    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 2), "{count}");
                }
            }
        });
    }

    #[test]
    fn chunks_are_those_of_the_slice() {
        on_pools(|| {
            for (len, size) in [(0, 3), (2, 3), (3, 3), (1000, 1), (1000, 7), (1000, 2000)] {
                let expected: Vec<_> = (0..len).map(|i| (i / size, size.min(len - i / size * size))).collect();
                let mut found = vec![(usize::MAX, 0); len];
                each_chunk(&mut found, size, |i, chunk| chunk.fill((i, chunk.len())));
                assert_eq!(found, expected, "{len} {size}");
                let found = map_chunks(&found, size, |i, chunk| (i, chunk.to_vec()));
                let expected: Vec<_> = expected.chunks(size).map(<[_]>::to_vec).enumerate().collect();
                assert_eq!(found, expected, "{len} {size}");
            }
        });
    }

    #[test]
    fn pairs_are_as_many_as_the_shorter_side_has() {
        on_pools(|| {
            let (mut tens, mut ones) = (vec![0; 95], vec![0; 9]);
            let pairs = (chunks(&mut tens, 10), chunks(&mut ones, 1));
            let lens = map_parts(pairs, |i, (ten, one)| {
                ten.fill(i + 1);
                one.fill(i + 1);
                (ten.len(), one.len())
            });
            assert_eq!(lens, [(10, 1); 9]);
            assert_eq!(ones, (1..=9).collect::<Vec<_>>());
            assert!((0..95).all(|i| tens[i] == if i < 90 { i / 10 + 1 } else { 0 }));
        });
    }

    #[test]
    fn results_are_in_order() {
        on_pools(|| {
            for count in [0, 1, 1000] {
                let expected: Vec<_> = (0..count).map(|i| i.to_string()).collect();
                assert_eq!(map(count, |i| i.to_string()), expected);
            }
        });
    }

    #[test]
    fn a_panic_reaches_who_started_the_loop() {
        on_pools(|| {
            let panics = || map(100, |i| assert_ne!(i, 57, "task {i}"));
            assert!(std::panic::catch_unwind(panics).is_err());
        });
    }
}
