//! Products of matrices by cuBLASLt, sums in f32.
//!
//! Our matrices are row by row, cuBLASLt's column by column: what it sees of each is the transpose, so `yᵀ = w · xᵀ` is asked for
//! where `y = x · wᵀ` is meant.

mod candidates;
mod plan;

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::sys::{self, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasStatus_t, cudaStream_t};

use crate::buffer::{Buffer, Element, View, ViewMut};
use crate::context::Context;
use crate::error::{Error, Result};
pub use candidates::Candidate;
use plan::{Plan, Shape};

/// Bytes that cuBLASLt may use beside its arguments. NVIDIA recommends that much for Hopper.
pub const WORKSPACE: usize = 32 << 20;

/// A product, by its part in a layer.
#[derive(Debug, Clone, Copy)]
pub enum Term<'a, T> {
    /// `x · wᵀ`, `[m, k]` and `[n, k]`: a layer on the way up.
    Up {
        /// `[m, k]`.
        x: View<'a, T>,
        /// `[n, k]`.
        w: View<'a, T>,
    },
    /// `g · w`: a gradient on the way down.
    Down {
        /// `[m, n]`.
        g: View<'a, T>,
        /// `[n, k]`.
        w: View<'a, T>,
    },
    /// `gᵀ · x`: a weight's gradient.
    Across {
        /// `[m, n]`.
        g: View<'a, T>,
        /// `[m, k]`.
        x: View<'a, T>,
    },
}

/// What a product is added to.
#[derive(Debug, Clone, Copy)]
pub enum Onto<'a, D> {
    /// Nothing: it replaces what was there.
    Nothing,
    /// What is in its destination.
    Itself,
    /// Another matrix of that shape.
    Other(View<'a, D>),
}

/// cuBLASLt with what it found out about each shape so far.
#[derive(Debug)]
pub(crate) struct Products {
    handle: cublasLtHandle_t,
    plans: Mutex<BTreeMap<Shape, Plan>>,
    workspace: u64,
}

// SAFETY: the handle may be used from any thread; plans are behind a lock.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

impl Products {
    pub(crate) fn new(context: &Context) -> Result<Self> {
        context.0.bind();
        let mut handle = std::ptr::null_mut();
        // SAFETY: the library was found; writes one handle.
        let status = unsafe { sys::cublasLtCreate(&raw mut handle) };
        check(status, "starting cuBLASLt")?;
        let workspace = context.0.memory().take(WORKSPACE as u64)?;
        Ok(Self { handle, plans: Mutex::default(), workspace })
    }

    /// Queues a product, `factors[0] · A · B + factors[1] · C`, into D.
    fn run(
        &self,
        plan: &Plan,
        algorithm: &cublasLtMatmulAlgo_t,
        factors: [f32; 2],
        matrices: [u64; 4],
        stream: cudaStream_t,
    ) -> cublasStatus_t {
        let [a, b, c, d] = matrices.map(|address| address as usize as *mut c_void);
        // SAFETY: the plan describes these very matrices, which are as large as their views say.
        unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.operation,
                (&raw const factors[0]).cast(),
                a,
                plan.layouts[0],
                b,
                plan.layouts[1],
                (&raw const factors[1]).cast(),
                c,
                plan.layouts[2],
                d,
                plan.layouts[3],
                std::ptr::from_ref(algorithm),
                self.workspace as usize as *mut c_void,
                WORKSPACE,
                stream,
            )
        }
    }

    /// Gives back what the library holds.
    pub(crate) fn close(self) {
        let plans = self.plans.into_inner().unwrap_or_else(PoisonError::into_inner);
        plans.into_values().for_each(Plan::close);
        // SAFETY: created by `new`, and used no more.
        unsafe { sys::cublasLtDestroy(self.handle) };
    }
}

impl Context {
    /// `y = factor · term (+ bias for each row) (+ onto)`.
    ///
    /// The algorithm is chosen by cuBLASLt when a shape comes for the first time, and kept. It is one that gives the same
    /// bits each time.
    ///
    /// # Panics
    /// If shapes do not fit.
    // A view to be written is given away.
    #[allow(clippy::needless_pass_by_value)]
    pub fn multiply<T: Element, D: Element>(
        &self,
        term: Term<'_, T>,
        factor: f32,
        bias: Option<&Buffer<D>>,
        onto: Onto<'_, D>,
        y: ViewMut<'_, D>,
    ) {
        assert!(bias.is_none_or(|bias| bias.len() == y.cols), "a product: a bias of another size");
        let (shape, matrices) = asked(term, bias.is_some(), onto, &y);
        if y.rows == 0 || y.cols == 0 || self.0.failed() {
            return;
        }
        let Some(products) = self.products() else { return };
        self.0.bind();
        let mut plans = products.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match plans.get_mut(&shape) {
            Some(plan) => plan,
            None => match Plan::new(products.handle, &shape, WORKSPACE) {
                Ok(plan) => plans.entry(shape).or_insert(plan),
                Err(error) => return self.0.remember(error),
            },
        };
        if let Some(bias) = bias {
            plan.set_bias(bias.address());
        }
        let beta = if matches!(onto, Onto::Nothing) { 0.0 } else { 1.0 };
        let multiply = || products.run(plan, &plan.algorithm, [factor, beta], matrices, self.0.stream.cast());
        let status = self.0.timed(|| shape.name(), multiply);
        if let Err(error) = check(status, "multiplying matrices") {
            self.0.remember(error);
        }
    }
}

/// What is asked of cuBLASLt for a product, and the addresses of A, B, C and D.
fn asked<T: Element, D: Element>(
    term: Term<'_, T>,
    bias: bool,
    onto: Onto<'_, D>,
    y: &ViewMut<'_, D>,
) -> (Shape, [u64; 4]) {
    let (shape, [a, b]) = Shape::of(term, y);
    let (c, c_stride) = match onto {
        Onto::Nothing | Onto::Itself => (y.address, y.stride),
        Onto::Other(other) => {
            assert_eq!(other.shape(), y.shape(), "a product: shapes that do not fit");
            (other.address, other.stride)
        }
    };
    let matrices = [a, b, c, y.address];
    (shape.with_result(matrices, c_stride, bias), matrices)
}

/// Turns a status of cuBLASLt into an error.
fn check(status: cublasStatus_t, doing: &str) -> Result<()> {
    match status {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        cublasStatus_t::CUBLAS_STATUS_NOT_INITIALIZED | cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => {
            Err(Error::Failed(format!("cuBLASLt failed {doing}: {status:?}; is the card's memory full?")))
        }
        cublasStatus_t::CUBLAS_STATUS_ARCH_MISMATCH => {
            Err(Error::Failed(format!("cuBLASLt failed {doing}: it is too old for this card; install a newer one")))
        }
        status => Err(Error::Failed(format!("cuBLASLt failed {doing}: {status:?}"))),
    }
}
