//! Files of tokens: what is written, what is read of it, and what is no such file.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::tokenizer::testing::byte_level;

const DOCUMENTS: &str = "{\"text\": \"abcdef\"}\n{\"text\": \"xyz\"}\n{\"text\": \"0123456789\"}\n";

fn config(yaml: &str) -> PretrainData {
    crate::config::load::<PretrainData>(crate::config::Input::yaml("c.yaml", yaml)).unwrap().config
}

fn text(file: &Path, more: &str) -> PretrainData {
    config(&format!("_component_: text\ndata_files: {}\n{more}", file.display()))
}

fn tokens(file: &Path, more: &str) -> PretrainData {
    config(&format!("_component_: tokens\ndata_files: {}\n{more}", file.display()))
}

fn open(config: &PretrainData, max_seq_len: usize) -> Result<Loader> {
    let options = LoaderOptions { batch_size: 2, must_stop: true, ..LoaderOptions::default() };
    Loader::open([config], &byte_level(None), Some(max_seq_len), options)
}

fn fails(config: &PretrainData) -> String {
    open(config, 8).map(drop).unwrap_err().to_string()
}

fn batches(loader: &Loader) -> Vec<Batch> {
    loader.epoch(0).batches(0).collect::<Result<_>>().unwrap()
}

/// Each token and the one that it predicts, sorted.
fn predictions(loader: &Loader) -> Vec<(u32, u32)> {
    let batches = batches(loader);
    let pairs = batches.iter().flat_map(|batch| batch.input_ids.iter().copied().zip(batch.targets.iter().copied()));
    let mut pairs: Vec<_> = pairs.filter(|(_, target)| *target != IGNORE).collect();
    pairs.sort_unstable();
    pairs
}

/// A file of tokens of the documents above, and the file that they are in.
fn written(folder: &Folder, width: Option<TokenWidth>) -> (PathBuf, PathBuf) {
    let (from, out) = (folder.file("d.jsonl", DOCUMENTS), folder.0.path().join("d.bin"));
    let mut seen = Vec::new();
    write_tokens(&text(&from, ""), &byte_level(None), &out, width, |done, all| seen.push((done, all))).unwrap();
    assert_eq!(seen, [(3, 3)]);
    (from, out)
}

#[test]
fn what_is_written_is_ids_and_what_they_are() {
    // The tokens of this tokenizer are bytes, and 259 is its end of text.
    let ids: Vec<u32> =
        ["abcdef", "xyz", "0123456789"].iter().flat_map(|text| text.bytes().map(u32::from).chain([259])).collect();
    for (width, name, expected) in [
        (None, "uint16", ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect::<Vec<u8>>()),
        (Some(TokenWidth::Uint32), "uint32", ids.iter().flat_map(|&id| id.to_le_bytes()).collect()),
    ] {
        let folder = Folder::new();
        let (_, out) = written(&folder, width);
        assert_eq!(fs::read(&out).unwrap(), expected);
        let header: Value = serde_json::from_slice(&fs::read(out.with_extension("json")).unwrap()).unwrap();
        let sum = byte_level(None).vocabulary_sum();
        assert_eq!(
            header,
            json!({"format": "tokens", "dtype": name, "tokens": 22, "documents": 3, "end_of_text": 259, "vocabulary_crc32c": sum})
        );
        assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 3);
    }
}

#[test]
fn rows_are_those_of_the_text() {
    let folder = Folder::new();
    let (from, out) = written(&folder, None);
    for len in [2, 5, 8, 100] {
        let across = "attend_across: true";
        let (of_text, of_tokens) =
            (open(&text(&from, across), len).unwrap(), open(&tokens(&out, across), len).unwrap());
        for (mut theirs, mut ours) in batches(&of_text).into_iter().zip(batches(&of_tokens)) {
            // The last row of text has the last token, which predicts nothing.
            if theirs.tokens() > ours.tokens() {
                assert_eq!((theirs.targets.pop(), theirs.input_ids.pop()), (Some(IGNORE), Some(259)));
                theirs.positions.pop();
                (theirs.len, theirs.spans[0].len) = (ours.len, ours.spans[0].len);
            }
            (theirs.origins, ours.origins) = (Vec::new(), Vec::new());
            assert_eq!(theirs, ours, "{len}");
        }
        assert_eq!(predictions(&of_text), predictions(&of_tokens));
        let (of_text, of_tokens) = (open(&text(&from, ""), len).unwrap(), open(&tokens(&out, ""), len).unwrap());
        assert_eq!(predictions(&of_text), predictions(&of_tokens));
        let report = &of_tokens.reports().unwrap()[0];
        assert_eq!(report.trained_tokens, predictions(&of_tokens).len());
        for batch in batches(&of_tokens) {
            for span in &batch.spans {
                let ids = &batch.input_ids[batch.positions_of(span)];
                assert!(ids[..ids.len() - 1].iter().all(|id| *id != 259), "attention stays inside documents");
            }
        }
    }
    let batch = open(&tokens(&out, ""), 5).unwrap().batch(0, 0).unwrap().unwrap();
    assert!(batch.origins[1].ends_with("d.bin: token 6"), "{:?}", batch.origins);
    // A part of the rows.
    let loader = open(&tokens(&out, "split: train[1:3]\nattend_across: true"), 5).unwrap();
    assert_eq!(loader.rows().unwrap(), 2);
    assert!(loader.batch(0, 0).unwrap().unwrap().origins[0].ends_with("token 6"));
}

#[test]
fn files_of_other_programs_are_read_where_the_width_is_said() {
    let folder = Folder::new();
    let ids: Vec<u8> = [1u16, 2, 3, 259, 4, 5].iter().flat_map(|id| id.to_le_bytes()).collect();
    let path = folder.file("train.bin", &ids);
    let error = fails(&tokens(&path, ""));
    assert!(error.contains("train.bin: has no .json beside it") && error.contains("tune tokenize"), "{error}");
    let found = predictions(&open(&tokens(&path, "dtype: uint16"), 4).unwrap());
    assert_eq!(found, [(1, 2), (2, 3), (3, 259), (4, 5)]);
    let found = predictions(&open(&tokens(&path, "dtype: uint16\nend_of_text: 2"), 4).unwrap());
    assert_eq!(found, [(1, 2), (3, 259), (4, 5), (259, 4)]);
    let error = fails(&tokens(&path, "dtype: uint16\nsplit: tset"));
    assert!(error.contains("train.bin: has no split `tset`"), "{error}");
    // All files of a folder that are of the split.
    folder.file("train_2.bin", &ids);
    folder.file("val.bin", &ids);
    let held_out = open(&tokens(folder.0.path(), "dtype: uint16\nattend_across: true\nsplit: val"), 4).unwrap();
    assert_eq!(held_out.rows().unwrap(), 2);
    let loader = open(&tokens(folder.0.path(), "dtype: uint16\nattend_across: true"), 4).unwrap();
    assert_eq!((loader.rows().unwrap(), predictions(&loader).len()), (4, 10));
    // 100,000 is no token.
    let path = folder.file("large.bin", [1u32, 100_000, 2].iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
    let limits = Limits { embeddings: 300, positions: 100 };
    let tokenizer = byte_level(None).for_model(limits);
    let error = Loader::open([&tokens(&path, "dtype: uint32")], &tokenizer, Some(4), LoaderOptions::default());
    let error = error.map(drop).unwrap_err().to_string();
    assert!(error.contains("large.bin: tokens 1…") && error.contains("100000"), "{error}");
}

#[test]
fn another_content_is_another_fingerprint() {
    let folder = Folder::new();
    let (_, out) = written(&folder, None);
    let fingerprint = |more: &str| open(&tokens(&out, more), 5).unwrap().fingerprint().unwrap();
    let (first, across) = (fingerprint(""), fingerprint("attend_across: true"));
    assert_eq!(first, fingerprint(""));
    assert_ne!(first, across);
    let mut bytes = fs::read(&out).unwrap();
    bytes[20] ^= 1;
    fs::write(&out, bytes).unwrap();
    assert_ne!(first, fingerprint(""));
}

#[test]
fn what_is_no_file_of_tokens_is_refused() {
    let folder = Folder::new();
    let (from, out) = written(&folder, None);
    let header = out.with_extension("json");
    let whole = fs::read(&out).unwrap();
    let said = fs::read_to_string(&header).unwrap();
    fs::write(&out, &whole[..whole.len() - 2]).unwrap();
    assert!(fails(&tokens(&out, "")).contains("d.bin: has 42 bytes, and 22 tokens of 2 bytes are expected"));
    fs::write(&out, &whole).unwrap();
    assert!(fails(&tokens(&out, "dtype: uint32")).contains("`dtype` is another than the .json"));
    for (from, to, expected) in [
        ("\"tokens\"", "\"samples\"", "`format` is `samples`"),
        (&*byte_level(None).vocabulary_sum().to_string(), "7", "made with another tokenizer"),
        ("\"dtype\"", "\"width\"", "does not say what is in the file"),
    ] {
        fs::write(&header, said.replacen(from, to, 1)).unwrap();
        let error = fails(&tokens(&out, ""));
        assert!(error.contains(expected), "{error}");
    }
    fs::write(&header, &said).unwrap();
    let write =
        |out: &Path| write_tokens(&text(&from, ""), &byte_level(None), out, None, |_, _| ()).unwrap_err().to_string();
    assert!(write(&out).contains("d.bin: exists already"));
    assert!(write(&folder.0.path().join("e.npy")).contains("ends in .bin"));
    let both = [text(&from, ""), tokens(&out, "")];
    let error = Loader::open(&both, &byte_level(None), Some(8), LoaderOptions::default()).map(drop).unwrap_err();
    assert!(error.to_string().contains("either all or none must be files of tokens"), "{error}");
    let error = Loader::open(&both[1..], &byte_level(None), None, LoaderOptions::default()).map(drop).unwrap_err();
    assert!(error.to_string().contains("need `tokenizer.max_seq_len`"), "{error}");
    let broken = folder.file("broken.jsonl", "{\"text\": 1}\n");
    let place = folder.0.path().join("f.bin");
    assert!(write_tokens(&text(&broken, ""), &byte_level(None), &place, None, |_, _| ()).is_err() && !place.exists());
    assert_eq!(faults(&[tokens(Path::new("/no/such.bin"), "")], Some(&byte_level(None)), Some(8)).len(), 1);
}
