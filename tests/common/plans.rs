//! How near a plan of memory is to what a run takes.

#![allow(unreachable_pub)]

/// Bytes of a mebibyte.
pub const MIB: f64 = 1048576.0;

/// MiB that the `gemm` crate takes by itself where it computes the products, of which a plan knows nothing: operands that are packed, in
/// pieces for the processor's caches, and what is left between them. It does not grow with a model; 8 to 12 were seen.
fn of_gemm_crate() -> f64 {
    if ["avx2", "portable"].contains(&tune_core::engine::kernels().as_str()) { 12.0 } else { 0.0 }
}

/// Whether a plan is near enough to what was taken, both in MiB; it may be `slack` too high.
pub fn is_close(plan: f64, peak: f64, slack: f64) -> bool {
    let (least, off) = ((plan + of_gemm_crate()) / peak - 1.0, plan / peak - 1.0);
    least > -0.1 && (off < 0.1 || plan - peak <= slack)
}
