//! Whatever is written, the answer is a config or a report, soon. Configs that
//! are good come back the same from what they write.

mod common;

use common::{Train, good, read};
use tune_config::Config;

/// Good configs with something of everything in them.
const SEEDS: [&str; 3] = [
    "output_dir: out/${name}\nname: 'run-${model.lora_rank}'\nbatch_size: 4\nepochs: 0x10\nseed: null\ndtype: bf16\n\
     model: &m\n  lora_rank: 16\n  lora_attn_modules: [q_proj, \"k_proj\"]\n  lora_dropout: 1e-1\n\
     optimizer:\n  _component_: torch.optim.AdamW\n  lr: 2e-5\n  betas: [0.9, .95]\n  fused: True\n\
     datasets:\n- _component_: instruct\n  path: a.json\n  column_map: {a: b, c: d}\n- _component_: instruct\n  path: ${output_dir}\n",
    "output_dir: \"a\\tb\"\ncompile: false\nlog_every_n_steps: 5\ndataset: {_component_: instruct, path: x}\n\
     optimizer: sgd\nname: |\n  two\n  lines\nmodel: {<<: &x {lora_rank: 4}, lora_dropout: 0}\nprofiler: {<<: *x}\n",
    "{output_dir: a, dataset: {_component_: instruct, path: '${name}', column_map: &c {k: v}}, profiler: [*c, *c], name: x}",
];

const OVERRIDES: [&str; 12] = [
    "batch_size=3",
    "model.lora_rank=${batch_size}",
    "optimizer=sgd",
    "optimizer.lr=1",
    "~name",
    "~model.lora_rank",
    "datasets.0.path=b",
    "dataset.1={_component_: instruct, path: q}",
    "name=[a",
    "optimizer={_component_: adamw}",
    "seed=None",
    "model.lora_attn_modules.1=v_proj",
];

/// Pieces that mean something to YAML or to us.
const PIECES: [&str; 40] = [
    "\n",
    " ",
    "  ",
    "\t",
    ":",
    ": ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&a ",
    "*a",
    "*m",
    "<<: ",
    "${",
    "}",
    "${name}",
    "${model}",
    "'",
    "\"",
    "|",
    ">",
    "#",
    "!",
    "!!str ",
    "---\n",
    "...",
    "null",
    "~",
    "1",
    "-1",
    "1e999",
    ".nan",
    "_component_",
    "sgd",
    "\\",
    "ü",
    "\u{0}",
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

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    /// `text` with a piece put in, taken out, copied or moved.
    fn mutated(&mut self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        let at = self.below(chars.len() + 1);
        let end = (at + self.below(12)).min(chars.len());
        match self.below(4) {
            0 => {
                let piece = self.of(&PIECES);
                chars.splice(at..at, piece.chars());
            }
            1 => {
                chars.drain(at..end);
            }
            2 => {
                let copy = chars[at..end].to_vec();
                let to = self.below(chars.len() + 1);
                chars.splice(to..to, copy);
            }
            _ => {
                let piece = self.of(&PIECES);
                chars.splice(at..end, piece.chars());
            }
        }
        chars.into_iter().collect()
    }
}

fn check(yaml: &str, overrides: &[&str]) -> bool {
    match read(yaml, overrides) {
        Err(report) => {
            assert!(report.contains("error[E") && !report.contains("cannot be used"), "{report}");
            false
        }
        Ok(loaded) => {
            let written = loaded.config.to_yaml();
            assert_eq!(good(&written, &[]), loaded.config, "{written}");
            assert_eq!(loaded.resolved.to_yaml(), written);
            assert_eq!(good(&loaded.resolved.to_yaml_with_origins(), &[]), loaded.config);
            true
        }
    }
}

#[test]
fn mutations_of_good_configs() {
    let rounds: usize = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(4_000);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut accepted = 0;
    for _ in 0..rounds {
        let mut yaml = random.of(&SEEDS).to_owned();
        for _ in 0..random.below(4) {
            yaml = random.mutated(&yaml);
        }
        let overrides: Vec<String> = (0..random.below(3))
            .map(|_| {
                let with = random.of(&OVERRIDES);
                if random.below(3) == 0 { random.mutated(with) } else { with.to_owned() }
            })
            .collect();
        let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
        accepted += usize::from(check(&yaml, &overrides));
    }
    // Else the test tests the parser only.
    assert!(accepted > rounds / 10, "{accepted} of {rounds}");
}

#[test]
fn large_and_hostile_texts_are_answered_soon() {
    let start = std::time::Instant::now();
    let many = |count: usize, line: &dyn Fn(usize) -> String| (0..count).map(line).collect::<String>();
    for yaml in [
        many(60_000, &|index| format!("key{index}: 1\n")),
        many(20_000, &|index| format!("k{index}: ${{key{index}}}\n")),
        many(20_000, &|index| format!("k{}: ${{k{index}}}\n", index + 1)),
        format!("name: {}", "${name}".repeat(50_000)),
        format!("name: {}", "${".repeat(100_000)),
        format!("name: {}", "\\".repeat(200_000)),
        format!("name: {}x", "[".repeat(200_000)),
        format!("name: {}", "{a: ".repeat(60)),
        format!("name: {}", "- ".repeat(50_000)),
        format!("a: &a [{}]\nb: [{}]", "x, ".repeat(1000), "*a, ".repeat(10_000)),
        format!("optimizer: {}", "x".repeat(500_000)),
        format!("{}: 1", "x".repeat(500_000)),
        "\u{feff}".repeat(1000),
        "? ".repeat(10_000),
        "&a ".repeat(10_000),
        "!".repeat(100_000),
        "#".repeat(1_000_000),
        "x".repeat(1 << 21),
    ] {
        assert!(read(&yaml, &[]).is_err());
    }
    let overrides: Vec<String> = (0..2_000).map(|index| format!("model.x{index}=[{index}]")).collect();
    let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
    assert!(read(common::LEAST, &overrides).is_err());
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

/// A config that needs nothing else to compare with.
#[test]
fn the_seeds_are_good() {
    for yaml in SEEDS {
        let _: Train = good(yaml, &[]);
    }
}
