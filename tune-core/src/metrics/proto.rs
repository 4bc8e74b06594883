//! Messages of protocol buffers: few and flat, so they are written and read by hand.

/// A message that is being written. The first argument of each method is the field's number.
#[derive(Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    pub(super) fn varint(&mut self, field: u32, value: u64) {
        self.key(field, 0);
        self.raw_varint(value);
    }

    pub(super) fn double(&mut self, field: u32, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn float(&mut self, field: u32, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn bytes(&mut self, field: u32, value: &[u8]) {
        self.key(field, 2);
        self.raw_varint(value.len() as u64);
        self.0.extend(value);
    }

    pub(super) fn text(&mut self, field: u32, value: &str) {
        self.bytes(field, value.as_bytes());
    }

    pub(super) fn message(&mut self, field: u32, content: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        content(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.raw_varint(u64::from((field << 3) | wire_type));
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// What a field holds; numbers of fixed size are passed over.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message whose content is bytes (texts, messages in it), with their numbers. `None` where it is no
/// message.
pub(super) fn parts(data: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let bytes = |(number, field)| match field {
        Field::Bytes(bytes) => Some((number, bytes)),
        Field::Number(_) => None,
    };
    Some(fields(data)?.into_iter().filter_map(bytes).collect())
}

/// The fields of a message whose content is a varint, likewise.
pub(super) fn numbers(data: &[u8]) -> Option<Vec<(u64, u64)>> {
    let numbers = |(number, field)| match field {
        Field::Number(value) => Some((number, value)),
        Field::Bytes(_) => None,
    };
    Some(fields(data)?.into_iter().filter_map(numbers).collect())
}

fn fields(mut data: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data)?;
        let length = match key & 7 {
            0 => {
                fields.push((key >> 3, Field::Number(varint(&mut data)?)));
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut data)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (content, rest) = data.split_at_checked(length)?;
        data = rest;
        if key & 7 == 2 {
            fields.push((key >> 3, Field::Bytes(content)));
        }
    }
    Some(fields)
}

fn varint(data: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = data.split_first()?;
        *data = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
