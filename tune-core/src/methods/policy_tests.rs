use serde_json::Value;
use tune_config::{Input, load};

use super::*;

const FIXTURE: &str = include_str!("../../../tests/fixtures/policy_losses.json");

/// A step's answers, with what TRL's function and PyTorch's autograd make of them.
struct Case {
    name: String,
    loss: PolicyLoss,
    value: Value,
}

impl Case {
    fn number(&self, key: &str) -> f64 {
        self.value[key].as_f64().unwrap()
    }

    fn numbers(&self, key: &str) -> Vec<f64> {
        serde_json::from_value(self.value[key].clone()).unwrap()
    }

    fn rows(&self, key: &str) -> Vec<Vec<f64>> {
        serde_json::from_value(self.value[key].clone()).unwrap()
    }

    /// Which answers are learnt from.
    fn counted(&self) -> Vec<bool> {
        let truncated: Vec<bool> = serde_json::from_value(self.value["truncated"].clone()).unwrap();
        truncated.into_iter().map(|truncated| !(truncated && self.loss.masks_truncated())).collect()
    }

    fn totals(&self) -> Totals {
        let rows = self.rows("old");
        let counted = rows.iter().zip(self.counted()).filter(|(_, counted)| *counted);
        Totals {
            answers: rows.len(),
            tokens: counted.map(|(row, _)| row.len()).sum(),
            longest: self.number("longest") as usize,
        }
    }

    /// What our loss makes of each answer.
    fn ours(&self, log_probs: &[Vec<f64>]) -> Vec<AnswerLoss> {
        let (old, reference, advantages) = (self.rows("old"), self.rows("reference"), self.numbers("advantages"));
        let of = |i: usize| {
            let drawn =
                Drawn { log_probs: &log_probs[i], old: &old[i], reference: &reference[i], advantage: advantages[i] };
            match self.counted()[i] {
                true => self.loss.of(&drawn, self.totals(), self.number("beta")),
                false => AnswerLoss { slopes: vec![0.0; log_probs[i].len()], ..AnswerLoss::default() },
            }
        };
        (0..log_probs.len()).map(of).collect()
    }
}

fn cases() -> Vec<Case> {
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    let case = |value: &Value| Case {
        name: format!("{} with {}", value["loss"], value["beta"]),
        // JSON is YAML.
        loss: load::<PolicyLoss>(Input::yaml("loss.yaml", value["loss"].to_string())).unwrap().config,
        value: value.clone(),
    };
    fixture["cases"].as_array().unwrap().iter().map(case).collect()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * (1e-3 + a.abs().max(b.abs()))
}

#[test]
fn advantages_losses_and_gradients_are_those_of_trl() {
    let cases = cases();
    assert_eq!(cases.len(), 8);
    for case in &cases {
        let name = &case.name;
        let advantages = case.loss.advantages(&case.numbers("rewards"), case.number("samples") as usize);
        for (ours, theirs) in advantages.iter().zip(case.numbers("advantages")) {
            assert!(close(*ours, theirs), "{name}: advantage {ours} instead of {theirs}");
        }
        let ours = case.ours(&case.rows("log_probs"));
        let value: f64 = ours.iter().map(|answer| answer.loss).sum();
        assert!(close(value, case.number("value")), "{name}: {value} instead of {}", case.number("value"));
        for (i, (ours, theirs)) in ours.iter().zip(case.rows("gradient")).enumerate() {
            assert_eq!(ours.slopes.len(), theirs.len());
            for (ours, theirs) in ours.slopes.iter().zip(theirs) {
                assert!(close(*ours, theirs), "{name}, answer {i}: slope {ours} instead of {theirs}");
            }
        }
        if let Some(theirs) = case.value["kl"].as_f64() {
            let divergence = ours.iter().map(|answer| answer.divergence).sum::<f64>() / case.totals().tokens as f64;
            assert!((divergence - theirs).abs() < 1e-6, "{name}: {divergence} instead of {theirs}");
        }
        // With one ratio an answer, they count answers.
        let clipped = match case.loss {
            PolicyLoss::Gspo(_) => ours.iter().filter(|answer| answer.clipped > 0).count() as f64 / ours.len() as f64,
            _ => ours.iter().map(|answer| answer.clipped).sum::<usize>() as f64 / case.totals().tokens as f64,
        };
        assert!((clipped - case.number("clipped")).abs() < 1e-6, "{name}: {clipped} is clipped");
    }
}

#[test]
fn slopes_are_differences_of_the_losses() {
    for case in cases() {
        // Far from where a ratio begins to be clipped.
        let step = if matches!(case.loss, PolicyLoss::Gspo(_)) { 1e-7 } else { 1e-6 };
        let start = case.rows("log_probs");
        let value = |log_probs: &[Vec<f64>]| case.ours(log_probs).iter().map(|answer| answer.loss).sum::<f64>();
        for (i, answer) in case.ours(&start).iter().enumerate() {
            for (j, slope) in answer.slopes.iter().enumerate() {
                let at = |delta: f64| {
                    let mut moved = start.clone();
                    moved[i][j] += delta;
                    value(&moved)
                };
                let difference = (at(step) - at(-step)) / (2.0 * step);
                assert!((difference - slope).abs() < 1e-6, "{}: {slope} instead of {difference}", case.name);
            }
        }
    }
}

#[test]
fn before_the_first_update_the_gradient_is_that_of_reinforce() {
    for case in cases() {
        let old = case.rows("old");
        let (totals, advantage) = (case.totals(), 0.7);
        for old in &old {
            let drawn = Drawn { log_probs: old, old, reference: &[], advantage };
            let ours = case.loss.of(&drawn, totals, 0.0);
            assert_eq!(ours.clipped, 0);
            // All ratios are 1: the loss is minus the advantage times what tokens count, and each slope is a token's part.
            let sum: f64 = ours.slopes.iter().sum();
            assert!((ours.loss - sum).abs() < 1e-12 && ours.loss < 0.0, "{}: {} and {sum}", case.name, ours.loss);
            assert!(ours.slopes.iter().all(|slope| *slope == ours.slopes[0]));
        }
    }
}

#[test]
fn answers_that_are_all_worth_the_same_teach_nothing() {
    for loss in cases().into_iter().map(|case| case.loss) {
        assert_eq!(loss.advantages(&[1.0; 8], 4), [0.0; 8]);
        assert_eq!(loss.advantages(&[0.25], 1), [0.0]);
        let off = loss.advantages(&[1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0], 4);
        assert!(off[0] > 0.4 && off[1] < -0.4 && off[4..].iter().all(|advantage| *advantage == 0.0), "{off:?}");
    }
}
