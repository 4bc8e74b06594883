//! What Arrow files hold, and what is read of them.

use std::fs;

use serde_json::Value;

use super::parquet::other_than_pyarrow;
use super::*;

#[test]
fn arrow_values_of_every_type_are_what_pyarrow_reads() {
    let expected: Vec<Value> = serde_json::from_slice(&fs::read(fixture("arrow/expected.json")).unwrap()).unwrap();
    for name in ["stream.arrow", "footer.feather"] {
        let wrong = other_than_pyarrow(&format!("arrow/{name}"), &expected);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// A folder that `save_to_disk` of Python's `datasets` has written has JSON about the data beside it.
#[test]
fn splits_lie_in_folders() {
    let splits = fixture("arrow/splits");
    let texts = |split: &str| {
        let files = Files { split: split.into(), ..files(&splits, None) };
        find(&files, &Columns { first: "text", read: vec!["text"] }).and_then(|records| all(&records))
    };
    assert_eq!(texts("train").unwrap(), [json!({"text": "one"}), json!({"text": "two"})]);
    assert_eq!(texts("train[1:]").unwrap(), [json!({"text": "two"})]);
    assert_eq!(texts("test").unwrap(), [json!({"text": "three"})]);
    assert_eq!(read(&splits.join("test"), None).unwrap(), [json!({"text": "three"})]);
    let error = texts("validation").unwrap_err().to_string();
    assert!(error.ends_with("splits: no folder of the split `validation`; set `split`"), "{error}");
}

/// Of what is not read it is known whether there is something.
#[test]
fn columns_that_are_not_read_are_told_of() {
    let columns = Columns { first: "string", read: vec!["string"] };
    let rows = all(&find(&files(&fixture("arrow/stream.arrow"), None), &columns).unwrap()).unwrap();
    assert_eq!(rows[0]["string"], "Grüße 🦀");
    for column in ["large_string", "messages", "date"] {
        assert_eq!(crate::data::records::kind_of(&rows[0][column]), "not read");
        assert!(rows[1][column].is_null());
    }
}

#[test]
fn a_file_that_is_damaged_is_refused() {
    let folder = Folder::new();
    let says = |name: &str, bytes: &[u8], what: &str| {
        let error = fails(&folder.file(name, bytes), None);
        assert!(
            error.contains(&format!("{name}: not an Arrow file that can be read: ")) && error.contains(what),
            "{error}"
        );
    };
    says("old.feather", b"FEA1 and more", "it is of the first version of Feather: write it again");
    says("short.arrow", b"ARROW1", "");
    says("none.arrow", b"some text, and no stream", "");
    for name in ["lz4.arrow", "zstd.arrow"] {
        let bytes = fs::read(fixture(&format!("arrow/{name}"))).unwrap();
        says(name, &bytes, "its buffers are compressed, which is not read: write it without, in Python:");
    }
    for name in ["stream.arrow", "footer.feather"] {
        let whole = fs::read(fixture(&format!("arrow/{name}"))).unwrap();
        for end in (0..whole.len()).step_by(97) {
            // What is cut between two batches of a stream is a stream of fewer, and one of none has no records.
            if let Err(error) = read(&folder.file("cut.arrow", &whole[..end]), None) {
                let error = error.to_string();
                assert!(error.contains("cut.arrow: ") && !error.contains("panicked"), "{error}");
            }
        }
        for i in (0..whole.len()).step_by(13) {
            let mut bytes = whole.clone();
            bytes[i] ^= 0xff;
            // It is read or refused.
            drop(read(&folder.file("changed.arrow", &bytes), None));
        }
    }
}
