//! The learning rate over a run, as a factor on the optimizer's own.

use std::f64::consts::PI;

use tune_config::Config;

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
    /// Falls to 0 along half a cosine, again and again from 1.
    CosineWithRestarts {
        /// How often over the run.
        cycles: f64,
    },
    /// Falls to `end` as a power of what is left of the run.
    Polynomial {
        /// The power; 1 is a line.
        power: f64,
        /// The factor at the end.
        end: f64,
    },
    /// Falls as one over the root of the step, for ever.
    InverseSqrt {
        /// The steps after which it would be 1 without a warm-up; those of the warm-up where `None`, or 10 000.
        timescale: Option<f64>,
    },
    /// Stays at 1 and falls at the end of the run (warm-up, stable, decay).
    StableDecay {
        /// Steps over which it falls.
        decay_steps: u64,
        /// How it falls.
        decay: Decay,
        /// The factor at the end.
        end: f64,
    },
}

/// How a factor falls from 1 to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Config)]
#[config(crate = tune_config)]
pub enum Decay {
    /// Along half a cosine.
    #[config(name = "cosine", default)]
    Cosine,
    /// In a line.
    #[config(name = "linear")]
    Linear,
    /// As one less the root of the share that is done.
    #[config(name = "one_less_sqrt", alias = "1-sqrt")]
    OneLessSqrt,
}

impl Decay {
    /// The factor where this share of the fall is done.
    fn factor(self, done: f64) -> f64 {
        match self {
            Self::Cosine => half_wave(done),
            Self::Linear => 1.0 - done,
            Self::OneLessSqrt => 1.0 - done.sqrt(),
        }
    }
}

/// From 1 to 0 along half a cosine.
fn half_wave(done: f64) -> f64 {
    0.5 * (1.0 + (PI * done).cos())
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
        let warmup = self.warmup_steps as f64;
        if let Shape::InverseSqrt { timescale } = self.shape {
            let timescale = timescale.unwrap_or(if self.warmup_steps > 0 { warmup } else { 10_000.0 });
            return Ok(((steps as f64 - warmup + timescale) / timescale).sqrt().recip());
        }
        let span = total_steps()?.saturating_sub(self.warmup_steps).max(1);
        let done = steps - self.warmup_steps;
        let progress = done as f64 / span as f64;
        let factor = match self.shape {
            Shape::Constant | Shape::InverseSqrt { .. } => 1.0,
            Shape::Linear => 1.0 - progress,
            Shape::Cosine { cycles } => half_wave(2.0 * cycles * progress),
            Shape::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            Shape::CosineWithRestarts { cycles } => half_wave((cycles * progress).fract()),
            Shape::Polynomial { power, end } => end + (1.0 - end) * (1.0 - progress).max(0.0).powf(power),
            Shape::StableDecay { decay_steps, decay, end } => {
                let stable = span.saturating_sub(decay_steps);
                let fallen = done.saturating_sub(stable) as f64 / decay_steps.max(1) as f64;
                end + (1.0 - end) * decay.factor(fallen.min(1.0))
            }
        };
        Ok(factor.max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tune_config::{Input, load};

    use super::*;
    use crate::Error;
    use crate::optim::SchedulerConfig;

    #[test]
    fn every_schedule_gives_the_factors_of_transformers() {
        let fixture: Value = serde_json::from_str(include_str!("../../../tests/fixtures/schedules.json")).unwrap();
        let total = fixture["steps"].as_u64().unwrap();
        let cases = fixture["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 13);
        for case in cases {
            let config = Input::yaml("schedule.yaml", case["schedule"].to_string());
            let schedule = load::<SchedulerConfig>(config).unwrap().config.build();
            for (step, expected) in case["factors"].as_array().unwrap().iter().enumerate() {
                let (factor, expected) =
                    (schedule.factor(step as u64, || Ok(total)).unwrap(), expected.as_f64().unwrap());
                assert!((factor - expected).abs() < 1e-12, "{}, {step}: {factor}, {expected}", case["schedule"]);
            }
        }
    }

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
        let inverse_sqrt = Shape::InverseSqrt { timescale: None };
        let wsd = Shape::StableDecay { decay_steps: 2, decay: Decay::Linear, end: 0.0 };
        let asking = [Shape::Linear, Shape::Cosine { cycles: 0.5 }, Shape::CosineWithRestarts { cycles: 2.0 }, wsd];
        let asking = asking.into_iter().map(|shape| (shape, true));
        for (shape, asks) in asking.chain([(Shape::Constant, false), (inverse_sqrt, false)]) {
            let schedule = Schedule { shape, warmup_steps: 2 };
            let factor = |steps| schedule.factor(steps, || Err(Error::setup("asked")));
            let early: Vec<f64> = (0..=2).map(|s| factor(s).unwrap()).collect();
            assert_eq!(early, [0.0, 0.5, 1.0]);
            assert_eq!(factor(3).is_err(), asks);
        }
    }
}
