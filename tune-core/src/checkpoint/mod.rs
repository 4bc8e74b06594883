//! Reading and writing the formats of the ecosystem, and checkpoints that are complete or absent.
