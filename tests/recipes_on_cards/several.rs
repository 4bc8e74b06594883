//! Recipes on two processes with a card each, which are threads here: they learn what one learns, and one number of them goes on from what
//! another saved. Where no second card is, what is refused then.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tune_core::checkpoint::run::{checkpoints, latest};
use tune_core::config::say;
use tune_core::distributed::threads;
use tune_core::engine::Card;

use super::cases::{self, CASES, Case};
use super::{apart, has_card, in_the_workspace, killed, logged, run, saved, stand_in};

/// Says that the library which connects cards is missing.
const WITHOUT_NCCL: &str = "TUNE_TEST_WITHOUT_NCCL";

/// Whether there are two cards; all of this is about those.
fn has_two() -> bool {
    has_card() && Card::open(1).is_ok()
}

fn is_without_nccl() -> bool {
    std::env::var_os(WITHOUT_NCCL).is_some()
}

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).unwrap()
}

/// Runs a case on some processes; micro-batches of a step are four over all of them.
fn on(processes: usize, case: &Case, more: &[&str], dir: &Path, folder: &Path) -> Vec<Result<(), String>> {
    let mut settings = case.settings("fp32", "cuda", dir, folder);
    settings.push(format!("gradient_accumulation_steps={}", 4 / processes));
    settings.extend(more.iter().map(ToString::to_string));
    match processes {
        1 => vec![run(case.recipe, &settings)],
        _ => threads::run(processes, Duration::from_secs(120), |_| run(case.recipe, &settings)).unwrap(),
    }
}

#[track_caller]
fn succeed(processes: usize, case: &Case, more: &[&str], dir: &Path, folder: &Path) {
    let results = on(processes, case, more, dir, folder);
    assert!(results.iter().all(Result::is_ok), "{} on {processes}: {results:?}", case.name);
}

/// Losses of a run are those of another, and so are the names and shapes of what is saved.
#[track_caller]
fn compare(what: &str, found: &Path, right: &Path) {
    let (of_found, of_right) = (logged(found), logged(right));
    let off = apart(&of_found["loss"], &of_right["loss"], 1e-2);
    assert!(off <= 1e-4, "{what}: {:?} instead of {:?}", of_found["loss"], of_right["loss"]);
    assert_eq!(saved(found), saved(right), "{what}");
    say!("on a card: {what} on two: {:.4?}, off by {off:.1e}", of_found["loss"]);
}

#[test]
fn two_learn_what_one_learns() {
    in_the_workspace();
    if !has_two() || is_without_nccl() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    cases::prepare(folder.path());
    let copies = "data_parallel_replicate_dim=2";
    for (name, layout, more) in [
        ("full", "", &[][..]),
        ("full_muon", copies, &[]),
        ("full_8bit", copies, &[]),
        ("lora", "", &["model.quantize_base=true"]),
        ("lora", copies, &["model.use_dora=true", "fsdp_reshard_after_forward=false"]),
        ("dpo", "", &[]),
        ("distill", "fsdp_reshard_after_forward=false", &[]),
        ("grpo", "", &["updates=1"]),
    ] {
        let what = format!("{name} {} {layout}", more.join(" "));
        let [one, two] =
            ["one", "two"].map(|n| folder.path().join(format!("{what} {n}").replace(['=', ' ', '.'], "_")));
        let more = [&["max_steps_per_epoch=2"], more].concat();
        succeed(1, case(name), &more, &one, folder.path());
        let layout: &[&str] = if layout.is_empty() { &[] } else { &[layout] };
        succeed(2, case(name), &[&more, layout].concat(), &two, folder.path());
        compare(&what, &two, &one);
    }
}

/// The same where nothing but their cards connects the two.
#[test]
fn two_that_cards_connect_learn_what_one_learns() {
    in_the_workspace();
    if !has_two() || is_without_nccl() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    cases::prepare(folder.path());
    for (name, layout) in [("full", "fsdp_reshard_after_forward=true"), ("lora", "data_parallel_replicate_dim=2")] {
        let [one, two] = ["one", "two"].map(|n| folder.path().join(format!("{name}_by_cards_{n}")));
        succeed(1, case(name), &["max_steps_per_epoch=2"], &one, folder.path());
        let mut settings = case(name).settings("fp32", "cuda", &two, folder.path());
        settings.extend(["gradient_accumulation_steps=2", "max_steps_per_epoch=2", layout].map(str::to_owned));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let results = threads::run_by_cards(2, port, Duration::from_secs(120), |_| run(case(name).recipe, &settings));
        assert!(results.iter().all(|one| matches!(one, Ok(Ok(())))), "{name}: {results:?}");
        compare(&format!("{name} without MPI"), &two, &one);
    }
}

/// A run as two processes that their cards connect, with what they say in files beside its folder.
fn start_two(case: &Case, settings: &[String], dir: &Path) -> [Child; 2] {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    // Where processes are stand-ins' cards, they meet by files.
    let meetings = dir.with_extension("meetings");
    std::fs::create_dir_all(&meetings).unwrap();
    ["0", "1"].map(|rank| {
        let log = std::fs::File::create(log_of(dir, rank)).unwrap();
        let mut program = killed::program(case, settings);
        program.env("STAND_IN_MEETINGS", &meetings).env("RANK", rank).env("LOCAL_RANK", rank).env("WORLD_SIZE", "2");
        program.env("LOCAL_WORLD_SIZE", "2").env("MASTER_ADDR", "localhost").env("MASTER_PORT", &port);
        program.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    })
}

fn log_of(dir: &Path, rank: &str) -> PathBuf {
    dir.with_extension(format!("rank_{rank}.log"))
}

/// Two processes in truth: they learn what one learns; and where one is killed, the other ends at once, says which it was, and leaves a
/// checkpoint to go on from.
#[test]
fn two_processes_that_cards_connect() {
    in_the_workspace();
    if !has_two() || is_without_nccl() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    cases::prepare(folder.path());
    let [one, two, lost] = ["one", "two", "lost"].map(|n| folder.path().join(format!("full_processes_{n}")));
    let case = case("full");
    let of = |dir: &Path, more: &[&str]| {
        let mut settings = case.settings("fp32", "cuda", dir, folder.path());
        settings.push("gradient_accumulation_steps=2".to_owned());
        settings.extend(more.iter().map(ToString::to_string));
        settings
    };
    succeed(1, case, &["max_steps_per_epoch=2"], &one, folder.path());
    let ended = start_two(case, &of(&two, &["max_steps_per_epoch=2"]), &two).map(|mut child| child.wait().unwrap());
    let said = || ["0", "1"].map(|rank| std::fs::read_to_string(log_of(&two, rank)).unwrap()).concat();
    assert!(ended.iter().all(std::process::ExitStatus::success), "{}", said());
    compare("two processes without MPI", &two, &one);

    let more = ["max_steps_per_epoch=40", "checkpointer.save_every_n_steps=1"];
    let [mut first, mut second] = start_two(case, &of(&lost, &more), &lost);
    let begun = Instant::now();
    while latest(&lost).is_ok_and(|saved| saved.is_none()) {
        assert!(begun.elapsed() < Duration::from_secs(100) && first.try_wait().unwrap().is_none(), "nothing is saved");
        std::thread::sleep(Duration::from_millis(5));
    }
    second.kill().unwrap();
    second.wait().unwrap();
    let killed = Instant::now();
    while first.try_wait().unwrap().is_none() {
        assert!(killed.elapsed() < Duration::from_secs(10), "it waits for one that was killed");
        std::thread::sleep(Duration::from_millis(5));
    }
    let said = std::fs::read_to_string(log_of(&lost, "0")).unwrap();
    assert!(said.contains("rank 1 has ended"), "{said}");
    assert!(latest(&lost).unwrap().is_some());
}

#[test]
fn one_number_of_cards_goes_on_from_what_another_saved() {
    in_the_workspace();
    if !has_two() || is_without_nccl() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    cases::prepare(folder.path());
    let of = |name: &str| -> PathBuf { folder.path().join(name) };
    let more = ["epochs=2", "max_steps_per_epoch=2"];
    for (processes, name) in [(1, "one"), (2, "two")] {
        succeed(processes, case("full"), &more, &of(name), folder.path());
    }
    compare("two epochs", &of("two"), &of("one"));
    for (from, to) in [("one", 2), ("two", 1)] {
        // As it was behind the first epoch.
        let name = format!("{from} to {to}");
        let first = checkpoints(&of(from)).unwrap().remove(0).path;
        let dir = of(&name);
        std::fs::create_dir_all(dir.join("logs")).unwrap();
        std::fs::create_dir(dir.join(first.file_name().unwrap())).unwrap();
        for entry in std::fs::read_dir(&first).unwrap().map(|entry| entry.unwrap()).filter(|e| e.path().is_file()) {
            std::fs::copy(entry.path(), dir.join(first.file_name().unwrap()).join(entry.file_name())).unwrap();
        }
        std::fs::copy(of(from).join("logs/metrics.jsonl"), dir.join("logs/metrics.jsonl")).unwrap();
        let resumed = [&more[..], &["resume_from_checkpoint=true", "overwrite=false"]].concat();
        succeed(to, case("full"), &resumed, &dir, folder.path());
        compare(&name, &dir, &of("one"));
    }
    assert!(latest(&of("two")).unwrap().is_some());
}

/// What cannot be is said by all, and nothing is written.
#[test]
fn what_two_cannot_do_is_refused() {
    in_the_workspace();
    if !has_card() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    cases::prepare(folder.path());
    let dir = folder.path().join("out");
    let refused = |more: &[&str], said: &[&str]| {
        let errors: Vec<String> =
            on(2, case("full"), more, &dir, folder.path()).into_iter().map(Result::unwrap_err).collect();
        for part in said {
            assert!(errors.iter().any(|error| error.contains(part)), "{part:?} is not in {errors:?}");
        }
        assert!(!dir.exists(), "something was written");
    };
    if is_without_nccl() {
        refused(&[], &["libnccl.so.2 is not in", "pip install 'nvidia-nccl-cu13'"]);
        return;
    }
    match has_two() {
        false => refused(&[], &["ranks 0 and 1 have the same card"]),
        true => refused(&["device=cuda:1"], &["device=cuda:1 is one card", "set device=cuda"]),
    }
    // What needs whole weights, as on processors.
    refused(&["optimizer=muon"], &["data_parallel_shard_dim=1 data_parallel_replicate_dim=2"]);
}

/// Two cards, an NCCL of which results come late, and none at all.
#[test]
fn on_a_stand_in() {
    if std::env::var_os("TUNE_TEST_CARD").is_some() {
        return;
    }
    let Some(folder) = stand_in::folder() else { return };
    let without = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("libcublasLt.so.13"), without.path().join("libcublasLt.so.13")).unwrap();
    for (libraries, is_without) in [(folder, false), (without.path(), true)] {
        let mut all = Command::new(std::env::current_exe().unwrap());
        all.args(["several::", "--test-threads=2", "--nocapture"]).env("TUNE_TEST_CARD", "1");
        stand_in::environment(&mut all, folder);
        all.env("STAND_IN_CARDS", "2").env("STAND_IN_DELAY", "200").env("TUNE_CUDA_LIBRARIES", libraries);
        if is_without {
            all.env(WITHOUT_NCCL, "1");
        }
        let output = all.output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{said}");
        say!("{}", said.lines().filter(|line| line.starts_with("on a card")).collect::<Vec<_>>().join("\n"));
    }
}
