//! What was written, read again from the disk and compared with what was trained.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::DType;
use serde::{Deserialize, Serialize};

use super::measure::{Distance, Prompts, Said};
use super::receipt::Kind;
use crate::checkpoint::gguf::adapter::{self, AdapterExport};
use crate::checkpoint::gguf::{DIFFICULT, Export, FileKind, difference};
use crate::checkpoint::merge::Merged;
use crate::checkpoint::{Checkpoint, same_bits};
use crate::device::Compute;
use crate::memory::available;
use crate::models::{Decoder, EmbeddingSpec, LoadOptions, LoraOptions, ModelSpec, OfLayer};
use crate::peft::set_trainable;
use crate::tokenizer::{Tokenizer, TokenizerConfig};
use crate::words::count;
use crate::{Error, Result};

/// What an artifact is to be.
#[derive(Debug)]
pub enum Target<'m> {
    /// A folder as Hugging Face's libraries read it, weights in this type.
    Folder(DType),
    /// A GGUF file with the model.
    Gguf(Export<'m>),
    /// A GGUF file with the adapter alone.
    Adapter(AdapterExport, FileKind),
}

impl Target<'_> {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Folder(_) => Kind::Folder,
            Self::Gguf(_) => Kind::Gguf,
            Self::Adapter(..) => Kind::GgufAdapter,
        }
    }

    /// The type of its weights.
    #[must_use]
    pub fn weights(&self) -> &'static str {
        match self {
            Self::Folder(DType::BF16) => "bf16",
            Self::Folder(DType::F16) => "f16",
            Self::Folder(_) => "f32",
            Self::Gguf(export) => export.kind().name(),
            Self::Adapter(_, kind) => kind.name(),
        }
    }

    /// The largest mean divergence in nats that its type explains.
    fn bound(&self) -> f64 {
        match self.weights() {
            "f32" => 1e-5,
            "f16" => 1e-2,
            "bf16" | "q8_0" => 5e-2,
            "q6_k" => 0.15,
            "q5_k_m" => 0.4,
            _ => 1.0,
        }
    }
}

/// What was found in an artifact that is as it should be, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    /// Tensors that are, bit for bit, what they were to be.
    pub tensors: usize,
    /// Prompts that both models were given, and the positions that were compared; none where the models do not fit into memory.
    pub prompts: usize,
    /// Positions that were compared.
    pub positions: usize,
    /// The precision that both were computed in.
    pub computed_in: String,
    /// How far what was written is from what was trained.
    pub from_trained: Option<Distance>,
    /// How far the base is from what was trained, where there is an adapter.
    pub base_from_trained: Option<Distance>,
    /// By formats of numbers: the root of the mean square of the error that they bring, by that of the numbers.
    pub loss: BTreeMap<String, f64>,
    /// The checksum of the chat template.
    pub chat_template: Option<u32>,
    /// The tokens that end answers, and their ids.
    pub stop_tokens: BTreeMap<String, u32>,
}

/// What was found: an artifact without faults is as it should be.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    /// What is wrong, each in a sentence.
    pub faults: Vec<String>,
    /// What deserves attention.
    pub notes: Vec<String>,
    /// The numbers.
    pub proof: Proof,
}

impl Findings {
    /// Nothing where there are no faults.
    ///
    /// # Errors
    /// All of them, in one text.
    pub fn sound(&self) -> Result<()> {
        match self.faults.is_empty() {
            true => Ok(()),
            false => Err(Error::setup(format!(
                "what was written is not what was trained, and was removed:\n  {}",
                self.faults.join("\n  ")
            ))),
        }
    }

    /// The numbers in words, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let proof = &self.proof;
        let mut lines = vec![format!("{} tensors have the values that they should have, bit for bit", proof.tensors)];
        if let Some(distance) = proof.from_trained {
            lines.push(format!(
                "{}, {}, computed in {}: logits are within {:.2e} of what was trained; divergence {:.1e} nats; \
                 the same token is likeliest at {:.1} %",
                count(proof.prompts, "prompt"),
                count(proof.positions, "position"),
                proof.computed_in,
                distance.largest,
                distance.divergence,
                100.0 * distance.same_first
            ));
        }
        if let Some(distance) = proof.base_from_trained {
            lines.push(format!(
                "for comparison, the base's logits are within {:.2e} of what was trained; divergence {:.1e} nats",
                distance.largest, distance.divergence
            ));
        }
        lines.extend(
            proof.loss.iter().map(|(name, loss)| format!("{name} changes its weights by {:.2} %", 100.0 * loss)),
        );
        lines.push(match proof.chat_template {
            Some(_) => "the chat template is the trained one, byte for byte".to_owned(),
            None => "there is no chat template".to_owned(),
        });
        if !proof.stop_tokens.is_empty() {
            let names: Vec<&str> = proof.stop_tokens.keys().map(String::as_str).collect();
            lines.push(format!("answers end at {}", names.join(", ")));
        }
        lines
    }
}

/// Reads the artifact at `path` again and compares it with what it was to be.
///
/// # Errors
/// What it is made of cannot be read. What is wrong with the artifact itself is among the findings.
pub fn check(path: &Path, merged: &Merged, target: &Target<'_>, prompts: &Prompts) -> Result<Findings> {
    let mut findings = Findings::default();
    let model = match opened(path, merged, target, &mut findings) {
        Ok(model) => model,
        Err(error) => {
            findings.faults.push(error.to_string());
            return Ok(findings);
        }
    };
    if let Written::Model(checkpoint) = &model
        && let Err(error) = check_tokenizer(checkpoint, merged, target, prompts, &mut findings)
    {
        findings.faults.push(error.to_string());
    }
    if findings.faults.is_empty() {
        measure(&model, merged, target, prompts, &mut findings)?;
    }
    Ok(findings)
}

/// What is on the disk.
enum Written {
    Model(Box<Checkpoint>),
    /// Tensors by the names of [`Decoder::trainable`], and the alpha that their products are scaled by.
    Adapter(BTreeMap<String, candle_core::Tensor>, f64),
}

/// Opens it and compares its tensors.
fn opened(path: &Path, merged: &Merged, target: &Target<'_>, findings: &mut Findings) -> Result<Written> {
    let mut different = Vec::new();
    let written = match target {
        Target::Folder(dtype) => {
            let checkpoint = Checkpoint::open(path)?;
            compare_folder(&checkpoint, merged, *dtype, &mut different, &mut findings.proof)?;
            Written::Model(Box::new(checkpoint))
        }
        Target::Gguf(export) => {
            let checkpoint = Checkpoint::open(path)?;
            let found = export.compare(path)?;
            different = found.different;
            if let Some(other) = found.other {
                findings
                    .faults
                    .push(format!("its settings describe another model than the one that was trained: {other}"));
            }
            findings.proof.tensors = found.same;
            findings.proof.loss = found.loss.into_iter().map(|(name, loss)| (name.to_owned(), loss)).collect();
            Written::Model(Box::new(checkpoint))
        }
        Target::Adapter(export, _) => {
            different = export.compare(path)?;
            let (tensors, alpha) = adapter::read(path, &merged.spec_of_base())?;
            findings.proof.tensors = tensors.len();
            Written::Adapter(tensors, alpha)
        }
    };
    if let Some(first) = different.first() {
        let count = different.len();
        findings.faults.push(format!(
            "{count} of its tensors {} not what base and adapters make, the first `{first}`",
            if count == 1 { "is" } else { "are" }
        ));
    }
    if let Written::Model(checkpoint) = &written {
        let meaning = |spec: ModelSpec| ModelSpec {
            model_type: String::new(),
            embedding: EmbeddingSpec { padding: None, ..spec.embedding },
            ..spec
        };
        let theirs = ModelSpec::of(checkpoint)?;
        // What a GGUF file can say is looked at before it is written.
        if matches!(target, Target::Folder(_)) && meaning(theirs) != meaning(merged.spec()) {
            findings.faults.push("its config.json describes another model than the one that was trained".to_owned());
        }
    }
    Ok(written)
}

fn compare_folder(
    checkpoint: &Checkpoint,
    merged: &Merged,
    dtype: DType,
    different: &mut Vec<String>,
    proof: &mut Proof,
) -> Result<()> {
    let expected: BTreeSet<String> = merged.spec().weights().into_iter().map(|(name, _)| name).collect();
    for name in &expected {
        let there = checkpoint.stored_dtype(name) == Some(dtype)
            && same_bits(&checkpoint.tensor(name, dtype, &candle_core::Device::Cpu)?, &merged.tensor(name, dtype)?)?;
        match there {
            true => proof.tensors += 1,
            false => different.push(name.clone()),
        }
    }
    different.extend(checkpoint.names().filter(|name| !expected.contains(*name)).map(str::to_owned));
    Ok(())
}

/// Template, stop tokens, and how text is cut.
fn check_tokenizer(
    checkpoint: &Checkpoint,
    merged: &Merged,
    target: &Target<'_>,
    prompts: &Prompts,
    findings: &mut Findings,
) -> Result<()> {
    let (theirs, _) = TokenizerConfig::default().open(checkpoint)?;
    let ours = merged.tokenizer();
    let source = |tokenizer: &Tokenizer| tokenizer.chat_template().map(|template| template.source().to_owned());
    match (source(ours), source(&theirs)) {
        (ours, theirs) if ours == theirs => {
            findings.proof.chat_template = ours.map(|text| crc32c::crc32c(text.as_bytes()));
        }
        (Some(_), None) => findings.faults.push("it has no chat template, and was trained with one".to_owned()),
        (None, _) => findings.faults.push("it has a chat template, and was trained without one".to_owned()),
        (Some(ours), Some(theirs)) => {
            let at = ours.bytes().zip(theirs.bytes()).take_while(|(a, b)| a == b).count();
            findings.faults.push(format!("its chat template is not the trained one: they differ from byte {at} on"));
        }
    }
    for &id in ours.stop_tokens().iter() {
        let Some(token) = ours.token(id) else { continue };
        let is_taught = ours.stop_tokens().taught().contains(&id);
        // Listed for other programs; what our own reader finds out by itself does not count.
        let is_listed = theirs.stop_tokens().contains(&id) && !theirs.stop_tokens().unlisted().contains(&id);
        if theirs.token(id).as_ref() != Some(&token) || theirs.encode(&token)? != [id] {
            findings.faults.push(format!(
                "the stop token `{token}` is not the one token {id} in its tokenizer, so no answer ends there"
            ));
        } else if is_listed {
            findings.proof.stop_tokens.insert(token, id);
        } else if is_taught {
            findings
                .faults
                .push(format!("it does not list the stop token `{token}` ({id}): other programs would not stop there"));
        } else {
            let why = if matches!(target, Target::Gguf(_)) {
                "a GGUF file has room for three"
            } else {
                "the list is shorter"
            };
            findings.notes.push(format!("the stop token `{token}` ({id}) of the base is not among its own: {why}"));
        }
    }
    let texts: Result<Vec<String>> = prompts.iter().map(|ids| ours.decode(ids, false)).collect();
    let texts = texts?;
    if let Some(text) = difference(ours, &theirs, texts.iter().map(String::as_str).chain(DIFFICULT))? {
        findings.faults.push(format!("its tokenizer cuts another way: {text:?}"));
    }
    Ok(())
}

/// The precision in which the model fits into memory; nothing if it fits in none.
pub(super) fn precision(spec: &ModelSpec) -> Result<Option<DType>> {
    let Some(available) = available()? else { return Ok(Some(DType::F32)) };
    let needed = |bytes: u64| spec.parameter_count() * bytes * 11 / 10 + (256 << 20);
    Ok([DType::F32, DType::BF16].into_iter().find(|dtype| needed(dtype.size_in_bytes() as u64) < available.bytes))
}

/// Compares what the models say.
fn measure(
    written: &Written,
    merged: &Merged,
    target: &Target<'_>,
    prompts: &Prompts,
    findings: &mut Findings,
) -> Result<()> {
    let Some(dtype) = precision(&merged.spec())? else {
        findings.notes.push(
            "the model does not fit into memory: its tensors were compared one by one, what it says was not".to_owned(),
        );
        return Ok(());
    };
    let options = LoadOptions { dtype, device: Compute::Processor, train_weights: false, lora: None };
    let (trained, base) = {
        let model = merged.trained(&options)?;
        let trained = Said::by(&model, prompts)?;
        let base = match merged.parts().next() {
            None => None,
            // A base of fewer tokens has no logits for the others.
            Some(_) if merged.spec().vocab_size != merged.spec_of_base().vocab_size => None,
            Some(_) if merged.whole().next().is_some() => Some(Said::by(&merged.untrained(&options)?, prompts)?),
            Some(_) => Some(Said::by(&model.without_adapters()?, prompts)?),
        };
        (trained, base)
    };
    let model = match written {
        Written::Model(checkpoint) => Decoder::load(ModelSpec::of(checkpoint)?, &**checkpoint, &options),
        Written::Adapter(tensors, alpha) => with_adapter(merged, tensors, *alpha, &options),
    };
    let said = match model.and_then(|model| Said::by(&model, prompts)) {
        Ok(said) => said,
        Err(error) => {
            findings.faults.push(error.to_string());
            return Ok(());
        }
    };
    let proof = &mut findings.proof;
    proof.prompts = prompts.len();
    proof.positions = trained.positions();
    proof.computed_in = if dtype == DType::F32 { "fp32" } else { "bf16" }.to_owned();
    if !trained.is_finite() {
        findings.faults.push("what was trained gives logits that are no numbers".to_owned());
    } else if !said.is_finite() {
        findings.faults.push("it gives logits that are no numbers".to_owned());
    }
    let distance = trained.distance(&said);
    proof.from_trained = Some(distance);
    // In bf16 both are rounded on their way, each otherwise.
    let bound = if dtype == DType::F32 { target.bound() } else { target.bound().max(5e-2) };
    if distance.divergence > bound || distance.divergence.is_nan() {
        findings.faults.push(format!(
            "what it says is {:.1e} nats from what was trained, and {bound:.0e} is the most that {} explains",
            distance.divergence,
            target.weights()
        ));
    }
    let Some(base) = base else { return Ok(()) };
    let of_base = trained.distance(&base);
    proof.base_from_trained = Some(of_base);
    if of_base.largest == 0.0 {
        findings.faults.push("what was trained equals its base: the adapter changes nothing".to_owned());
    } else if base.distance(&said).largest == 0.0 {
        findings.faults.push("it equals its base: the adapter is not in it".to_owned());
    } else if of_base.divergence < distance.divergence {
        findings.notes.push(format!(
            "the loss by {} is larger than what training changed: {:.1e} against {:.1e} nats",
            target.weights(),
            distance.divergence,
            of_base.divergence
        ));
    }
    Ok(())
}

/// The base with the adapter of a GGUF file.
fn with_adapter(
    merged: &Merged,
    tensors: &BTreeMap<String, candle_core::Tensor>,
    alpha: f64,
    options: &LoadOptions,
) -> Result<Decoder> {
    let mut layers = BTreeMap::new();
    for (name, tensor) in tensors {
        if let Some(module) = name.strip_suffix(".lora_A.weight") {
            let rank = tensor.dim(0)?;
            layers.insert(module.to_owned(), OfLayer { rank, scale: alpha / rank as f64 });
        }
    }
    if layers.is_empty() {
        return Err(Error::setup("the file holds no adapters"));
    }
    let lora = Some(LoraOptions::on_layers(layers)?);
    let base = merged.base();
    let model = Decoder::load(ModelSpec::of(base)?, base, &LoadOptions { lora, ..options.clone() })?;
    set_trainable(&model, tensors, "the GGUF adapter")?;
    Ok(model)
}
