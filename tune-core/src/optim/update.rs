//! Sweeps over whole tensors in place, for optimizers and gradients.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};
use half::bf16;

use super::Gradient;
use super::state::{OnParts, State, in_parts};
use super::values::{Real, Values};
use crate::kernels::{Dropout, Element, Shared, parallel, simd, sum};

/// Elements handled by one task.
pub(super) const TASK: usize = 1 << 15;

/// Elements that are brought together at a time: more than the compiler unrolls, so that it makes vectors of them.
const CHUNK: usize = 128;

/// What an optimizer does to one element, with `N` numbers of state.
pub(crate) trait UpdateRule<const N: usize>: Copy + Sync {
    /// The new weight; the state is changed in place.
    fn step<R: Real>(&self, weight: R, state: &mut [R; N], gradient: R) -> R;
}

/// Applies a rule to every element of a parameter in one pass, in f32 (f64 where the parameter is).
///
/// A bf16 weight is rounded at random, up with the probability that keeps the mean: rounded to the nearest, it
/// would ignore every step below a five-hundredth of itself, which is most of them (Gupta et al. 2015,
/// <https://arxiv.org/abs/1502.02551>). The random bits depend on `key` and
/// the element's index alone, which is counted from `first` on.
///
/// # Errors
/// Shapes or dtypes that differ.
pub(crate) fn update<const N: usize>(
    weight: &Tensor,
    state: [State<'_>; N],
    gradient: &Gradient,
    (key, first): (u64, usize),
    rule: &impl UpdateRule<N>,
) -> Result<()> {
    if state.iter().any(|t| t.shape() != weight.shape()) || gradient.shape() != weight.shape() {
        bail!(
            "update: a weight {:?}, a gradient {:?} and their state differ in shape",
            weight.shape(),
            gradient.shape()
        );
    }
    let len = weight.elem_count();
    if weight.dtype() == candle_core::DType::F64 {
        let gradient = gradient.values::<f64>()?;
        return with_state(&state, len, &mut |part, state| {
            let (first, gradient) = (part.start, &gradient[part.clone()]);
            write(weight, |w, all| match w {
                CpuStorage::F64(w) => sweep(first, &mut w[all][part], state, gradient, rule, |w| w, |_, w| w),
                other => bail!("update: a weight of {:?} among those of f64", other.dtype()),
            })
        });
    }
    let gradient = gradient.values::<f32>()?;
    let round = rounded((key, first));
    with_state(&state, len, &mut |part, state| {
        let (first, gradient) = (part.start, &gradient[part.clone()]);
        write(weight, |w, all| match w {
            CpuStorage::F32(w) => sweep(first, &mut w[all][part], state, gradient, rule, |w| w, |_, w| w),
            CpuStorage::BF16(w) => {
                sweep(first, &mut w[all][part], state, gradient, rule, <bf16 as Element>::to_f32, round)
            }
            other => bail!("update: tensors of {:?} are not trained", other.dtype()),
        })
    })
}

/// Rounds element `i` to bf16 at random, as [`update`] does.
pub(super) fn rounded((key, first): (u64, usize)) -> impl Fn(usize, f32) -> bf16 + Copy + Sync {
    let key = Dropout::mix(key, 0);
    move |i, x| stochastic(x, random_bits(key, first + i))
}

/// Uniform random bits for element `i`: a multiplicative hash of 32 bits (the constants are Wellons's,
/// <https://nullprogram.com/blog/2018/07/31/>), which vectors of sixteen compute at once.
#[inline(always)]
fn random_bits(key: u64, i: usize) -> u32 {
    let mut x = (i as u32 ^ key as u32).wrapping_add((key >> 32) as u32);
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// `x` as bf16, rounded up or down with the probabilities that give `x` in the mean; `random` bits are uniform.
/// Without branches, so that loops over it become vectors.
#[inline(always)]
fn stochastic(x: f32, random: u32) -> bf16 {
    let bits = x.to_bits();
    // What is not finite stays so: nothing is added, and not-a-number keeps a bit that survives.
    let nan = (bits >> 16) | 0x40;
    let finite = u32::from(x.is_finite()).wrapping_neg();
    let rounded = bits.wrapping_add(random & 0xffff & finite) >> 16;
    bf16::from_bits(if x.is_nan() { nan } else { rounded } as u16)
}

/// Moves the elements from `first` on.
fn sweep<const N: usize, R: Real, W: Copy + Send>(
    first: usize,
    weight: &mut [W],
    mut state: Vec<&mut [R]>,
    gradient: &[R],
    rule: &impl UpdateRule<N>,
    widen: impl Fn(W) -> R + Sync,
    narrow: impl Fn(usize, R) -> W + Sync,
) -> Result<()> {
    let len = weight.len();
    if state.len() != N || state.iter().any(|s| s.len() != len) || gradient.len() != len {
        bail!("update: a weight and its state differ in size");
    }
    let weight = Shared::new(weight);
    let state: Vec<Shared<'_, R>> = state.iter_mut().map(|s| Shared::new(s)).collect();
    parallel::each(len.div_ceil(TASK), |task| {
        let start = task * TASK;
        let count = TASK.min(len - start);
        // SAFETY: each task has its own part.
        let (weight, state) = unsafe {
            (weight.part(start, count), std::array::from_fn::<&mut [R], N, _>(|n| state[n].part(start, count)))
        };
        let gradient = &gradient[start..start + count];
        let part = Part { first: first + start, weight, state, gradient };
        simd(
            #[inline(always)]
            || part.sweep(rule, &widen, &narrow),
        );
    });
    Ok(())
}

/// What one task sweeps over: this many weights, numbers of state each, and gradients.
struct Part<'a, W, R, const N: usize> {
    first: usize,
    weight: &'a mut [W],
    state: [&'a mut [R]; N],
    gradient: &'a [R],
}

impl<W: Copy, R: Real, const N: usize> Part<'_, W, R, N> {
    #[inline(always)]
    fn sweep(mut self, rule: &impl UpdateRule<N>, widen: &impl Fn(W) -> R, narrow: &impl Fn(usize, R) -> W) {
        // A copy, so that its numbers stay in registers.
        let rule = *rule;
        let (count, whole) = (self.weight.len(), self.weight.len() / CHUNK * CHUNK);
        for at in (0..whole).step_by(CHUNK) {
            self.step::<CHUNK>(at, &rule, widen, narrow);
        }
        for at in whole..count {
            self.step::<1>(at, &rule, widen, narrow);
        }
    }

    /// Elements `at..at + L` in copies that nothing else can point to, which makes vectors of them.
    #[inline(always)]
    fn step<const L: usize>(
        &mut self,
        at: usize,
        rule: &impl UpdateRule<N>,
        widen: &impl Fn(W) -> R,
        narrow: &impl Fn(usize, R) -> W,
    ) {
        let weight = &mut self.weight[at..at + L];
        let (mut moved, mut state, mut gradient) = ([R::zero(); L], [[R::zero(); L]; N], [R::zero(); L]);
        gradient.copy_from_slice(&self.gradient[at..at + L]);
        for (to, from) in state.iter_mut().zip(&self.state) {
            to.copy_from_slice(&from[at..at + L]);
        }
        for (to, &from) in moved.iter_mut().zip(&*weight) {
            *to = widen(from);
        }
        for (j, (w, &g)) in moved.iter_mut().zip(&gradient).enumerate() {
            let mut numbers = [R::zero(); N];
            for (number, of) in numbers.iter_mut().zip(&state) {
                *number = of[j];
            }
            *w = rule.step(*w, &mut numbers, g);
            for (number, of) in numbers.iter().zip(&mut state) {
                of[j] = *number;
            }
        }
        let mut narrowed = [weight[0]; L];
        for (j, (to, &w)) in narrowed.iter_mut().zip(&moved).enumerate() {
            *to = narrow(self.first + at + j, w);
        }
        weight.copy_from_slice(&narrowed);
        for (to, from) in self.state.iter_mut().zip(&state) {
            to[at..at + L].copy_from_slice(from);
        }
    }
}

/// Calls `f` with ranges of elements and what the parts of a state have there, to be changed: all `len` elements once.
fn with_state<R: Real>(state: &[State<'_>], len: usize, f: &mut OnParts<'_, R>) -> Result<()> {
    let (mut here, mut files) = (Vec::new(), Vec::new());
    for part in state {
        match part {
            State::Here(tensor) => here.push(*tensor),
            State::InFile(file) => files.push(*file),
        }
    }
    match (here.len(), files.len()) {
        (_, 0) => with_slices(&here, Vec::new(), &mut |slices| f(0..len, slices)),
        (0, _) => in_parts(&files, len, f).map_err(candle_core::Error::wrap),
        _ => bail!("update: one part of a state is in memory, and another in a file"),
    }
}

/// Calls `f` with the elements of all `tensors`, to be written.
fn with_slices<R: Real>(
    tensors: &[&Tensor],
    held: Vec<&mut [R]>,
    f: &mut dyn FnMut(Vec<&mut [R]>) -> Result<()>,
) -> Result<()> {
    let Some((first, rest)) = tensors.split_first() else { return f(held) };
    let once = RefCell::new(Some((held, f)));
    write(first, |storage, range| {
        let (Some((mut held, f)), Some(slice)) = (once.take(), R::slice_mut(storage)) else {
            bail!("update: state of another type than the weight's");
        };
        held.push(&mut slice[range]);
        with_slices(rest, held, f)
    })
}

/// Calls `f` once with a tensor's storage, to be written, and where in it the tensor is.
pub(super) fn write(tensor: &Tensor, f: impl FnOnce(&mut CpuStorage, Range<usize>) -> Result<()>) -> Result<()> {
    struct Write<F>(RefCell<Option<F>>);

    impl<F: FnOnce(&mut CpuStorage, Range<usize>) -> Result<()>> InplaceOp1 for Write<F> {
        fn name(&self) -> &'static str {
            "update"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            match (layout.contiguous_offsets(), self.0.take()) {
                (Some((start, end)), Some(f)) => f(storage, start..end),
                _ => bail!("update: the destination is not contiguous"),
            }
        }
    }

    tensor.inplace_op1(&Write(RefCell::new(Some(f))))
}

/// `dst += src`, in place.
pub(crate) fn add_assign(dst: &Tensor, src: &Tensor) -> Result<()> {
    #[derive(Clone, Copy)]
    struct Add;

    impl UpdateRule<0> for Add {
        #[inline(always)]
        fn step<R: Real>(&self, weight: R, _: &mut [R; 0], gradient: R) -> R {
            weight + gradient
        }
    }

    update(dst, [], &src.clone().into(), (0, 0), &Add)
}

/// The sum of squares, in f64, in an order that depends on the size alone.
pub(super) fn squared_norm(t: &Tensor) -> Result<f64> {
    Ok(match t.dtype() {
        candle_core::DType::F64 => sum_of_squares(&Values::<f64>::of(t)?),
        _ => sum_of_squares(&Values::<f32>::of(t)?),
    })
}

/// The same of a slice.
pub(super) fn sum_of_squares<R: Real>(x: &[R]) -> f64 {
    parallel::map_chunks(x, TASK, |_, x| squares(x)).into_iter().sum()
}

pub(super) fn squares<R: Real>(x: &[R]) -> f64 {
    simd(
        #[inline(always)]
        || sum([x], |[x]| x.as_f64() * x.as_f64()),
    )
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    /// Steps that are too small for bf16 add up nevertheless.
    #[test]
    fn small_steps_of_a_bf16_weight_are_not_lost() {
        #[derive(Clone, Copy)]
        struct Down;
        impl UpdateRule<0> for Down {
            fn step<R: Real>(&self, weight: R, _: &mut [R; 0], gradient: R) -> R {
                weight - gradient
            }
        }
        let weight = Tensor::ones(4096, DType::BF16, &Device::Cpu).unwrap();
        let gradient = Tensor::full(1e-4f32, 4096, &Device::Cpu).unwrap();
        for step in 0..100 {
            update(&weight, [], &gradient.clone().into(), (step, 0), &Down).unwrap();
        }
        let mean = weight.to_dtype(DType::F64).unwrap().mean_all().unwrap().to_scalar::<f64>().unwrap();
        assert!((mean - 0.99).abs() < 5e-4, "{mean}");
    }

    #[test]
    fn stochastic_rounding_keeps_what_bf16_can_hold() {
        for x in [0.0f32, 1.0, -2.5, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(stochastic(x, 0xffff).to_f32(), x);
        }
        assert!(stochastic(f32::NAN, 0).is_nan());
    }
}
