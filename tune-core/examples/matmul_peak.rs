//! The speed of this machine's matrix product: the yardstick of `cargo xtask bench`.
//!
//!     cargo run --release -p tune-core --example matmul_peak
//!
//! Prints `{"kernels": …, "fp32": …, "bf16": …}`: what it computes with, and GFLOP/s.

use candle_core::DType;
use tune_core::config::say;
use tune_core::engine::{kernels, matmul_peak};

fn main() {
    let (fp32, bf16) = (matmul_peak(DType::F32), matmul_peak(DType::BF16));
    say!("{{\"kernels\": \"{}\", \"fp32\": {fp32:.1}, \"bf16\": {bf16:.1}}}", kernels());
}
