//! Tokens that are drawn: exactly those that the reference draws by equal logits.

use tune_cuda::{Context, Draw, Result};
use tune_reference as reference;

use super::checks::Checks;
use super::numbers::random;
use super::times::{Limits, time};

/// Rows, tokens of the vocabulary, the size of logits, and of how many values they are, where they are of few.
const SHAPES: [(usize, usize, f32, Option<f32>); 8] = [
    (3, 1, 1.0, None),
    (5, 257, 6.0, Some(4.0)),
    (4, 49_152, 12.0, None),
    (2, 50_257, 12.0, Some(2.0)),
    (24, 151_936, 8.0, None),
    (1, 151_936, 1e-3, None),
    (2, 151_936, 30.0, Some(1.0)),
    (2, 128_256, 4.0, Some(64.0)),
];

pub(crate) fn check(context: &Context, checks: &mut Checks, most: usize) {
    for (seed, &(rows, vocab, size, values)) in SHAPES.iter().enumerate().take(most) {
        let logits: Vec<f32> = random::<f32>(300 + seed as u64, rows * vocab, f64::from(size))
            .into_iter()
            .map(|x| values.map_or(x, |values| (x * values / size).round() * size / values))
            .collect();
        let draws: Vec<Draw> = (0..rows).flat_map(|row| of_row(row, vocab, seed)).collect();
        let row = |draw: &Draw| &logits[draw.row as usize * vocab..][..vocab];
        let token = |draw: &Draw| {
            let Draw { random, share, most, factor, .. } = *draw;
            reference::draw::token(row(draw), reference::draw::Draw { random, share, most: most as usize, factor })
        };
        let tokens: Vec<usize> = draws.iter().map(token).collect();
        let of_token = |(draw, &token): (&Draw, &usize)| {
            let scaled = |x: f32| f64::from(x) * f64::from(draw.scored) * std::f64::consts::LN_2;
            let row: Vec<f64> = row(draw).iter().map(|&x| scaled(x)).collect();
            if draw.scored > 0.0 { row[token] - reference::loss::log_sum_exp(&row) } else { 0.0 }
        };
        let log_probs: Vec<f64> = draws.iter().zip(&tokens).map(of_token).collect();
        let name =
            format!("{} draws, {rows} rows of {vocab} tokens, logits up to {size}, of values {values:?}", draws.len());
        let found = || -> std::result::Result<Vec<u32>, String> {
            let words: Vec<u32> = draws.iter().flat_map(|draw| draw.words()).collect();
            let (logits, words) = (context.upload(&logits), context.upload(&words));
            let found = context.sample(logits.part(0, (rows, vocab), vocab), &words);
            context.download(&found).map_err(|e| e.to_string())
        };
        let right: Vec<f64> = tokens.iter().map(|&token| token as f64).collect();
        checks.compare("tokens that are drawn", "f32", &name, 0.0, &[right], || {
            Ok(vec![found()?.chunks_exact(2).map(|pair| f64::from(pair[0])).collect()])
        });
        checks.compare("their log-probabilities", "f32", &name, 1e-6, &[log_probs], || {
            Ok(vec![found()?.chunks_exact(2).map(|pair| f64::from(f32::from_bits(pair[1]))).collect()])
        });
    }
}

/// How long a token takes beside one read of its logits, and beside bringing these here.
pub(crate) fn measure(context: &Context, limits: &Limits) -> Result<()> {
    let vocab = 151_936;
    let plain = std::f32::consts::LOG2_E;
    for rows in [1, 16, 128] {
        // Of several values, added up, as of a model: most are far below the largest.
        let parts = [1, 2, 3].map(|seed| random::<f32>(seed, rows * vocab, 6.0));
        let logits: Vec<f32> = (0..rows * vocab).map(|i| parts[0][i] + parts[1][i] + parts[2][i]).collect();
        let logits = context.upload(&logits);
        let view = logits.part(0, (rows, vocab), vocab);
        for (name, share, most, factor) in [
            ("the likeliest", 0, 0, 0.0),
            ("by softmax", 0, 0, plain),
            ("top_k and top_p", u64::MAX / 20 * 19, 50, plain),
        ] {
            let draw = |row: usize| Draw { random: 1 << 62, share, row: row as u32, most, factor, scored: plain };
            let words: Vec<u32> = (0..rows).flat_map(|row| draw(row).words()).collect();
            let words = context.upload(&words);
            let seconds = time(context, &mut || drop(context.sample(view, &words)))?;
            limits.bytes(&format!("drawing {rows} of {vocab}, {name}"), seconds, 4.0 * (rows * vocab) as f64);
        }
        let seconds = time(context, &mut || drop(context.read_later(&logits).wait()))?;
        limits.bytes(&format!("bringing {rows} x {vocab} logits here"), seconds, 4.0 * (rows * vocab) as f64);
    }
    Ok(())
}

/// Draws of all kinds by a row.
fn of_row(row: usize, vocab: usize, seed: usize) -> impl Iterator<Item = Draw> {
    let plain = std::f32::consts::LOG2_E;
    (0..8).map(move |kind: usize| {
        let random = ((seed * 64 + row) as u64 * 8 + kind as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Draw {
            random,
            share: if kind & 2 == 0 { 0 } else { u64::MAX / 20 * 18 },
            row: row as u32,
            most: if kind & 1 == 0 { 0 } else { (vocab as u32 / 3).clamp(1, 1 + 20 * kind as u32) },
            factor: [plain, 0.0, plain / 0.7, plain / 8.0][(row + kind / 2) % 4],
            scored: if kind == 5 { 0.0 } else { plain },
        }
    })
}
