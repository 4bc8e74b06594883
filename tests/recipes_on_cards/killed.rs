//! A run on a card that is killed and goes on ends with the bits of one that was not.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tune_core::checkpoint::run::latest;
use tune_core::config::say;
use tune_core::distributed::init_process_group;

use super::cases::Case;
use super::{cases, chosen, has_card, in_the_workspace};

/// The environment variables that tell this program which recipe it is, and its settings, a line each.
const RECIPE: &str = "TUNE_TEST_RECIPE";
const SETTINGS: &str = "TUNE_TEST_SETTINGS";

/// The cases whose runs are killed where a card is.
const KILLED: [&str; 15] = [
    "lora",
    "lora_dora",
    "lora_rows",
    "full",
    "full_muon",
    "full_8bit",
    "full_schedule_free",
    "full_averaged",
    "full_averaged_muon",
    "dpo",
    "distill",
    "grpo",
    "ppo",
    "pretrain",
    "reward",
];

/// Those that are killed where none is.
const QUICK: [&str; 4] = ["lora_dora", "grpo", "full_schedule_free", "full_averaged"];

/// A run that is not this test's: what it is told.
#[test]
fn as_it_is_told() {
    let (Ok(recipe), Ok(settings)) = (std::env::var(RECIPE), std::env::var(SETTINGS)) else { return };
    in_the_workspace();
    // As a recipe's own program does: it may be one of several.
    let _group = init_process_group().unwrap();
    let settings: Vec<String> = settings.lines().map(str::to_owned).collect();
    super::run(&recipe, &settings).unwrap();
}

/// A run as a process of its own.
pub(crate) fn program(case: &Case, settings: &[String]) -> Command {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(["--exact", "killed::as_it_is_told", "--nocapture", "--test-threads=1"]);
    program.env(RECIPE, case.recipe).env(SETTINGS, settings.join("\n"));
    program
}

/// Starts it, with its output in a file beside its folder.
fn start(case: &Case, settings: &[String], log: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    let mut program = program(case, settings);
    program.stdout(Stdio::from(log.try_clone().unwrap())).stderr(Stdio::from(log)).spawn().unwrap()
}

/// Every file of the newest checkpoint, those of a value model among them, and its step.
fn newest(dir: &Path) -> Result<(u64, BTreeMap<String, Vec<u8>>), String> {
    let saved = latest(dir).map_err(|e| e.to_string())?.ok_or("no checkpoint")?;
    let (mut files, mut folders) = (BTreeMap::new(), vec![saved.path.clone()]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&saved.path).unwrap().to_string_lossy().into_owned();
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
    Ok((saved.step, files))
}

/// Kills a run behind its first checkpoint, has it go on, and compares it with one that nobody killed. Returns what is wrong.
fn kill(case: &Case, folder: &Path) -> Result<(), String> {
    let dtype = *case.dtypes().last().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| folder.join(format!("{}_{name}", case.name)));
    let settings = |dir: &Path, extra: &[&str]| {
        let mut all = case.settings(dtype, "cuda", dir, folder);
        // Enough steps behind the first checkpoint that the run is killed before its end.
        let steps = if cases::is_real() { "max_steps_per_epoch=24" } else { "max_steps_per_epoch=4" };
        let own = ["overwrite=false", "checkpointer.save_every_n_steps=2", steps];
        all.extend(own.iter().chain(extra).map(|&one| one.to_owned()));
        all
    };
    let log = folder.join(format!("{}.log", case.name));
    let ended = |mut run: Child| match run.wait().unwrap().success() {
        true => Ok(()),
        false => {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            Err(log.lines().rev().take(12).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n"))
        }
    };
    ended(start(case, &settings(&whole, &[]), &log))?;
    let (mut run, begun) = (start(case, &settings(&killed, &[]), &log), Instant::now());
    while latest(&killed).is_ok_and(|saved| saved.is_none()) && begun.elapsed() < Duration::from_secs(100) {
        if run.try_wait().unwrap().is_some() {
            return Err("the run ended before it was killed".to_owned());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    let (at, _) = newest(&killed)?;
    ended(start(case, &settings(&killed, &["resume_from_checkpoint=true"]), &log))?;
    let ((last, right), (found_last, found)) = (newest(&whole)?, newest(&killed)?);
    if (last, right.keys().collect::<Vec<_>>()) != (found_last, found.keys().collect()) {
        return Err(format!("other files at step {found_last} than at step {last}"));
    }
    let differs: Vec<_> = right.iter().filter(|(name, bytes)| found[*name] != **bytes).map(|(name, _)| name).collect();
    if !differs.is_empty() {
        return Err(format!("other bytes in {differs:?}"));
    }
    if at >= last {
        return Err("it was killed too late".to_owned());
    }
    say!(
        "on a card: {} {dtype} was killed behind step {at}, and has the bits of a whole run at step {last}",
        case.name
    );
    Ok(())
}

#[test]
fn a_killed_run_goes_on_with_the_same_bits() {
    in_the_workspace();
    if !has_card() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    cases::prepare(folder.path());
    let names: &[&str] = if cases::is_real() { &KILLED } else { &QUICK };
    let mut failures = Vec::new();
    for case in chosen().into_iter().filter(|case| names.contains(&case.name)) {
        if let Err(why) = kill(case, folder.path()) {
            failures.push(format!("{}: {why}", case.name));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
