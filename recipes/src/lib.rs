//! Training recipes, one readable file each, under `src/bin`.
