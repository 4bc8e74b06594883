//! The speed of this machine's matrix product: the yardstick of `cargo xtask bench`.
//!
//!     cargo run --release -p tune-core --example matmul_peak
//!
//! Prints `{"fp32": …, "bf16": …}`, the median in GFLOP/s of products 2048 x 2048 x 2048, made by the
//! operation that frozen weights are multiplied with.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Result, Tensor};
use tune_core::ops;

const SIZE: usize = 2048;
/// How long each type is measured.
const TIME: Duration = Duration::from_millis(1500);

fn main() -> Result<()> {
    let (fp32, bf16) = (gflops(DType::F32)?, gflops(DType::BF16)?);
    println!("{{\"fp32\": {fp32:.1}, \"bf16\": {bf16:.1}}}");
    Ok(())
}

fn gflops(dtype: DType) -> Result<f64> {
    let matrix = || Tensor::randn(0f32, 1.0, (SIZE, SIZE), &Device::Cpu)?.to_dtype(dtype);
    let (x, weight) = (matrix()?, matrix()?);
    // What is done once for a weight is done here.
    ops::linear(&x, &weight)?;
    let begun = Instant::now();
    let mut seconds = Vec::new();
    while begun.elapsed() < TIME || seconds.len() < 5 {
        let product = Instant::now();
        std::hint::black_box(ops::linear(&x, &weight)?);
        seconds.push(product.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(2.0 * (SIZE as f64).powi(3) / seconds[seconds.len() / 2] / 1e9)
}
