//! Adapters in PEFT's format.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Value, json};
use tune_core::checkpoint::Checkpoint;
use tune_core::checkpoint::peft::{self, AdapterConfig, Excluded, Layers, TargetModules};
use tune_core::tokenizer::TokenizerConfig;

use crate::support::{assert_error, fixture, names_in, tensor, tokenizer, values};

fn adapter() -> (AdapterConfig, BTreeMap<String, Tensor>) {
    let config = AdapterConfig {
        r: 2,
        alpha: 16.0,
        dropout: 0.05,
        use_rslora: false,
        use_dora: false,
        target_parameters: BTreeSet::new(),
        target_modules: TargetModules::Names(["q_proj", "lm_head"].map(String::from).into()),
        layers: Layers::default(),
        modules_to_save: Vec::new(),
        tokens: BTreeMap::new(),
        base_adapters: Vec::new(),
        ensure_weight_tying: false,
        scores: false,
        base_model_name_or_path: Some("some/model".into()),
        revision: Some("v2".into()),
    };
    let mut tensors = BTreeMap::new();
    for (i, module) in
        ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "lm_head"].iter().enumerate()
    {
        tensors.insert(format!("{module}.lora_A.weight"), tensor(i, &[2, 6], DType::F32));
        tensors.insert(format!("{module}.lora_B.weight"), tensor(10 + i, &[4, 2], DType::F32));
    }
    (config, tensors)
}

fn written(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("adapter_config.json")).unwrap()).unwrap()
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let (config, tensors) = adapter();
    peft::write(dir.path(), &config, &tensors, &tokenizer()).unwrap();
    assert_eq!(
        names_in(dir.path()),
        ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json"]
    );

    let json = written(dir.path());
    for (key, value) in [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("r", json!(2)),
        ("lora_alpha", json!(16)),
        ("bias", json!("none")),
        ("target_modules", json!(["lm_head", "q_proj"])),
    ] {
        assert_eq!(json[key], value, "{key}");
    }
    let raw = fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
    assert!(
        String::from_utf8_lossy(&raw).contains("\"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight\"")
    );

    let (read_config, read) = peft::read(dir.path()).unwrap();
    assert_eq!(read_config, config);
    assert!(read.keys().eq(tensors.keys()));
    for (name, tensor) in &tensors {
        assert_eq!(values(&read[name]), values(tensor));
    }
    assert_eq!(
        peft::modules(read.keys()).into_iter().collect::<Vec<_>>(),
        ["lm_head", "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    );
}

#[test]
fn the_scale_is_pefts() {
    let (mut config, _) = adapter();
    assert!((config.scale() - 8.0).abs() < 1e-12);
    config.use_rslora = true;
    assert!((config.scale() - 16.0 / 2f64.sqrt()).abs() < 1e-12);
    config.alpha = 0.5;
    let dir = tempfile::tempdir().unwrap();
    peft::write(dir.path(), &config, &adapter().1, &tokenizer()).unwrap();
    assert_eq!(peft::read(dir.path()).unwrap().0, config);
}

#[test]
fn a_pattern_is_carried_along() {
    let dir = tempfile::tempdir().unwrap();
    let (mut config, tensors) = adapter();
    config.target_modules = TargetModules::Pattern("all-linear".into());
    peft::write(dir.path(), &config, &tensors, &tokenizer()).unwrap();
    assert_eq!(peft::read(dir.path()).unwrap().0, config);
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (config, tensors) = adapter();
    peft::write(dir.path(), &config, &tensors, &tokenizer()).unwrap();
    let path = dir.path().join("adapter_config.json");
    let good = written(dir.path());
    for (key, value, says) in [
        ("peft_type", json!("IA3"), "IA3"),
        ("peft_type", Value::Null, "only LORA"),
        ("use_dora", json!("x"), "use_dora is \"x\"; true or false was expected"),
        ("bias", json!("all"), "trains biases"),
        ("modules_to_save", json!("embed_tokens"), "modules_to_save is \"embed_tokens\"; a list of module names"),
        ("modules_to_save", json!([1]), "modules_to_save is [1]"),
        ("rank_pattern", json!({"(": 4}), "rank_pattern holds `(`, which is no regular expression"),
        ("rank_pattern", json!({"q_proj": 0}), "rank_pattern is {\"q_proj\":0}; ranks by modules was expected"),
        ("alpha_pattern", json!(["q_proj"]), "alpha_pattern is [\"q_proj\"]; numbers by modules was expected"),
        ("exclude_modules", json!(3), "exclude_modules is 3"),
        ("layers_pattern", json!(["layers"]), "layers_pattern is used with layers_to_transform alone"),
        ("fan_in_fan_out", json!(true), "transposed"),
        ("r", json!(0), "r is 0"),
        ("r", json!("8"), "r is \"8\""),
        ("lora_alpha", json!("x"), "lora_alpha is \"x\""),
        ("lora_dropout", json!(1.5), "lora_dropout is 1.5"),
        ("target_modules", json!([]), "target_modules is []"),
        ("target_parameters", json!(["experts.w1"]), "parameters that are not weights of linear layers"),
        ("target_modules", json!([1]), "not a list of names"),
        ("target_modules", Value::Null, "target_modules is null"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        fs::write(&path, bad.to_string()).unwrap();
        assert_error(peft::read(dir.path()), &path, &[says]);
    }
    // What does not go with the tensors.
    for (key, value, says) in [
        ("modules_to_save", json!(["embed_tokens"]), "has no weight for `embed_tokens`, which modules_to_save of"),
        ("rank_pattern", json!({"q_proj": 4}), "for the rank 4 of adapter_config.json"),
        ("exclude_modules", json!(["0.self_attn.q_proj"]), "which carries no adapter by exclude_modules"),
        ("exclude_modules", json!(".*q_proj"), "which carries no adapter by exclude_modules"),
        ("use_dora", json!(true), "holds no lora_magnitude_vector for `lm_head`, which use_dora"),
        ("layers_to_transform", json!([0]), "adapts `model.layers.1.self_attn.q_proj`, which carries no adapter by"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        fs::write(&path, bad.to_string()).unwrap();
        assert_error(peft::read(dir.path()), &dir.path().join("adapter_model.safetensors"), &[says]);
    }
}

#[test]
fn config_and_tensors_must_agree() {
    let (config, tensors) = adapter();
    let with = |change: &dyn Fn(&mut AdapterConfig, &mut BTreeMap<String, Tensor>), says: &str| {
        let dir = tempfile::tempdir().unwrap();
        let (mut c, mut t) = (config.clone(), tensors.clone());
        change(&mut c, &mut t);
        let error = peft::write(&dir.path().join("x"), &c, &t, &tokenizer()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(names_in(dir.path()).is_empty());
    };
    with(&|c, _| c.r = 4, "for the rank 4");
    with(&|_, t| drop(t.remove("lm_head.lora_A.weight")), "only one of lora_A and lora_B for `lm_head`");
    with(
        &|_, t| drop(t.insert("x.weight".into(), t["lm_head.lora_A.weight"].clone())),
        "`x.weight`, which is not a LoRA matrix",
    );
    with(&|_, t| t.clear(), "holds no adapters");
    with(
        &|c, _| c.target_modules = TargetModules::Names(["q_proj".to_string()].into()),
        "`lm_head`, which target_modules",
    );
    // A name matches whole parts of a path only.
    with(
        &|c, _| c.target_modules = TargetModules::Names(["proj", "lm_head"].map(String::from).into()),
        "target_modules",
    );
    with(
        &|c, _| c.target_modules = TargetModules::Names(["q_proj", "lm_head", "v_proj"].map(String::from).into()),
        "no adapter for `v_proj`",
    );
}

#[test]
fn broken_folders_say_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    assert_error(peft::read(path), path, &["no adapter_config.json"]);
    let (config, tensors) = adapter();
    peft::write(path, &config, &tensors, &tokenizer()).unwrap();
    let weights = path.join("adapter_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 1]).unwrap();
    assert_error(peft::read(path), &weights, &["truncated"]);
    let (from, to) = (b"lora_A.weight", b"lora_embed_A_");
    let at = whole.windows(from.len()).position(|w| w == from).unwrap();
    let mut renamed = whole;
    renamed[at..at + to.len()].copy_from_slice(to);
    fs::write(&weights, renamed).unwrap();
    assert_error(peft::read(path), &weights, &["lora_embed_A_", "not a part of a LoRA adapter"]);
    fs::rename(&weights, path.join("adapter_model.bin")).unwrap();
    assert_error(peft::read(path), path, &["adapter_model.bin", "can run code"]);
}

/// Each key that peft writes, with its default and with another value: it is read, known to be harmless, or refused by
/// name. The list is made by `tests/python/make_peft_keys.py`.
#[test]
fn every_key_of_peft_is_decided() {
    let dir = tempfile::tempdir().unwrap();
    let (config, tensors) = adapter();
    peft::write(dir.path(), &config, &tensors, &tokenizer()).unwrap();
    let path = dir.path().join("adapter_config.json");
    let good = written(dir.path());
    let with = |key: &str, value: &Value| {
        let mut changed = good.clone();
        changed[key] = value.clone();
        fs::write(&path, changed.to_string()).unwrap();
        peft::read(dir.path()).map(|(config, _)| config)
    };
    let fixture: Value = serde_json::from_slice(&fs::read(fixture("peft_keys.json")).unwrap()).unwrap();
    let keys = fixture["keys"].as_object().unwrap();
    assert!(keys.len() > 30);

    // Those of another value that is taken; all others are refused.
    let read = [
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "target_modules",
        "base_model_name_or_path",
        "revision",
        "alpha_pattern",
        "ensure_weight_tying",
    ];
    let harmless = [
        "task_type",
        "auto_mapping",
        "peft_version",
        "inference_mode",
        "megatron_core",
        "qalora_group_size",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
    ];
    for (key, values) in keys {
        // The tensors are of one rank and of these modules.
        if !["r", "target_modules", "peft_type"].contains(&key.as_str()) {
            with(key, &values["default"]).unwrap_or_else(|error| panic!("{key}: {error}"));
        }
        let found = with(key, &values["other"]);
        if read.contains(&key.as_str()) {
            assert_ne!(found.unwrap(), config, "{key} is not read");
        } else if harmless.contains(&key.as_str()) {
            assert_eq!(found.unwrap(), config, "{key}");
        } else {
            let parts: &[&str] = match key.as_str() {
                "peft_type" => &["IA3"],
                "r" | "rank_pattern" => &["lora_A", "rank 4"],
                key => &[key],
            };
            let message = found.unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{key}: {message}");
        }
    }

    for pair in fixture["initializations"].as_array().unwrap() {
        let found = with("init_lora_weights", &pair[0]);
        match pair[1].as_bool().unwrap() {
            true => assert_eq!(found.unwrap(), config, "{pair}"),
            false => assert_error(found, &path, &["init_lora_weights", "the base model", "merge_and_unload"]),
        }
    }
}

#[test]
fn keys_that_nobody_knows_are_refused_unless_they_are_off() {
    let dir = tempfile::tempdir().unwrap();
    let (config, tensors) = adapter();
    peft::write(dir.path(), &config, &tensors, &tokenizer()).unwrap();
    let path = dir.path().join("adapter_config.json");
    let good = written(dir.path());
    let with = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        fs::write(&path, changed.to_string()).unwrap();
        peft::read(dir.path()).map(|(config, _)| config)
    };
    for off in [Value::Null, json!(false), json!(""), json!([]), json!({})] {
        assert_eq!(with("use_next_idea", off).unwrap(), config);
    }
    for on in [json!(true), json!(0), json!(2.5), json!("x"), json!([null]), json!({"a": null})] {
        assert_error(with("use_next_idea", on.clone()), &path, &["`use_next_idea` is", &on.to_string()]);
    }
    assert_error(with("init_lora_weights", json!("next")), &path, &["init_lora_weights is \"next\"", "not known here"]);
    assert_error(with("init_lora_weights", json!(3)), &path, &["init_lora_weights is 3"]);
    assert_error(with("use_rslora", json!("true")), &path, &["use_rslora is \"true\""]);
    assert_error(with("lora_alpha", Value::Null), &path, &["lora_alpha is null"]);
    assert_error(with("revision", json!(1)), &path, &["revision is 1"]);
}

/// Where layers differ, what is written is what is read, and says so in peft's words.
#[test]
fn layers_of_their_own_are_written_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut config, mut tensors) = adapter();
    let second = "model.layers.1.self_attn.q_proj";
    tensors.insert(format!("{second}.lora_A.weight"), tensor(1, &[3, 6], DType::F32));
    tensors.insert(format!("{second}.lora_B.weight"), tensor(11, &[4, 3], DType::F32));
    config.layers = Layers {
        rank_pattern: vec![(r"layers\.1\.self_attn\.q_proj".into(), 3), ("q_proj".into(), 2)],
        alpha_pattern: vec![("lm_head".into(), 2.5)],
        exclude_modules: Some(Excluded::Names(vec!["up_proj".into()])),
        ..Layers::default()
    };
    peft::write(dir.path(), &config, &tensors, &tokenizer()).unwrap();
    let (read, _) = peft::read(dir.path()).unwrap();
    assert_eq!(read, config);
    let json = written(dir.path());
    assert_eq!(json["rank_pattern"].to_string(), r#"{"layers\\.1\\.self_attn\\.q_proj":3,"q_proj":2}"#);
    assert_eq!(json["alpha_pattern"], json!({"lm_head": 2.5}));
    assert_eq!(json["exclude_modules"], json!(["up_proj"]));
    config.layers = Layers { layers_to_transform: vec![0, 1], layers_pattern: vec!["layers".into()], ..config.layers };
    config.target_modules = TargetModules::Names(["q_proj", "lm_head"].map(String::from).into());
    peft::write(dir.path(), &config, &tensors, &tokenizer()).unwrap();
    assert_eq!(peft::read(dir.path()).unwrap().0, config);
}

#[test]
fn an_adapters_own_template_and_stop_tokens_are_taken() {
    let base = Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/tiny/model")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let prompt = |dir: &Path| {
        let (tokenizer, _) = TokenizerConfig::default().open_with(&base, Some(dir)).unwrap();
        let prompt = tokenizer.prompt("q", None, None).unwrap();
        let stop: Vec<u32> = tokenizer.stop_tokens().iter().copied().collect();
        (tokenizer.decode(&prompt, false).unwrap(), stop)
    };
    let of_base = prompt(dir.path());
    assert_eq!(of_base, ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n".to_owned(), vec![1]));
    // A template alone.
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_start|>{% endfor %}{% if add_generation_prompt %}A: {% endif %}";
    fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    assert_eq!(prompt(dir.path()), ("user: q<|im_start|>A: ".to_owned(), vec![0, 1]));
    // All files of a tokenizer, with another end of text, and its template in the old place.
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    let mut files = base.tokenizer_files().unwrap().files;
    let mut config: Value = serde_json::from_slice(&files["tokenizer_config.json"]).unwrap();
    config["eos_token"] = json!("<|im_start|>");
    config["chat_template"] = json!("{{ messages[0].content }}?");
    files.insert("tokenizer_config.json".into(), config.to_string().into_bytes());
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    assert_eq!(prompt(dir.path()), ("q?".to_owned(), vec![0, 1]));
    // What is wrong is in the adapter's folder.
    fs::write(dir.path().join("tokenizer_config.json"), "{").unwrap();
    let error = TokenizerConfig::default().open_with(&base, Some(dir.path())).unwrap_err().to_string();
    assert!(error.starts_with(&dir.path().join("tokenizer_config.json").display().to_string()), "{error}");
}
