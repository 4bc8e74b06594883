//! Recipes are values: one program runs one after the other on what it made.

#![allow(clippy::unwrap_used)]

#[path = "../recipes/src/bin/distill.rs"]
#[allow(dead_code)]
mod distill;
#[path = "../recipes/src/bin/full.rs"]
#[allow(dead_code)]
mod full;
#[path = "../recipes/src/bin/lora.rs"]
#[allow(dead_code)]
mod lora;

use std::path::Path;
use std::sync::Once;

use tune_core::config::{Input, load};
use tune_core::recipe::Recipe;

/// The shipped config of a recipe, with overrides.
fn config<R: Recipe>(recipe: &str, overrides: &[String]) -> R::Config {
    let file = format!("configs/{recipe}/tiny.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    load(Input::yaml(file, text).overrides(overrides)).unwrap_or_else(|report| panic!("{report}")).config
}

fn run<R: Recipe>(config: R::Config) {
    let mut recipe = R::setup(config).unwrap();
    recipe.train().unwrap();
    recipe.cleanup().unwrap();
}

/// The paths of the shipped configs are relative to the workspace.
fn in_the_workspace() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap());
}

#[test]
fn full_and_then_lora_on_its_result() {
    in_the_workspace();
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("full"), folder.path().join("lora"));
    let short =
        |dir: &Path| vec![format!("output_dir={}", dir.display()), "max_steps_per_epoch=2".into(), "epochs=1".into()];

    run::<full::FullFinetune>(config::<full::FullFinetune>("full", &short(&first)));
    let trained = tune_core::checkpoint::run::latest(&first).unwrap().unwrap();
    let mut overrides = short(&second);
    overrides.extend([format!("checkpointer.checkpoint_dir={}", trained.path.display()), "~exact_match".into()]);
    run::<lora::LoraFinetune>(config::<lora::LoraFinetune>("lora", &overrides));

    let adapter = tune_core::checkpoint::run::latest(&second).unwrap().unwrap();
    assert_eq!(adapter.step, 2);
    assert!(adapter.path.join("adapter_model.safetensors").is_file());
}

/// First the teacher is tuned, then it teaches a student that never sees an answer of the data.
#[test]
fn a_teacher_is_tuned_and_then_its_student_gains() {
    in_the_workspace();
    let folder = tempfile::tempdir().unwrap();
    let (teacher, student) = (folder.path().join("teacher"), folder.path().join("student"));
    let output = |dir: &Path| format!("output_dir={}", dir.display());

    let overrides = [output(&teacher), "dataset.split=train[:95%]".into()];
    run::<full::FullFinetune>(config::<full::FullFinetune>("full", &overrides));
    let taught_by = format!("teacher_checkpointer.checkpoint_dir={}", teacher.display());
    let overrides = [output(&student), taught_by, "kd_ratio=1.0".into(), "dataset.split=train[:10%]".into()];
    run::<distill::Distillation>(config::<distill::Distillation>("distill", &overrides));

    let log = std::fs::read_to_string(student.join("logs/metrics.jsonl")).unwrap();
    let records: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers = |key: &str| records.iter().filter_map(|record| record[key].as_f64()).collect::<Vec<_>>();
    let (divergence, held_out) = (numbers("kd_loss"), numbers("val_loss"));
    let (before, after) = (held_out[0], held_out[held_out.len() - 1]);
    assert!(divergence[divergence.len() - 1] < 0.3 * divergence[0], "{divergence:?}");
    assert!(after < 0.3 * before, "held-out loss: {before} before, {after} after");
}
