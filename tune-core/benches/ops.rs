//! Every operation, forward and backward, at the shapes of SmolLM2-135M: 2 rows of 512 tokens.
//!
//!     cargo bench -p tune-core --bench ops                       all of them
//!     cargo bench -p tune-core --bench ops -- lora_linear        those with this in their name
//!
//! `item/s` is the rate of floating-point operations where products dominate, else of elements.
//! Backward is all that candle does for it, its `zeros + add` for each gradient included. Threads: `RAYON_NUM_THREADS`.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, Var};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use tune_core::data::{IGNORE, Span};
use tune_core::ops::{self, AttentionShape, LoraFactors, OutputHead, Rotary};

const ROWS: usize = 2;
const SEQ: usize = 512;
const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const VOCAB: usize = 49152;
const RANK: usize = 8;
const TOKENS: usize = ROWS * SEQ;
const SHAPE: AttentionShape = AttentionShape { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, window: None };
const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

fn main() {
    divan::main();
}

fn random(shape: &[usize], dtype: DType) -> Tensor {
    let values = Tensor::randn(0f32, 0.1, shape, &Device::Cpu);
    values.and_then(|t| t.to_dtype(dtype)).expect("a tensor on the CPU")
}

/// A trained one.
fn variable(shape: &[usize], dtype: DType) -> Tensor {
    Var::from_tensor(&random(shape, dtype)).expect("a tensor on the CPU").into_inner()
}

/// Activations, which always get a gradient.
fn activations(width: usize, dtype: DType) -> Tensor {
    variable(&[ROWS, SEQ, width], dtype)
}

fn forward(bencher: Bencher, items: usize, op: impl Fn() -> Result<Tensor> + Sync) {
    bencher.counter(ItemsCount::new(items)).bench(|| op().expect("the shapes fit"));
}

fn backward(bencher: Bencher, items: usize, op: impl Fn() -> Result<Tensor> + Sync) {
    let output = || {
        let y = op()?;
        y.apply_op1(Seed(random(y.dims(), y.dtype())))
    };
    bencher
        .counter(ItemsCount::new(items))
        .with_inputs(|| output().expect("the shapes fit"))
        .bench_refs(|seeded| seeded.backward().expect("every operation has a backward pass"));
}

/// Begins a backward pass with a gradient at hand. A sum would cost more than the operations that are measured.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), ().into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// The linear layers of the MLP: the weight to be trained, or frozen.
mod linear {
    use super::*;

    const PRODUCT: usize = 2 * TOKENS * HIDDEN * INTERMEDIATE;

    fn frozen(dtype: DType) -> impl Fn() -> Result<Tensor> {
        let (x, weight) = (activations(HIDDEN, dtype), random(&[INTERMEDIATE, HIDDEN], dtype));
        move || ops::linear(&x, &weight)
    }

    fn trained(dtype: DType) -> impl Fn() -> Result<Tensor> {
        let (x, weight) = (activations(HIDDEN, dtype), variable(&[INTERMEDIATE, HIDDEN], dtype));
        move || ops::linear(&x, &weight)
    }

    #[divan::bench(args = DTYPES)]
    fn frozen_forward(bencher: Bencher, dtype: DType) {
        forward(bencher, PRODUCT, frozen(dtype));
    }

    #[divan::bench(args = DTYPES)]
    fn frozen_backward(bencher: Bencher, dtype: DType) {
        backward(bencher, PRODUCT, frozen(dtype));
    }

    #[divan::bench(args = DTYPES)]
    fn trained_forward(bencher: Bencher, dtype: DType) {
        forward(bencher, PRODUCT, trained(dtype));
    }

    #[divan::bench(args = DTYPES)]
    fn trained_backward(bencher: Bencher, dtype: DType) {
        backward(bencher, 2 * PRODUCT, trained(dtype));
    }
}

mod lora_linear {
    use super::*;

    const BASE: usize = 2 * TOKENS * HIDDEN * INTERMEDIATE;
    const ADAPTER: usize = 2 * TOKENS * RANK * (HIDDEN + INTERMEDIATE);

    fn op(dtype: DType) -> impl Fn() -> Result<Tensor> {
        let (x, weight) = (activations(HIDDEN, dtype), random(&[INTERMEDIATE, HIDDEN], dtype));
        let (a, b) = (variable(&[RANK, HIDDEN], dtype), variable(&[INTERMEDIATE, RANK], dtype));
        let lora = LoraFactors { a, b, scale: 2.0, dropout: None };
        move || ops::lora_linear(&x, &weight, &lora)
    }

    #[divan::bench(name = "forward", args = DTYPES)]
    fn op_forward(bencher: Bencher, dtype: DType) {
        forward(bencher, BASE + ADAPTER, op(dtype));
    }

    #[divan::bench(name = "backward", args = DTYPES)]
    fn op_backward(bencher: Bencher, dtype: DType) {
        backward(bencher, BASE + 2 * ADAPTER, op(dtype));
    }
}

mod attention {
    use super::*;

    /// For scores and values, of all heads, forward.
    const PRODUCTS: usize = 4 * SHAPE.head_dim * SHAPE.heads;

    /// Samples that fill the rows: one a row, or four.
    fn spans(samples: usize) -> Arc<[Span]> {
        let len = SEQ / samples;
        (0..ROWS).flat_map(|row| (0..samples).map(move |i| Span { row, start: i * len, len })).collect()
    }

    fn pairs(samples: usize) -> usize {
        let len = SEQ / samples;
        ROWS * samples * len * (len + 1) / 2
    }

    fn op(samples: usize, dtype: DType) -> impl Fn() -> Result<Tensor> {
        let q = activations(SHAPE.heads * SHAPE.head_dim, dtype);
        let kv = || activations(SHAPE.kv_heads * SHAPE.head_dim, dtype);
        let (k, v, spans) = (kv(), kv(), spans(samples));
        move || ops::attention(&q, &k, &v, SHAPE, &spans)
    }

    #[divan::bench(args = DTYPES)]
    fn whole_rows_forward(bencher: Bencher, dtype: DType) {
        forward(bencher, PRODUCTS * pairs(1), op(1, dtype));
    }

    #[divan::bench(args = DTYPES)]
    fn whole_rows_backward(bencher: Bencher, dtype: DType) {
        backward(bencher, 2 * PRODUCTS * pairs(1), op(1, dtype));
    }

    #[divan::bench(args = DTYPES)]
    fn packed_forward(bencher: Bencher, dtype: DType) {
        forward(bencher, PRODUCTS * pairs(4), op(4, dtype));
    }

    #[divan::bench(args = DTYPES)]
    fn packed_backward(bencher: Bencher, dtype: DType) {
        backward(bencher, 2 * PRODUCTS * pairs(4), op(4, dtype));
    }

    /// One new token after a row of them.
    #[divan::bench(args = DTYPES)]
    fn with_cache(bencher: Bencher, dtype: DType) {
        let q = random(&[1, 1, SHAPE.heads * SHAPE.head_dim], dtype);
        let kv = || random(&[1, SEQ, SHAPE.kv_heads * SHAPE.head_dim], dtype);
        let (k, v) = (kv(), kv());
        forward(bencher, PRODUCTS * SEQ, || ops::attention_with_cache(&q, &k, &v, SHAPE));
    }
}

/// The output layer and the loss. The gradients are made in the forward pass.
mod cross_entropy {
    use super::*;

    fn run(bencher: Bencher, dtype: DType, weight: Tensor, products: usize, scale: Option<f64>) {
        let hidden = random(&[ROWS, SEQ, HIDDEN], dtype);
        let head = OutputHead { weight, lora: None };
        // Every other token is trained.
        let targets: Vec<u32> =
            (0..TOKENS).map(|i| if i % 2 == 0 { (i * 37 % VOCAB) as u32 } else { IGNORE }).collect();
        bencher
            .counter(ItemsCount::new(products * 2 * (TOKENS / 2) * HIDDEN * VOCAB))
            .bench(|| ops::cross_entropy(&hidden, &head, black_box(&targets), scale).expect("the shapes fit"));
    }

    #[divan::bench(name = "forward", args = DTYPES)]
    fn loss_alone(bencher: Bencher, dtype: DType) {
        run(bencher, dtype, random(&[VOCAB, HIDDEN], dtype), 1, None);
    }

    #[divan::bench(args = DTYPES)]
    fn frozen_with_gradients(bencher: Bencher, dtype: DType) {
        run(bencher, dtype, random(&[VOCAB, HIDDEN], dtype), 2, Some(1.0));
    }

    #[divan::bench(args = DTYPES)]
    fn trained_with_gradients(bencher: Bencher, dtype: DType) {
        run(bencher, dtype, variable(&[VOCAB, HIDDEN], dtype), 3, Some(1.0));
    }
}

mod embedding {
    use super::*;

    fn op(dtype: DType) -> impl Fn() -> Result<Tensor> {
        let weight = variable(&[VOCAB, HIDDEN], dtype);
        let ids: Vec<u32> = (0..TOKENS).map(|i| (i * 37 % VOCAB) as u32).collect();
        move || ops::embedding(&ids, ROWS, &weight)
    }

    #[divan::bench(name = "forward", args = DTYPES)]
    fn op_forward(bencher: Bencher, dtype: DType) {
        forward(bencher, TOKENS * HIDDEN, op(dtype));
    }

    #[divan::bench(name = "backward", args = DTYPES)]
    fn op_backward(bencher: Bencher, dtype: DType) {
        backward(bencher, TOKENS * HIDDEN, op(dtype));
    }
}

mod rms_norm {
    use super::*;

    fn op(weight: Tensor, dtype: DType) -> impl Fn() -> Result<Tensor> {
        let x = activations(HIDDEN, dtype);
        move || ops::rms_norm(&x, &weight, 1e-5)
    }

    #[divan::bench(name = "forward", args = DTYPES)]
    fn op_forward(bencher: Bencher, dtype: DType) {
        forward(bencher, TOKENS * HIDDEN, op(random(&[HIDDEN], dtype), dtype));
    }

    #[divan::bench(args = DTYPES)]
    fn frozen_backward(bencher: Bencher, dtype: DType) {
        backward(bencher, TOKENS * HIDDEN, op(random(&[HIDDEN], dtype), dtype));
    }

    #[divan::bench(args = DTYPES)]
    fn trained_backward(bencher: Bencher, dtype: DType) {
        backward(bencher, TOKENS * HIDDEN, op(variable(&[HIDDEN], dtype), dtype));
    }
}

mod rope {
    use super::*;

    fn op(dtype: DType) -> impl Fn() -> Result<Tensor> {
        let half = SHAPE.head_dim / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| 1e5f32.powf(-(i as f32) / half as f32)).collect();
        let positions: Vec<u32> = (0..TOKENS).map(|i| (i % SEQ) as u32).collect();
        let rotary = Rotary::new(&positions, &frequencies);
        let q = activations(SHAPE.heads * SHAPE.head_dim, dtype);
        move || ops::rope(&q, &rotary)
    }

    #[divan::bench(name = "forward", args = DTYPES)]
    fn op_forward(bencher: Bencher, dtype: DType) {
        forward(bencher, TOKENS * HIDDEN, op(dtype));
    }

    #[divan::bench(name = "backward", args = DTYPES)]
    fn op_backward(bencher: Bencher, dtype: DType) {
        backward(bencher, TOKENS * HIDDEN, op(dtype));
    }
}

mod swiglu {
    use super::*;

    fn op(dtype: DType) -> impl Fn() -> Result<Tensor> {
        let (gate, up) = (activations(INTERMEDIATE, dtype), activations(INTERMEDIATE, dtype));
        move || ops::swiglu(&gate, &up)
    }

    #[divan::bench(name = "forward", args = DTYPES)]
    fn op_forward(bencher: Bencher, dtype: DType) {
        forward(bencher, TOKENS * INTERMEDIATE, op(dtype));
    }

    #[divan::bench(name = "backward", args = DTYPES)]
    fn op_backward(bencher: Bencher, dtype: DType) {
        backward(bencher, TOKENS * INTERMEDIATE, op(dtype));
    }
}
