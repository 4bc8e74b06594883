use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::data::records::{kind_of, no_json};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/parquet").join(name)
}

fn files(file: &Path, source: Option<&str>) -> Files {
    Files { source: source.map(str::to_owned), data_files: vec![file.to_owned()], split: "train".into() }
}

/// The records of a file, each as JSON.
fn read(file: &Path, source: Option<&str>) -> Result<Vec<Value>> {
    let records = find(&files(file, source), "text")?;
    (0..records.len()).map(|i| Ok(Value::Object(records.read(i)?.columns))).collect()
}

fn fails(file: &Path, source: Option<&str>) -> String {
    read(file, source).unwrap_err().to_string()
}

/// What we say of a value that is of this type in Python.
fn kinds(python: &str) -> &'static [&'static str] {
    match python {
        "builtins.bytes" => {
            &["bytes that are not UTF-8", "bytes of a fixed length", "BSON", "an interval of time", "a geometry"]
        }
        "UnicodeDecodeError" => &["bytes that are not UTF-8"],
        "uuid.UUID" => &["a UUID"],
        "float" => &["not a number (NaN)", "an infinite number"],
        "decimal.Decimal" => &["a decimal number"],
        "datetime.date" => &["a date"],
        "datetime.time" => &["a time of day"],
        "datetime.datetime" => &["a timestamp"],
        "map" => &["a map whose keys are no text"],
        other => panic!("{other}"),
    }
}

/// Whether a value is what pyarrow reads; `column` is for the few that are not.
fn is_as_pyarrow_has_it(column: &str, ours: &Value, pyarrow: &Value) -> bool {
    if let Some(python) = pyarrow["python"].as_str() {
        return match column {
            // Text, which pyarrow leaves as bytes.
            "enum" | "enum_new" | "bytes_of_text" => ours.is_string(),
            _ => kinds(python).contains(&kind_of(ours)),
        };
    }
    match (ours, pyarrow) {
        _ if column == "variant" && !pyarrow.is_null() => kind_of(ours) == "a variant",
        // No annotation, so pyarrow cannot know that it is invalid.
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_as_pyarrow_has_it(column, a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|((a, x), (b, y))| a == b && is_as_pyarrow_has_it(column, x, y))
        }
        (a, b) => a == b,
    }
}

#[test]
fn parquet_values_of_every_type_and_every_form_are_what_pyarrow_reads() {
    let expected: Value = serde_json::from_slice(&fs::read(fixture("expected.json")).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for (name, rows) in expected.as_object().unwrap() {
        let ours = read(&fixture(name), None).unwrap();
        assert_eq!(ours.len(), rows.as_array().unwrap().len(), "{name}");
        for (i, (ours, rows)) in ours.iter().zip(rows.as_array().unwrap()).enumerate() {
            for (column, pyarrow) in rows.as_object().unwrap() {
                // A column that is no UTF-8 anywhere cannot be read by pyarrow at all.
                if i > 0 && pyarrow["python"] == "UnicodeDecodeError" {
                    continue;
                }
                if !is_as_pyarrow_has_it(column, &ours[column], pyarrow) {
                    wrong.push(format!("{name}, row {}, {column}: {}, not {pyarrow}", i + 1, ours[column]));
                }
            }
            assert_eq!(ours.as_object().unwrap().len(), rows.as_object().unwrap().len());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
