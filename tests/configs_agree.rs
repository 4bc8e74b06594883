//! What the compiler says about the configs that a recipe ships with, a recipe
//! that is started with the same file says too: the same mistakes, in the same
//! order, at the same places, with the same advice. For the cases of
//! `tests/ui`, and for configs with mistakes made at random.

#[path = "ui/configs/train.rs"]
mod train;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

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

/// What a recipe says that is started with the text, as far as the compiler would; nothing where it runs.
fn started(name: &str, text: &str) -> Vec<Said> {
    let Err(report) = load::<train::TrainConfig>(Input::yaml(name, text)) else {
        return Vec::new();
    };
    let said = |diagnostic: &Diagnostic| Said {
        message: diagnostic.message.clone(),
        position: position(&report, diagnostic),
        code: diagnostic.code.map(|code| code.to_string()).unwrap_or_default(),
        help: diagnostic.help.clone(),
    };
    report.diagnostics.iter().filter(|diagnostic| diagnostic.level == Level::Error).map(said).take(8).collect()
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
        let started = started(&format!("{stem}.yaml"), &fs::read_to_string(&path)?);
        assert!(!started.is_empty(), "{stem} is accepted");
        assert_eq!(compiled, started, "{stem}");
        mistakes += compiled.len();
    }
    // Else the test compares nothing.
    assert!(mistakes > 50, "{mistakes}");
    Ok(())
}

/// A config with something of everything.
const GOOD: &str = "\
output_dir: out/${seed}
epochs: 3
seed: 1_000
dtype: bfloat16
shuffle: true
model: &model
  lora_rank: 16
  lora_attn_modules: [q_proj, \"v_proj\"]
  lora_dropout: 0.5
optimizer:
  _component_: torch.optim.AdamW
  lr: 2.0e-5
  betas: [0.9, .95]
dataset:
- _component_: instruct
  path: a.json
  column_map: {input: question, output: answer}
  mixed_with: {share: 0.25}
- _component_: chat
  data_files: [b.json]
log_every_n_steps: ${model.lora_rank}
compile: false
";

/// What a value may be replaced by.
const VALUES: [&str; 16] = [
    "0",
    "-1",
    "1.5",
    "300",
    "1e400",
    ".nan",
    "null",
    "yes",
    "'7'",
    "sgd",
    "[1]",
    "{a: b}",
    "*model",
    "${epochs}",
    "fp32",
    "q_porj",
];

/// A small generator of random numbers: the same ones each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound.max(1)
    }

    /// The text with one mistake more, or not.
    fn mistaken(&mut self, text: &str) -> String {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let at = self.below(lines.len());
        let line = lines[at].clone();
        let key = line.find(':').unwrap_or(line.len());
        match self.below(5) {
            0 => drop(lines.remove(at)),
            1 => lines[at] = format!("{}: {}", &line[..key], VALUES[self.below(VALUES.len())]),
            // Another name for what stands elsewhere.
            2 => lines.insert(at, "num_epochs: 2".to_owned()),
            choice => {
                // A slip in the key, or anywhere.
                let end = if choice == 3 { key } else { line.len() };
                let mut letters: Vec<char> = line.chars().collect();
                let slip = self.below(end.saturating_sub(1));
                match self.below(2) {
                    _ if slip + 1 >= letters.len() => {}
                    0 => letters.swap(slip, slip + 1),
                    _ => drop(letters.remove(slip)),
                }
                lines[at] = letters.into_iter().collect();
            }
        }
        lines.join("\n") + "\n"
    }
}

/// Many configs in one crate, each of a recipe of its own: the compiler says everything about each of them.
#[test]
fn they_say_the_same_about_mistakes_made_at_random() -> std::io::Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("configs_agree");
    for part in ["src", "configs"] {
        let _ = fs::remove_dir_all(folder.join(part));
        fs::create_dir_all(folder.join(part))?;
    }
    let config = workspace.join("tune-core/config").display().to_string();
    let manifest = format!(
        "[package]\nname = \"agree\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n\
         tune-config = {{ path = {config:?} }}\n\n[workspace]\n"
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::copy(workspace.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    fs::copy(workspace.join("tests/ui/configs/train.rs"), folder.join("src/train.rs"))?;

    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut source = "#![allow(dead_code)]\nmod train;\nfn main() {}\n".to_owned();
    let mut expected = BTreeMap::new();
    while expected.len() < 60 {
        let mut yaml = GOOD.to_owned();
        for _ in 0..=random.below(4) {
            yaml = random.mistaken(&yaml);
        }
        let name = format!("c{}.yaml", expected.len());
        let said = started(&name, &yaml);
        // Mistakes in YAML are errors of the macro: with one of them rustc gets no further.
        if said.iter().any(|said| said.code.as_str() < "E0020") {
            continue;
        }
        fs::write(folder.join("configs").join(&name), yaml)?;
        let _ = writeln!(
            source,
            "mod c{} {{\n    /// Trains.\n    #[tune_config::recipe(configs = [\"configs/{name}\"], crate = tune_config)]\n    \
             fn train(_cfg: crate::train::TrainConfig) -> Result<(), String> {{ Ok(()) }}\n}}",
            expected.len()
        );
        expected.insert(name, said);
    }
    fs::write(folder.join("src/main.rs"), source)?;

    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--color=never"])
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let mut found: BTreeMap<String, Vec<Said>> = expected.keys().map(|name| (name.clone(), Vec::new())).collect();
    let mut mistakes = 0;
    for said in compiled(&stderr).into_iter().filter(|said| !said.position.is_empty()) {
        let name = said.position.split(':').next().unwrap_or_default().to_owned();
        found.entry(name).or_default().push(said);
        mistakes += 1;
    }
    assert_eq!(found, expected, "{stderr}");
    // Else the test compares nothing.
    assert!(mistakes > 60 && expected.values().any(Vec::is_empty), "{mistakes}: {stderr}");
    Ok(())
}
