//! Event files for TensorBoard.
//!
//! A file is a sequence of records, each a length, a checksum of the length, a serialized
//! `Event` message and a checksum of that. The messages are few and flat, so they are
//! encoded here by hand; their numbers are those of TensorFlow's `event.proto`,
//! `summary.proto` and `tensor.proto`.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::jsonl::append;
use super::proto::Message;
use super::{EvaluationMetrics, MetricLogger, Start, StepMetrics, ValidationMetrics};
use crate::{Error, Result};

/// Every file's name begins with this, followed by a time in seconds.
const PREFIX: &str = "events.out.tfevents.";

/// Writes an event file: a scalar for every number of a record, under the names of the
/// JSON Lines log, and a text for every note.
///
/// Every process writes a file of its own. It begins with a mark of the step at which the
/// process started, and TensorBoard forgets what earlier files say of later steps.
pub struct TensorBoardLogger {
    path: PathBuf,
    file: File,
}

impl TensorBoardLogger {
    /// Begins an event file in `folder`, which is made where needed.
    ///
    /// # Errors
    /// A folder or file that cannot be made or written.
    pub fn open(folder: &Path, start: Start) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let (path, file) = create(folder)?;
        let mut logger = Self { path, file };
        logger.write(0, |event| event.bytes(3, b"brain.Event:2"))?;
        let first = match start {
            Start::Fresh => 0,
            Start::Resumed(step) => step + 1,
        };
        logger.write(first, |event| {
            // SessionLog { status: START }
            event.message(7, |log| log.varint(1, 1));
        })?;
        Ok(logger)
    }

    fn write(&mut self, step: u64, content: impl FnOnce(&mut Message)) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let mut event = Message::default();
        event.double(1, now);
        event.varint(2, step);
        content(&mut event);
        append(&mut self.file, &frame(&event.0)).map_err(Error::io("write", &self.path))
    }

    fn scalars(&mut self, step: u64, record: &Map<String, Value>) -> Result<()> {
        self.write(step, |event| {
            event.message(5, |summary| {
                for (name, value) in record.iter().filter(|(name, _)| *name != "step") {
                    if let Some(value) = value.as_f64() {
                        summary.message(1, |entry| {
                            entry.bytes(1, name.as_bytes());
                            entry.float(2, value as f32);
                        });
                    }
                }
            });
        })
    }
}

impl TensorBoardLogger {
    fn text(&mut self, step: u64, name: &[u8], text: &str) -> Result<()> {
        self.write(step, |event| {
            event.message(5, |summary| {
                summary.message(1, |entry| {
                    entry.bytes(1, name);
                    // TensorProto { dtype: DT_STRING, tensor_shape: [1], string_val: [text] }
                    entry.message(8, |tensor| {
                        tensor.varint(1, 7);
                        tensor.message(2, |shape| shape.message(2, |dim| dim.varint(1, 1)));
                        tensor.bytes(8, text.as_bytes());
                    });
                    // SummaryMetadata { plugin_data: { plugin_name: "text" } }
                    entry.message(9, |metadata| {
                        metadata.message(1, |plugin| plugin.bytes(1, b"text"));
                    });
                });
            });
        })
    }
}

impl MetricLogger for TensorBoardLogger {
    fn log_step(&mut self, metrics: &StepMetrics) -> Result<()> {
        self.scalars(metrics.step, &metrics.record())
    }

    fn log_validation(&mut self, metrics: &ValidationMetrics) -> Result<()> {
        self.scalars(metrics.step, &metrics.record())
    }

    fn log_evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()> {
        // What TensorBoard takes for Markdown: two spaces at a line's end break it.
        let text = metrics.samples_text().map(|text| text.replace('\n', "  \n"));
        text.map_or(Ok(()), |text| self.text(metrics.step, b"samples", &text))?;
        self.scalars(metrics.step, &metrics.record())
    }

    fn log_note(&mut self, step: u64, note: &str) -> Result<()> {
        self.text(step, b"notes", note)
    }

    fn close(&mut self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("write", &self.path))
    }
}

/// Creates a file that sorts after those that are there: TensorBoard reads them by name.
fn create(folder: &Path) -> Result<(PathBuf, File)> {
    let mut latest = 0;
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let name = entry.map_err(Error::io("read", folder))?.file_name();
        let name = name.to_string_lossy();
        let time = name.strip_prefix(PREFIX).map(|rest| {
            let digits = rest.find(|c: char| !c.is_ascii_digit());
            rest[..digits.unwrap_or(rest.len())].parse::<u64>()
        });
        if let Some(Ok(time)) = time {
            latest = latest.max(time);
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut time = now.max(latest.saturating_add(1));
    loop {
        let path = folder.join(format!("{PREFIX}{time:010}.tune"));
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            // Another process was quicker.
            Err(e) if e.kind() == ErrorKind::AlreadyExists && time < u64::MAX => time += 1,
            Err(e) => return Err(Error::io("create", &path)(e)),
        }
    }
}

/// A record: length, its checksum, data, its checksum; all little-endian.
fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc(data).to_le_bytes());
    record
}

/// CRC-32C, rotated and offset, so that a checksum of data with checksums in it is sound.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{step, validation};
    use super::*;

    /// A field's number and its content.
    #[derive(Debug, Clone, PartialEq)]
    enum Field {
        Varint(u64),
        Bytes(Vec<u8>),
        Fixed(u64),
    }

    /// A reader that knows nothing of the writer above.
    fn parse(mut data: &[u8]) -> Vec<(u64, Field)> {
        fn take<'a>(data: &mut &'a [u8], n: usize) -> &'a [u8] {
            let (head, tail) = data.split_at(n);
            *data = tail;
            head
        }
        fn varint(data: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..64).step_by(7) {
                let byte = take(data, 1)[0];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    return value;
                }
            }
            panic!("varint too long");
        }
        let mut fields = Vec::new();
        while !data.is_empty() {
            let key = varint(&mut data);
            let field = match key & 7 {
                0 => Field::Varint(varint(&mut data)),
                1 => Field::Fixed(u64::from_le_bytes(take(&mut data, 8).try_into().unwrap())),
                2 => {
                    let n = varint(&mut data) as usize;
                    Field::Bytes(take(&mut data, n).to_vec())
                }
                5 => Field::Fixed(u64::from(u32::from_le_bytes(take(&mut data, 4).try_into().unwrap()))),
                other => panic!("wire type {other}"),
            };
            fields.push((key >> 3, field));
        }
        fields
    }

    fn all(fields: &[(u64, Field)], number: u64) -> Vec<Vec<(u64, Field)>> {
        let of_number = fields.iter().filter(|(n, _)| *n == number);
        of_number
            .map(|(_, f)| match f {
                Field::Bytes(b) => parse(b),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn text(fields: &[(u64, Field)], number: u64) -> String {
        match fields.iter().find(|(n, _)| *n == number) {
            Some((_, Field::Bytes(b))) => String::from_utf8(b.clone()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// The events of a file, its checksums verified bit by bit.
    fn events(path: &Path) -> Vec<Vec<(u64, Field)>> {
        let crc = |data: &[u8]| {
            let mut crc = !0u32;
            for byte in data {
                crc ^= u32::from(*byte);
                for _ in 0..8 {
                    crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
                }
            }
            let crc = !crc;
            crc.rotate_right(15).wrapping_add(0xa282_ead8)
        };
        let mut rest = &fs::read(path).unwrap()[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], crc(&rest[..8]).to_le_bytes());
            assert_eq!(rest[12 + n..16 + n], crc(&rest[12..12 + n]).to_le_bytes());
            events.push(parse(&rest[12..12 + n]));
            rest = &rest[16 + n..];
        }
        events
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn the_checksum_is_the_published_one() {
        // RFC 3720, B.4: CRC-32C of 32 zero bytes.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn a_log_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = TensorBoardLogger::open(dir.path(), Start::Fresh).unwrap();
        log.log_step(&StepMetrics { grad_norm: None, ..step(300) }).unwrap();
        log.log_validation(&validation(300)).unwrap();
        log.log_note(300, "saved").unwrap();
        log.close().unwrap();

        let [path] = &files(dir.path())[..] else { panic!("one file") };
        let events = events(path);
        assert_eq!(events.len(), 5);
        assert_eq!(text(&events[0], 3), "brain.Event:2");
        assert_eq!(all(&events[1], 7), [[(1, Field::Varint(1))]]);
        for event in &events[2..] {
            assert!(event.contains(&(2, Field::Varint(300))));
            assert!(matches!(event[0], (1, Field::Fixed(_))));
        }

        let scalars = |event: &[(u64, Field)]| -> Vec<(String, f32)> {
            let [summary] = &all(event, 5)[..] else { panic!("one summary") };
            let entries = all(summary, 1);
            let scalar = |entry: &Vec<(u64, Field)>| match entry[1] {
                (2, Field::Fixed(bits)) => (text(entry, 1), f32::from_bits(bits as u32)),
                ref other => panic!("{other:?}"),
            };
            entries.iter().map(scalar).collect()
        };
        let expect = |pairs: &[(&str, f32)]| -> Vec<(String, f32)> {
            pairs.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect()
        };
        // Not `grad_norm`, which this step does not have.
        assert_eq!(
            scalars(&events[2]),
            expect(&[
                ("epoch", 0.0),
                ("loss", 1.5),
                ("lr", 3e-4),
                ("tokens", 1000.0),
                ("trained_tokens", 250.0),
                ("step_seconds", 0.5),
                ("tokens_per_second", 2000.0),
                ("trained_tokens_per_second", 500.0),
                ("peak_memory_bytes", 1.5 * 1024.0 * 1024.0 * 1024.0),
            ])
        );
        assert_eq!(scalars(&events[3])[1], ("val_loss".to_owned(), 2.25));
        let note = &all(&all(&events[4], 5)[0], 1)[0];
        assert_eq!(text(note, 1), "notes");
        assert_eq!(text(&all(note, 8)[0], 8), "saved");
    }

    #[test]
    fn a_resumed_process_writes_a_later_file_that_marks_its_step() {
        let dir = tempfile::tempdir().unwrap();
        for start in [Start::Fresh, Start::Resumed(7), Start::Resumed(7)] {
            TensorBoardLogger::open(dir.path(), start).unwrap();
        }
        let files = files(dir.path());
        assert_eq!(files.len(), 3);
        let mark = |path: &Path| events(path)[1][1].clone();
        assert_eq!(mark(&files[0]), (2, Field::Varint(0)));
        assert_eq!(mark(&files[1]), (2, Field::Varint(8)));
    }
}
