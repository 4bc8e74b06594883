//! Each optimizer in a whole run: the model learns, and what is saved is what was evaluated.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/learnt.rs"]
mod learnt;
#[path = "common/runs.rs"]
mod runs;

use std::path::Path;

use learnt::{losses, tensors};
use runs::{newest, succeed};
use tune_core::checkpoint::state::TrainingState;

/// Trains all weights of the tiny model for some steps.
fn train(output: &Path, overrides: &[&str]) {
    let output = format!("output_dir={}", output.display());
    let mut args = vec![
        "--config",
        "configs/full/tiny.yaml",
        &output,
        "log_every_n_steps=1",
        "lr_scheduler={_component_: constant}",
    ];
    args.extend(overrides);
    succeed("full", &args);
}

/// The loss falls by a third within twenty steps, at a learning rate that suits the optimizer.
#[test]
fn every_optimizer_learns() {
    let optimizers = [
        ("adamw", "1e-3"),
        ("sgd", "0.5"),
        ("adamw_8bit", "1e-3"),
        ("lion", "3e-4"),
        ("adafactor", "1e-2"),
        ("muon", "2e-3"),
        ("schedule_free_adamw", "3e-3"),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (name, lr) in optimizers {
        let output = folder.path().join(name);
        let (optimizer, lr) = (format!("optimizer={name}"), format!("optimizer.lr={lr}"));
        train(&output, &[&optimizer, &lr, "max_steps_per_epoch=20"]);
        let losses = losses(&output);
        assert_eq!(losses.len(), 20);
        let (first, last) = (losses[0], losses[16..].iter().sum::<f64>() / 4.0);
        println!("{name}: {first:.3}, {last:.3}");
        assert!(last < first * 2.0 / 3.0, "{name}: from {first} to {last}");
    }
}

/// Blocks that are far from the output layer move less.
#[test]
fn lower_blocks_move_less() {
    let folder = tempfile::tempdir().unwrap();
    train(folder.path(), &["optimizer.layerwise_lr_decay=0.1", "max_steps_per_epoch=1", "dtype=fp32"]);
    let (before, after) = ("recipes/tiny/model/model.safetensors", newest(folder.path()).join("model.safetensors"));
    let (before, after) = (tensors(&runs::root().join(before)), tensors(&after));
    let moved = |name: &str| {
        let all = before[name].iter().zip(&after[name]).map(|(a, b)| (a - b).abs());
        all.fold(0.0, f64::max)
    };
    // The first step of AdamW moves by the learning rate, times its factor.
    let (norm, last, below) = (
        moved("model.norm.weight"),
        moved("model.layers.3.input_layernorm.weight"),
        moved("model.layers.2.input_layernorm.weight"),
    );
    assert!((norm / last - 10.0).abs() < 0.5 && (last / below - 10.0).abs() < 0.5, "{norm} {last} {below}");
}

/// Training goes on from the weights, and the mean, which lags behind them, is what a checkpoint has.
#[test]
fn the_mean_of_weights_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, mean) = (folder.path().join("plain"), folder.path().join("mean"));
    let settings = [
        "optimizer.lr=1e-3",
        "max_steps_per_epoch=3",
        "dtype=fp32",
        "checkpointer.save_every_n_steps=1",
        "checkpointer.keep_last_n_checkpoints=null",
    ];
    train(&plain, &settings);
    train(&mean, &[&settings[..], &["optimizer.ema_decay=0.5"]].concat());
    assert_eq!(losses(&plain), losses(&mean));
    let of = |step: usize| tensors(&plain.join(format!("epoch_0_step_{step}/model.safetensors")));
    let (steps, means) = ([of(1), of(2), of(3)], tensors(&newest(&mean).join("model.safetensors")));
    assert!(means.len() > 10);
    for (name, mean) in &means {
        for (i, mean) in mean.iter().enumerate() {
            let [first, second, third] = [0, 1, 2].map(|step: usize| steps[step][name][i]);
            let expected = 0.25 * first + 0.25 * second + 0.5 * third;
            assert!((mean - expected).abs() < 1e-6, "{name}: {mean} instead of {expected}");
        }
    }
}

/// The weights of a checkpoint are the mean over the steps, not those that the next gradients are taken at.
#[test]
fn the_mean_of_a_schedule_free_run_is_saved() {
    let folder = tempfile::tempdir().unwrap();
    let optimizer = "optimizer={_component_: schedule_free_adamw, lr: 3e-3}";
    train(folder.path(), &[optimizer, "max_steps_per_epoch=3", "dtype=fp32"]);
    let saved = newest(folder.path());
    let (weights, state) = (tensors(&saved.join("model.safetensors")), TrainingState::read(&saved).unwrap().optimizer);
    let of = |name: &str, part: &str| {
        let tensor = state[&format!("{name}.{part}")].flatten_all().unwrap();
        tensor.to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect::<Vec<_>>()
    };
    assert!(weights.len() > 10);
    for (name, weight) in &weights {
        assert_eq!(weight, &of(name, "x"), "{name}");
        assert!(weight != &of(name, "z"), "{name}");
    }
}
