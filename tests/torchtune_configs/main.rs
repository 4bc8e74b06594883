//! Every config that torchtune 0.6.1 ships, given to the recipe here that it would be for: those of the model families
//! that are supported load as they are, the others are told why not, and what is converted means the same.

#![allow(clippy::unwrap_used)]

#[path = "../common/hub_server.rs"]
mod hub_server;
#[path = "../common/runs.rs"]
mod runs;

mod components;
mod meant;
mod read_only;
mod training;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use runs::{root, run, succeed, text};
use tempfile::TempDir;

/// A config of torchtune's.
struct Shipped {
    name: String,
    /// torchtune's recipe for it.
    theirs: String,
    /// The recipe here that it is given to.
    ours: &'static str,
    yaml: String,
}

/// The configs of the fixture, see its `make.py`.
fn shipped() -> Vec<Shipped> {
    let fixture = fs::read_to_string(root().join("tests/fixtures/torchtune/configs/configs.txt")).unwrap();
    let mut blocks: BTreeMap<&str, String> = BTreeMap::new();
    let mut configs = Vec::new();
    let mut number = "";
    for line in fixture.lines() {
        if let Some(new) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            number = new;
        } else if let Some(config) = line.strip_prefix("==> ") {
            let mut words = config.split(' ');
            let (name, theirs) = (words.next().unwrap(), words.next().unwrap());
            let yaml = words.map(|number| blocks[number].as_str()).collect();
            let ours = match () {
                () if theirs.contains("generate") => "generate",
                () if theirs.starts_with("eleuther") => "eleuther_eval",
                () if theirs.starts_with("quantize") => "quantize",
                () if theirs.contains("dpo") => "dpo",
                () if theirs.contains("distillation") => "distill",
                () if theirs.starts_with("qat") => "qat",
                () if theirs.starts_with("ppo") => "ppo",
                () if theirs.contains("lora") || name.contains("lora") => "lora",
                () => "full",
            };
            configs.push(Shipped { name: name.to_owned(), theirs: theirs.to_owned(), ours, yaml });
        } else if !number.is_empty() {
            let block = blocks.entry(number).or_default();
            block.push_str(line);
            block.push('\n');
        }
    }
    configs
}

/// The groups of the table, and which config is in which.
const GROUPS: [&str; 12] = [
    "full, Llama and Mistral",
    "LoRA, Llama and Mistral",
    "full, Gemma, Phi and Qwen",
    "LoRA, Gemma, Phi and Qwen",
    "DPO",
    "knowledge distillation",
    "quantization-aware training",
    "QLoRA and DoRA",
    "generation",
    "evaluation",
    "models of images",
    "other recipes",
];

fn group(config: &Shipped) -> &'static str {
    let family = config.name.split('/').next().unwrap_or_default();
    let is_llama = config.yaml.contains("models.llama")
        || config.yaml.contains("models.code_llama2.")
        || config.yaml.contains("models.mistral.");
    let variants = ["qlora_", "use_dora: True", "quantize_base: True"];
    let is_lora = config.theirs.starts_with("lora");
    match config.theirs.as_str() {
        theirs if theirs.contains("dpo") => GROUPS[4],
        theirs if theirs.contains("distillation") => GROUPS[5],
        theirs if theirs.starts_with("qat") => GROUPS[6],
        _ if family.contains("vision") || config.yaml.contains("_vision") => GROUPS[10],
        theirs if theirs.contains("generate") => GROUPS[8],
        theirs if theirs.starts_with("eleuther") => GROUPS[9],
        theirs if !theirs.contains("finetune") || theirs.starts_with("ppo") => GROUPS[11],
        theirs if theirs.contains("multi_dataset") => GROUPS[11],
        _ if variants.iter().any(|variant| config.yaml.contains(variant)) => GROUPS[7],
        _ if is_llama => GROUPS[usize::from(is_lora)],
        _ => GROUPS[2 + usize::from(is_lora)],
    }
}

/// Whether it trains plain adapters on a quantized base.
fn is_qlora(config: &Shipped) -> bool {
    group(config) == "QLoRA and DoRA"
}

/// The config in a file of its own, in `folder`.
fn file(folder: &Path, config: &Shipped) -> String {
    let path = folder.join(config.name.replace('/', "_"));
    fs::write(&path, &config.yaml).unwrap();
    path.to_str().unwrap().to_owned()
}

/// `Ok` where the config loads; else what is said, on one line.
fn outcome(folder: &TempDir, config: &Shipped) -> Result<(), String> {
    let output = run(config.ours, &["--config", &file(folder.path(), config), "--print-config"]);
    if output.status.success() {
        return Ok(());
    }
    let said = text(&output.stderr);
    let first =
        |start: &str| said.lines().find_map(|line| Some(line.trim_start().strip_prefix(start)?.trim().to_owned()));
    // What there is not here is said, and what else would follow from it is not.
    let mut errors = said.lines().filter(|line| line.starts_with("error["));
    assert!(errors.all(|line| line.starts_with("error[E0030]")), "{}\n{said}", config.name);
    let (error, help) = (first("error[E0030]:").unwrap_or(said.clone()), first("= help:").unwrap_or_default());
    // The help for QLoRA names each model's own builder.
    let help = help.split_once("torchtune.models.").map_or(help.clone(), |(start, _)| format!("{start}..."));
    Err(format!("{error} ({help})"))
}

/// The share that loads, and what is told about each of the others: `UPDATE=1` accepts a change.
#[test]
fn they_load_or_are_told_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut counts = GROUPS.map(|group| (group, 0, 0));
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for config in shipped() {
        let (_, loads, all) = counts.iter_mut().find(|(name, ..)| *name == group(&config)).unwrap();
        *all += 1;
        match outcome(&folder, &config) {
            Ok(()) => *loads += 1,
            Err(message) => {
                assert!(!is_qlora(&config), "{}: {message}", config.name);
                told.entry(message).or_default().push(config.name);
            }
        }
    }
    let mut report = format!("{:<44} loads  of\n", "configs of torchtune 0.6.1");
    for (name, loads, all) in counts {
        writeln!(report, "{name:<44} {loads:>5} {all:>3}").unwrap();
    }
    report.push_str("\nThe others are told:\n");
    for (message, names) in told {
        writeln!(report, "\n{message}\n  {}", names.join("\n  ")).unwrap();
    }
    let path = root().join("tests/fixtures/torchtune/configs/outcome.txt");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &report).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap_or_default() == report, "{} differs:\n{report}", path.display());
    // What is promised: all configs of models of text.
    let of_text = || counts.iter().filter(|(name, ..)| *name != "models of images");
    assert!(of_text().all(|(_, loads, all)| loads == all), "{report}");
    assert_eq!(of_text().map(|(.., all)| all).sum::<usize>(), 144, "{report}");
}

/// The lines of a resolved config without the origins of the values.
fn resolved(recipe: &str, config: &str) -> Vec<String> {
    let shown = succeed(recipe, &["--config", config, "--print-config"]);
    text(&shown.stdout).lines().map(|line| line.rsplit_once("  # ").map_or(line, |(line, _)| line).to_owned()).collect()
}

#[test]
fn what_is_converted_means_the_same_and_has_nothing_of_torchtunes_left() {
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for config in shipped().iter().filter(|config| GROUPS[..7].contains(&group(config)) || is_qlora(config)) {
        let original = file(folder.path(), config);
        let converted = text(&succeed(config.ours, &["--config", &original, "--convert"]).stdout);
        let keys: Vec<_> = converted.lines().map(|line| line.split('#').next().unwrap_or_default()).collect();
        let theirs = ["torch.", "torchtune.", "bitsandbytes."];
        assert!(!theirs.iter().any(|prefix| keys.iter().any(|line| line.contains(prefix))), "{converted}");
        // Changed in place, not written anew: whoever looks for a key finds it where it was.
        assert!(converted.contains("metric_logger:\n  _component_: jsonl"), "{converted}");
        let path = folder.path().join("converted.yaml");
        fs::write(&path, &converted).unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(resolved(config.ours, &original), resolved(config.ours, path), "{}", config.name);
        let warnings = text(&succeed(config.ours, &["--config", path, "--print-config"]).stderr);
        assert_eq!(warnings, "", "{converted}");
        // Converting again changes nothing.
        assert_eq!(text(&succeed(config.ours, &["--config", path, "--convert"]).stdout), converted);
        count += 1;
    }
    assert!(count > 36, "{count}");
}
