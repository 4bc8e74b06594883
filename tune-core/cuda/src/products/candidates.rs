//! The algorithms that cuBLASLt has for a product, and what each takes: for who looks for a faster one.

use cudarc::cublaslt::sys::{
    self, cublasLtMatmulAlgo_t, cublasLtMatmulAlgoConfigAttributes_t as Attribute, cublasStatus_t,
};

use super::plan::Plan;
use super::{Onto, Term, WORKSPACE, asked, check};
use crate::buffer::{Element, ViewMut};
use crate::context::Context;
use crate::error::Result;
use crate::events::Event;

/// An algorithm for a product.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// cuBLASLt's numbers for what it does.
    pub what: String,
    /// How often it fills the card.
    pub waves: f32,
    /// Bytes of workspace.
    pub workspace: usize,
    /// Milliseconds of the card: the median of some runs.
    pub milliseconds: f32,
}

/// How often each is timed, and how many products in a row.
const ROUNDS: usize = 5;
const IN_A_ROW: usize = 3;

impl Context {
    /// The `most` algorithms that cuBLASLt holds for the fastest for `y = term (+ onto)`, the best in its view first, which is the one
    /// that [`Context::multiply`] takes. All are run; `y` is what the last of them makes of it.
    ///
    /// # Errors
    /// The library has none, and the context's first error.
    ///
    /// # Panics
    /// If shapes do not fit.
    // A view to be written is given away.
    #[allow(clippy::needless_pass_by_value)]
    pub fn candidates<T: Element, D: Element>(
        &self,
        term: Term<'_, T>,
        onto: Onto<'_, D>,
        y: ViewMut<'_, D>,
        most: usize,
    ) -> Result<Vec<Candidate>> {
        self.check()?;
        let (shape, matrices) = asked(term, false, onto, &y);
        let Some(products) = self.products() else { return Ok(Vec::new()) };
        self.0.bind();
        let plan = Plan::new(products.handle, &shape, WORKSPACE)?;
        let factors = [1.0, if matches!(onto, Onto::Nothing) { 0.0 } else { 1.0 }];
        let measured = (|| {
            let offers = plan.offers(products.handle, &shape, WORKSPACE, most)?;
            let run = |algorithm| {
                check(products.run(&plan, algorithm, factors, matrices, self.0.stream.cast()), "multiplying matrices")
            };
            // One after the other, and all again: a card's clocks change.
            let mut times: Vec<Vec<(Event, Event)>> = offers.iter().map(|_| Vec::with_capacity(ROUNDS)).collect();
            for _ in 0..ROUNDS {
                for (offer, times) in offers.iter().zip(&mut times) {
                    run(&offer.algo)?;
                    let before = self.mark();
                    (0..IN_A_ROW).try_for_each(|_| run(&offer.algo))?;
                    times.push((before, self.mark()));
                }
            }
            let candidate = |(offer, times): (&sys::cublasLtMatmulHeuristicResult_t, &Vec<(Event, Event)>)| {
                let of = |(from, to): &(Event, Event)| Ok(self.milliseconds(from, to)? / IN_A_ROW as f32);
                let mut times = times.iter().map(of).collect::<Result<Vec<f32>>>()?;
                times.sort_by(f32::total_cmp);
                Ok(Candidate {
                    what: described(&offer.algo),
                    waves: offer.wavesCount,
                    workspace: offer.workspaceSize,
                    milliseconds: times[times.len() / 2],
                })
            };
            offers.iter().zip(&times).map(candidate).collect()
        })();
        plan.close();
        measured
    }
}

/// What the library says of an algorithm.
fn described(algorithm: &cublasLtMatmulAlgo_t) -> String {
    let attributes = [
        ("id", Attribute::CUBLASLT_ALGO_CONFIG_ID),
        ("tile", Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID),
        ("stages", Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID),
        ("parts", Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM),
        ("reduction", Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME),
        ("swizzling", Attribute::CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING),
        ("option", Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION),
        ("cluster", Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID),
    ];
    let number = |(name, attribute)| {
        // Some are numbers of four bytes and some of two.
        let read = [4, 2].into_iter().find_map(|bytes| {
            let (mut value, mut written) = (0u32, 0);
            // SAFETY: reads the algorithm, writes this many bytes at most.
            let read = unsafe {
                sys::cublasLtMatmulAlgoConfigGetAttribute(
                    std::ptr::from_ref(algorithm),
                    attribute,
                    (&raw mut value).cast(),
                    bytes,
                    &raw mut written,
                )
            };
            (read == cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(value)
        });
        read.map_or_else(|| format!("{name} ?"), |value| format!("{name} {value}"))
    };
    attributes.map(number).join(", ")
}
