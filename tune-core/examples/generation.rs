//! How fast a model generates: `cargo run --release -p tune-core --example generation -- MODEL [TOKENS] [RUNS]`, for a
//! Hugging Face folder. Prints tokens per second, of the best of some runs, for one sequence and for sixteen, with the fastest
//! kernels and with those of training, and what share of the memory's bandwidth reading the weights takes.

use std::hint::black_box;
use std::time::Instant;

use candle_core::DType;
use rayon::prelude::*;
use tune_core::checkpoint::Checkpoint;
use tune_core::config::say;
use tune_core::device::Compute;
use tune_core::generate::{Kernels, Sampler, StopOptions, generate_many};
use tune_core::models::{Decoder, LoadOptions, ModelSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("the folder of a model is missing")?;
    let tokens: usize = args.next().map_or(Ok(200), |tokens| tokens.parse())?;
    let runs: usize = args.next().map_or(Ok(3), |runs| runs.parse())?;
    let checkpoint = Checkpoint::open(&folder)?;
    let bandwidth = bandwidth();
    say!("memory is read at {:.1} GB/s by {} threads", bandwidth / 1e9, rayon::current_num_threads());
    for (dtype, bytes) in [(DType::F32, 4.0), (DType::BF16, 2.0)] {
        let options = LoadOptions { dtype, device: Compute::Processor, train_weights: false, lora: None };
        let model = Decoder::load(ModelSpec::from_json(checkpoint.config())?, &checkpoint, &options)?;
        let weights = model.parameter_count() as f64 * bytes;
        for (sequences, kernels) in
            [(1, Kernels::Fast), (16, Kernels::Fast), (1, Kernels::OfTraining), (16, Kernels::OfTraining)]
        {
            let rates = (0..runs).map(|_| rate(&model, sequences, tokens, kernels)).collect::<Result<Vec<_>, _>>()?;
            let best = rates.into_iter().fold(0.0, f64::max);
            let share = best / sequences as f64 * weights / bandwidth;
            let kernels = format!("{kernels:?}");
            say!(
                "{dtype:?} {sequences:2} sequences {kernels:10}: {best:7.1} tok/s, {:3.0} % of the bandwidth",
                100.0 * share
            );
        }
    }
    Ok(())
}

/// Tokens per second behind prompts of sixteen tokens each, prompts not counted.
fn rate(model: &Decoder, sequences: usize, tokens: usize, kernels: Kernels) -> Result<f64, Box<dyn std::error::Error>> {
    let id = |i: usize| (1000 + 37 * i as u32) % model.config.vocab_size as u32;
    let prompts: Vec<Vec<u32>> = (0..sequences).map(|s| (0..16).map(|i| id(16 * s + i)).collect()).collect();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut samplers: Vec<Sampler> = prompts.iter().map(|_| Sampler::greedy()).collect();
    let stop = StopOptions { max_new_tokens: tokens, stop_tokens: Vec::new() };
    let (mut seen, mut start) = (0usize, Instant::now());
    generate_many(model, &prompts, &mut samplers, &stop, kernels, |_, _| {
        // The first tokens come of the prompts.
        seen += 1;
        if seen == sequences {
            start = Instant::now();
        }
        Ok(())
    })?;
    Ok((seen - sequences) as f64 / start.elapsed().as_secs_f64())
}

/// Bytes per second at which all threads together read memory that no cache holds.
fn bandwidth() -> f64 {
    let memory = vec![1u64; 1 << 26];
    let read = || {
        let start = Instant::now();
        let sum: u64 =
            memory.par_chunks(1 << 16).map(|part| part.iter().fold(0, |sum: u64, x| sum.wrapping_add(*x))).sum();
        black_box(sum);
        (memory.len() * size_of::<u64>()) as f64 / start.elapsed().as_secs_f64()
    };
    (0..5).map(|_| read()).fold(0.0, f64::max)
}
