//! Numbers that are rounded to the few levels of a quantized model: the processor's bits, of which `harness/rounded.txt` has hashes.

#[path = "../../harness/rounded.rs"]
mod rounded;

use half::bf16;
use tune_cuda::{Context, FileFormat, Levels, Result};

use super::checks::Checks;
use rounded::{Rounding, hash_of, numbers};

/// A type whose bits are compared.
pub(crate) trait Stored: tune_cuda::Element {
    fn of(x: f32) -> Self;
}

impl Stored for f32 {
    fn of(x: f32) -> Self {
        x
    }
}

impl Stored for bf16 {
    fn of(x: f32) -> Self {
        Self::from_f32(x)
    }
}

fn levels(kind: &str, group: usize) -> Option<Levels> {
    let format = match kind {
        "int4" => return Some(Levels::Int4 { group }),
        "int4_affine" => return Some(Levels::Int4Affine { group }),
        "f16" => FileFormat::F16,
        "bf16" => FileFormat::Bf16,
        "q8_0" => FileFormat::Q8_0,
        "q4_0" => FileFormat::Q4_0,
        "q4_1" => FileFormat::Q4_1,
        "q5_0" => FileFormat::Q5_0,
        "q5_1" => FileFormat::Q5_1,
        "q4_k" => FileFormat::Q4K,
        "q5_k" => FileFormat::Q5K,
        "q6_k" => FileFormat::Q6K,
        _ => return None,
    };
    Some(Levels::File(format))
}

/// Hashes of the rounded numbers, and of their gradients where these may be limited.
fn found<T: Stored>(context: &Context, kind: &str, group: usize, count: usize) -> Result<[u64; 2]> {
    let upload = |seed| context.upload(&numbers(count, seed).into_iter().map(T::of).collect::<Vec<_>>());
    let (x, mut y) = (upload(7), context.buffer::<T>(count));
    let Some(levels) = levels(kind, group) else {
        let mut g = upload(8);
        context.round_rows(x.view(group), y.view_mut(group));
        context.round_rows_back(x.view(group), None, g.view_mut(group));
        return Ok([hash_of(&context.download(&y)?), hash_of(&context.download(&g)?)]);
    };
    context.round_weight(levels, &x, &mut y);
    let rounded = hash_of(&context.download(&y)?);
    if matches!(levels, Levels::File(_)) {
        return Ok([rounded, 0]);
    }
    let mut g = context.upload(&numbers(count, 8));
    context.round_weight_back(levels, &x, &mut g);
    Ok([rounded, hash_of(&context.download(&g)?)])
}

pub(crate) fn check(context: &Context, checks: &mut Checks) {
    let Some(roundings) = rounded::roundings() else {
        return checks.fail("rounding", "f32 and bf16", "all", "harness/rounded.txt cannot be read");
    };
    for Rounding { kind, group, count, hashes } in roundings {
        for (of, found, right) in [
            ("f32", found::<f32>(context, kind, group, count), hashes[0]),
            ("bf16", found::<bf16>(context, kind, group, count), hashes[1]),
        ] {
            let shape = format!("{kind} of {count} in groups of {group}");
            match found {
                Ok(found) => checks.is_true(&format!("bits of {shape} {of}"), found == right),
                Err(error) => checks.fail("rounding", of, &shape, &error.to_string()),
            }
        }
    }
}
