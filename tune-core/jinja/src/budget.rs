//! What a rendering may use: steps, memory, depth.
//!
//! Templates come with downloaded models. One that never ends or fills the memory must end with a
//! message. Steps and memory of the rendering that runs on this thread are counted here, because values
//! give their memory back when they are dropped, wherever that happens.

use std::cell::Cell;

use crate::error::{Error, Kind, Result};

/// Steps that any rendering may take.
const STEPS: u64 = 10_000_000;
/// Further steps for each byte of its input.
const STEPS_PER_BYTE: u64 = 200;
/// Bytes that any rendering may hold, and that its text may have.
const BYTES: usize = 64 << 20;
/// Further bytes for each byte of its input.
const BYTES_PER_BYTE: usize = 16;

/// How deep values may be nested.
pub(crate) const MAX_DEPTH: usize = 128;
/// How deep statements and expressions may be nested in a template.
pub(crate) const MAX_NESTING: usize = 100;
/// How deep evaluation may be nested: macros that call each other, and what is nested in them.
pub(crate) const MAX_CALLS: usize = 800;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(usize::MAX) };
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// The budget of one rendering; dropping it brings back the one before.
pub(crate) struct Budget {
    most: usize,
    left: u64,
}

impl Budget {
    /// For a rendering whose input has this many bytes.
    pub(crate) fn begin(input: usize) -> Self {
        let bytes = BYTES.saturating_add(input.saturating_mul(BYTES_PER_BYTE));
        let steps = STEPS.saturating_add((input as u64).saturating_mul(STEPS_PER_BYTE));
        Self { most: MOST.replace(LIVE.get().saturating_add(bytes)), left: LEFT.replace(steps) }
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        MOST.set(self.most);
        LEFT.set(self.left);
    }
}

/// Takes `steps` steps.
pub(crate) fn spend(steps: usize) -> Result<()> {
    match LEFT.get().checked_sub(steps as u64) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => {
            LEFT.set(0);
            Err(Error::new(
                Kind::Limit,
                "it takes too many steps: a template may take ten million, and 200 for each byte that it is given",
            ))
        }
    }
}

/// The steps of going through text or lists of this many bytes.
pub(crate) fn spend_bytes(bytes: usize) -> Result<()> {
    spend(bytes / 32)
}

/// Whether this many bytes more can be held.
pub(crate) fn reserve(bytes: usize) -> Result<()> {
    if LIVE.get().saturating_add(bytes) > MOST.get() {
        return Err(Error::new(
            Kind::Limit,
            "it makes too much text: a template may hold 64 MiB, and 16 bytes for each byte that it is given",
        ));
    }
    spend_bytes(bytes)
}

/// Counts this many bytes as held, until they are released.
pub(crate) fn hold(bytes: usize) -> usize {
    LIVE.set(LIVE.get().saturating_add(bytes));
    bytes
}

/// Gives back what was held.
pub(crate) fn release(bytes: usize) {
    // Values of a thread that ends are dropped after its counters.
    let _ = LIVE.try_with(|live| live.set(live.get().saturating_sub(bytes)));
}

/// An error where values are nested too deep.
pub(crate) fn check_depth(depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    Ok(())
}

pub(crate) fn too_deep() -> Error {
    Error::new(Kind::Limit, format!("values are nested more than {MAX_DEPTH} deep"))
}
