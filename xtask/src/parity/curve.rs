//! Losses and gradient norms of a run, and how far one run is from another.

use serde_json::Value;

use crate::Result;

/// What a run logged, one value a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Curve {
    /// Mean loss over the trained tokens, in nats.
    pub losses: Vec<f64>,
    /// Norm of the gradient before clipping.
    pub norms: Vec<f64>,
}

impl Curve {
    /// Of records with `loss` and `grad_norm`. What is not there or no number is NaN, which lies within no limit.
    pub(super) fn of(steps: &[Value]) -> Self {
        let values = |key: &str| steps.iter().map(|step| step[key].as_f64().unwrap_or(f64::NAN)).collect();
        Self { losses: values("loss"), norms: values("grad_norm") }
    }

    /// Steps that were taken.
    pub(super) fn len(&self) -> usize {
        self.losses.len()
    }

    /// How far this run is from `other`.
    ///
    /// # Errors
    /// Where the runs have not the same number of steps, or none.
    pub(super) fn distance_from(&self, other: &Self) -> Result<Distance> {
        if self.len() != other.len() || self.len() == 0 {
            return Err(format!("a run took {} steps instead of {}", self.len(), other.len()).into());
        }
        let first_loss = (self.losses[0] / other.losses[0] - 1.0).abs();
        Ok(Distance {
            first_loss,
            loss: Spread::of(&self.losses, &other.losses),
            norm: Spread::of(&self.norms, &other.norms),
        })
    }
}

/// Relative differences between two runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Distance {
    /// Of the first step's loss: before anything is trained.
    pub first_loss: f64,
    pub loss: Spread,
    pub norm: Spread,
}

/// Relative differences over all steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// Their root mean square.
    pub rms: f64,
    /// The largest.
    pub worst: f64,
}

impl Spread {
    fn of(values: &[f64], expected: &[f64]) -> Self {
        let off: Vec<f64> = values.iter().zip(expected).map(|(a, b)| (a / b - 1.0).abs()).collect();
        let squares: f64 = off.iter().map(|x| x * x).sum();
        // A comparison with NaN is false: it must not get lost in a maximum.
        let worst = off.iter().fold(0.0, |m: f64, &x| if x > m || x.is_nan() { x } else { m });
        Self { rms: (squares / off.len() as f64).sqrt(), worst }
    }

    /// Whether neither is larger than its limit.
    pub(super) fn within(&self, limit: &Self) -> bool {
        self.rms <= limit.rms && self.worst <= limit.worst
    }

    /// The smaller of each.
    pub(super) fn min(&self, other: &Self) -> Self {
        Self { rms: self.rms.min(other.rms), worst: self.worst.min(other.worst) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn curve(losses: &[f64]) -> Curve {
        Curve { losses: losses.to_vec(), norms: vec![1.0; losses.len()] }
    }

    #[test]
    fn distances_are_relative() {
        let distance = curve(&[2.0, 1.06, 3.88]).distance_from(&curve(&[2.0, 1.0, 4.0])).unwrap();
        assert_eq!(distance.first_loss, 0.0);
        assert!((distance.loss.worst - 0.06).abs() < 1e-12, "{distance:?}");
        assert!((distance.loss.rms - (0.0045f64 / 3.0).sqrt()).abs() < 1e-12, "{distance:?}");
        assert_eq!(distance.norm, Spread { rms: 0.0, worst: 0.0 });
    }

    #[test]
    fn what_is_no_number_is_within_no_limit() {
        let of = |second: Value| {
            Curve::of(&[
                json!({"loss": 1.0, "grad_norm": 1.0}),
                json!({"loss": second, "grad_norm": 1.0}),
                json!({"loss": 1.0, "grad_norm": 1.0}),
            ])
        };
        let good = of(json!(1.0));
        let limit = Spread { rms: f64::INFINITY, worst: f64::INFINITY };
        assert!(good.distance_from(&good).unwrap().loss.within(&limit));
        let loss = of(Value::Null).distance_from(&good).unwrap().loss;
        assert!(loss.rms.is_nan() && loss.worst.is_nan() && !loss.within(&limit), "{loss:?}");
    }

    #[test]
    fn each_limit_counts() {
        let limit = Spread { rms: 0.1, worst: 0.2 };
        for (rms, worst, within) in [(0.1, 0.2, true), (0.11, 0.2, false), (0.1, 0.21, false)] {
            assert_eq!(Spread { rms, worst }.within(&limit), within);
        }
        assert_eq!(limit.min(&Spread { rms: 0.2, worst: 0.1 }), Spread { rms: 0.1, worst: 0.1 });
    }

    #[test]
    fn a_run_that_ended_early_is_an_error() {
        let error = curve(&[1.0]).distance_from(&curve(&[1.0, 2.0])).unwrap_err().to_string();
        assert_eq!(error, "a run took 1 steps instead of 2");
        assert!(curve(&[]).distance_from(&curve(&[])).is_err());
    }
}
