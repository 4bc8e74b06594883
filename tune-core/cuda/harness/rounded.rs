//! What `rounded.h` is to kernels, for the processor's own code and for cards: the numbers that are rounded, and the hashes that
//! `rounded.txt` has of what must come of them.

/// A line of `rounded.txt`.
pub(crate) struct Rounding {
    pub(crate) kind: &'static str,
    /// Numbers of a group, or of a row.
    pub(crate) group: usize,
    /// How many are rounded.
    pub(crate) count: usize,
    /// Of f32 and of bf16: of the rounded numbers, and of their gradients where these may be limited.
    pub(crate) hashes: [[u64; 2]; 2],
}

/// All lines. None where one is not what it should be.
pub(crate) fn roundings() -> Option<Vec<Rounding>> {
    let lines = include_str!("rounded.txt").lines().filter(|line| !line.starts_with('#'));
    lines.map(rounding).collect()
}

fn rounding(line: &'static str) -> Option<Rounding> {
    let [kind, group, count, hashes @ ..] = &line.split(' ').collect::<Vec<_>>()[..] else { return None };
    let hashes = hashes.iter().map(|hash| u64::from_str_radix(hash, 16).ok()).collect::<Option<Vec<_>>>()?;
    let [x, g, x_bf16, g_bf16] = hashes[..] else { return None };
    let (group, count) = (group.parse().ok()?, count.parse().ok()?);
    Some(Rounding { kind, group, count, hashes: [[x, g], [x_bf16, g_bf16]] })
}

/// Numbers of sizes from 1 down to 2^-7, with groups of zeros, of extremes, and of numbers that another group has with the other sign.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut x = vec![0f32; count];
    for i in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (whole, smaller) = ((state >> 40) as i32 - (1 << 23), (state >> 37 & 7) as i32);
        x[i] = match i {
            256..512 => 0.0,
            1024..1280 if i / 16 % 2 == 1 => -x[i - 16],
            _ if i % 64 == 40 => -1.0,
            _ if i % 64 == 50 => 1.0,
            _ => whole as f32 * 0.5f32.powi(23 + smaller),
        };
    }
    x
}

/// FNV-1a.
pub(crate) fn hash_of<T: bytemuck::Pod>(x: &[T]) -> u64 {
    let bytes: &[u8] = bytemuck::cast_slice(x);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
