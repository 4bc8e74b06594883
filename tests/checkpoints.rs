//! What recipes read of a base model and leave in a checkpoint besides weights: stop tokens, the base's name and revision; and
//! that a checkpoint that was damaged is not resumed.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::{Path, PathBuf};

use runs::{fail, files, newest, recipe, root, succeed, text};
use serde_json::{Value, json};
use tune_core::checkpoint::state::TrainingState;

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn change(path: &Path, changes: &[(&str, Value)]) {
    let mut json = json_of(path);
    for (key, value) in changes {
        json[*key] = value.clone();
    }
    fs::write(path, json.to_string()).unwrap();
}

/// The tiny model with a further special token, `<eos>` of id 383, which ends texts in these files.
fn model(folder: &Path, config: &[(&str, Value)], generation: Option<Value>) -> String {
    fs::create_dir_all(folder).unwrap();
    for (name, bytes) in files(&root().join("recipes/tiny/model")) {
        fs::write(folder.join(name), bytes).unwrap();
    }
    let path = folder.join("tokenizer.json");
    let mut tokenizer = json_of(&path);
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let old = vocab.iter().find(|(_, id)| **id == 383).unwrap().0.clone();
    vocab.remove(&old);
    vocab.insert("<eos>".into(), 383.into());
    let halves = |merge: &Value| match merge {
        Value::String(text) => text.split(' ').map(str::to_owned).collect::<Vec<_>>(),
        list => list.as_array().unwrap().iter().map(|part| part.as_str().unwrap().to_owned()).collect(),
    };
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    merges.retain(|merge| halves(merge).concat() != old && !halves(merge).contains(&old));
    tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": 383, "content": "<eos>", "special": true, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false,
    }));
    fs::write(&path, tokenizer.to_string()).unwrap();
    change(&folder.join("config.json"), config);
    let path = folder.join("generation_config.json");
    match generation {
        Some(generation) => fs::write(&path, generation.to_string()).unwrap(),
        None => fs::remove_file(&path).unwrap(),
    }
    folder.display().to_string()
}

fn short(recipe: &str, output: &Path, more: &[&str]) -> Vec<String> {
    let mut args = vec![
        "--config".to_owned(),
        format!("configs/{recipe}/tiny.yaml"),
        format!("output_dir={}", output.display()),
        "overwrite=false".into(),
        "epochs=1".into(),
        "max_steps_per_epoch=1".into(),
        "lr_scheduler.num_warmup_steps=0".into(),
    ];
    if recipe == "lora" {
        args.push("~exact_match".into());
    }
    args.extend(more.iter().map(ToString::to_string));
    args
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn stop_tokens_that_only_config_json_names_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("model");
    let base = model(&place, &[("eos_token_id", json!([383, 1])), ("pad_token_id", json!(383))], None);
    change(&place.join("tokenizer_config.json"), &[("eos_token", json!("<eos>")), ("pad_token", json!("<eos>"))]);
    let checkpoint = format!("checkpointer.checkpoint_dir={base}");
    let mut args = short("lora", &folder.path().join("out"), &[&checkpoint]);
    args.insert(0, "--check".into());
    let said = text(&succeed("lora", &borrowed(&args)).stdout);
    assert!(said.contains("generation stops at `<|im_end|>`, `<eos>`") && said.contains("<|im_end|>»"), "{said}");
    assert!(said.contains("Nothing stands in the way of this run.\n"), "{said}");
    let ask = |model: &str| {
        let model = format!("checkpoint_dir={model}");
        let question = "prompt=Write m-a-p-l-e backwards.";
        text(&succeed("generate", &[&model, question, "temperature=0.0", "max_new_tokens=40"]).stdout)
    };
    assert_eq!(ask(&base), ask("recipes/tiny/model"));
}

/// The tokenizer's end of text is trained, and the model's files name another: transformers and others ask those.
#[test]
fn the_trained_stop_token_is_in_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let eos = [("eos_token_id", json!(383)), ("pad_token_id", json!(383))];
    let generation = json!({"eos_token_id": 383, "pad_token_id": 383});
    let base = model(&folder.path().join("model"), &eos, Some(generation));
    let checkpoint = format!("checkpointer.checkpoint_dir={base}");
    let ids = |dir: &Path| {
        ["config.json", "generation_config.json"].map(|name| json_of(&dir.join(name))["eos_token_id"].clone())
    };

    let out = folder.path().join("full");
    let said = text(&succeed("full", &borrowed(&short("full", &out, &[&checkpoint]))).stderr);
    assert_eq!(ids(&newest(&out)), [json!([383, 1]), json!([383, 1])]);
    assert_eq!(json_of(&newest(&out).join("generation_config.json"))["pad_token_id"], 383);
    assert!(!said.contains("eos_token_id"), "{said}");

    let out = folder.path().join("merged");
    let args = short("lora", &out, &[&checkpoint, "save_adapter_weights_only=false"]);
    let said = text(&succeed("lora", &borrowed(&args)).stderr);
    assert_eq!(ids(&newest(&out).join("merged")), [json!([383, 1]), json!([383, 1])]);
    assert!(said.contains("the merged model has it"), "{said}");

    // An adapter alone has no place for it.
    let mut args = short("lora", &folder.path().join("adapter"), &[&checkpoint]);
    args.insert(0, "--check".into());
    let said = text(&succeed("lora", &borrowed(&args)).stdout);
    let warning = "warning: answers end with `<|im_end|>`, which `eos_token_id` in the base model's generation_config.json does \
                   not list: transformers does not stop there when it runs the adapter on this base, unless generate() is \
                   given eos_token_id=[1, 383]; save_adapter_weights_only=false also saves a merged model that has it";
    assert!(said.contains(warning), "{said}");
}

/// A hub's cache that has the tiny model at `main`, and at a branch.
fn cache(home: &Path, revisions: &[(&str, &str)]) {
    let repo = home.join("hub/models--somebody--tiny-chat");
    fs::create_dir_all(repo.join("refs")).unwrap();
    for (revision, commit) in revisions {
        fs::write(repo.join("refs").join(revision), commit).unwrap();
        let snapshot = repo.join("snapshots").join(commit);
        fs::create_dir_all(&snapshot).unwrap();
        for (name, bytes) in files(&root().join("recipes/tiny/model")) {
            fs::write(snapshot.join(name), bytes).unwrap();
        }
    }
}

#[test]
fn an_adapter_names_its_base_and_the_revision() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let (main, branch) = ("1".repeat(40), "2".repeat(40));
    cache(&home, &[("main", &main), ("v1", &branch)]);
    let offline = |name: &str, args: &[&str]| {
        let output = recipe(name, args).env("HF_HOME", &home).env("HF_HUB_OFFLINE", "1").output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let train = |out: &Path, base: &str, more: &[&str]| {
        let base = format!("checkpointer.checkpoint_dir={base}");
        let said = offline("lora", &borrowed(&short("lora", out, &[&[base.as_str()], more].concat())));
        let config = json_of(&newest(out).join("adapter_config.json"));
        (config["base_model_name_or_path"].clone(), config["revision"].clone(), said)
    };
    let in_cache =
        |commit: &str| home.join("hub/models--somebody--tiny-chat/snapshots").join(commit).display().to_string();
    for (i, (base, revision)) in [
        ("hf://somebody/tiny-chat".to_owned(), Value::Null),
        ("hf://somebody/tiny-chat@main".to_owned(), Value::Null),
        ("hf://somebody/tiny-chat@v1".to_owned(), json!("v1")),
        (format!("hf://somebody/tiny-chat@{branch}"), json!(branch)),
        (in_cache(&main), Value::Null),
        (in_cache(&branch), json!(branch)),
    ]
    .into_iter()
    .enumerate()
    {
        let (name, found, _) = train(&folder.path().join(i.to_string()), &base, &[]);
        assert_eq!((name, found), (json!("somebody/tiny-chat"), revision), "{base}");
    }

    // On another revision it is used with a warning, on its own without.
    let adapter = newest(&folder.path().join("2"));
    let warning =
        "is an adapter for somebody/tiny-chat at revision v1, and it is put on somebody/tiny-chat at revision main";
    let from = format!("checkpointer.adapter_checkpoint={}", adapter.display());
    let said = train(&folder.path().join("other"), "hf://somebody/tiny-chat", &[&from]).2;
    assert!(said.contains(warning), "{said}");
    let said = train(&folder.path().join("same"), "hf://somebody/tiny-chat@v1", &[&from]).2;
    assert!(!said.contains("is an adapter for"), "{said}");
    let adapter = format!("adapter_dir={}", adapter.display());
    let ask = |base: &str| offline("generate", &[base, &adapter, "prompt=a", "max_new_tokens=1", "temperature=0.0"]);
    assert!(ask("checkpoint_dir=hf://somebody/tiny-chat").contains(warning));
    assert!(!ask("checkpoint_dir=hf://somebody/tiny-chat@v1").contains("warning"));
    assert!(!ask("checkpoint_dir=recipes/tiny/model").contains("warning"));
}

/// An adapter whose scale is alpha by the root of the rank: the advice leads to a run that keeps it.
#[test]
fn going_on_from_rslora_keeps_the_scale() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("first");
    let model = [
        "model.lora_rank=16",
        "model.lora_alpha=4.0",
        "model.lora_attn_modules=[q_proj]",
        "model.apply_lora_to_mlp=false",
    ];
    succeed("lora", &borrowed(&short("lora", &first, &model)));
    let adapter = newest(&first);
    change(&adapter.join("adapter_config.json"), &[("use_rslora", json!(true))]);
    let from = format!("checkpointer.adapter_checkpoint={}", adapter.display());
    let second = folder.path().join("second");
    let error = fail("lora", &borrowed(&short("lora", &second, &[&model[..], &[&from]].concat())));
    assert!(error.contains("scale 1,") && error.contains("set model.lora_rank=16 and model.lora_alpha=16"), "{error}");
    succeed("lora", &borrowed(&short("lora", &second, &[&model[..], &[&from, "model.lora_alpha=16"]].concat())));
    let config = json_of(&newest(&second).join("adapter_config.json"));
    assert_eq!((&config["lora_alpha"], &config["use_rslora"]), (&json!(16), &json!(false)));
}

/// Every file below a folder.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// A bit here and there, digits, halves, whole files: each is found, and the message names the file.
#[test]
fn no_damaged_checkpoint_is_resumed() {
    for name in ["lora", "full"] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let more: &[&str] = match name {
            "lora" => {
                &["save_adapter_weights_only=false", "checkpointer.save_every_n_steps=1", "max_steps_per_epoch=2"]
            }
            _ => &["checkpointer.max_shard_size=1MB", "checkpointer.save_every_n_steps=1", "max_steps_per_epoch=2"],
        };
        let mut args = short(name, &out, more);
        args.retain(|arg| arg != "max_steps_per_epoch=1");
        succeed(name, &borrowed(&args));
        let (older, saved) = (out.join("epoch_0_step_1"), newest(&out));
        assert!(saved.ends_with("epoch_0_step_2"));
        args.push("resume_from_checkpoint=true".into());
        succeed(name, &borrowed(&args));

        let mut count = 0;
        let mut refused = |file: &Path, what: &str| {
            let error = TrainingState::read(&saved).err().unwrap_or_else(|| panic!("{what} in {}", file.display()));
            let error = error.to_string();
            // Without the state it is no checkpoint.
            let no_checkpoint = format!("{}: has no training_state.json", saved.display());
            let is_named = error.starts_with(&file.display().to_string()) || error.starts_with(&no_checkpoint);
            assert!(is_named, "{what}: {error}");
            count += 1;
        };
        for file in files_below(&saved) {
            let good = fs::read(&file).unwrap();
            let mut damage = |what: &str, bytes: &[u8]| {
                if bytes != good {
                    fs::write(&file, bytes).unwrap();
                    refused(&file, what);
                }
            };
            for part in 0..12 {
                let at = (good.len() - 1) * part / 11;
                let mut bytes = good.clone();
                bytes[at] ^= 1 << (part % 8);
                damage(&format!("bit {} of byte {at}", part % 8), &bytes);
            }
            let digits: Vec<usize> = (0..good.len()).filter(|&at| good[at].is_ascii_digit()).collect();
            for &at in digits.iter().step_by(digits.len() / 12 + 1) {
                let mut bytes = good.clone();
                bytes[at] = if bytes[at] == b'9' { b'8' } else { bytes[at] + 1 };
                damage(&format!("the digit {at}"), &bytes);
            }
            damage("half", &good[..good.len() / 2]);
            damage("nothing", b"");
            damage("zeros", &vec![0; good.len()]);
            damage("more", &[&good[..], b"\n"].concat());
            let other = older.join(file.strip_prefix(&saved).unwrap());
            damage("that of an older checkpoint", &fs::read(other).unwrap());
            fs::remove_file(&file).unwrap();
            refused(&file, "missing");
            fs::write(&file, good).unwrap();
        }
        TrainingState::read(&saved).unwrap();
        println!("{name}: {count} damages refused");

        // As a user meets it; the way on leads on.
        let weights =
            saved.join(if name == "lora" { "adapter_model.safetensors" } else { "training_state.safetensors" });
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, bytes).unwrap();
        let error = fail(name, &borrowed(&args));
        let way_on = format!("move {} away, and the run resumes from {}", saved.display(), older.display());
        assert!(error.contains(&weights.display().to_string()) && error.contains(&way_on), "{error}");
        let check: Vec<String> = std::iter::once("--check".to_owned()).chain(args.clone()).collect();
        let checked = runs::run(name, &borrowed(&check));
        assert!(!checked.status.success() && text(&checked.stdout).contains(&way_on), "{}", text(&checked.stdout));
        fs::rename(&saved, out.join("away")).unwrap();
        // All of an older checkpoint under the name of a newer one.
        fs::create_dir(&saved).unwrap();
        for file in files_below(&older) {
            let copy = saved.join(file.strip_prefix(&older).unwrap());
            fs::create_dir_all(copy.parent().unwrap()).unwrap();
            fs::copy(file, copy).unwrap();
        }
        let error = fail(name, &borrowed(&args));
        assert!(
            error.contains("is of the checkpoint epoch_0_step_1, and this one is called epoch_0_step_2"),
            "{error}"
        );
        fs::remove_dir_all(&saved).unwrap();
        succeed(name, &borrowed(&args));
        assert_eq!(newest(&out), saved);
    }
}

/// One bit in the middle of a weight, or one number of the config.
#[test]
fn another_base_model_is_refused() {
    for name in ["lora", "full"] {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        for (name, bytes) in files(&root().join("recipes/tiny/model")) {
            fs::write(model.join(name), bytes).unwrap();
        }
        let base = format!("checkpointer.checkpoint_dir={}", model.display());
        let mut args = short(name, &folder.path().join("out"), &[&base]);
        succeed(name, &borrowed(&args));
        args.push("resume_from_checkpoint=true".into());

        let config = model.join("config.json");
        let good = fs::read(&config).unwrap();
        change(&config, &[("rope_theta", json!(10_001.0))]);
        let error = fail(name, &borrowed(&args));
        assert!(error.contains("cannot resume: the base model's config changed since the run began"), "{error}");
        fs::write(&config, good).unwrap();
        change(&config, &[("transformers_version", json!("5.24.0")), ("use_cache", json!(false))]);
        succeed(name, &borrowed(&args));

        if name == "lora" {
            let weights = model.join("model.safetensors");
            let mut bytes = fs::read(&weights).unwrap();
            // Far from the ends of the embeddings, the largest tensor.
            let at = bytes.len() / 2 + 54_321;
            bytes[at] ^= 1;
            fs::write(&weights, bytes).unwrap();
            let error = fail(name, &borrowed(&args));
            assert!(error.contains("cannot resume: the base model changed since the run began"), "{error}");
        }
    }
}
