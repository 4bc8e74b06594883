use serde_json::Value;
use tune_config::{Input, load};

use super::*;
use crate::distributed::threads;
use crate::methods::PpoMetrics;
use crate::methods::experience::tests::experience;

const FIXTURE: &str = include_str!("../../../tests/fixtures/ppo.json");

/// A step's answers, with what torchtune's functions and PyTorch's autograd make of them (`tests/python/make_ppo.py`).
struct Case {
    keys: AdvantageKeys,
    loss: PpoLoss,
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

    fn near(&self, key: &str, ours: &[f64]) {
        let theirs = self.rows(key).concat();
        assert_eq!(ours.len(), theirs.len(), "{key}");
        for (a, b) in ours.iter().zip(&theirs) {
            assert!(close(*a, *b), "{key} of {:?}: {a} instead of {b}", self.keys);
        }
    }
}

fn cases() -> Vec<Case> {
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    let case = |value: &Value| Case {
        // JSON is YAML.
        keys: load::<AdvantageKeys>(Input::yaml("keys.yaml", value["keys"].to_string())).unwrap().config,
        loss: load::<PpoLoss>(Input::yaml("loss.yaml", value["loss"].to_string())).unwrap().config,
        value: value.clone(),
    };
    fixture["cases"].as_array().unwrap().iter().map(case).collect()
}

/// torchtune's means and deviations are off by 1e-8 on purpose.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * (1e-2 + a.abs().max(b.abs()))
}

#[test]
fn rewards_advantages_losses_and_gradients_are_those_of_torchtune() {
    let cases = cases();
    assert_eq!(cases.len(), 4);
    for case in &cases {
        let (old, reference) = (case.rows("old"), case.rows("reference"));
        let made = experience(&case.numbers("scores"), &old, &reference, &case.rows("values"), &case.keys);
        let mut step = [made];
        case.keys.estimate(&mut step, &Group::single()).unwrap();
        let [made] = step;
        case.near("rewards", &made.rewards);
        case.near("advantages", &made.advantages);
        case.near("returns", made.returns());

        let mut seen = PpoMetrics::default();
        seen.add(&made);
        let count = made.tokens();
        let log_probs = made.spread_out(&case.rows("log_probs").concat());
        let policy = made.of_policy(&case.loss, &log_probs, count, &mut seen);
        case.near("policy_gradient", &made.picked(&policy.gradient));
        let value = made.of_values(&case.loss, &case.rows("new_values").concat(), count, &mut seen);
        case.near("value_gradient", &value.gradient);
        assert!(close(policy.value, case.number("policy_loss")), "{}", policy.value);
        assert!(close(value.value, case.loss.value_coeff * case.number("value_loss")), "{}", value.value);
        assert!(close(policy.value + value.value, case.number("total")));
        assert!(close(seen.loss(&case.loss), case.number("total")));
        let logged = |name: &str| seen.logged().into_iter().find(|extra| extra.name == name).unwrap().value;
        assert!(close(logged("clip_ratio"), case.number("clipped")));
        assert!(close(logged("kl"), case.number("kl")));
        assert!(close(logged("reward"), case.numbers("scores").iter().sum::<f64>() / old.len() as f64));
    }
}

/// Where values are what rewards will be, nothing is better or worse than was expected.
#[test]
fn an_answer_that_was_foreseen_has_no_advantage() {
    let keys = AdvantageKeys { kl_coeff: 0.0, gamma: 0.5, lmbda: 0.9, whiten_rewards: false };
    let rewards = keys.rewards(8.0, &[-1.0; 4], &[]);
    assert_eq!(rewards, [0.0, 0.0, 0.0, 8.0]);
    assert_eq!(keys.advantages(&rewards, &[1.0, 2.0, 4.0, 8.0]), [0.0; 4]);
    // At lambda 1 an advantage is what came less what was expected.
    let keys = AdvantageKeys { gamma: 1.0, lmbda: 1.0, ..keys };
    assert_eq!(keys.advantages(&rewards, &[1.0, 2.0, 4.0, 5.0]), [7.0, 6.0, 4.0, 3.0]);
}

/// The slopes are the losses' derivatives, also where something is clipped.
#[test]
fn slopes_are_derivatives() {
    for case in cases() {
        let (old, now, advantages) =
            (case.rows("old").concat(), case.rows("log_probs").concat(), case.rows("advantages").concat());
        let (values, new, returns) =
            (case.rows("values").concat(), case.rows("new_values").concat(), case.rows("returns").concat());
        let check = |at: &[f64], of: &dyn Fn(&[f64]) -> Clipped| {
            let found = of(at);
            for i in 0..at.len() {
                let moved = |by: f64| {
                    let mut moved = at.to_vec();
                    moved[i] += by;
                    of(&moved).loss
                };
                let slope = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                assert!((slope - found.slopes[i]).abs() < 1e-6, "{i}: {} instead of {slope}", found.slopes[i]);
            }
        };
        check(&now, &|now| case.loss.of_policy(now, &old, &advantages));
        check(&new, &|new| case.loss.of_values(new, &values, &returns));
    }
}

/// Each process has some of a step's answers, or none: advantages are those that one process finds, for what all have together.
#[test]
fn advantages_are_spread_over_all_processes() {
    let keys = AdvantageKeys { kl_coeff: 0.1, gamma: 0.9, lmbda: 0.8, whiten_rewards: true };
    let answers = [(2.0, vec![-1.0, -0.5]), (-1.0, vec![-2.0]), (0.5, vec![-0.1, -3.0, -0.7])];
    let of = |(worth, old): &(f64, Vec<f64>)| {
        let near: Vec<f64> = old.iter().map(|log_prob| log_prob - 0.3).collect();
        experience(&[*worth], std::slice::from_ref(old), &[near], &[vec![0.25; old.len()]], &keys)
    };
    let mut alone: Vec<Experience> = answers.iter().map(of).collect();
    keys.estimate(&mut alone, &Group::single()).unwrap();
    let alone: Vec<f64> = alone.iter().flat_map(|one| one.advantages.clone()).collect();
    let together = threads::run(3, std::time::Duration::from_secs(60), |group| {
        // The second has none.
        let mine = [0..1, 1..1, 1..3][group.rank()].clone();
        let mut step: Vec<Experience> = answers[mine].iter().map(of).collect();
        keys.estimate(&mut step, &group).unwrap();
        let count = Experience::tokens_of_all(&step, &group).unwrap();
        (step.iter().flat_map(|one| one.advantages.clone()).collect::<Vec<f64>>(), count)
    })
    .unwrap();
    assert!(together.iter().all(|(_, count)| *count == 6));
    let together: Vec<f64> = together.into_iter().flat_map(|(advantages, _)| advantages).collect();
    assert_eq!(together.len(), alone.len());
    assert!(together.iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-12), "{together:?} {alone:?}");
}

/// A step whose tokens all have the same advantage teaches nothing, and one token alone neither.
#[test]
fn advantages_without_a_spread_are_nothing() {
    let keys = AdvantageKeys { kl_coeff: 0.0, gamma: 1.0, lmbda: 1.0, whiten_rewards: true };
    let mut step = [experience(&[3.0], &[vec![-1.0]], &[vec![]], &[vec![0.0]], &keys)];
    keys.estimate(&mut step, &Group::single()).unwrap();
    assert_eq!(step[0].advantages, [0.0]);
}

#[test]
fn updates_take_whole_micro_batches() {
    let of = |ppo_epochs, ppo_batch_size| UpdateKeys { ppo_epochs, ppo_batch_size };
    assert_eq!(of(1, None).of_step(16, 4, 1).unwrap(), (4, 1));
    assert_eq!(of(3, Some(32)).of_step(16, 4, 1).unwrap(), (2, 6));
    // The last one may have fewer, and a step is never more than it has.
    assert_eq!(of(1, Some(48)).of_step(16, 4, 1).unwrap(), (3, 2));
    assert_eq!(of(2, Some(640)).of_step(16, 4, 1).unwrap(), (4, 2));
    let error = of(1, Some(8)).of_step(16, 4, 1).unwrap_err().to_string();
    assert!(error.contains("ppo_batch_size=8") && error.contains("set batch_size=8"), "{error}");
    // The same prompts on two processes, each of which has half of an update.
    assert_eq!(of(1, None).of_step(16, 2, 2).unwrap(), (2, 1));
    assert_eq!(of(3, Some(32)).of_step(16, 2, 2).unwrap(), (1, 6));
    for of_update in [16, 8] {
        let error = of(3, Some(of_update)).of_step(16, 2, 2).unwrap_err().to_string();
        assert!(error.contains("2 processes") && error.contains("a multiple of 32"), "{error}");
    }
}
