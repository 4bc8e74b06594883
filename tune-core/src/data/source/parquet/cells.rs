//! The values of one leaf, one after the other, with the levels that say where each belongs.

use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::RowGroupReader;
use serde_json::Value;

use super::super::values::{number, text};
use super::schema::Meaning;
use crate::data::stand_in::stand_in;

/// Levels of a value: how deep it begins anew, and how deep it is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Levels {
    pub(super) repetition: i16,
    pub(super) definition: i16,
}

/// A leaf of one row group.
pub(super) struct Cells {
    reader: ColumnReader,
    max_definition: i16,
    /// Rows that are read at a time.
    batch: usize,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
    values: Vec<Stored>,
    /// The next of the levels, and of the values.
    next: (usize, usize),
}

/// A value as it is stored.
enum Stored {
    Bool(bool),
    Int32(i32),
    Int64(i64),
    Int96,
    Float(f32),
    Double(f64),
    Bytes(ByteArray),
    FixedBytes(ByteArray),
}

impl Cells {
    pub(super) fn open(group: &dyn RowGroupReader, leaf: usize, batch: usize) -> Result<Self> {
        let reader = group.get_column_reader(leaf)?;
        let max_definition = group.metadata().column(leaf).column_descr().max_def_level();
        let (definitions, repetitions, values) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { reader, max_definition, batch, definitions, repetitions, values, next: (0, 0) })
    }

    /// The levels of the next value; `None` behind the last.
    pub(super) fn peek(&mut self) -> Result<Option<Levels>> {
        if self.next.0 == self.definitions.len() && !self.fill()? {
            return Ok(None);
        }
        let i = self.next.0;
        Ok(Some(Levels { repetition: self.repetitions[i], definition: self.definitions[i] }))
    }

    /// Goes on behind the next value, and returns it as JSON; null where there is none.
    pub(super) fn take(&mut self, meaning: Meaning) -> Result<Value> {
        let Levels { definition, .. } = self.peek()?.ok_or_else(|| damaged("a column ends too early"))?;
        self.next.0 += 1;
        if definition < self.max_definition {
            return Ok(Value::Null);
        }
        let stored = self.values.get(self.next.1).ok_or_else(|| damaged("a column has too few values"))?;
        self.next.1 += 1;
        Ok(stored.json(meaning))
    }

    /// Reads more; false where nothing is left.
    fn fill(&mut self) -> Result<bool> {
        self.definitions.clear();
        self.repetitions.clear();
        self.values.clear();
        self.next = (0, 0);
        let Self { reader, batch, definitions, repetitions, values, .. } = self;
        let mut to = Batch { rows: *batch, definitions, repetitions, values };
        match reader {
            ColumnReader::BoolColumnReader(reader) => to.read(reader, Stored::Bool),
            ColumnReader::Int32ColumnReader(reader) => to.read(reader, Stored::Int32),
            ColumnReader::Int64ColumnReader(reader) => to.read(reader, Stored::Int64),
            ColumnReader::Int96ColumnReader(reader) => to.read(reader, |_| Stored::Int96),
            ColumnReader::FloatColumnReader(reader) => to.read(reader, Stored::Float),
            ColumnReader::DoubleColumnReader(reader) => to.read(reader, Stored::Double),
            ColumnReader::ByteArrayColumnReader(reader) => to.read(reader, Stored::Bytes),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                to.read(reader, |bytes| Stored::FixedBytes(bytes.into()))
            }
        }?;
        // A leaf that is always there, or never there twice, has no such levels.
        let levels = if self.max_definition == 0 { self.values.len() } else { self.definitions.len() };
        self.definitions.resize(levels, 0);
        self.repetitions.resize(levels, 0);
        Ok(levels > 0)
    }
}

/// Where the next rows go.
struct Batch<'a> {
    rows: usize,
    definitions: &'a mut Vec<i16>,
    repetitions: &'a mut Vec<i16>,
    values: &'a mut Vec<Stored>,
}

impl Batch<'_> {
    fn read<T: DataType>(&mut self, reader: &mut ColumnReaderImpl<T>, stored: impl Fn(T::T) -> Stored) -> Result<()> {
        let mut values = Vec::new();
        loop {
            let read = reader.read_records(self.rows, Some(self.definitions), Some(self.repetitions), &mut values)?;
            // The end of a row may be found without a value of the next.
            if !matches!(read, (1.., 0, 0)) {
                break;
            }
        }
        self.values.extend(values.into_iter().map(stored));
        Ok(())
    }
}

impl Stored {
    fn json(&self, meaning: Meaning) -> Value {
        match (meaning, self) {
            (Meaning::NoText(what), _) => stand_in(what),
            (Meaning::Null, _) => Value::Null,
            (Meaning::Unsigned, Self::Int32(value)) => Value::from(value.cast_unsigned()),
            (Meaning::Unsigned, Self::Int64(value)) => Value::from(value.cast_unsigned()),
            (Meaning::Float16, Self::FixedBytes(bytes)) => match *bytes.data() {
                [low, high] => number(half::f16::from_le_bytes([low, high]).into()),
                _ => stand_in("bytes of a fixed length"),
            },
            (Meaning::Text, Self::Bytes(bytes) | Self::FixedBytes(bytes)) => text(bytes.data()),
            // Not every writer says of text that it is text.
            (_, Self::Bytes(bytes)) => text(bytes.data()),
            (_, Self::FixedBytes(_)) => stand_in("bytes of a fixed length"),
            (_, Self::Bool(value)) => Value::from(*value),
            (_, Self::Int32(value)) => Value::from(*value),
            (_, Self::Int64(value)) => Value::from(*value),
            (_, Self::Int96) => stand_in("a timestamp"),
            (_, Self::Float(value)) => number(f64::from(*value)),
            (_, Self::Double(value)) => number(*value),
        }
    }
}

pub(super) fn damaged(what: &str) -> ParquetError {
    ParquetError::General(format!("its pages are damaged: {what}"))
}
