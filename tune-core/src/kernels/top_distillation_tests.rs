use half::bf16;
use serde_json::Value;

use super::*;
use crate::kernels::distillation;
use crate::methods::{DivergenceLoss, GeneralizedJsd, TopTokens};

const VOCAB: usize = 500;
const TARGET: usize = 17;

fn student() -> Vec<f32> {
    (0..VOCAB).map(|i| ((i * 37) % 101) as f32 / 19.0 - 3.0).collect()
}

fn teacher() -> Vec<f32> {
    (0..VOCAB).map(|i| ((i * 53) % 97) as f32 / 13.0 - 1.0).collect()
}

fn jensen(beta: f64) -> DivergenceLoss {
    DivergenceLoss::JensenShannon(GeneralizedJsd { beta })
}

fn row_of(top: &TopTokens) -> (&[u32], &[f32], f32) {
    top.rows(0..1).row(0)
}

/// Cross-entropy and both divergences over the teacher's tokens and the rest, by their definition: from each other, or from what lies
/// between them with the teacher's share of it.
fn parts(z: &[f64], (ids, log_q, log_rest): (&[u32], &[f32], f32), cap: Option<f64>, middle: Option<f64>) -> [f64; 3] {
    let z: Vec<f64> = z.iter().map(|z| cap.map_or(*z, |cap| cap * (z / cap).tanh())).collect();
    let total = z.iter().map(|z| z.exp()).sum::<f64>().ln();
    let is_top = |i: &usize| ids.contains(&(*i as u32));
    let rest: f64 = (0..z.len()).filter(|i| !is_top(i)).map(|i| (z[i] - total).exp()).sum();
    let mut outcomes: Vec<(f64, f64)> =
        ids.iter().zip(log_q).map(|(&id, &log_q)| (z[id as usize] - total, f64::from(log_q))).collect();
    if ids.len() < z.len() {
        outcomes.push((rest.ln(), f64::from(log_rest)));
    }
    let between = |p: f64, q: f64| middle.map(|beta| (beta * q.exp() + (1.0 - beta) * p.exp()).ln());
    let forward = outcomes.iter().map(|&(p, q)| q.exp() * (q - between(p, q).unwrap_or(p))).sum();
    let reverse = outcomes.iter().map(|&(p, q)| p.exp() * (p - between(p, q).unwrap_or(q))).sum();
    [total - z[TARGET], forward, reverse]
}

#[test]
fn loss_and_gradient_are_those_of_the_definition() {
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    for k in [1, 8, 100, VOCAB] {
        let top = TopTokens::of_logits(&teacher(), k);
        for (mixture, cap) in [
            (Mixture::new(0.25, 1.0), None),
            (Mixture::new(1.0, 0.0), None),
            (Mixture::new(0.5, 0.25), Some(4.0)),
            (Mixture::new(0.0, 1.0), None),
            (jensen(0.5).mixed(1.0), None),
            (jensen(0.1).mixed(0.25), Some(4.0)),
            (jensen(0.9).mixed(0.75), None),
        ] {
            let [to_teacher, to_student] = mixture.shares();
            let both = |z: &[f64]| {
                let [loss, forward, reverse] = parts(z, row_of(&top), cap, mixture.middle());
                [loss, to_teacher * forward + to_student * reverse]
            };
            let value = |z: &[f64]| {
                let [loss, divergence] = both(z);
                mixture.of(loss, divergence)
            };
            let (mut row, small) = (student(), cap.map(|cap| cap as f32));
            let got = distilled::<f32>(&mut row, row_of(&top), small, TARGET, mixture, Some(0.5));
            for (got, right) in got.iter().zip(both(&wide(&student()))) {
                assert!((f64::from(*got) - right).abs() < 1e-5 * (1.0 + right), "{k} {mixture:?}: {got} {right}");
            }
            // The teacher's likeliest token, that which came, and others.
            for i in [top.ids[0] as usize, 0, TARGET, 200, VOCAB - 1] {
                let (mut more, mut less) = (wide(&student()), wide(&student()));
                more[i] += 1e-5;
                less[i] -= 1e-5;
                let right = 0.5 * (value(&more) - value(&less)) / 2e-5;
                assert!((f64::from(row[i]) - right).abs() < 1e-6, "{k} {mixture:?}, {i}: {} {right}", row[i]);
            }
            let mut rounded = student();
            assert_eq!(distilled::<bf16>(&mut rounded, row_of(&top), small, TARGET, mixture, Some(0.5)), got);
            let expected: Vec<bf16> = row.iter().map(|&g| Element::from_f32(g)).collect();
            assert_eq!(bytemuck::cast_slice::<f32, bf16>(&rounded)[..VOCAB], expected);
            // What is found without a gradient.
            assert_eq!(distilled::<f32>(&mut student(), row_of(&top), small, TARGET, mixture, None), got);
        }
    }
}

/// Where all tokens are known, it is the divergence from the teacher itself.
#[test]
fn of_all_tokens_it_is_the_whole_divergence() {
    let top = TopTokens::of_logits(&teacher(), VOCAB);
    for mixture in [Mixture::new(0.25, 1.0), Mixture::new(1.0, 0.0), Mixture::new(0.5, 0.25), jensen(0.3).mixed(0.75)] {
        let (mut row, mut whole, mut beside) = (student(), student(), teacher());
        let rows = (&mut whole[..], &mut beside[..]);
        let right = distillation::distilled_rows::<f32>(rows, VOCAB, None, &[17], mixture, Some(&[0.5]));
        let got = distilled_rows::<f32>((&mut row, top.rows(0..1)), VOCAB, None, &[17], mixture, Some(&[0.5]));
        for (got, right) in [(got[0].0, right[0].0), (got[0].1, right[0].1)] {
            assert!((got - right).abs() < 1e-5 * (1.0 + right), "{mixture:?}: {got} {right}");
        }
        for (got, right) in row.iter().zip(&whole) {
            assert!((got - right).abs() < 1e-6, "{mixture:?}: {got} {right}");
        }
    }
}

#[test]
fn who_is_as_good_as_the_teacher_has_nothing_to_learn() {
    let top = TopTokens::of_logits(&teacher(), 8);
    for mixture in [Mixture::new(1.0, 0.5), jensen(0.25).mixed(1.0)] {
        let mut row = teacher();
        let [_, divergence] = distilled::<f32>(&mut row, row_of(&top), None, TARGET, mixture, Some(1.0));
        assert!(divergence.abs() < 1e-5, "{divergence}");
        assert!(row.iter().all(|g| g.abs() < 1e-6), "{row:?}");
    }
}

/// A student that is sure of the teacher's tokens: what the others have is lost in one less the sum.
#[test]
fn others_that_are_hardly_there_still_count() {
    let mut row = vec![0.0f32; 100];
    row[3] = 40.0;
    let top = TopTokens::of_logits(&(0..100).map(|i| if i == 3 { 5.0 } else { 0.0 }).collect::<Vec<_>>(), 1);
    let [_, right, _] = parts(&row.iter().map(|&z| f64::from(z)).collect::<Vec<_>>(), row_of(&top), None, None);
    let [_, divergence] = distilled::<f32>(&mut row, row_of(&top), None, 3, Mixture::new(1.0, 1.0), Some(1.0));
    assert!((f64::from(divergence) - right).abs() < 1e-4 * right, "{divergence} instead of {right}");
    assert!(row.iter().all(|g| g.is_finite()));
}

/// The gradients are those that PyTorch's autograd finds in f64.
#[test]
fn divergences_and_gradients_are_those_of_pytorch() {
    const FIXTURE: &str = include_str!("../../../tests/fixtures/top_distillation.json");
    let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
    let rows = |value: &Value| -> Vec<Vec<f32>> { serde_json::from_value(value.clone()).unwrap() };
    let (student, teacher) = (rows(&fixture["student"]), rows(&fixture["teacher"]));
    let targets: Vec<u32> = serde_json::from_value(fixture["targets"].clone()).unwrap();
    let weights = vec![1.0 / targets.len() as f64; targets.len()];
    let cases = fixture["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 15);
    for case in cases {
        let loss = tune_config::load::<DivergenceLoss>(tune_config::Input::yaml("loss", case["loss"].to_string()));
        let mixture = loss.unwrap().config.mixed(case["ratio"].as_f64().unwrap());
        let mut top = TopTokens::new(case["top_k"].as_u64().unwrap() as usize);
        teacher.iter().for_each(|row| top.extend(&TopTokens::of_logits(row, top.k).rows(0..1)));
        let mut logits = student.concat();
        let vocab = student[0].len();
        let all = top.rows(0..targets.len());
        let found = distilled_rows::<f32>((&mut logits, all), vocab, None, &targets, mixture, Some(&weights));
        for (key, found) in
            [("class_loss", found.iter().map(|f| f.0).sum::<f64>()), ("kd_loss", found.iter().map(|f| f.1).sum())]
        {
            let (found, right) = (found / targets.len() as f64, case[key].as_f64().unwrap());
            assert!((found - right).abs() < 1e-5, "{case}: {key} is {found}");
        }
        for (ours, theirs) in logits.iter().zip(rows(&case["gradient"]).concat()) {
            assert!((ours - theirs).abs() < 1e-6, "{}: {ours} instead of {theirs}", case["loss"]);
        }
    }
}
