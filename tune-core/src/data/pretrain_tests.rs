//! Documents in rows, and plain text files.

use std::path::Path;

use super::*;

fn config(yaml: &str, file: &Path) -> Result<PretrainData, String> {
    let yaml = format!("{yaml}\ndata_files: {}\n", file.display());
    crate::config::load::<PretrainData>(crate::config::Input::yaml("c.yaml", yaml))
        .map(|resolved| resolved.config)
        .map_err(|report| report.to_string())
}

fn open(yaml: &str, file: &Path, max_seq_len: Option<usize>) -> Result<Loader> {
    let options = LoaderOptions { batch_size: 4, must_stop: true, ..LoaderOptions::default() };
    Loader::open([&config(yaml, file).unwrap()], &byte_level(None), max_seq_len, options)
}

/// The rows of the first epoch, each piece as text with what is trained in brackets; a token that predicts one behind its row is
/// followed by that one.
fn rows(loader: &Loader) -> Vec<Vec<String>> {
    let tokenizer = byte_level(None);
    let mut rows = Vec::new();
    for batch in loader.epoch(0).batches(0).collect::<Result<Vec<_>>>().unwrap() {
        for row in 0..batch.rows {
            let of = |span: &Span| {
                let positions = batch.positions_of(span);
                let (mut input_ids, mut targets) =
                    (batch.input_ids[positions.clone()].to_vec(), batch.targets[positions].to_vec());
                if let Some(&behind) = targets.last().filter(|target| **target != IGNORE) {
                    input_ids.push(behind);
                    targets.push(IGNORE);
                }
                shown(&tokenizer, &Sample { input_ids, targets, origin: String::new(), label: None })
            };
            rows.push(batch.spans.iter().filter(|span| span.row == row).map(of).collect());
        }
    }
    rows
}

const DOCUMENTS: &str = "{\"text\": \"abcdef\"}\n{\"text\": \"xyz\"}\n{\"text\": \"0123456789\"}\n";

#[test]
fn documents_fill_rows_and_go_on_in_the_next() {
    let folder = Folder::new();
    let file = folder.file("d.jsonl", DOCUMENTS);
    let loader = open("_component_: text", &file, Some(5)).unwrap();
    assert_eq!(
        rows(&loader),
        [vec!["a[bcdef]"], vec!["f[<|im_end|>]", "x[yz<|im_end|>]"], vec!["0[12345]"], vec!["5[6789<|im_end|>]"],]
    );
    let report = &loader.reports().unwrap()[0];
    assert_eq!((report.samples, report.tokens, report.trained_tokens, report.longest), (3, 22, 19, 5));
    assert_eq!((report.truncated, report.cut_tokens), (0, 0));
    let trained: usize = loader.epoch(0).batches(0).map(|batch| batch.unwrap().trained_tokens()).sum();
    assert_eq!(trained, report.trained_tokens);
}

#[test]
fn attention_may_reach_over_the_borders_of_documents() {
    let folder = Folder::new();
    let file = folder.file("d.jsonl", DOCUMENTS);
    let loader = open("_component_: text\nattend_across: true", &file, Some(8)).unwrap();
    assert_eq!(rows(&loader), [["a[bcdef<|im_end|>xy]"], ["y[z<|im_end|>012345]"], ["5[6789<|im_end|>]"]]);
    let report = &loader.reports().unwrap()[0];
    let trained: usize = loader.epoch(0).batches(0).map(|batch| batch.unwrap().trained_tokens()).sum();
    assert_eq!((trained, report.trained_tokens), (21, 21));
    let without = open("_component_: text\nadd_eos: false\nattend_across: true", &file, Some(100)).unwrap();
    assert_eq!(rows(&without), [["a[bcdefxyz0123456789]"]]);
}

#[test]
fn plain_text_is_a_document_a_file() {
    let folder = Folder::new();
    let text = "\u{feff}Two lines,\n\nno \"JSON\" \\ at all.\n";
    let file = folder.file("b.txt", text);
    folder.file("a.txt", "first");
    folder.file("c.md", "not read");
    let shown = |path: &Path| rows(&open("_component_: text\nsource: text", path, Some(100)).unwrap());
    assert_eq!(shown(&file), [["T[wo lines,\n\nno \"JSON\" \\ at all.\n<|im_end|>]"]]);
    let of_folder = shown(folder.0.path());
    assert_eq!(of_folder[0][0], "f[irst<|im_end|>]");
    assert_eq!((of_folder.len(), of_folder[0].len()), (1, 2));
    let fails = |yaml: &str, path: &Path| open(yaml, path, Some(100)).map(drop).unwrap_err().to_string();
    let error = fails("_component_: text", &file);
    assert!(error.contains("or to `text`, if the file is one document"), "{error}");
    let error = fails("_component_: text\nsource: text", &folder.file("d.txt", b"gr\xfcn"));
    assert!(error.contains("d.txt: byte 3: the byte 0xfc is not UTF-8"), "{error}");
    let error = fails("_component_: text\nsource: text", &folder.file("e.txt", " \n"));
    assert!(error.contains("e.txt: the file has no records"), "{error}");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let folder = Folder::new();
    let file = folder.file("d.jsonl", DOCUMENTS);
    let error = open("_component_: text", &file, None).map(drop).unwrap_err().to_string();
    assert!(error.contains("needs `max_seq_len`"), "{error}");
    let two = ["_component_: text", "_component_: text\nattend_across: true"].map(|yaml| config(yaml, &file).unwrap());
    let error = Loader::open(&two, &byte_level(None), Some(8), LoaderOptions::default()).map(drop).unwrap_err();
    assert!(error.to_string().contains("all must fill rows in the same way"), "{error}");
    let error = config("_component_: text\npacking: true", &file).unwrap_err();
    assert!(error.contains("packing"), "{error}");
}
