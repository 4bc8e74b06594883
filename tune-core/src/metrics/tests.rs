use std::fs;
use std::path::Path;

use super::*;

/// The same for every step but for its number.
pub(super) fn step(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        epoch: 0,
        loss: 1.5,
        lr: 3e-4,
        grad_norm: Some(0.75),
        extra: Vec::new(),
        pace: Pace { tokens: 1000, trained_tokens: 250, seconds: 0.5 },
        peak_memory_bytes: Some(3 << 29),
    }
}

pub(super) fn validation(step: u64) -> ValidationMetrics {
    let pace = Pace { tokens: 100, trained_tokens: 40, seconds: 2.0 };
    ValidationMetrics { step, epoch: 0, loss: 2.25, extra: Vec::new(), pace }
}

/// The lines of a log without the times at which its records were made.
pub(super) fn timeless(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| format!("{}}}", line.rsplit_once(r#","time":"#).unwrap().0)).collect()
}

fn open(configs: &[MetricLoggerConfig], folder: &Path, every: u64) -> Result<Metrics> {
    Metrics::open(configs, folder, Start::Fresh, every, Console::silent())
}

#[test]
fn every_nth_step_goes_to_every_logger() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("elsewhere");
    let configs = [
        MetricLoggerConfig::default(),
        MetricLoggerConfig::Jsonl(DiskLog { log_dir: Some(elsewhere.clone()), filename: "other.txt".to_owned() }),
        MetricLoggerConfig::TensorBoard(TensorBoardLog::default()),
        MetricLoggerConfig::Stdout(ElsewhereLog::default()),
    ];
    let mut metrics = open(&configs, dir.path(), 3).unwrap();
    metrics.begin(0, 7);
    for n in 1..=7 {
        metrics.log_step(&step(n)).unwrap();
    }
    metrics.log_validation(&validation(7)).unwrap();
    metrics.close().unwrap();

    let log = timeless(&dir.path().join("logs/metrics.jsonl"));
    let steps: Vec<u64> =
        log.iter().map(|l| serde_json::from_str::<Value>(l).unwrap()["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [3, 6, 7]);
    assert_eq!(timeless(&elsewhere.join("other.txt")), log);
    let names = fs::read_dir(dir.path().join("logs")).unwrap();
    assert!(names.into_iter().any(|e| {
        let name = e.unwrap().file_name();
        name.to_string_lossy().starts_with("events.out.tfevents.")
    }));
}

#[test]
fn two_loggers_do_not_share_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let configs = [MetricLoggerConfig::default(), MetricLoggerConfig::default()];
    let error = open(&configs, dir.path(), 1).err().unwrap().to_string();
    assert!(error.contains("two loggers write"), "{error}");
}

#[test]
fn a_service_without_a_client_is_replaced_and_said_so() {
    let config = MetricLoggerConfig::Wandb(ElsewhereLog::default());
    assert!(config.warning().unwrap().contains("Weights & Biases"));
    let dir = tempfile::tempdir().unwrap();
    open(&[config], dir.path(), 1).unwrap();
    assert!(dir.path().join("logs/metrics.jsonl").exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_names_the_last_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("logs")).unwrap();
    // A device on which every write fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", dir.path().join("logs/metrics.jsonl")).unwrap();
    let mut metrics = open(&[MetricLoggerConfig::default()], dir.path(), 1).unwrap();
    let mut error = || metrics.log_step(&step(21)).unwrap_err().to_string();
    let told = error();
    assert!(told.contains("metrics.jsonl: No space left on device"), "{told}");
    assert!(told.ends_with("No checkpoint was saved before: make room and start again"), "{told}");

    let checkpoint = dir.path().join("epoch_0_step_20");
    fs::create_dir(&checkpoint).unwrap();
    fs::write(checkpoint.join("training_state.json"), "").unwrap();
    let told = error();
    let last = format!("The last good checkpoint is {}: make room and resume from it", checkpoint.display());
    assert!(told.contains("metrics.jsonl: No space left on device") && told.contains(&last), "{told}");
}
