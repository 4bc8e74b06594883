//! The macros behind a recipe: `#[recipe]` and `#[derive(Config)]`.
