//! What a recipe's `main` is told to do.

mod common;

use std::ffi::OsString;

use common::{LEAST, Train, snapshot};
use tune_config::cli::{Purpose, Recipe, Start, failure, start};

const RECIPE: Recipe = Recipe {
    name: "lora",
    doc: "Trains low-rank adapters on a frozen base model.",
    version: "1.2.3",
    configs: &[("../configs/lora/tiny.yaml", "")],
    preflight: true,
};

/// `run`, what is shown, or the error.
fn told(args: &[&str]) -> Result<String, String> {
    told_by(&RECIPE, args)
}

fn told_by(recipe: &Recipe, args: &[&str]) -> Result<String, String> {
    let args = std::iter::once("lora").chain(args.iter().copied()).map(OsString::from);
    match start::<Train>(recipe, args, false) {
        Start::Run(loaded, Purpose::Run) => Ok(format!("run {}", loaded.config.batch_size)),
        Start::Run(loaded, purpose) => Ok(format!("{purpose:?} {}", loaded.config.batch_size)),
        Start::Show(text) => Ok(text),
        Start::Fail(text) => Err(text),
    }
}

/// A file with [`LEAST`] in it.
fn file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), LEAST).expect("its text");
    file
}

#[test]
fn help() {
    snapshot("help", &told(&["--help"]).unwrap_or_default());
    assert_eq!(told(&["-h"]), told(&["--help"]));
    assert_eq!(told(&["--version"]), Ok("lora 1.2.3\n".to_owned()));
}

/// The keys of the chosen component only; what is set, and where.
#[test]
fn help_follows_the_config() {
    let file = file();
    let path = file.path().to_str().expect("a path in UTF-8");
    let text = told(&["--config", path, "optimizer=sgd", "optimizer.lr=1", "batch_size=4", "--help"]);
    snapshot("help_of_a_config", &text.unwrap_or_default().replace(path, "lora.yaml"));
    // What is wrong is no reason to give no help.
    let text = told(&["optimizer.momentum=x", "optimizer=sgd", "nope=1", "-h"]).unwrap_or_default();
    assert!(text.contains("- sgd (chosen)") && text.contains("momentum: number = 0.0, in 0.0..1.0"), "{text}");
}

/// Nothing but the verdict, warnings included.
#[test]
fn validate() {
    let file = file();
    let path = file.path().to_str().expect("a path in UTF-8");
    assert_eq!(told(&["--config", path, "--validate"]), Ok(format!("{path} is valid\n")));
    let text = told(&["--validate", "--config", path, "compile=true"]).unwrap_or_default();
    assert!(text.contains("there is nothing to compile") && text.ends_with("is valid\n"), "{text}");
    let error = told(&["--validate", "--config", path, "epochs=0"]).unwrap_err();
    assert!(error.contains("out of range for `epochs`"), "{error}");
}

#[test]
fn a_preflight_is_for_recipes_that_have_one() {
    let file = file();
    let path = file.path().to_str().expect("a path in UTF-8");
    assert_eq!(told(&["--config", path, "--check", "batch_size=3"]), Ok("Check(1) 3".to_owned()));
    assert_eq!(told(&["--plan", "--config", path, "batch_size=3"]), Ok("Plan(1) 3".to_owned()));
    // A wrong config is told as ever.
    assert!(told(&["--config", path, "--check", "epochs=0"]).is_err_and(|text| text.contains("out of range")));
    assert_eq!(
        told(&["--plan", "--world-size", "4", "--config", path]).map(|said| said.starts_with("Plan(4)")),
        Ok(true)
    );
    assert!(told(&["--world-size", "4", "--config", path]).is_err(), "a run has as many processes as were started");
    assert!(told(&["--config", path, "--check", "--plan"]).is_err_and(|text| text.contains("cannot be used with")));

    let without = Recipe { preflight: false, ..RECIPE };
    for option in ["--check", "--plan"] {
        let error = told_by(&without, &["--config", path, option]).err().unwrap_or_default();
        assert!(error.starts_with(&format!("error: `lora` has no `{option}`")), "{error}");
        assert!(error.contains("`lora --validate`"), "{error}");
        assert!(!told_by(&without, &["--help"]).unwrap_or_default().contains(option));
        assert!(!told_by(&without, &["--completions", "bash"]).unwrap_or_default().contains(option));
    }
}

#[test]
fn the_schema_for_editors() {
    let text = told(&["--print-schema"]).unwrap_or_default();
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    snapshot("schema", &text);
}

#[test]
fn the_reference_has_the_keys_of_all_components() {
    let text = told(&["--print-reference"]).unwrap_or_default();
    for key in ["betas: list", "momentum: number", "path: path"] {
        assert!(text.contains(key), "{key}: {text}");
    }
    assert!(!text.contains("(chosen)") && !text.contains("=>"), "{text}");
}

#[test]
fn errors_are_explained() {
    let failed = told(&["epochs=0"]).err().unwrap_or_default();
    assert!(failed.ends_with("\nMore about an error: `lora --explain E0021`\n"), "{failed}");
    assert!(told(&["--explain", "e0021"]).is_ok_and(|text| text.starts_with("E0021: missing key\n")));
    assert!(told(&["--explain", "E9"]).is_err_and(|text| text.contains("there is no error `E9`")));
}

#[test]
fn completions() {
    for shell in ["bash", "zsh", "fish"] {
        snapshot(&format!("completions_{shell}"), &told(&["--completions", shell]).unwrap_or_default());
    }
    assert!(told(&["--completions", "tcsh"]).is_err_and(|text| text.contains("[possible values: bash, zsh, fish]")));
}

/// What bash offers after `line`.
fn completed(line: &str) -> Option<String> {
    let script = told(&["--completions", "bash"]).ok()?;
    // As bash does: words are broken at `=`, too.
    let words: Vec<String> = line.replace('=', " = ").split(' ').map(|word| format!("'{word}'")).collect();
    let call = format!(
        "compopt() {{ :; }}\nCOMP_LINE='{line}' COMP_POINT={} COMP_WORDS=({}) COMP_CWORD=$((${{#COMP_WORDS[@]}}-1))\n_lora\necho \"${{COMPREPLY[@]}}\"",
        line.len(),
        words.join(" ")
    );
    let output = std::process::Command::new("bash").arg("-c").arg(format!("{script}\n{call}")).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn bash_completes_keys_and_values() {
    if std::process::Command::new("bash").arg("--version").output().is_err() {
        eprintln!("there is no bash here");
        return;
    }
    assert_eq!(completed("lora bat").as_deref(), Some("batch_size="));
    assert_eq!(completed("lora --print-sc").as_deref(), Some("--print-schema"));
    assert_eq!(completed("lora optimizer=s").as_deref(), Some("sgd"));
    assert_eq!(completed("lora x=1 optimizer.mo").as_deref(), Some("optimizer.momentum="));
    assert_eq!(completed("lora --completions f").as_deref(), Some("fish"));
}

#[test]
fn a_config_and_overrides_in_any_order() {
    let file = file();
    let path = file.path().to_str().expect("a path in UTF-8");
    assert_eq!(told(&["--config", path]), Ok("run 2".to_owned()));
    assert_eq!(told(&["batch_size=3", "--config", path, "~seed", "batch_size=4"]).map_err(|_| ()), Err(()));
    assert_eq!(told(&["batch_size=3", "--config", path, "batch_size=4"]), Ok("run 4".to_owned()));
    let shown = told(&["--config", path, "--print-config", "epochs=3"]).unwrap_or_default();
    assert!(shown.contains("epochs: 3  # command line\n"), "{shown}");
}

#[test]
fn wrong_arguments() {
    let cases: [&[&str]; 15] = [
        &[],
        &["--config"],
        &["--config", "no/such/file.yaml"],
        &["--config", "."],
        &["--config", "lora/tiny"],
        &["configs/lora/tiny.yaml"],
        &["--confg", "a.yaml"],
        &["--epochs", "2"],
        &["--epochs=2"],
        &["--epohcs", "2"],
        &["--optimizer.lr=1"],
        &["--gpus", "2"],
        &["--nproc_per_node", "2"],
        &["-x"],
        &["epochs"],
    ];
    let errors: Vec<_> = cases
        .iter()
        .map(|args| format!("$ lora {}\n{}", args.join(" "), told(args).err().unwrap_or_default()))
        .collect();
    snapshot("arguments", &errors.join("\n"));
}

#[test]
fn a_config_of_another_tool_is_known() {
    let file = file();
    std::fs::write(file.path(), "base_model: org/model\nadapter: lora\ndatasets:\n- {path: a.jsonl, type: alpaca}\n")
        .expect("its text");
    let path = file.path().to_str().expect("a path in UTF-8");
    let error = told(&["--config", path]).unwrap_err();
    let expected =
        format!("This is a config of Axolotl's; `tune convert {path} > mine.yaml` makes one of ours of it\n");
    assert!(error.ends_with(&expected), "{error}");
    // One of ours with a mistake is ours.
    std::fs::write(file.path(), format!("{LEAST}epohcs: 3\n")).expect("its text");
    assert!(!told(&["--config", path]).unwrap_err().contains("tune convert"));
}

#[test]
fn a_failure_with_its_causes() {
    #[derive(Debug)]
    struct Failed(&'static str, Option<Box<Failed>>);

    impl std::fmt::Display for Failed {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl std::error::Error for Failed {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            self.1.as_deref().map(|source| source as _)
        }
    }

    let cause = Failed("no space left", None);
    let error = Failed("cannot write a: no space left", Some(Box::new(cause)));
    let error = Failed("the checkpoint is not saved", Some(Box::new(error)));
    assert_eq!(failure(&error), "error: the checkpoint is not saved\n  caused by: cannot write a: no space left\n");
}
