//! What a recipe's `main` is told to do.

mod common;

use std::ffi::OsString;

use common::{LEAST, Train, snapshot};
use tune_config::cli::{Recipe, Start, failure, start};

const RECIPE: Recipe =
    Recipe { name: "lora", doc: "Trains low-rank adapters on a frozen base model.", version: "1.2.3", configs: &[] };

/// `run`, what is shown, or the error.
fn told(args: &[&str]) -> Result<String, String> {
    let args = std::iter::once("lora").chain(args.iter().copied()).map(OsString::from);
    match start::<Train>(&RECIPE, args, false) {
        Start::Run(loaded) => Ok(format!("run {}", loaded.config.batch_size)),
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
    let cases: [&[&str]; 8] = [
        &[],
        &["--config"],
        &["--config", "no/such/file.yaml"],
        &["--config", "."],
        &["--epochs", "2"],
        &["--epochs=2"],
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
