//! How a product of one shape is asked of cuBLASLt.

use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t as OperationAttribute, cublasLtMatmulHeuristicResult_t,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayout_t, cudaDataType_t,
};

use super::{Term, check};
use crate::buffer::{Element, ViewMut};
use crate::error::{Error, Result};

/// Numbers of parts of a long sum may be added up in f32 in the workspace, and only there: elsewhere they would be rounded.
static SUMS_IN_F32: u32 = 2;

/// All that an algorithm is chosen by. Letters are those of BLAS: `D = A · B + C`, column by column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    transposed: [bool; 2],
    rows: usize,
    cols: usize,
    inner: usize,
    /// From one column to the next, of A, B, C and D.
    strides: [usize; 4],
    /// Bytes that each address is a multiple of, 256 at most.
    alignments: [u32; 4],
    /// Whether A and B are bf16, and whether C and D are.
    narrow: [bool; 2],
    bias: bool,
}

impl Shape {
    /// The shape of a term, without what it is added to, and the addresses of A and B.
    pub(super) fn of<T: Element, D: Element>(term: Term<'_, T>, y: &ViewMut<'_, D>) -> (Self, [u64; 2]) {
        let (a, b, transposed, inner, result) = match term {
            Term::Up { x, w } => (w, x, [true, false], (x.cols, w.cols), (x.rows, w.rows)),
            Term::Down { g, w } => (w, g, [false, false], (g.cols, w.rows), (g.rows, w.cols)),
            Term::Across { g, x } => (x, g, [false, true], (g.rows, x.rows), (g.cols, x.cols)),
        };
        assert!(inner.0 == inner.1 && inner.0 > 0 && result == y.shape(), "a product: shapes that do not fit");
        let shape = Self {
            transposed,
            rows: y.cols,
            cols: y.rows,
            inner: inner.0,
            strides: [a.stride.max(a.cols), b.stride.max(b.cols), 0, y.stride.max(y.cols)],
            alignments: [0; 4],
            narrow: [T::INDEX == 1, D::INDEX == 1],
            bias: false,
        };
        (shape, [a.address, b.address])
    }

    /// What it is called where times are told.
    pub(super) fn name(&self) -> String {
        let kind = match self.transposed {
            [true, _] => "up",
            [false, false] => "down",
            [false, true] => "across",
        };
        let from = if self.narrow[0] { "bf16" } else { "f32" };
        format!("product {kind} {from} {} x {} x {}", self.cols, self.rows, self.inner)
    }

    pub(super) fn with_result(mut self, addresses: [u64; 4], c_stride: usize, bias: bool) -> Self {
        self.strides[2] = c_stride.max(self.rows);
        self.alignments = addresses.map(|address| 1 << (address | 256).trailing_zeros());
        Self { bias, ..self }
    }
}

/// What cuBLASLt is told, and the algorithm that it chose.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) operation: cublasLtMatmulDesc_t,
    /// Of A, B, C and D.
    pub(super) layouts: [cublasLtMatrixLayout_t; 4],
    pub(super) algorithm: cublasLtMatmulAlgo_t,
}

// SAFETY: descriptions are plain memory of the library's, used by one thread at a time.
unsafe impl Send for Plan {}

impl Plan {
    pub(super) fn new(handle: cublasLtHandle_t, shape: &Shape, workspace: usize) -> Result<Self> {
        let [of_terms, of_result] = shape.narrow.map(data_type);
        let (m, n, k) = (shape.rows as u64, shape.cols as u64, shape.inner as u64);
        let turned = |(rows, cols), transposed| if transposed { (cols, rows) } else { (rows, cols) };
        let sides = [turned((m, k), shape.transposed[0]), turned((k, n), shape.transposed[1]), (m, n), (m, n)];
        let mut plan = Self {
            operation: std::ptr::null_mut(),
            layouts: [std::ptr::null_mut(); 4],
            algorithm: cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        // SAFETY: writes one description.
        let made = unsafe {
            sys::cublasLtMatmulDescCreate(
                &raw mut plan.operation,
                Compute::CUBLAS_COMPUTE_32F,
                cudaDataType_t::CUDA_R_32F,
            )
        };
        check(made, "describing a product")?;
        for (i, (rows, cols)) in sides.into_iter().enumerate() {
            let of = if i < 2 { of_terms } else { of_result };
            // SAFETY: writes one description.
            let made = unsafe {
                sys::cublasLtMatrixLayoutCreate(&raw mut plan.layouts[i], of, rows, cols, shape.strides[i] as i64)
            };
            check(made, "describing a matrix")?;
        }
        let sides = [OperationAttribute::CUBLASLT_MATMUL_DESC_TRANSA, OperationAttribute::CUBLASLT_MATMUL_DESC_TRANSB];
        for (side, transposed) in sides.into_iter().zip(shape.transposed) {
            plan.set(side, i32::from(transposed))?;
        }
        if shape.bias {
            plan.set(OperationAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, Epilogue::CUBLASLT_EPILOGUE_BIAS as u32)?;
            plan.set(OperationAttribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, of_result as i32)?;
        }
        let found = plan.offers(handle, shape, workspace, 1)?;
        plan.algorithm = found[0].algo;
        Ok(plan)
    }

    /// Says where the bias is. It cannot fail: the attribute exists since a plan with a bias was made.
    pub(super) fn set_bias(&mut self, address: u64) {
        _ = self.set(OperationAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, address);
    }

    fn set<V: Copy>(&self, attribute: OperationAttribute, value: V) -> Result<()> {
        // SAFETY: reads the value, whose size is the attribute's.
        let set = unsafe {
            sys::cublasLtMatmulDescSetAttribute(self.operation, attribute, (&raw const value).cast(), size_of::<V>())
        };
        check(set, "describing a product")
    }

    /// Asks for the `most` algorithms that the library holds for the fastest, the best first; there is one at least.
    pub(super) fn offers(
        &self,
        handle: cublasLtHandle_t,
        shape: &Shape,
        workspace: usize,
        most: usize,
    ) -> Result<Vec<cublasLtMatmulHeuristicResult_t>> {
        let mut wishes = std::ptr::null_mut();
        // SAFETY: writes one description.
        check(unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut wishes) }, "choosing an algorithm")?;
        let wish = |attribute, value: *const _, size| {
            // SAFETY: reads a value of that size.
            check(
                unsafe { sys::cublasLtMatmulPreferenceSetAttribute(wishes, attribute, value, size) },
                "choosing an algorithm",
            )
        };
        let nothing = cublasLtMatmulHeuristicResult_t {
            algo: cublasLtMatmulAlgo_t { data: [0; 8] },
            workspaceSize: 0,
            state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let (mut found, mut count) = (vec![nothing; most], 0);
        let asked = (|| {
            wish(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8)?;
            wish(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const SUMS_IN_F32).cast(), 4)?;
            let sides = [
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ];
            for (side, alignment) in sides.into_iter().zip(&shape.alignments) {
                wish(side, std::ptr::from_ref(alignment).cast(), 4)?;
            }
            let [a, b, c, d] = self.layouts;
            // SAFETY: all descriptions are there; writes as many results at most.
            let asked = unsafe {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    handle,
                    self.operation,
                    a,
                    b,
                    c,
                    d,
                    wishes,
                    most as i32,
                    found.as_mut_ptr(),
                    &raw mut count,
                )
            };
            check(asked, "choosing an algorithm")
        })();
        // SAFETY: created above.
        unsafe { sys::cublasLtMatmulPreferenceDestroy(wishes) };
        asked?;
        found.truncate(count.max(0) as usize);
        if found.is_empty() {
            return Err(Error::Failed(format!("cuBLASLt has no algorithm for a product: {shape:?}")));
        }
        Ok(found)
    }

    pub(super) fn close(self) {
        // SAFETY: created by `new`, and used no more.
        unsafe {
            self.layouts.into_iter().for_each(|layout| _ = sys::cublasLtMatrixLayoutDestroy(layout));
            sys::cublasLtMatmulDescDestroy(self.operation);
        }
    }
}

fn data_type(narrow: bool) -> cudaDataType_t {
    if narrow { cudaDataType_t::CUDA_R_16BF } else { cudaDataType_t::CUDA_R_32F }
}
