//! The schema of a Parquet file as a tree of what its values become.
//!
//! Lists and maps were written in several forms before one was agreed on; they are told apart as the format's own
//! "backward-compatibility rules" say.

use std::ops::Range;

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::schema::types::Type;

/// A column, or a part of one.
pub(super) struct Node {
    pub(super) name: String,
    /// The definition level from which on there is a value, and not null.
    pub(super) present: i16,
    /// The leaves below, by their number in the file.
    pub(super) leaves: Range<usize>,
    pub(super) shape: Shape,
}

pub(super) enum Shape {
    Leaf(Meaning),
    Struct(Vec<Node>),
    List(Repeated, Box<Node>),
    Map(Repeated, Box<(Node, Node)>),
    /// A group that stands for one value, which is no text: what it is.
    NoText(&'static str, Vec<Node>),
}

impl Node {
    /// Whether a leaf of the file is here, and annotated as text.
    pub(super) fn has_text(&self, leaf: usize) -> bool {
        self.leaves.contains(&leaf)
            && match &self.shape {
                Shape::Leaf(meaning) => *meaning == Meaning::Text,
                Shape::Struct(fields) => fields.iter().any(|field| field.has_text(leaf)),
                Shape::List(_, element) => element.has_text(leaf),
                Shape::Map(_, entry) => entry.0.has_text(leaf) || entry.1.has_text(leaf),
                Shape::NoText(..) => false,
            }
    }
}

/// The levels of what is there several times.
#[derive(Clone, Copy)]
pub(super) struct Repeated {
    /// The repetition level of all but the first.
    pub(super) repetition: i16,
    /// The definition level from which on there is at least one.
    pub(super) some: i16,
}

/// What a leaf's values mean, besides how they are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// What the stored type says.
    Stored,
    Text,
    Unsigned,
    Float16,
    /// There is no value but null.
    Null,
    /// What JSON has no form for: what it is.
    NoText(&'static str),
}

/// The columns of a file.
pub(super) fn columns(root: &Type) -> Vec<Node> {
    let mut leaves = 0;
    root.get_fields().iter().map(|field| node(field, Levels::default(), &mut leaves)).collect()
}

/// The levels of what a field is in.
#[derive(Clone, Copy, Default)]
struct Levels {
    definition: i16,
    repetition: i16,
}

impl Levels {
    fn optional(self) -> Self {
        Self { definition: self.definition + 1, ..self }
    }

    fn repeated(self) -> Self {
        Self { definition: self.definition + 1, repetition: self.repetition + 1 }
    }

    fn some(self) -> Repeated {
        Repeated { repetition: self.repetition, some: self.definition }
    }
}

/// A field; one that is repeated, and in no list, is a list itself, as protobuf has it.
fn node(field: &Type, outside: Levels, leaves: &mut usize) -> Node {
    match repetition(field) {
        Repetition::REQUIRED => content(field, outside, leaves),
        Repetition::OPTIONAL => content(field, outside.optional(), leaves),
        Repetition::REPEATED => {
            let inside = outside.repeated();
            let element = content(field, inside, leaves);
            Node {
                name: field.name().to_owned(),
                present: outside.definition,
                leaves: element.leaves.clone(),
                shape: Shape::List(inside.some(), Box::new(element)),
            }
        }
    }
}

/// A field without regard to how often it is there.
fn content(field: &Type, levels: Levels, leaves: &mut usize) -> Node {
    let first = *leaves;
    let shape = match field {
        Type::PrimitiveType { physical_type, .. } => {
            *leaves += 1;
            Shape::Leaf(meaning(field, *physical_type))
        }
        Type::GroupType { fields, .. } => match (kind_of_group(field), fields.as_slice()) {
            (Group::List, [repeated]) => list(field, repeated, levels, leaves),
            (Group::Map, [entry]) => match entry.get_fields() {
                [key, value] => {
                    let inside = levels.repeated();
                    let (key, value) = (node(key, inside, leaves), node(value, inside, leaves));
                    Shape::Map(inside.some(), Box::new((key, value)))
                }
                // A map without values is a list of its keys.
                _ => list(field, entry, levels, leaves),
            },
            (kind, fields) => {
                let fields = fields.iter().map(|field| node(field, levels, leaves)).collect();
                match kind {
                    Group::NoText(what) => Shape::NoText(what, fields),
                    Group::Struct | Group::List | Group::Map => Shape::Struct(fields),
                }
            }
        },
    };
    Node { name: field.name().to_owned(), present: levels.definition, leaves: first..*leaves, shape }
}

/// A list: `repeated` is its element in the older forms, and holds it in the one of today.
fn list(list: &Type, repeated: &Type, outside: Levels, leaves: &mut usize) -> Shape {
    let inside = outside.repeated();
    let element = match repeated {
        Type::GroupType { fields, .. } if fields.len() == 1 && !is_element(list, repeated) => {
            node(&fields[0], inside, leaves)
        }
        _ => content(repeated, inside, leaves),
    };
    Shape::List(inside.some(), Box::new(element))
}

/// Whether a repeated group of one field is an element of the list.
fn is_element(list: &Type, repeated: &Type) -> bool {
    let of_old_writers = repeated.name() == "array" || repeated.name() == format!("{}_tuple", list.name());
    let is_collection = matches!(kind_of_group(repeated), Group::List | Group::Map);
    of_old_writers || is_collection || repetition(&repeated.get_fields()[0]) == Repetition::REPEATED
}

enum Group {
    Struct,
    List,
    Map,
    NoText(&'static str),
}

/// What a group's annotation says, where the group is of that form.
fn kind_of_group(field: &Type) -> Group {
    let info = field.get_basic_info();
    let fields = if field.is_group() { field.get_fields() } else { &[] };
    let holds_repeated = matches!(fields, [only] if repetition(only) == Repetition::REPEATED);
    let holds_entries = holds_repeated && fields[0].is_group() && (1..=2).contains(&fields[0].get_fields().len());
    match (info.logical_type_ref(), info.converted_type()) {
        (Some(LogicalType::Variant(_)), _) => Group::NoText("a variant"),
        (Some(LogicalType::File), _) => Group::NoText("a reference to a file"),
        (Some(LogicalType::List), _) | (None, ConvertedType::LIST) if holds_repeated => Group::List,
        (Some(LogicalType::Map), _) | (None, ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE) if holds_entries => {
            Group::Map
        }
        _ => Group::Struct,
    }
}

fn repetition(field: &Type) -> Repetition {
    let info = field.get_basic_info();
    if info.has_repetition() { info.repetition() } else { Repetition::REQUIRED }
}

fn meaning(field: &Type, physical: Physical) -> Meaning {
    let info = field.get_basic_info();
    match (info.logical_type_ref(), physical) {
        (_, Physical::INT96) => Meaning::NoText("a timestamp"),
        (Some(logical), _) => meaning_of_logical(logical),
        (None, _) => meaning_of_converted(info.converted_type()),
    }
}

fn meaning_of_logical(logical: &LogicalType) -> Meaning {
    match logical {
        LogicalType::String | LogicalType::Enum | LogicalType::Json => Meaning::Text,
        LogicalType::Integer(integer) if !integer.is_signed => Meaning::Unsigned,
        LogicalType::Integer(_) | LogicalType::Map | LogicalType::List => Meaning::Stored,
        LogicalType::Float16 => Meaning::Float16,
        LogicalType::Unknown => Meaning::Null,
        LogicalType::Decimal(_) => Meaning::NoText("a decimal number"),
        LogicalType::Date => Meaning::NoText("a date"),
        LogicalType::Time(_) => Meaning::NoText("a time of day"),
        LogicalType::Timestamp(_) => Meaning::NoText("a timestamp"),
        LogicalType::Bson => Meaning::NoText("BSON"),
        LogicalType::Uuid => Meaning::NoText("a UUID"),
        LogicalType::Variant(_) => Meaning::NoText("a variant"),
        LogicalType::Geometry(_) | LogicalType::Geography(_) => Meaning::NoText("a geometry"),
        LogicalType::File => Meaning::NoText("a reference to a file"),
        LogicalType::_Unknown { .. } => Meaning::NoText("of a type that is newer than this program"),
    }
}

/// The older annotations.
fn meaning_of_converted(converted: ConvertedType) -> Meaning {
    match converted {
        ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON => Meaning::Text,
        ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32 | ConvertedType::UINT_64 => {
            Meaning::Unsigned
        }
        ConvertedType::NONE
        | ConvertedType::INT_8
        | ConvertedType::INT_16
        | ConvertedType::INT_32
        | ConvertedType::INT_64
        | ConvertedType::MAP
        | ConvertedType::MAP_KEY_VALUE
        | ConvertedType::LIST => Meaning::Stored,
        ConvertedType::DECIMAL => Meaning::NoText("a decimal number"),
        ConvertedType::DATE => Meaning::NoText("a date"),
        ConvertedType::TIME_MILLIS | ConvertedType::TIME_MICROS => Meaning::NoText("a time of day"),
        ConvertedType::TIMESTAMP_MILLIS | ConvertedType::TIMESTAMP_MICROS => Meaning::NoText("a timestamp"),
        ConvertedType::BSON => Meaning::NoText("BSON"),
        ConvertedType::INTERVAL => Meaning::NoText("an interval of time"),
    }
}
