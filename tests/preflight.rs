//! `--check` and `--plan`, as a user asks for them: a sound run, and each thing that can be wrong with one.
//! `UPDATE=1` writes the snapshot anew.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runs::{recipe, root, succeed, text};
use serde_json::{Value, json};

/// A folder of a test, with an output folder that is not there yet.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name).display().to_string()
    }

    /// What `option` says of a recipe's tiny config with overrides, and the exit code. The run's folder stays as it is.
    fn ask(&self, name: &str, option: &str, overrides: &[&str]) -> (String, Option<i32>) {
        let (config, output) = (format!("configs/{name}/tiny.yaml"), self.output());
        let mut args = vec![option, "--config", &config, &output];
        args.extend(overrides);
        let before = files_below(&self.path("out"));
        let answer = recipe(name, &args).env_remove("CLICOLOR_FORCE").output().unwrap();
        assert_eq!(files_below(&self.path("out")), before, "{option} wrote into the run's folder");
        let errors = text(&answer.stderr);
        assert!(!errors.contains("panicked"), "{errors}");
        (text(&answer.stdout) + &errors, answer.status.code())
    }

    fn output(&self) -> String {
        format!("output_dir={}", self.path("out").display())
    }

    fn sound(&self, overrides: &[&str]) -> String {
        let (said, code) = self.ask("lora", "--check", overrides);
        assert_eq!(code, Some(0), "{said}");
        said
    }

    fn unsound(&self, overrides: &[&str]) -> String {
        let (said, code) = self.ask("lora", "--check", overrides);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("\nerror: ") && said.contains("This run would not succeed"), "{said}");
        said
    }

    /// A conversation a line, of questions and answers.
    fn conversations(&self, name: &str, turns: &[(&str, &str)]) -> String {
        let line = |(question, answer): &(&str, &str)| {
            json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
                .to_string()
        };
        let path = self.write(name, &turns.iter().map(line).collect::<Vec<_>>().join("\n"));
        format!("dataset.data_files={path}")
    }

    fn template(&self, source: &str) -> String {
        format!("tokenizer.chat_template={}", self.write("template.jinja", source))
    }

    /// The tiny model's folder with another config, and weights of that config's shapes that are holes in a file.
    fn model(&self, changes: &Value) -> String {
        let folder = self.path("model");
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in runs::files(&root().join("recipes/tiny/model")) {
            fs::write(folder.join(name), bytes).unwrap();
        }
        let mut config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        write_holes(&folder.join("model.safetensors"), &config);
        format!("checkpointer.checkpoint_dir={}", folder.display())
    }
}

/// A weights file with a header for the model of `config`, and nothing behind it that takes room on the disk.
fn write_holes(path: &Path, config: &Value) {
    let size = |key: &str| config[key].as_u64().unwrap();
    let (hidden, inner) = (size("hidden_size"), size("intermediate_size"));
    let (heads, kv_heads, head) = (size("num_attention_heads"), size("num_key_value_heads"), size("head_dim"));
    let mut shapes = vec![("model.embed_tokens".to_owned(), vec![size("vocab_size"), hidden])];
    shapes.push(("model.norm".to_owned(), vec![hidden]));
    for layer in 0..size("num_hidden_layers") {
        let mut names = vec![
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.o_proj", vec![hidden, heads * head]),
            ("mlp.down_proj", vec![hidden, inner]),
        ];
        // Phi-3 stores as one what has the same input.
        names.extend(match config["model_type"] == "phi3" {
            true => vec![
                ("self_attn.qkv_proj", vec![(heads + 2 * kv_heads) * head, hidden]),
                ("mlp.gate_up_proj", vec![2 * inner, hidden]),
            ],
            false => vec![
                ("self_attn.q_proj", vec![heads * head, hidden]),
                ("self_attn.k_proj", vec![kv_heads * head, hidden]),
                ("self_attn.v_proj", vec![kv_heads * head, hidden]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
            ],
        });
        shapes.extend(names.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
    }
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in shapes {
        let bytes = 2 * shape.iter().product::<u64>();
        header.insert(
            format!("{name}.weight"),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]}),
        );
        end += bytes;
    }
    let header = Value::Object(header).to_string();
    let mut start = (header.len() as u64).to_le_bytes().to_vec();
    start.extend(header.as_bytes());
    fs::write(path, &start).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(start.len() as u64 + end).unwrap();
}

/// A model of seventy billion parameters: 140 GB in bf16.
fn seventy_billion() -> Value {
    json!({
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 128
    })
}

/// Every file with its length.
fn files_below(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut files = BTreeMap::new();
    for path in fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => files.extend(files_below(&path)),
            false => drop(files.insert(path.clone(), fs::metadata(&path).unwrap().len())),
        }
    }
    files
}

fn contains(said: &str, expected: &[&str]) {
    for part in expected {
        assert!(said.contains(part), "there is no {part:?} in\n{said}");
    }
}

#[test]
fn a_sound_run() {
    sound_run("lora");
}

#[test]
fn a_sound_run_of_pairs() {
    sound_run("dpo");
}

#[test]
fn a_sound_run_of_answers_with_labels() {
    sound_run("kto");
}

#[test]
fn a_sound_run_that_draws_answers() {
    sound_run("grpo");
}

#[test]
fn a_sound_run_with_a_value_model() {
    sound_run("ppo");
}

#[test]
fn a_sound_run_that_scores() {
    sound_run("reward");
}

#[test]
fn a_sound_run_that_rounds() {
    sound_run("qat");
}

#[test]
fn a_sound_run_from_nothing() {
    sound_run("pretrain");
}

#[test]
fn a_sound_run_with_a_teacher() {
    // A model that is there; the config names the result of another run.
    sound_run_with("distill", &["teacher_checkpointer.checkpoint_dir=recipes/tiny/model"]);
}

/// What is said of a recipe's tiny config.
fn sound_run(name: &str) {
    sound_run_with(name, &[]);
}

fn sound_run_with(name: &str, extra: &[&str]) {
    let place = Place::new();
    let (said, code) = place.ask(name, "--check", extra);
    assert_eq!(code, Some(0), "{said}");
    let said = said.replace(&place.path("out").display().to_string(), "OUT");
    // What differs from machine to machine.
    let (before, rest) = said.split_once("\nmemory ").unwrap();
    let (memory, rest) = rest.split_once("\noutput ").unwrap();
    let (disk, rest) = rest.split_once(", of ").unwrap();
    let (_, rest) = rest.split_once(" that are free").unwrap();
    contains(memory, &["MiB at most", "activations ", "weights 3.2 MiB"]);
    let found = format!("{before}\nmemory      ...\noutput {disk}, of ... that are free{rest}");
    let path = root().join(format!("tests/snapshots/check_{name}_tiny.txt"));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &found).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == found, "{} is otherwise:\n{found}", path.display());
    assert!(!place.path("out").exists());
}

#[test]
fn trained_tokens_are_in_colour() {
    let place = Place::new();
    let args = ["--check", "--config", "configs/full/tiny.yaml", &place.output()];
    let said = text(&recipe("full", &args).env("CLICOLOR_FORCE", "1").output().unwrap().stdout);
    contains(&said, &["\x1b[32me-p-u-p-m\x1b[0m\x1b[4;32m<|im_end|>\x1b[0m"]);
    let said = recipe("full", &args).env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1").output().unwrap().stdout;
    contains(&text(&said), &["«e-p-u-p-m<|im_end|>»"]);
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let place = Place::new();
    let file = place.write("file", "");
    let said = place.unsound(&[
        "dataset.data_files=nowhere.jsonl",
        "exact_match.data_file=nothing.jsonl",
        "dtype=fp16",
        "metric_logger=[jsonl, jsonl]",
        "model.lora_attn_modules=[]",
        "model.apply_lora_to_mlp=false",
        &format!("output_dir={file}"),
    ]);
    contains(
        &said,
        &[
            "error: cannot read nowhere.jsonl: No such file",
            "error: cannot read nothing.jsonl",
            "not trained in fp16",
            "two loggers write",
            "nothing to train",
            "file: is a file; output_dir must be a folder",
        ],
    );
    // A wrong config is one still.
    let (said, code) = place.ask("lora", "--check", &["epcohs=3"]);
    assert!(code == Some(2) && said.contains("did you mean `epochs`?"), "{said}");
}

#[test]
fn broken_records_are_counted_and_the_first_are_shown() {
    let place = Place::new();
    let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let broken = [good, "{\"messages\": [", r#"{"conversation": []}"#, r#"{"messages": []}"#, "[]"].join("\n");
    let data = format!("dataset.data_files={}", place.write("broken.jsonl", &broken));
    let said = place.unsound(&[&data]);
    contains(
        &said,
        &[
            "4 of 5 records cannot be used\n",
            "broken.jsonl:2: column 14: not valid JSON",
            "broken.jsonl:3: no column `messages` (the columns are: `conversation`)",
            "broken.jsonl:4: the conversation is empty",
            "broken.jsonl:5: must be a JSON object, not a list",
            // What can be used is shown.
            "broken.jsonl:1, ",
            "«b<|im_end|>»",
        ],
    );
    // The same of validation data.
    let value = format!("dataset_val={{_component_: chat, data_files: [{}]}}", place.path("broken.jsonl").display());
    contains(&place.unsound(&[&value]), &["4 of 5 records cannot be used", "data        chat dataset recipes/tiny"]);
}

#[test]
fn a_template_that_does_not_render_is_an_error() {
    let place = Place::new();
    let refusing = place.template("{{ raise_exception('only poems here') }}");
    contains(
        &place.unsound(&[&refusing]),
        &["1500 of 1500 records cannot be used", "secret_code.jsonl:1", "only poems here"],
    );
    let broken = place.template("{% for m in messages %}{{ m.content }");
    contains(&place.unsound(&[&broken]), &["the chat template is not valid"]);
}

#[test]
fn samples_without_a_trained_token_are_found() {
    let place = Place::new();
    let data = place.conversations("cut.jsonl", &[("a", "b"), (&"c".repeat(200), "d")]);
    let said = place.sound(&[&data]);
    contains(&said, &["1 samples have no trained token", "cut.jsonl:2", "1 samples without a trained token left out"]);
    let said = place.unsound(&["tokenizer.max_seq_len=8"]);
    contains(&said, &["none of the 1500 samples has a trained token", "8 tokens, 0 of them trained"]);
}

/// In each of the ways in which it comes to that.
#[test]
fn a_stop_token_that_is_never_trained_is_an_error() {
    let place = Place::new();
    let never = "no stop token (`<|im_end|>`) ends an answer that is trained";
    // The template's marks leave it out.
    let turn = |answer: &str| {
        format!(
            "{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\\n' }}}}{{% if m.role == 'assistant' %}}{answer}{{% else \
             %}}{{{{ m.content + '<|im_end|>' }}}}{{% endif %}}{{{{ '\\n' }}}}{{% endfor %}}"
        )
    };
    let masked = turn("{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>");
    let said = place.unsound(&[&place.template(&masked), "~exact_match"]);
    contains(&said, &[never, "`{% generation %}` blocks must hold the token that ends a turn", "»<|im_end|>"]);
    let marked = turn("{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}");
    contains(&place.sound(&[&place.template(&marked), "~exact_match"]), &["<|im_end|>»"]);
    // The template has none.
    let said = place.unsound(&[&place.template(&turn("{{ m.content }}")), "~exact_match"]);
    contains(&said, &[never, "no stop token follows the answer"]);
    // It ends turns with another.
    let said = place.unsound(&[&place.template(&turn("{{ m.content }}<|im_start|>")), "~exact_match"]);
    contains(&said, &[never, "closed by `<|im_start|>`, which is not among the model's stop tokens", "eos_token_id"]);
    // It is cut off.
    let data = place.conversations("long.jsonl", &[("a", &"b".repeat(200)), ("c", &"d".repeat(300))]);
    contains(&place.unsound(&[&data]), &[never, "every sample is cut off before it: raise `tokenizer.max_seq_len`"]);
    // Text that is not to end may do without.
    let text = place.write("text.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n");
    let endless = format!("dataset={{_component_: text, add_eos: false, data_files: [{text}]}}");
    place.sound(&[&endless]);
}

#[test]
fn what_is_cut_off_is_counted() {
    let place = Place::new();
    let data = place.conversations("some.jsonl", &[("a", "b"), ("a", &"b".repeat(200)), ("a", "c")]);
    let whole = place.sound(&[&data, "tokenizer.max_seq_len=null"]);
    let tokens = |said: &str| -> usize {
        let (before, _) = said.split_once(" tokens, ").unwrap_or_else(|| panic!("{said}"));
        before.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let tokens = |said: &str| tokens(said.split_once("3 samples, ").map(|(_, rest)| rest).unwrap());
    let cut = place.sound(&[&data, "tokenizer.max_seq_len=64"]);
    let lost = tokens(&whole) - tokens(&cut);
    assert!(lost > 100, "{whole}\n{cut}");
    contains(
        &cut,
        &[
            &format!("1 samples cut, {lost} tokens lost"),
            "warning: ",
            "more than `tokenizer.max_seq_len` = 64 tokens",
            "the last answers of 1 have lost their stop token",
            "The model is made for up to 256",
        ],
    );
    // Longer than the model is made for.
    let data = place.conversations("longer.jsonl", &[("a", &"b".repeat(400))]);
    let said = place.sound(&[&data, "tokenizer.max_seq_len=null"]);
    contains(&said, &["the model is made for at most 256"]);
}

/// The weights are 140 GB of holes: to read them is to run out of memory, if not of patience.
#[test]
fn no_weight_is_read() {
    let place = Place::new();
    let model = place.model(&seventy_billion());
    let begun = Instant::now();
    let (said, _) = place.ask("lora", "--check", &[&model]);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    contains(&said, &["80 blocks of width 8192, 68455505920 parameters, stored in bf16", "1500 samples"]);
}

#[test]
fn weights_that_are_not_whole_are_an_error_and_the_rest_is_looked_at() {
    let place = Place::new();
    let model = place.model(&json!({}));
    place.sound(&[&model]);
    let weights = place.path("model/model.safetensors");
    let length = fs::metadata(&weights).unwrap().len();
    fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(length / 2).unwrap();
    let said = place.unsound(&[&model]);
    contains(&said, &["error: ", "model.safetensors: is truncated", "1500 samples", "«e-p-u-p-m<|im_end|>»"]);
    assert_eq!(said.matches("\nerror: ").count(), 1, "{said}");
    // Whole, but of another model than its config says.
    let model = place.model(&json!({"num_hidden_layers": 3}));
    let config = fs::read_to_string(place.path("model/config.json")).unwrap();
    fs::write(place.path("model/config.json"), config.replace("\"num_hidden_layers\":3", "\"num_hidden_layers\":4"))
        .unwrap();
    contains(&place.unsound(&[&model]), &["has no tensor `model.layers.3."]);
    // A family that is not there.
    let model = place.model(&json!({"model_type": "mamba"}));
    contains(&place.unsound(&[&model]), &["model_type `mamba` is not supported"]);
}

/// Tokens whose rows are trained: by their texts and ids, and those that there are not.
#[test]
fn rows_of_tokens() {
    let place = Place::new();
    let texts = "model.trainable_tokens=[<|im_start|>, <|im_end|>]";
    let said = place.sound(&[texts, "model.trainable_token_indices=[5]"]);
    assert!(said.contains("; beside them the rows of tokens 5, 0, 1"), "{said}");
    let refused = |overrides: &[&str], says: &str| {
        let said = place.unsound(overrides);
        assert!(said.contains(says), "{said}");
        let (said, code) = place.ask("lora", "--plan", overrides);
        assert!(said.contains(says) && code != Some(0), "{said}");
    };
    refused(&["model.trainable_tokens=[<tool>]"], "model.trainable_tokens: `<tool>` is no token of the tokenizer");
    let no_token = "model.trainable_token_indices: 384 is no token of the model: its embedding table has 384 rows";
    refused(&["model.trainable_token_indices=[384]"], no_token);
    refused(&[texts, "model.trainable_token_indices=[1]"], "the token 1 is named twice, here or by its text");
    refused(&["model.new_tokens=[zebra]", texts], "the embedding table is trained whole");
    refused(&["model.apply_lora_to_output=true", texts], "gets an adapter: leave `lm_head` out");
    let of_output = "model.trainable_output_tokens=[<|im_end|>]";
    refused(&[of_output], "name the tokens in model.trainable_token_indices, whose rows are those of both");
    let no_token = "model.trainable_output_tokens: `<tool>` is no token of the tokenizer";
    refused(&["model.trainable_output_tokens=[<tool>]"], no_token);
}

#[test]
fn layers_that_are_stored_as_one_share_an_adapter_and_that_is_said() {
    let place = Place::new();
    let model = place.model(&json!({"model_type": "phi3", "pad_token_id": 0}));
    let said = |modules: &str, mlp: &str| {
        place.sound(&[
            &model,
            &format!("model.lora_attn_modules=[{modules}]"),
            &format!("model.apply_lora_to_mlp={mlp}"),
        ])
    };
    let shared = "torchtune gives each part an adapter of its own";
    let both = said("q_proj, v_proj", "true");
    contains(
        &both,
        &["warning: in this model `q_proj`, `v_proj` are parts of `qkv_proj` and `gate_proj`, `up_proj` are parts of \
           `gate_up_proj`: such a layer gets one adapter, which changes all of its parts, as in peft"],
    );
    assert_eq!(both.matches(shared).count(), 1, "{both}");
    contains(&said("k_proj", "false"), &["in this model `k_proj` is a part of `qkv_proj`: such a layer"]);
    assert!(!said("qkv_proj, o_proj", "false").contains(shared));
    // Where layers are apart there is nothing to say.
    assert!(!place.sound(&["model.lora_attn_modules=[q_proj, v_proj]"]).contains(shared));
    // A run says it as it starts.
    let run = recipe("lora", &["--config", "configs/lora/tiny.yaml", &place.output(), &model, "max_steps_per_epoch=1"]);
    let said = text(&{ run }.output().unwrap().stderr);
    assert_eq!(said.matches(shared).count(), 1, "{said}");
}

/// What is wrong with a `config.json` is said with its path: a run may read several.
#[test]
fn the_file_that_describes_the_model_is_named() {
    let place = Place::new();
    let file = place.path("model/config.json");
    for (key, value, what) in [
        ("hidden_act", json!("relu"), "`hidden_act` is \"relu\"; supported are"),
        ("num_hidden_layers", json!(100_000), "`num_hidden_layers` is 100000; more than 4096 are not supported"),
        ("num_attention_heads", json!(5), "num_attention_heads (5) must be a multiple of"),
        ("rope_parameters", json!({"rope_type": "longrope"}), "`rope_parameters.short_factor` is missing"),
        ("rope_parameters", json!(3), "rope_parameters must be an object, not 3"),
        ("logit_scale", json!(2.0), "`logit_scale` is 2.0, and nothing is known of such a setting here"),
        ("model_type", json!("lama"), "model_type `lama` is not supported"),
    ] {
        let model = place.model(&json!({}));
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        config[key] = value;
        fs::write(&file, config.to_string()).unwrap();
        let expected = format!("error: {}: {what}", file.display());
        assert!(place.unsound(&[&model]).contains(&expected), "{}", place.unsound(&[&model]));
        let output = recipe("lora", &["--config", "configs/lora/tiny.yaml", &place.output(), &model]).output().unwrap();
        assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
        let folder = place.path("model").display().to_string();
        let ask = [&*format!("checkpoint_dir={folder}"), "prompt=Hello"];
        let output = recipe("generate", &ask).output().unwrap();
        assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
    }
    // Weights that its model does not have, too.
    let model = place.model(&json!({}));
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, config.replace("\"num_hidden_layers\":4", "\"num_hidden_layers\":3")).unwrap();
    let expected = format!("error: {}: has 9 weights that the model of its config.json", place.path("model").display());
    assert!(place.unsound(&[&model]).contains(&expected), "{}", place.unsound(&[&model]));
}

#[test]
fn a_full_disk_is_foreseen() {
    let place = Place::new();
    let model = place.model(&seventy_billion());
    let (said, code) = place.ask("full", "--check", &[&model, "epochs=100", "dtype=bf16"]);
    assert_eq!(code, Some(1), "{said}");
    contains(
        &said,
        &["error: ", "there is no room for the checkpoints", "684.6 GB each", "checkpointer.keep_last_n_checkpoints"],
    );
    // How many there will be.
    let said = place.sound(&["checkpointer.keep_last_n_checkpoints=null", "checkpointer.save_every_n_steps=47"]);
    contains(&said, &["all 16 are kept (checkpointer.keep_last_n_checkpoints keeps fewer): 76.5 MB"]);
}

/// Settings that are allowed and probably not meant, in `check` and at the start of a run.
#[test]
fn a_warm_up_longer_than_the_run_is_told() {
    let place = Place::new();
    let warning = "warning: the learning rate rises for 10 steps (lr_scheduler.num_warmup_steps), and the run has 4 steps: it ends at \
                   30 % of optimizer.lr; set lr_scheduler.num_warmup_steps=0";
    let short = ["epochs=1", "max_steps_per_epoch=4"];
    contains(&place.sound(&short), &[warning]);
    let output = place.output();
    let args = ["--config", "configs/lora/tiny.yaml", &output, short[0], short[1], "~exact_match"];
    contains(&text(&succeed("lora", &args).stderr), &[warning]);
    assert!(!place.sound(&["epochs=1", "max_steps_per_epoch=11"]).contains("warning:"));
}

#[test]
fn a_run_that_can_learn_nothing_is_told() {
    let place = Place::new();
    contains(&place.sound(&["optimizer.lr=0"]), &["warning: optimizer.lr is 0, so no step changes a weight"]);
    contains(
        &place.sound(&["model.lora_alpha=0"]),
        &["warning: model.lora_alpha is 0, so adapters add nothing to their layers"],
    );
}

#[test]
fn the_best_checkpoint_is_known_by_validation_alone() {
    let place = Place::new();
    let keep_best = "checkpointer.keep_best=true";
    contains(
        &place.unsound(&[keep_best]),
        &["checkpointer.keep_best keeps the checkpoint with the lowest validation loss: set dataset_val"],
    );
    let args = ["--config", "configs/lora/tiny.yaml", &place.output(), keep_best];
    contains(&runs::fail("lora", &args), &["error: checkpointer.keep_best keeps", "set dataset_val"]);
    let validation = "dataset_val={_component_: chat, data_files: [recipes/tiny/data/held_out.jsonl]}";
    let said = place.sound(&[keep_best, validation]);
    contains(&said, &["a checkpoint takes 4.8 MB, 3 are kept"]);
    let said = place.sound(&[keep_best, validation, "checkpointer.keep_last_n_checkpoints=null"]);
    contains(&said, &["checkpointer.keep_best has no effect: every checkpoint is kept"]);
}

/// What `check` refuses, a run refuses before it has computed anything.
#[test]
fn a_run_begins_only_where_its_checkpoints_find_room() {
    let place = Place::new();
    let every = ["checkpointer.keep_last_n_checkpoints=null", "checkpointer.save_every_n_steps=1", "epochs=100000000"];
    let error = "there is no room for the checkpoints";
    contains(&place.unsound(&every), &[error]);
    let output = place.output();
    let args: Vec<&str> = ["--config", "configs/lora/tiny.yaml", &output].into_iter().chain(every).collect();
    contains(&runs::fail("lora", &args), &["error: ", error]);
    assert!(!place.path("out").exists());
}

/// With so little memory, as the environment says.
#[test]
fn memory_that_does_not_suffice_is_an_error_that_names_settings() {
    let place = Place::new();
    let ask = |option: &str, memory: &str| {
        let args = [option, "--config", "configs/lora/tiny.yaml", &place.output()];
        let answer = recipe("lora", &args).env("TUNE_MEMORY", memory).output().unwrap();
        (text(&answer.stdout), answer.status.code())
    };
    let (said, code) = ask("--plan", "1GiB");
    assert_eq!(code, Some(0), "{said}");
    contains(&said, &["weights                        3.2 MiB", "adapters                       1.2 MiB", "peak "]);
    assert!(!said.contains("It does not fit"), "{said}");

    // Kernels, and so the peak, are those of this processor; and what a program takes is not quite the same each time.
    let peak = said.lines().find_map(|line| line.trim().strip_prefix("peak ")?.split_whitespace().next());
    let short = format!("{}MiB", peak.unwrap().parse::<f64>().unwrap() as u64 - 4);
    let (said, code) = ask("--check", &short);
    assert_eq!(code, Some(1), "{said}");
    contains(&said, &["\nerror: this run needs ", "of memory", "it fits with", "enable_activation_checkpointing=true"]);
    let (said, code) = ask("--plan", &short);
    assert_eq!(code, Some(1), "{said}");
    contains(&said, &["It does not fit. Each of these changes is enough:", "enable_activation_checkpointing=true"]);

    // What it follows from must be sound.
    let (said, code) = place.ask("lora", "--plan", &["dataset.data_files=nowhere.jsonl"]);
    assert!(code == Some(1) && said.contains("error: cannot read nowhere.jsonl"), "{said}");
    assert!(!place.path("out").exists());
}

#[test]
fn a_resume_is_compared_with_the_run_that_it_goes_on_with() {
    let place = Place::new();
    let short = ["max_steps_per_epoch=1", "epochs=1", "~exact_match", "overwrite=false"];
    let (config, output) = ("configs/lora/tiny.yaml", place.output());
    let mut args = vec!["--config", config, &output];
    args.extend(short);
    succeed("lora", &args);

    let mut overrides = short.to_vec();
    contains(&place.unsound(&overrides), &["already holds 1 checkpoint(s) of another run"]);
    overrides.push("overwrite=true");
    contains(&place.sound(&overrides), &["which has one checkpoint, epoch_0_step_1: overwrite=true deletes"]);
    overrides.pop();
    overrides.push("resume_from_checkpoint=true");
    contains(&place.sound(&overrides), &["which has one checkpoint, epoch_0_step_1: the run goes on from it"]);
    overrides.extend(["batch_size=8", "optimizer.lr=1.0e-4"]);
    contains(
        &place.unsound(&overrides),
        &["these settings differ", "batch_size: 16 then, 8 now", "optimizer.lr: 0.002 then, 0.0001 now"],
    );
    // Nothing was said, and the data is another.
    let data = place.conversations("other.jsonl", &[("a", "b")]);
    overrides.truncate(short.len() + 1);
    overrides.push(&data);
    contains(&place.unsound(&overrides), &["dataset.0.data_files.0: "]);
    let place = Place::new();
    let data = place.conversations("own.jsonl", &[("a", "b"), ("c", "d")]);
    let output = place.output();
    args[2] = &output;
    args.push(&data);
    succeed("lora", &args);
    place.conversations("own.jsonl", &[("a", "b"), ("c", "e")]);
    overrides.truncate(short.len() + 1);
    overrides.push(&data);
    contains(&place.unsound(&overrides), &["the training data changed since the run began"]);
}

#[test]
fn settings_that_do_not_fit_together_are_said() {
    let place = Place::new();
    let (said, code) = place.ask("full", "--check", &["optimizer_in_bwd=true", "gradient_accumulation_steps=2"]);
    assert!(code == Some(1) && said.contains("error: optimizer_in_bwd applies each gradient at once"), "{said}");
}

/// The tiny model's folder with a token for which there is no embedding.
fn model_without_an_embedding(place: &Place) -> String {
    let model = place.model(&json!({}));
    let path = place.path("model/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({"id": 384, "content": "<tool>", "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}));
    fs::write(path, tokenizer.to_string()).unwrap();
    model
}

#[test]
fn a_token_that_the_model_has_no_embedding_for_is_an_error() {
    let place = Place::new();
    let model = model_without_an_embedding(&place);
    let without = place.conversations("without.jsonl", &[("a", "b"), ("c", "d")]);
    contains(
        &place.sound(&[&model, &without]),
        &["warning: the tokenizer has 385 tokens and the model 384 embeddings"],
    );

    let lacks = "the token `<tool>` has id 384, and the model has 384 embeddings (ids 0 to 383)";
    let with = place.conversations("with.jsonl", &[("a", "b"), ("call <tool> now", "c")]);
    let said = place.unsound(&[&model, &with]);
    contains(&said, &["1 of 2 records cannot be used", &format!("with.jsonl:2: {lacks}")]);
    // What is cut off is no matter.
    let late = place.conversations("late.jsonl", &[("a", &format!("{} <tool>", "word ".repeat(50))), ("a", "b")]);
    place.sound(&[&model, &late, "tokenizer.max_seq_len=40"]);
    let file = with.strip_prefix("dataset.data_files=").unwrap();
    let value = format!("dataset_val={{_component_: chat, data_files: [{file}]}}");
    contains(&place.unsound(&[&model, &without, &value]), &[&format!("with.jsonl:2: {lacks}")]);
    let asked = format!("exact_match.data_file={file}");
    contains(&place.unsound(&[&model, &without, &asked]), &[&format!("with.jsonl:2: {lacks}")]);
    let text = place.write("text.jsonl", "{\"text\": \"one\"}\n{\"text\": \"<tool>\"}\n");
    let text = format!("dataset={{_component_: text, data_files: [{text}]}}");
    contains(&place.unsound(&[&model, &text]), &[&format!("text.jsonl:2: {lacks}")]);

    // Training does not begin.
    let output = place.output();
    let said = runs::fail("lora", &["--config", "configs/lora/tiny.yaml", &output, &model, &with]);
    contains(&said, &[&format!("with.jsonl:2: {lacks}")]);
    assert!(!place.path("out").exists());
    let folder = model.strip_prefix("checkpointer.").unwrap();
    let config = ["--config", "configs/generate/tiny.yaml"];
    let said = runs::fail("generate", &[&config[..], &[folder, "prompt='call <tool>'"]].concat());
    contains(&said, &[lacks]);
}

#[test]
fn a_question_that_cannot_be_asked_is_an_error() {
    let place = Place::new();
    let long = place.conversations("long.jsonl", &[("a", "b"), (&"word ".repeat(200), "c")]);
    let asked = long.replace("dataset.data_files", "exact_match.data_file");
    contains(
        &place.unsound(&[&asked]),
        &["long.jsonl:2: the prompt has ", "the model reads at most 256, answer included"],
    );
}
