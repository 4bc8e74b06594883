//! `merge`: adapters in the weights of their base.

use std::path::PathBuf;

use tune_core::artifact::{Aside, Source, Target, Written, part};
use tune_core::checkpoint::merge::Part;
use tune_core::checkpoint::{Size, human};
use tune_core::config::say;
use tune_core::device::Precision;
use tune_core::words::count;

use super::{Common, open, prove_and_name};
use crate::Result;

/// Adapters, and where the merged model goes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folders of adapters, checkpoints or runs; `ADAPTER=0.5` takes half of one. Or the model that those of --adapter go into.
    #[arg(required_unless_present = "adapter", value_name = "ADAPTER[=WEIGHT]", value_parser = part)]
    adapters: Vec<Part>,
    /// The new folder.
    #[arg(long, short = 'o', value_name = "FOLDER")]
    to: PathBuf,
    /// Merge this adapter, too; `ADAPTER=0.5` takes half of it. Can be said several times.
    #[arg(long, value_name = "ADAPTER[=WEIGHT]", value_parser = part)]
    adapter: Vec<Part>,
    /// The model that the adapters are for; by default the one that the first of them names.
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// fp32, bf16 or fp16: the type of the weights; by default the base's own, and bf16 where that is quantized.
    #[arg(long, value_name = "TYPE", value_parser = precision)]
    dtype: Option<Precision>,
    /// Largest size of one weight file, such as 5GB or 500MB.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = size)]
    max_shard_size: Size,
    #[command(flatten)]
    common: Common,
}

/// Writes the merged model.
///
/// # Errors
/// What cannot be read or written, and a result that is not what was trained.
pub(crate) fn run(args: &Args) -> Result<()> {
    let base = args.base.as_deref();
    let source = match (args.adapters.as_slice(), args.adapter.as_slice()) {
        ([model], adapters @ [_, ..]) if model.weight == 1.0 => Source::find(&model.dir, base, adapters)?,
        (adapters, more) => Source::of_adapters(&[adapters, more].concat(), base)?,
    };
    let merged = open(&source)?;
    let dtype = args.dtype.map_or_else(|| merged.stored_dtype(), Precision::dtype);
    let target = Target::Folder(dtype);
    let bytes = merged.bytes(dtype);
    say!("base      {}", source.base.display());
    for part in merged.parts() {
        say!("adapter   {}", part.shown());
    }
    say!("changes   {}", count(merged.adapted().len(), "layer"));
    say!("writes    {}, {} of {} weights", args.to.display(), human(bytes), target.weights());
    Aside::check(&args.to, bytes)?;
    if args.common.dry_run {
        return Ok(());
    }
    let prompts = args.common.prompts(&merged)?;
    let aside = Aside::begin(&args.to, bytes)?;
    merged.write(&aside.path(), dtype, args.max_shard_size.0)?;
    if merged.is_quantized() {
        let loss = merged.rounding(dtype)?;
        say!(
            "the base is quantized: its weights are written as the {} numbers nearest to those that it stands for, which \
             changes them by {:.3} %",
            target.weights(),
            100.0 * loss
        );
    }
    prove_and_name(Written::new(aside, &args.to, (&source, &merged), target, None), &prompts)
}

fn precision(text: &str) -> Result<Precision, String> {
    match text {
        "fp32" | "f32" => Ok(Precision::Fp32),
        "bf16" => Ok(Precision::Bf16),
        "fp16" | "f16" => Ok(Precision::Fp16),
        other => Err(format!("`{other}` is no type of weights; use fp32, bf16 or fp16")),
    }
}

fn size(text: &str) -> Result<Size, String> {
    text.parse()
}
