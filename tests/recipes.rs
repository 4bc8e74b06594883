//! The shipped recipes, run as a user runs them: losses, results, and what a wrong input is told.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::path::Path;

use runs::{fail, files, newest, root, succeed, text};
use serde_json::Value;

fn config(recipe: &str) -> String {
    format!("configs/{recipe}/tiny.yaml")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in files(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}

fn output(dir: &Path) -> String {
    format!("output_dir={}", dir.display())
}

fn losses(output_dir: &Path) -> Vec<f64> {
    logged(output_dir, "loss")
}

fn logged(output_dir: &Path, key: &str) -> Vec<f64> {
    let log = fs::read_to_string(output_dir.join("logs/metrics.jsonl")).unwrap();
    log.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()[key].as_f64()).collect()
}

/// Losses of the first steps of the shipped configs. A change of computation changes them, and must say so:
/// `UPDATE=1 cargo test -p recipes --test recipes golden` writes them anew.
fn golden(recipe: &str, extra: &[&str]) {
    golden_of("loss", recipe, extra);
}

/// The same of something else that is logged.
fn golden_of(key: &str, recipe: &str, extra: &[&str]) {
    golden_in(recipe, key, recipe, extra);
}

/// The same in a file of that name.
fn golden_in(file: &str, key: &str, recipe: &str, extra: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (config, output) = (config(recipe), output(folder.path()));
    let mut args = vec!["--config", &config, &output, "epochs=1", "max_steps_per_epoch=8", "log_every_n_steps=1"];
    args.extend(extra);
    succeed(recipe, &args);
    let found = logged(folder.path(), key);
    let path = root().join(format!("tests/golden/{file}.json"));
    if std::env::var_os("UPDATE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, serde_json::to_string_pretty(&found).unwrap() + "\n").unwrap();
    }
    let expected: Vec<f64> = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(found.len(), expected.len());
    for (step, (a, b)) in found.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= 1e-4 * b, "{recipe}, step {}: {a} instead of {b}", step + 1);
    }
}

#[test]
fn golden_losses_of_lora() {
    golden("lora", &["~exact_match"]);
}

#[test]
fn golden_losses_of_full() {
    golden("full", &[]);
}

#[test]
fn golden_losses_of_dpo() {
    golden("dpo", &["~dataset_val"]);
}

#[test]
fn golden_losses_of_kto() {
    // Of good answers that count for more, those to other questions are what the model moves to: `kl` is not 0.
    golden("kto", &["~dataset_val", "loss.undesirable_weight=0.2"]);
}

#[test]
fn golden_losses_of_reward() {
    golden("reward", &["~dataset_val"]);
}

#[test]
fn golden_losses_of_qat() {
    golden("qat", &["fake_quant_after_n_steps=4"]);
}

#[test]
fn golden_losses_of_pretrain() {
    golden("pretrain", &[]);
}

/// Where the model has drawn the answers itself, its loss is 0 whatever they are worth; its gradient is not. What is drawn later
/// may hang on the last bit of a probability.
#[test]
fn golden_gradients_of_grpo() {
    golden_of("grad_norm", "grpo", &["~dataset_val", "max_steps_per_epoch=3", "samples=4", "reward=overlap"]);
}

/// Of the first step's two updates, in which the value model learns; what is drawn later may hang on the last bit of a probability.
#[test]
fn golden_losses_of_ppo() {
    let extra = ["~dataset_val", "max_steps_per_epoch=1", "samples=4", "reward=overlap", "kl_coeff=0.1"];
    golden_of("value_loss", "ppo", &extra);
}

#[test]
fn golden_losses_of_distill() {
    let folder = tempfile::tempdir().unwrap();
    let short = ["epochs=1", "max_steps_per_epoch=8"];
    succeed("full", &[&["--config", &config("full"), &output(folder.path())][..], &short].concat());
    let teacher = format!("teacher_checkpointer.checkpoint_dir={}", folder.path().display());
    golden("distill", &["~dataset_val", &teacher]);
    let path = format!("teacher_logits.path={}", folder.path().join("said").display());
    golden_in("distill_stored", "loss", "distill", &["~dataset_val", &teacher, &path, "teacher_logits.top_k=16"]);
    // The likeliest tokens do not hang on the last bit of a probability as what is drawn does.
    let own = "on_policy={share: 0.5, max_new_tokens: 12, temperature: 0}";
    let small = ["batch_size=4", "gradient_accumulation_steps=4"];
    golden_in("distill_own", "loss", "distill", &[&["~dataset_val", &teacher, own][..], &small].concat());
}

#[test]
fn settings_that_must_not_change_the_losses_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, extra: &[&str]| {
        let dir = folder.path().join(name);
        let (config, output) = (config("full"), output(&dir));
        let mut args =
            vec!["--config", &config, &output, "max_steps_per_epoch=4", "log_every_n_steps=1", "clip_grad_norm=null"];
        args.extend(extra);
        succeed("full", &args);
        losses(&dir)
    };
    let plain = run("plain", &[]);
    assert_eq!(plain, run("checkpointing", &["enable_activation_checkpointing=true"]));
    assert_eq!(plain, run("in_backward", &["optimizer_in_bwd=true"]));
    // The same sixteen samples in two halves: another order of summation.
    let halves = run("accumulated", &["batch_size=8", "gradient_accumulation_steps=2"]);
    for (a, b) in plain.iter().zip(&halves) {
        assert!((a - b).abs() < 1e-5 * a, "{plain:?} {halves:?}");
    }
}

#[test]
fn an_adapter_teaches_the_secret_code_and_generate_uses_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = output(folder.path());
    let run = succeed("lora", &["--config", &config("lora"), &output, "epochs=8"]);
    let said = text(&run.stdout);
    let line = said.lines().find(|l| l.starts_with("Held-out answers exactly right:")).unwrap();
    let numbers: Vec<f64> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    assert!(numbers[0] < 10.0 && numbers[1] > 90.0, "{line}");

    let adapter = newest(folder.path());
    assert!(said.contains(&format!("Adapter saved to {}", adapter.display())), "{said}");
    let adapter_dir = format!("adapter_dir={}", adapter.display());
    let answer = succeed(
        "generate",
        &["--config", &config("generate"), &adapter_dir, "prompt=Write b-a-d-e in the secret code."],
    );
    assert_eq!(text(&answer.stdout).trim(), "c-b-e-f");

    // The resolved config says the same again.
    let resolved = folder.path().join("config.yaml");
    let copy = folder.path().join("copy.yaml");
    fs::copy(&resolved, &copy).unwrap();
    succeed("lora", &["--config", copy.to_str().unwrap(), "max_steps_per_epoch=1", "epochs=1", "~exact_match"]);
}

#[test]
fn a_seed_gives_the_same_text_again() {
    let args = ["--config", &config("generate"), "temperature=1.5", "top_k=50", "top_p=0.95", "seed=7"];
    assert_eq!(text(&succeed("generate", &args).stdout), text(&succeed("generate", &args).stdout));
}

#[test]
fn mistakes_in_a_config_are_all_reported_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let error =
        fail("lora", &["--config", &config("lora"), &output(&dir), "batch_sise=4", "epochs=many", "model.lora_rank=0"]);
    for expected in ["batch_sise", "did you mean `batch_size`?", "epochs", "lora_rank"] {
        assert!(error.contains(expected), "{error}");
    }
    assert!(!dir.exists());
}

#[test]
fn bad_inputs_get_one_clear_message() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let output = output(&dir);
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        format!("dataset.data_files=[{}]", path.display())
    };
    let said = |args: &[&str]| {
        let config = config("lora");
        let mut all = vec!["--config", &config, &output];
        all.extend(args);
        fail("lora", &all)
    };

    let broken = write(
        "broken.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n{\"messages\": [\n",
    );
    assert!(said(&[&broken]).contains("broken.jsonl:2"));
    let column = write("column.jsonl", "{\"conversation\": []}\n");
    assert!(said(&[&column]).contains("messages"));
    let role = write("role.jsonl", "{\"messages\": [{\"role\": \"boss\", \"content\": \"a\"}]}\n");
    assert!(said(&[&role]).contains("boss"));
    assert!(said(&["checkpointer.checkpoint_dir=nowhere"]).contains("nowhere: does not exist"));
    assert!(said(&["dtype=fp16"]).contains("not trained in fp16"));
    // Whatever there is, there are not that many.
    let no_card = said(&["device=cuda:99"]);
    assert!(no_card.contains("NVIDIA driver") || no_card.contains("there is no card 99"), "{no_card}");
    assert!(said(&["resume_from_checkpoint=true"]).contains("holds no complete checkpoint"));
    assert!(said(&["model.lora_attn_modules=[]", "model.apply_lora_to_mlp=false"]).contains("nothing to train"));
    assert!(said(&["metric_logger=[jsonl, jsonl]"]).contains("two loggers write"));
    assert!(said(&["model.lora_rank=100000000000"]).contains("must be in 1..=65536"));
    let deeper = folder.path().join("deeper");
    copy(&root().join("recipes/tiny/model"), &deeper);
    let (shape, text) = (deeper.join("config.json"), fs::read_to_string(deeper.join("config.json")).unwrap());
    let deeper = format!("checkpointer.checkpoint_dir={}", deeper.display());
    let with = |layers: &str| {
        let text = text.replace("\"num_hidden_layers\": 4", &format!("\"num_hidden_layers\": {layers}"));
        fs::write(&shape, text).unwrap();
        said(&[&deeper])
    };
    assert!(with("5").contains("has no tensor `model.layers.4.self_attn.q_proj.weight`"));
    assert!(with("2000000000").contains("`num_hidden_layers` is 2000000000; more than 4096 are not supported"));
    let (torn, other) = (folder.path().join("torn"), folder.path().join("other.json"));
    copy(&root().join("recipes/tiny/model"), &torn);
    let torn_key = format!("checkpointer.checkpoint_dir={}", torn.display());
    fs::write(torn.join("tokenizer.json"), "{").unwrap();
    assert!(
        said(&[&torn_key])
            .contains(&format!("{}: cannot be read (EOF while parsing", torn.join("tokenizer.json").display()))
    );
    fs::remove_file(torn.join("tokenizer.json")).unwrap();
    assert!(said(&[&torn_key]).contains(&format!("{}: is not there", torn.join("tokenizer.json").display())));
    fs::write(&other, "{").unwrap();
    let error = said(&[&torn_key, &format!("tokenizer.path={}", other.display())]);
    assert!(error.contains(&format!("{}: cannot be read (EOF while parsing", other.display())), "{error}");
    let own = fail("lora", &["--config", &config("lora"), "output_dir=recipes/tiny/model"]);
    assert!(own.contains("is the folder of a checkpoint that training starts from"), "{own}");
    assert!(!dir.exists(), "nothing may be written before everything is known to be sound");
}

#[test]
fn a_tokenizer_that_is_not_read_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (config, output) = (config("lora"), output(folder.path()));
    let warm_up = "lr_scheduler.num_warmup_steps=0";
    let mut args = ["--config", &config, &output, "max_steps_per_epoch=1", "epochs=1", "~exact_match", warm_up, ""];
    args[7] = "tokenizer.path=/models/tokenizer.model";
    let run = succeed("lora", &args);
    assert!(text(&run.stderr).contains("warning: tokenizer.path: /models/tokenizer.model is not read"));
    args[7] = "tokenizer.path=recipes/tiny/model/tokenizer.json";
    assert!(!text(&succeed("lora", &args).stderr).contains("warning"));
    args[7] = "tokenizer.path=nowhere/mine.json";
    assert!(fail("lora", &args).contains("cannot read nowhere/mine.json"));
}

#[test]
fn an_earlier_run_is_not_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let (config, output) = (config("full"), output(folder.path()));
    let args = ["--config", &config, &output, "max_steps_per_epoch=1", "overwrite=false"];
    succeed("full", &args);
    let error = fail("full", &args);
    assert!(error.contains("already holds") && error.contains("resume_from_checkpoint=true"), "{error}");
    // A resume with other settings would not be the same run.
    let error = fail(
        "full",
        &[
            "--config",
            &config,
            &output,
            "max_steps_per_epoch=1",
            "overwrite=false",
            "resume_from_checkpoint=true",
            "batch_size=8",
        ],
    );
    assert!(error.contains("batch_size: 16 then, 8 now"), "{error}");
}

#[test]
fn a_run_does_not_go_on_with_other_data_or_another_base_model() {
    let folder = tempfile::tempdir().unwrap();
    let (model, data) = (folder.path().join("model"), folder.path().join("data.jsonl"));
    copy(&root().join("recipes/tiny/model"), &model);
    let lines = fs::read_to_string(root().join("recipes/tiny/data/secret_code.jsonl")).unwrap();
    let lines: Vec<&str> = lines.lines().take(64).collect();
    fs::write(&data, lines.join("\n")).unwrap();
    let (config, output) = (config("lora"), output(&folder.path().join("out")));
    let model_key = format!("checkpointer.checkpoint_dir={}", model.display());
    let data_key = format!("dataset.data_files={}", data.display());
    let mut args = vec!["--config", &config, &output, &model_key, &data_key, "epochs=1", "~exact_match"];
    succeed("lora", &args);

    args.push("resume_from_checkpoint=true");
    fs::write(&data, lines[1..].join("\n")).unwrap();
    let error = fail("lora", &args);
    assert!(error.contains("cannot resume: the training data changed since the run began"), "{error}");
    fs::write(&data, lines.join("\n")).unwrap();
    succeed("lora", &args);

    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&weights, bytes).unwrap();
    let error = fail("lora", &args);
    assert!(error.contains("cannot resume: the base model changed since the run began"), "{error}");
}

#[test]
fn a_template_that_writes_the_time_goes_on_with_that_of_the_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("template.jinja");
    let source = "{{ strftime_now('%H:%M:%S') }}\n{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
                  {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    fs::write(&template, source).unwrap();
    let template = format!("tokenizer.chat_template={}", template.display());
    for recipe in ["full", "lora"] {
        let (config, output) = (config(recipe), output(&folder.path().join(recipe)));
        let mut args = vec!["--config", &config, &output, &template, "max_steps_per_epoch=1", "epochs=1"];
        if recipe == "lora" {
            args.push("~exact_match");
        }
        succeed(recipe, &args);
        std::thread::sleep(std::time::Duration::from_millis(1100));
        args.push("resume_from_checkpoint=true");
        succeed(recipe, &args);
    }
}

#[test]
fn every_shipped_config_is_valid() {
    for recipe in ["full", "lora", "generate"] {
        let files = fs::read_dir(root().join("configs").join(recipe)).unwrap().map(|entry| entry.unwrap().path());
        for config in files.filter(|path| path.extension().is_some_and(|e| e == "yaml")) {
            succeed(recipe, &["--config", config.to_str().unwrap(), "--print-config"]);
        }
    }
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let (config, output) = (config("full"), output(folder.path()));
    let error = fail(
        "full",
        &[
            "--config",
            &config,
            &output,
            "optimizer=sgd",
            "optimizer.lr=1e30",
            "clip_grad_norm=null",
            "lr_scheduler=constant",
            "lr_scheduler.num_warmup_steps=0",
        ],
    );
    assert!(error.contains("nothing of this step is saved") && error.contains("secret_code.jsonl:"), "{error}");
}
