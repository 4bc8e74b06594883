//! What is refused, what is advised then, and what is accepted: that runs.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::runs::{files, recipe, root, text};
use super::{planned, random_model, stand_in};

/// The tiny model made wide: 48 GiB of weights, all of them holes in a file. To read them is to run out of memory.
fn wide(folder: &Path) -> PathBuf {
    const LAYERS: usize = 4;
    let model = folder.join("model");
    fs::create_dir_all(&model).unwrap();
    for (name, bytes) in files(&root().join("recipes/tiny/model")) {
        fs::write(model.join(name), bytes).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(model.join("config.json")).unwrap()).unwrap();
    let (vocab, hidden, between, head) = (config["vocab_size"].as_u64().unwrap() as usize, 8192, 131_072, 64);
    for (key, value) in [
        ("hidden_size", hidden),
        ("intermediate_size", between),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", 2),
        ("num_key_value_heads", 1),
        ("head_dim", head),
    ] {
        config[key] = value.into();
    }
    config["tie_word_embeddings"] = true.into();
    fs::write(model.join("config.json"), config.to_string()).unwrap();

    let mut weights =
        vec![("model.embed_tokens".to_owned(), vec![vocab, hidden]), ("model.norm".to_owned(), vec![hidden])];
    for layer in 0..LAYERS {
        let parts = [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![2 * head, hidden]),
            ("self_attn.k_proj", vec![head, hidden]),
            ("self_attn.v_proj", vec![head, hidden]),
            ("self_attn.o_proj", vec![hidden, 2 * head]),
            ("mlp.gate_proj", vec![between, hidden]),
            ("mlp.up_proj", vec![between, hidden]),
            ("mlp.down_proj", vec![hidden, between]),
        ];
        weights.extend(parts.map(|(part, shape)| (format!("model.layers.{layer}.{part}"), shape)));
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in weights {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] });
        header.insert(format!("{name}.weight"), entry);
    }
    let header = Value::Object(header).to_string();
    let path = model.join("model.safetensors");
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    model
}

#[test]
fn a_run_that_cannot_fit_says_so_before_weights_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let (output, checkpoint) = (
        format!("output_dir={}", dir.display()),
        format!("checkpointer.checkpoint_dir={}", wide(folder.path()).display()),
    );
    for name in ["lora", "full"] {
        let config = format!("configs/{name}/tiny.yaml");
        let run = recipe(name, &["--config", &config, &output, &checkpoint]).env("TUNE_MEMORY", "8GiB").output();
        let run = run.unwrap();
        let error = text(&run.stderr);
        assert_eq!(run.status.code(), Some(1), "{error}");
        for part in
            ["error: this run needs ", "8192 MiB as TUNE_MEMORY says", "weights (48.", "even with", "dtype=bf16"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!dir.exists());
    }
}

#[test]
fn what_is_advised_makes_it_fit() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    let args = ["--config", "configs/full/tiny.yaml", &output, "max_steps_per_epoch=2"];
    let run = |memory: &str, advised: &[String]| {
        let advised = advised.iter().map(String::as_str);
        let args: Vec<&str> = args.into_iter().chain(advised).collect();
        recipe("full", &args).env("TUNE_MEMORY", memory).output().unwrap()
    };
    // Little enough that no setting suffices by itself; kernels, and so the plan, are those of this processor.
    let memory = 0.65 * planned("full", &args);
    let memory_is = format!("{}KiB", (memory * 1024.0) as u64);
    let error = text(&run(&memory_is, &[]).stderr);
    let (_, advice) = error.split_once("it fits with ").unwrap_or_else(|| panic!("{error}"));
    // What program, tokenizer and data take is not the same in every process, so what is advised must not just fit.
    let peak = advice.rsplit_once(" MiB)").and_then(|(before, _)| before.rsplit('(').next()?.parse::<f64>().ok());
    assert!(peak.is_some_and(|peak| peak < memory / 1.019), "{error}");
    let advised: Vec<String> = advice.split_whitespace().filter(|word| word.contains('=')).map(str::to_owned).collect();
    let advised: Vec<String> = advised.into_iter().filter(|word| !word.starts_with("TUNE_MEMORY")).collect();
    assert!(advised.len() > 2, "{error}");
    let run = run(&memory_is, &advised);
    assert!(run.status.success(), "{advised:?}: {}", text(&run.stderr));
}

/// What a run is told that does not fit, between the words that begin and end the advice.
fn advice(error: &str) -> &str {
    let advice = error.split_once("it fits with ").unwrap_or_else(|| panic!("{error}")).1;
    advice.split_once(". TUNE_MEMORY").unwrap().0
}

#[test]
fn each_single_change_that_is_advised_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().display());
    let args = ["--config", "configs/lora/tiny.yaml", &output, "max_steps_per_epoch=2", "epochs=1", "~exact_match"];
    // Kernels, and so the plan, are those of this processor.
    let memory = format!("{}KiB", (0.85 * 1024.0 * planned("lora", &args)) as u64);
    let run = |advised: &[&str]| {
        let args: Vec<&str> = args.iter().chain(advised).copied().collect();
        recipe("lora", &args).env("TUNE_MEMORY", &memory).output().unwrap()
    };
    let error = text(&run(&[]).stderr);
    let changes: Vec<&str> = advice(&error).split(", or with ").collect();
    assert!(changes.len() > 1 && changes[0].starts_with("enable_activation_checkpointing=true ("), "{error}");
    for change in changes {
        let overrides: Vec<&str> = change.split_whitespace().filter(|word| word.contains('=')).collect();
        let followed = run(&overrides);
        assert!(followed.status.success(), "{change}: {}", text(&followed.stderr));
    }
}

/// Where nothing else is enough, alone or together, the optimizer's state goes to a file.
#[test]
fn a_disk_is_advised_where_nothing_else_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("model");
    random_model::write(&dir, &json!({"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 6}));
    let keys = [
        format!("output_dir={}", folder.path().join("out").display()),
        format!("checkpointer.checkpoint_dir={}", dir.display()),
    ];
    let mut args = vec!["--config", "configs/full/tiny.yaml", &keys[0], &keys[1], "epochs=1", "max_steps_per_epoch=2"];
    args.extend(["dtype=bf16", "batch_size=1", "gradient_accumulation_steps=1", "clip_grad_norm=null"]);
    args.extend(["enable_activation_checkpointing=true", "optimizer_in_bwd=true"]);
    let here = format!("optimizer.offload_dir={}", folder.path().display());
    let (without, with) = (planned("full", &args), planned("full", &[&args[..], &[&here]].concat()));
    assert!(with < without - 60.0, "{with} MiB instead of {without}");
    let memory = format!("{}KiB", (512.0 * (without + with)) as u64);
    let run =
        |extra: &[&str]| recipe("full", &[&args[..], extra].concat()).env("TUNE_MEMORY", &memory).output().unwrap();
    let error = text(&run(&[]).stderr);
    assert!(advice(&error).starts_with("optimizer.offload_dir=FOLDER ("), "{error}");
    assert!(!advice(&error).contains("activation_offload_dir"), "{error}");
    let plan = text(&run(&["--plan"]).stdout);
    assert!(plan.contains("Each of these changes is enough:\n  optimizer.offload_dir=FOLDER"), "{plan}");
    let followed = run(&[&here]);
    assert!(followed.status.success(), "{}", text(&followed.stderr));
}

#[cfg(target_os = "linux")]
#[test]
fn a_limit_of_the_process_counts() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("out");
    let output = format!("output_dir={}", dir.display());
    let checkpoint = format!("checkpointer.checkpoint_dir={}", wide(folder.path()).display());
    for (limit, words) in [("-v", "address space (`ulimit -v`)"), ("-d", "data (`ulimit -d`)")] {
        let program = recipe("lora", &[]).get_program().to_owned();
        let run = std::process::Command::new("bash")
            .args(["-c", &format!("ulimit {limit} 4000000; exec \"$@\""), "bash"])
            .arg(program)
            .args(["--config", "configs/lora/tiny.yaml", &output, &checkpoint])
            .env_remove("TUNE_MEMORY")
            .current_dir(root())
            .output()
            .unwrap();
        let error = text(&run.stderr);
        assert!(error.contains("error: this run needs ") && error.contains(words), "{error}");
        assert!(!dir.exists());
    }
}

/// A run under a limit of addresses (in kB) either does not begin, with the reason, or ends well.
#[cfg(target_os = "linux")]
fn under_a_limit(name: &str, limit: u64, overrides: &[&str]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().join("out").display());
    let config = format!("configs/{name}/tiny.yaml");
    let run = std::process::Command::new("bash")
        .args(["-c", &format!("ulimit -v {limit}; exec \"$@\""), "bash"])
        .arg(recipe(name, &[]).get_program())
        .args(["--config", &config, &output, "epochs=1", "max_steps_per_epoch=3"])
        .args(overrides)
        .env_remove("TUNE_MEMORY")
        .current_dir(root())
        .output()
        .unwrap();
    match run.status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(text(&run.stderr)),
        _ => panic!("{name} {overrides:?} with ulimit -v {limit}: {}: {}", run.status, text(&run.stderr)),
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_accepted_under_a_limit_of_addresses_runs() {
    for (name, overrides) in
        [("lora", &["save_adapter_weights_only=false"][..]), ("full", &[]), ("full", &["dtype=bf16"])]
    {
        let (mut refused, mut accepted) = (0, 0);
        for limit in (58_000..250_000).step_by(16_000) {
            match under_a_limit(name, limit, overrides) {
                Ok(()) => accepted += 1,
                Err(error) => {
                    assert_eq!(accepted, 0, "{name} {overrides:?} runs with less than {limit} kB");
                    assert!(error.contains("this run needs ") && error.contains("(`ulimit -v`)"), "{limit}: {error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0 && accepted > 4, "{name} {overrides:?}: {refused} refused, {accepted} accepted");
    }
}

/// What each of several processes takes is said without starting any: a share of the weights and of the state, and what is gathered.
#[test]
fn a_plan_of_several_processes_needs_only_one() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().join("out").display());
    let plan = |name: &str, option: &str, processes: &str, more: &[&str]| {
        let config = format!("configs/{name}/tiny.yaml");
        let args = [&[option, "--world-size", processes, "--config", &config, &output], more].concat();
        text(&recipe(name, &args).output().unwrap().stdout)
    };
    let part = |said: &str, name: &str| -> f64 {
        let line =
            said.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{name}: {said}"));
        line.trim_start().strip_prefix(name).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    };
    for (recipe, parts) in [
        ("full", &["weights", "optimizer state"][..]),
        ("ppo", &["weights", "value and reward models", "optimizer state"]),
    ] {
        let (one, four) = (plan(recipe, "--plan", "1", &[]), plan(recipe, "--plan", "4", &[]));
        assert!(four.contains("What each of 4 processes takes") && !one.contains("gathered weights"), "{four}{one}");
        for name in parts {
            let share = part(&four, name) / part(&one, name);
            assert!((0.24..0.27).contains(&share), "{name}: {share}\n{one}{four}");
        }
        assert!(part(&four, "gathered weights") > 0.0);
    }
    // Each has as many micro-batches of an update.
    let said = plan("ppo", "--plan", "4", &["ppo_batch_size=16"]);
    assert!(said.contains("4 processes") && said.contains("a multiple of 64"), "{said}");
    let said = plan("full", "--check", "4", &[]);
    assert!(said.contains("at most in each of 4 processes"), "{said}");
}

#[test]
fn a_variable_that_cannot_be_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let output = format!("output_dir={}", folder.path().join("out").display());
    let args = ["--config", "configs/lora/tiny.yaml", &output];
    for (name, value, expected) in [
        ("TUNE_MEMORY", "much", "it can be a size such as 16GiB"),
        ("TUNE_WAIT_FOR_ROOM", "a while", "a number of seconds was expected"),
        ("TUNE_ISA", "fast", "it can be portable, avx2"),
        // Rayon would begin to start as many as it can count.
        ("RAYON_NUM_THREADS", "100000", "a number of threads from 1 to "),
        ("RAYON_NUM_THREADS", "all", "a number of threads from 1 to "),
    ] {
        for before in [&[][..], &["--check"]] {
            let run = recipe("lora", &[before, &args].concat()).env(name, value).output().unwrap();
            let said = text(&run.stdout) + &text(&run.stderr);
            assert!(said.contains(&format!("error: {name}={value}: {expected}")), "{before:?}: {said}");
            assert_eq!(run.status.code(), Some(1), "{said}");
        }
    }
    assert!(!folder.path().join("out").exists());
}

/// A run on a card is planned, and refused before it has begun where the card has not enough.
#[test]
fn a_card_that_is_too_small() {
    let Some(stand_in) = stand_in::folder() else { return };
    let folder = tempfile::tempdir().unwrap();
    let output_dir = format!("output_dir={}", folder.path().join("out").display());
    let args = ["--config", "configs/full/tiny.yaml", "device=cuda", "dtype=bf16", &output_dir];
    let ask = |extra: &[&str], environment: &[(&str, &str)]| {
        let mut run = recipe("full", &[&args[..], extra].concat());
        stand_in::environment(&mut run, stand_in);
        let output = run.envs(environment.iter().copied()).output().unwrap();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, said) = ask(&["--plan"], &[]);
    assert_eq!(code, Some(0), "{said}");
    for part in ["Memory on Stand-in (cuda:0)", "weights", "gradients", "optimizer state", "free on the card"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    // Without a card, or for another one.
    let (code, said) = ask(&["--plan"], &[("LD_LIBRARY_PATH", "/nowhere"), ("TUNE_CUDA_MEMORY", "24GiB")]);
    assert!(code == Some(0) && said.contains("24.0 GiB as TUNE_CUDA_MEMORY says"), "{said}");
    let (code, said) = ask(&[], &[("STAND_IN_MIB", "100")]);
    assert_eq!(code, Some(1), "{said}");
    for part in ["of memory of the card", "free on the card", "a card with more memory", "TUNE_CUDA_MEMORY=SIZE"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    assert!(!folder.path().join("out").exists(), "something was written");
}
