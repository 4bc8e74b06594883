use serde_json::Value;
use tune_config::{Input, load};

use super::*;
use crate::data::Span;

const FIXTURE: &str = include_str!("../../../tests/fixtures/preference_losses.json");

/// One batch of pairs, with what torchtune's or TRL's function and PyTorch's autograd make of it.
struct Case {
    name: String,
    loss: PreferenceLoss,
    pairs: Vec<Pair>,
    losses: Vec<f64>,
    gradient: [Vec<f64>; 2],
    rewards: [Vec<f64>; 2],
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn both(value: &Value) -> [Vec<f64>; 2] {
    [0, 1].map(|side| numbers(&value[side]))
}

fn loss(config: &Value) -> PreferenceLoss {
    // JSON is YAML.
    load::<PreferenceLoss>(Input::yaml("loss.yaml", config.to_string())).unwrap().config
}

fn cases() -> Vec<Case> {
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    let case = |case: &Value| {
        let (policy, reference, tokens) = (both(&case["policy"]), both(&case["reference"]), both(&case["tokens"]));
        let seen = |side: usize, i: usize| Seen {
            log_prob: policy[side][i],
            reference: reference[side][i],
            tokens: tokens[side][i] as usize,
        };
        Case {
            name: format!("{} of {}", case["loss"], case["source"]),
            loss: loss(&case["loss"]),
            pairs: (0..policy[0].len()).map(|i| Pair { chosen: seen(0, i), rejected: seen(1, i) }).collect(),
            losses: numbers(&case["losses"]),
            gradient: both(&case["gradient"]),
            rewards: both(&case["rewards"]),
        }
    };
    fixture["cases"].as_array().unwrap().iter().map(case).collect()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * (1e-3 + a.abs().max(b.abs()))
}

#[test]
fn losses_gradients_and_rewards_are_those_of_torchtune_and_trl() {
    let cases = cases();
    assert_eq!(cases.len(), 50);
    for Case { name, loss, pairs, losses, gradient, rewards } in &cases {
        let ours = loss.of(pairs);
        assert_eq!(ours.len(), losses.len());
        for (i, ours) in ours.iter().enumerate() {
            assert!(close(ours.loss, losses[i]), "{name}: {} instead of {}", ours.loss, losses[i]);
            for side in [0, 1] {
                let (slope, reward) = (ours.slopes[side], ours.rewards[side]);
                assert!(close(slope, gradient[side][i]), "{name}: slope {slope} instead of {}", gradient[side][i]);
                assert!(close(reward, rewards[side][i]), "{name}: reward {reward} instead of {}", rewards[side][i]);
            }
        }
    }
}

#[test]
fn slopes_are_differences_of_the_losses() {
    const STEP: f64 = 1e-5;
    for Case { name, loss, pairs, .. } in cases() {
        // How far the model has moved is held constant, so KTO's reference point must not move with an answer.
        let of = |pair: &Pair| match &loss {
            PreferenceLoss::Kto(kto) => kto.of(pair, 0.75),
            loss => loss.of(&[*pair])[0],
        };
        for pair in &pairs {
            let moved = |side: usize, by: f64| {
                let mut pair = *pair;
                let answer = if side == 0 { &mut pair.chosen } else { &mut pair.rejected };
                answer.log_prob += by;
                of(&pair).loss
            };
            // Where a hinge has its corner there is no derivative.
            let corner = matches!(loss, PreferenceLoss::Hinge(_)) && of(pair).loss < 1e-3;
            for side in [0, 1].into_iter().filter(|_| !corner) {
                let difference = (moved(side, STEP) - moved(side, -STEP)) / (2.0 * STEP);
                let slope = of(pair).slopes[side];
                assert!((difference - slope).abs() <= 1e-6 * (1.0 + slope.abs()), "{name}: {slope}, {difference}");
            }
        }
    }
}

#[test]
fn nothing_overflows() {
    let far = |log_prob| Seen { log_prob, reference: 0.0, tokens: 3 };
    for case in cases() {
        for (chosen, rejected) in [(0.0, -1e6), (-1e6, 0.0), (0.0, 0.0), (-1e6, -1e6)] {
            for of in case.loss.of(&[Pair { chosen: far(chosen), rejected: far(rejected) }]) {
                assert!(
                    of.loss.is_finite() && of.slopes.iter().all(|slope| slope.is_finite()),
                    "{}: {of:?}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn tokens_have_the_slope_of_their_answer() {
    let span = |row, start, len| Span { row, start, len };
    let ignored = crate::data::IGNORE;
    let batch = Batch {
        rows: 2,
        len: 5,
        input_ids: vec![1; 10],
        targets: vec![ignored, 1, 1, ignored, 1, 1, 1, ignored, 1, ignored],
        positions: vec![0; 10],
        spans: vec![span(0, 0, 3), span(0, 3, 2), span(1, 0, 3), span(1, 3, 1)],
        origins: vec![String::new(); 4],
        labels: Vec::new(),
    };
    let log_probs = [0.0, -1.0, -2.0, 0.0, -4.0, -5.0, -6.0, 0.0, -8.0, 0.0];
    let pairs = pairs(&batch, &log_probs, &[-1.0, -2.0, -3.0, -4.0]);
    let seen = |log_prob, reference, tokens| Seen { log_prob, reference, tokens };
    assert_eq!(pairs[0], Pair { chosen: seen(-3.0, -1.0, 2), rejected: seen(-4.0, -2.0, 1) });
    assert_eq!(pairs[1], Pair { chosen: seen(-11.0, -3.0, 2), rejected: seen(-8.0, -4.0, 1) });
    let of = |loss, a, b| PairLoss { loss, slopes: [a, b], rewards: [0.0; 2] };
    let objective = objective(&batch, &[of(0.5, -0.1, 0.2), of(0.25, -0.3, 0.4)]);
    assert_eq!(objective.value, 0.75);
    assert_eq!(objective.gradient, [-0.1, -0.1, -0.1, 0.2, 0.2, -0.3, -0.3, -0.3, 0.4, 0.0]);
}
