mod arrow;
mod compressed;
mod parquet;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::data::testing::{Folder, fixture};

fn files(file: &Path, source: Option<&str>) -> Files {
    Files { source: source.map(Into::into), ..file.to_owned().into() }
}

fn found(file: &Path, source: Option<&str>) -> Result<Records> {
    find(&files(file, source), &Columns { first: "text", read: vec!["text"] })
}

/// The records of a file, each as JSON.
fn read(file: &Path, source: Option<&str>) -> Result<Vec<Value>> {
    all(&found(file, source)?)
}

fn all(records: &Records) -> Result<Vec<Value>> {
    (0..records.len()).map(|i| Ok(Value::Object(records.read(i)?.columns))).collect()
}

fn fails(file: &Path, source: Option<&str>) -> String {
    read(file, source).unwrap_err().to_string()
}

#[test]
fn csv_and_tsv_as_rfc_4180_has_them() {
    let folder = Folder::new();
    let text =
        "\u{feff}text,n\r\nplain,1\r\n\"a, b\",2\r\n\r\n\"two\r\nlines and \"\"quotes\"\"\",3\r\n5\" disk,\r\nlast,5";
    let expected = json!([
        {"text": "plain", "n": "1"},
        {"text": "a, b", "n": "2"},
        {"text": "two\r\nlines and \"quotes\"", "n": "3"},
        {"text": "5\" disk", "n": ""},
        {"text": "last", "n": "5"},
    ]);
    let path = folder.file("d.csv", text);
    assert_eq!(Value::Array(read(&path, None).unwrap()), expected);
    // Places are those of the file.
    let records = found(&path, None).unwrap();
    let lines: Vec<String> = (0..records.len()).map(|i| records.origin(i).to_string()).collect();
    assert!(
        lines.iter().zip([2, 3, 5, 7, 8]).all(|(place, line)| place.ends_with(&format!("d.csv:{line}"))),
        "{lines:?}"
    );

    let tabs = folder.file("d.tsv", "text\tn\na, b\t1\n\"x\ty\"\t2\n");
    assert_eq!(read(&tabs, None).unwrap(), [json!({"text": "a, b", "n": "1"}), json!({"text": "x\ty", "n": "2"})]);
    let unnamed = folder.file("d.txt", "text\tn\na\t1\n");
    assert_eq!(read(&unnamed, Some("tsv")).unwrap(), [json!({"text": "a", "n": "1"})]);
    // Row numbers, as pandas writes them.
    let pandas = folder.file("p.csv", ",text\n0,a\n1,b\n");
    assert_eq!(read(&pandas, None).unwrap()[1]["text"], "b");
    assert!(fails(&unnamed, None).contains("set `source` to `json`, `jsonl`, `parquet`, `arrow`, `csv` or `tsv`"));
}

#[test]
fn a_broken_csv_file_is_an_error_with_its_line() {
    let folder = Folder::new();
    for (text, expected) in [
        ("text,n\na,1\nb\n", ":3: the record has 1 field, and the header has 2"),
        ("text,n\na,1,2\n", ":2: the record has 3 fields, and the header has 2"),
        ("text,n\na,1\n\"b,2\nc,3\n", ":3: the quote that opens here is not closed"),
        ("text\n\"one\ntwo\nthree\n", ":2: the quote that opens here is not closed"),
        ("text,n\n\"He said \"hi\"\",1\n", ":2: text stands behind a closing quote"),
        ("text,text\na,b\n", ":1: two columns have the name `text`"),
        (
            "text;n\na;1\n",
            ":1: the header names one column, `text;n`; it seems that fields are separated by semicolons",
        ),
        ("text\tn\na\t1\n", "fields are separated by tabs: set `source: tsv`"),
        ("text,n\n", ": the file has no records"),
        ("", ": the file has no records"),
    ] {
        let error = fails(&folder.file("d.csv", text), None);
        assert!(error.contains(&format!("d.csv{expected}")) || error.contains(expected), "{text:?}: {error}");
    }
    let error = fails(&folder.file("latin1.csv", b"text,n\ngr\xfcn,1\n"), None);
    assert!(error.contains("latin1.csv:2: column `text`: the byte 0xfc is not UTF-8"), "{error}");
}

#[test]
fn text_in_utf_16_and_utf_32_is_read() {
    let folder = Folder::new();
    let text = "{\"text\": \"Grüße 🦀\"}\r\n{\"text\": \"b\"}\n";
    let expected = [json!({"text": "Grüße 🦀"}), json!({"text": "b"})];
    let wide: Vec<u16> = text.encode_utf16().collect();
    let sixteen = |bytes: fn(u16) -> [u8; 2]| wide.iter().flat_map(|&unit| bytes(unit)).collect::<Vec<u8>>();
    let thirty_two = |bytes: fn(u32) -> [u8; 4]| text.chars().flat_map(|c| bytes(c.into())).collect::<Vec<u8>>();
    for (name, mark, bytes) in [
        ("UTF-16LE", &b"\xff\xfe"[..], sixteen(u16::to_le_bytes)),
        ("UTF-16BE", b"\xfe\xff", sixteen(u16::to_be_bytes)),
        ("UTF-32LE", b"\xff\xfe\0\0", thirty_two(u32::to_le_bytes)),
        ("UTF-32BE", b"\0\0\xfe\xff", thirty_two(u32::to_be_bytes)),
    ] {
        let marked = folder.file("marked.jsonl", [mark, &bytes].concat());
        assert_eq!(read(&marked, None).unwrap(), expected, "{name} with a mark");
        let bare = folder.file("bare.json", &bytes);
        assert_eq!(read(&bare, None).unwrap(), expected, "{name} without a mark");
        let cut = folder.file("cut.jsonl", &[mark, &bytes].concat()[..mark.len() + bytes.len() - 1]);
        assert!(fails(&cut, None).contains("cut.jsonl:2: ends within a unit of UTF-"), "{}", fails(&cut, None));
    }
    let csv: Vec<u8> = "\u{feff}text,n\r\nä,1\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(read(&folder.file("d.csv", csv), None).unwrap(), [json!({"text": "ä", "n": "1"})]);
    let lone = [
        b"\xff\xfe".to_vec(),
        "[\n\"".encode_utf16().flat_map(u16::to_le_bytes).collect(),
        b"\x3d\xd8".to_vec(),
        b"a\0".to_vec(),
    ];
    let error = fails(&folder.file("lone.json", lone.concat()), None);
    assert!(error.contains("lone.json:2: holds a unit of UTF-16 that is no character"), "{error}");
    let error = fails(&folder.file("latin1.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"gr\xfcn\"}\n"), None);
    assert!(error.contains("latin1.jsonl:2: column 13: the byte 0xfc is not UTF-8"), "{error}");
}

/// Lines are found without holding them: over the borders of what is read at once, too.
#[test]
fn lines_of_every_length_are_found() {
    let folder = Folder::new();
    let line = |n: usize| format!("  {{\"text\": \"{}\"}} ", "x".repeat(n));
    let lengths = [0, 1, 1 << 20, (1 << 20) - 16, 3, 3 << 20];
    let text: String = lengths.iter().map(|&n| line(n) + "\r\n\n").collect();
    let records = read(&folder.file("d.jsonl", text.trim_end()), None).unwrap();
    let found_lengths: Vec<usize> = records.iter().map(|record| record["text"].as_str().unwrap().len()).collect();
    assert_eq!(found_lengths, lengths);
    let records = found(&folder.0.path().join("d.jsonl"), None).unwrap();
    assert!(records.origin(5).to_string().ends_with("d.jsonl:11"));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_read_once_and_kept_and_other_special_files_are_refused() {
    let folder = Folder::new();
    let pipe = folder.0.path().join("pipe.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::write(pipe, "{\"text\": \"a\"}\n{\"text\": \"b\"}\n").unwrap()
    });
    assert_eq!(read(&pipe, None).unwrap().len(), 2);
    writer.join().unwrap();
    assert_eq!(read(&pipe, None).unwrap()[1]["text"], "b");

    let error = fails(Path::new("/dev/zero"), Some("json"));
    assert_eq!(error, "cannot read /dev/zero: it is a device, and a file is expected");
    let socket = folder.0.path().join("socket.jsonl");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(fails(&socket, None).ends_with("it is a socket, and a file is expected"));
}
