//! Files of Arrow's own format, streams and files with a footer (Feather): what `save_to_disk` of Python's `datasets` writes, and what
//! its cache holds.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType};
use serde_json::{Map, Value};

use super::Columns;
use super::unpacked::Unpacked;
use super::values::{key_text, number, text};
use crate::data::records::{Kind, Records};
use crate::data::stand_in::stand_in;
use crate::{Error, Result, panics};

/// What a file with a footer begins with, and what one of the first version of Feather does.
const WITH_FOOTER: &[u8] = b"ARROW1";
const FEATHER_1: &[u8] = b"FEA1";

/// Finds the rows of an Arrow file. They are written out as JSON: they are read by whole batches.
pub(super) fn find(path: &Path, file: File, wanted: &Columns<'_>, records: &mut Records) -> Result<()> {
    let mut unpacked = Unpacked::begin(path, Kind::Row, records)?;
    let broken = |what: &dyn fmt::Display| Error::file(path, format!("not an Arrow file that can be read: {what}"));
    let mut batches = no_panic(|| batches(file)).map_err(|what| broken(&what))?;
    let mut number = 0;
    // The crate checks what a file holds, but asserts some of it: damage there must not end the program.
    while let Some(batch) = no_panic(|| batches.next().transpose()).map_err(|what| broken(&what))? {
        for row in 0..batch.num_rows() {
            number += 1;
            let columns = no_panic(|| Ok(record(&batch, row, wanted)));
            unpacked.push(number, &columns.map_err(|what| broken(&format!("row {number}: {what}")))?)?;
        }
    }
    unpacked.finish()
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

fn batches(mut file: File) -> Result<Batches, ArrowError> {
    let mut magic = Vec::new();
    (&file).take(WITH_FOOTER.len() as u64).read_to_end(&mut magic)?;
    file.rewind()?;
    if magic.starts_with(FEATHER_1) {
        return Err(ArrowError::IpcError(
            "it is of the first version of Feather: write it again with pyarrow.feather.write_feather".into(),
        ));
    }
    let file = BufReader::new(file);
    Ok(match magic == WITH_FOOTER {
        true => Box::new(FileReader::try_new(file, None)?),
        false => Box::new(StreamReader::try_new(file, None)?),
    })
}

/// What the crate returns, an error where it panics.
fn no_panic<T>(work: impl FnOnce() -> Result<T, ArrowError>) -> Result<T, String> {
    match panics::caught(work) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(ArrowError::IpcError(what) | ArrowError::ParseError(what))) => Err(what),
        // Of all that could be asked of the crate, compression is what it was built without.
        Ok(Err(ArrowError::InvalidArgumentError(what))) if what.ends_with("feature") => {
            Err("its buffers are compressed, which is not read: write it without, in Python: \
             pyarrow.feather.write_feather(pyarrow.feather.read_table(FILE), OUT, compression=\"uncompressed\")"
                .to_owned())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(format!("it is damaged: {panic}")),
    }
}

/// A row as JSON has it. Of columns that the dataset does not read it tells only whether there is something.
fn record(batch: &RecordBatch, row: usize, wanted: &Columns<'_>) -> Map<String, Value> {
    let schema = batch.schema_ref();
    // Where there is no column that every record must have, lists are read, too: one of them may be what is meant.
    let is_there = schema.column_with_name(wanted.first).is_some();
    let is_read = |name: &str, column: &dyn Array| {
        wanted.read.contains(&name) || (!is_there && matches!(column.data_type(), DataType::List(_)))
    };
    let columns = schema.fields().iter().zip(batch.columns());
    let value_of = |column: &dyn Array, name: &str| match is_read(name, column) {
        true => value(column, row),
        false if column.is_null(row) || is_empty_text(column, row) => Value::Null,
        false => stand_in("not read"),
    };
    columns.map(|(field, column)| (field.name().clone(), value_of(column, field.name()))).collect()
}

fn is_empty_text(of: &dyn Array, i: usize) -> bool {
    match of.data_type() {
        DataType::Utf8 => of.as_string::<i32>().value(i).is_empty(),
        DataType::LargeUtf8 => of.as_string::<i64>().value(i).is_empty(),
        DataType::Utf8View => of.as_string_view().value(i).is_empty(),
        _ => false,
    }
}

/// An element of an array.
fn value(of: &dyn Array, i: usize) -> Value {
    if of.is_null(i) {
        return Value::Null;
    }
    match of.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => of.as_boolean().value(i).into(),
        DataType::Int8 => of.as_primitive::<Int8Type>().value(i).into(),
        DataType::Int16 => of.as_primitive::<Int16Type>().value(i).into(),
        DataType::Int32 => of.as_primitive::<Int32Type>().value(i).into(),
        DataType::Int64 => of.as_primitive::<Int64Type>().value(i).into(),
        DataType::UInt8 => of.as_primitive::<UInt8Type>().value(i).into(),
        DataType::UInt16 => of.as_primitive::<UInt16Type>().value(i).into(),
        DataType::UInt32 => of.as_primitive::<UInt32Type>().value(i).into(),
        DataType::UInt64 => of.as_primitive::<UInt64Type>().value(i).into(),
        DataType::Float16 => number(of.as_primitive::<Float16Type>().value(i).into()),
        DataType::Float32 => number(of.as_primitive::<Float32Type>().value(i).into()),
        DataType::Float64 => number(of.as_primitive::<Float64Type>().value(i)),
        DataType::Utf8 => of.as_string::<i32>().value(i).into(),
        DataType::LargeUtf8 => of.as_string::<i64>().value(i).into(),
        DataType::Utf8View => of.as_string_view().value(i).into(),
        DataType::Binary => text(of.as_binary::<i32>().value(i)),
        DataType::LargeBinary => text(of.as_binary::<i64>().value(i)),
        DataType::BinaryView => text(of.as_binary_view().value(i)),
        DataType::List(_) => list(&of.as_list::<i32>().value(i)),
        DataType::LargeList(_) => list(&of.as_list::<i64>().value(i)),
        DataType::ListView(_) => list(&of.as_list_view::<i32>().value(i)),
        DataType::LargeListView(_) => list(&of.as_list_view::<i64>().value(i)),
        DataType::FixedSizeList(..) => list(&of.as_fixed_size_list().value(i)),
        DataType::Struct(fields) => {
            // In Arrow fields that are missing are null; in a message they are simply not there.
            let found = fields.iter().zip(of.as_struct().columns()).map(|(field, column)| (field, value(column, i)));
            found.filter(|(_, value)| !value.is_null()).map(|(field, value)| (field.name().clone(), value)).collect()
        }
        DataType::Map(..) => {
            let entries = of.as_map().value(i);
            let (keys, values) = (entries.column(0), entries.column(1));
            let entries = (0..entries.len()).map(|i| Some((key_text(value(keys, i))?, value(values, i))));
            entries
                .collect::<Option<Map<_, _>>>()
                .map_or_else(|| stand_in("a map whose keys are no text"), Value::Object)
        }
        DataType::Dictionary(..) => {
            let dictionary = of.as_any_dictionary();
            match value(dictionary.keys(), i).as_u64().and_then(|key| usize::try_from(key).ok()) {
                Some(key) => value(dictionary.values(), key),
                None => Value::Null,
            }
        }
        other => stand_in(what(other)),
    }
}

fn list(of: &dyn Array) -> Value {
    (0..of.len()).map(|i| value(of, i)).collect()
}

/// What a type is that JSON has no form for.
fn what(of: &DataType) -> &'static str {
    match of {
        DataType::FixedSizeBinary(_) => "bytes of a fixed length",
        DataType::Timestamp(..) => "a timestamp",
        DataType::Date32 | DataType::Date64 => "a date",
        DataType::Time32(_) | DataType::Time64(_) => "a time of day",
        DataType::Duration(_) | DataType::Interval(_) => "an interval of time",
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            "a decimal number"
        }
        DataType::Union(..) => "a union of types",
        _ => "of a type that is not read",
    }
}
