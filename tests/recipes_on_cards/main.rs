//! Every recipe on a card, beside the same run on the processor: losses and norms of every step, the files of its checkpoint, and
//! what is left of a run that was killed. Without a card there is a stand-in, on which the very kernels run; where a card must be,
//! `TUNE_TEST_CARD=1` says so. All recipes are in this one program, which can be carried to where a card is.

#![allow(clippy::unwrap_used)]

mod cases;
mod killed;
#[path = "../common/random_model.rs"]
mod random_model;
#[path = "../common/recipes.rs"]
mod recipes;
mod several;
#[path = "../common/stand_in.rs"]
mod stand_in;
mod streams;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use candle_core::DType;
use serde_json::Value;
use tune_core::checkpoint::Checkpoint;
use tune_core::checkpoint::merge::Merged;
use tune_core::checkpoint::run::latest;
use tune_core::config::{Input, complain, load, say};
use tune_core::device::Compute;
use tune_core::engine::{Card, Kernels};
use tune_core::generate::{Sampler, StopOptions, generate_many};
use tune_core::models::LoadOptions;
use tune_core::recipe::Recipe;

use cases::{CASES, Case};
use recipes::{distill, dpo, full, grpo, kto, lora, ppo, pretrain, qat, reward};

/// The workspace's folder, in which relative paths of the shipped configs hold.
fn in_the_workspace() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        // As cargo says now: a test may run on another machine than it was built on.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        std::env::set_current_dir(Path::new(&package).join("..")).unwrap();
    });
}

/// Whether there is a card.
fn has_card() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found = || match Card::open(0) {
        Ok(_) => true,
        Err(error) => {
            assert!(std::env::var_os("TUNE_TEST_CARD").is_none(), "{error}");
            complain!("nothing is run on a card here, for there is none: {error}");
            false
        }
    };
    *FOUND.get_or_init(found)
}

/// Runs a recipe in this process to its end.
fn run(recipe: &str, overrides: &[String]) -> Result<(), String> {
    fn all<R: Recipe>(recipe: &str, overrides: &[String]) -> Result<(), String> {
        let mut recipe = R::setup(config::<R::Config>(recipe, overrides)?).map_err(|e| e.to_string())?;
        recipe.train().map_err(|e| e.to_string())?;
        recipe.cleanup().map_err(|e| e.to_string())
    }
    fn config<C: tune_core::config::Config>(recipe: &str, overrides: &[String]) -> Result<C, String> {
        let file = format!("configs/{recipe}/tiny.yaml");
        let text = std::fs::read_to_string(&file).map_err(|e| format!("{file}: {e}"))?;
        Ok(load(Input::yaml(file, text).overrides(overrides)).map_err(|report| report.to_string())?.config)
    }
    match recipe {
        "distill" => all::<distill::Distillation>(recipe, overrides),
        "dpo" => all::<dpo::PreferenceOptimization>(recipe, overrides),
        "full" => all::<full::FullFinetune>(recipe, overrides),
        "grpo" => all::<grpo::PolicyOptimization>(recipe, overrides),
        "kto" => all::<kto::LabelOptimization>(recipe, overrides),
        "lora" => all::<lora::LoraFinetune>(recipe, overrides),
        "ppo" => all::<ppo::ProximalPolicyOptimization>(recipe, overrides),
        "pretrain" => all::<pretrain::Pretrain>(recipe, overrides),
        "qat" => all::<qat::QuantizationAware>(recipe, overrides),
        "reward" => all::<reward::RewardModeling>(recipe, overrides),
        other => Err(format!("there is no recipe {other}")),
    }
}

/// What a run logged: each of its numbers, step by step, but for those of time and memory.
fn logged(dir: &Path) -> BTreeMap<String, Vec<f64>> {
    let log = std::fs::read_to_string(dir.join("logs/metrics.jsonl")).unwrap();
    let mut numbers = BTreeMap::<String, Vec<f64>>::new();
    for record in log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        for (key, value) in record.as_object().unwrap() {
            let measured = ["time", "second", "memory"];
            if let (Some(value), false) = (value.as_f64(), measured.iter().any(|part| key.contains(part))) {
                numbers.entry(key.clone()).or_default().push(value);
            }
        }
    }
    numbers
}

/// The files of the newest checkpoint; of weights and of an optimizer's state the names, types and shapes.
fn saved(dir: &Path) -> BTreeMap<String, Value> {
    let newest = latest(dir).unwrap().unwrap().path;
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(newest).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_tensors = path.extension().is_some_and(|e| e == "safetensors");
        found.insert(name, if is_tensors { header(&path) } else { Value::Null });
    }
    found
}

/// What a file of tensors says of them, but for where they are in it.
fn header(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    let of = header.as_object_mut().unwrap();
    of.remove("__metadata__");
    of.values_mut().for_each(|tensor| _ = tensor.as_object_mut().unwrap().remove("data_offsets"));
    header
}

/// How far numbers are apart, at most, for their size, which is `least` or more; what is no number is far from all.
fn apart(found: &[f64], right: &[f64], least: f64) -> f64 {
    if found.len() != right.len() {
        return f64::INFINITY;
    }
    let each = found.iter().zip(right).map(|(f, r)| (f - r).abs() / r.abs().max(least));
    each.fold(0.0, |most, one| if one.is_nan() { f64::INFINITY } else { one.max(most) })
}

/// Runs a case on the processor and on the card; returns what is wrong with the latter, and tells how far they are apart.
fn compare(case: &Case, dtype: &str, folder: &Path) -> Result<(), String> {
    let dirs = ["cpu", "cuda"].map(|device| folder.join(format!("{}_{dtype}_{device}", case.name)));
    for (device, dir) in ["cpu", "cuda"].into_iter().zip(&dirs) {
        run(case.recipe, &case.settings(dtype, device, dir, folder)).map_err(|e| format!("device={device}: {e}"))?;
    }
    let [here, there] = dirs.each_ref().map(|dir| logged(dir));
    if here.keys().ne(there.keys()) || here.get("loss").is_none_or(Vec::is_empty) {
        return Err(format!("other things are logged: {:?} and {:?}", here.keys(), there.keys()));
    }
    let mut worst = (0.0, "nothing");
    for (key, right) in &here {
        let off = apart(&there[key], right, Case::least(dtype, key));
        if off > Case::tolerance(dtype, key) {
            return Err(format!("{key} {:?} instead of {right:?}", there[key]));
        }
        if off > worst.0 {
            worst = (off, key);
        }
    }
    let (of_here, of_there) = (saved(&dirs[0]), saved(&dirs[1]));
    if of_here != of_there {
        return Err(format!("other files or tensors are saved: {of_there:?} instead of {of_here:?}"));
    }
    say!("on a card: {} {dtype}: {:.4?}, {} off by {:.1e}", case.name, there["loss"], worst.1, worst.0);
    Ok(())
}

/// The cases that are run: those of the names that `TUNE_TEST_RECIPES` has, or all that are quick enough here.
fn chosen() -> Vec<&'static Case> {
    let named = std::env::var("TUNE_TEST_RECIPES").ok();
    let is_chosen = |case: &&Case| match &named {
        Some(named) => named.split(',').any(|name| name == case.name),
        None => true,
    };
    CASES.iter().filter(is_chosen).collect()
}

#[test]
fn losses_and_checkpoints() {
    in_the_workspace();
    if !has_card() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    cases::prepare(folder.path());
    let mut failures = Vec::new();
    for case in chosen() {
        for &dtype in case.dtypes() {
            if let Err(why) = compare(case, dtype, folder.path()) {
                failures.push(format!("{} {dtype}: {why}", case.name));
            }
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// The likeliest answers, by the kernels for new tokens.
#[test]
fn answers() {
    in_the_workspace();
    if !has_card() {
        return;
    }
    let merged = Merged::open(Checkpoint::open("recipes/tiny/model").unwrap(), &[]).unwrap();
    let tokenizer = merged.tokenizer().clone();
    let asked = ["Write m-a-p-l-e backwards.", "Write a-b."].map(|text| tokenizer.prompt(text, None, None).unwrap());
    let answers = |device: Compute| {
        let options = LoadOptions { dtype: DType::F32, device, train_weights: false, lora: None };
        let model = merged.trained(&options).unwrap();
        let stop = StopOptions { max_new_tokens: 6, stop_tokens: tokenizer.stop_tokens().iter().copied().collect() };
        let (ids, mut samplers) = (asked.each_ref().map(|ids| &ids[..]), [Sampler::greedy(), Sampler::greedy()]);
        generate_many(&model, &ids, &mut samplers, &stop, Kernels::Fast, |_, _| Ok(())).unwrap()
    };
    let card = Card::open(0).unwrap();
    assert_eq!(answers(Compute::Card(card)), answers(Compute::Processor));
}

/// What is kept in files is refused.
#[test]
fn what_cannot_be_is_refused() {
    in_the_workspace();
    if !has_card() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for key in ["optimizer.offload_dir", "activation_offload_dir"] {
        let output = format!("output_dir={}", folder.path().join("out").display());
        let offloaded = format!("{key}={}", folder.path().display());
        let error = run("full", &["device=cuda".to_owned(), output, offloaded]).unwrap_err();
        assert!(error.contains(key) && error.contains("for now: leave it out, or set device=cpu"), "{key}: {error}");
        assert!(!folder.path().join("out").exists(), "something was written");
    }
}

/// Without a card: the cases that are quick enough, on one that is made of the processor.
#[test]
fn on_a_stand_in() {
    if std::env::var_os("TUNE_TEST_CARD").is_some() {
        return;
    }
    let Some(folder) = stand_in::folder() else { return };
    let mut all = Command::new(std::env::current_exe().unwrap());
    all.args(["--test-threads=2", "--nocapture"]).env("TUNE_TEST_CARD", "1");
    stand_in::environment(&mut all, folder);
    if std::env::var_os("TUNE_TEST_RECIPES").is_none() {
        all.env("TUNE_TEST_RECIPES", cases::quick_ones().join(","));
    }
    let output = all.output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    say!("{}", said.lines().filter(|line| line.starts_with("on a card")).collect::<Vec<_>>().join("\n"));
}
