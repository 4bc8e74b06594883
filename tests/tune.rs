//! The `tune` command, as a user types it. `UPDATE=1` writes the snapshots anew.

#![allow(clippy::unwrap_used)]

#[path = "common/hub_server.rs"]
mod hub_server;
#[path = "common/stand_in.rs"]
mod stand_in;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hub_server::{Content, Server};

/// The workspace's folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// `tune`, to be started in `folder`, where its caches are, too.
fn tune(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
    command.args(args).current_dir(folder).env("XDG_CACHE_HOME", folder.join("cache"));
    for name in ["HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn fail(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    // What cargo says while another test has it build something is no part of it.
    let of_cargo =
        |line: &str| ["Blocking ", "Compiling ", "Finished "].iter().any(|word| line.trim_start().starts_with(word));
    let error: String = text(&stderr).split_inclusive('\n').filter(|line| !of_cargo(line)).collect();
    assert!(!status.success() && !error.contains("panicked at"), "{command:?}: {error}");
    (status.code(), error)
}

fn snapshot(name: &str, found: &str) {
    let path = root().join(format!("tests/snapshots/tune_{name}.txt"));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == found, "{} is otherwise:\n{found}", path.display());
}

#[test]
fn what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    for (name, args) in [
        ("help", &["--help"] as &[&str]),
        ("help_run", &["run", "--help"]),
        ("help_check", &["check", "--help"]),
        ("help_plan", &["plan", "--help"]),
        ("help_cp", &["cp", "--help"]),
        ("help_download", &["download", "--help"]),
        ("help_tokenize", &["tokenize", "--help"]),
        ("help_merge", &["merge", "--help"]),
        ("help_export", &["export", "--help"]),
        ("help_quantize", &["quantize", "--help"]),
        ("help_verify", &["verify", "--help"]),
        ("help_chat", &["chat", "--help"]),
        ("help_eval", &["eval", "--help"]),
        ("help_lint", &["lint", "--help"]),
        ("explain", &["explain", "e20"]),
    ] {
        snapshot(name, &succeed(&mut tune(folder.path(), args)));
    }
    let script = succeed(&mut tune(folder.path(), &["completions", "bash"]));
    assert!(script.contains("validate") && script.contains("--output-dir"), "{script}");
}

/// Before anything is read: what computes would start as many threads as it can count.
#[test]
fn a_number_of_threads_is_one_that_a_machine_can_start() {
    let folder = tempfile::tempdir().unwrap();
    for args in [&["merge", "adapter", "-o", "out"][..], &["tokenize", "model", "a.txt", "-o", "a.bin"]] {
        let (code, said) = fail(tune(folder.path(), args).env("RAYON_NUM_THREADS", "100000"));
        assert!(said.starts_with("error: RAYON_NUM_THREADS=100000: a number of threads from 1 to "), "{said}");
        assert_eq!(code, Some(1));
    }
    // Others need none.
    succeed(tune(folder.path(), &["ls"]).env("RAYON_NUM_THREADS", "100000"));
}

#[test]
fn mistakes_are_told_with_what_is_nearest() {
    let folder = tempfile::tempdir().unwrap();
    let mut said = String::new();
    succeed(&mut tune(folder.path(), &["cp", "lora/tiny", "mine.yaml"]));
    for args in [
        &["run", "lroa", "--config", "lora/tiny"] as &[&str],
        &["run", "lora", "--config", "lora/smolm2"],
        &["run", "lora", "--config", "tiny"],
        &["run", "my/lora.rs", "--config", "lora/tiny"],
        &["cat", "lora/tinny"],
        &["cp", "lora", "my.yaml"],
        &["validate", "lora", "--config", "mine.yaml", "epoch=2"],
        &["check", "generate"],
        &["plan", "generate/tiny"],
        &["explain", "E9999"],
        &["download", "a/b/c"],
        &["run", "mine.yaml", "epochs=2"],
        &["run", "lora/tiny"],
        &["run", "no/such.yaml"],
        &["run", "lora_finetune_single_device", "--config", "mine.yaml", "epochs=2"],
        &["run", "--nproc_per_node", "4", "lora_finetune_distributed", "--config", "mine.yaml"],
        &["run", "lora", "--nproc-per-node=4", "--config", "mine.yaml"],
        &["run", "--config", "mine.yaml", "lora"],
        &["run", "lora_dpo_single_device", "--config", "mine.yaml"],
        &["check", "full_finetune_distributed", "--config", "mine.yaml"],
    ] {
        let (code, error) = fail(&mut tune(folder.path(), args));
        said += &format!("$ tune {}\n{error}[{}]\n\n", args.join(" "), code.unwrap());
    }
    snapshot("mistakes", &said);
    // Where nothing is near, what there is.
    let (_, error) = fail(&mut tune(folder.path(), &["cat", "xyz"]));
    assert!(
        error.contains(
            "there are distill, dpo, eleuther_eval, full, generate, grpo, kto, lora, ppo, pretrain, qat, quantize, \
             reward, "
        ),
        "{error}"
    );
    for command in ["run", "check"] {
        let (_, error) = fail(&mut tune(folder.path(), &[command, "lora"]));
        assert!(error.contains("which config?") && error.contains("\n  lora/tiny  "), "{error}");
        assert!(error.contains(&format!("Such as `tune {command} lora --config lora/tiny`")), "{error}");
    }
}

/// What `tune` brings along is what lies in the folders.
#[test]
fn every_recipe_and_config_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    let list = succeed(&mut tune(folder.path(), &["ls"]));
    let files = |path: PathBuf, extension: &str| {
        let entries = fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect::<Vec<_>>()
    };
    let stem = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let mut count = 0;
    for recipe in files(root().join("recipes/src/bin"), "rs") {
        let name = stem(&recipe);
        let configs = files(root().join("configs").join(&name), "yaml");
        let configs = configs.into_iter().map(|path| (format!("{name}/{}", stem(&path)), path));
        for (name, path) in std::iter::once((name.clone(), recipe)).chain(configs) {
            let mut words = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            // With something about it.
            assert!(
                words.any(|words| words.len() > 2 && words[0] == name),
                "add `{name}` to recipes/src/bin/tune/shipped.rs"
            );
            assert_eq!(succeed(&mut tune(folder.path(), &["cat", &name])), fs::read_to_string(path).unwrap());
            count += 1;
        }
    }
    assert!(count >= 10, "{count}");
}

#[test]
fn a_config_is_validated_by_its_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let valid = succeed(&mut tune(folder, &["validate", "lora/tiny"]));
    assert!(valid.ends_with("configs/lora/tiny.yaml is valid\n"), "{valid}");
    succeed(&mut tune(folder, &["validate", "full", "--config=full/tiny", "epochs=3"]));
    // Copies tell their recipe by their schema.
    succeed(&mut tune(folder, &["cp", "generate/tiny", "mine/ask.yaml"]));
    assert_eq!(succeed(&mut tune(folder, &["validate", "mine/ask.yaml"])), "mine/ask.yaml is valid\n");
    // The exit code is the recipe's, and so is the message.
    let (code, error) = fail(&mut tune(folder, &["validate", "mine/ask.yaml", "temperatur=1"]));
    assert_eq!(code, Some(2));
    assert!(error.contains("did you mean `temperature`?"), "{error}");
    fs::write(folder.join("plain.yaml"), "prompt: x\n").unwrap();
    let (_, error) = fail(&mut tune(folder, &["validate", "plain.yaml"]));
    assert!(error.contains("`tune validate RECIPE --config plain.yaml`"), "{error}");
}

/// A path that begins with `~` begins with a home folder, or is refused: there is never a folder of this name.
#[test]
fn a_tilde_is_a_home_folder_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = |command: &str, home: Option<&Path>| {
        let paths = ["output_dir=~/my runs", "~exact_match", "epochs=1", "max_steps_per_epoch=1"];
        let mut tune = tune(folder, &[&[command, "lora", "--config", "lora/tiny"], &paths[..]].concat());
        let command = tune.current_dir(root());
        match home {
            Some(home) => command.env("HOME", home),
            None => command.env_remove("HOME"),
        };
        tune
    };
    succeed(&mut run("run", Some(folder)));
    let config = fs::read_to_string(folder.join("my runs/config.yaml")).unwrap();
    assert!(config.starts_with(&format!("output_dir: \"{}/my runs\"\n", folder.display())), "{config}");
    for command in ["run", "validate", "check"] {
        let (code, error) = fail(&mut run(command, None));
        assert_eq!(code, Some(2));
        assert!(error.contains("`~/my runs` leads to no home folder: HOME is not set"), "{error}");
    }
    assert!(!root().join("~").exists());
}

/// What another component has no key for is told by each command.
#[test]
fn keys_that_are_left_out_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(
        folder.join("mine.yaml"),
        "base: out\noutput_dir: ${base}/x\ncheckpointer: {checkpoint_dir: recipes/tiny/model}\n\
         dataset: {_component_: chat, data_files: recipes/tiny/data/secret_code.jsonl, split: 'train[:4]', \
         conversation_column: messages}\n",
    )
    .unwrap();
    let config = folder.join("mine.yaml");
    for command in ["validate", "check"] {
        let args = [command, "lora", "--config", config.to_str().unwrap(), "dataset=text", "dataset.column=text"];
        let output = tune(folder, &args).current_dir(root()).output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        let warning = "warning: the key `conversation_column` of `chat` is left out: `text` has no such key";
        assert!(said.contains(warning), "{said}");
    }
    let args = ["run", "lora", "--config", config.to_str().unwrap(), "dataset=text", "--print-config"];
    let shown = succeed(tune(folder, &args).current_dir(root()));
    assert!(shown.contains("data_files: [recipes/tiny/data/secret_code.jsonl]"), "{shown}");
    assert!(shown.contains("split: \"train[:4]\"") && shown.contains("output_dir: out/x"), "{shown}");
}

/// Folders and names where others are expected.
#[test]
fn what_is_given_in_the_wrong_place_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let adapter = folder.join("adapter");
    fs::create_dir(&adapter).unwrap();
    fs::write(adapter.join("adapter_config.json"), r#"{"base_model_name_or_path": "some-org/base"}"#).unwrap();
    let ask = |more: &[&str]| fail(&mut tune(folder, &[&["run", "generate"], more, &["prompt=Say: a # b"]].concat())).1;
    let error = ask(&["checkpoint_dir=adapter"]);
    assert!(
        error.contains("it is an adapter: set checkpoint_dir to its base, hf://some-org/base, and adapter_dir="),
        "{error}"
    );
    let error = ask(&["checkpoint_dir=some-org/model"]);
    assert!(error.contains("on the Hugging Face hub is written hf://some-org/model"), "{error}");
    let tiny = format!("checkpoint_dir={}", root().join("recipes/tiny/model").display());
    let error = ask(&[&tiny, "adapter_dir=some-org/adapter"]);
    assert!(error.contains("on the Hugging Face hub is written hf://some-org/adapter"), "{error}");
    // Whatever there is, there are not that many.
    let error = ask(&[&tiny, "device=cuda:99"]);
    assert!(error.contains("NVIDIA driver") || error.contains("there is no card 99"), "{error}");
}

/// From any folder, with a config alone, and with another; what it says is tested in `preflight.rs`.
#[test]
fn a_run_is_checked_by_its_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Paths in shipped configs are relative to the checkout.
    let said = succeed(tune(folder, &["check", "lora/tiny", "epochs=2"]).current_dir(root()));
    assert!(said.contains("\nsteps       188 in 2 epochs of 94\n"), "{said}");
    let output = tune(folder, &["check", "full", "--config", "full/tiny"]).output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.code() == Some(1) && said.contains("recipes/tiny/model: does not exist"), "{said}");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "something was written");
}

#[test]
fn a_copy_has_the_paths_of_where_it_lands() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let said = succeed(&mut tune(folder, &["cp", "lora", "my/own.rs"]));
    assert!(said.ends_with("start it with\n  tune run my/own.rs --config my/tiny.yaml\n"), "{said}");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let source = read("my/own.rs");
    assert!(source.contains("configs = [\"tiny.yaml\", \"smollm2_135m.yaml\"])]"), "{source}");
    assert!(source.contains("//!     tune run my/own.rs --config my/tiny.yaml epochs=2\n"), "{source}");
    let yaml = read("my/tiny.yaml");
    assert!(yaml.starts_with("# yaml-language-server: $schema=lora.schema.json\n"), "{yaml}");
    let model = format!("checkpoint_dir: {}\n", root().join("recipes/tiny/model").display());
    assert!(yaml.contains(&model), "{yaml}");
    let yaml = read("my/smollm2_135m.yaml");
    assert!(yaml.contains("#   tune run my/own.rs --config my/smollm2_135m.yaml \\\n"), "{yaml}");
    assert_eq!(read("my/lora.schema.json"), fs::read_to_string(root().join("configs/lora/schema.json")).unwrap());

    fs::write(folder.join("my/tiny.yaml"), "mine").unwrap();
    let (_, error) = fail(&mut tune(folder, &["cp", "lora", "my/"]));
    assert!(error.contains("my/smollm2_135m.yaml, my/tiny.yaml exist; nothing was written"), "{error}");
    assert!(!folder.join("my/lora.rs").exists() && read("my/tiny.yaml") == "mine");
    succeed(&mut tune(folder, &["cp", "--force", "lora", "my/"]));
    assert!(folder.join("my/lora.rs").exists() && read("my/tiny.yaml") != "mine");
}

#[test]
fn a_recipe_runs_on_what_the_hub_has_and_then_without_it() {
    let files = |folder: &str| -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(root().join("recipes/tiny").join(folder)).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
    };
    let mut model = files("model");
    model.insert("pytorch_model.bin".to_owned(), b"not for us".to_vec());
    let data = files("data").into_iter().map(|(name, bytes)| (format!("data/{name}"), bytes)).collect();
    let repos = [("models/org/tiny".to_owned(), model), ("datasets/org/code".to_owned(), data)];
    let server = Server::start(Content { repos: repos.into(), ..Content::default() });
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = |output: &str| {
        let output = format!("output_dir={output}");
        let mut command = tune(
            folder,
            &[
                "run",
                "lora",
                "--config",
                "lora/tiny",
                "checkpointer.checkpoint_dir=hf://org/tiny",
                "dataset.data_files=hf://org/code/data/secret_code.jsonl",
                "~exact_match",
                "epochs=1",
                "max_steps_per_epoch=2",
                &output,
            ],
        );
        command.env("HF_ENDPOINT", &server.url).env("HF_HOME", folder.join("hf"));
        command
    };
    let output = run("out").output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("downloading model.safetensors (3.2 MiB)"), "{said}");
    let asked: Vec<_> = server.requests().into_iter().map(|request| request.path).collect();
    assert!(!asked.iter().any(|path| path.contains("pytorch_model") || path.contains("held_out")), "{asked:?}");
    let adapter = fs::read_to_string(folder.join("out/epoch_0_step_2/adapter_config.json")).unwrap();
    assert!(adapter.contains("\"base_model_name_or_path\": \"org/tiny\""), "{adapter}");

    let said = text(&run("out2").env("HF_HUB_OFFLINE", "1").output().unwrap().stderr);
    assert!(!said.contains("downloading") && server.requests().is_empty(), "{said}");
    let weights =
        |output: &str| fs::read(folder.join(output).join("epoch_0_step_2/adapter_model.safetensors")).unwrap();
    assert_eq!(weights("out"), weights("out2"));

    let mut command = tune(folder, &["download", "org/tiny", "--include", "*.json", "--output-dir", "model"]);
    succeed(command.env("HF_ENDPOINT", &server.url));
    let mut found: Vec<_> = fs::read_dir(folder.join("model")).unwrap().map(|e| e.unwrap().file_name()).collect();
    found.sort();
    assert_eq!(found, ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]);
    let mut command = tune(folder, &["download", "org/code", "--repo-type", "dataset", "--endpoint", &server.url]);
    let place = PathBuf::from(succeed(&mut command).trim_end());
    assert!(place.join("data/held_out.jsonl").exists() && place.starts_with(folder.join("cache/huggingface/hub")));
}

#[test]
#[ignore = "builds tune-core anew"]
fn a_file_of_ones_own_is_built_once_and_again_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(&mut tune(folder, &["cp", "lora", "my/lora.rs"]));
    let run = |more: &str| {
        let args = [
            "run",
            "my/lora.rs",
            "--config",
            "my/tiny.yaml",
            "epochs=1",
            "max_steps_per_epoch=1",
            "~exact_match",
            more,
        ];
        tune(folder, &args)
    };
    succeed(&mut run("output_dir=out"));
    assert!(folder.join("out/epoch_0_step_1/adapter_model.safetensors").exists());
    // Nothing has changed: cargo is not even started.
    succeed(run("output_dir=out").env("CARGO", "/there/is/no/cargo"));
    let source = fs::read_to_string(folder.join("my/lora.rs")).unwrap();
    fs::write(folder.join("my/lora.rs"), &source).unwrap();
    let (_, error) = fail(run("output_dir=out").env("CARGO", "/there/is/no/cargo"));
    assert!(error.contains("cannot start /there/is/no/cargo"), "{error}");

    // A wrong config does not compile, and the message is cargo's.
    let yaml = fs::read_to_string(folder.join("my/tiny.yaml")).unwrap();
    fs::write(folder.join("my/tiny.yaml"), yaml.replace("lora_rank:", "lora_rnak:")).unwrap();
    let (_, error) = fail(&mut run("output_dir=out"));
    assert!(error.contains("unknown key `model.lora_rnak`") && error.contains("did you mean `lora_rank`?"), "{error}");
    fs::write(folder.join("my/tiny.yaml"), yaml).unwrap();

    // So is what rustc says of the recipe, and where.
    fs::write(folder.join("my/lora.rs"), source.replace("recipe.train()", "recipe.trian()")).unwrap();
    let (code, error) = fail(&mut run("output_dir=out"));
    assert!(error.contains("no method named `trian`") && error.contains("my/lora.rs:"), "{error}");
    assert_eq!(code, Some(1));
}

/// What is a matter of the machine, in words that are the same everywhere.
fn without_sizes(said: &str, folder: &Path) -> String {
    let mut lines = Vec::new();
    for line in said.replace(&folder.display().to_string(), "FOLDER").lines() {
        let (name, rest) = line.split_at(line.len().min(12));
        lines.push(match name.trim() {
            "processor" => format!("{name}PROCESSOR"),
            "memory" => format!("{name}MEMORY"),
            _ if rest.starts_with("it has ") => format!("{name}FEATURES"),
            _ => match rest.split_once(" free for ") {
                Some((_, what)) => format!("{name}SIZE free for {what}"),
                None => line.to_owned(),
            },
        });
    }
    lines.join("\n") + "\n"
}

#[test]
fn doctor_on_a_machine_without_a_driver() {
    if Path::new("/usr/lib/x86_64-linux-gnu/libcuda.so.1").exists() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let said =
        succeed(tune(&folder, &["doctor"]).env("HF_HUB_CACHE", folder.join("hub")).env("LD_LIBRARY_PATH", "/nowhere"));
    // What is said in a container alone.
    let said = said.replace("; in a container, start it with --gpus all", "");
    snapshot("doctor", &without_sizes(&said, &folder));
}

/// With two cards, one of which is too old, and where a library is missing.
#[test]
fn doctor_with_cards() {
    let Some(stand_in) = stand_in::folder() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let ask = |environment: &[(&str, &str)]| {
        let mut doctor = tune(&folder, &["doctor"]);
        doctor.env("HF_HUB_CACHE", folder.join("hub"));
        stand_in::environment(&mut doctor, stand_in);
        let said = succeed(doctor.envs(environment.iter().copied()));
        without_sizes(&said, &folder).replace(&stand_in.display().to_string(), "STAND-IN")
    };
    let products = folder.join("products");
    fs::create_dir(&products).unwrap();
    let library = "libcublasLt.so.13";
    std::os::unix::fs::symlink(stand_in.join(library), products.join(library)).unwrap();
    let products = products.to_str().unwrap();
    let too_old = [("STAND_IN_CARDS", "2"), ("STAND_IN_MAJOR", "7"), ("STAND_IN_MINOR", "5")];
    let all = [
        ask(&[("STAND_IN_MIB_OF_OTHERS", "1000")]),
        ask(&[&too_old[..], &[("TUNE_CUDA_LIBRARIES", products)]].concat()),
        ask(&[("TUNE_CUDA_LIBRARIES", "/nowhere")]),
        ask(&[("STAND_IN_VERSION", "12040")]),
    ];
    snapshot("doctor_cards", &all.join("\n----\n"));
}

/// What starts several processes is looked for before anything is built.
#[test]
fn without_mpirun_nothing_is_built() {
    let folder = tempfile::tempdir().unwrap();
    let mut several = tune(folder.path(), &["run", "--nproc-per-node", "2", "lora", "--config", "lora/tiny"]);
    let (code, error) = fail(several.env("PATH", folder.path()));
    assert!(code == Some(1) && error.contains("`mpirun`, which is not installed: on Debian and Ubuntu"), "{error}");
}

/// A file of data that stands where a recipe or a config does is no Rust to compile.
#[test]
fn what_is_no_recipe_is_not_compiled() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("chats.jsonl"), "{}\n").unwrap();
    for command in ["run", "convert", "validate", "check"] {
        let (code, error) = fail(&mut tune(folder.path(), &[command, "./chats.jsonl"]));
        assert!(
            code == Some(1) && error.contains("is neither a recipe, which is a Rust file (NAME.rs)"),
            "{command}: {error}"
        );
    }
    // `lint` says why a file cannot be read.
    let (_, error) = fail(&mut tune(folder.path(), &["lint", "nosuch.yaml"]));
    assert!(error.contains("cannot read nosuch.yaml: No such file"), "{error}");
}
