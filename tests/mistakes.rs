//! `tests/mistakes/cases.txt`: each mistake is told at its very place, with the right advice and nothing else, by a
//! recipe that is started with it and, in the same words, by the compiler of a recipe that ships with it.
//! `UPDATE=1 cargo test -p tune-macros --test mistakes` writes what is said into `tests/mistakes/table.md`.

#[path = "common/compiler.rs"]
mod compiler;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use compiler::{Said, check, started};
use tune_config::Input;

/// A mistake and what is to be said about it.
struct Case {
    name: String,
    /// What is written, as a reader would be shown it.
    written: String,
    yaml: String,
    overrides: Option<String>,
    at: String,
    fix: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/mistakes")
}

/// The cases, each `== name` and its lines.
fn cases(good: &str, text: &str) -> Vec<Case> {
    let case = |part: &str| {
        let (name, rest) = part.split_once('\n').expect("a name");
        let all = |mark: &str| -> Vec<&str> { rest.lines().filter_map(|line| line.strip_prefix(mark)).collect() };
        let (before, after, whole, overrides) = (all("- "), all("+ "), all("= "), all("$ "));
        let block = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let yaml = match whole.is_empty() {
            false => block(&whole),
            true => good.replacen(&block(&before), &block(&after), 1),
        };
        assert_eq!(yaml == good, !overrides.is_empty(), "{name}: its lines are not those of good.yaml");
        let one = |mark: &str| all(mark).first().map(|line| (*line).to_owned()).expect("`at` and `fix`");
        let gone = format!("without {}", before.join(" ").trim());
        let written = match [after, whole, overrides.clone()].concat() {
            lines if lines.is_empty() => gone,
            lines => lines.join("\n"),
        };
        Case {
            name: name.to_owned(),
            written,
            yaml,
            overrides: overrides.first().map(|&with| with.to_owned()),
            at: one("at "),
            fix: one("fix "),
        }
    };
    let parts = text.split("\n== ").skip(1);
    parts.map(case).collect()
}

/// What a recipe says that is started with the mistake.
fn run(case: &Case) -> Vec<Said> {
    let input = Input::yaml("good.yaml", &case.yaml).command("train --config good.yaml");
    started(input.overrides(&case.overrides))
}

/// Line and column.
fn place(said: &Said) -> &str {
    said.position.split_once(':').map_or("", |(_, place)| place)
}

/// What a reader would act upon. A name in backticks is that very name.
fn advice(said: &Said) -> String {
    let lines = std::iter::once(&said.label).chain(&said.help).chain(&said.notes);
    lines.map(String::as_str).collect::<Vec<_>>().join("\n")
}

/// What is not as it should be.
fn wrong(case: &Case, said: &[Said]) -> Option<String> {
    let expected = format!("{}: expected `{}` at {}", case.name, case.fix, case.at);
    match said {
        [one] if place(one) == case.at && advice(one).contains(&case.fix) => None,
        [one] => Some(format!("{expected}, found {} at {}: {}", one.message, place(one), advice(one))),
        _ => Some(format!("{expected}, found {} mistakes: {said:#?}", said.len())),
    }
}

fn row(case: &Case, said: &Said, compiler: &str) -> String {
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', "<br>");
    let code = |text: &str| {
        let short = text.lines().map(|line| match line.char_indices().nth(48) {
            Some((end, _)) => format!("{}...", &line[..end]),
            None => line.to_owned(),
        });
        let code = short.map(|line| format!("`` {} ``", line.replace('\t', "→")));
        cell(&code.collect::<Vec<_>>().join("\n"))
    };
    let fix_in_notes =
        |note: &&String| note.contains(&case.fix) && !said.help.iter().any(|help| help.contains(&case.fix));
    let mut words = format!("{}: {}", said.code, said.message);
    for line in std::iter::once(&said.label).chain(said.notes.iter().filter(fix_in_notes)).chain(&said.help) {
        if !line.is_empty() {
            let _ = write!(words, "\n{line}");
        }
    }
    format!("| {} | {} | {} | {} | {compiler} |\n", cell(&case.name), code(&case.written), case.at, cell(&words))
}

#[test]
fn each_is_told_at_its_place_with_the_right_advice() -> std::io::Result<()> {
    let good = fs::read_to_string(folder().join("good.yaml"))?;
    assert!(started(Input::yaml("good.yaml", &good)).is_empty());
    let cases = cases(&good, &fs::read_to_string(folder().join("cases.txt"))?);
    assert!(cases.len() >= 40, "{}", cases.len());
    let run: Vec<Vec<Said>> = cases.iter().map(run).collect();

    let (mut in_yaml, mut in_schema) = (Vec::new(), Vec::new());
    for (index, (case, said)) in cases.iter().zip(&run).enumerate().filter(|(_, (case, _))| case.overrides.is_none()) {
        let list = if said.iter().any(|said| said.code.as_str() < "E0020") { &mut in_yaml } else { &mut in_schema };
        list.push((format!("c{index}.yaml"), case.yaml.clone()));
    }
    let mut compiled = check("mistakes", &[in_yaml, in_schema])?;

    let mut table = format!(
        "<!-- Written by `UPDATE=1 cargo test -p tune-macros --test mistakes`. -->\n\n{} mistakes in `good.yaml`, and \
         what is said about each.\n\n| mistake | written | at | what a recipe says that is started with it | what the \
         compiler says |\n|---|---|---|---|---|\n",
        cases.len()
    );
    let mut failures = Vec::new();
    for (index, (case, said)) in cases.iter().zip(&run).enumerate() {
        failures.extend(wrong(case, said));
        let compiler = match compiled.remove(&format!("c{index}.yaml")) {
            None => "nothing: an override",
            Some(mut by_compiler) => {
                for said in &mut by_compiler {
                    said.position = said.position.replace(&format!("c{index}.yaml"), "good.yaml");
                }
                if by_compiler != *said {
                    failures.push(format!("{}: the compiler says {by_compiler:#?}, not {said:#?}", case.name));
                }
                "the same"
            }
        };
        if let Some(said) = said.first() {
            table += &row(case, said, compiler);
        }
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));

    let path = folder().join("table.md");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &table)?;
    }
    assert!(fs::read_to_string(&path).is_ok_and(|found| found == table), "{} is old: see UPDATE=1", path.display());
    Ok(())
}
