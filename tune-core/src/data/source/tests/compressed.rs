//! Files compressed with gzip and Zstandard.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::json;

use super::*;

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn compressed_files_are_read() {
    let folder = Folder::new();
    let lines = b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
    let expected = [json!({"text": "a"}), json!({"text": "b"})];
    let zstandard = |text: &[u8]| zstd::encode_all(text, 1).unwrap();
    // Several of them, one behind the other, are one text.
    let parts = |pack: &dyn Fn(&[u8]) -> Vec<u8>| [pack(&lines[..5]), pack(&lines[5..])].concat();
    for (name, content) in [
        ("d.jsonl.gz", gzip(lines)),
        ("D.JSONL.GZ", gzip(lines)),
        ("parts.jsonl.gz", parts(&gzip)),
        ("d.jsonl.zst", zstandard(lines)),
        ("d.ndjson.zstd", zstandard(lines)),
        ("parts.jsonl.zst", parts(&zstandard)),
        ("d.json.gz", gzip(br#"[{"text": "a"}, {"text": "b"}]"#)),
        ("d.csv.gz", gzip(b"text\na\nb\n")),
        ("d.tsv.zst", zstandard(b"text\na\nb\n")),
        // What the first bytes say counts, not the name.
        ("named_otherwise.jsonl", gzip(lines)),
        ("plain.jsonl.gz", lines.to_vec()),
        (
            "wide.jsonl.gz",
            gzip(&String::from_utf8_lossy(lines).encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()),
        ),
    ] {
        let path = folder.file(name, content);
        assert_eq!(read(&path, None).unwrap(), expected, "{name}");
        assert!(is_data(&path), "{name}");
    }
    let table = gzip(&fs::read(fixture("parquet/dated.parquet")).unwrap());
    let records = find(&files(&folder.file("t.parquet.gz", table), None), &Columns { first: "messages", read: vec![] });
    assert_eq!(records.unwrap().len(), 1);
    // Places are those in the text.
    let error = fails(&folder.file("broken.jsonl.gz", gzip(b"{\"text\": \"a\"}\n{\"text\": 1 2}\n")), None);
    assert!(error.contains("broken.jsonl.gz:2: column 12: not valid JSON"), "{error}");
    assert!(!is_data(Path::new("d.txt.gz")) && !is_data(Path::new("d.gz")));
}

#[test]
fn a_damaged_compressed_file_is_an_error() {
    let folder = Folder::new();
    let text: Vec<u8> = (0..40_000).map(|i| (i * i % 251) as u8).collect();
    // As the `zstd` command writes it, with a checksum.
    let mut zstandard = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zstandard.include_checksum(true).unwrap();
    zstandard.write_all(&text).unwrap();
    for (name, whole) in [("d.jsonl.gz", gzip(&text)), ("d.jsonl.zst", zstandard.finish().unwrap())] {
        let error = fails(&folder.file(name, &whole[..whole.len() / 2]), None);
        assert!(error.contains("bytes of what is in it: it ends too early; get or write it again"), "{error}");
        let mut damaged = whole.clone();
        let length = damaged.len();
        damaged[length / 2..length / 2 + 64].fill(0x55);
        let error = fails(&folder.file(name, damaged), None);
        assert!(error.contains(&format!("{name}: not a ")) && error.ends_with("get or write it again"), "{error}");
    }
}
