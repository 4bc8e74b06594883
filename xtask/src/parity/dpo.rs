//! Preference optimization in fp32 must follow torchtune's: losses, log-probabilities of the answers, and the rewards that
//! come of them.

use std::path::Path;

use serde_json::Value;
use tune_core::config::say;

use super::{Precision, from_initial_adapter, steps, torchtune_steps};
use crate::Result;

/// Relative differences that are allowed: the first step's loss, every loss, every log-probability.
const FIRST_LOSS: f64 = 1e-4;
const LOSS: f64 = 1e-3;
const LOG_PROB: f64 = 1e-4;
/// What rewards may differ by. They are a tenth of a difference of log-probabilities of up to some 100 nats.
const REWARD: f64 = 1e-3;

const REWARDS: [&str; 3] = ["rewards/chosen", "rewards/rejected", "rewards/margins"];
const LOG_PROBS: [&str; 2] = ["log_probs/chosen", "log_probs/rejected"];

/// Trains from the Hugging Face folder, prints how far the run is from torchtune's, and returns whether it is near enough.
pub(super) fn compare(root: &Path, model: &Path) -> Result<bool> {
    let expected = torchtune_steps(root, "lora_dpo")?;
    let data = root.join("tests/fixtures/torchtune/humaneval_preferences.jsonl");
    let mut settings = [
        &format!("dataset.data_files=[{}]", data.display()),
        "dataset.conversation_style=sharegpt",
        "dataset.column_map.chosen=chosen_conversations",
        "dataset.column_map.rejected=rejected_conversations",
        "max_steps_per_epoch=8",
    ]
    .map(str::to_owned)
    .to_vec();
    settings.extend(from_initial_adapter(root));
    let found = steps(root, "dpo", Precision::Fp32, "hf", &model.join("hf"), &settings)?;
    if found.len() != expected.len() {
        return Err(format!("a run took {} steps instead of {}", found.len(), expected.len()).into());
    }
    let relative = |a: f64, b: f64| (a / b - 1.0).abs();
    let first = worst(&found[..1], &expected[..1], &["loss"], relative);
    let loss = worst(&found, &expected, &["loss"], relative);
    let log_prob = worst(&found, &expected, &LOG_PROBS, relative);
    let reward = worst(&found, &expected, &REWARDS, |a, b| (a - b).abs());
    let right = worst(&found, &expected, &["rewards/accuracies"], |a, b| (a - b).abs());
    say!("Distance from torchtune's run of preference optimization, both in fp32");
    say!(
        "{:<20} {:>12} {:>12} {:>14} {:>12} {:>12}",
        "run",
        "first loss",
        "worst loss",
        "worst log-prob",
        "worst reward",
        "accuracy"
    );
    say!("{:<20} {first:>12.1e} {loss:>12.1e} {log_prob:>14.1e} {reward:>12.1e} {right:>12.1e}", "dpo from hf");
    say!("{:<20} {FIRST_LOSS:>12.1e} {LOSS:>12.1e} {LOG_PROB:>14.1e} {REWARD:>12.1e} {:>12.1e}", "allowed", 0.0);
    Ok(first <= FIRST_LOSS && loss <= LOSS && log_prob <= LOG_PROB && reward <= REWARD && right <= 0.0)
}

/// The largest difference over all steps and keys; NaN where a number is not there.
fn worst(found: &[Value], expected: &[Value], keys: &[&str], difference: impl Fn(f64, f64) -> f64) -> f64 {
    let number = |step: &Value, key: &str| step[key].as_f64().unwrap_or(f64::NAN);
    let of_step = |(found, expected): (&Value, &Value)| {
        keys.iter().map(|key| difference(number(found, key), number(expected, key))).collect::<Vec<_>>()
    };
    // A comparison with NaN is false: it must not get lost in a maximum.
    let larger = |worst: f64, x: f64| if x > worst || x.is_nan() { x } else { worst };
    found.iter().zip(expected).flat_map(of_step).fold(0.0, larger)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_largest_difference_counts_and_what_is_missing_is_no_number() {
        let found = [json!({"a": 1.0, "b": 5.0}), json!({"a": 2.5, "b": null})];
        let expected = [json!({"a": 1.0, "b": 2.0}), json!({"a": 2.0, "b": 1.0})];
        let difference = |a: f64, b: f64| (a - b).abs();
        assert_eq!(worst(&found, &expected, &["a"], difference), 0.5);
        assert_eq!(worst(&found[..1], &expected[..1], &["a", "b"], difference), 3.0);
        assert!(worst(&found, &expected, &["a", "b"], difference).is_nan());
    }
}
