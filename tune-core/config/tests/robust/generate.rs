//! Inputs: good configs, changed in ways that mean something to YAML or to a schema, as trees and as texts.

use rand::Rng;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use tune_yaml::SourceId;

use crate::tree::{Tree, block, tree};

/// Good configs with something of everything in them.
pub(crate) const SEEDS: [&str; 3] = [
    "output_dir: out/${name}\nname: 'run-${model.lora_rank}'\nbatch_size: 4\nepochs: 0x10\nseed: null\ndtype: bf16\n\
     model: &m\n  lora_rank: 16\n  lora_attn_modules: [q_proj, \"k_proj\"]\n  lora_dropout: 1e-1\n\
     optimizer:\n  _component_: torch.optim.AdamW\n  lr: 2e-5\n  betas: [0.9, .95]\n  fused: True\n\
     datasets:\n- _component_: instruct\n  path: a.json\n  column_map: {a: b, c: d}\n- _component_: instruct\n  path: ${output_dir}\n",
    "output_dir: \"a\\tb\"\ncompile: false\nlog_every_n_steps: 5\ndataset: {_component_: instruct, path: x}\n\
     optimizer: sgd\nname: |\n  two\n  lines\nmodel: {<<: &x {lora_rank: 4}, lora_dropout: 0}\nprofiler: {<<: *x}\n",
    "{output_dir: a, dataset: {_component_: instruct, path: '${name}', column_map: &c {k: v}}, profiler: [*c, *c], name: x}",
];

const KEYS: [&str; 22] = [
    "output_dir",
    "batch_size",
    "epochs",
    "num_epochs",
    "seed",
    "name",
    "dtype",
    "model",
    "lora_rank",
    "lora_dropout",
    "lora_attn_modules",
    "optimizer",
    "_component_",
    "lr",
    "betas",
    "momentum",
    "datasets",
    "dataset",
    "path",
    "column_map",
    "compile",
    "log_every_n_steps",
];

/// Single values and small collections, as they are written.
const VALUES: [&str; 60] = [
    "",
    "~",
    "~/x",
    "~nobody-of-this-name/x",
    "null",
    "None",
    "true",
    "False",
    "yes",
    "0",
    "-0",
    "1",
    "-1",
    "3",
    "16",
    "300",
    "1_000",
    "1__0",
    "0x1f",
    "0xffffffffffffffffffffffffffffffffffff",
    "0o17",
    "1.5",
    "0.5",
    "1e-4",
    "1e400",
    "-1e400",
    "1e-400",
    ".inf",
    "-.INF",
    ".nan",
    "170141183460469231731687303715884105728",
    "\"7\"",
    "'x'",
    "\"\"",
    "\"\\u263a\\x00\\n\"",
    "ü",
    "\u{1f600}\u{301}",
    "\u{202e}rtl",
    "\"\u{a0} \"",
    "sgd",
    "adamw",
    "torch.optim.AdamW",
    "optim.SGD",
    "instruct",
    "bf16",
    "bfloat61",
    "q_proj",
    "${name}",
    "x${batch_size}y",
    "${model}",
    "${optimizer.lr}",
    "${",
    "\\${a}",
    "!!str 1",
    "!!int x",
    "!x y",
    "[1, [2]]",
    "{a: {b: c}}",
    "{_component_: sgd, lr: 1}",
    "*a0",
];

/// What means something to the parser.
const PIECES: [&str; 46] = [
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
    "|2-\n",
    "#",
    " #",
    "!",
    "!!str ",
    "!<x> ",
    "%YAML 1.2\n",
    "---\n",
    "...\n",
    "? ",
    "null",
    "~",
    "1",
    "-1",
    "1e999",
    "_component_",
    "sgd",
    "\\",
    "ü",
    "\u{0}",
    "\u{feff}",
    "\r",
];

/// What a recipe is given.
pub(crate) struct Input {
    pub(crate) yaml: String,
    pub(crate) overrides: Vec<String>,
}

/// The input of this number, the same each time.
pub(crate) fn input(number: u64) -> Input {
    let mut random = ChaCha8Rng::seed_from_u64(0x9e37_79b9_7f4a_7c15);
    random.set_stream(number);
    let mut tree = random.random_bool(0.9).then(|| seed(&mut random));
    let mut yaml = String::new();
    match &mut tree {
        Some(tree) => {
            for _ in 0..random.random_range(0..5) {
                mutate(tree, &mut random);
            }
            block(tree, 0, &mut random, &mut yaml);
        }
        None => yaml.push_str(of(&SEEDS, &mut random)),
    }
    if tree.is_none() || random.random_bool(0.15) {
        for _ in 0..random.random_range(1..4) {
            yaml = edited(&yaml, &mut random);
        }
    }
    let overrides = (0..random.random_range(0..3)).map(|_| with(&mut random)).collect();
    Input { yaml, overrides }
}

fn of<'a>(list: &[&'a str], random: &mut ChaCha8Rng) -> &'a str {
    list.choose(random).copied().unwrap_or_default()
}

fn seed(random: &mut ChaCha8Rng) -> Tree {
    match tune_yaml::parse(of(&SEEDS, random), SourceId(0)) {
        Ok(node) => tree(&node),
        Err(error) => panic!("a seed: {error}"),
    }
}

fn value(random: &mut ChaCha8Rng) -> Tree {
    Tree::Scalar(of(&VALUES, random).to_owned())
}

fn name(random: &mut ChaCha8Rng) -> String {
    match random.random_range(0..10) {
        0 => slip(of(&KEYS, random), random),
        1 => format!("\"{}\"", of(&KEYS, random)),
        2 => "k".repeat(random.random_range(1..2000)),
        3 if random.random_bool(0.2) => of(&VALUES, random).to_owned(),
        _ => of(&KEYS, random).to_owned(),
    }
}

/// A name with two of its letters swapped.
fn slip(name: &str, random: &mut ChaCha8Rng) -> String {
    let mut letters: Vec<char> = name.chars().collect();
    if letters.len() > 1 {
        let at = random.random_range(1..letters.len());
        letters.swap(at - 1, at);
    }
    letters.into_iter().collect()
}

/// One change of a tree.
fn mutate(root: &mut Tree, random: &mut ChaCha8Rng) {
    let other = root.any(random).clone();
    let size = root.size();
    let at = root.any(random);
    match (random.random_range(0..13), at) {
        (0 | 1, at) => *at = value(random),
        // A part of it elsewhere.
        (2, at) if size < 2000 => *at = other,
        (3, Tree::Map(entries)) => entries.push((name(random), value(random))),
        (4, Tree::Map(entries)) if !entries.is_empty() => {
            let entry = entries.choose(random).cloned();
            entries.extend(entry);
        }
        (5, Tree::Map(entries)) if !entries.is_empty() => {
            let index = random.random_range(0..entries.len());
            entries[index].0 = name(random);
        }
        (3..6, Tree::List(items)) => items.push(other),
        (6, Tree::Map(entries)) if !entries.is_empty() => {
            entries.remove(random.random_range(0..entries.len()));
        }
        (6, Tree::List(items)) if !items.is_empty() => {
            items.remove(random.random_range(0..items.len()));
        }
        (7, at) => {
            let levels = if random.random_bool(0.05) { random.random_range(50..80) } else { random.random_range(1..4) };
            for _ in 0..levels {
                let inner = std::mem::replace(at, Tree::Scalar(String::new()));
                *at = match random.random_bool(0.5) {
                    true => Tree::List(vec![inner]),
                    false => Tree::Map(vec![(name(random), inner)]),
                };
            }
        }
        (8, at) => {
            let anchored = std::mem::replace(at, Tree::Scalar(String::new()));
            *at = Tree::Anchor(random.random_range(0..3), Box::new(anchored));
            let alias = format!("*a{}", random.random_range(0..3));
            match root.any(random) {
                Tree::Map(entries) => entries.push(("<<".to_owned(), Tree::Scalar(alias))),
                at => *at = Tree::Scalar(alias),
            }
        }
        (9, Tree::Scalar(text)) => *text = edited(text, random).replace(['\n', '\r', '\t'], " "),
        (10, Tree::Scalar(text)) if text.len() < 5_000 => *text = text.repeat(random.random_range(1..40)),
        (10, Tree::List(items)) if size < 200 => {
            *items = items.iter().cycle().take(items.len() * 30).cloned().collect();
        }
        (11, Tree::Map(entries)) => entries.push(("<<".to_owned(), other)),
        (_, at) => {
            let path = [of(&KEYS, random), of(&KEYS, random), "0"][..random.random_range(1..=3)].join(".");
            *at = Tree::Scalar(format!("{}${{{path}}}", if random.random_bool(0.3) { "a " } else { "" }));
        }
    }
}

/// A text with a piece put in, taken out, copied or moved.
fn edited(text: &str, random: &mut ChaCha8Rng) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let at = random.random_range(0..=chars.len());
    let end = (at + random.random_range(0..12)).min(chars.len());
    match random.random_range(0..4) {
        0 => drop(chars.splice(at..at, of(&PIECES, random).chars())),
        1 => drop(chars.drain(at..end)),
        2 => {
            let copy = chars[at..end].to_vec();
            let to = random.random_range(0..=chars.len());
            chars.splice(to..to, copy);
        }
        _ => drop(chars.splice(at..end, of(&PIECES, random).chars())),
    }
    chars.into_iter().collect()
}

/// An override.
fn with(random: &mut ChaCha8Rng) -> String {
    let steps = random.random_range(1..4);
    let path: Vec<&str> = (0..steps)
        .map(|_| if random.random_bool(0.15) { of(&["0", "1", "99", "-1"], random) } else { of(&KEYS, random) })
        .collect();
    let path = match random.random_bool(0.5) {
        true => path.join("."),
        false => of(&["optimizer", "optimizer.lr", "model.lora_rank", "datasets.0.path", "name", "epochs"], random)
            .to_owned(),
    };
    let path = match random.random_range(0..400) {
        // A path or a key of any length.
        0 => vec![path.as_str(); random.random_range(1..5_000)].join("."),
        1 => path.repeat(random.random_range(1..5_000)),
        _ => path,
    };
    let with = match random.random_range(0..6) {
        2 if random.random_bool(0.01) => {
            let levels = random.random_range(20..20_000);
            format!("{path}={}x{}", "[".repeat(levels), "]".repeat(levels))
        }
        0 => format!("~{path}"),
        1 => format!("{path}={}", of(&["sgd", "adamw", "none", "instruct"], random)),
        _ => format!("{path}={}", of(&VALUES, random)),
    };
    if random.random_bool(0.15) { edited(&with, random) } else { with }
}
