use serde_json::Value;
use tune_config::{Input, load};

use super::*;

const FIXTURE: &str = include_str!("../../../tests/fixtures/unpaired_losses.json");

fn fixture() -> Value {
    serde_json::from_str(FIXTURE).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|x| x as u32).collect()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-12 * b.abs().max(1.0)
}

/// A batch of a sample a row: prompts and answers, of which the answers are trained.
fn batch(samples: &[(Vec<u32>, Vec<u32>)]) -> Batch {
    let len = samples.iter().map(|(prompt, answer)| prompt.len() + answer.len()).max().unwrap_or(0);
    let mut batch = Batch { rows: samples.len(), len, ..Batch::idle() };
    (batch.input_ids, batch.targets, batch.spans) = (Vec::new(), Vec::new(), Vec::new());
    for (row, (prompt, answer)) in samples.iter().enumerate() {
        batch.spans.push(Span { row, start: 0, len: prompt.len() + answer.len() });
        batch.input_ids.extend(prompt.iter().chain(answer));
        batch.targets.extend(vec![IGNORE; prompt.len() - 1]);
        batch.targets.extend(answer);
        batch.input_ids.resize((row + 1) * len, 0);
        batch.targets.resize((row + 1) * len, IGNORE);
    }
    batch.positions = vec![0; batch.targets.len()];
    batch
}

/// Each answer a sequence of which one token is trained.
fn single(answers: usize) -> Batch {
    batch(&vec![(vec![1], vec![2]); answers])
}

/// Numbers of answers at the position that is trained.
fn spread(values: &[f64]) -> Vec<f64> {
    values.iter().flat_map(|&value| [value, 0.0]).collect()
}

#[test]
fn losses_gradients_and_metrics_are_those_of_trl() {
    for case in fixture()["cases"].as_array().unwrap() {
        let loss = load::<UnpairedLoss>(Input::yaml("loss.yaml", case["loss"].to_string())).unwrap().config;
        let labels: Vec<bool> =
            case["labels"].as_array().unwrap().iter().map(|label| label.as_bool().unwrap()).collect();
        let numbers = |key: &str| numbers(&case[key]);
        let count = labels.len();
        let batch = Batch { labels, ..single(count) };

        let mut moved = Moved::default();
        moved.add(&batch, &spread(&numbers("kl_policy")), &numbers("kl_reference"));
        let kl = loss.asks_how_far().then(|| moved.kl());
        assert!(near(kl.unwrap_or(0.0), case["kl"].as_f64().unwrap()), "{case}");

        let answers = labelled(&batch, &spread(&numbers("policy")), &numbers("reference"));
        let losses = loss.of(&answers, kl);
        let objective = labelled_objective(&batch, &losses);
        let mean = objective.value / count as f64;
        assert!(near(mean, case["mean_loss"].as_f64().unwrap()), "{mean} instead of {case}");
        for (i, of_mean) in numbers("gradient_of_mean").into_iter().enumerate() {
            let slope = objective.gradient[2 * i];
            assert!(near(slope, count as f64 * of_mean), "answer {i}: {slope} instead of {of_mean} of {case}");
        }

        let mut seen = UnpairedMetrics::default();
        seen.add(&answers, &losses);
        assert!(near(seen.loss(), mean));
        let logged = seen.logged(kl);
        let found = |name: &str| logged.iter().find(|extra| extra.name == name).map(|extra| extra.value);
        for (ours, theirs) in
            [("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"), ("rewards/margins", "margins")]
        {
            match (found(ours), case[theirs].as_f64()) {
                (Some(a), Some(b)) => assert!(near(a, b), "{ours}: {a} instead of {b}"),
                (found, expected) => assert_eq!(found, expected, "{ours}"),
            }
        }
        assert_eq!(found("kl").is_some(), loss.asks_how_far());
    }
}

#[test]
fn derivatives_are_slopes() {
    let weights = LabelWeights { beta: 0.4, desirable_weight: 1.5, undesirable_weight: 0.5 };
    for is_good in [true, false] {
        let at = |log_prob: f64| {
            weights.of(&Labelled { answer: Seen { log_prob, reference: -9.0, tokens: 3 }, is_good }, 0.75)
        };
        let slope = (at(-8.0 + 1e-6).loss - at(-8.0 - 1e-6).loss) / 2e-6;
        assert!((at(-8.0).slope - slope).abs() < 1e-9, "{slope}");
    }
}

#[test]
fn far_answers_stay_finite() {
    let weights = LabelWeights { beta: 0.1, desirable_weight: 1.0, undesirable_weight: 1.0 };
    for (log_prob, is_good) in [(-1e6, true), (-1e6, false), (1e6, true), (1e6, false)] {
        let found = weights.of(&Labelled { answer: Seen { log_prob, reference: 0.0, tokens: 3 }, is_good }, 0.0);
        assert!(found.loss.is_finite() && found.slope.is_finite(), "{found:?}");
    }
}

#[test]
fn prompts_with_answers_to_others_are_those_of_trls_collator() {
    for case in fixture()["batches"].as_array().unwrap() {
        let sample = |sample: &Value| (ids(&sample[0]), ids(&sample[1]));
        let samples: Vec<_> = case["answers"].as_array().unwrap().iter().map(sample).collect();
        let max_length = case["max_length"].as_u64().map(|max| max as usize);
        let found = mismatched(&batch(&samples), max_length);
        for (row, span) in found.spans.iter().enumerate() {
            let at = found.positions_of(span);
            let mask = ids(&case["completion_mask"][row]);
            let expected = ids(&case["input_ids"][row]);
            assert_eq!(found.input_ids[row * found.len..][..found.len], expected);
            assert_eq!(span.len as u32, ids(&case["attention_mask"][row]).iter().sum::<u32>());
            // A position is trained where the token behind it is the answer's.
            let next = (1..found.len).map(|i| if mask[i] == 1 { expected[i] } else { IGNORE }).chain([IGNORE]);
            assert_eq!(found.targets[row * found.len..][..found.len], next.collect::<Vec<_>>());
            assert_eq!(found.positions[at.clone()], (0..span.len as u32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn one_answer_alone_says_nothing_of_how_far_a_model_has_moved() {
    let alone = Batch { labels: vec![true], ..batch(&[(vec![1, 2], vec![3, 4])]) };
    let others = mismatched(&alone, None);
    assert_eq!((&others.input_ids, &others.targets), (&alone.input_ids, &alone.targets));
    let mut moved = Moved::default();
    moved.add(&others, &[0.0, -1.0, -1.0, 0.0], &[-8.0]);
    assert_eq!((moved, moved.kl()), (Moved::default(), 0.0));
    // Nor does what a process has that has no batch; and it has no answer.
    let idle = Batch::idle();
    moved.add(&mismatched(&idle, Some(1)), &[0.0], &[]);
    assert_eq!(moved, Moved::default());
    assert_eq!(labelled(&idle, &[0.0], &[]), []);
    // Batches count by their answers: 4 and 2 of them.
    moved.add(&single(4), &spread(&[1.0; 4]), &[0.0; 4]);
    moved.add(&single(2), &spread(&[4.0; 2]), &[0.0; 2]);
    assert_eq!(moved.kl(), 2.0);
    // Nearer than the reference is not far.
    moved.add(&single(2), &spread(&[-40.0; 2]), &[0.0; 2]);
    assert_eq!(moved.kl(), 0.0);
}
