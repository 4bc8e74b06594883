//! Products of experts that have few rows each, all experts in one launch, by places that the card alone knows.

use super::{Routes, both};
use crate::buffer::{Buffer, Element, View, ViewMut};
use crate::context::Context;
use crate::launch::{Launch, MOST_ROWS, Size};
use crate::modules::Kernel;

static GROUPED: [Kernel; 2] = both("grouped", ["grouped_f32", "grouped_bf16"], "ppppppppppiiiif");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&GROUPED];

/// Rows of an expert that a block computes at a time, and results of each.
const ROWS: usize = 32;
const OUTS: usize = 32;
/// Bytes of the sums of a block's four warps, whose rows have a gap between them.
const SHARED: usize = 4 * ROWS * (OUTS + 4) * size_of::<f32>();
/// Products that are done at once, at most.
const PRODUCTS: usize = 2;

/// Places up to which [`Context::multiply_grouped`] is the better way for so many experts: as many rows for each, on average, as a block
/// computes at a time. Up to there every weight is read once, and reading them is what takes the time. To have cuBLASLt multiply means to
/// wait for the numbers of rows, and a call of 4 to 6 µs for each expert, in which a card reads some 20 MB.
#[must_use]
pub const fn few_places(experts: usize) -> usize {
    ROWS * experts
}

/// Where matrices are, as kernels read it.
#[derive(Debug)]
pub struct Table {
    addresses: Vec<u64>,
    on_card: Buffer<u64>,
}

/// What tells a [`Table`] of these matrices from those of others.
pub fn addresses<T>(matrices: &[View<'_, T>]) -> Vec<u64> {
    matrices.iter().map(|matrix| matrix.address).collect()
}

/// One term of products by experts.
#[derive(Debug, Clone, Copy)]
pub struct ByExperts<'a, T> {
    /// The input of each product, whose rows follow each other: `[places, inner]`, or `[tokens, inner]`.
    pub x: &'a [View<'a, T>],
    /// Whether the rows are tokens: a place has that of its token.
    pub of_tokens: bool,
    /// The weights `[out, inner]` of all experts, product by product; their rows follow each other.
    pub weights: &'a [View<'a, T>],
    /// Where these are.
    pub table: &'a Table,
}

impl Context {
    /// Brings a table of matrices to the card: of [`addresses`]. It has memory of its own, also where somebody is to record what is queued.
    pub fn table(&self, addresses: Vec<u64>) -> Table {
        let on_card = self.apart(|| self.upload(&addresses));
        Table { addresses, on_card }
    }

    /// `y[place] = factor · (x[place] · wᵀ + h[place] · bᵀ)`, for each of one or two products of the same shape, where `x` and `w` are of
    /// the term `of`, `h` and `b` of `adapters`, and the weights are those of the place's expert. Sums are in f32, in an order that
    /// depends on the shape of the weights alone: a row's result does not depend on the rows beside it. Waits for nothing.
    ///
    /// # Panics
    /// If shapes do not fit, or a table is of other weights.
    pub fn multiply_grouped<T: Element>(
        &self,
        routes: &Routes,
        of: ByExperts<'_, T>,
        adapters: Option<ByExperts<'_, T>>,
        factor: f32,
        y: &mut [ViewMut<'_, T>],
    ) {
        let (experts, places) = (routes.count(), routes.len());
        let Some((out, inner)) = of.weights.first().map(View::shape) else { return };
        let rank = adapters.map_or(0, |of| of.x.first().map_or(0, |h| h.cols));
        let fits = (1..=PRODUCTS).contains(&y.len()) && y.iter().all(|y| y.shape() == (places, out) && y.stride == out);
        assert!(fits, "multiply_grouped: results of another shape");
        for (term, inner) in std::iter::once((of, inner)).chain(adapters.map(|of| (of, rank))) {
            let rows = if term.of_tokens { places / routes.chosen() } else { places };
            let is_input = |x: &View<'_, T>| x.shape() == (rows, inner) && x.stride == inner;
            let is_weight = |w: &View<'_, T>| w.shape() == (out, inner) && (w.stride == inner || out == 1);
            let as_many = term.x.len() == y.len() && term.weights.len() == y.len() * experts;
            let fits = as_many && term.x.iter().all(is_input) && term.weights.iter().all(is_weight);
            assert!(fits && inner > 0, "multiply_grouped: shapes that do not fit");
            let is_of = term.table.addresses.iter().copied().eq(term.weights.iter().map(|w| w.address));
            assert!(is_of, "multiply_grouped: a table of other weights");
        }
        assert!(
            adapters.is_none_or(|of| !of.of_tokens),
            "multiply_grouped: what adapters make has a row for each place"
        );
        let pieces = experts.min(places) + places / ROWS;
        assert!(pieces <= MOST_ROWS, "multiply_grouped: these are not few rows");
        let second = y.len() - 1;
        let of_adapters = |at: usize| adapters.map_or(0, |of| of.x[at].address);
        Launch::new(self, &GROUPED[T::INDEX])
            .pointer(y[0].address)
            .pointer(y[second].address)
            .pointer(of.x[0].address)
            .pointer(of.x[second].address)
            .pointer(of_adapters(0))
            .pointer(of_adapters(second))
            .pointer(of.table.on_card.address())
            .pointer(adapters.map_or(0, |of| of.table.on_card.address()))
            .pointer(if of.of_tokens { routes.tokens().address() } else { 0 })
            .pointer(routes.firsts().address())
            .int(out)
            .int(inner)
            .int(rank)
            .int(experts)
            .float(factor)
            .go(Size { grid: [out.div_ceil(OUTS), pieces, y.len()], threads: [128, 1], shared: SHARED });
    }
}
