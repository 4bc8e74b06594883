//! In which order records are tokenized and rows are trained: a function of the seed and the epoch.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Records that are tokenized at a time. The first step waits for one block.
pub(super) const BLOCK: usize = 4096;

/// Records fall into blocks: where rows are shuffled, at random, else one after the other. Rows are packed
/// and shuffled within a block, and the blocks are shuffled. So an epoch's first rows are known when one
/// block is, and data of a single block is packed and shuffled as a whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) shuffle: bool,
    pub(super) seed: u64,
    /// Records in a block.
    pub(super) block: usize,
}

impl Order {
    /// The records of each block, in the order of the data.
    pub(super) fn members(&self, records: usize) -> Vec<Vec<usize>> {
        let order = if self.shuffle && records > self.block {
            permutation(records, self.key(b"members", 0, 0))
        } else {
            (0..records).collect()
        };
        let sorted = |members: &[usize]| {
            let mut members = members.to_vec();
            members.sort_unstable();
            members
        };
        order.chunks(self.block).map(sorted).collect()
    }

    /// The order of the blocks in an epoch.
    pub(super) fn of_blocks(&self, blocks: usize, epoch: u64) -> Vec<usize> {
        if self.shuffle { permutation(blocks, self.key(b"blocks ", epoch, 0)) } else { (0..blocks).collect() }
    }

    /// The order of the rows of a block in an epoch.
    pub(super) fn of_rows(&self, block: usize, rows: usize, epoch: u64) -> Vec<usize> {
        if self.shuffle { permutation(rows, self.key(b"shuffle", epoch, block)) } else { (0..rows).collect() }
    }

    fn key(&self, what: &[u8; 7], epoch: u64, block: usize) -> [u8; 32] {
        key(self.seed, what, epoch, block)
    }
}

/// `k` of `n` things, drawn by the seed and for a purpose, in their order.
pub(super) fn draw(k: usize, n: usize, seed: u64, purpose: &[u8; 7], index: usize) -> Vec<usize> {
    let mut drawn = permutation(n, key(seed, purpose, 0, index));
    drawn.truncate(k);
    drawn.sort_unstable();
    drawn
}

fn key(seed: u64, what: &[u8; 7], epoch: u64, block: usize) -> [u8; 32] {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..23].copy_from_slice(what);
    key[24..].copy_from_slice(&(block as u64).to_le_bytes());
    key
}

/// A random order of `n` things. Written out here, so that no library's idea of shuffling
/// can change what a seed means.
fn permutation(n: usize, key: [u8; 32]) -> Vec<usize> {
    let mut random = ChaCha8Rng::from_seed(key);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        // The high half of a 64 by 64 bit product: uniform in 0..=i but for 1 in 2^64 / n.
        let j = (u128::from(random.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: Order = Order { shuffle: true, seed: 5, block: 10 };

    #[test]
    fn a_seed_means_the_same_tomorrow() {
        assert_eq!(ORDER.of_rows(0, 8, 3), [2, 7, 6, 1, 3, 4, 0, 5]);
    }

    #[test]
    fn permutations_are_even() {
        let mut counts = [[0u32; 5]; 5];
        for epoch in 0..20_000 {
            for (place, &item) in (Order { seed: 1, ..ORDER }).of_rows(0, 5, epoch).iter().enumerate() {
                counts[place][item] += 1;
            }
        }
        // 4000 expected, with a standard deviation of 57.
        assert!(counts.iter().flatten().all(|&n| (3700..4300).contains(&n)), "{counts:?}");
    }

    #[test]
    fn each_record_is_in_one_block() {
        for records in [1, 9, 10, 11, 95] {
            for shuffle in [false, true] {
                let order = Order { shuffle, ..ORDER };
                let members = order.members(records);
                assert_eq!(members.len(), records.div_ceil(10));
                assert!(members.iter().all(|m| m.is_sorted() && m.len() <= 10));
                let mut all = members.concat();
                assert_eq!(all.is_sorted(), !shuffle || records <= 10, "blocks of shuffled data are drawn at random");
                all.sort_unstable();
                assert_eq!(all, (0..records).collect::<Vec<_>>());
            }
        }
    }
}
