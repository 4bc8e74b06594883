//! The learning rate over a run, as a factor on the optimizer's own.

/// How the learning rate changes once it is warmed up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub shape: Shape,
    /// Steps over which the factor rises from 0 to 1 in a line.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
}

/// The shape of a schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// Stays at 1.
    Constant,
    /// Falls to 0 in a line.
    Linear,
    /// Falls along a cosine; half a wave, ending at 0, for `cycles = 0.5`.
    Cosine {
        /// Waves over the run.
        cycles: f64,
    },
}

impl Schedule {
    /// The factor after `steps` steps. Optimizer step `k` (from 1) uses the factor after `k - 1`,
    /// so under a warm-up the first step moves nothing, as in torchtune.
    pub fn factor(&self, steps: u64) -> f64 {
        if steps < self.warmup_steps {
            return steps as f64 / self.warmup_steps.max(1) as f64;
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (steps - self.warmup_steps) as f64 / span as f64;
        match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => (1.0 - progress).max(0.0),
            Shape::Cosine { cycles } => (0.5 * (1.0 + (2.0 * std::f64::consts::PI * cycles * progress).cos())).max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_with_warm_up_gives_torchtunes_values() {
        let schedule = Schedule { shape: Shape::Cosine { cycles: 0.5 }, warmup_steps: 2, total_steps: 20 };
        let expected = [0.0, 1.5e-4, 3e-4, 2.977_211_629_518_312e-4, 2.909_538_931_178_862e-4];
        for (steps, wanted) in expected.into_iter().enumerate() {
            assert!((3e-4 * schedule.factor(steps as u64) - wanted).abs() < 1e-16);
        }
        assert_eq!(schedule.factor(20), 0.0);
    }

    #[test]
    fn linear_ends_at_zero_and_constant_does_not_end() {
        let schedule = |shape| Schedule { shape, warmup_steps: 0, total_steps: 4 };
        let values = |shape| (0..=4).map(|s| schedule(shape).factor(s)).collect::<Vec<_>>();
        assert_eq!(values(Shape::Linear), [1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(values(Shape::Constant), [1.0; 5]);
    }
}
