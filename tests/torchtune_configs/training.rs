//! Shipped configs train, with what a user has to give.

use std::collections::BTreeMap;
use std::fs;

use super::hub_server::{Content, Server};
use super::runs::{fail, files, newest, recipe, root, succeed, text};
use super::{file, shipped};

/// Torchtune's own Alpaca columns, which the shipped configs train on.
const ALPACA: &str = r#"{"instruction": "Write b-a-d-e in the secret code.", "input": "", "output": "c-b-e-f"}
{"instruction": "Name a fruit.", "input": "It is red.", "output": "a cherry"}
{"instruction": "Count to three.", "input": "", "output": "one two three"}
{"instruction": "Say yes.", "input": "", "output": "yes"}
"#;

/// A shipped config, with what a user has to give: a model, data, and a device that is there.
#[test]
fn they_train() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("alpaca.jsonl");
    fs::write(&data, ALPACA).unwrap();
    let data = format!("dataset.data_files={}", data.display());
    let configs = shipped();
    for name in ["llama3_2/1B_lora_single_device.yaml", "code_llama2/7B_full_low_memory.yaml", "mistral/7B_lora.yaml"] {
        let config = configs.iter().find(|config| config.name == name).unwrap();
        let (path, output) = (file(folder.path(), config), folder.path().join(name.replace('/', "_") + ".out"));
        let output_key = format!("output_dir={}", output.display());
        let mut args = vec!["--config", &path, &output_key, &data, "checkpointer.checkpoint_dir=recipes/tiny/model"];
        let error = fail(config.ours, &args);
        // Where there is a card, it is taken, and the next thing that is wrong is said.
        assert!(error.contains("use device=cpu") || error.contains("holds another model"), "{error}");

        args.extend(["device=cpu", "batch_size=2", "gradient_accumulation_steps=1", "max_steps_per_epoch=2"]);
        let error = fail(config.ours, &args);
        assert!(error.contains("recipes/tiny/model holds another model: "), "{error}");
        assert!(error.contains("model.architecture=null to train the one that is there"), "{error}");
        assert!(!output.exists());

        args.push("model.architecture=null");
        let said = text(&succeed(config.ours, &args).stderr);
        assert!(said.contains("keys have no effect here"), "{said}");
        let log = fs::read_to_string(output.join("logs/metrics.jsonl")).unwrap();
        assert_eq!(log.lines().count(), 2, "{log}");
        // `save_adapter_weights_only: False`: the merged model lies beside the adapter.
        let saved = newest(&output);
        if config.ours == "lora" {
            assert!(files(&saved.join("merged")).iter().any(|(name, _)| name == "model.safetensors"));
        }
    }
}

/// QLoRA, with what a user has to give; a merged model beside the adapter is refused by name.
#[test]
fn a_quantized_base_trains() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("alpaca.jsonl");
    fs::write(&data, ALPACA).unwrap();
    let data = format!("dataset.data_files={}", data.display());
    let config = shipped().into_iter().find(|config| config.name == "llama3_2/1B_qlora_single_device.yaml").unwrap();
    let (path, output) = (file(folder.path(), &config), folder.path().join("out"));
    let output_key = format!("output_dir={}", output.display());
    let mut args = vec!["--config", &path, &output_key, &data, "checkpointer.checkpoint_dir=recipes/tiny/model"];
    args.extend(["device=cpu", "batch_size=2", "gradient_accumulation_steps=1", "max_steps_per_epoch=2"]);
    args.push("model.architecture=null");
    let error = fail("lora", &args);
    assert!(error.contains("28 in NF4") && error.contains("save_adapter_weights_only=true"), "{error}");
    args.push("save_adapter_weights_only=true");
    let said = text(&succeed("lora", &args).stderr);
    assert!(said.contains("held quantized: 28 in NF4"), "{said}");
    assert!(newest(&output).join("adapter_model.safetensors").is_file());
}

/// With nothing but a model's name: torchtune's own dataset comes from the hub, as the model does.
#[test]
fn model_and_data_come_from_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let config = shipped().into_iter().find(|config| config.name == "llama3_2/1B_lora_single_device.yaml").unwrap();
    let model = files(&root().join("recipes/tiny/model")).into_iter().collect();
    let data = BTreeMap::from([("alpaca.jsonl".to_owned(), ALPACA.as_bytes().to_vec())]);
    let repos = [("models/org/tiny", model), ("datasets/yahma/alpaca-cleaned", data)];
    let repos = repos.into_iter().map(|(name, files)| (name.to_owned(), files)).collect();
    let server = Server::start(Content { repos, ..Content::default() });
    let (path, output) = (file(folder.path(), &config), format!("output_dir={}", folder.path().join("out").display()));
    let args = ["--config", &path, &output, "checkpointer.checkpoint_dir=hf://org/tiny", "model.architecture=null"];
    let run = recipe("lora", &args)
        .args(["device=cpu", "max_steps_per_epoch=1"])
        .envs([("HF_ENDPOINT", server.url.as_str()), ("HF_HOME", folder.path().join("hub").to_str().unwrap())])
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert!(text(&run.stderr).contains("4 samples"), "{}", text(&run.stderr));
}

/// A mistake in a file of torchtune's is shown where it stands in that file.
#[test]
fn mistakes_are_shown_where_they_were_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = shipped().into_iter().find(|c| c.name == "llama3_1/8B_lora_single_device.yaml").unwrap();
    config.yaml = config.yaml.replace("  lora_rank: 8\n", "  lora_rang: 8\n").replace("lr: 3e-4", "lr: fast");
    let lines: Vec<&str> = config.yaml.lines().collect();
    let place = |text: &str| {
        let line = lines.iter().position(|line| line.contains(text)).unwrap();
        format!("llama3_1_8B_lora_single_device.yaml:{}:{}", line + 1, lines[line].find(text).unwrap() + 1)
    };
    let error = fail("lora", &["--config", &file(folder.path(), &config)]);
    assert!(error.contains(&place("lora_rang")) && error.contains("did you mean `lora_rank`?"), "{error}");
    assert!(error.contains(&place("fast")), "{error}");
}
