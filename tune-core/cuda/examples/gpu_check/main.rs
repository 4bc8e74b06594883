//! Checks everything that this crate does on a card against `tune-reference`, and measures it: `gpu_check [values] [attention] [times]`,
//! or `gpu_check small`: a few shapes of each, for a tool that watches every access. `gpu_check methods` and `gpu_check small methods` are
//! of distillation, DoRA and fake quantization alone; `gpu_check collectives` is what NCCL does for one card; `gpu_check blocks` measures weights in blocks. `gpu_check candidates` looks for products that another
//! algorithm than cuBLASLt's first computes faster; with `all` it names each.
//! `cargo xtask gpu-check` packs it.

mod attention;
mod candidates;
mod checks;
mod collectives;
mod elements;
mod experts;
mod grouped;
mod methods;
mod numbers;
mod optimizers;
mod products;
mod rounding;
mod sample;
mod times;

use std::process::ExitCode;
use std::time::Instant;

use half::bf16;
use tune_config::say;
use tune_cuda::{Context, Driver};

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let wants = |what: &str| wanted.is_empty() || wanted.iter().any(|w| w == what);
    let context = match open() {
        Ok(context) => context,
        Err(error) => {
            say!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut well = true;
    if wants("values") || wants("attention") {
        let start = Instant::now();
        let mut checks = checks::Checks::default();
        attention::check::<f32>(&context, &mut checks, usize::MAX);
        attention::check::<bf16>(&context, &mut checks, usize::MAX);
        attention::behind_a_past::<f32>(&context, &mut checks);
        attention::behind_a_past::<bf16>(&context, &mut checks);
        if wants("values") {
            values(&context, &mut checks, usize::MAX);
            products::memory(&mut checks);
        }
        well &= checks.report();
        say!("values took {:.1} s", start.elapsed().as_secs_f64());
    }
    let named = |what: &str| wanted.iter().any(|w| w == what);
    if wants("collectives") {
        let mut checks = checks::Checks::default();
        collectives::check(&context, &mut checks);
        well &= checks.report();
    }
    if named("methods") {
        let mut checks = checks::Checks::default();
        methods(&context, &mut checks, if named("small") { 4 } else { usize::MAX });
        well &= checks.report();
        let measured = if named("small") { Ok(()) } else { times::of_methods(&context) };
        if let Err(error) = measured {
            say!("error: {error}");
            well = false;
        }
    } else if named("small") {
        let mut checks = checks::Checks::default();
        values(&context, &mut checks, 3);
        attention::check::<f32>(&context, &mut checks, 2);
        attention::check::<bf16>(&context, &mut checks, 10);
        attention::behind_a_past::<bf16>(&context, &mut checks);
        well &= checks.report();
    }
    if named("blocks")
        && let Err(error) = times::measure_blocks(&context)
    {
        say!("error: {error}");
        well = false;
    }
    if wants("times") {
        let start = Instant::now();
        if let Err(error) = times::measure(&context) {
            say!("error: {error}");
            well = false;
        }
        say!("times took {:.1} s; {:?}", start.elapsed().as_secs_f64(), context.usage());
    }
    if wanted.iter().any(|w| w == "candidates")
        && let Err(error) = candidates::measure(&context, wanted.iter().any(|w| w == "all"))
    {
        say!("error: {error}");
        well = false;
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// At most this many shapes of each operation.
fn values(context: &Context, checks: &mut checks::Checks, most: usize) {
    products::check::<f32, f32>(context, checks, most);
    products::check::<bf16, bf16>(context, checks, most);
    products::check::<bf16, f32>(context, checks, most);
    elements::check::<f32>(context, checks, most);
    elements::check::<bf16>(context, checks, most);
    experts::check::<f32>(context, checks, most);
    experts::check::<bf16>(context, checks, most);
    grouped::check::<f32>(context, checks, most);
    grouped::check::<bf16>(context, checks, most);
    optimizers::check::<f32>(context, checks);
    optimizers::check::<bf16>(context, checks);
    sample::check(context, checks, most);
    elements::loss::<f32, f32>(context, checks, most);
    elements::loss::<f32, bf16>(context, checks, most);
    elements::loss::<bf16, bf16>(context, checks, most);
    methods(context, checks, most);
}

/// Of distillation, DoRA and fake quantization.
fn methods(context: &Context, checks: &mut checks::Checks, most: usize) {
    methods::columns::<f32>(context, checks, most);
    methods::columns::<bf16>(context, checks, most);
    methods::distillation::<f32>(context, checks, most);
    methods::distillation::<bf16>(context, checks, most);
    rounding::check(context, checks);
}

fn open() -> tune_cuda::Result<Context> {
    let driver = Driver::probe()?;
    say!("driver: CUDA {}", driver.version);
    for card in &driver.cards {
        say!(
            "card {}: {}, compute capability {}, {:.1} GiB, {} multiprocessors, L2 {} MiB, {} KiB shared",
            card.ordinal,
            card.name,
            card.capability,
            card.memory as f64 / (1u64 << 30) as f64,
            card.multiprocessors,
            card.l2 >> 20,
            card.shared_memory >> 10
        );
    }
    let start = Instant::now();
    let context = Context::open(0)?;
    say!("cuBLASLt: {:?}; opened in {:.2} s", context.libraries(), start.elapsed().as_secs_f64());
    Ok(context)
}
