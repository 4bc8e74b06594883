//! Which parts of a long range of addresses are free. Knows nothing of a card: a plan can ask it, too.

use std::collections::{BTreeMap, BTreeSet};

/// What every part begins at a multiple of: what the widest accesses and cuBLASLt's best kernels want.
pub(crate) const ALIGNMENT: u64 = 512;

/// Parts that are free: where they begin, and their lengths. Neighbours are always one.
#[derive(Debug, Default)]
struct Gaps {
    by_place: BTreeMap<u64, u64>,
    /// The same, by length.
    by_length: BTreeSet<(u64, u64)>,
}

impl Gaps {
    /// Takes the beginning of the smallest one that is large enough.
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let (length, at) = self.by_length.range((bytes, 0)..).next().copied()?;
        self.remove(at, length);
        self.insert(at + bytes, length - bytes);
        Some(at)
    }

    /// Adds one.
    fn give(&mut self, at: u64, bytes: u64) {
        let (mut at, mut length) = (at, bytes);
        let before = self.by_place.range(..at).next_back().map(|(&a, &l)| (a, l));
        if let Some((a, l)) = before.filter(|(a, l)| a + l == at) {
            self.remove(a, l);
            (at, length) = (a, l + length);
        }
        if let Some(&l) = self.by_place.get(&(at + length)) {
            self.remove(at + length, l);
            length += l;
        }
        self.insert(at, length);
    }

    /// Where the last one begins, if it ends at `end`, and its length.
    fn last(&self, end: u64) -> Option<(u64, u64)> {
        let last = self.by_place.last_key_value().map(|(&at, &length)| (at, length));
        last.filter(|(at, length)| at + length == end)
    }

    fn insert(&mut self, at: u64, length: u64) {
        if length > 0 {
            self.by_place.insert(at, length);
            self.by_length.insert((length, at));
        }
    }

    fn remove(&mut self, at: u64, length: u64) {
        self.by_place.remove(&at);
        self.by_length.remove(&(length, at));
    }
}

/// Parts of a range that begins at zero and grows at its end. A part is taken from the smallest gap that holds it; only if
/// there is none does the range grow. So a card's memory is given away, and so a plan can do it on paper.
#[derive(Debug, Default)]
pub struct Ranges {
    gaps: Gaps,
    end: u64,
    used: u64,
    most: u64,
}

/// Parts of a range that are used again and again by work which must find its numbers at the same addresses. What it was given it
/// keeps, and it asks for more only where no gap of that is large enough.
#[derive(Debug, Default)]
pub struct Pool {
    gaps: Gaps,
    given: Vec<(u64, u64)>,
}

impl Pool {
    /// Takes a part of a rounded size; returns where it begins. `more` gives a part of that size.
    ///
    /// # Errors
    /// That of `more`.
    pub fn take<E>(&mut self, bytes: u64, more: impl FnOnce(u64) -> Result<u64, E>) -> Result<u64, E> {
        match self.gaps.take(bytes) {
            Some(at) => Ok(at),
            None => more(bytes).inspect(|&at| self.given.push((at, bytes))),
        }
    }

    /// Takes a part back, for the next who asks.
    pub fn give(&mut self, at: u64, bytes: u64) {
        self.gaps.give(at, bytes);
    }

    /// All that it was given: where each part begins, and its length.
    pub fn into_given(self) -> Vec<(u64, u64)> {
        self.given
    }
}

impl Ranges {
    /// Where the last part that ever was ended.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes in use when most were.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Forgets what was most.
    pub fn forget_most(&mut self) {
        self.most = self.used;
    }

    /// Rounds a size up to what is taken for it.
    pub fn rounded(bytes: u64) -> u64 {
        bytes.max(1).next_multiple_of(ALIGNMENT)
    }

    /// Takes a part of a rounded size; returns where it begins.
    pub fn take(&mut self, bytes: u64) -> u64 {
        let at = self.gaps.take(bytes).unwrap_or_else(|| {
            let at = match self.gaps.last(self.end) {
                Some((at, length)) => {
                    self.gaps.remove(at, length);
                    at
                }
                None => self.end,
            };
            self.end = at + bytes;
            at
        });
        self.used += bytes;
        self.most = self.most.max(self.used);
        at
    }

    /// Gives a part back.
    pub fn give(&mut self, at: u64, bytes: u64) {
        self.used -= bytes;
        self.gaps.give(at, bytes);
    }

    /// Cuts the range at `end`, which only gaps are behind.
    pub fn cut(&mut self, end: u64) {
        if let Some((at, length)) = self.gaps.last(self.end).filter(|(at, _)| *at <= end) {
            self.gaps.remove(at, length);
            self.gaps.insert(at, end - at);
            self.end = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_gap_is_taken_first() {
        let mut ranges = Ranges::default();
        let parts: Vec<u64> = [4, 1, 2, 1, 8].iter().map(|n| ranges.take(n * ALIGNMENT)).collect();
        assert_eq!(parts, [0, 4, 5, 7, 8].map(|n| n * ALIGNMENT));
        ranges.give(parts[0], 4 * ALIGNMENT);
        ranges.give(parts[2], 2 * ALIGNMENT);
        assert_eq!(ranges.take(2 * ALIGNMENT), parts[2]);
        assert_eq!(ranges.take(ALIGNMENT), 0);
        assert_eq!(ranges.end(), 16 * ALIGNMENT);
    }

    #[test]
    fn neighbours_become_one() {
        let mut ranges = Ranges::default();
        let parts: Vec<u64> = (0..4).map(|_| ranges.take(ALIGNMENT)).collect();
        for i in [0, 2, 1] {
            ranges.give(parts[i], ALIGNMENT);
        }
        assert_eq!(ranges.gaps.by_place, BTreeMap::from([(0, 3 * ALIGNMENT)]));
        // What is behind the last part grows with the range.
        ranges.give(parts[3], ALIGNMENT);
        assert_eq!(ranges.take(6 * ALIGNMENT), 0);
        assert_eq!((ranges.end(), ranges.used(), ranges.most()), (6 * ALIGNMENT, 6 * ALIGNMENT, 6 * ALIGNMENT));
    }

    #[test]
    fn a_range_that_could_not_grow_is_cut() {
        let mut ranges = Ranges::default();
        let first = ranges.take(2 * ALIGNMENT);
        let second = ranges.take(ALIGNMENT);
        ranges.give(second, ALIGNMENT);
        let (before, at) = (ranges.end(), ranges.take(9 * ALIGNMENT));
        ranges.give(at, 9 * ALIGNMENT);
        ranges.cut(before);
        assert_eq!((ranges.end(), ranges.used()), (3 * ALIGNMENT, 2 * ALIGNMENT));
        assert_eq!(ranges.take(ALIGNMENT), second);
        assert_eq!(first, 0);
    }

    /// Parts never overlap, whatever the order.
    #[test]
    fn parts_are_apart() {
        let (mut ranges, mut held, mut dice) = (Ranges::default(), Vec::<(u64, u64)>::new(), 1u64);
        for _ in 0..5_000 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let roll = (dice >> 33) as usize;
            if roll % 5 < 3 || held.is_empty() {
                let bytes = Ranges::rounded((roll % 20_000) as u64);
                let at = ranges.take(bytes);
                assert!(held.iter().all(|&(a, b)| at + bytes <= a || a + b <= at), "overlap");
                held.push((at, bytes));
            } else {
                let (at, bytes) = held.swap_remove(roll % held.len());
                ranges.give(at, bytes);
            }
            assert_eq!(ranges.used(), held.iter().map(|(_, b)| b).sum::<u64>());
            let gaps: u64 = ranges.gaps.by_place.values().sum();
            assert_eq!(ranges.used() + gaps, ranges.end());
        }
    }

    /// What work does again it does in the same memory, and nothing more is asked for.
    #[test]
    fn a_pool_is_asked_for_the_same_again() {
        let (mut ranges, mut pool) = (Ranges::default(), Pool::default());
        let others = ranges.take(3 * ALIGNMENT);
        let mut work = |pool: &mut Pool| {
            let mut take = |parts| pool.take(parts * ALIGNMENT, |bytes| Ok::<_, ()>(ranges.take(bytes))).unwrap();
            let (a, b) = (take(4), take(2));
            pool.give(a, 4 * ALIGNMENT);
            let mut take = |parts| pool.take(parts * ALIGNMENT, |bytes| Ok::<_, ()>(ranges.take(bytes))).unwrap();
            let (c, d) = (take(1), take(3));
            let places = [a, b, c, d];
            pool.give(b, 2 * ALIGNMENT);
            pool.give(c, ALIGNMENT);
            pool.give(d, 3 * ALIGNMENT);
            (places, ranges.used())
        };
        let first = work(&mut pool);
        assert_eq!((work(&mut pool), first.1), (first, 9 * ALIGNMENT));
        // Parts that are gaps of the pool beside each other come back as they were given.
        let given = pool.into_given();
        assert_eq!(given, [(3 * ALIGNMENT, 4 * ALIGNMENT), (7 * ALIGNMENT, 2 * ALIGNMENT)]);
        given.into_iter().for_each(|(at, bytes)| ranges.give(at, bytes));
        ranges.give(others, 3 * ALIGNMENT);
        assert_eq!(ranges.used(), 0);
    }
}
