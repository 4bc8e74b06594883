//! Recipes on processes that MPI connects, started as a user starts them: the numbers of one process; and what happens when one
//! dies or hangs. Needs the feature `mpi`, and `mpirun`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/children.rs"]
mod children;
#[path = "common/learnt.rs"]
mod learnt;
#[path = "common/plans.rs"]
mod plans;
#[path = "common/random_model.rs"]
mod random_model;
#[path = "common/runs.rs"]
mod runs;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use children::{children, newest_step, signal, wait_for};
use learnt::{distance, losses, worst};
use plans::{MIB, is_close};
use runs::{newest, recipe, root, succeed, text};
use tune_core::config::cli::LOST;

/// Micro-batches of a step over all processes.
const TOGETHER: usize = 4;

/// What a recipe is told, as one of some processes.
fn args(config: &str, output: &Path, processes: usize, more: &[&str]) -> Vec<String> {
    let mut args = vec![
        "--config".to_owned(),
        format!("configs/{config}.yaml"),
        format!("output_dir={}", output.display()),
        "~overwrite".to_owned(),
        "log_every_n_steps=1".to_owned(),
        "batch_size=4".to_owned(),
        format!("gradient_accumulation_steps={}", TOGETHER / processes),
    ];
    args.extend(more.iter().map(ToString::to_string));
    args
}

/// A recipe on some processes.
fn mpirun(name: &str, processes: usize, args: &[String]) -> Command {
    let program = recipe(name, &[]).get_program().to_owned();
    let mut command = Command::new("mpirun");
    command.current_dir(root()).arg("-n").arg(processes.to_string()).arg(program).args(args);
    for (name, value) in [
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("OMPI_MCA_rmaps_base_oversubscribe", "1"),
        ("OMPI_MCA_hwloc_base_binding_policy", "none"),
        // The same of Open MPI 5.
        ("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe"),
        ("PRTE_MCA_hwloc_default_binding_policy", "none"),
        ("RAYON_NUM_THREADS", "1"),
    ] {
        command.env(name, value);
    }
    command
}

fn as_strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn processes_learn_what_one_learns() {
    let folder = tempfile::tempdir().unwrap();
    for (config, weights) in [("full/tiny", "model.safetensors"), ("lora/tiny", "adapter_model.safetensors")] {
        let name = config.split('/').next().unwrap();
        let more = ["epochs=1", "max_steps_per_epoch=6", "dataset.packed=true"];
        let one = folder.path().join(format!("{name}-1"));
        succeed(name, &as_strs(&args(config, &one, 1, &more)));
        for (processes, layout) in [
            (2, &[][..]),
            (4, &[]),
            (2, &["data_parallel_replicate_dim=2"]),
            (4, &["data_parallel_replicate_dim=2", "fsdp_reshard_after_forward=false"]),
        ] {
            let output = folder.path().join(format!("{name}-{processes}-{}", layout.len()));
            let more = [&more, layout].concat();
            let done = mpirun(name, processes, &args(config, &output, processes, &more)).output().unwrap();
            let (said, told) = (text(&done.stderr), text(&done.stdout));
            assert!(done.status.success(), "{said}");
            // One output, one log.
            assert_eq!(told.matches("saved to").count(), 1, "{told}");
            assert_eq!(said.matches("fine-tuning").count(), 1, "{said}");
            assert!(fs::read_to_string(output.join("logs/rank_1.log")).unwrap().contains("processes"));
            let ours = losses(&output);
            assert!(!ours.is_empty());
            let worst = worst(&ours, &losses(&one));
            let of_weights = distance(&newest(&output).join(weights), &newest(&one).join(weights));
            println!("{name} on {processes} {layout:?}: losses off by {worst:.1e}, weights {of_weights:.1e}");
            assert!(worst <= 1e-5 && of_weights <= 1e-4);
        }
    }
}

/// Processes that divide a model draw at the same time, and what one process draws: answers that are worth something, and those of a
/// student to some of its micro-batches, whichever process has them.
#[test]
fn processes_draw_what_one_draws() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = folder.path().join("teacher");
    let learnt = ["epochs=1", "max_steps_per_epoch=20", "lr_scheduler.num_warmup_steps=2"];
    succeed("full", &as_strs(&args("full/tiny", &teacher, 1, &learnt)));
    let teacher = format!("teacher_checkpointer.checkpoint_dir={}", teacher.display());
    let shared = ["epochs=1", "~dataset_val", "dataset.split='train[:36]'", "lr_scheduler.num_warmup_steps=1"];
    for (name, more) in [
        ("grpo", &["samples=4", "reward=overlap", "updates=2", "kl_beta=0.05"][..]),
        ("distill", &["seed=2", "on_policy={share: 0.5, max_new_tokens: 12}", &teacher]),
    ] {
        let more = [&shared, more].concat();
        let config = format!("{name}/tiny");
        let one = folder.path().join(format!("{name}-1"));
        succeed(name, &as_strs(&args(&config, &one, 1, &more)));
        for (processes, layout) in
            [(2, &[][..]), (2, &["data_parallel_replicate_dim=2"]), (4, &["data_parallel_replicate_dim=2"])]
        {
            let output = folder.path().join(format!("{name}-{processes}-{}", layout.len()));
            let more = [&more[..], layout].concat();
            let done = mpirun(name, processes, &args(&config, &output, processes, &more)).output().unwrap();
            assert!(done.status.success(), "{}", text(&done.stderr));
            let (ours, theirs) = (losses(&output), losses(&one));
            assert_eq!((ours.len(), theirs.len()), (3, 3), "{name}");
            // A first loss of advantages is 0 but for rounding.
            let off = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / b.abs().max(1.0)).fold(0.0, f64::max);
            let weights = "adapter_model.safetensors";
            let of_weights = distance(&newest(&output).join(weights), &newest(&one).join(weights));
            println!("{name} on {processes} {layout:?}: losses off by {off:.1e}, weights {of_weights:.1e}");
            assert!(off <= 1e-5 && of_weights <= 1e-4, "{ours:?} {theirs:?}");
        }
    }
}

/// The plan of each of two processes, which a run refuses to begin with where there is not enough, against what the first then
/// held at most, saving included.
#[test]
fn two_processes_take_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    let sizes = serde_json::json!({ "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8 });
    random_model::write(&model, &sizes);
    let [model, teacher] = ["", "teacher_"].map(|of| format!("{of}checkpointer.checkpoint_dir={}", model.display()));
    // Random weights seldom end an answer, so most are as long as was planned.
    let own = "on_policy={share: 1, max_new_tokens: 6}";
    let mut table = String::new();
    let mut is_wrong = false;
    for (name, more) in [
        ("full", &["dtype=fp32", "clip_grad_norm=1.0"][..]),
        ("full", &["dtype=bf16", "enable_activation_checkpointing=true"]),
        ("lora", &["dtype=fp32", "~exact_match"]),
        ("lora", &["dtype=bf16", "~exact_match", "model.quantize_base=true"]),
        ("dpo", &["~model", "dtype=fp32"]),
        ("full", &["dtype=fp32", "fsdp_reshard_after_forward=false"]),
        ("lora", &["dtype=bf16", "~exact_match", "model.quantize_base=true", "fsdp_reshard_after_forward=false"]),
        ("full", &["dtype=fp32", "data_parallel_replicate_dim=2"]),
        ("full", &["dtype=fp32", "enable_async_checkpointing=true", "checkpointer.save_every_n_steps=1"]),
        ("lora", &["dtype=bf16", "~exact_match", "data_parallel_replicate_dim=2"]),
        ("grpo", &["dtype=fp32", "samples=4", "max_new_tokens=6", "~dataset_val"]),
        ("distill", &["dtype=fp32", own, &teacher, "~dataset_val"]),
    ] {
        let output = folder.path().join("out");
        let shared = ["epochs=2", "max_steps_per_epoch=3", &model];
        let more: Vec<&str> = shared.into_iter().chain(more.iter().copied()).collect();
        let args = args(&format!("{name}/tiny"), &output, 2, &more);
        let refused = mpirun(name, 2, &args).env("TUNE_MEMORY", "1KiB").output().unwrap();
        let said = text(&refused.stderr);
        let planned = said.split_once("each process of this run needs ").and_then(|(_, said)| said.split_once(" MiB"));
        let planned: f64 = planned.unwrap_or_else(|| panic!("{said}")).0.parse().unwrap();
        assert!(!refused.status.success() && !output.exists());
        let done = mpirun(name, 2, &args).output().unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        let log = fs::read_to_string(output.join("logs/metrics.jsonl")).unwrap();
        let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let peak = records.filter_map(|record| record["peak_memory_bytes"].as_f64()).next_back().unwrap() / MIB;
        let off = planned / peak - 1.0;
        is_wrong |= !is_close(planned, peak, 0.0);
        table.push_str(&format!("{:<70}{planned:>8.1}{peak:>8.1} MiB {:>+6.1} %\n", more[3..].join(" "), 100.0 * off));
        fs::remove_dir_all(&output).unwrap();
    }
    println!("{:<70}{:>8}{:>8}\n{table}", "of each of two processes", "planned", "taken");
    assert!(!is_wrong, "\n{table}");
}

/// The recipe's processes below `mpirun`, in the order of their ranks.
fn ranks(mpirun: u32) -> Vec<i32> {
    let rank = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let name = "OMPI_COMM_WORLD_RANK=";
        let rank = text(&environment).split('\0').find_map(|one| one.strip_prefix(name)?.parse::<i32>().ok());
        rank.map(|rank| (rank, pid))
    };
    children(mpirun).into_iter().filter_map(rank).collect::<BTreeMap<_, _>>().into_values().collect()
}

/// Waits until a run has logged so many steps.
fn wait_for_steps(child: &mut Child, output: &Path, steps: usize) {
    let begun = Instant::now();
    while fs::read_to_string(output.join("logs/metrics.jsonl")).map_or(0, |text| text.lines().count()) < steps {
        assert!(begun.elapsed() < Duration::from_secs(120), "the run does not begin");
        assert!(child.try_wait().unwrap().is_none(), "the run has ended");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the end of a run, but no longer than this, and returns its exit code and what it said.
fn wait_for_end(mut child: Child, longest: Duration) -> (Option<i32>, String) {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > longest {
            child.kill().unwrap();
            panic!("the others do not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), text(&output.stderr))
}

/// Waits until none of these processes is there any more, beyond whom mpirun does not wait.
fn wait_until_gone(pids: &[i32], longest: Duration) {
    let begun = Instant::now();
    // A process has ended when the last of its threads has; one that nobody has asked about is still listed.
    let runs = |thread: fs::DirEntry| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    };
    let is_there =
        |pid: &i32| fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| threads.flatten().any(runs));
    while pids.iter().any(is_there) {
        assert!(begun.elapsed() < longest, "the others do not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const LONG: [&str; 3] = ["epochs=2", "max_steps_per_epoch=20", "checkpointer.save_every_n_steps=4"];

/// A process that is killed at some moment: the others end, no checkpoint is torn, and the run that goes on ends with the bits
/// of one that was not killed.
#[test]
fn a_process_that_is_killed_ends_the_run_and_it_can_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let done = mpirun("full", 2, &args("full/tiny", &whole, 2, &LONG)).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    for (i, steps) in [1, 5, 9, 14].into_iter().enumerate() {
        kill_and_go_on(folder.path(), &whole, i, (steps, 7 * i as u64, i % 2));
    }
}

/// The same at twenty moments that nobody has chosen.
#[test]
#[ignore = "takes minutes"]
fn a_process_may_be_killed_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let done = mpirun("full", 2, &args("full/tiny", &whole, 2, &LONG)).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let mut random = 0x9e37_79b9_u64;
    for i in 0..20 {
        // Knuth's linear congruential generator.
        let mut below = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        let moment = (1 + below(30) as usize, below(60), below(2) as usize);
        println!("{i}: rank {} {} ms after step {}", moment.2, moment.1, moment.0);
        kill_and_go_on(folder.path(), &whole, i, moment);
    }
}

/// Kills a rank so many milliseconds after a step, and goes on.
fn kill_and_go_on(folder: &Path, whole: &Path, i: usize, (steps, delay, rank): (usize, u64, usize)) {
    let bytes = |dir: &Path| {
        ["model.safetensors", "training_state.safetensors"].map(|file| fs::read(newest(dir).join(file)).unwrap())
    };
    let output = folder.join(i.to_string());
    let mut command = mpirun("full", 2, &args("full/tiny", &output, 2, &LONG));
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    wait_for_steps(&mut child, &output, steps);
    let pids = ranks(child.id());
    assert_eq!(pids.len(), 2);
    // Rank 0 may be at a checkpoint.
    std::thread::sleep(Duration::from_millis(delay));
    signal("-KILL", pids[rank]);
    let (code, said) = wait_for_end(child, Duration::from_secs(10));
    assert!(code == Some(137) && !said.is_empty(), "{code:?} {said}");
    wait_until_gone(&pids, Duration::from_secs(10));
    let begun = !tune_core::checkpoint::run::checkpoints(&output).unwrap().is_empty();
    let resume = if begun { "resume_from_checkpoint=true" } else { "resume_from_checkpoint=false" };
    let more: Vec<&str> = LONG.iter().copied().chain([resume]).collect();
    let done = mpirun("full", 2, &args("full/tiny", &output, 2, &more)).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(bytes(&output) == bytes(whole), "killed after step {steps}");
}

/// A process that hangs: the others end at the time limit, and say where they have waited.
#[test]
fn a_process_that_hangs_is_waited_for_until_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let mut command = mpirun("full", 2, &args("full/tiny", &output, 2, &["epochs=2"]));
    command.env("TUNE_COLLECTIVE_TIMEOUT", "3").stderr(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    wait_for_steps(&mut child, &output, 2);
    let stopped = ranks(child.id())[1];
    signal("-STOP", stopped);
    let (code, said) = wait_for_end(child, Duration::from_secs(20));
    assert_eq!(code, Some(i32::from(LOST)), "{said}");
    assert!(said.contains("error: rank 0 of 2 has waited 3 s in the "), "{said}");
}

/// A run on four processes under `tune run`, which starts it again: `full` as it was built for these tests.
fn tune(output: &Path, options: &[&str]) -> Child {
    let args = args("full/tiny", output, 4, &LONG);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
    command.current_dir(root()).args(["run", "--nproc-per-node", "4"]).args(options).arg("full").args(args);
    command.env("CARGO", "true").env("RAYON_NUM_THREADS", "1").env("TUNE_COLLECTIVE_TIMEOUT", "10");
    command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// Waits until the recipe runs in so many processes, none of which is one of those.
fn other_ranks(tune: &mut Child, processes: usize, before: &[i32]) -> Vec<i32> {
    let id = tune.id();
    wait_for(tune, "processes", || {
        let found: Vec<i32> = children(id).into_iter().flat_map(|mpirun| ranks(mpirun.cast_unsigned())).collect();
        let are_others = found.len() == processes && found.iter().all(|pid| !before.contains(pid));
        are_others.then_some(found)
    })
}

/// One process after the other is killed: the run goes on from its newest checkpoint, at last on half as many processes, with the same
/// batches in a step. One that hangs is lost like one that was killed.
#[test]
fn a_run_that_loses_processes_goes_on_with_fewer() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, output) = (folder.path().join("whole"), folder.path().join("out"));
    let done = mpirun("full", 4, &args("full/tiny", &whole, 4, &LONG)).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));

    let mut child = tune(&output, &["--max-restarts", "3"]);
    let first = other_ranks(&mut child, 4, &[]);
    wait_for(&mut child, "checkpoint", || (newest_step(&output) >= 4).then_some(()));
    signal("-KILL", first[2]);
    let second = other_ranks(&mut child, 4, &first);
    signal("-KILL", second[0]);
    let third = other_ranks(&mut child, 2, &[first, second].concat());
    let there = newest_step(&output);
    wait_for(&mut child, "checkpoint of two processes", || (newest_step(&output) > there).then_some(()));
    signal("-STOP", third[1]);
    let (code, said) = wait_for_end(child, Duration::from_secs(120));
    assert_eq!(code, Some(0), "{said}");
    let from = format!("the run goes on from {}", output.display());
    for (restart, loss, on) in [
        ("restart 1 of 3: ", "a process was killed (signal 9", " on 4 processes\n"),
        (
            "restart 2 of 3: ",
            "a process was killed (signal 9",
            " on 2 instead of 4 processes, with the same batches in a step\n",
        ),
        ("restart 3 of 3: ", "a process has died or hangs", " on 2 processes\n"),
    ] {
        let line =
            said.split_inclusive('\n').find(|line| line.starts_with(restart)).unwrap_or_else(|| panic!("{said}"));
        assert!(line.contains(loss) && line.contains(&from) && line.ends_with(on), "{line}");
    }
    let worst = worst(&losses(&output), &losses(&whole));
    let of_weights = distance(&newest(&output).join("model.safetensors"), &newest(&whole).join("model.safetensors"));
    println!("on 4, 4, 2 and 2 processes: losses off by {worst:.1e}, weights {of_weights:.1e}");
    assert!(worst <= 1e-5 && of_weights <= 1e-4);
}

/// On no fewer than was said.
#[test]
fn a_run_goes_on_with_no_fewer_processes_than_was_said() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let mut child = tune(&output, &["--max-restarts", "1", "--min-nproc", "4"]);
    let first = other_ranks(&mut child, 4, &[]);
    wait_for(&mut child, "checkpoint", || (newest_step(&output) >= 4).then_some(()));
    signal("-KILL", first[1]);
    let second = other_ranks(&mut child, 4, &first);
    signal("-KILL", second[1]);
    let (code, said) = wait_for_end(child, Duration::from_secs(60));
    assert_eq!(code, Some(137), "{said}");
    assert!(said.contains("restart 1 of 1: ") && said.contains("error: a process was killed"), "{said}");
    assert!(!said.contains("instead of"), "{said}");
}

/// Those that are started with another config are told at once.
#[test]
fn another_config_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output: PathBuf = folder.path().join("out");
    let program = recipe("full", &[]).get_program().to_owned();
    let mut command = mpirun("full", 1, &args("full/tiny", &output, 2, &[]));
    command.args([":", "-n", "1"]).arg(program).args(args("full/tiny", &output, 2, &["optimizer.lr=5e-4"]));
    let done = command.output().unwrap();
    let said = text(&done.stderr);
    assert!(!done.status.success() && said.contains("rank 1 has another config than rank 0"), "{said}");
    assert!(!output.exists());
}

/// Two machines that see each other by TCP alone: network namespaces. The bits are those of two processes of one machine. Where
/// namespaces or `tc netem` are not to be had it says so.
#[test]
fn two_hosts_learn_what_one_host_learns() {
    let folder = tempfile::tempdir().unwrap();
    let more = ["epochs=1", "max_steps_per_epoch=4"];
    let here = folder.path().join("here");
    let done = mpirun("full", 2, &args("full/tiny", &here, 2, &more)).output().unwrap();
    assert!(done.status.success(), "{}", text(&done.stderr));
    let seconds = |output: &Path| {
        let log = fs::read_to_string(output.join("logs/metrics.jsonl")).unwrap();
        let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        records.filter_map(|record| record["step_seconds"].as_f64()).sum::<f64>()
    };
    for (i, network) in [&[][..], &["--delay", "2ms", "--loss", "0.1%"]].into_iter().enumerate() {
        let output = folder.path().join(i.to_string());
        let mut command = Command::new(root().join("tests/two_hosts.sh"));
        command.current_dir(root()).args(network).arg(recipe("full", &[]).get_program());
        let done = command.args(args("full/tiny", &output, 2, &more)).output().unwrap();
        let said = text(&done.stderr);
        if done.status.code() == Some(77) {
            println!("NOTICE: not tried ({network:?}): {said}");
            continue;
        }
        assert!(done.status.success(), "{network:?}: {said}");
        for file in ["model.safetensors", "training_state.safetensors"] {
            let same = fs::read(newest(&output).join(file)).unwrap() == fs::read(newest(&here).join(file)).unwrap();
            assert!(same, "{network:?}: {file}");
        }
        println!("{network:?}: {:.1} s, on one host {:.1} s", seconds(&output), seconds(&here));
    }
}
