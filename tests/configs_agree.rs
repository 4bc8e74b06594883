//! What the compiler says about the configs that a recipe ships with, a recipe
//! that is started with the same file says too: the same mistakes, in the same
//! order, at the same places, with the same advice.

#[path = "ui/configs/train.rs"]
mod train;

use std::fs;
use std::path::Path;

use tune_config::{Diagnostic, Input, Level, Report, load};

/// What matters of a mistake.
#[derive(Debug, PartialEq)]
struct Said {
    message: String,
    position: String,
    code: String,
    help: Vec<String>,
}

/// What the compiler says: `tests/ui/config_NAME.stderr`.
fn compiled(stderr: &str) -> Vec<Said> {
    let mut all: Vec<Said> = Vec::new();
    for line in stderr.lines() {
        let message = line.strip_prefix("error[E0080]: evaluation panicked: ").or_else(|| line.strip_prefix("error: "));
        if let Some(message) = message {
            all.push(Said { message: message.into(), position: String::new(), code: String::new(), help: Vec::new() });
        }
        let Some(last) = all.last_mut() else { continue };
        let line = line.trim_start();
        if let Some(place) = line.strip_prefix("--> configs/") {
            last.position = place.into();
        } else if let Some(help) = line.strip_prefix("= help: ") {
            last.help.push(help.into());
        } else if let Some(code) = line.strip_prefix("= note: config error ") {
            last.code = code.into();
        }
    }
    all
}

/// What a recipe says that is started with the text.
fn started(name: &str, text: &str) -> Vec<Said> {
    let Err(report) = load::<train::TrainConfig>(Input::yaml(name, text)) else {
        panic!("{name} is accepted");
    };
    let said = |diagnostic: &Diagnostic| Said {
        message: diagnostic.message.clone(),
        position: position(&report, diagnostic),
        code: diagnostic.code.map(|code| code.to_string()).unwrap_or_default(),
        help: diagnostic.help.clone(),
    };
    report.diagnostics.iter().filter(|diagnostic| diagnostic.level == Level::Error).map(said).collect()
}

fn position(report: &Report, diagnostic: &Diagnostic) -> String {
    let span = diagnostic.primary.as_ref().map(|(span, _)| *span);
    span.map(|span| report.sources.origin(tune_config::Origin::Written(span))).unwrap_or_default()
}

#[test]
fn the_compiler_and_the_program_say_the_same() -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/ui");
    let mut mistakes = 0;
    for file in fs::read_dir(folder.join("configs"))? {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let compiled = compiled(&fs::read_to_string(folder.join(format!("config_{stem}.stderr")))?);
        let mut started = started(&format!("{stem}.yaml"), &fs::read_to_string(&path)?);
        // The compiler stops after the first eight.
        started.truncate(8);
        assert_eq!(compiled, started, "{stem}");
        mistakes += compiled.len();
    }
    // Else the test compares nothing.
    assert!(mistakes > 50, "{mistakes}");
    Ok(())
}
