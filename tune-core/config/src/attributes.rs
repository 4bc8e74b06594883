//! The words of `#[config(...)]` and `#[recipe(...)]`, for editors: while one
//! of them is being written, the macros point rust-analyzer here, and it
//! completes and explains what there is. Nothing else uses these types.
#![allow(non_camel_case_types)]

/// On a field.
pub mod key {
    /// The value where the key is not written: `default = 2e-5`; alone, the
    /// type's own.
    pub struct default;
    /// The bounds of a number: `range = 1..`, `range = 0.0..=1.0`.
    pub struct range;
    /// The values that are allowed: `one_of = ["a", "b"]`.
    pub struct one_of;
    /// To be written, although the type is an `Option`.
    pub struct required;
    /// Another name for the key: `alias = "old_name"`; may be repeated.
    pub struct alias;
    /// The name, where it is not the field's: `name = "type"`.
    pub struct name;
    /// For a `Vec`, or an `Option` of one: a single item stands for a list of one.
    pub struct one_or_many;
    /// The keys of the field's struct stand among those of this one.
    pub struct flatten;
    /// The value, with all that is in it, may be another one when a run is resumed: it has no part in the result.
    pub struct may_change;
}

/// On a parameter of a recipe.
pub mod parameter {
    pub use super::key::*;

    /// No key, but the config as a whole: a `ResolvedConfig`.
    pub struct resolved;
}

/// On a variant.
pub mod variant {
    /// The name in a config: `name = "adamw"`.
    pub struct name;
    /// Another name: `alias = "torch.optim.AdamW"`; may be repeated.
    pub struct alias;
    /// The one where none is written.
    pub struct default;
}

/// On a type.
pub mod type_ {
    /// Keys that are accepted without effect: `ignored(compile = "why")`.
    pub struct ignored;
    /// An enum without data is a component, too.
    pub struct component;
}

/// In `#[recipe(...)]`.
pub mod recipe {
    /// The configs that the recipe ships with, checked by the compiler:
    /// `configs = ["../configs/lora/tiny.yaml"]`.
    pub struct configs;
    /// The type that implements `Recipe`, of which `--check` and `--plan` learn what would become of a run:
    /// `preflight = LoraFinetune`.
    pub struct preflight;
    /// The name in messages, where it is not the function's.
    pub struct name;
    /// Keys that are accepted without effect: `ignored(compile = "why")`.
    pub struct ignored;
}
