//! Records of a format that cannot be read at a position, written out as JSON.

use std::path::Path;

use serde_json::{Map, Value};

use crate::data::records::{Kind, Records};
use crate::data::scratch::Scratch;
use crate::{Error, Result};

/// The records of one data file on their way into a temporary one.
pub(super) struct Unpacked<'a> {
    path: &'a Path,
    records: &'a mut Records,
    file: Scratch,
}

impl<'a> Unpacked<'a> {
    pub(super) fn begin(path: &'a Path, kind: Kind, records: &'a mut Records) -> Result<Self> {
        let file = Scratch::new()?;
        records.begin(path, kind, file.reader()?);
        Ok(Self { path, records, file })
    }

    /// Makes sure that there is room for at least this many bytes.
    pub(super) fn expect(&self, bytes: u64) -> Result<()> {
        self.file.expect(bytes).map_err(|e| self.about(&e))
    }

    /// Adds record `number` (from 1).
    pub(super) fn push(&mut self, number: usize, columns: &Map<String, Value>) -> Result<()> {
        let text = serde_json::to_vec(columns).map_err(|e| Error::Other(Box::new(e)))?;
        self.records.push(number, self.file.len(), text.len())?;
        self.file.write(&text).map_err(|e| self.about(&e))
    }

    pub(super) fn finish(self) -> Result<()> {
        self.file.finish()
    }

    fn about(&self, error: &Error) -> Error {
        Error::file(self.path, error.to_string())
    }
}
