//! What Parquet files hold, and what is read of them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use serde_json::Value;

use super::*;
use crate::data::records::kind_of;
use crate::data::testing::CHATML;
use crate::data::{ChatDataset, DatasetConfig, TextDataset};
use crate::tokenizer::testing::byte_level;

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
        "datetime.timedelta" => &["an interval of time"],
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
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_as_pyarrow_has_it(column, a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((a, x), (b, y))| a == b && is_as_pyarrow_has_it(column, x, y))
        }
        (a, b) => a == b,
    }
}

#[test]
fn parquet_values_of_every_type_and_every_form_are_what_pyarrow_reads() {
    let expected: Value = serde_json::from_slice(&fs::read(fixture("parquet/expected.json")).unwrap()).unwrap();
    let mut wrong = Vec::new();
    for (name, rows) in expected.as_object().unwrap() {
        wrong.extend(other_than_pyarrow(&format!("parquet/{name}"), rows.as_array().unwrap()));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a file's values are, where they are not what pyarrow reads.
pub(super) fn other_than_pyarrow(name: &str, expected: &[Value]) -> Vec<String> {
    let mut wrong = Vec::new();
    let columns = expected[0].as_object().unwrap().keys().map(String::as_str).collect();
    let columns = Columns { first: "", read: columns };
    let ours = all(&find(&files(&fixture(name), None), &columns).unwrap()).unwrap();
    assert_eq!(ours.len(), expected.len(), "{name}");
    for (i, (ours, row)) in ours.iter().zip(expected).enumerate() {
        for (column, pyarrow) in row.as_object().unwrap() {
            // A column that is no UTF-8 anywhere cannot be read by pyarrow at all.
            if i > 0 && pyarrow["python"] == "UnicodeDecodeError" {
                continue;
            }
            if !is_as_pyarrow_has_it(column, &ours[column], pyarrow) {
                wrong.push(format!("{name}, row {}, {column}: {}, not {pyarrow}", i + 1, ours[column]));
            }
        }
        assert_eq!(ours.as_object().unwrap().len(), row.as_object().unwrap().len());
    }
    wrong
}

/// What is wrong with a file's first broken record, as a run says it.
fn dataset_error(config: DatasetConfig, template: &str) -> String {
    crate::data::load(&[config], &byte_level(Some(template)), None).unwrap_err().to_string()
}

fn chats(file: &Path) -> ChatDataset {
    ChatDataset::openai(files(file, None))
}

#[test]
fn a_column_of_no_text_is_an_error_where_it_is_text_and_none_elsewhere() {
    for (name, what) in [
        ("date", "a date"),
        ("timestamp_us", "a timestamp"),
        ("decimal_small", "a decimal number"),
        ("fixed", "bytes of a fixed length"),
        ("bytes", "bytes that are not UTF-8"),
        ("uuid", "a UUID"),
        ("nan", "not a number (NaN)"),
        ("int64", "a number"),
        ("map", "an object"),
    ] {
        let path = fixture("parquet/types.parquet");
        let text = DatasetConfig::Text(TextDataset {
            files: files(&path, None),
            column: name.into(),
            add_eos: true,
            rows: crate::data::Rows::default(),
            split_across_pack: false,
        });
        let expected = format!("types.parquet: row 1: column `{name}` must be a string, not {what}");
        let error = dataset_error(text, CHATML);
        assert!(error.contains(&expected), "{error}");
    }
    // Beside them, text is text.
    let mut config = TextDataset {
        files: files(&fixture("parquet/types.parquet"), None),
        column: "string".into(),
        add_eos: true,
        rows: crate::data::Rows::default(),
        split_across_pack: false,
    };
    config.files.split = "train[:1]".into();
    let dataset = crate::data::load(&[DatasetConfig::Text(config)], &byte_level(None), None).unwrap();
    assert_eq!(dataset.samples.len(), 1);
}

#[test]
fn a_conversation_may_hold_a_date_that_the_template_does_not_read() {
    let path = fixture("parquet/dated.parquet");
    let dataset = crate::data::load(&[DatasetConfig::Chat(chats(&path))], &byte_level(Some(CHATML)), None).unwrap();
    assert_eq!(dataset.samples.len(), 1);
    let reads_it = CHATML.replace("message['role'] +", "message['role'] ~ message['when'] ~");
    assert_ne!(reads_it, CHATML);
    let error = dataset_error(DatasetConfig::Chat(chats(&path)), &reads_it);
    let expected = "row 1: message 1: `when`, which the chat template reads, is or holds a timestamp: only text";
    assert!(error.contains(expected), "{error}");

    let mut config = chats(&path);
    config.content_key = Some("when".into());
    let error = dataset_error(DatasetConfig::Chat(config), CHATML);
    assert!(error.contains("message 1: `when` must be a string or a list of text parts, not a timestamp"), "{error}");
    let mut config = chats(&path);
    config.conversation_column = "dates".into();
    let error = dataset_error(DatasetConfig::Chat(config), CHATML);
    assert!(error.contains("message 1: must be an object, not a date"), "{error}");
}

/// A table of a text that is read, and of columns that are not, with how many of its five rows have something there.
/// Their pages are overwritten.
#[test]
fn columns_that_are_not_read_are_not_unpacked() {
    let schema = "message m { required binary text (UTF8); optional binary some (UTF8); optional binary none (UTF8); \
                  required binary empty (UTF8); required binary all (UTF8); optional group list (LIST) { repeated group \
                  list { optional binary element (UTF8); } } optional group pair { optional binary a (UTF8); optional \
                  binary b (UTF8); } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut push = |texts: &[&str], definitions: Option<&[i16]>, repetitions: Option<&[i16]>| {
        let mut column = group.next_column().unwrap().unwrap();
        let texts: Vec<ByteArray> = texts.iter().map(|&text| text.into()).collect();
        column.typed::<ByteArrayType>().write_batch(&texts, definitions, repetitions).unwrap();
        column.close().unwrap();
    };
    push(&["1", "2", "3", "4", "5"], None, None);
    push(&["x", "y", "z"], Some(&[1, 0, 1, 0, 1]), None);
    push(&[], Some(&[0; 5]), None);
    push(&[""; 5], None, None);
    push(&["x"; 5], None, None);
    // No list, an empty one, two elements, no text in a list, one.
    push(&["x", "y", "z"], Some(&[0, 1, 3, 3, 2, 3]), Some(&[0, 0, 0, 1, 0, 0]));
    // A pair of which one text is there in two rows, the other in one.
    push(&["x", "y"], Some(&[2, 0, 2, 0, 0]), None);
    push(&["x"], Some(&[1, 0, 2, 0, 0]), None);
    group.close().unwrap();
    let metadata = writer.close().unwrap();
    for chunk in &metadata.row_group(0).columns()[1..] {
        let (start, length) = chunk.byte_range();
        bytes[start as usize..][..length as usize].fill(0xff);
    }
    let folder = Folder::new();
    let path = folder.file("d.parquet", bytes);
    let rows = read(&path, None).unwrap();
    assert_eq!(rows.iter().map(|row| row["text"].as_str().unwrap()).collect::<String>(), "12345");
    let held = |column: &str| rows.iter().filter(|row| !row[column].is_null()).count();
    assert_eq!(["some", "none", "empty", "all", "list", "pair"].map(held), [3, 0, 0, 5, 3, 2]);
    // Where the column that a record must have is missing, lists are looked at: one may be what is meant.
    let absent = Columns { first: "messages", read: vec!["messages"] };
    assert!(find(&files(&path, None), &absent).is_err());
}

#[test]
fn a_schema_that_is_nested_too_deep_is_refused() {
    let folder = Folder::new();
    let mut bytes = b"PAR1".to_vec();
    let elements = 500_001_u32;
    let mut metadata = vec![0x15, 4, 0x19, 0xfc];
    metadata.extend([elements as u8 | 0x80, (elements >> 7) as u8 | 0x80, (elements >> 14) as u8]);
    metadata.extend((1..elements).flat_map(|_| [0x48, 1, b'g', 0x15, 2, 0]));
    metadata.extend([0x15, 12, 0x38, 1, b'l', 0, 0x16, 0, 0x19, 0x0c, 0]);
    bytes.extend(&metadata);
    bytes.extend((metadata.len() as u32).to_le_bytes());
    bytes.extend(b"PAR1");
    let error = fails(&folder.file("deep.parquet", bytes), None);
    assert!(
        error.contains("deep.parquet: not a Parquet file that can be read: its schema is nested deeper than 100"),
        "{error}"
    );
}
