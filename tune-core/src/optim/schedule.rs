//! The learning rate over a run, as a factor on the optimizer's own.

use crate::Result;

/// How the learning rate changes once it is warmed up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub shape: Shape,
    /// Steps over which the factor rises from 0 to 1 in a line.
    pub warmup_steps: u64,
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
    ///
    /// `total_steps`, the steps of the whole run, is asked only where the factor depends on it: behind the
    /// warm-up. Large data is still being counted while the first steps are done.
    ///
    /// # Errors
    /// Where `total_steps` fails.
    pub fn factor(&self, steps: u64, total_steps: impl FnOnce() -> Result<u64>) -> Result<f64> {
        if steps < self.warmup_steps {
            return Ok(steps as f64 / self.warmup_steps.max(1) as f64);
        }
        if self.shape == Shape::Constant || steps == self.warmup_steps {
            return Ok(1.0);
        }
        let span = total_steps()?.saturating_sub(self.warmup_steps).max(1);
        let progress = (steps - self.warmup_steps) as f64 / span as f64;
        Ok(match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => (1.0 - progress).max(0.0),
            Shape::Cosine { cycles } => (0.5 * (1.0 + (2.0 * std::f64::consts::PI * cycles * progress).cos())).max(0.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn cosine_with_warm_up_gives_torchtunes_values() {
        let schedule = Schedule { shape: Shape::Cosine { cycles: 0.5 }, warmup_steps: 2 };
        let factor = |steps| schedule.factor(steps, || Ok(20)).unwrap();
        let expected = [0.0, 1.5e-4, 3e-4, 2.977_211_629_518_312e-4, 2.909_538_931_178_862e-4];
        for (steps, wanted) in expected.into_iter().enumerate() {
            assert!((3e-4 * factor(steps as u64) - wanted).abs() < 1e-16);
        }
        assert_eq!(factor(20), 0.0);
    }

    #[test]
    fn linear_ends_at_zero_and_constant_does_not_end() {
        let values = |shape| {
            let schedule = Schedule { shape, warmup_steps: 0 };
            (0..=4).map(|s| schedule.factor(s, || Ok(4)).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(values(Shape::Linear), [1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(values(Shape::Constant), [1.0; 5]);
    }

    #[test]
    fn the_number_of_steps_is_asked_behind_the_warm_up() {
        for (shape, asks) in [(Shape::Constant, false), (Shape::Linear, true), (Shape::Cosine { cycles: 0.5 }, true)] {
            let schedule = Schedule { shape, warmup_steps: 2 };
            let factor = |steps| schedule.factor(steps, || Err(Error::setup("asked")));
            let early: Vec<f64> = (0..=2).map(|s| factor(s).unwrap()).collect();
            assert_eq!(early, [0.0, 0.5, 1.0]);
            assert_eq!(factor(3).is_err(), asks);
        }
    }
}
