//! Files of every format, several of them, and folders.

use std::fs;
use std::path::Path;

use super::*;

#[test]
fn json_files_of_every_shape() {
    let folder = Folder::new();
    let count = |content: &str| load_chat(chat(folder.file("d.json", content))).map(|d| d.samples.len());
    assert_eq!(count(&format!("[{GOOD}, {GOOD}]")).unwrap(), 2);
    assert_eq!(count(&format!("{{\"data\": [{GOOD}], \"version\": 1}}")).unwrap(), 1);
    assert_eq!(count(&format!("{{\"rows\": [{GOOD}]}}")).unwrap(), 1);
    assert_eq!(count(&format!("{GOOD}\n{GOOD}\r\n{GOOD}\n")).unwrap(), 3);
    assert_eq!(count(&format!("\u{feff}{GOOD}")).unwrap(), 1);
    let error = |content: &str| count(content).unwrap_err().to_string();
    assert!(error("[]").contains("the file has no records"));
    assert!(error("3").contains("must be an array of objects, not a number"));
    assert!(error(&format!("[{GOOD},\n 3]")).contains("d.json: item 2: must be a JSON object"));
    assert!(error(&format!("[{GOOD},\n oh]")).contains("d.json:2: column 2: not valid JSON"));
    assert!(error("{\"messages\":\n [}").contains("d.json:2: column 3: not valid JSON"));
    assert!(error(&"[".repeat(100_000)).contains("not valid JSON"));
    let deep = format!("[{{\"messages\": {}{}}}]", "[".repeat(100_000), "]".repeat(100_000));
    assert!(error(&deep).contains("recursion limit"), "{}", error(&deep));
}

#[test]
fn parquet_files() {
    let tokenizer = byte_level(Some(CHATML));
    let mut config = chat(fixture("chats.parquet"));
    config.files.split = "train[:2]".into();
    let dataset = load(&[DatasetConfig::Chat(config.clone())], &tokenizer, None).unwrap();
    assert_eq!(
        shown(&tokenizer, &dataset.samples[1]),
        "<|im_start|>user\nGrüße 🦀<|im_end|>\n<|im_start|>assistant\n[<|im_end|>]\n"
    );
    config.files.split = "train".into();
    let error = load_chat(config).unwrap_err().to_string();
    assert!(error.ends_with("chats.parquet: row 3: the conversation is empty"), "{error}");

    let mut config = instruct(fixture("pairs.parquet"));
    config.files.split = "train[-2:-1]".into();
    let got = texts(&byte_level(None), DatasetConfig::Instruct(config.clone()));
    assert_eq!(got, ["298 + 1[299<|im_end|>]"]);
    config.files.split = "train".into();
    let error = load(&[DatasetConfig::Instruct(config)], &tokenizer, None).unwrap_err().to_string();
    assert!(error.ends_with("pairs.parquet: row 300: column `output` must be a string, not null"), "{error}");
}

#[test]
fn parquet_files_of_every_compression() {
    let rows = |name: &str| -> Vec<Vec<u32>> {
        let mut config = chat(fixture(name));
        config.files.split = "train[:2]".into();
        load_chat(config).unwrap().samples.into_iter().map(|sample| sample.input_ids).collect()
    };
    // Written with snappy; the others hold the same.
    let expected = rows("chats.parquet");
    for name in ["gzip.parquet", "lz4.parquet", "brotli.parquet"] {
        assert_eq!(rows(name), expected, "{name}");
    }

    // No program at hand writes LZO: a column's metadata says so here (`codec` and the first byte of the next field).
    let folder = Folder::new();
    let mut bytes = fs::read(fixture("gzip.parquet")).unwrap();
    let (gzip, lzo) = ([0x15, 2 << 1, 0x16], 3 << 1);
    let at = bytes.windows(3).rposition(|w| w == gzip).unwrap();
    bytes[at + 1] = lzo;
    let error = load_chat(chat(folder.file("lzo.parquet", &bytes))).unwrap_err().to_string();
    assert!(error.contains("lzo.parquet") && error.contains("it is compressed with LZO"), "{error}");
}

#[test]
fn a_damaged_parquet_file_is_an_error() {
    let folder = Folder::new();
    let good = fs::read(fixture("pairs.parquet")).unwrap();
    for cut in (0..good.len()).step_by(37) {
        let path = folder.file("cut.parquet", &good[..cut]);
        let error = load(&[DatasetConfig::Instruct(instruct(path))], &byte_level(None), None).unwrap_err();
        assert!(error.to_string().contains("cut.parquet"), "{error}");
    }
    // Damage inside may pass for data; it must not take the program down.
    for at in (0..good.len()).step_by(5) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x55;
        let path = folder.file("damaged.parquet", &bytes);
        let _ = load(&[DatasetConfig::Instruct(instruct(path))], &byte_level(None), None);
    }
}

#[test]
fn several_files_and_datasets_keep_their_order() {
    let folder = Folder::new();
    let line = |n: usize| format!("{{\"input\": \"{n}\", \"output\": \"x\"}}\n");
    let many: String = (0..500).map(line).collect();
    let (b, a) = (folder.file("b.jsonl", &many), folder.file("a.jsonl", line(900)));
    folder.file("notes.txt", "not data");
    let tokenizer = byte_level(None);
    let origins = |configs: &[InstructDataset]| -> Vec<String> {
        let configs: Vec<DatasetConfig> = configs.iter().cloned().map(DatasetConfig::Instruct).collect();
        let dataset = load(&configs, &tokenizer, None).unwrap();
        assert_eq!(dataset.reports.len(), configs.len());
        dataset.samples.into_iter().map(|s| s.origin).collect()
    };
    let expected_b: Vec<String> = (1..=500).map(|n| format!("{}:{n}", b.display())).collect();
    let expected_a = vec![format!("{}:1", a.display())];
    assert_eq!(origins(&[instruct(&b), instruct(&a)]), [expected_b.clone(), expected_a.clone()].concat());
    // A folder's files go by name; a list is taken as it is given.
    assert_eq!(origins(&[instruct(folder.0.path())]), [expected_a.clone(), expected_b.clone()].concat());
    let mut listed = instruct(&b);
    listed.files.data_files.push(a.clone());
    assert_eq!(origins(&[listed]), [expected_b, expected_a].concat());

    let mut packed = instruct(&b);
    packed.rows.packed = true;
    let configs = [DatasetConfig::Instruct(packed.clone()), DatasetConfig::Instruct(instruct(&a))];
    assert!(load(&configs, &tokenizer, Some(8)).unwrap_err().to_string().contains("all or none"));
    let configs = [DatasetConfig::Instruct(packed)];
    assert_eq!(load(&configs, &tokenizer, Some(8)).unwrap().pack_to, Some(8));
    let error = load(&configs, &tokenizer, None).unwrap_err();
    assert!(error.to_string().contains("needs `max_seq_len`"));
}

#[test]
fn a_folders_splits_are_kept_apart() {
    let folder = Folder::new();
    folder.file("train-0.jsonl", GOOD);
    folder.file("train-1.jsonl", GOOD);
    folder.file("test.jsonl", GOOD);
    let get = |split: &str| {
        let mut config = chat(folder.0.path());
        config.files.split = split.into();
        load_chat(config).map(|d| d.samples.len())
    };
    assert_eq!(get("train").unwrap(), 2);
    assert_eq!(get("test").unwrap(), 1);
    let error = get("validation").unwrap_err().to_string();
    assert!(
        error.contains("no file of the split `validation`; the folder has `test.jsonl`, `train-0.jsonl`"),
        "{error}"
    );
    assert!(get("train[5:]").unwrap_err().to_string().contains("takes none of 2 records"));
}

#[test]
fn a_split_that_is_not_there_is_refused() {
    let folder = Folder::new();
    let one = folder.file("chats.jsonl", format!("{GOOD}\n{GOOD}"));
    let get = |path: &Path, split: &str| {
        let mut config = chat(path);
        config.files.split = split.into();
        load_chat(config).map(|d| d.samples.len()).map_err(|error| error.to_string())
    };
    assert_eq!(get(&one, "train[:50%]"), Ok(1));
    for path in [one.as_path(), folder.0.path()] {
        let error = get(path, "tset[:50%]").unwrap_err();
        assert!(error.contains(": has no split `tset`: ") && error.contains("Write `split: train[:50%]`"), "{error}");
    }
    let test = folder.file("test.jsonl", GOOD);
    assert_eq!((get(&test, "test"), get(&test, "train")), (Ok(1), Ok(1)));
}

#[test]
fn sources() {
    let folder = Folder::new();
    let file = folder.file("data.txt", GOOD);
    let get = |source: Option<&str>, files: &[&Path]| {
        let mut config = chat("");
        config.files.source = source.map(Into::into);
        config.files.data_files = files.iter().map(|f| f.to_path_buf()).collect();
        load_chat(config).map(|d| d.samples.len()).map_err(|e| e.to_string())
    };
    assert_eq!(get(Some("json"), &[&file]), Ok(1));
    let jsonl = folder.file("d.jsonl", GOOD);
    assert_eq!(get(jsonl.to_str(), &[]), Ok(1));
    assert!(get(None, &[&file]).unwrap_err().contains("set `source`"));
    assert!(get(None, &[]).unwrap_err().contains("needs `data_files`"));
    assert!(get(Some("json"), &[]).unwrap_err().contains("needs `data_files`"));
    assert!(get(Some("tatsu-lab/alpaca"), &[]).unwrap_err().contains("hf://tatsu-lab/alpaca"));
    assert!(get(None, &[&folder.0.path().join("none.jsonl")]).unwrap_err().starts_with("cannot read"));
}

/// What `jq .` writes: one object behind the other, over several lines.
#[test]
fn objects_over_several_lines_are_read() {
    let folder = Folder::new();
    let pretty = serde_json::to_string_pretty(&serde_json::from_str::<serde_json::Value>(GOOD).unwrap()).unwrap();
    let records = load_chat(chat(folder.file("d.json", format!("{pretty}\n{pretty}\n{pretty}")))).unwrap();
    assert_eq!(records.samples.len(), 3);
    let said =
        load_chat(chat(folder.file("e.json", format!("{pretty}\n{{\"messages\": []}}")))).unwrap_err().to_string();
    assert!(said.contains("e.json: item 2: the conversation is empty"), "{said}");
}
