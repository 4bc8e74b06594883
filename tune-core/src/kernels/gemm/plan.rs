//! How a product is taken apart, and the memory that it needs on the way: decided by shapes, before there are numbers.

use super::portable;
use crate::kernels::Element;
use crate::kernels::isa::Isa;
use crate::kernels::workspace::room;

/// A [`super::Term`] without its numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sides {
    /// Elements from one row of what is stored for the left side to the next; `None` if it is a transpose.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "tiles of x86 alone ask"))]
    pub(crate) left_width: Option<usize>,
    pub(crate) inner: usize,
    /// Whether the right side is a weight in blocks.
    pub(crate) quantized: bool,
    /// Whether it is the transpose of what is stored.
    pub(crate) up: bool,
}

/// Who computes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Team {
    /// So many threads of the pool.
    Threads(usize),
    /// The calling thread.
    This,
}

impl Team {
    pub(super) fn is_parallel(self) -> bool {
        self != Self::This
    }

    #[cfg(target_arch = "x86_64")]
    pub(super) fn threads(self) -> usize {
        match self {
            Self::Threads(threads) => threads.max(1),
            Self::This => 1,
        }
    }
}

/// The elements of f32 that [`super::multiply`] needs besides, for a result `[m, n]` on this many threads; `stored`: by
/// [`super::Finish::Store`].
pub(crate) fn workspace<T: Element, D: Element>(
    isa: Isa,
    size: (usize, usize),
    terms: &[Sides],
    stored: bool,
    threads: usize,
) -> usize {
    of::<T>(isa, size, terms, stored && is_in_place::<D>(isa, size.0), Team::Threads(threads))
}

/// Whether sums that are stored as they are, are computed in the destination itself.
pub(super) fn is_in_place<D: Element>(isa: Isa, rows: usize) -> bool {
    matches!(isa, Isa::Portable | Isa::Avx2) && !D::IS_BF16 && rows >= portable::LEAST_ROWS
}

/// The same of [`super::multiply_here`].
pub(crate) fn workspace_here<T: Element>(isa: Isa, size: (usize, usize), terms: &[Sides]) -> usize {
    of::<T>(isa, size, terms, false, Team::This)
}

#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "tiles of x86 alone ask for the team"))]
fn of<T: Element>(isa: Isa, (m, n): (usize, usize), terms: &[Sides], in_place: bool, team: Team) -> usize {
    match isa {
        _ if m == 0 || n == 0 => 0,
        #[cfg(target_arch = "x86_64")]
        _ if isa.has_tiles() && T::IS_BF16 => super::amx::workspace((m, n), terms, team),
        #[cfg(target_arch = "x86_64")]
        _ if isa.has_avx512() => Plan::new::<T>(isa, (m, n), terms.iter().copied(), team).workspace(),
        _ => {
            let [left, right] = portable::widened::<T>((m, n), terms.iter().copied());
            let sums = if in_place { 0 } else { portable::sums(m, n) };
            room(sums) + room(left) + room(right)
        }
    }
}

/// How the tiles of AVX-512 compute a product.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Rows of a task, and how many such blocks there are.
    pub(super) block: usize,
    pub(super) blocks: usize,
    /// Panels of columns of a task, and of the product.
    pub(super) together: usize,
    pub(super) panels: usize,
    /// Elements of all left sides that are rewritten.
    rewritten: usize,
    /// Elements of a thread: of its packed right sides and of its sums.
    pub(super) packed: usize,
    pub(super) sums: usize,
    pub(super) threads: usize,
}

#[cfg(target_arch = "x86_64")]
impl Plan {
    pub(super) fn new<T: Element>(
        isa: Isa,
        (m, n): (usize, usize),
        terms: impl Iterator<Item = Sides>,
        team: Team,
    ) -> Self {
        use super::{COLS, Panels, ROWS, pack, rows_per_task, stripe};
        let word = pack::Word::of::<T>(isa);
        let (mut rewritten, mut steps) = (0, 0);
        for term in terms {
            rewritten +=
                pack::rewriting(word, term.left_width, m, term.inner).map_or(0, |r| room(r.words(m, term.inner)));
            steps += word.steps(term.inner);
        }
        let panels = Panels::new(n).count;
        let block = if team.is_parallel() { rows_per_task(m) } else { m };
        let blocks = m.div_ceil(block);
        let together = match team {
            Team::Threads(threads) => stripe::panels_per_task(steps, block, blocks * panels, threads),
            Team::This => panels,
        };
        let (groups, group) = stripe::groups(steps);
        // Without a next group the sums of a tile are used up at once.
        let kept = if groups == 1 { 0 } else { block.min(m).next_multiple_of(ROWS) * COLS };
        let sums = (kept * together.min(panels)).max(ROWS * COLS);
        Self { block, blocks, together, panels, rewritten, packed: group * COLS, sums, threads: team.threads() }
    }

    /// Elements of a thread.
    pub(super) fn of_thread(&self) -> usize {
        room(self.packed) + room(self.sums)
    }

    fn workspace(&self) -> usize {
        self.rewritten + self.threads * self.of_thread()
    }
}
