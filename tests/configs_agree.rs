//! What the compiler says about the configs that a recipe ships with, a recipe
//! that is started with the same file says too: the same mistakes, in the same
//! order, at the same places, with the same advice. For the cases of
//! `tests/ui`, and for configs with mistakes made at random.

#[path = "common/compiler.rs"]
mod compiler;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use compiler::{Said, check, compiled};
use tune_config::Input;
use tune_config::embedded::SHOWN;

/// What a recipe says that is started with the text, as far as the compiler would.
fn started(name: &str, text: &str) -> Vec<Said> {
    let mut said = compiler::started(Input::yaml(name, text));
    said.truncate(SHOWN);
    said
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
run_name: night
output_dir: out/${run_name}/${seed}
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
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut configs, mut expected) = (Vec::new(), BTreeMap::new());
    while configs.len() < 60 {
        let mut yaml = GOOD.to_owned();
        for _ in 0..=random.below(4) {
            yaml = random.mistaken(&yaml);
        }
        let name = format!("c{}.yaml", configs.len());
        let said = started(&name, &yaml);
        // Mistakes in YAML are errors of the macro: with one of them rustc gets no further.
        if said.iter().any(|said| said.code.as_str() < "E0020") {
            continue;
        }
        configs.push((name.clone(), yaml));
        expected.insert(name, said);
    }
    let found = check("configs_agree", &[configs])?;
    assert_eq!(found, expected);
    // Else the test compares nothing.
    let mistakes: usize = expected.values().map(Vec::len).sum();
    assert!(mistakes > 60 && expected.values().any(Vec::is_empty), "{mistakes}");
    Ok(())
}
