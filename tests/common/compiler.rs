//! What the compiler says about a config that a recipe ships with, and what a recipe says that is started with it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Command;
use std::{fs, io};

use tune_config::{Diagnostic, Input, Level, Origin, Report, load};

#[path = "package.rs"]
mod package;
#[path = "../ui/configs/train.rs"]
pub(crate) mod train;

/// A mistake as it is told.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Said {
    pub(crate) message: String,
    /// `c.yaml:3:7`.
    pub(crate) position: String,
    pub(crate) code: String,
    /// What stands beside the caret.
    pub(crate) label: String,
    pub(crate) notes: Vec<String>,
    pub(crate) help: Vec<String>,
}

/// The mistakes in the compiler's output that are about configs. After each comes the place of `#[recipe]`, which is
/// not about the config.
pub(crate) fn compiled(stderr: &str) -> Vec<Said> {
    let mut all: Vec<Said> = Vec::new();
    let mut about_config = false;
    for line in stderr.lines() {
        let message = line.strip_prefix("error[E0080]: evaluation panicked: ").or_else(|| line.strip_prefix("error: "));
        if let Some(message) = message {
            about_config = true;
            all.push(Said { message: message.into(), ..Said::default() });
            continue;
        }
        let Some(last) = all.last_mut().filter(|_| about_config) else { continue };
        let line = line.trim_start();
        if let Some(place) = line.strip_prefix("--> ") {
            match place.strip_prefix("configs/") {
                Some(place) => last.position = place.into(),
                None => about_config = false,
            }
        } else if let Some(marks) = line.strip_prefix('|').map(str::trim_start).filter(|marks| marks.starts_with('^')) {
            last.label = marks.trim_start_matches('^').trim_start().into();
        } else if let Some(help) = line.strip_prefix("= help: ") {
            last.help.push(help.into());
        } else if let Some(code) = line.strip_prefix("= note: config error ") {
            last.code = code.into();
        } else if let Some(note) = line.strip_prefix("= note: ") {
            last.notes.push(note.into());
        }
    }
    all.retain(|said| !said.position.is_empty());
    all
}

/// What a recipe says that is started with the input; nothing where it runs.
pub(crate) fn started(input: Input) -> Vec<Said> {
    let Err(report) = load::<train::TrainConfig>(input) else {
        return Vec::new();
    };
    let said = |diagnostic: &Diagnostic| Said {
        message: diagnostic.message.clone(),
        position: position(&report, diagnostic),
        code: diagnostic.code.map(|code| code.to_string()).unwrap_or_default(),
        label: diagnostic.primary.as_ref().map(|(_, label)| label.clone()).unwrap_or_default(),
        notes: diagnostic.notes.clone(),
        help: diagnostic.help.clone(),
    };
    report.diagnostics.iter().filter(|diagnostic| diagnostic.level == Level::Error).map(said).collect()
}

fn position(report: &Report, diagnostic: &Diagnostic) -> String {
    let Some((span, _)) = &diagnostic.primary else {
        return String::new();
    };
    match report.sources.origin(Origin::Written(*span)) {
        // It has one line.
        line if line == "command line" => format!("{line}:1:{}", span.start + 1),
        place => place,
    }
}

/// Compiles a recipe for each config, in a crate of its own under `name`: each of `programs` is a list of configs with
/// their names. A mistake in YAML ends a program's compilation before the schema is looked at. Answers by name.
pub(crate) fn check(name: &str, programs: &[Vec<(String, String)>]) -> io::Result<BTreeMap<String, Vec<Said>>> {
    let folder = package::create(name)?;
    fs::create_dir(folder.join("src/bin"))?;
    fs::copy(package::workspace()?.join("tests/ui/configs/train.rs"), folder.join("src/train.rs"))?;
    let mut said = BTreeMap::new();
    for (index, configs) in programs.iter().enumerate() {
        let mut source = "#![allow(dead_code)]\n#[path = \"../train.rs\"]\nmod train;\nfn main() {}\n".to_owned();
        for (at, (name, yaml)) in configs.iter().enumerate() {
            fs::write(folder.join("configs").join(name), yaml)?;
            let _ = writeln!(
                source,
                "mod c{at} {{\n    /// Trains.\n    #[tune_config::recipe(configs = [\"configs/{name}\"], crate = \
                 tune_config)]\n    fn train(_cfg: crate::train::TrainConfig) -> Result<(), String> {{ Ok(()) }}\n}}"
            );
            said.insert(name.clone(), Vec::new());
        }
        fs::write(folder.join(format!("src/bin/p{index}.rs")), source)?;
    }
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--color=never", "--keep-going"])
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .output()?;
    for mistake in compiled(&String::from_utf8_lossy(&output.stderr)) {
        let name = mistake.position.split(':').next().unwrap_or_default().to_owned();
        said.entry(name).or_default().push(mistake);
    }
    Ok(said)
}
