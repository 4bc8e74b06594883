//! Typed configs: one schema, and everything that reads it.
