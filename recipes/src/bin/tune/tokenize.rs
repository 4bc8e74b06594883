//! `tokenize`: documents to a file of tokens, for `pretrain`.

use std::path::PathBuf;

use tune_core::checkpoint::{Checkpoint, human};
use tune_core::data::{DocumentsDataset, Files, PretrainData, Source, TokenWidth, write_tokens};
use tune_core::metrics::{Console, Downloads};
use tune_core::words::count;
use tune_core::{hub, tokenizer::TokenizerConfig};

use crate::Result;

/// What is tokenized, for which model, and where to.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model whose tokenizer is taken: a folder, a .gguf file, or hf://org/name. No weights are needed.
    model: PathBuf,
    /// Files or folders of documents (JSON, JSON lines, Parquet, CSV, TSV), or hf://org/name.
    #[arg(required = true, value_name = "DATA")]
    data_files: Vec<PathBuf>,
    /// The file to write, NAME.bin; NAME.json beside it says what it is.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// The format, where the files' names do not tell; `text`: each file is one document.
    #[arg(long, value_name = "FORMAT")]
    source: Option<String>,
    /// The column with the text.
    #[arg(long, default_value = "text")]
    column: String,
    /// Which part to take: `train`, `train[:10%]`, `train[200:]` ...
    #[arg(long, default_value = "train")]
    split: String,
    /// Do not close documents with the end-of-text token.
    #[arg(long)]
    no_eos: bool,
    /// Bytes of an id, 2 or 4; by default the fewest that are enough.
    #[arg(long, value_name = "BYTES", value_parser = width)]
    bytes: Option<TokenWidth>,
}

fn width(text: &str) -> Result<TokenWidth, String> {
    match text {
        "2" => Ok(TokenWidth::Uint16),
        "4" => Ok(TokenWidth::Uint32),
        _ => Err("expected 2 or 4".to_owned()),
    }
}

/// Writes the file, and says what is in it and how it is trained on.
///
/// # Errors
/// A tokenizer or documents that cannot be read, a file that is there already or cannot be written.
pub(crate) fn run(args: Args) -> Result<String> {
    hub::watch(Downloads::stderr());
    let Args { model, data_files, output, source, column, split, no_eos, bytes } = args;
    let (tokenizer, _) = TokenizerConfig::default().open(&Checkpoint::open_without_weights(&model)?)?;
    let files = Files { source: source.as_deref().map(Source::from), data_files, split, ..Files::default() };
    let documents = PretrainData::Text(DocumentsDataset { files, column, add_eos: !no_eos, attend_across: false });
    let mut console = Console::stderr();
    let told = |done: usize, all: usize| {
        if done < all {
            console.note(&format!("{done} of {}", count(all, "document")));
        }
    };
    let (header, report) = write_tokens(&documents, &tokenizer, &output, bytes, told)?;
    let mut said = format!(
        "{} has {} of {}, {}\n",
        output.display(),
        count(header.tokens, "token"),
        count(header.documents, "document"),
        human(header.tokens * header.dtype.bytes()),
    );
    for warning in report.unused.iter().chain(&report.warnings).chain(&report.never_stops) {
        said += &format!("warning: {warning}\n");
    }
    Ok(said
        + &format!(
            "Train on it with\n  tune run pretrain --config pretrain/smollm2_135m checkpointer.checkpoint_dir={} \
             'dataset={{_component_: tokens, data_files: [{}]}}'\n",
            model.display(),
            output.display()
        ))
}
