//! The number types of weights and activations.

use half::bf16;

use super::simd;
use super::view::{View, ViewMut};

/// f32 or bf16.
pub(crate) trait Element: bytemuck::Pod + PartialEq + Send + Sync + std::fmt::Debug {
    /// Whether it is bf16.
    const IS_BF16: bool;
    /// Widened; exact.
    fn to_f32(self) -> f32;
    /// Rounded to the nearest.
    fn from_f32(x: f32) -> Self;
    /// The matrix as it is, if it is one of f32.
    fn as_f32(x: View<'_, Self>) -> Option<View<'_, f32>>;
    /// The same of one that is written.
    fn as_f32_mut<'a>(x: &'a ViewMut<'_, Self>) -> Option<&'a ViewMut<'a, f32>>;
}

impl Element for f32 {
    const IS_BF16: bool = false;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    fn as_f32(x: View<'_, Self>) -> Option<View<'_, f32>> {
        Some(x)
    }

    fn as_f32_mut<'a>(x: &'a ViewMut<'_, Self>) -> Option<&'a ViewMut<'a, f32>> {
        Some(x)
    }
}

impl Element for bf16 {
    const IS_BF16: bool = true;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// To the nearest, ties to even. Written without branches, which the library's has, so that
    /// loops over it become vectors.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let nan = (bits >> 16) | 0x40;
        Self::from_bits(if x.is_nan() { nan } else { rounded } as u16)
    }

    fn as_f32(_: View<'_, Self>) -> Option<View<'_, f32>> {
        None
    }

    fn as_f32_mut<'a>(_: &'a ViewMut<'_, Self>) -> Option<&'a ViewMut<'a, f32>> {
        None
    }
}

/// `dst[i] = src[i]` in f32.
#[inline(always)]
pub(crate) fn widen<T: Element>(src: &[T], dst: &mut [f32]) {
    for (d, &s) in dst.iter_mut().zip(src) {
        *d = s.to_f32();
    }
}

/// The rows of a matrix in f32, without gaps.
pub(crate) fn widen_rows<T: Element>(x: View<'_, T>, to: &mut [f32]) {
    const TASK: usize = 1 << 14;
    let cols = x.cols();
    ViewMut::new(to, cols).each_task(TASK.div_ceil(cols.max(1)), |first, mut dst| {
        simd(
            #[inline(always)]
            || (0..dst.rows()).for_each(|row| widen(x.row(first + row), dst.row(row))),
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_the_library_s() {
        for bits in (0..=u32::MAX).step_by(65_521).chain([0x7f80_0000, 0xff80_0000, 0x7fc0_0001, 0x7f7f_ffff]) {
            let x = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Element>::from_f32(x), bf16::from_f32(x));
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{x}: {ours} {theirs}");
        }
    }
}
