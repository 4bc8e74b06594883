//! In bf16 a run must be as near to torchtune's fp32 run as torchtune's own bf16 run does.
//!
//! It cannot follow that one: every product is rounded, and each program rounds in places of its own. What is
//! asked instead is that rounding takes a run no further from the result without it. torchtune's distance
//! is large, so there is a fixed limit as well. docs/torchtune.md has figures and reasons.

use std::path::Path;

use tune_core::config::say;

use super::curve::{Curve, Distance, Spread};
use super::{Precision, torchtune, train};
use crate::Result;

/// The relative distances from fp32 that are allowed at most, about twice those measured.
const LOSS: Spread = Spread { rms: 1.5e-2, worst: 5e-2 };
const GRAD_NORM: Spread = Spread { rms: 2e-2, worst: 6e-2 };

/// What the table does not say by itself.
const NOTE: &str = "\
What differs is where small things are rounded away. In full, torchtune rounds weights and AdamW's moments to the nearest
bf16: a step smaller than half of a weight's last place is lost, which most are, and the curve stays behind that of fp32.
Here moments are f32 and weights are rounded at random, so that steps count on average: the curve scatters around it. In
lora, torchtune adds what the adapter gives, which is small at first, to a product that is rounded already; here both are
one sum, rounded once, and adapters are f32.";

/// Trains in bf16, prints the curves side by side and how far each is from torchtune's in fp32, and
/// returns whether ours are near enough. The Hugging Face folder is enough: in bf16 the GGUF file's weights are
/// the same.
pub(super) fn compare(root: &Path, model: &Path, recipes: &[&str]) -> Result<bool> {
    let mut within = true;
    let mut table = Vec::new();
    for &recipe in recipes {
        let fp32 = torchtune(root, recipe, Precision::Fp32)?;
        let theirs = torchtune(root, recipe, Precision::Bf16)?;
        let ours = train(root, recipe, Precision::Bf16, "hf", &model.join("hf"))?;
        let (off, their_off) = (ours.distance_from(&fp32)?, theirs.distance_from(&fp32)?);
        within &= off.loss.within(&their_off.loss.min(&LOSS)) && off.norm.within(&their_off.norm.min(&GRAD_NORM));
        print_curves(recipe, &fp32, &theirs, &ours);
        table.push(row(&format!("{recipe}, torchtune"), &their_off));
        table.push(row(&format!("{recipe}, ours"), &off));
    }
    say!("Relative distance of the bf16 runs from torchtune's run in fp32");
    say!("{:<20} {:>10} {:>12} {:>10} {:>12}", "run", "loss, rms", "loss, worst", "norm, rms", "norm, worst");
    table.iter().for_each(|row| say!("{row}"));
    say!("{}   and no more than torchtune's", numbers("ours, allowed", &LOSS, &GRAD_NORM));
    say!("{NOTE}");
    Ok(within)
}

fn row(name: &str, off: &Distance) -> String {
    numbers(name, &off.loss, &off.norm)
}

fn numbers(name: &str, loss: &Spread, norm: &Spread) -> String {
    format!("{name:<20} {:>10.1e} {:>12.1e} {:>10.1e} {:>12.1e}", loss.rms, loss.worst, norm.rms, norm.worst)
}

fn print_curves(recipe: &str, fp32: &Curve, theirs: &Curve, ours: &Curve) {
    say!("{recipe}: torchtune in fp32, torchtune in bf16, ours in bf16");
    say!("{:>4} {:>9} {:>9} {:>9}    {:>9} {:>9} {:>9}", "step", "loss", "loss", "loss", "norm", "norm", "norm");
    for step in 0..fp32.len() {
        let row =
            |of: &dyn Fn(&Curve) -> f64| [fp32, theirs, ours].map(|curve| format!("{:>9.4}", of(curve))).join(" ");
        say!("{:>4} {}    {}", step + 1, row(&|curve| curve.losses[step]), row(&|curve| curve.norms[step]));
    }
    say!();
}
