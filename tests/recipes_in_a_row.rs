//! Recipes are values: one program runs `full` and then `lora` on what it made.

#![allow(clippy::unwrap_used)]

#[path = "../recipes/src/bin/full.rs"]
#[allow(dead_code)]
mod full;
#[path = "../recipes/src/bin/lora.rs"]
#[allow(dead_code)]
mod lora;

use std::path::Path;

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

#[test]
fn full_and_then_lora_on_its_result() {
    // The paths of the shipped configs are relative to the workspace.
    std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
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
