//! Every mistake has a number that stays what it is, and an explanation.

pub use tune_yaml::Code;

/// A key that is not in the schema.
pub const UNKNOWN_KEY: Code = Code(20);
/// A key without a default that is not written.
pub const MISSING_KEY: Code = Code(21);
/// A value of another type.
pub const WRONG_TYPE: Code = Code(22);
/// A number that is too small or too large.
pub const OUT_OF_RANGE: Code = Code(23);
/// A value that is not among those that are allowed.
pub const NOT_ALLOWED: Code = Code(24);
/// A `_component_` that there is not.
pub const UNKNOWN_COMPONENT: Code = Code(25);
/// A mapping that does not say which component it is.
pub const NO_COMPONENT: Code = Code(26);
/// A key under two of its names.
pub const TWO_NAMES: Code = Code(27);
/// A text that holds no config.
pub const NO_CONFIG: Code = Code(28);
/// A value that its type refuses.
pub const REFUSED: Code = Code(29);
/// An argument that is neither `key=value` nor `~key`.
pub const NO_OVERRIDE: Code = Code(40);
/// An override of something that has nothing in it.
pub const NOTHING_INSIDE: Code = Code(41);
/// `~key` of a key that is not written.
pub const NOTHING_TO_DELETE: Code = Code(42);
/// A position that a list does not have.
pub const NO_ITEM: Code = Code(43);
