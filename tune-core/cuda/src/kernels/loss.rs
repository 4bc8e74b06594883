use super::{address, one};
use crate::buffer::{Buffer, Element, ViewMut};
use crate::context::Context;
use crate::launch::{Launch, MOST_ROWS, Size};
use crate::modules::Kernel;

const PARAMETERS: &str = "pppppllliff";
static LOSS: [Kernel; 3] = [
    one("loss", "loss_f32_f32", PARAMETERS),
    one("loss", "loss_f32_bf16", PARAMETERS),
    one("loss", "loss_bf16_bf16", PARAMETERS),
];
const TOKEN_PARAMETERS: &str = "pppppllliffff";
static TOKEN_LOSS: [Kernel; 3] = [
    one("loss", "token_loss_f32_f32", TOKEN_PARAMETERS),
    one("loss", "token_loss_f32_bf16", TOKEN_PARAMETERS),
    one("loss", "token_loss_bf16_bf16", TOKEN_PARAMETERS),
];
static SUM: [Kernel; 1] = [one("loss", "sum_f32", "ppli")];

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&LOSS, &TOKEN_LOSS, &SUM];

/// What a token's loss is: `(1 - smoothing) · (L - x_target) + smoothing · mean_j (L - x_j) + z · L²`, with `L = ln Σ exp(x)`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenLoss {
    /// The share that asks for all tokens alike.
    pub smoothing: f32,
    /// The factor of the square.
    pub z: f32,
    /// Logits count as `cap · tanh(x / cap)`.
    pub softcap: Option<f32>,
}

impl Context {
    /// The loss of each row, times `weights[i]` (one if `None`), zero where the target is `u32::MAX`: cross-entropy by the default of
    /// `how`. With a `gradient` scale, each row's logits become the gradient of that scale times the weighted sum of losses,
    /// numbers of type `D` from the row's beginning on. The scale counts times `on_card`'s number, if given.
    ///
    /// # Panics
    /// If shapes do not fit, or the gradient's numbers are wider than the logits.
    #[allow(clippy::too_many_arguments)]
    pub fn cross_entropy<T: Element, D: Element>(
        &self,
        logits: ViewMut<'_, T>,
        targets: &Buffer<u32>,
        weights: Option<&Buffer<f32>>,
        gradient: Option<f32>,
        on_card: Option<&Buffer<f32>>,
        how: TokenLoss,
        losses: &mut Buffer<f32>,
    ) {
        let fits = [targets.len(), losses.len()] == [logits.rows; 2];
        assert!(fits && weights.is_none_or(|w| w.len() == logits.rows), "cross-entropy: shapes that do not fit");
        assert!(size_of::<D>() <= size_of::<T>(), "cross-entropy: a gradient wider than its logits");
        let threads = if logits.cols < 8192 { (logits.cols / 8).next_multiple_of(32).max(32) } else { 1024 };
        // A large row for each multiprocessor at a time: more of them would not be in the card's cache when they are read again.
        let blocks = if threads < 1024 { MOST_ROWS } else { self.card().multiprocessors as usize };
        let is_plain = how.smoothing == 0.0 && how.z == 0.0;
        let kernels = if is_plain { &LOSS } else { &TOKEN_LOSS };
        let launch = Launch::new(self, &kernels[T::INDEX + D::INDEX])
            .pointer(losses.address())
            .pointer(logits.address)
            .pointer(targets.address())
            .pointer(address(weights))
            .pointer(address(on_card))
            .long(logits.rows)
            .long(logits.cols)
            .long(logits.stride)
            .int(usize::from(gradient.is_some()))
            .float(gradient.unwrap_or(0.0))
            .float(how.softcap.unwrap_or(0.0));
        let launch = if is_plain { launch } else { launch.float(how.smoothing).float(how.z) };
        launch.go(Size::row(logits.rows.min(blocks), threads, 4 * threads / 32));
    }

    /// `sum[0] += Σ x`, or `= Σ x` unless `add`.
    pub fn sum(&self, x: &Buffer<f32>, add: bool, sum: &mut Buffer<f64>) {
        assert_eq!(sum.len(), 1, "sum: one number");
        Launch::new(self, &SUM[0])
            .pointer(sum.address())
            .pointer(x.address())
            .long(x.len())
            .int(usize::from(add))
            .go(Size::row(1, 1024, 8 * 1024));
    }
}
