use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

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
    Metrics::open(configs, folder, &BTreeMap::new(), Start::Fresh, every, Console::silent())
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
fn an_evaluation_goes_to_every_logger() {
    let dir = tempfile::tempdir().unwrap();
    let said = Said::default();
    let configs = [
        MetricLoggerConfig::default(),
        MetricLoggerConfig::Csv(CsvLog { log_dir: None, filename: "metrics.csv".to_owned() }),
        MetricLoggerConfig::TensorBoard(TensorBoardLog::default()),
        MetricLoggerConfig::Wandb(WandbLog { project: "tune".to_owned(), ..WandbLog::default() }),
    ];
    let console = Console::lines(said.clone());
    let mut metrics = Metrics::open(&configs, dir.path(), &BTreeMap::new(), Start::Fresh, 1, console).unwrap();
    metrics.log_step(&step(7)).unwrap();
    let evaluation = EvaluationMetrics {
        step: 7,
        epoch: 0,
        values: vec![("held_out/exact_match".to_owned(), 0.25), ("held_out/regex".to_owned(), f64::NAN)],
        samples: vec![("Hello!".to_owned(), "Good\nmorning, you".to_owned())],
        seconds: 2.0,
    };
    metrics.log_evaluation(&evaluation).unwrap();
    metrics.log_evaluation(&EvaluationMetrics { values: Vec::new(), ..evaluation.clone() }).unwrap();
    metrics.close().unwrap();
    let text = String::from_utf8(said.0.lock().unwrap().clone()).unwrap();
    let samples = "\n  Hello!\n  -> Good\n     morning, you\n";
    let first = format!("step 7: held_out/exact_match 0.2500, held_out/regex NaN, 2s{samples}");
    assert!(text.ends_with(&format!("{first}step 7: samples{samples}")), "{text}");
    let log = timeless(&dir.path().join("logs/metrics.jsonl"));
    let expected = r#"{"step":7,"epoch":0,"held_out/exact_match":0.25,"held_out/regex":null,"eval_seconds":2.0,"#;
    assert_eq!(log[1], format!(r#"{expected}"samples":[{{"prompt":"Hello!","answer":"Good\nmorning, you"}}]}}"#));
    let mut table = ::csv::Reader::from_path(dir.path().join("logs/metrics.csv")).unwrap();
    let at = table.headers().unwrap().iter().position(|name| name == "samples").unwrap();
    let row = table.records().nth(1).unwrap().unwrap();
    assert_eq!(&row[at], r#"[{"prompt":"Hello!","answer":"Good\nmorning, you"}]"#);
    let holds = |path: &Path, part: &[u8]| fs::read(path).unwrap().windows(part.len()).any(|window| window == part);
    let below = |folder: std::path::PathBuf, start: &str| {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut found = entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(start));
        found.next().unwrap()
    };
    let events = below(dir.path().join("logs"), "events.out.tfevents.");
    assert!(holds(&events, b"held_out/exact_match") && holds(&events, b"Hello!  \n-> Good"));
    let run = below(below(dir.path().join("logs/wandb"), "offline-run-"), "run-");
    assert!(holds(&run, b"held_out/exact_match") && holds(&run, br#""Hello!\n-> Good\nmorning, you""#));
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
    let config = MetricLoggerConfig::Comet(ElsewhereLog::default());
    assert!(config.warning().unwrap().contains("Comet"));
    let dir = tempfile::tempdir().unwrap();
    open(&[config], dir.path(), 1).unwrap();
    assert!(dir.path().join("logs/metrics.jsonl").exists());
}

/// A console that tells what it was told.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Said {
    fn warnings(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter_map(|line| line.strip_prefix("warning: ").map(str::to_owned)).collect()
    }
}

/// Trains on these loggers, and returns the warnings and the longest time that a record took.
fn with(configs: &[MetricLoggerConfig], folder: &Path, steps: u64) -> (Vec<String>, Duration) {
    let said = Said::default();
    let console = Console::lines(said.clone());
    let mut metrics = Metrics::open(configs, folder, &BTreeMap::new(), Start::Fresh, 1, console).unwrap();
    let mut longest = Duration::ZERO;
    for n in 1..=steps {
        let begun = Instant::now();
        metrics.log_step(&step(n)).unwrap();
        longest = longest.max(begun.elapsed());
    }
    metrics.close().unwrap();
    (said.warnings(), longest)
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_on_a_full_disk_is_said_once_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("logs")).unwrap();
    // A device on which every write fails as on a full disk.
    std::os::unix::fs::symlink("/dev/full", dir.path().join("logs/metrics.jsonl")).unwrap();
    let configs = [
        MetricLoggerConfig::default(),
        MetricLoggerConfig::Csv(CsvLog { log_dir: None, filename: "metrics.csv".to_owned() }),
    ];
    let (warnings, _) = with(&configs, dir.path(), 5);
    let of_steps: Vec<&String> = warnings.iter().filter(|warning| warning.contains("The run goes on")).collect();
    assert_eq!(of_steps.len(), 1, "{warnings:?}");
    assert!(of_steps[0].contains("metrics.jsonl: No space left on device"), "{warnings:?}");
    assert_eq!(fs::read_to_string(dir.path().join("logs/metrics.csv")).unwrap().lines().count(), 6);
}

fn mlflow(address: String) -> MetricLoggerConfig {
    let experiment_name = "tune".to_owned();
    MetricLoggerConfig::Mlflow(MlflowLog { tracking_uri: Some(address), experiment_name, run_name: None })
}

#[test]
fn a_server_that_hangs_slows_no_step() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let (warnings, longest) = with(&[mlflow(format!("http://{}", server.local_addr().unwrap()))], dir.path(), 5000);
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    let last = warnings.last().unwrap();
    assert!(last.contains("MLflow at http://127.0.0.1:") && last.contains("arrive"), "{warnings:?}");
}

#[test]
fn a_server_that_is_not_there_is_said_once() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let said = Said::default();
    let dir = tempfile::tempdir().unwrap();
    let configs = [mlflow(format!("http://127.0.0.1:{port}"))];
    let console = Console::lines(said.clone());
    let mut metrics = Metrics::open(&configs, dir.path(), &BTreeMap::new(), Start::Fresh, 1, console).unwrap();
    let begun = Instant::now();
    while said.warnings().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30));
        metrics.log_step(&step(1)).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    metrics.log_step(&step(2)).unwrap();
    assert_eq!(said.warnings().len(), 1);
}

#[test]
fn an_address_with_a_password_is_refused_without_showing_it() {
    for (address, part) in [("http://me:secret@host:5000", "holds a name or password"), ("databricks", "was expected")]
    {
        let error = Metrics::check(&[mlflow(address.to_owned())], Path::new("out")).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("secret"), "{error}");
    }
}
