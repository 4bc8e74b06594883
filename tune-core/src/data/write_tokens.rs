//! Makes a file of tokens of documents.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use super::corpus::Corpus;
use super::order::BLOCK;
use super::pretrain::PretrainData;
use super::report::DatasetReport;
use super::tokens::{EXTENSIONS, FORMAT, Header, TokenWidth};
use crate::checkpoint::write_json;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Tokenizes documents into the file `out` (`NAME.bin`), one behind the other, and writes what it is into `NAME.json`. Ids have two
/// bytes where that is enough, unless `width` says otherwise. `progress` is told how many of all documents are done.
///
/// # Errors
/// A record that cannot be used, ids that are too large for `width`, files that are there already or cannot be written: nothing is
/// left then.
pub fn write_tokens(
    dataset: &PretrainData,
    tokenizer: &Tokenizer,
    out: &Path,
    width: Option<TokenWidth>,
    mut progress: impl FnMut(usize, usize),
) -> Result<(Header, DatasetReport)> {
    let PretrainData::Text(documents) = dataset else {
        return Err(Error::setup("files of tokens are made of documents: a dataset of `_component_: text`"));
    };
    if out.extension().is_none_or(|extension| extension != EXTENSIONS[0]) {
        return Err(Error::file(out, "the name of a file of tokens ends in .bin"));
    }
    let header_path = out.with_extension(EXTENSIONS[1]);
    if let Some(there) = [out, &header_path].into_iter().find(|path| path.exists()) {
        return Err(Error::file(there, "exists already: remove it, or choose another name"));
    }
    let enough = if tokenizer.vocab_size() <= 1 << 16 { TokenWidth::Uint16 } else { TokenWidth::Uint32 };
    let dtype = match (width, enough) {
        (Some(TokenWidth::Uint16), TokenWidth::Uint32) => {
            return Err(Error::setup(format!(
                "the tokenizer has {} tokens, and two bytes can name {}: choose uint32",
                tokenizer.vocab_size(),
                1 << 16
            )));
        }
        (width, enough) => width.unwrap_or(enough),
    };
    // No sample is cut, whatever the length of a row.
    let corpus = Corpus::open(&[dataset.into()], tokenizer, Some(usize::MAX), 0)?;
    let end_of_text = tokenizer.eos().filter(|_| documents.add_eos);
    let mut header = Header {
        format: FORMAT.to_owned(),
        dtype,
        tokens: 0,
        documents: 0,
        end_of_text,
        vocabulary_crc32c: tokenizer.vocabulary_sum(),
    };
    let aside = out.with_extension("bin.partial");
    let written = fill(&corpus, &aside, &mut header, &mut progress).and_then(|report| {
        fs::rename(&aside, out).map_err(Error::io("write", out))?;
        // Last: a file without it is not taken for a whole one.
        write_json(&header_path, &header)?;
        Ok(report)
    });
    match written {
        Ok(report) => Ok((header, report)),
        Err(error) => {
            // What is left of it is of no use to anyone.
            let _ = fs::remove_file(&aside);
            Err(error)
        }
    }
}

fn fill(
    corpus: &Corpus,
    path: &Path,
    header: &mut Header,
    progress: &mut impl FnMut(usize, usize),
) -> Result<DatasetReport> {
    let file = File::create(path).map_err(Error::io("create", path))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut account = corpus.account();
    let all: Vec<usize> = (0..corpus.len()).collect();
    for (block, records) in all.chunks(BLOCK).enumerate() {
        for (_, sample) in corpus.tokenize(records, &mut account)? {
            header.documents += 1;
            header.tokens += sample.input_ids.len() as u64;
            for id in sample.input_ids {
                let bytes = id.to_le_bytes();
                out.write_all(&bytes[..header.dtype.bytes() as usize]).map_err(Error::io("write", path))?;
            }
        }
        progress((block * BLOCK + records.len()).min(corpus.len()), corpus.len());
    }
    out.flush().and_then(|()| out.get_ref().sync_all()).map_err(Error::io("write", path))?;
    let mut reports = corpus.reports(account)?;
    reports.pop().ok_or_else(|| Error::setup("there is no dataset"))
}
