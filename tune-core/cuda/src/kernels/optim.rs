use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::{address, both, one};
use crate::aside::Reading;
use crate::buffer::{Buffer, Element};
use crate::context::Context;
use crate::error::Result;
use crate::launch::{Launch, Size};
use crate::modules::Kernel;

const ADAMW_PARAMETERS: &str = "pppffffffff";
const SGD_PARAMETERS: &str = "pppffff";
const LION_PARAMETERS: &str = "pppfffffff";
/// By the types of weights and of gradients.
static ADAMW: [[Kernel; 2]; 2] = [
    both("optim", ["adamw_f32_f32", "adamw_f32_bf16"], ADAMW_PARAMETERS),
    both("optim", ["adamw_bf16_f32", "adamw_bf16_bf16"], ADAMW_PARAMETERS),
];
static SGD: [[Kernel; 2]; 2] = [
    both("optim", ["sgd_f32_f32", "sgd_f32_bf16"], SGD_PARAMETERS),
    both("optim", ["sgd_bf16_f32", "sgd_bf16_bf16"], SGD_PARAMETERS),
];
static LION: [[Kernel; 2]; 2] = [
    both("optim", ["lion_f32_f32", "lion_f32_bf16"], LION_PARAMETERS),
    both("optim", ["lion_bf16_f32", "lion_bf16_bf16"], LION_PARAMETERS),
];
static SQUARES: [Kernel; 2] = both("optim", ["squared_norms_f32", "squared_norms_bf16"], "ppp");
static CLIP: [Kernel; 1] = [one("optim", "clip_factor", "ppplff")];

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&ADAMW[0], &ADAMW[1], &SGD[0], &SGD[1], &LION[0], &LION[1], &SQUARES, &CLIP];

/// Elements that one block handles. The order of the sums of squares depends on it.
const PIECE: usize = 1 << 16;

/// A parameter that steps move, and what they need for it. All are of its length.
#[derive(Debug)]
pub struct Moved<'a, W, G> {
    /// The weight.
    pub weight: &'a mut Buffer<W>,
    /// AdamW, Lion: the mean of the gradients. SGD: the velocity, if there is momentum.
    pub first: Option<&'a mut Buffer<f32>>,
    /// AdamW: the mean of the gradients' squares.
    pub second: Option<&'a mut Buffer<f32>>,
    /// Another number of state, of [`ScheduleFree`](super::ScheduleFree) alone.
    pub third: Option<&'a mut Buffer<f32>>,
    /// The gradient.
    pub gradient: &'a Buffer<G>,
    /// What random rounding uses, of the parameter's name and the step.
    pub key: u64,
    /// Where an f32 weight goes in bf16, too, rounded to the nearest.
    pub copy: Option<&'a mut Buffer<bf16>>,
}

/// Parameters that are gone over in one launch.
#[derive(Debug)]
pub struct Sweep<'a, W, G> {
    pub(super) parameters: Buffer<Parameter>,
    pub(super) pieces: Buffer<Piece>,
    pub(super) moved: Vec<Moved<'a, W, G>>,
}

/// A parameter as the kernels read it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Parameter {
    weight: u64,
    first: u64,
    second: u64,
    gradient: u64,
    key: u64,
    copy: u64,
}

/// A part of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Piece {
    parameter: u32,
    count: u32,
    first: u64,
}

/// Parameters of these lengths in pieces.
pub(super) fn pieces(lengths: impl Iterator<Item = usize>) -> Vec<Piece> {
    lengths
        .enumerate()
        .flat_map(|(parameter, length)| {
            (0..length).step_by(PIECE).map(move |first| Piece {
                parameter: parameter as u32,
                count: PIECE.min(length - first) as u32,
                first: first as u64,
            })
        })
        .collect()
}

/// A step of AdamW; see `tune-reference` for the formula.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a weight taken away, times the learning rate.
    pub weight_decay: f64,
}

/// A step of SGD; see `tune-reference` for the formula.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate of this step.
    pub lr: f64,
    /// Share of the velocity that a step keeps.
    pub momentum: f64,
    /// Share of a weight added to its gradient.
    pub weight_decay: f64,
}

/// A step of Lion; see `tune-reference` for the formula.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lion {
    /// Learning rate of this step: the way that a weight goes.
    pub lr: f64,
    /// The share of the mean in a step's direction, and the decay of the mean.
    pub betas: [f64; 2],
    /// Share of a weight taken away, times the learning rate.
    pub weight_decay: f64,
}

impl Context {
    /// Lists parameters on the card.
    ///
    /// # Panics
    /// If a parameter and what belongs to it differ in length.
    pub fn sweep<'a, W: Element, G: Element>(&self, moved: Vec<Moved<'a, W, G>>) -> Sweep<'a, W, G> {
        let parameters: Vec<Parameter> = moved
            .iter()
            .map(|m| {
                let (length, states) = (m.weight.len(), [&m.first, &m.second, &m.third].map(Option::as_deref));
                let fits = m.gradient.len() == length && states.iter().flatten().all(|state| state.len() == length);
                let copied = m.copy.as_ref().is_none_or(|copy| copy.len() == length && size_of::<W>() == 4);
                assert!(fits && copied, "a parameter of {length} elements with state or a gradient of another length");
                let [first, second, _] = states.map(address);
                let (weight, gradient, copy) = (m.weight.address(), m.gradient.address(), address(m.copy.as_deref()));
                Parameter { weight, first, second, gradient, key: m.key, copy }
            })
            .collect();
        let pieces = pieces(moved.iter().map(|m| m.weight.len()));
        Sweep { parameters: self.upload_ahead(&parameters), pieces: self.upload_ahead(&pieces), moved }
    }

    /// Step `step` (from 1) of AdamW with gradients times `scale`, and times `on_card`'s number if given. bf16 weights are rounded
    /// at random.
    ///
    /// # Panics
    /// If a parameter is without its two numbers of state.
    pub fn adamw<W: Element, G: Element>(
        &self,
        sweep: &mut Sweep<'_, W, G>,
        rule: AdamW,
        scale: f32,
        on_card: Option<&Buffer<f32>>,
        step: u64,
    ) {
        let whole = sweep.moved.iter().all(|m| m.first.is_some() && m.second.is_some());
        assert!(whole, "AdamW: a parameter without state");
        let ([b1, b2], step) = (rule.betas, step as f64);
        Launch::new(self, &ADAMW[W::INDEX][G::INDEX])
            .pointer(sweep.parameters.address())
            .pointer(sweep.pieces.address())
            .pointer(address(on_card))
            .float(scale)
            .float((1.0 - b1) as f32)
            .float(b2 as f32)
            .float((1.0 - b2) as f32)
            .float((rule.lr / (1.0 - b1.powf(step))) as f32)
            .float((1.0 - b2.powf(step)).sqrt() as f32)
            .float((1.0 - rule.lr * rule.weight_decay) as f32)
            .float(rule.eps as f32)
            .go(Size::row(sweep.pieces.len(), 256, 0));
    }

    /// A step of SGD with gradients times `scale`, and times `on_card`'s number if given. bf16 weights are rounded at random.
    pub fn sgd<W: Element, G: Element>(
        &self,
        sweep: &mut Sweep<'_, W, G>,
        rule: Sgd,
        scale: f32,
        on_card: Option<&Buffer<f32>>,
    ) {
        Launch::new(self, &SGD[W::INDEX][G::INDEX])
            .pointer(sweep.parameters.address())
            .pointer(sweep.pieces.address())
            .pointer(address(on_card))
            .float(rule.lr as f32)
            .float(scale)
            .float(rule.momentum as f32)
            .float(rule.weight_decay as f32)
            .go(Size::row(sweep.pieces.len(), 256, 0));
    }

    /// A step of Lion with gradients times `scale`, and times `on_card`'s number if given. bf16 weights are rounded at random.
    ///
    /// # Panics
    /// If a parameter is without its mean.
    pub fn lion<W: Element, G: Element>(
        &self,
        sweep: &mut Sweep<'_, W, G>,
        rule: Lion,
        scale: f32,
        on_card: Option<&Buffer<f32>>,
    ) {
        assert!(sweep.moved.iter().all(|m| m.first.is_some()), "Lion: a parameter without state");
        let [b1, b2] = rule.betas;
        Launch::new(self, &LION[W::INDEX][G::INDEX])
            .pointer(sweep.parameters.address())
            .pointer(sweep.pieces.address())
            .pointer(address(on_card))
            .float(rule.lr as f32)
            .float(scale)
            .float(b1 as f32)
            .float((1.0 - b1) as f32)
            .float(b2 as f32)
            .float((1.0 - b2) as f32)
            .float((1.0 - rule.lr * rule.weight_decay) as f32)
            .go(Size::row(sweep.pieces.len(), 256, 0));
    }

    /// The 2-norm over all gradients times `scale` into `norm[0]`, and into `factor[0]` what brings it down to `max_norm`, as PyTorch
    /// clips; one if there is no `max_norm`.
    pub fn clip<W: Element, G: Element>(
        &self,
        sweep: &Sweep<'_, W, G>,
        scale: f32,
        max_norm: Option<f32>,
        norm: &mut Buffer<f32>,
        factor: &mut Buffer<f32>,
    ) {
        assert_eq!([norm.len(), factor.len()], [1; 2], "clip: one number each");
        let partial = self.buffer::<f64>(sweep.pieces.len());
        Launch::new(self, &SQUARES[G::INDEX])
            .pointer(partial.address())
            .pointer(sweep.parameters.address())
            .pointer(sweep.pieces.address())
            .go(Size::row(sweep.pieces.len(), 256, 8 * 256));
        Launch::new(self, &CLIP[0])
            .pointer(norm.address())
            .pointer(factor.address())
            .pointer(partial.address())
            .long(partial.len())
            .float(scale)
            .float(max_norm.unwrap_or(0.0))
            .go(Size::row(1, 256, 8 * 256));
    }
}

/// Sums of squares that were asked for: a number for each piece of some gradients.
#[derive(Debug)]
pub struct Squares {
    pieces: Vec<Piece>,
    partial: Buffer<f64>,
    read: Reading<f64>,
    count: usize,
}

impl Context {
    /// Asks for the sum of the squares of each of some gradients. Their order depends on lengths alone.
    pub fn squares<G: Element>(&self, gradients: &[&Buffer<G>]) -> Squares {
        let parameter = |g: &&Buffer<G>| Parameter { gradient: g.address(), ..Parameter::zeroed() };
        let parameters: Vec<Parameter> = gradients.iter().map(parameter).collect();
        let pieces = pieces(gradients.iter().map(|g| g.len()));
        let (parameters, on_card) = (self.upload_ahead(&parameters), self.upload_ahead(&pieces));
        let partial = self.buffer::<f64>(pieces.len());
        Launch::new(self, &SQUARES[G::INDEX])
            .pointer(partial.address())
            .pointer(parameters.address())
            .pointer(on_card.address())
            .go(Size::row(pieces.len(), 256, 8 * 256));
        Squares { pieces, read: self.read_later(&partial), partial, count: gradients.len() }
    }

    /// What brings gradients of these squares down to `max_norm`, as PyTorch clips, on the card alone: one number, at most one.
    pub fn clip_factor(&self, of: &Squares, max_norm: f32) -> Buffer<f32> {
        let (norm, factor) = (self.buffer::<f32>(1), self.buffer::<f32>(1));
        Launch::new(self, &CLIP[0])
            .pointer(norm.address())
            .pointer(factor.address())
            .pointer(of.partial.address())
            .long(of.partial.len())
            .float(1.0)
            .float(max_norm)
            .go(Size::row(1, 256, 8 * 256));
        factor
    }
}

impl Squares {
    /// The sums, when the work that was asked for is done.
    ///
    /// # Errors
    /// The context's first error.
    pub fn read(&self) -> Result<Vec<f64>> {
        let mut sums = vec![0.0; self.count];
        for (piece, sum) in self.pieces.iter().zip(self.read.wait()?) {
            sums[piece.parameter as usize] += sum;
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_cut_into_pieces() {
        let found = pieces([3, 0, PIECE + 8].into_iter());
        let right = [(0, 3, 0), (2, PIECE as u32, 0), (2, 8, PIECE as u64)];
        assert_eq!(found, right.map(|(parameter, count, first)| Piece { parameter, count, first }));
    }
}
