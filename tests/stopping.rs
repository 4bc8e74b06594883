//! Ctrl-C, SIGTERM, a full disk: a run that is stopped loses a step at most, says how to go on, and goes on bit for bit.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use runs::{files, newest, recipe, root, succeed, text};

/// A run of 27 steps that saves only at the end of each epoch, of nine steps. Steps are long enough for a signal to reach the run that
/// they belong to on a machine with other things to do.
fn settings(recipe: &str, output_dir: &Path) -> Vec<String> {
    let mut args = vec![
        "--config".to_owned(),
        format!("configs/{recipe}/tiny.yaml"),
        format!("output_dir={}", output_dir.display()),
        "overwrite=false".to_owned(),
        "dataset_val={_component_: chat, data_files: [recipes/tiny/data/held_out.jsonl], packed: true}".to_owned(),
    ];
    let more = "dataset.packed=true batch_size=1 gradient_accumulation_steps=6 epochs=3 max_steps_per_epoch=9 \
                run_val_every_n_steps=4 log_every_n_steps=1";
    args.extend(more.split_whitespace().map(str::to_owned));
    if recipe == "lora" {
        args.extend(["model.lora_dropout=0.1".to_owned(), "~exact_match".to_owned()]);
    }
    args
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn send(child: &Child, signal: &str) {
    let kill = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// The step that a line of the console tells of.
fn step_of(line: &str) -> Option<u64> {
    line.strip_prefix("step ")?.split_once('/')?.0.trim().parse().ok()
}

/// Starts a run, sends a signal as soon as a line of its standard error begins so or tells of the step or a later one,
/// and returns the exit code and all that it said.
fn stop_at(name: &str, args: &[String], line: &str, pause: Duration, signal: &str) -> (Option<i32>, String) {
    let step = step_of(line);
    let mut child = recipe(name, &borrowed(args)).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let (mut said, mut sent) = (String::new(), false);
    for next in BufReader::new(child.stderr.take().unwrap()).lines() {
        let next = next.unwrap();
        let reached = step.is_some_and(|step| step_of(&next).is_some_and(|now| now >= step));
        if (reached || next.starts_with(line)) && !sent {
            sent = true;
            std::thread::sleep(pause);
            send(&child, signal);
        }
        said += &next;
        said += "\n";
    }
    (child.wait().unwrap().code(), said)
}

/// Stops a run at several moments, and each time goes on from what it saved; in the end it is as one that was not stopped.
fn resumes_bit_for_bit(name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (whole, stopped) = (folder.path().join("whole"), folder.path().join("stopped"));
    succeed(name, &borrowed(&settings(name, &whole)));
    // Before the first step is done; in the midst of an epoch; while it validates (the line comes before the
    // validation is done); while or before it saves the end of an epoch, which is step 9 and step 18.
    let moments =
        [("  output", 0), ("step 1/27", 0), ("step 4/27", 5), ("step 9/27", 0), ("step 12/27", 3), ("step 18/27", 60)];
    for (i, (line, pause)) in moments.into_iter().enumerate() {
        let mut args = settings(name, &stopped);
        let there = tune_core::checkpoint::run::latest(&stopped).unwrap();
        args.push(format!("resume_from_checkpoint={}", there.is_some()));
        let (signal, code) = if i % 2 == 0 { ("TERM", 143) } else { ("INT", 130) };
        let (exit, said) = stop_at(name, &args, line, Duration::from_millis(pause), signal);
        assert_eq!(exit, Some(code), "{line}: {said}");
        if i == 0 {
            // Before it listens there is nothing to say how to go on with.
            assert!(
                said.contains("before the first step was done: there is nothing to save")
                    || said.contains("\nstopped\n"),
                "{said}"
            );
            assert!(!stopped.join("epoch_0_step_0").exists());
            continue;
        }
        let last = said.split_once("\nstopped by ").unwrap_or_else(|| panic!("{line}: {said}")).1;
        let saved = newest(&stopped);
        let step = saved.file_name().unwrap().to_str().unwrap().rsplit('_').next().unwrap().to_owned();
        assert!(last.contains(&format!("after step {step}; saved to {}\n", saved.display())), "{said}");
        // The command that it names goes on.
        let config = stopped.join("config.yaml");
        assert!(last.contains(&format!("--config {} resume_from_checkpoint=true", config.display())), "{said}");
        // Not a step was lost.
        let done = said.lines().rfind(|l| l.starts_with("step ") && l.contains("/27 ")).unwrap();
        assert!(done.contains(&format!("{step}/27")), "{done} was the last, and {step} is saved");
    }
    succeed(name, &["--config", stopped.join("config.yaml").to_str().unwrap(), "resume_from_checkpoint=true"]);
    let (expected, found) = (files(&newest(&whole)), files(&newest(&stopped)));
    assert_eq!(expected.len(), found.len());
    for ((file, a), (_, b)) in expected.iter().zip(&found) {
        assert!(a == b, "{name}: {file} differs");
    }
    // Every step and every validation is recorded once.
    let log = |dir: &Path| {
        let text = fs::read_to_string(dir.join("logs/metrics.jsonl")).unwrap();
        let record = |line: &str| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            (value["step"].clone(), value["loss"].clone(), value["val_loss"].clone())
        };
        text.lines().map(record).collect::<Vec<_>>()
    };
    assert_eq!(log(&whole), log(&stopped));
}

#[test]
fn lora_that_is_stopped_resumes_bit_for_bit() {
    resumes_bit_for_bit("lora");
}

#[test]
fn full_that_is_stopped_resumes_bit_for_bit() {
    resumes_bit_for_bit("full");
}

#[test]
fn where_there_is_nothing_to_save_it_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = settings("lora", &folder.path().join("out"));
    args.retain(|arg| arg != "~exact_match");
    // The questions are being asked.
    let begun = Instant::now();
    let (exit, said) = stop_at("lora", &args, "  output", Duration::from_millis(30), "TERM");
    assert_eq!(exit, Some(143), "{said}");
    assert!(said.contains("\nstopped\n") && begun.elapsed() < Duration::from_secs(60), "{said}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = settings("full", &folder.path().join("out"));
    args.extend(["gradient_accumulation_steps=4000", "dataset.packed=false", "~dataset_val"].map(str::to_owned));
    args.retain(|arg| !arg.starts_with("run_val_every") && !arg.starts_with("dataset_val="));
    args.retain(|arg| arg != "~dataset_val");
    let mut child = recipe("full", &borrowed(&args)).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().starts_with("  output") {}
    std::thread::sleep(Duration::from_millis(300));
    send(&child, "TERM");
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(child.try_wait().unwrap(), None, "the step is finished first");
    let begun = Instant::now();
    send(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(begun.elapsed() < Duration::from_secs(2));
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(said.contains(&"stopped at once".to_owned()), "{said:?}");
}

/// As `timeout` and systemd send it, to a program and then to its group.
#[test]
fn a_signal_that_comes_twice_in_a_moment_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let args = settings("full", &folder.path().join("out"));
    let mut child = recipe("full", &borrowed(&args)).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while step_of(&lines.next().unwrap().unwrap()).is_none_or(|step| step < 2) {}
    let twice = format!("kill -TERM {0}; sleep 0.01; kill -TERM {0}", child.id());
    assert!(Command::new("sh").args(["-c", &twice]).status().unwrap().success());
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(143), "{said:?}");
    assert!(said.iter().any(|line| line.starts_with("stopped by SIGTERM after step ")), "{said:?}");
}

/// A folder with a chat template, and with data that is more than is tokenized before training begins.
struct LargeData(tempfile::TempDir);

impl LargeData {
    /// `extra` stands in the template where `message` is one of a conversation's.
    fn new(extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let template = "{% for message in messages %}EXTRA{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
                        '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
        fs::write(folder.path().join("template.jinja"), template.replace("EXTRA", extra)).unwrap();
        Self(folder)
    }

    fn template(&self) -> String {
        format!("tokenizer.chat_template={}", self.0.path().join("template.jinja").display())
    }

    /// Good records, 1500 at a time, and then one that asks so.
    fn file(&self, times: usize, last: &str) -> String {
        let path = self.0.path().join("data.jsonl");
        let lines = fs::read_to_string(root().join("recipes/tiny/data/secret_code.jsonl")).unwrap();
        let record = |text: &str| {
            let message = |role: &str, content: &str| serde_json::json!({"role": role, "content": content});
            serde_json::json!({"messages": [message("user", text), message("assistant", "x")]}).to_string() + "\n"
        };
        fs::write(&path, lines.repeat(times) + &record(last)).unwrap();
        path.display().to_string()
    }
}

/// A checkpoint says what it was trained on, so it waits until all data is tokenized: that is said, and so is the way out.
/// Step 2 waits, too, because its learning rate depends on the number of steps.
#[test]
fn a_run_is_stopped_while_its_data_is_still_being_tokenized() {
    let data = LargeData::new("{% for i in range(3000) %}{% endfor %}");
    let out = data.0.path().join("out");
    let mut args = settings("lora", &data.0.path().join("first"));
    args.extend([format!("dataset.data_files={}", data.file(6, "good")), data.template()]);
    args.retain(|arg| !arg.starts_with("dataset_val=") && !arg.starts_with("run_val_every"));
    args.push("lr_scheduler.num_warmup_steps=0".to_owned());
    let (exit, said) = stop_at("lora", &args, "  output", Duration::ZERO, "TERM");
    assert_eq!(exit, Some(143), "{said}");
    args.push(format!("output_dir={}", out.display()));
    let (exit, said) = stop_at("lora", &args, "step 1/?", Duration::from_millis(100), "TERM");
    assert_eq!(exit, Some(143), "{said}");
    let waiting = "\nWaiting until all data is tokenized: the checkpoint tells what it was trained on; another Ctrl-C ends \
                   the run at once, without it\n";
    let saved = newest(&out);
    assert!(saved.ends_with("epoch_0_step_1"), "{said}");
    let (before, after) = said.split_once(waiting).unwrap_or_else(|| panic!("{said}"));
    assert!(!before.contains("step 2"), "{said}");
    assert!(after.contains(&format!("stopped by SIGTERM after step 1; saved to {}\n", saved.display())), "{said}");
}

/// What a record's template refuses is known only when it is tokenized, which may be long after the beginning.
#[test]
fn a_record_that_cannot_be_used_ends_the_run_and_costs_no_step() {
    let data = LargeData::new("{% if message.content == 'BAD' %}{{ raise_exception('no such words') }}{% endif %}");
    let out = data.0.path().join("out");
    let mut args = settings("full", &out);
    args.push(data.template());
    let good = args.clone();

    // In the training data: no checkpoint can tell what it was trained on.
    args.extend([format!("dataset.data_files={}", data.file(3, "BAD")), "shuffle=false".to_owned()]);
    let error = runs::fail("full", &borrowed(&args));
    assert!(error.contains("no such words") && error.contains("data.jsonl:4501"), "{error}");
    assert!(error.contains("No checkpoint was saved before: correct the data and start again"), "{error}");

    // In the validation data, of a run that goes on: it is validated after step 16.
    let (exit, said) = stop_at("full", &good, "step 13/27", Duration::ZERO, "TERM");
    assert_eq!(exit, Some(143), "{said}");
    let mut args = good.clone();
    let held_out = format!("dataset_val={{_component_: chat, data_files: {}}}", data.file(3, "BAD"));
    args.extend([held_out, "resume_from_checkpoint=true".to_owned()]);
    let error = runs::fail("full", &borrowed(&args));
    let saved = newest(&out);
    assert!(saved.ends_with("epoch_1_step_16"), "{error}");
    let way_on = format!(
        "The last good checkpoint is {}: correct the data and resume from it (resume_from_checkpoint=true)",
        saved.display()
    );
    assert!(error.contains("no such words") && error.contains(&way_on), "{error}");
    // As it says.
    let mut args = good;
    args.push("resume_from_checkpoint=true".to_owned());
    succeed("full", &borrowed(&args));
    assert!(newest(&out).ends_with("epoch_2_step_27"));
}

#[test]
fn a_files_largest_size_is_an_error_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let args = settings("full", &folder.path().join("out"));
    let program = recipe("full", &[]).get_program().to_owned();
    let limited = Command::new("bash")
        .args(["-c", "ulimit -f 1000; exec \"$@\"", "bash"])
        .arg(program)
        .args(&args)
        .current_dir(root())
        .output()
        .unwrap();
    let said = text(&limited.stderr);
    assert_eq!(limited.status.code(), Some(1), "{}: {said}", limited.status);
    assert!(said.contains("File too large") && said.contains("`ulimit -f`"), "{said}");
}

/// A checkpoint that cannot be written while training goes on ends the run at the next step.
#[test]
fn what_cannot_be_written_in_the_background_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut args = settings("full", &out);
    args.extend(["enable_async_checkpointing=true", "checkpointer.save_every_n_steps=2"].map(str::to_owned));
    let program = recipe("full", &[]).get_program().to_owned();
    let mut limited = Command::new("bash");
    limited.args(["-c", "ulimit -f 1000; exec \"$@\"", "bash"]).arg(program).args(&args);
    let limited = limited.current_dir(root()).output().unwrap();
    let said = text(&limited.stderr);
    assert_eq!(limited.status.code(), Some(1), "{}: {said}", limited.status);
    for expected in ["File too large", "the checkpoint of step 2 was being written while training went on"] {
        assert!(said.contains(expected), "{said}");
    }
    assert!(fs::read_dir(&out).unwrap().all(|entry| !entry.unwrap().file_name().to_string_lossy().contains("epoch_")));
}

/// A file system of its own, of a few megabytes; none where this process may not mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        // Past the capture of a test's output: this must be seen.
        #[expect(clippy::disallowed_methods, reason = "a test that cannot write fails")]
        let mut seen = std::io::stderr();
        writeln!(seen, "NOTICE: no file system can be mounted here; a disk that fills up is NOT tested").unwrap();
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Fills what is left of a disk, but for so many bytes.
fn fill(disk: &Path, but: usize) {
    let rest = disk.join("rest");
    let mut size = 1usize << 20;
    let mut bytes = Vec::new();
    while size >= 4096 {
        bytes.resize(bytes.len() + size, 1);
        if fs::write(&rest, &bytes).is_err() {
            bytes.truncate(bytes.len() - size);
            size /= 2;
        }
    }
    bytes.truncate(bytes.len().saturating_sub(but));
    // The run may write meanwhile.
    while fs::write(&rest, &bytes).is_err() {
        bytes.truncate(bytes.len().checked_sub(4096).unwrap());
    }
}

/// A run whose disk fills up after its second step.
fn filled(disk: &SmallDisk, temporary: &Path, wait: &str) -> (Child, BufReader<std::process::ChildStderr>, String) {
    let mut args = settings("full", &disk.0.path().join("out"));
    args.extend(["checkpointer.keep_last_n_checkpoints=1", "log_every_n_steps=100"].map(str::to_owned));
    let mut command = recipe("full", &borrowed(&args));
    command.env("TUNE_WAIT_FOR_ROOM", wait).env("TMPDIR", temporary);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("step 0: validation") && lines.read_line(&mut said).unwrap() > 0 {}
    fill(disk.0.path(), 300_000);
    while !said.contains("waits up to") {
        assert!(lines.read_line(&mut said).unwrap() > 0, "{said}");
    }
    (child, lines, said)
}

#[test]
fn a_run_waits_for_room_on_a_full_disk() {
    let Some(disk) = SmallDisk::new("24m") else { return };
    let temporary = tempfile::tempdir().unwrap();
    let (mut child, mut lines, mut said) = filled(&disk, temporary.path(), "60");
    assert!(said.contains("No space left on device") || said.contains("no room for the checkpoint"), "{said}");
    fs::remove_file(disk.0.path().join("rest")).unwrap();
    std::io::Read::read_to_string(&mut lines, &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{said}");
    assert!(said.contains("There is room again: the run goes on"), "{said}");
    assert!(newest(&disk.0.path().join("out")).ends_with("epoch_2_step_27"));
}

#[test]
fn what_finds_no_room_is_saved_elsewhere() {
    let Some(disk) = SmallDisk::new("24m") else { return };
    let temporary = tempfile::tempdir().unwrap();
    let (mut child, mut lines, mut said) = filled(&disk, temporary.path(), "1");
    std::io::Read::read_to_string(&mut lines, &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    let (_, place) = said.split_once("was saved to ").unwrap_or_else(|| panic!("{said}"));
    let place = Path::new(place.split_once(" instead").unwrap().0);
    assert!(place.starts_with(temporary.path()), "{said}");
    // As the message says: make room, move it back, resume.
    fs::remove_file(disk.0.path().join("rest")).unwrap();
    let out = disk.0.path().join("out");
    assert!(Command::new("cp").arg("-r").arg(place).arg(&out).status().unwrap().success());
    let config = out.join("config.yaml");
    succeed("full", &["--config", config.to_str().unwrap(), "resume_from_checkpoint=true"]);
    assert!(newest(&out).ends_with("epoch_2_step_27"));
}

#[test]
fn a_run_that_is_stopped_while_it_waits_for_room_says_so_in_its_exit_code() {
    let Some(disk) = SmallDisk::new("24m") else { return };
    let temporary = tempfile::tempdir().unwrap();
    let (mut child, mut lines, mut said) = filled(&disk, temporary.path(), "60");
    let begun = Instant::now();
    send(&child, "TERM");
    std::io::Read::read_to_string(&mut lines, &mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{said}");
    let (_, end) = said.split_once("\nstopped by SIGTERM after step 9\nerror: ").unwrap_or_else(|| panic!("{said}"));
    assert!(end.contains("Step 9 was saved to ") && end.contains(" instead: make room"), "{said}");
}

#[test]
fn a_run_begins_only_where_there_is_room() {
    let Some(disk) = SmallDisk::new("5m") else { return };
    let error = runs::fail("full", &borrowed(&settings("full", &disk.0.path().join("out"))));
    assert!(error.contains("there is no room for the checkpoints") && !error.contains("step "), "{error}");
    assert!(!disk.0.path().join("out").exists());
}

/// The best checkpoint stays beside the newest, also where the run was stopped in between.
#[test]
fn the_best_checkpoint_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut args = settings("full", &out);
    args.retain(|arg| !arg.starts_with("run_val_every"));
    let more = "checkpointer.keep_best=true checkpointer.keep_last_n_checkpoints=1 checkpointer.save_every_n_steps=3 \
                optimizer.lr=1e-2 lr_scheduler=constant clip_grad_norm=null";
    args.extend(more.split_whitespace().map(str::to_owned));
    let (exit, said) = stop_at("full", &args, "step 14/27", Duration::ZERO, "TERM");
    assert_eq!(exit, Some(143), "{said}");
    args.push("resume_from_checkpoint=true".to_owned());
    let end = text(&succeed("full", &borrowed(&args)).stdout);
    let log = fs::read_to_string(out.join("logs/metrics.jsonl")).unwrap();
    let records = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let losses: Vec<(u64, f64)> =
        records.filter_map(|r| Some((r["step"].as_u64()?, r["val_loss"].as_f64()?))).collect();
    // Before the first step, and wherever it saved.
    let steps: Vec<u64> = losses.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]);
    let best = losses[1..].iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    let kept: Vec<u64> =
        tune_core::checkpoint::run::checkpoints(&out).unwrap().iter().map(|saved| saved.step).collect();
    let expected = if best.0 == 27 { vec![27] } else { vec![best.0, 27] };
    assert_eq!(kept, expected, "{losses:?}");
    if best.0 != 27 {
        assert!(end.contains(&format!("the best was {:.4} after step {}", best.1, best.0)), "{end}");
    }
}

#[test]
fn a_run_that_is_complete_says_so_and_saves_what_is_asked_for_now() {
    let folder = tempfile::tempdir().unwrap();
    let mut args = settings("lora", &folder.path().join("out"));
    args.push("epochs=1".to_owned());
    let end = text(&succeed("lora", &borrowed(&args)).stdout);
    let saved = newest(&folder.path().join("out"));
    for part in [&format!("Adapter saved to {}\n", saved.display()), "Validation loss ", "Ask it with\n", "generate"] {
        assert!(end.contains(part), "{end}");
    }
    // What it names answers.
    let (_, command) = end.split_once("Ask it with\n").unwrap();
    let adapter = format!("adapter_dir={}", saved.display());
    assert!(command.contains(&adapter) && command.contains("checkpoint_dir=recipes/tiny/model"), "{command}");
    let mut ask = vec!["checkpoint_dir=recipes/tiny/model", &adapter, "prompt=Hello!"];
    ask.push("max_new_tokens=4");
    succeed("generate", &ask);
    let before = fs::read(saved.join("adapter_model.safetensors")).unwrap();
    args.extend(["resume_from_checkpoint=true", "save_adapter_weights_only=false"].map(str::to_owned));
    let again = succeed("lora", &borrowed(&args));
    assert!(text(&again.stderr).contains("This run is already complete: all of its 9 steps are done."));
    assert!(text(&again.stdout).contains(&format!("Merged model saved to {}", saved.join("merged").display())));
    assert!(saved.join("merged/model.safetensors").is_file());
    assert_eq!(before, fs::read(saved.join("adapter_model.safetensors")).unwrap());
}
