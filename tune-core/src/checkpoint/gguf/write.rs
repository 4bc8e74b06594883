//! Writing GGUF files: the header, then the tensors one after the other.

use std::path::Path;

use super::quantize::Format;
use crate::Result;
use crate::checkpoint::durable::FileWriter;

/// Where tensors begin is a multiple of this, from the beginning of all tensors.
const ALIGNMENT: u64 = 32;
const VERSION: u32 = 3;

/// One value of the metadata, with its width in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Texts(Vec<String>),
}

impl Value {
    /// The number of its type in files.
    fn kind(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::I32s(_) | Self::F32s(_) | Self::Texts(_) => 9,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        fn list<T>(out: &mut Vec<u8>, kind: u32, items: &[T], write: impl Fn(&T, &mut Vec<u8>)) {
            out.extend(kind.to_le_bytes());
            out.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| write(item, out));
        }
        match self {
            Self::U32(v) => out.extend(v.to_le_bytes()),
            Self::F32(v) => out.extend(v.to_le_bytes()),
            Self::Bool(v) => out.push(u8::from(*v)),
            Self::Text(v) => text(out, v),
            Self::I32s(v) => list(out, 5, v, |v, out| out.extend(v.to_le_bytes())),
            Self::F32s(v) => list(out, 6, v, |v, out| out.extend(v.to_le_bytes())),
            Self::Texts(v) => list(out, 8, v, |v, out| text(out, v)),
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A tensor on its way into a file.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) name: String,
    /// Row-major, the reverse of the file's order.
    pub(super) shape: Vec<usize>,
    /// Its type's number in files.
    pub(super) kind: u32,
    pub(super) bytes: u64,
}

impl Outgoing {
    pub(super) fn new(name: String, shape: Vec<usize>, format: Format) -> Self {
        let bytes = format.bytes(shape.iter().product()) as u64;
        Self { name, shape, kind: format.id(), bytes }
    }
}

/// The head of a file: the metadata and the list of tensors.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Keys and values, as they are in the file.
    entries: Vec<u8>,
    count: u64,
}

impl Head {
    pub(super) fn put(&mut self, key: &str, value: &Value) {
        text(&mut self.entries, key);
        self.entries.extend(value.kind().to_le_bytes());
        value.write(&mut self.entries);
        self.count += 1;
    }

    /// All bytes before the first tensor's.
    pub(super) fn before(&self, tensors: &[Outgoing]) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend(self.count.to_le_bytes());
        out.extend(&self.entries);
        let mut start = 0u64;
        for tensor in tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&d| out.extend((d as u64).to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(start.to_le_bytes());
            start += tensor.bytes.next_multiple_of(ALIGNMENT);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
        out
    }

    /// The size of the whole file.
    pub(super) fn size(&self, tensors: &[Outgoing]) -> u64 {
        let data: u64 = tensors.iter().map(|tensor| tensor.bytes.next_multiple_of(ALIGNMENT)).sum();
        self.before(tensors).len() as u64 + data
    }

    /// Writes the file and syncs it. `content` gives a tensor's bytes when its turn comes, piece by piece.
    pub(super) fn write(
        &self,
        path: &Path,
        tensors: &[Outgoing],
        mut content: impl FnMut(&Outgoing, &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let mut file = FileWriter::create(path)?;
        file.write(&self.before(tensors))?;
        for tensor in tensors {
            let mut written = 0;
            content(tensor, &mut |bytes| {
                written += bytes.len() as u64;
                file.write(bytes)
            })?;
            if written != tensor.bytes {
                return Err(crate::Error::file(
                    path,
                    format!(
                        "tensor `{}` was announced with {} bytes and came with {written}",
                        tensor.name, tensor.bytes
                    ),
                ));
            }
            let padding = written.next_multiple_of(ALIGNMENT) - written;
            file.write(&[0; ALIGNMENT as usize][..padding as usize])?;
        }
        file.finish()
    }
}
