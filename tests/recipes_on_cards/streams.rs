//! A card is not waited for inside a step, and results do not depend on when it does what: on a stand-in that says what is called, and
//! that does what is queued in other orders.

use std::collections::BTreeMap;
use std::path::Path;

use super::cases::{self, CASES, Case};
use super::{in_the_workspace, killed, logged, stand_in};

/// Steps of each run.
const STEPS: usize = 4;

/// What the stand-in's `STAND_IN_CALLS` has of calls that return when the card is done, or may.
const WAITS: [&str; 4] = ["wait stream", "wait event", "to the card, not pinned", "from the card, not pinned"];

/// Runs a case as a process of its own, on a stand-in that is told this. Returns what is wrong with the run.
fn run(case: &Case, dir: &Path, folder: &Path, own: &[&str], told: &[(&str, &str)]) -> Result<(), String> {
    let stand_in = stand_in::folder().ok_or("no compiler")?;
    let mut settings = case.settings("fp32", "cuda", dir, folder);
    settings.extend(cases::SMALL.iter().map(|one| one.replace("{folder}", &folder.display().to_string())));
    settings.push(format!("max_steps_per_epoch={STEPS}"));
    settings.extend(own.iter().map(|&one| one.to_owned()));
    let mut program = killed::program(case, &settings);
    stand_in::environment(&mut program, stand_in);
    program.env("TUNE_TEST_CARD", "1").envs(told.iter().copied());
    let output = program.output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    if output.status.success() { Ok(()) } else { Err(said) }
}

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).unwrap()
}

/// The calls from each step's first launch to that of its optimizer.
fn steps(calls: &Path) -> Vec<Vec<String>> {
    let calls = std::fs::read_to_string(calls).unwrap();
    let mut steps = vec![Vec::new()];
    for call in calls.lines() {
        let is_launch = call.starts_with("launch") || call == "product";
        let step = steps.last_mut().unwrap();
        if is_launch || !step.is_empty() {
            step.push(call.to_owned());
        }
        if call.starts_with("launch adamw") {
            steps.push(Vec::new());
        }
    }
    steps.pop();
    steps
}

#[test]
fn no_step_waits() {
    if std::env::var_os("TUNE_TEST_CARD").is_some() || stand_in::folder().is_none() {
        return;
    }
    in_the_workspace();
    let folder = tempfile::tempdir().unwrap();
    cases::prepare(folder.path());
    let waits = |name: &str, own: &[&str]| {
        let calls = folder.path().join(format!("{name}.calls"));
        std::fs::remove_file(&calls).ok();
        let told = [("STAND_IN_CALLS", calls.to_str().unwrap())];
        run(case(name), &folder.path().join(name), folder.path(), own, &told).unwrap();
        let steps = steps(&calls);
        assert_eq!(steps.len(), STEPS, "{name}");
        let all = std::fs::read_to_string(&calls).unwrap();
        assert!(all.lines().any(|call| WAITS.contains(&call)), "{name}: nothing was ever read");
        steps
            .into_iter()
            .map(|step| step.into_iter().filter(|call| WAITS.contains(&&**call)).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    for (name, own) in [("lora", &[][..]), ("full", &[]), ("pretrain", &[])] {
        let found = waits(name, own);
        assert!(found.iter().all(Vec::is_empty), "{name} waits: {found:?}");
    }
    // How many tokens go to each expert is waited for once a block and batch, and not again where a block is computed again. There are
    // two of either.
    let mixture = format!("checkpointer.checkpoint_dir={}", folder.path().join("mixture").display());
    for again in ["enable_activation_checkpointing=false", "enable_activation_checkpointing=true"] {
        let found = waits("lora_experts", &[&mixture, again]);
        assert!(found.iter().all(|step| *step == ["wait event"; 4]), "{again}: {found:?}");
    }
    // What reads log-probabilities waits, which is seen.
    assert!(waits("dpo", &[]).iter().all(|step| !step.is_empty()));
}

/// All that a run saved: files of checkpoints by their paths, and what it logged.
fn results(dir: &Path) -> (BTreeMap<String, Vec<u8>>, BTreeMap<String, Vec<u64>>) {
    let (mut files, mut folders) = (BTreeMap::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
            match path.is_dir() {
                true => folders.push(path),
                false if name.ends_with(".safetensors") => _ = files.insert(name, std::fs::read(&path).unwrap()),
                false => {}
            }
        }
    }
    let numbers = logged(dir).into_iter().map(|(key, all)| (key, all.into_iter().map(f64::to_bits).collect()));
    (files, numbers.collect())
}

#[test]
fn the_order_of_streams_changes_nothing() {
    if std::env::var_os("TUNE_TEST_CARD").is_some() || stand_in::folder().is_none() {
        return;
    }
    in_the_workspace();
    let folder = tempfile::tempdir().unwrap();
    cases::prepare(folder.path());
    for name in ["lora", "full"] {
        let get = |as_it_is: &str, told: &[(&str, &str)]| {
            let dir = folder.path().join(format!("{name}_{as_it_is}"));
            let own = [
                "enable_async_checkpointing=true",
                "checkpointer.save_every_n_steps=1",
                "checkpointer.keep_last_n_checkpoints=9",
            ];
            run(case(name), &dir, folder.path(), &own, told).map(|()| results(&dir))
        };
        let (files, numbers) = get("at_once", &[]).unwrap();
        assert!(files.len() >= 2 * STEPS && numbers["loss"].len() == STEPS, "{name}: {:?}", files.keys());
        for streams in ["late", "side_first"] {
            let found = get(streams, &[("STAND_IN_STREAMS", streams)]).unwrap();
            assert_eq!(found.1, numbers, "{name}, {streams}");
            assert_eq!(found.0.keys().collect::<Vec<_>>(), files.keys().collect::<Vec<_>>(), "{name}, {streams}");
            let other: Vec<_> = files.keys().filter(|file| found.0[*file] != files[*file]).collect();
            assert!(other.is_empty(), "{name}, {streams}: other bytes in {other:?}");
        }
        // A wait that is missing is seen.
        for (streams, forgets) in [("late", "main"), ("side_first", "side")] {
            let told = [("STAND_IN_STREAMS", streams), ("STAND_IN_FORGETS", forgets)];
            let found = get(&format!("{streams}_{forgets}"), &told);
            assert!(found.is_err() || found != Ok((files.clone(), numbers.clone())), "{name}: {forgets} is not missed");
        }
    }
}

/// A loss that is no number ends the run when it is read, and nothing of it is saved.
#[test]
fn a_loss_that_is_no_number_ends_the_run() {
    if std::env::var_os("TUNE_TEST_CARD").is_some() || stand_in::folder().is_none() {
        return;
    }
    in_the_workspace();
    let folder = tempfile::tempdir().unwrap();
    cases::prepare(folder.path());
    for save in ["checkpointer.save_every_n_steps=1", "checkpointer.save_every_n_steps=null"] {
        let dir = folder.path().join(save);
        let said = run(case("full"), &dir, folder.path(), &["optimizer.lr=1e30", save], &[]).unwrap_err();
        // The first step is sound; the second computes with what it made of the weights.
        assert!(said.contains("step 2: ") && said.contains("nothing of this step is saved"), "{said}");
        let steps = logged(&dir)["step"].clone();
        assert_eq!(steps.iter().copied().fold(0.0, f64::max), 1.0, "{steps:?}");
    }
}
