//! Parquet files. Rows are put together from the columns here: the row reader of the `parquet` crate takes old forms
//! of lists for single values, stops the program at some types, and makes text of what is none.

mod cells;
mod depth;
mod schema;
mod unread;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::Path;

use parquet::basic::Compression;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use serde_json::{Map, Value};

use self::cells::{Cells, damaged};
use self::schema::{Meaning, Node, Repeated, Shape};
use self::unread::Unread;
use super::Columns;
use super::unpacked::Unpacked;
use super::values::key_text;
use crate::data::records::{Kind, Records};
use crate::data::stand_in::stand_in;
use crate::{Error, Result, panics};

/// Rows of a leaf that are held at a time, and about how many bytes.
const BATCH_ROWS: u64 = 1024;
const BATCH_BYTES: u64 = 32 << 20;

/// Finds the rows of a Parquet file. They are written out as JSON: pages are compressed and cannot be read at a
/// position. Of columns that the dataset does not read, not even the pages are.
pub(super) fn find(path: &Path, file: File, wanted: &Columns<'_>, records: &mut Records) -> Result<()> {
    let mut unpacked = Unpacked::begin(path, Kind::Row, records)?;
    depth::check(&file).map_err(|what| broken(path, &what))?;
    // The crate checks a file's structure, but asserts much of what its pages hold: damage there must not end the program.
    let open = || SerializedFileReader::new(file);
    let reader = no_panic(open).map_err(|what| broken(path, &what))?;
    let metadata = reader.metadata();
    let columns = schema::columns(metadata.file_metadata().schema());
    let (read, unread) = parted(columns, wanted);
    is_read(metadata, &read).map_err(|what| broken(path, &what))?;
    unpacked.expect(text_bytes(metadata, &read))?;
    let mut number = 0;
    for group in 0..reader.num_row_groups() {
        let metadata = metadata.row_group(group);
        let rows = usize::try_from(metadata.num_rows()).unwrap_or(0);
        let unread: Vec<Unread<'_>> = unread.iter().map(|column| Unread::new(column, metadata)).collect();
        let mut leaves =
            no_panic(|| open_leaves(&*reader.get_row_group(group)?, &read)).map_err(|what| broken(path, &what))?;
        for i in 0..rows {
            number += 1;
            let row = no_panic(|| Row(&mut leaves).read(&read));
            let mut row = row.map_err(|what| broken(path, &format!("row {number}: {what}")))?;
            row.extend(unread.iter().map(|column| column.of_row(i)));
            unpacked.push(number, &row)?;
        }
    }
    unpacked.finish()
}

/// The columns that are read, and those that are not. Where there is none that every record must have, lists are read,
/// too: one of them may be what is meant.
fn parted(columns: Vec<Node>, wanted: &Columns<'_>) -> (Vec<Node>, Vec<Node>) {
    let is_there = columns.iter().any(|column| column.name == wanted.first);
    let may_be_meant = |column: &Node| !is_there && matches!(column.shape, Shape::List(..));
    columns.into_iter().partition(|column| wanted.read.contains(&column.name.as_str()) || may_be_meant(column))
}

fn broken(path: &Path, what: &dyn fmt::Display) -> Error {
    Error::file(path, format!("not a Parquet file that can be read: {what}"))
}

/// What the crate returns, an error where it panics.
fn no_panic<T>(work: impl FnOnce() -> ParquetResult<T>) -> Result<T, String> {
    match panics::caught(work) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(ParquetError::General(what))) => Err(what),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => Err(damaged(&panic).to_string()),
    }
}

fn is_read(metadata: &ParquetMetaData, columns: &[Node]) -> Result<(), &'static str> {
    let leaves = || columns.iter().flat_map(|column| column.leaves.clone());
    let mut chunks = metadata.row_groups().iter().flat_map(|group| leaves().map(|leaf| group.column(leaf)));
    match chunks.any(|chunk| chunk.compression() == Compression::LZO) {
        true => Err("it is compressed with LZO, which is not read: write it again with snappy or zstd"),
        false => Ok(()),
    }
}

/// The least that the text in the file takes, where its metadata is right.
fn text_bytes(metadata: &ParquetMetaData, columns: &[Node]) -> u64 {
    let is_text = |leaf: usize| columns.iter().any(|column| column.has_text(leaf));
    let of_group = |group: &parquet::file::metadata::RowGroupMetaData| -> u64 {
        let text = group.columns().iter().enumerate().filter(|(leaf, _)| is_text(*leaf));
        text.map(|(_, chunk)| u64::try_from(chunk.uncompressed_size()).unwrap_or(0)).sum()
    };
    metadata.row_groups().iter().map(of_group).sum()
}

/// The leaves of columns in a row group, by their numbers in the file.
fn open_leaves(group: &dyn RowGroupReader, columns: &[Node]) -> ParquetResult<BTreeMap<usize, Cells>> {
    let metadata = group.metadata();
    let rows = u64::try_from(metadata.num_rows()).unwrap_or(0).max(1);
    let open = |leaf: usize| {
        let bytes = u64::try_from(metadata.column(leaf).uncompressed_size()).unwrap_or(0);
        let batch = (BATCH_BYTES / (bytes / rows).max(1)).clamp(1, BATCH_ROWS);
        Ok((leaf, Cells::open(group, leaf, batch as usize)?))
    };
    columns.iter().flat_map(|column| column.leaves.clone()).map(open).collect()
}

/// The next row of a row group.
struct Row<'a>(&'a mut BTreeMap<usize, Cells>);

impl Row<'_> {
    fn read(&mut self, columns: &[Node]) -> ParquetResult<Map<String, Value>> {
        let mut row = Map::new();
        for column in columns {
            if self.next(column)?.is_some_and(|levels| levels.repetition > 0) {
                return Err(damaged("a column has values that belong to no row"));
            }
            row.insert(column.name.clone(), self.value(column)?);
        }
        Ok(row)
    }

    /// The levels of the next value below a node, of which the first leaf tells as much as any.
    fn next(&mut self, node: &Node) -> ParquetResult<Option<cells::Levels>> {
        match self.0.get_mut(&node.leaves.start) {
            Some(leaf) if !node.leaves.is_empty() => leaf.peek(),
            _ => Ok(None),
        }
    }

    fn definition(&mut self, node: &Node) -> ParquetResult<i16> {
        match self.next(node)? {
            Some(levels) => Ok(levels.definition),
            None => Err(damaged("a column ends too early")),
        }
    }

    fn value(&mut self, node: &Node) -> ParquetResult<Value> {
        // A struct of nothing.
        if node.leaves.is_empty() {
            return Ok(Value::Null);
        }
        if self.definition(node)? < node.present {
            self.pass(node)?;
            return Ok(Value::Null);
        }
        match &node.shape {
            Shape::Leaf(meaning) => match self.0.get_mut(&node.leaves.start) {
                Some(leaf) => leaf.take(*meaning),
                None => Err(damaged("a column is missing")),
            },
            Shape::NoText(what, fields) => self.fields(fields).map(|_| stand_in(what)),
            Shape::Struct(fields) => self.fields(fields).map(Value::Object),
            Shape::List(repeated, element) => {
                let mut elements = Vec::new();
                self.each(node, *repeated, |row| {
                    elements.push(row.value(element)?);
                    Ok(())
                })?;
                Ok(Value::Array(elements))
            }
            Shape::Map(repeated, entry) => {
                let (key, value) = &**entry;
                let mut entries = Some(Map::new());
                self.each(node, *repeated, |row| {
                    let (key, value) = (row.value(key)?, row.value(value)?);
                    match (key_text(key), &mut entries) {
                        (Some(key), Some(entries)) => drop(entries.insert(key, value)),
                        _ => entries = None,
                    }
                    Ok(())
                })?;
                Ok(entries.map_or_else(|| stand_in("a map whose keys are no text"), Value::Object))
            }
        }
    }

    /// The fields of a struct. In Parquet those that are missing are null; in a message they are simply not there.
    fn fields(&mut self, fields: &[Node]) -> ParquetResult<Map<String, Value>> {
        let mut found = Map::new();
        for field in fields {
            let value = self.value(field)?;
            if !value.is_null() {
                found.insert(field.name.clone(), value);
            }
        }
        Ok(found)
    }

    /// Reads one element after the other.
    fn each(
        &mut self,
        node: &Node,
        repeated: Repeated,
        mut read: impl FnMut(&mut Self) -> ParquetResult<()>,
    ) -> ParquetResult<()> {
        if self.definition(node)? < repeated.some {
            return self.pass(node);
        }
        loop {
            read(self)?;
            match self.next(node)? {
                Some(levels) if levels.repetition >= repeated.repetition => {}
                _ => return Ok(()),
            }
        }
    }

    /// Goes on behind a value that is not there.
    fn pass(&mut self, node: &Node) -> ParquetResult<()> {
        self.0.range_mut(node.leaves.clone()).try_for_each(|(_, leaf)| leaf.take(Meaning::Null).map(drop))
    }
}
