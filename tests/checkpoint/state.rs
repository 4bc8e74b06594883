//! The training state comes back exactly, or says why it cannot.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tune_core::checkpoint::run::{RunDir, Start};
use tune_core::checkpoint::state::{Position, TrainingState};

use crate::support::{assert_error, tensor};

fn state() -> TrainingState {
    // Every kind of f32, down to the payload of a NaN.
    let odd: Vec<f32> = [0x0000_0000, 0x8000_0000, 0x0000_0001, 0x7f80_0000, 0xff80_0000, 0x7fc0_1234, 0x3f80_0001]
        .map(f32::from_bits)
        .to_vec();
    TrainingState {
        position: Position { step: 7, epoch: 1, batches_in_epoch: 3 },
        total_steps: 40,
        seed: u64::MAX,
        now: Some(-7),
        settings: [
            ("lr".to_string(), json!(2e-5)),
            ("odd".to_string(), json!(0.1 + 0.2)),
            ("name".to_string(), json!("x")),
        ]
        .into(),
        inputs: [("the data".to_string(), 7), ("the base model".to_string(), u32::MAX)].into(),
        extra: [("tokens".to_string(), json!(u64::MAX))].into(),
        optimizer: [
            ("exp_avg.w".to_string(), Tensor::from_vec(odd, (7,), &Device::Cpu).unwrap()),
            ("exp_avg_sq.w".to_string(), tensor(5, &[3, 4], DType::F32)),
        ]
        .into(),
    }
}

fn save(output_dir: &Path, base: &Path) -> PathBuf {
    let run = RunDir::open(output_dir, base, Start::Fresh).unwrap();
    run.save(&state(), 0, |dir| {
        fs::create_dir(dir.join("merged")).unwrap();
        fs::write(dir.join("merged/weights"), b"12345").unwrap();
        Ok(())
    })
    .unwrap()
    .path
}

fn bits(t: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn it_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let saved = save(&dir.path().join("run"), dir.path());
    let (read, wrote) = (TrainingState::read(&saved).unwrap(), state());
    assert_eq!((read.position, read.total_steps, read.seed), (wrote.position, 40, u64::MAX));
    assert_eq!((&read.extra, read.now), (&wrote.extra, wrote.now));
    read.check_settings(&wrote.settings, &BTreeMap::new()).unwrap();
    read.check_inputs(&wrote.inputs, &[]).unwrap();
    assert!(read.optimizer.keys().eq(wrote.optimizer.keys()));
    for (name, tensor) in &wrote.optimizer {
        assert_eq!(read.optimizer[name].dims(), tensor.dims());
        assert_eq!(bits(&read.optimizer[name]), bits(tensor), "{name}");
    }
}

#[test]
fn inputs_that_differ_are_named() {
    let mut now = state().inputs;
    now.insert("the data".into(), 8);
    let message = state().check_inputs(&now, &[]).unwrap_err().to_string();
    assert!(message.starts_with("cannot resume: the data changed since the run began"), "{message}");
}

#[test]
fn settings_that_differ_are_listed() {
    let mut now: BTreeMap<String, Value> = state().settings;
    now.insert("lr".into(), json!(3e-5));
    now.insert("new".into(), json!(true));
    now.remove("name");
    let message = state().check_settings(&now, &BTreeMap::new()).unwrap_err().to_string();
    for line in [
        "\n  lr: 0.00002 then, 0.00003 now",
        "\n  name: \"x\" then, not set now",
        "\n  new: not set then, true now",
        "resume_from_checkpoint=false",
    ] {
        assert!(message.contains(line), "{message}");
    }
    assert!(!message.contains("odd") && !message.contains("To train on"), "{message}");
}

/// It is what they hold that a run depends on.
#[test]
fn files_and_models_may_have_moved() {
    let text = |text: &str| Some(json!(text));
    let mut then = state();
    let set = |settings: &mut BTreeMap<String, Value>, key: &str, value: Option<Value>| {
        settings.insert(key.to_owned(), value.unwrap_or(Value::Null));
    };
    then.inputs = [("the training data".to_owned(), 7), ("the base model".to_owned(), 8)].into();
    set(&mut then.settings, "dataset.0.data_files", text("1 items"));
    set(&mut then.settings, "dataset.0.data_files.0", text("a.jsonl"));
    set(&mut then.settings, "checkpointer.checkpoint_dir", text("model"));
    set(&mut then.settings, "ref_checkpointer.checkpoint_dir", text("other"));
    let (mut now, none) = (then.settings.clone(), BTreeMap::new());
    assert!(then.moved(&now, &none).is_empty());
    set(&mut now, "dataset.0.data_files", text("2 items"));
    set(&mut now, "dataset.0.data_files.0", text("b.jsonl"));
    set(&mut now, "dataset.0.data_files.1", text("c.jsonl"));
    set(&mut now, "checkpointer.checkpoint_dir", text("elsewhere"));
    then.check_settings(&now, &none).unwrap();
    let moved = then.moved(&now, &none);
    let said: Vec<String> = moved.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "checkpointer.checkpoint_dir: \"model\" then, \"elsewhere\" now",
            "dataset.0.data_files: \"1 item\" then, \"2 items\" now",
            "dataset.0.data_files.0: \"a.jsonl\" then, \"b.jsonl\" now",
            "dataset.0.data_files.1: not set then, \"c.jsonl\" now",
        ]
    );
    then.check_inputs(&then.inputs, &moved).unwrap();
    let mut inputs = then.inputs.clone();
    inputs.insert("the base model".into(), 9);
    let message = then.check_inputs(&inputs, &moved).unwrap_err().to_string();
    let expected = "cannot resume: the base model changed since the run began (checkpointer.checkpoint_dir: \"model\" then, \"elsewhere\" \
                    now), and the result would not be the same.";
    assert!(message.starts_with(expected), "{message}");

    // Of what no number stands for the content, the place must be what it was.
    set(&mut now, "ref_checkpointer.checkpoint_dir", text("moved"));
    let message = then.check_settings(&now, &none).unwrap_err().to_string();
    assert!(message.contains("\n  ref_checkpointer.checkpoint_dir: \"other\" then, \"moved\" now\n"), "{message}");
    assert!(message.contains("ln -s NEW OLD") && !message.contains("data_files"), "{message}");
}

/// An empty list of layers meant what null means now.
#[test]
fn a_run_that_had_an_empty_list_of_target_modules_goes_on() {
    let mut then = state();
    then.settings.insert("model.target_modules".into(), json!("0 items"));
    let mut now = then.settings.clone();
    now.insert("model.target_modules".into(), Value::Null);
    then.check_settings(&now, &BTreeMap::new()).unwrap();
    now.insert("model.target_modules".into(), json!("1 items"));
    then.check_settings(&now, &BTreeMap::new()).unwrap_err();
}

/// Who wants to train for longer is told how.
#[test]
fn a_longer_run_is_another_one() {
    let mut now: BTreeMap<String, Value> = state().settings;
    now.insert("epochs".into(), json!(7));
    let message = state().check_settings(&now, &BTreeMap::new()).unwrap_err().to_string();
    assert!(
        message.ends_with("To train on from what was learnt, let the new one start from a checkpoint of this one"),
        "{message}"
    );
}

/// The run was begun by a program that had fewer keys.
#[test]
fn a_setting_that_there_was_not_had_its_default() {
    let (mut now, mut defaults) = (state().settings, BTreeMap::new());
    now.insert("new".into(), json!(true));
    defaults.insert("new".to_string(), json!(true));
    state().check_settings(&now, &defaults).unwrap();
    defaults.insert("new".to_string(), json!(false));
    let message = state().check_settings(&now, &defaults).unwrap_err().to_string();
    assert!(message.contains("\n  new: false then, true now"), "{message}");
    // What it was told is not forgotten.
    now.remove("new");
    defaults.insert("lr".to_string(), json!(3e-5));
    now.insert("lr".into(), json!(3e-5));
    let message = state().check_settings(&now, &defaults).unwrap_err().to_string();
    assert!(message.contains("\n  lr: 0.00002 then, 0.00003 now"), "{message}");
}

#[test]
fn damage_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let saved = save(&dir.path().join("run"), dir.path());
    let json = saved.join("training_state.json");
    let good = fs::read_to_string(&json).unwrap();

    let weights = saved.join("merged/weights");
    fs::write(&weights, b"1234").unwrap();
    assert_error(TrainingState::read(&saved), &weights, &["has 4 bytes, and had 5"]);
    fs::write(&weights, b"12346").unwrap();
    assert_error(
        TrainingState::read(&saved),
        &weights,
        &["its checksum does not fit", "start it anew (overwrite=true)"],
    );
    fs::remove_file(&weights).unwrap();
    assert_error(TrainingState::read(&saved), &weights, &["is missing"]);
    fs::write(&weights, b"12345").unwrap();
    TrainingState::read(&saved).unwrap();

    // Nothing that is read has been added; a model card may be.
    fs::write(saved.join("README.md"), "mine").unwrap();
    TrainingState::read(&saved).unwrap();
    let added = saved.join("model.safetensors");
    fs::write(&added, "").unwrap();
    assert_error(TrainingState::read(&saved), &added, &["was not there", "move it away"]);
    fs::remove_file(&added).unwrap();

    for (changed, says) in [
        (good.replace("\"step\": 7", "\"step\": 8"), "its checksum does not fit"),
        (good.replace("\"step\"", "\"steps\""), "its checksum does not fit"),
        (good.replace("\"version\": 3", "\"version\": 4"), "its checksum does not fit"),
        (good.replace("\"version\": 3", "\"version\": 1").replace("\"checksum\"", "\"x\""), "reads version 3"),
        ("{}".to_owned(), "no version"),
        (good[..good.len() / 2].to_owned(), "is no JSON"),
        (String::new(), "is no JSON"),
    ] {
        assert_ne!(changed, good);
        fs::write(&json, changed).unwrap();
        assert_error(TrainingState::read(&saved), &json, &[says]);
    }
    fs::remove_file(&json).unwrap();
    assert_error(TrainingState::read(&saved), &saved, &["not a checkpoint that training can be resumed from"]);
}

/// What the version before this one wrote.
#[test]
fn an_older_version_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("training_state.json");
    let old = json!({
        "version": 1, "step": 1, "epoch": 0, "batches_in_epoch": 1, "total_steps": 2, "seed": 1, "now": null,
        "settings": {}, "inputs": {}, "extra": {}, "files": {},
    });
    fs::write(&json, serde_json::to_string_pretty(&old).unwrap()).unwrap();
    assert_error(TrainingState::read(dir.path()), &json, &["is of version 1, and this program reads version 3"]);
}

#[test]
fn a_checkpoint_has_its_own_name() {
    let dir = tempfile::tempdir().unwrap();
    let saved = save(&dir.path().join("run"), dir.path());
    let renamed = saved.with_file_name("epoch_1_step_8");
    fs::rename(&saved, &renamed).unwrap();
    assert_error(TrainingState::read(&renamed), &renamed, &["is of the checkpoint epoch_1_step_7", "was renamed"]);
    // One whose replacement was cut short.
    let replaced = saved.with_file_name(".replaced-epoch_1_step_7");
    fs::rename(&renamed, &replaced).unwrap();
    TrainingState::read(&replaced).unwrap();
}
