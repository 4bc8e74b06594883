//! Configs that only read a model: they generate, evaluate or quantize.

use std::fs;

use tune_core::config::recipe_of_torchtune;

use super::runs::{fail, succeed, text};
use super::{Shipped, file, group, resolved, shipped};

/// What is asked, of which model, and how freely it answers; and they do generate.
#[test]
fn what_generation_configs_say_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<Shipped> = shipped().into_iter().filter(|config| group(config) == "generation").collect();
    assert_eq!(all.len(), 5);
    for config in &all {
        let path = file(folder.path(), config);
        let lines = resolved("generate", &path);
        let has = |key: &str| lines.iter().any(|line| line.starts_with(key));
        let asked = ["Tell me a joke.", "Tell a joke.", "What is the capital of France?"];
        let has_prompt =
            lines.iter().any(|line| line.starts_with("prompt: ") && asked.iter().any(|text| line.contains(text)));
        assert!(has("checkpoint_dir: /tmp/") && has_prompt, "{lines:#?}");
        let converted = text(&succeed("generate", &["--config", &path, "--convert"]).stdout);
        let keys = converted.lines().map(|line| line.split('#').next().unwrap_or_default());
        assert!(
            !keys.into_iter().any(|line| line.contains("torchtune.") || line.contains("checkpointer")),
            "{converted}"
        );
        let again = folder.path().join("converted.yaml");
        fs::write(&again, &converted).unwrap();
        assert_eq!(resolved("generate", again.to_str().unwrap()), lines, "{converted}");
        let ours = ["checkpoint_dir=recipes/tiny/model", "device=cpu", "max_new_tokens=4", "top_k=20"];
        succeed("generate", &[&["--config", &path][..], &ours].concat());
    }
    let config = all.iter().find(|config| config.name == "llama2/generation_v2.yaml").unwrap();
    let lines = resolved("generate", &file(folder.path(), config));
    for expected in [
        "checkpoint_dir: /tmp/Llama-2-7b-chat-hf",
        "prompt: What is the capital of France?",
        "system_prompt: You are a helpful and creative AI assistant.",
        "max_new_tokens: 200",
        "temperature: 0.6",
        "top_k: 300",
    ] {
        assert!(lines.iter().any(|line| line.replace('"', "") == expected), "{expected}: {lines:#?}");
    }
    let asked = Shipped {
        name: "image.yaml".to_owned(),
        theirs: config.theirs.clone(),
        ours: "generate",
        yaml: config.yaml.replace("user: What", "user:\n    image: a.png\n    text: What"),
    };
    let said = fail("generate", &["--config", &file(folder.path(), &asked), "--print-config"]);
    assert!(said.contains("a prompt is text here") && said.contains("image"), "{said}");
}

/// Which model is measured, on what and how; what is not there is told by its name, and where it is written.
#[test]
fn what_evaluation_configs_say_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let all: Vec<Shipped> = shipped().into_iter().filter(|config| group(config) == "evaluation").collect();
    assert_eq!(all.len(), 9);
    for config in &all {
        let path = file(folder.path(), config);
        assert_eq!(recipe_of_torchtune(&config.yaml), Some("eleuther_eval"));
        let lines = resolved("eleuther_eval", &path);
        let has = |key: &str| lines.iter().any(|line| line.replace('"', "").starts_with(key));
        for expected in [
            "checkpoint_dir: /tmp/",
            "tasks: [truthfulqa_mc2]",
            "max_seq_length: 4096",
            "batch_size: 8",
            "seed: 1234",
            "dtype: bf16",
            "output_dir: ./",
            // There, nothing is put in front of an item.
            "add_bos_token: false",
        ] {
            assert!(has(expected), "{}: {expected}: {lines:#?}", config.name);
        }
        let converted = text(&succeed("eleuther_eval", &["--config", &path, "--convert"]).stdout);
        let mut keys = converted.lines().map(|line| line.split('#').next().unwrap_or_default());
        assert!(!keys.any(|line| line.contains("torchtune.") || line.contains("checkpointer")), "{converted}");
        let again = folder.path().join("converted.yaml");
        fs::write(&again, &converted).unwrap();
        assert_eq!(resolved("eleuther_eval", again.to_str().unwrap()), lines, "{converted}");
        // Before anything is loaded: here, there is no such checkpoint.
        let program = format!("lm_eval={}", env!("CARGO_BIN_EXE_tune"));
        let server = format!("server={}", env!("CARGO_BIN_EXE_tune"));
        let args = ["--config", &path, &program, &server, "checkpointer.checkpoint_dir=/no/such", "device=cpu"];
        let said = fail("eleuther_eval", &args);
        assert!(said.contains("/no/such") && said.contains("does not exist"), "{said}");
    }
    let config = all.iter().find(|config| config.name == "eleuther_evaluation.yaml").unwrap();
    let path = file(folder.path(), config);
    let quantizer = "torchtune.training.quantization.Int8DynActInt4Weight";
    for (overridden, missing, instead) in [
        (
            format!("quantizer={{_component_: {quantizer}Quantizer, groupsize: 256}}"),
            "weights are not quantized while they are read",
            "tune quantize",
        ),
        (
            format!("quantizer={{_component_: {quantizer}QATQuantizer}}"),
            "weights are not quantized while they are read",
            "tune quantize",
        ),
        (
            "checkpointer.checkpoint_files=[llama-8da4w.pt]".to_owned(),
            "torchtune's own files (.pt), quantized ones among them, are not read",
            "tune quantize",
        ),
        (
            "checkpointer.adapter_checkpoint=adapter_0.pt".to_owned(),
            "an adapter is read from a folder in PEFT's form",
            "adapter_dir",
        ),
        ("include_default=false".to_owned(), "the harness always knows the tasks that it brings along", "include_path"),
    ] {
        let said = fail("eleuther_eval", &["--config", &path, &overridden, "--print-config"]);
        assert!(said.contains("error[E0030]") && said.contains(missing) && said.contains(instead), "{said}");
    }
    // Another recipe says which one it is for.
    let said = fail("lora", &["--config", &path, "--print-config"]);
    assert!(said.contains("evaluation with EleutherAI's harness") && said.contains("start `eleuther_eval`"), "{said}");
    // A quantizer is told of by what generates, too.
    let asked = shipped().into_iter().find(|config| config.name == "llama2/generation_v2.yaml").unwrap();
    let quantizer = format!("quantizer={{_component_: {quantizer}Quantizer}}");
    let said = fail("generate", &["--config", &file(folder.path(), &asked), &quantizer, "--print-config"]);
    assert!(said.contains("weights are not quantized while they are read"), "{said}");
}

/// Which model becomes which file; quantizers of torchao become the nearest form with a word on what is different, or are told.
#[test]
fn what_the_config_of_quantization_says_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let config = shipped().into_iter().find(|config| config.theirs == "quantize").unwrap();
    assert_eq!(recipe_of_torchtune(&config.yaml), Some("quantize"));
    let path = file(folder.path(), &config);
    let lines = resolved("quantize", &path);
    for expected in [
        "checkpoint_dir: /tmp/Llama-2-7b-hf",
        "  _component_: gguf",
        "  format: q4_0",
        "importance: null",
        "output_dir: /tmp/torchtune/llama2_7B/quantized",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:#?}");
    }
    let validated = succeed("quantize", &["--config", &path, "--validate"]);
    let said = text(&validated.stdout) + &text(&validated.stderr);
    for expected in [
        "`torchtune.training.quantization.Int8DynActInt4WeightQuantizer` is taken as `gguf`",
        "what layers are given is not rounded",
        "a GGUF file has a scale for each 32 numbers, and says how they are laid out",
        "weights are quantized on the processor",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let converted = text(&succeed("quantize", &["--config", &path, "--convert"]).stdout);
    let mut keys = converted.lines().map(|line| line.split('#').next().unwrap_or_default());
    assert!(!keys.any(|line| line.contains("torchtune.training") || line.contains("checkpointer")), "{converted}");
    let again = folder.path().join("converted.yaml");
    fs::write(&again, &converted).unwrap();
    assert_eq!(resolved("quantize", again.to_str().unwrap()), lines, "{converted}");

    // Each quantizer of its, before and after training for it.
    let of = "torchtune.training.quantization.";
    for (theirs, format) in [
        ("Int8DynActInt4WeightQATQuantizer", "q4_0"),
        ("Int8DynActInt4WeightQATQuantizerModuleSwap", "q4_0"),
        ("Int4WeightOnlyQuantizer, inner_k_tiles: 8", "q4_k_m"),
        ("Int4WeightOnlyQATQuantizer", "q4_k_m"),
    ] {
        let quantizer = format!("quantizer={{_component_: {of}{theirs}, groupsize: 128}}");
        let shown = succeed("quantize", &["--config", &path, &quantizer, "--print-config"]);
        assert!(text(&shown.stdout).contains(&format!("  format: {format}")), "{theirs}: {}", text(&shown.stdout));
        let validated = succeed("quantize", &["--config", &path, &quantizer, "--validate"]);
        let said = text(&validated.stdout) + &text(&validated.stderr);
        let (is_taken, is_other) =
            (said.contains("is taken as `gguf`"), said.contains("training rounded to other levels"));
        assert!(is_taken && is_other == theirs.contains("QAT"), "{theirs}: {said}");
    }
    for other in [&format!("{of}Int8WeightOnlyQuantizer"), "torchao.quantization.Int8WeightOnlyConfig"] {
        let quantizer = format!("quantizer={other}");
        let said = fail("quantize", &["--config", &path, &quantizer, "--print-config"]);
        assert!(said.contains("error[E0030]") && said.contains("set quantizer=gguf"), "{said}");
    }
    // Earlier versions have the folder with the checkpointer alone.
    let (older, root) = (folder.path().join("older.yaml"), "output_dir: /tmp/torchtune/llama2_7B/quantized\n");
    fs::write(&older, config.yaml.replacen(root, "", 1).replace("${output_dir}", "/tmp/there")).unwrap();
    let lines = resolved("quantize", older.to_str().unwrap());
    assert!(lines.iter().any(|line| line == "output_dir: /tmp/there"), "{lines:#?}");

    // Other recipes say which one it is for, and it says so of theirs.
    for ours in ["qat", "lora", "full"] {
        let said = fail(ours, &["--config", &path, "--print-config"]);
        assert!(said.contains("is for quantization") && said.contains("start `quantize`"), "{ours}: {said}");
    }
    let training = shipped().into_iter().find(|config| config.name == "llama3/8B_qat_full.yaml").unwrap();
    let said = fail("quantize", &["--config", &file(folder.path(), &training), "--print-config"]);
    assert!(said.contains("is for quantization-aware training") && said.contains("start `qat`"), "{said}");

    // With a model that is there, it writes.
    let (out, there) = (folder.path().join("out"), "checkpointer.checkpoint_dir=recipes/tiny/model");
    let output_dir = format!("output_dir={}", out.display());
    let said = text(&succeed("quantize", &["--config", &path, there, &output_dir]).stdout);
    assert!(said.contains("bit for bit") && out.join("model-q4_0.gguf").is_file(), "{said}");
}
