use super::super::tests::{step, validation};
use super::*;

/// Logs steps `from..=to`, with a validation after every fifth.
fn train(dir: &Path, start: Start, from: u64, to: u64) -> PathBuf {
    // Long enough for several blocks.
    let settings = BTreeMap::from([("model".to_owned(), Value::from("tiny ".repeat(20_000)))]);
    let config = WandbLog { project: "p".to_owned(), ..WandbLog::default() };
    let memory = dir.join("logs/wandb_run.json");
    let mut log = WandbLogger::open(&config, &dir.join("wandb"), &memory, &settings, start).unwrap();
    for n in from..=to {
        log.log_step(&step(n)).unwrap();
        if n.is_multiple_of(5) {
            log.log_validation(&validation(n)).unwrap();
            log.log_note(n, &"saved ".repeat(2000)).unwrap();
        }
    }
    log.path
}

/// Steps of the rows, read back.
fn steps(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    let (mut at, mut whole, mut steps) = (HEADER.len(), Vec::new(), Vec::new());
    while let Some((kind, piece, next)) = piece_at(&bytes, at) {
        whole.extend(piece);
        at = next;
        if matches!(kind, 1 | 4) {
            let content = parts(&whole).unwrap()[0];
            if content.0 == u64::from(record::HISTORY) {
                steps.push(step_of(content.1).unwrap());
            }
            whole.clear();
        }
    }
    assert_eq!(at, bytes.len());
    steps
}

#[test]
fn a_resumed_run_goes_on_in_the_same_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = train(dir.path(), Start::Fresh, 1, 9);
    fs::write(path.with_extension("wandb.synced"), "").unwrap();
    // Killed in the middle of a record.
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    append(&mut file, &[1, 2, 3, 4, 200, 0, 1, 9]).unwrap();
    assert_eq!(train(dir.path(), Start::Resumed(5), 6, 12), path);
    assert_eq!(steps(&path), [1, 2, 3, 4, 5, 5, 5, 6, 7, 8, 9, 10, 10, 10, 11, 12]);
    assert!(!path.with_extension("wandb.synced").exists());

    let other = train(dir.path(), Start::Fresh, 1, 1);
    assert_ne!(other, path);
    assert_eq!(train(dir.path(), Start::Resumed(1), 2, 2), other);
}

#[test]
fn an_end_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = train(dir.path(), Start::Fresh, 1, 3);
    let before = fs::read(&path).unwrap();
    let mut log = WandbLogger::go_on(path.clone(), 3).unwrap();
    log.close().unwrap();
    assert!(fs::read(&path).unwrap().len() > before.len());
    let log = WandbLogger::go_on(path.clone(), 3).unwrap();
    assert_eq!((log.rows, log.records), (3, 4 + 2 * 3));
    assert!(fs::read(&path).unwrap() == before);
}

#[test]
fn a_file_of_another_kind_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = train(dir.path(), Start::Fresh, 1, 1);
    fs::write(&path, "something else").unwrap();
    let error = WandbLogger::go_on(path.clone(), 1).err().unwrap().to_string();
    assert!(error.contains("is not a log of wandb's"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "something else");
}

#[test]
fn stamps_are_dates() {
    assert_eq!(stamp(0.0), "19700101_000000");
    assert_eq!(stamp(951_827_696.0), "20000229_123456");
    assert_eq!(stamp(1_795_738_470.9), "20261127_001430");
}
