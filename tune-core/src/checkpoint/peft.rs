//! PEFT adapters.
