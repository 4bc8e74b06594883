//! Columns that no dataset reads: how many rows have something there, by the file's metadata alone.

use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use serde_json::Value;

use super::schema::Node;
use crate::data::stand_in::stand_in;

/// A column in a row group.
pub(super) struct Unread<'a> {
    name: &'a str,
    /// Rows that hold something. Which they are is not known, and the first stand for them.
    rows: usize,
}

impl<'a> Unread<'a> {
    pub(super) fn new(column: &'a Node, group: &RowGroupMetaData) -> Self {
        let rows = column.leaves.clone().map(|leaf| values(group.column(leaf))).max().unwrap_or(0);
        Self { name: &column.name, rows: usize::try_from(rows.min(group.num_rows())).unwrap_or(0) }
    }

    /// The column's name, and what stands for its value in row `i` (from 0) of the group.
    pub(super) fn of_row(&self, i: usize) -> (String, Value) {
        let value = if i < self.rows { stand_in("not read") } else { Value::Null };
        (self.name.to_owned(), value)
    }
}

/// How many values of a leaf are no null; all that may be, where its writer did not count nulls.
fn values(chunk: &ColumnChunkMetaData) -> i64 {
    let statistics = chunk.statistics();
    if let Some(Statistics::ByteArray(texts)) = statistics
        && texts.max_bytes_opt().is_some_and(<[u8]>::is_empty)
        && texts.max_is_exact()
    {
        // Nothing but empty texts.
        return 0;
    }
    let nulls = statistics.and_then(Statistics::null_count_opt).and_then(|nulls| i64::try_from(nulls).ok());
    chunk.num_values() - nulls.unwrap_or(0)
}
