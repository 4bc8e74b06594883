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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::ByteArray;
    use parquet::file::statistics::ValueStatistics;
    use parquet::schema::parser::parse_message_type;
    use parquet::schema::types::SchemaDescriptor;

    use super::*;

    /// How many of a column's six values are no null, by statistics of its largest text and its nulls.
    fn values_by(statistics: Option<(&str, bool, Option<u64>)>) -> i64 {
        let schema = parse_message_type("message m { optional binary a (UTF8); }").unwrap();
        let column = SchemaDescriptor::new(Arc::new(schema)).column(0);
        let mut chunk = ColumnChunkMetaData::builder(column).set_num_values(6);
        if let Some((largest, is_exact, nulls)) = statistics {
            let texts = ValueStatistics::new(None, Some(ByteArray::from(largest)), None, nulls, false);
            chunk = chunk.set_statistics(Statistics::ByteArray(texts.with_max_is_exact(is_exact)));
        }
        values(&chunk.build().unwrap())
    }

    #[test]
    fn what_statistics_do_not_say_may_be_there() {
        assert_eq!(values_by(None), 6);
        assert_eq!(values_by(Some(("x", true, None))), 6);
        assert_eq!(values_by(Some(("x", true, Some(2)))), 4);
        assert_eq!(values_by(Some(("x", false, Some(6)))), 0);
        // Nothing but empty texts, unless the largest one was cut.
        assert_eq!(values_by(Some(("", true, Some(2)))), 0);
        assert_eq!(values_by(Some(("", false, Some(2)))), 4);
    }
}
