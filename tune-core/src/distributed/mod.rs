//! One run on many processes. With one process, as now, nothing here does anything.

use crate::Result;

/// The processes that train together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessGroup {
    /// This process, from 0.
    pub rank: usize,
    /// How many there are.
    pub world_size: usize,
}

impl ProcessGroup {
    /// Whether this process writes logs and checkpoints.
    pub fn is_main(&self) -> bool {
        self.rank == 0
    }
}

/// Joins the other processes of the run. A run of one process has nobody to join.
///
/// # Errors
/// None yet; joining others can fail.
pub fn init_process_group() -> Result<ProcessGroup> {
    Ok(ProcessGroup { rank: 0, world_size: 1 })
}
