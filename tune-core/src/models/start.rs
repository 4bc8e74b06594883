//! Adapters that begin with a part of the weight that they are on, which is taken out of the weight: PiSSA (Meng et al. 2024,
//! <https://arxiv.org/abs/2404.02948>) and OLoRA (Büyükakyüz 2024, <https://arxiv.org/abs/2406.01775>).
//!
//! Both need a few vectors of a large matrix. A library's whole decomposition takes minutes for a matrix of a large model, so the
//! largest singular vectors are found here by products with the matrix alone: a block Krylov method (Musco and Musco 2015,
//! <https://arxiv.org/abs/1504.05477>), which comes near the best approximation however close singular values are to each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};

use super::adapter::{LoraOptions, OfLayer, Start};
use super::linear::{Weight, merged};
use super::weights::normal;
use crate::kernels::{Dropout, parallel};
use crate::{Error, Result};

/// Vectors beside those that are wanted: the more there are, the faster these are found.
const SPARE: usize = 10;
/// Vectors that a basis is to have at most, unless two blocks have more.
const BASIS: usize = 160;
/// Products with the matrix and its transpose until the vectors are taken as they are.
const MOST: usize = 48;
/// The length of what is left of a vector, relative to the largest singular value, at which it is found.
const FOUND: f64 = 1e-5;

/// Matrices of adapters as they were before the first step, by the names of [`Decoder::trainable`](super::Decoder::trainable).
#[derive(Debug, Clone, Default)]
pub struct Begun(Arc<BTreeMap<String, Tensor>>);

impl Begun {
    /// Those of a saved adapter.
    pub(crate) fn new(matrices: BTreeMap<String, Tensor>) -> Self {
        Self(Arc::new(matrices))
    }
}

impl PartialEq for Begun {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.is_empty() && other.0.is_empty())
    }
}

/// The `A` `[rank, in]` and `B` `[out, rank]` that an adapter begins with, f32, and what is left of the weight without them.
pub(super) struct Part {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) rest: Weight,
}

/// Takes the adapter's first `A` and `B` out of a weight.
///
/// # Errors
/// A weight in blocks, a rank that is larger than the weight, and those of the tensor library.
pub(super) fn part_of(layer: &str, weight: &Weight, lora: &LoraOptions, of: OfLayer) -> Result<Part> {
    let Weight::Tensor(weight) = weight else {
        return Err(Error::setup(format!(
            "model.init_lora_weights={} changes the weights that adapters are on, and `{layer}` is held quantized: set \
             model.quantize_base=false and model.keep_quantized=false, or init_lora_weights=kaiming",
            lora.start.name()
        )));
    };
    let (out, inner) = weight.dims2()?;
    if of.rank > out.min(inner) {
        return Err(Error::setup(format!(
            "model.init_lora_weights={}: `{layer}` is {out} by {inner}, and has no {} singular vectors: lower \
             model.lora_rank, or give the layer a rank of its own in model.rank_pattern",
            lora.start.name(),
            of.rank
        )));
    }
    let begun = |of: &str| lora.begun.0.get(&format!("{layer}.lora_{of}.weight")).cloned();
    let (a, b) = match (begun("A"), begun("B")) {
        (Some(a), Some(b)) => (a, b),
        _ => {
            let wide = weight.detach().to_dtype(DType::F32)?;
            match lora.start {
                Start::Olora => orthogonal(&wide, of.rank, Dropout::mix_name(lora.seed, layer))?,
                _ => principal(&wide, of, lora.iterations, Dropout::mix_name(lora.seed, layer))?,
            }
        }
    };
    let rest = Weight::Tensor(merged(weight, std::iter::once((&a, &b, -of.scale)), None)?);
    Ok(Part { a, b, rest })
}

/// PiSSA: the largest singular values and vectors, each value's root on both sides.
fn principal(weight: &Tensor, of: OfLayer, iterations: Option<usize>, seed: u64) -> Result<(Tensor, Tensor)> {
    let Singular { left, values, right } = largest(weight, of.rank, iterations, seed)?;
    let roots: Vec<f32> = values.iter().map(|value| (value / of.scale).sqrt() as f32).collect();
    let roots = Tensor::from_vec(roots, (values.len(), 1), &Device::Cpu)?;
    Ok((right.broadcast_mul(&roots)?, left.broadcast_mul(&roots)?.t()?.contiguous()?))
}

/// OLoRA: the first columns of `Q` and rows of `R` of the weight's QR decomposition.
fn orthogonal(weight: &Tensor, rank: usize, seed: u64) -> Result<(Tensor, Tensor)> {
    let columns = weight.narrow(1, 0, rank)?.t()?.contiguous()?;
    let mut q = Vec::new();
    for (i, column) in rows_of(&columns)?.into_iter().enumerate() {
        // A column that depends on those before it says nothing of its direction: any that is orthogonal will do.
        let mut with = Some(column);
        for attempt in 0_u64.. {
            let vector = with.take().unwrap_or_else(|| normal(seed.wrapping_add(attempt), weight.dims()[0], 1.0));
            append(&mut q, vector);
            if q.len() > i {
                break;
            }
        }
    }
    let q = tensor_of(&q, weight.dims()[0])?;
    Ok((q.matmul(weight)?, q.t()?.contiguous()?))
}

/// The largest singular values of a matrix, and their vectors as rows.
struct Singular {
    /// `[count, out]`.
    left: Tensor,
    /// In descending order.
    values: Vec<f64>,
    /// `[count, in]`.
    right: Tensor,
}

/// The `count` largest singular values of `weight` `[out, in]`. With `iterations`, the vectors are taken as they are after as many
/// products with the matrix and its transpose, else when they are found.
fn largest(weight: &Tensor, count: usize, iterations: Option<usize>, seed: u64) -> Result<Singular> {
    let (out, inner) = weight.dims2()?;
    let all = out.min(inner);
    let block = (count + SPARE).min(all);
    let transposed = weight.t()?;
    let mut products = iterations.map_or(MOST, |n| n + 1);
    let mut first = Tensor::from_vec(normal(seed, block * inner, 1.0), (block, inner), &Device::Cpu)?;
    loop {
        // An orthonormal basis of `W X, W Wᵀ W X, …`, and what `Wᵀ` makes of it.
        let (mut basis, mut images) = (Vec::new(), Vec::<Tensor>::new());
        for _ in 0..(BASIS / block).max(2).min(products) {
            let from = basis.len();
            let next = images.last().unwrap_or(&first).matmul(&transposed)?;
            rows_of(&next)?.into_iter().for_each(|row| append(&mut basis, row));
            products -= 1;
            if basis.len() == from {
                break;
            }
            images.push(tensor_of(&basis[from..], out)?.matmul(weight)?);
        }
        if basis.is_empty() {
            // A matrix of zeros.
            let zeros = |width| Tensor::zeros((count, width), DType::F32, &Device::Cpu);
            return Ok(Singular { left: zeros(out)?, values: vec![0.0; count], right: zeros(inner)? });
        }
        let found = of_basis(&tensor_of(&basis, out)?, &Tensor::cat(&images, 0)?, block)?;
        let is_whole = basis.len() >= all;
        if products == 0 || is_whole || (iterations.is_none() && is_found(&found, &transposed, count)?) {
            let values = found.values[..count.min(found.values.len())].to_vec();
            return of_count(&found, values, count);
        }
        first = found.right;
    }
}

/// The first of those that were found; where the matrix has fewer that are not zero, the rest is zero.
fn of_count(found: &Singular, mut values: Vec<f64>, count: usize) -> Result<Singular> {
    let missing = count - values.len();
    let rows = |of: &Tensor| -> Result<Tensor> { Ok(of.narrow(0, 0, values.len())?.pad_with_zeros(0, 0, missing)?) };
    let (left, right) = (rows(&found.left)?, rows(&found.right)?);
    values.resize(count, 0.0);
    Ok(Singular { left, values, right })
}

/// Whether the first `count` vectors are singular vectors: `W v = σ u`. That `Wᵀ u = σ v` is how they are made.
fn is_found(found: &Singular, transposed: &Tensor, count: usize) -> Result<bool> {
    let count = count.min(found.values.len());
    let Some(largest) = found.values.first() else { return Ok(true) };
    let values: Vec<f32> = found.values[..count].iter().map(|&value| value as f32).collect();
    let expected =
        found.left.narrow(0, 0, count)?.broadcast_mul(&Tensor::from_vec(values, (count, 1), &Device::Cpu)?)?;
    let left_over = (found.right.narrow(0, 0, count)?.matmul(transposed)? - expected)?;
    let lengths = left_over.sqr()?.sum(D::Minus1)?.to_vec1::<f32>()?;
    Ok(lengths.iter().all(|&square| f64::from(square).sqrt() <= FOUND * largest))
}

/// The singular values and vectors that a basis `[k, out]` has, at most `most`; `images` are `[k, in]`, its products with the matrix.
fn of_basis(basis: &Tensor, images: &Tensor, most: usize) -> Result<Singular> {
    let rows = rows_of(images)?;
    let k = rows.len();
    let lower: Vec<Vec<f64>> = parallel::map(k, |i| (0..=i).map(|j| dot(&rows[i], &rows[j])).collect());
    let gram = (0..k).map(|i| (0..k).map(|j| lower[i.max(j)][i.min(j)]).collect()).collect();
    let (squares, vectors) = eigen(gram);
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&i, &j| squares[j].total_cmp(&squares[i]));
    let largest = order.first().map_or(0.0, |&i| squares[i]);
    // Smaller ones are what rounding leaves of zero.
    order.retain(|&i| squares[i] > largest * 1e-12);
    order.truncate(most);
    let values: Vec<f64> = order.iter().map(|&i| squares[i].sqrt()).collect();
    let chosen = |divided: bool| -> Result<Tensor> {
        let by = |value: f64| if divided { value } else { 1.0 };
        let rows = order.iter().zip(&values);
        let flat = rows.flat_map(|(&i, &value)| vectors[i].iter().map(move |x| (x / by(value)) as f32)).collect();
        Ok(Tensor::from_vec(flat, (order.len(), k), &Device::Cpu)?)
    };
    let (left, right) = (chosen(false)?.matmul(basis)?, chosen(true)?.matmul(images)?);
    Ok(Singular { left, values, right })
}

/// The eigenvalues of a symmetric matrix and their vectors, by Jacobi's rotations.
fn eigen(mut a: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>) {
    let n = a.len();
    let mut vectors: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    // Both rows are turned by an angle with this cosine and sine.
    let turn = |rows: &mut [Vec<f64>], (p, q): (usize, usize), (c, s): (f64, f64)| {
        let (upper, lower) = rows.split_at_mut(q);
        for (x, y) in upper[p].iter_mut().zip(&mut lower[0]) {
            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
        }
    };
    // Each sweep makes what is left a square of what was.
    for _ in 0..30 {
        let mut largest = 0.0_f64;
        for p in 0..n {
            for q in p + 1..n {
                let off = a[p][q];
                let scale = (a[p][p] * a[q][q]).abs().sqrt();
                if off == 0.0 || off.abs() <= 1e-16 * scale {
                    continue;
                }
                largest = largest.max(off.abs() / scale.max(f64::MIN_POSITIVE));
                let theta = (a[q][q] - a[p][p]) / (2.0 * off);
                let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                let turned = (c, t * c);
                turn(&mut a, (p, q), turned);
                for row in &mut a {
                    let (x, y) = (row[p], row[q]);
                    (row[p], row[q]) = (turned.0 * x - turned.1 * y, turned.1 * x + turned.0 * y);
                }
                turn(&mut vectors, (p, q), turned);
            }
        }
        if largest < 1e-13 {
            break;
        }
    }
    ((0..n).map(|i| a[i][i]).collect(), vectors)
}

/// Adds to orthonormal vectors what is new in another one, if anything is.
fn append(basis: &mut Vec<Vec<f32>>, mut vector: Vec<f32>) {
    let length = dot(&vector, &vector).sqrt();
    // Rounding leaves a part of the others, which a second pass removes.
    for _ in 0..2 {
        let parts = parallel::map(basis.len(), |i| dot(&basis[i], &vector));
        let chunk = 1024;
        parallel::each_chunk(&mut vector, chunk, |i, some| {
            for (of, part) in basis.iter().zip(&parts) {
                let of = &of[i * chunk..i * chunk + some.len()];
                some.iter_mut().zip(of).for_each(|(x, y)| *x -= *part as f32 * y);
            }
        });
    }
    let left = dot(&vector, &vector).sqrt();
    if left > 1e-5 * length {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / left) as f32);
        basis.push(vector);
    }
}

/// The sum of products, in f64.
fn dot(x: &[f32], y: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0_f64; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f64 = xs.remainder().iter().zip(ys.remainder()).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    for (x, y) in xs.zip(ys) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum += f64::from(*x) * f64::from(*y);
        }
    }
    sums.iter().sum::<f64>() + rest
}

fn rows_of(tensor: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(tensor.to_vec2::<f32>()?)
}

fn tensor_of(rows: &[Vec<f32>], width: usize) -> Result<Tensor> {
    Ok(Tensor::from_vec(rows.concat(), (rows.len(), width), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `U diag(values) Vᵀ` `[out, in]` with random orthonormal `U` and `V`.
    fn of_values(out: usize, inner: usize, values: &[f64]) -> Tensor {
        let side = |width: usize, seed: u64| {
            let mut rows = Vec::new();
            for i in 0..values.len() {
                append(&mut rows, normal(seed + i as u64, width, 1.0));
            }
            tensor_of(&rows, width).unwrap()
        };
        let scaled: Vec<f32> = values.iter().map(|&value| value as f32).collect();
        let scaled = Tensor::from_vec(scaled, (values.len(), 1), &Device::Cpu).unwrap();
        let left = side(out, 1000).broadcast_mul(&scaled).unwrap();
        left.t().unwrap().matmul(&side(inner, 2000)).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        let off = (a - b).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        f64::from(off).sqrt()
    }

    /// Wide, tall and small matrices, with values that are near each other, and more than the matrix has.
    #[test]
    fn the_largest_singular_values_are_found() {
        for (out, inner, all, count) in [(300, 200, 200, 8), (90, 400, 90, 16), (20, 16, 16, 4), (64, 50, 3, 6)] {
            let values: Vec<f64> = (0..all).map(|i| 3.0 / (1.0 + 0.1 * i as f64)).collect();
            let weight = of_values(out, inner, &values);
            let found = largest(&weight, count, None, 7).unwrap();
            for (i, found) in found.values.iter().enumerate() {
                let expected = values.get(i).copied().unwrap_or(0.0);
                assert!((found - expected).abs() < 1e-4, "{out} by {inner}, {i}: {found}, not {expected}");
            }
            let scaled: Vec<f32> = found.values.iter().map(|&value| value as f32).collect();
            let scaled = Tensor::from_vec(scaled, (count, 1), &Device::Cpu).unwrap();
            let part = found.left.broadcast_mul(&scaled).unwrap().t().unwrap().matmul(&found.right).unwrap();
            // What is left has the other values.
            let rest: f64 = values.iter().skip(count).map(|x| x * x).sum();
            assert!((distance(&weight, &part) - rest.sqrt()).abs() < 1e-3, "{out} by {inner}");
        }
    }

    /// Few products come near: the part that is taken is nearly as large as the largest there is.
    #[test]
    fn few_products_come_near() {
        let values: Vec<f64> = (0..120).map(|i| 0.9_f64.powi(i)).collect();
        let weight = of_values(160, 120, &values);
        let best: f64 = values[..8].iter().map(|x| x * x).sum();
        let found = |iterations| -> f64 {
            largest(&weight, 8, Some(iterations), 3).unwrap().values.iter().map(|x| x * x).sum()
        };
        assert!(found(1) > 0.97 * best && found(1) <= 1.0001 * best, "{} of {best}", found(1));
        assert!(found(4) > 0.9999 * best, "{} of {best}", found(4));
    }

    /// `B` has orthonormal columns, and both make the first columns of the weight, also where these depend on each other.
    #[test]
    fn the_first_columns_of_qr() {
        for (all, rank) in [(16, 5), (3, 5)] {
            let weight = of_values(24, 16, &vec![1.5; all]);
            let (a, b) = orthogonal(&weight, rank, 1).unwrap();
            let eye = b.t().unwrap().contiguous().unwrap().matmul(&b).unwrap();
            assert!(distance(&eye, &Tensor::eye(rank, DType::F32, &Device::Cpu).unwrap()) < 1e-4);
            let made = b.matmul(&a).unwrap().narrow(1, 0, rank).unwrap();
            assert!(distance(&made, &weight.narrow(1, 0, rank).unwrap()) < 1e-4);
        }
    }
}
