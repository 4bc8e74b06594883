//! One run of one program, and what is read off it.

use std::fmt;

use serde_json::{Value, json};

use super::flops::Work;

/// Steps at the start that do not count: memory is still being got from the system, caches are cold.
pub(super) const WARM_UP: usize = 2;

/// Who trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Ours,
    Torchtune,
    Peft,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ours => "ours",
            Self::Torchtune => "torchtune",
            Self::Peft => "peft",
        })
    }
}

/// What a program noted and what was seen from outside. Times are in seconds since 1970.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub started: f64,
    pub first_forward: f64,
    /// When each step ended.
    pub ends: Vec<f64>,
    pub losses: Vec<f64>,
    pub peak_memory: u64,
}

impl Run {
    /// The seconds of each step after the warm-up, and the step's number from 0.
    fn steady(&self) -> impl Iterator<Item = (usize, f64)> {
        (WARM_UP..self.ends.len()).map(|i| (i, self.ends[i] - self.ends[i - 1]))
    }

    /// The median of what is done a second, where step `i` does `amounts[i]`.
    pub(super) fn rate(&self, amounts: &[f64]) -> f64 {
        median(self.steady().filter_map(|(i, seconds)| Some(amounts.get(i)? / seconds)).collect())
    }

    /// Tokens a second, padding not counted.
    pub(super) fn tokens_per_second(&self, steps: &[Work]) -> f64 {
        self.rate(&steps.iter().map(|w| w.samples.iter().sum::<usize>() as f64).collect::<Vec<_>>())
    }

    /// From the start of the process to the first forward pass.
    pub(super) fn to_first_forward(&self) -> f64 {
        self.first_forward - self.started
    }

    /// From the start of the process to the end of the first step.
    pub(super) fn to_first_step(&self) -> f64 {
        self.ends.first().map_or(f64::NAN, |end| end - self.started)
    }

    /// The run as results record it.
    pub(super) fn json(&self, program: Program, round: usize, steps: &[Work]) -> Value {
        let before = std::iter::once(&self.first_forward).chain(&self.ends);
        json!({
            "program": program.to_string(),
            "round": round,
            "tokens_per_second": self.tokens_per_second(steps),
            "seconds_to_first_forward": self.to_first_forward(),
            "seconds_to_first_step": self.to_first_step(),
            "peak_memory_bytes": self.peak_memory,
            "step_seconds": self.ends.iter().zip(before).map(|(end, begin)| end - begin).collect::<Vec<_>>(),
            "losses": self.losses,
        })
    }
}

/// The middle one, or the mean of the two in the middle; NaN of nothing.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_steps_do_not_count() {
        let run = Run {
            started: 90.0,
            first_forward: 91.0,
            ends: vec![100.0, 105.0, 106.0, 108.0, 109.0],
            losses: vec![1.0; 5],
            peak_memory: 1,
        };
        let steps = vec![Work { samples: vec![60, 40], trained: 90 }; 5];
        assert_eq!(run.tokens_per_second(&steps), 100.0);
        assert_eq!((run.to_first_forward(), run.to_first_step()), (1.0, 10.0));
        assert_eq!(run.json(Program::Peft, 1, &steps)["step_seconds"], json!([9.0, 5.0, 1.0, 2.0, 1.0]));
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(Vec::new()).is_nan());
    }
}
