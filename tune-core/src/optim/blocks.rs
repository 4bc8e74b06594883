//! Optimizer state in eight bits: codes for blocks of numbers that share a scale (Dettmers et al. 2021,
//! <https://arxiv.org/abs/2110.02861>).

use std::sync::LazyLock;

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 256;

/// The least scale: a block of zeros has one, too.
const LEAST: f32 = 1e-12;

/// What codes stand for, times the scale of a block: the dynamic map of bitsandbytes. A decade of small numbers has few codes, and the
/// largest has many.
pub(super) struct Map {
    values: [f32; 256],
    /// The number that the next code begins at, for each code.
    ends: [f32; 256],
    /// By the upper half of a number's bits: the code of the least number that has them.
    starts: Vec<u8>,
}

/// For numbers of both signs.
pub(super) static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(true));
/// For numbers from zero on.
pub(super) static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(false));

/// Decades that have codes.
const DECADES: i32 = 7;

impl Map {
    fn new(signed: bool) -> Self {
        let mut values = vec![0.0, 1.0];
        for decade in 0..DECADES {
            let parts = 1 << if signed { decade } else { decade + 1 };
            let factor = 10f64.powi(decade - DECADES + 1);
            for part in 0..parts {
                // The middle of a part of what is between 0.1 and 1, which the authors compute in f32.
                let boundary = |i: i32| (0.1 + 0.9 * f64::from(i) / f64::from(parts)) as f32;
                let value = (factor * f64::from((boundary(part) + boundary(part + 1)) / 2.0)) as f32;
                values.push(value);
                if signed {
                    values.push(-value);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let values: [f32; 256] = std::array::from_fn(|code| values[code]);
        let ends = std::array::from_fn(|code| match values.get(code + 1) {
            Some(next) => values[code] + (next - values[code]) * 0.5,
            None => f32::INFINITY,
        });
        let code = |x: f32| ends.partition_point(|&end| end <= x).min(255) as u8;
        let start = |upper: u32| {
            // The least number of those is the one with all or none of the lower bits, by its sign.
            let x = f32::from_bits(upper << 16 | if upper & 0x8000 == 0 { 0 } else { 0xffff });
            if x.is_nan() { 0 } else { code(x) }
        };
        Self { values, ends, starts: (0..1 << 16).map(start).collect() }
    }

    /// The numbers that codes stand for, and where each one's numbers end.
    pub(super) fn tables(&self) -> [&[f32; 256]; 2] {
        [&self.values, &self.ends]
    }

    /// The number that a code stands for.
    #[inline(always)]
    pub(super) fn value(&self, code: u8) -> f32 {
        self.values[usize::from(code)]
    }

    /// The code that is nearest to a number between -1 and 1.
    #[inline(always)]
    fn code(&self, x: f32) -> u8 {
        let mut code = usize::from(self.starts[(x.to_bits() >> 16) as usize]);
        while x >= self.ends[code] {
            code += 1;
        }
        code as u8
    }

    /// The codes of a block's numbers; returns their scale.
    pub(super) fn encode(&self, numbers: &[f32], codes: &mut [u8]) -> f32 {
        let scale = numbers.iter().fold(LEAST, |most, x| most.max(x.abs()));
        for (code, &x) in codes.iter_mut().zip(numbers) {
            *code = self.code(x / scale);
        }
        scale
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_have_the_values_of_their_authors() {
        assert_eq!((SIGNED.value(0), SIGNED.value(127), SIGNED.value(255)), (-0.992_968_74, 0.0, 1.0));
        assert_eq!((UNSIGNED.value(0), UNSIGNED.value(255)), (0.0, 1.0));
        // The first decade of the unsigned one has two numbers, of a millionth.
        assert!((UNSIGNED.value(1) - 3.25e-7).abs() < 1e-13 && (UNSIGNED.value(2) - 7.75e-7).abs() < 1e-13);
        for map in [&*SIGNED, &*UNSIGNED] {
            assert!(map.values.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    /// Every number gets the code of the nearest value.
    #[test]
    fn codes_are_the_nearest() {
        for (map, least) in [(&*SIGNED, -1.0), (&*UNSIGNED, 0.0)] {
            let mut numbers: Vec<f32> = crate::models::uniform(3, 4000, 1.0);
            numbers.extend((0..400).map(|i| 10f32.powf(-(i as f32) / 50.0)));
            numbers.extend(map.values);
            for x in numbers.into_iter().filter(|&x| x >= least) {
                let distance = |code: u8| (map.value(code) - x).abs();
                let (ours, best) = (distance(map.code(x)), (0..=255).map(distance).fold(f32::INFINITY, f32::min));
                assert!(ours <= best * (1.0 + 1e-5), "{x}: off by {ours}, and {best} would do");
            }
        }
    }

    #[test]
    fn a_block_of_zeros_is_one() {
        let mut codes = [9; 4];
        let scale = SIGNED.encode(&[0.0; 4], &mut codes);
        assert!(codes.iter().all(|&code| SIGNED.value(code) * scale == 0.0));
    }
}
