//! Names of components that are others' elsewhere.

use std::fs;

use super::runs::{root, run, succeed, text};

/// torchtune's loggers, by the names that they have there: what they become, and what is said.
#[test]
fn loggers_are_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    let resolved = |logger: &str| {
        let logger = format!("metric_logger={logger}");
        let args = ["--config", "configs/lora/tiny.yaml", &output, &logger, "--print-config"];
        let output = succeed("lora", &args);
        text(&output.stdout)
    };
    let named = "{_component_: torchtune.training.metric_logging.";
    let wandb = "WandBLogger, project: p, entity: me, group: g, name: trial, job_type: train, mode: offline, log_dir: elsewhere}";
    let config = resolved(&format!("{named}{wandb}"));
    for key in [
        "_component_: wandb",
        "project: p",
        "entity: me",
        "group: g",
        "name: trial",
        "job_type: train",
        "log_dir: elsewhere",
    ] {
        assert!(config.contains(key), "{key}: {config}");
    }
    assert!(!config.contains("mode: offline"), "{config}");
    let told = format!("metric_logger={named}WandBLogger, mode: offline}}");
    let validated = succeed("lora", &["--config", "configs/lora/tiny.yaml", &output, &told, "--validate"]);
    let said = text(&validated.stdout) + &text(&validated.stderr);
    assert!(said.contains("the key `mode` has no effect here"), "{said}");
    let config = resolved(&format!("{named}DiskLogger, log_dir: here, filename: log.txt}}"));
    assert!(config.contains("_component_: jsonl") && config.contains("filename: log.txt"), "{config}");
    let config = resolved(&format!("{named}StdoutLogger}}"));
    assert!(config.contains("stdout"), "{config}");
    let config = resolved(&format!("{named}MLFlowLogger, experiment_name: e, run_name: r, run_id: null}}"));
    assert!(config.contains("_component_: mlflow") && config.contains("experiment_name: e"), "{config}");
    let comet = format!("metric_logger={named}CometLogger, project: p, log_dir: here}}");
    let checked = succeed("lora", &["--config", "configs/lora/tiny.yaml", &output, &comet, "--check"]);
    let said = text(&checked.stdout) + &text(&checked.stderr);
    assert!(said.contains("there is no client for Comet here") && said.contains("wandb, mlflow"), "{said}");
}

/// Names that the optimizers have elsewhere, with the defaults that go with them in torchtune's configs.
#[test]
fn optimizers_are_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let with = |optimizer: &str, how: &str| {
        let yaml = fs::read_to_string(root().join("configs/full/tiny.yaml")).unwrap();
        let yaml = yaml
            .replace("checkpointer:\n", "checkpointer:\n  _component_: torchtune.training.FullModelHFCheckpointer\n");
        let (above, _) = yaml.split_once("optimizer:").unwrap();
        fs::write(&path, format!("{above}optimizer: {{_component_: {optimizer}}}\n")).unwrap();
        let output = run("full", &["--config", path.to_str().unwrap(), how]);
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let taken: [(&str, &[&str]); 11] = [
        ("bitsandbytes.optim.PagedAdamW8bit, lr: 2e-5", &["_component_: adamw_8bit", "lr: 2.0e-5"]),
        ("torchao.optim.AdamW8bit, block_size: 256", &["_component_: adamw_8bit", "lr: 0.001"]),
        ("torchao.optim.AdamW4bit, lr: 2e-5", &["_component_: adamw_8bit", "lr: 2.0e-5"]),
        ("torchao.optim.AdamWFp8, lr: 2e-5", &["_component_: adamw_8bit", "lr: 2.0e-5"]),
        ("bitsandbytes.optim.PagedLion", &["_component_: lion", "lr: 0.0001"]),
        ("lion_pytorch.Lion, weight_decay: 0.1", &["_component_: lion", "weight_decay: 0.1"]),
        ("torch.optim.Adafactor, lr: 0.02, d: 2.0", &["_component_: adafactor", "lr: 0.02", "d: 2.0"]),
        (
            "transformers.Adafactor, beta1: null, decay_rate: -0.7, clip_threshold: 0.5, relative_step: false",
            &["_component_: adafactor", "beta2_decay: -0.7", "d: 0.5", "relative_step: false", "1.0e-30"],
        ),
        ("torch.optim.Muon, eps: 1e-7", &["_component_: muon", "lr: 0.001", "adjust_lr_fn: original", "eps: 1.0e-8"]),
        ("schedulefree.AdamWScheduleFree, warmup_steps: 0", &["_component_: schedule_free_adamw", "lr: 0.0025"]),
        ("torch.optim.AdamW, layerwise_lr_decay: 0.9", &["_component_: adamw", "layerwise_lr_decay: 0.9"]),
    ];
    for (optimizer, keys) in taken {
        let (is_sound, config) = with(optimizer, "--print-config");
        assert!(is_sound, "{optimizer}: {config}");
        for key in keys {
            assert!(config.contains(key), "{optimizer}: {key} is not in\n{config}");
        }
    }
    let refused = [
        ("transformers.Adafactor, beta1: 0.9", "Adafactor has no momentum here"),
        ("schedulefree.AdamWScheduleFree, warmup_steps: 10", "the warm-up is lr_scheduler's"),
        ("bitsandbytes.optim.LARS", "optimizers of bitsandbytes other than AdamW and Lion"),
    ];
    for (optimizer, why) in refused {
        let (is_sound, said) = with(optimizer, "--validate");
        assert!(!is_sound && said.contains(why), "{optimizer}: {said}");
    }
}
