//! The buffers of [`super::compute`] on paper.

use crate::kernels::Element;
use crate::kernels::footprint::Paper;
use crate::kernels::isa::Isa;

/// A [`super::Term`] without its numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sides {
    /// Elements from one row of what is stored for the left side to the next; `None` if it is a transpose.
    pub(super) left_width: Option<usize>,
    pub(super) inner: usize,
}

impl Sides {
    /// `x · wᵀ` or `g · w`, with an inner dimension of `k`.
    pub(crate) fn plain(k: usize) -> Self {
        Self { left_width: Some(k), inner: k }
    }

    /// `gᵀ · x`, with an inner dimension of `k`.
    pub(crate) fn transposed(k: usize) -> Self {
        Self { left_width: None, inner: k }
    }
}

impl Paper {
    /// See [`super::multiply`].
    pub(crate) fn multiply<T: Element>(&self, size: (usize, usize), terms: &[Sides]) {
        self.compute::<T>(size, terms, None);
    }

    /// See [`super::multiply_here`], called on so many threads at a time.
    pub(crate) fn multiply_here<T: Element>(&self, threads: usize, size: (usize, usize), terms: &[Sides]) {
        self.compute::<T>(size, terms, Some(threads));
    }

    fn compute<T: Element>(&self, (m, n): (usize, usize), terms: &[Sides], here: Option<usize>) {
        if m == 0 || n == 0 {
            return;
        }
        match self.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => self.packed::<T>((m, n), terms, here),
            _ => self.portable::<T>((m, n), terms, here.unwrap_or(1)),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn packed<T: Element>(&self, (m, n): (usize, usize), terms: &[Sides], here: Option<usize>) {
        use super::{COLS, Panels, ROWS, pack, rows_per_task, stripe};
        let word = pack::Word::of::<T>(self.isa);
        let rewritten =
            terms.iter().map(|t| pack::rewriting(word, t.left_width, m, t.inner).map_or(0, |r| r.words(m, t.inner)));
        // Attention rewrites nothing: its products are of f32, and of few rows where a side is transposed.
        let _rewritten: Vec<_> = rewritten.map(|words| self.buffer::<f32>(words)).collect();
        let steps = terms.iter().map(|t| word.steps(t.inner)).sum();
        let panels = Panels::new(n).count;
        let block = if here.is_some() { m } else { rows_per_task(m) };
        let blocks = m.div_ceil(block);
        let together = match here {
            Some(_) => panels,
            None => stripe::panels_per_task(steps, block, blocks * panels, self.threads),
        };
        let (groups, group) = stripe::groups(steps);
        let kept = if groups == 1 { 0 } else { block.min(m).next_multiple_of(ROWS) * COLS };
        let tasks = blocks * panels.div_ceil(together);
        let sums = (kept * together.min(panels)).max(ROWS * COLS);
        self.scratch(here.unwrap_or(tasks), group * COLS, sums);
    }

    fn portable<T: Element>(&self, (m, n): (usize, usize), terms: &[Sides], threads: usize) {
        let _sums: Vec<_> = (0..threads).map(|_| self.buffer::<f32>(m * n)).collect();
        for term in terms.iter().filter(|_| T::IS_BF16) {
            let _left = self.buffer::<f32>(m * term.inner);
            let _right = self.buffer::<f32>(term.inner * n);
        }
    }
}
