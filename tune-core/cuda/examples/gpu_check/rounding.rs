//! Numbers that are rounded to the few levels of a quantized model: the processor's bits, of which `harness/rounded.txt` has hashes.

use half::bf16;
use tune_cuda::{Context, FileFormat, Levels, Result};

use super::checks::Checks;

/// Numbers of `harness/rounded.h`.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut x = vec![0f32; count];
    for i in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (whole, smaller) = ((state >> 40) as i32 - (1 << 23), (state >> 37 & 7) as i32);
        x[i] = match i {
            256..512 => 0.0,
            1024..1280 if i / 16 % 2 == 1 => -x[i - 16],
            _ if i % 64 == 40 => -1.0,
            _ if i % 64 == 50 => 1.0,
            _ => whole as f32 * 0.5f32.powi(23 + smaller),
        };
    }
    x
}

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

/// FNV-1a.
fn hash_of<T: bytemuck::Pod>(x: &[T]) -> u64 {
    let bytes: &[u8] = bytemuck::cast_slice(x);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
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
    let lines = include_str!("../../harness/rounded.txt").lines().filter(|line| !line.starts_with('#'));
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let (kind, group, count) = (words[0], words[1].parse().unwrap_or(0), words[2].parse().unwrap_or(0));
        let right: Vec<u64> = words[3..].iter().map(|hash| u64::from_str_radix(hash, 16).unwrap_or_default()).collect();
        for (of, found, right) in [
            ("f32", found::<f32>(context, kind, group, count), &right[..2]),
            ("bf16", found::<bf16>(context, kind, group, count), &right[2..]),
        ] {
            let shape = format!("{kind} of {count} in groups of {group}");
            match found {
                Ok(found) => checks.is_true(&format!("bits of {shape} {of}"), found == right),
                Err(error) => checks.fail("rounding", of, &shape, &error.to_string()),
            }
        }
    }
}
