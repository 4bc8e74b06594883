//! Whole recipes on several processes, which are threads here: they learn what one process learns, and one number of them goes on
//! from what another saved.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod copies;
mod drawn;
#[path = "../common/learnt.rs"]
mod learnt;
mod objectives;
#[path = "../common/recipes.rs"]
mod recipes;
mod rows;
mod taught;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use learnt::{distance, losses, worst};
use tune_core::config::{Input, load};
use tune_core::distributed::threads;
use tune_core::recipe::Recipe;

/// Micro-batches of a step over all processes.
const TOGETHER: usize = 4;
/// Rows of each.
const ROWS: usize = 4;

/// The shipped config of a recipe, short, for one of some processes.
fn config<R: Recipe>(recipe: &str, output: &Path, processes: usize, overrides: &[&str]) -> R::Config {
    let file = format!("configs/{recipe}/tiny.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let mut all = vec![
        format!("output_dir={}", output.display()),
        "~overwrite".to_owned(),
        "log_every_n_steps=1".to_owned(),
        format!("batch_size={ROWS}"),
        format!("gradient_accumulation_steps={}", TOGETHER / processes),
    ];
    // Few samples, and no multiple of what the processes take at a time. Those have data of their own kind.
    if !["dpo", "kto", "pretrain", "reward"].contains(&recipe) {
        all.push(
            "dataset_val=[{_component_: chat, data_files: [recipes/tiny/data/secret_code.jsonl], conversation_style: openai, \
             split: 'train[:50]'}]"
                .to_owned(),
        );
    }
    all.extend(overrides.iter().map(ToString::to_string));
    load(Input::yaml(file, text).overrides(&all)).unwrap_or_else(|report| panic!("{report}")).config
}

fn run<R: Recipe>(config: R::Config) -> tune_core::Result<()> {
    let mut recipe = R::setup(config)?;
    recipe.train()?;
    recipe.cleanup()
}

/// Runs a recipe on some processes, and returns what each says of an error.
fn on<R: Recipe>(recipe: &str, output: &Path, processes: usize, overrides: &[&str]) -> Vec<Option<String>> {
    std::env::set_current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap();
    let one = |_| {
        let result = run::<R>(config::<R>(recipe, output, processes, overrides));
        result.err().map(|error| error.to_string())
    };
    match processes {
        1 => vec![one(tune_core::distributed::Group::single())],
        _ => threads::run(processes, Duration::from_secs(120), one).unwrap(),
    }
}

fn succeed<R: Recipe>(recipe: &str, output: &Path, processes: usize, overrides: &[&str]) -> PathBuf {
    let errors = on::<R>(recipe, output, processes, overrides);
    assert!(errors.iter().all(Option::is_none), "{errors:?}");
    latest(output)
}

/// The newest checkpoint of a run.
fn latest(output: &Path) -> PathBuf {
    tune_core::checkpoint::run::latest(output).unwrap().unwrap().path
}

/// What a run logged under a key.
fn kept(output: &Path, key: &str) -> Vec<f64> {
    let text = fs::read_to_string(output.join("logs/metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    records.filter_map(|record| record[key].as_f64()).collect()
}

/// Losses and files of a run are those of another.
fn compare(what: &str, (output, saved): Ran<'_>, (other, expected): Ran<'_>, weights: &str) {
    let worst = worst(&losses(output), &losses(other));
    let of_weights = distance(&saved.join(weights), &expected.join(weights));
    let state = "training_state.safetensors";
    let of_state = distance(&saved.join(state), &expected.join(state));
    println!("{what}: losses off by {worst:.1e}, weights {of_weights:.1e}, optimizer {of_state:.1e}");
    assert!(worst <= 1e-5 && of_weights <= 1e-4 && of_state <= 1e-3, "{what}");
}

/// Files of two checkpoints have the same bits.
fn assert_same_bits(saved: &Path, other: &Path, files: &[&str]) {
    for file in files {
        assert!(fs::read(saved.join(file)).unwrap() == fs::read(other.join(file)).unwrap(), "{file}");
    }
}

/// A run's folder, and its newest checkpoint.
type Ran<'a> = (&'a Path, &'a Path);

/// Of a recipe that one process ran in the folder `adapters 1` and two in `adapters 2`: two processes go on from what one began and come
/// to where that came, and from the beginning they come to the same bits again. `run` is the recipe on two processes, with overrides.
fn assert_resumed_and_repeated(
    folder: &Path,
    files: &[&str],
    run: impl Fn(&Path, &[&str]) -> PathBuf,
    same: impl Fn(&str, Ran<'_>, Ran<'_>),
) {
    let [one, two, resumed, again] = ["adapters 1", "adapters 2", "resumed", "again"].map(|name| folder.join(name));
    with_first_checkpoint(&one, &resumed);
    let saved = run(&resumed, &["resume_from_checkpoint=true"]);
    same("one to two", (&resumed, &saved), (&one, &latest(&one)));
    assert_same_bits(&run(&again, &[]), &latest(&two), files);
}

/// A run's folder as it was behind the first checkpoint of another one.
fn with_first_checkpoint(of: &Path, output: &Path) {
    let checkpoint = tune_core::checkpoint::run::checkpoints(of).unwrap().remove(0).path;
    copy_folder(&checkpoint, &output.join(checkpoint.file_name().unwrap()));
    fs::create_dir(output.join("logs")).unwrap();
    fs::copy(of.join("logs/metrics.jsonl"), output.join("logs/metrics.jsonl")).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy_folder(&path, &copy),
            false => drop(fs::copy(&path, copy).unwrap()),
        }
    }
}

/// Two short epochs of the recipe `full`.
const FULL: &[&str] = &["epochs=2", "max_steps_per_epoch=4", "clip_grad_norm=0.5", "dataset.packed=true"];
