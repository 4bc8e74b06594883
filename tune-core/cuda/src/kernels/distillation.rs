use super::{address, both, one};
use crate::buffer::{Buffer, Element, View, ViewMut, wide};
use crate::context::Context;
use crate::launch::{Launch, MOST_ROWS, Size};
use crate::modules::Kernel;

const PARAMETERS: &str = "ppppppllllifff";
static DISTILL: [Kernel; 2] =
    [one("distillation", "distill_f32", PARAMETERS), one("distillation", "distill_bf16", PARAMETERS)];
const TOP_PARAMETERS: &str = "pppppppppllllifff";
static DISTILL_TOP: [Kernel; 2] =
    [one("distillation", "distill_top_f32", TOP_PARAMETERS), one("distillation", "distill_top_bf16", TOP_PARAMETERS)];
static DISTILL_TOP_MIDDLE: [Kernel; 2] =
    both("top_middle", ["distill_top_middle_f32", "distill_top_middle_bf16"], TOP_PARAMETERS);
const GENERAL_PARAMETERS: &str = "pppppplllliiffff";
static DISTILL_GENERAL: [Kernel; 2] =
    both("general_distillation", ["distill_general_f32", "distill_general_bf16"], GENERAL_PARAMETERS);
static SOFTCAP: [Kernel; 1] = [one("distillation", "softcap_f32", "plf")];

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&DISTILL, &DISTILL_TOP, &DISTILL_TOP_MIDDLE, &DISTILL_GENERAL, &SOFTCAP];

/// What a student learns: `(1 - ratio) · loss + ratio · divergence`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distillation {
    /// The share of the divergence.
    pub ratio: f32,
    /// The share of the forward divergence in it; the rest is the reverse one.
    pub forward: f32,
    /// What the logits of both are divided by in the divergence.
    pub temperature: f32,
    /// Whether both are compared with their weighted mean, in which the teacher's share is `forward`, and not with each other.
    pub from_middle: bool,
}

impl Distillation {
    /// Of divergences from each other, at a temperature of 1.
    #[must_use]
    pub const fn new(ratio: f32, forward: f32) -> Self {
        Self { ratio, forward, temperature: 1.0, from_middle: false }
    }

    fn is_plain(&self) -> bool {
        self.temperature == 1.0 && !self.from_middle
    }
}

/// What is known of a teacher in each row: some tokens, each once in a row, with the logarithms of their probabilities, `[rows, k]`,
/// and that of what all others have together, `[rows]`, which is not read where there are none.
#[derive(Debug, Clone, Copy)]
pub struct Top<'a> {
    /// The tokens.
    pub ids: &'a Buffer<u32>,
    /// The logarithms of their probabilities.
    pub log_probs: &'a Buffer<f32>,
    /// That of all others together.
    pub rest: &'a Buffer<f32>,
}

impl Context {
    /// Of each row of a student's logits, capped first where there is a `softcap`, the cross-entropy with its target and the
    /// divergence from the same row of its teacher. With `scales`, one a row, the student's logits become the gradient of
    /// that scale times the mixture of both, numbers of type `D` from the row's beginning on. Nobody checks that targets are
    /// below the number of logits.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn distill<D: Element>(
        &self,
        (student, teacher): (ViewMut<'_, f32>, View<'_, f32>),
        targets: &Buffer<u32>,
        (mixture, softcap): (Distillation, Option<f32>),
        scales: Option<&Buffer<f32>>,
        (losses, divergences): (&mut Buffer<f32>, &mut Buffer<f32>),
    ) {
        let (rows, cols) = student.shape();
        let fits = [targets.len(), losses.len(), divergences.len()] == [rows; 3] && teacher.shape() == (rows, cols);
        assert!(fits && scales.is_none_or(|scales| scales.len() == rows), "distill: shapes that do not fit");
        let (threads, is_plain) = (threads(cols), mixture.is_plain());
        let kernels = if is_plain { &DISTILL } else { &DISTILL_GENERAL };
        let launch = Launch::new(self, &kernels[D::INDEX])
            .pointer(losses.address())
            .pointer(divergences.address())
            .pointer(student.address)
            .pointer(teacher.address)
            .pointer(targets.address())
            .pointer(address(scales))
            .long(rows)
            .long(cols)
            .long(student.stride)
            .long(teacher.stride)
            .int(usize::from(scales.is_some()));
        let launch = if is_plain { launch } else { launch.int(usize::from(mixture.from_middle)) };
        let launch = launch.float(mixture.ratio).float(mixture.forward);
        let launch = if is_plain { launch } else { launch.float(1.0 / mixture.temperature) };
        launch.float(softcap.unwrap_or(0.0)).go(Size::row(rows.min(MOST_ROWS), threads, 4 * threads / 32));
    }

    /// The same where of the teacher some tokens are known: all others count as one outcome, of the student, too. Without `scales`
    /// the student's logits are lost as well.
    ///
    /// # Panics
    /// If shapes do not fit, and of a mixture at another temperature than 1.
    pub fn distill_top<D: Element>(
        &self,
        (student, teacher): (ViewMut<'_, f32>, Top<'_>),
        targets: &Buffer<u32>,
        (mixture, softcap): (Distillation, Option<f32>),
        scales: Option<&Buffer<f32>>,
        (losses, divergences): (&mut Buffer<f32>, &mut Buffer<f32>),
    ) {
        let (rows, cols) = student.shape();
        let (known, k) = (teacher.ids.len(), teacher.ids.len() / rows.max(1));
        let fits = [targets.len(), losses.len(), divergences.len(), teacher.rest.len()] == [rows; 4]
            && [known, teacher.log_probs.len()] == [rows * k; 2]
            && k <= cols;
        assert!(fits && scales.is_none_or(|scales| scales.len() == rows), "distill_top: shapes that do not fit");
        assert!(mixture.temperature == 1.0, "distill_top: a mixture that needs all logits");
        let kernels = if mixture.from_middle { &DISTILL_TOP_MIDDLE } else { &DISTILL_TOP };
        let (own, threads) = (self.buffer::<f32>(known), threads(cols));
        Launch::new(self, &kernels[D::INDEX])
            .pointer(losses.address())
            .pointer(divergences.address())
            .pointer(student.address)
            .pointer(teacher.ids.address())
            .pointer(teacher.log_probs.address())
            .pointer(teacher.rest.address())
            .pointer(own.address())
            .pointer(targets.address())
            .pointer(address(scales))
            .long(rows)
            .long(cols)
            .long(student.stride)
            .long(k)
            .int(usize::from(scales.is_some()))
            .float(mixture.ratio)
            .float(mixture.forward)
            .float(softcap.unwrap_or(0.0))
            .go(Size::row(rows.min(MOST_ROWS), threads, 4 * threads / 32));
    }

    /// `x = cap · tanh(x / cap)` in place.
    pub fn softcap(&self, x: &mut Buffer<f32>, cap: f32) {
        let blocks = x.len().div_ceil(256 * wide::<f32>()).min(MOST_ROWS);
        Launch::new(self, &SOFTCAP[0]).pointer(x.address()).long(x.len()).float(cap).go(Size::row(blocks, 256, 0));
    }
}

/// Threads for a row of this many logits.
fn threads(cols: usize) -> usize {
    if cols < 8192 { (cols / 8).next_multiple_of(32).max(32) } else { 1024 }
}
