//! Whatever is written, the answer is a config or a report, soon, and with little memory. Configs that are good come
//! back the same from what they write.

#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;
mod generate;
mod meter;
mod tree;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Train, good, read};
use tune_config::embedded::{self, Embedded};
use tune_config::tree::{Item, Written};
use tune_config::{Config, Report, cli, load};
use tune_yaml::{Alias, Kind, Node, SourceId, Value};

/// What one input may cost.
const MEMORY: usize = 64 << 20;
const TIME: Duration = Duration::from_secs(2);

/// What came of some inputs.
#[derive(Default)]
struct Tally {
    inputs: u64,
    /// Those that are YAML.
    parsed: u64,
    /// Those that make a config.
    accepted: u64,
    /// The mistakes by their codes.
    codes: BTreeMap<String, u64>,
    memory: usize,
    time: Duration,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.inputs += other.inputs;
        self.parsed += other.parsed;
        self.accepted += other.accepted;
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
        self.memory = self.memory.max(other.memory);
        self.time = self.time.max(other.time);
    }
}

/// Everything that can be asked of an input.
fn answer(number: u64, tally: &mut Tally) {
    let input = generate::input(number);
    let overrides: Vec<&str> = input.overrides.iter().map(String::as_str).collect();
    let ask = || load::<Train>(tune_config::Input::yaml("lora.yaml", input.yaml.as_str()).overrides(&input.overrides));
    let (loaded, memory, time) = meter::measured(|| ask().map_err(|report| (report.to_string(), report)));
    assert!(memory < MEMORY && time < TIME, "input {number}: {memory} bytes, {time:?}\n{}", input.yaml);
    tally.inputs += 1;
    tally.memory = tally.memory.max(memory);
    tally.time = tally.time.max(time);
    match loaded {
        Ok(loaded) => {
            tally.accepted += 1;
            let written = loaded.config.to_yaml();
            assert_eq!(good(&written, &[]), loaded.config, "input {number}: {written}");
            assert_eq!(loaded.resolved.to_yaml(), written, "input {number}");
            if number.is_multiple_of(8) {
                assert_eq!(good(&loaded.resolved.to_yaml_with_origins(), &[]), loaded.config, "input {number}");
            }
        }
        Err((text, report)) => {
            assert!(text.contains("error[E") && !text.contains("cannot be used"), "input {number}: {text}");
            for code in report.diagnostics.iter().filter_map(|diagnostic| diagnostic.code) {
                *tally.codes.entry(code.to_string()).or_default() += 1;
            }
        }
    }
    if let Ok((root, aliases)) = tune_yaml::parse_noting(&input.yaml, SourceId(0)) {
        tally.parsed += 1;
        if number.is_multiple_of(4) {
            as_the_compiler(number, &input.yaml, root, &aliases);
        }
    }
    if number.is_multiple_of(8) {
        let args = ["lora"].iter().chain(&overrides).chain(&["--help"]).map(OsString::from);
        cli::start::<Train>(&RECIPE, args, false);
    }
}

const RECIPE: cli::Recipe =
    cli::Recipe { name: "lora", doc: "Trains.", version: "0.1.0", configs: &[], preflight: true };

/// The path that the compiler takes, with the same answers.
fn as_the_compiler(number: u64, yaml: &str, root: Node, aliases: &[Alias]) {
    let referred = tune_yaml::referred(&root, aliases);
    let (root, mistakes) = tune_yaml::interpolate(root);
    if !mistakes.is_empty() {
        return;
    }
    let mut items = Vec::new();
    flatten(&mut items, &root, ("", root.span), 0);
    let referred: BTreeMap<&str, Vec<&str>> =
        referred.iter().map(|(key, by)| (key.as_str(), by.iter().map(String::as_str).collect())).collect();
    for item in items.iter_mut().skip(1).filter(|item| item.parent == 0) {
        if let Some(by) = referred.get(item.key) {
            *item = embedded::referred(by, *item);
        }
    }
    let config = Embedded { name: "lora.yaml", text: yaml, items: &items };
    let found = config.check(&Train::SCHEMA);
    let report = load::<Train>(tune_config::Input::yaml("lora.yaml", yaml)).err().unwrap_or_default();
    for index in 0..embedded::SHOWN {
        let message = config.message(&found, index);
        let Some(diagnostic) = errors(&report).nth(index) else {
            assert!(message.is_none(), "input {number}: {message:?}");
            break;
        };
        let said = message.as_ref().map(|text| text.as_str()).unwrap_or_default();
        assert!(said.starts_with(&diagnostic.message), "input {number}: {said}, {}", diagnostic.message);
    }
    assert_eq!(found.total(), errors(&report).count() + report.more, "input {number}");
}

/// Those that the compiler can know: whose home a `~` is, it cannot.
fn errors(report: &Report) -> impl Iterator<Item = &tune_config::Diagnostic> {
    let errors = report.diagnostics.iter().filter(|diagnostic| diagnostic.level == tune_config::Level::Error);
    errors.filter(|diagnostic| diagnostic.code != Some(tune_config::codes::NO_HOME))
}

/// The tree as `#[recipe]` writes it.
fn flatten<'a>(items: &mut Vec<Item<'a>>, node: &'a Node, (key, span): (&'a str, tune_config::Span), parent: usize) {
    let at = items.len();
    let written = match &node.value {
        Value::Scalar(scalar) => match scalar.kind() {
            Kind::Null => embedded::null(&scalar.text),
            Kind::Bool(value) => embedded::truth(&scalar.text, value),
            Kind::Int(value) => embedded::int(&scalar.text, value),
            Kind::Float(value) => embedded::float(&scalar.text, value),
            Kind::Text => embedded::text(&scalar.text, scalar.quoted, scalar.plain_number()),
        },
        Value::List(_) => Written::List,
        Value::Map(_) => Written::Map,
        Value::Reported => Written::Reported,
    };
    items.push(embedded::item(key, [span.start, span.end, node.span.start, node.span.end], parent, 0, written));
    match &node.value {
        Value::List(list) => list.iter().for_each(|item| flatten(items, item, ("", item.span), at)),
        Value::Map(entries) => {
            for entry in entries {
                flatten(items, &entry.value, (&entry.key, entry.key_span), at);
            }
        }
        Value::Scalar(_) | Value::Reported => {}
    }
    items[at].end = items.len();
}

/// Inputs are handed out in lots; a thread that is heard nothing of hangs.
const LOT: u64 = 500;
const HANGS: Duration = Duration::from_secs(600);

fn fuzz(inputs: u64) -> Tally {
    let next = Arc::new(AtomicU64::new(0));
    let at_work = Arc::new(Mutex::new(BTreeMap::new()));
    let (send, receive): (Sender<Tally>, Receiver<Tally>) = channel();
    let threads: Vec<_> = (0..std::thread::available_parallelism().map_or(2, usize::from))
        .map(|thread| {
            let (next, at_work, send) = (next.clone(), at_work.clone(), send.clone());
            std::thread::spawn(move || {
                loop {
                    let first = next.fetch_add(LOT, Ordering::Relaxed);
                    if first >= inputs {
                        return;
                    }
                    let mut tally = Tally::default();
                    for number in first..inputs.min(first + LOT) {
                        if let Ok(mut at_work) = at_work.lock() {
                            at_work.insert(thread, number);
                        }
                        answer(number, &mut tally);
                    }
                    if send.send(tally).is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    drop(send);
    let mut tally = Tally::default();
    loop {
        match receive.recv_timeout(HANGS) {
            Ok(lot) => tally.add(lot),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("one of these inputs hangs: {at_work:?}"),
        }
    }
    for thread in threads {
        if let Err(panic) = thread.join() {
            eprintln!("one of these inputs panics: {at_work:?}");
            std::panic::resume_unwind(panic);
        }
    }
    println!(
        "{} inputs, {} of them YAML, {} accepted; at most {} KiB and {:?} for one; {:?}",
        tally.inputs,
        tally.parsed,
        tally.accepted,
        tally.memory >> 10,
        tally.time,
        tally.codes
    );
    assert_eq!(tally.inputs, inputs);
    // Else it tests the parser only, or the checker only.
    assert!(tally.parsed > inputs / 2 && tally.accepted > inputs / 20 && tally.accepted < inputs / 2);
    tally
}

#[test]
fn twenty_thousand_inputs() {
    fuzz(20_000);
}

#[test]
#[ignore = "some minutes"]
fn a_million_inputs() {
    let tally = fuzz(1_000_000);
    // Every kind of mistake is met, but for those that only a type of one's own makes, and for torchtune's files:
    // `tests/torchtune_configs` has all of these.
    let explained = tune_config::codes::EXPLANATIONS.iter().map(|explanation| explanation.code.to_string());
    let others = [tune_config::codes::REFUSED, tune_config::codes::NOT_HERE].map(|code| code.to_string());
    let unmet: Vec<String> =
        explained.filter(|code| !tally.codes.contains_key(code) && !others.contains(code)).collect();
    assert!(unmet.is_empty(), "{unmet:?}");
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
    for with in [
        vec!["a"; 500_000].join("."),
        vec!["0"; 500_000].join("."),
        format!("model.{}", "x".repeat(1_000_000)),
        format!("{}=1", vec!["model"; 60].join(".")),
    ] {
        for with in [format!("{with}=1"), format!("~{with}"), format!("name={with}=1: ["), with] {
            let answer = read(common::LEAST, &[&with]);
            assert!(answer.is_ok() == with.starts_with("name="), "{}", &with[..20]);
            assert!(answer.err().is_none_or(|report| report.len() < 10_000));
        }
    }
    assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
}

/// A config that needs nothing else to compare with.
#[test]
fn the_seeds_are_good() {
    for yaml in generate::SEEDS {
        let _: Train = good(yaml, &[]);
    }
}
