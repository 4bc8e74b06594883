//! The same in plain loops, which become what vectors the compiler may assume.

use super::Operands;
use crate::kernels::Element;

const LANES: usize = 8;

/// The products of `R` rows of `w` with `M` of `x`.
///
/// # Safety
/// All that the operands describe can be read.
pub(super) unsafe fn tile<T: Element, const R: usize, const M: usize>(o: Operands<T>) -> [[f32; M]; R] {
    let mut sums = [[[0f32; LANES]; M]; R];
    let whole = o.inner / LANES;
    for group in 0..o.inner.div_ceil(LANES) {
        // SAFETY: as the caller promises; rows of `x` end with zeros, which fill a group.
        let x: [&[f32; LANES]; M] =
            std::array::from_fn(|m| unsafe { &*o.x.wrapping_add(m * o.x_row + group * LANES).cast() });
        for (r, sums) in sums.iter_mut().enumerate() {
            let from = o.w.wrapping_add(r * o.w_row + group * LANES);
            let mut w = [0f32; LANES];
            let count = if group < whole { LANES } else { o.inner - whole * LANES };
            // SAFETY: so many elements of the row are there.
            let row = unsafe { std::slice::from_raw_parts(from, count) };
            w.iter_mut().zip(row).for_each(|(w, from)| *w = from.to_f32());
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
