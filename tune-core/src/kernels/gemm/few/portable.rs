//! The same in plain loops, which become what vectors the compiler may assume.

use super::Operands;
use crate::kernels::Element;

const LANES: usize = 8;

/// The products of `R` rows of `w` with `M` of `x`, in whole groups.
///
/// # Safety
/// All that the operands describe can be read.
pub(super) unsafe fn tile<T: Element, const R: usize, const M: usize>(o: Operands<T>) -> [[f32; M]; R] {
    let mut sums = [[[0f32; LANES]; M]; R];
    for group in 0..o.inner / LANES {
        // SAFETY: as the caller promises.
        let x: [&[f32; LANES]; M] =
            std::array::from_fn(|m| unsafe { &*o.x.wrapping_add((group * M + m) * LANES).cast() });
        for (r, sums) in sums.iter_mut().enumerate() {
            let from = o.w.wrapping_add(r * o.w_row + group * LANES);
            // SAFETY: as the caller promises.
            let w = unsafe { &*from.cast::<[T; LANES]>() }.map(|w| w.to_f32());
            for (sums, x) in sums.iter_mut().zip(x) {
                for lane in 0..LANES {
                    sums[lane] += w[lane] * x[lane];
                }
            }
        }
    }
    sums.map(|of_row| {
        of_row.map(|mut lanes| {
            let mut count = LANES;
            while count > 1 {
                count /= 2;
                for lane in 0..count {
                    lanes[lane] += lanes[lane + count];
                }
            }
            lanes[0]
        })
    })
}
