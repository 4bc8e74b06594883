//! A card as a plan sees it.

use crate::Result;
use crate::engine::Card;
use crate::memory::{Available, of_variable};

/// The environment variable that says how much memory a card has for a run.
const VARIABLE: &str = "TUNE_CUDA_MEMORY";

/// Bytes of a card that are no numbers of the run: the code of kernels and of cuBLASLt's that are loaded when they are first used,
/// and the workspace of products.
pub(super) const PROGRAM: u64 = (tune_cuda::WORKSPACE + tune_cuda::AHEAD) as u64 + (96 << 20);

/// What NCCL takes of each card where several are connected: as much as its settings allow on a machine of eight cards, by what is
/// published of it. It was measured nowhere.
pub(super) const CONNECTED: u64 = 512 << 20;

/// The card that a run is planned for.
#[derive(Debug, Clone)]
pub struct PlannedCard {
    /// Its name.
    pub name: String,
    /// What it has for the run; `None` where nobody knows.
    pub available: Option<Available>,
}

impl PlannedCard {
    /// A card that is here, or one that is not. It has as much memory as `TUNE_CUDA_MEMORY` in the environment says (`24GiB`: for the
    /// plan of another card, or to overrule the driver), else what the driver says is free.
    ///
    /// # Errors
    /// Where the variable says no size.
    pub fn new(card: Option<&Card>) -> Result<Self> {
        let free = card.map(|card| Available { bytes: card.available(), origin: "free on the card" });
        let name = card.map_or_else(
            || "a card that is not here".to_owned(),
            |card| format!("{} (cuda:{})", card.name(), card.ordinal()),
        );
        Ok(Self { name, available: of_variable(VARIABLE, "as TUNE_CUDA_MEMORY says")?.or(free) })
    }
}
