//! In fp32 a run must follow torchtune's.

use std::path::Path;

use tune_core::config::say;

use super::{Precision, torchtune, train};
use crate::Result;

/// Relative differences that are allowed: the first step's loss, every loss, every gradient norm.
const FIRST_LOSS: f64 = 1e-4;
const LOSS: f64 = 1e-3;
const GRAD_NORM: f64 = 1e-2;

/// Trains from the Hugging Face folder and from the GGUF file, prints how far each run is from
/// torchtune's, and returns whether all are near enough.
pub(super) fn compare(root: &Path, model: &Path, recipes: &[&str]) -> Result<bool> {
    let checkpoints = [("hf", model.join("hf")), ("gguf", model.join("SmolLM2-135M-Instruct.Q4_1.gguf"))];
    say!("Relative distance from torchtune's run, both in fp32");
    say!("{:<20} {:>14} {:>14} {:>14}", "run", "first loss", "worst loss", "worst norm");
    let mut within = true;
    for &recipe in recipes {
        let expected = torchtune(root, recipe, Precision::Fp32)?;
        for (kind, checkpoint) in &checkpoints {
            let run = train(root, recipe, Precision::Fp32, kind, checkpoint)?;
            let off = run.distance_from(&expected)?;
            let (first, loss, norm) = (off.first_loss, off.loss.worst, off.norm.worst);
            say!("{:<20} {first:>14.1e} {loss:>14.1e} {norm:>14.1e}", format!("{recipe} from {kind}"));
            within &= first <= FIRST_LOSS && loss <= LOSS && norm <= GRAD_NORM;
        }
    }
    say!("{:<20} {FIRST_LOSS:>14.1e} {LOSS:>14.1e} {GRAD_NORM:>14.1e}", "allowed");
    Ok(within)
}
