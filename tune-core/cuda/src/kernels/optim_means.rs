use super::both;
use super::optim::Sweep;
use crate::buffer::Element;
use crate::context::Context;
use crate::launch::{Launch, Size};
use crate::modules::Kernel;

static BETWEEN: [Kernel; 2] = both("optim_means", ["between_f32", "between_bf16"], "ppf");
static SCHEDULE_FREE: [Kernel; 2] = both("optim_means", ["schedule_free_f32", "schedule_free_bf16"], "pppffffffff");
static AVERAGED: [Kernel; 2] = both("optim_means", ["averaged_f32", "averaged_bf16"], "ppf");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&BETWEEN, &SCHEDULE_FREE, &AVERAGED];

/// A step of schedule-free AdamW; see `tune-reference` for the formula.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScheduleFree {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of the weights taken away, times the learning rate.
    pub weight_decay: f64,
    /// The share of where this step leads to in the mean.
    pub new: f64,
}

impl Context {
    /// Puts `x + (z - x) · share` in the place of each weight, of `x` in `first` and of `z` in the place of the gradient; `z` itself where
    /// there is no `first`. bf16 weights are rounded at random.
    pub fn between<W: Element>(&self, sweep: &mut Sweep<'_, W, f32>, share: f64) {
        self.by_share(&BETWEEN[W::INDEX], sweep, share);
    }

    /// Keeps each weight in `first`, and moves the mean, which is in `second`, towards it by a share of the way: then the mean is the
    /// weight. bf16 weights are rounded at random.
    ///
    /// # Panics
    /// If a parameter is without its two numbers of state.
    pub fn averaged<W: Element>(&self, sweep: &mut Sweep<'_, W, f32>, share: f64) {
        let whole = sweep.moved.iter().all(|m| m.first.is_some() && m.second.is_some());
        assert!(whole, "averaged: a parameter without state");
        self.by_share(&AVERAGED[W::INDEX], sweep, share);
    }

    fn by_share<W: Element>(&self, kernel: &'static Kernel, sweep: &Sweep<'_, W, f32>, share: f64) {
        Launch::new(self, kernel)
            .pointer(sweep.parameters.address())
            .pointer(sweep.pieces.address())
            .float(share as f32)
            .go(Size::row(sweep.pieces.len(), 256, 0));
    }

    /// Step `step` (from 1) of schedule-free AdamW with gradients times `scale`, which were taken at the weights: `z` is in `first`, the
    /// second moment in `second`, and the mean, which the weights are then, in `third`. bf16 weights are rounded at random.
    ///
    /// # Panics
    /// If a parameter is without its three numbers of state.
    pub fn schedule_free<W: Element>(&self, sweep: &mut Sweep<'_, W, f32>, rule: ScheduleFree, scale: f32, step: u64) {
        let thirds: Vec<u64> = sweep.moved.iter().filter_map(|m| Some(m.third.as_deref()?.address())).collect();
        let whole = sweep.moved.iter().all(|m| m.first.is_some() && m.second.is_some());
        assert!(whole && thirds.len() == sweep.moved.len(), "schedule-free AdamW: a parameter without state");
        let (thirds, b2) = (self.upload_ahead(&thirds), rule.beta2);
        Launch::new(self, &SCHEDULE_FREE[W::INDEX])
            .pointer(sweep.parameters.address())
            .pointer(sweep.pieces.address())
            .pointer(thirds.address())
            .float(scale)
            .float(rule.lr as f32)
            .float(b2 as f32)
            .float((1.0 - b2) as f32)
            .float((1.0 - b2.powf(step as f64)) as f32)
            .float(rule.eps as f32)
            .float(rule.weight_decay as f32)
            .float(rule.new as f32)
            .go(Size::row(sweep.pieces.len(), 256, 0));
    }
}
