//! What is handed on is what was trained: merged folders, GGUF files of every family, adapters for llama.cpp; and each kind of
//! damage is found.

#![allow(clippy::unwrap_used)]

#[path = "artifacts/importance.rs"]
mod importance_matrices;
#[path = "artifacts/token_rows.rs"]
mod token_rows;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tune_core::artifact::{Findings, Prompts, Source, Target, importance, proof};
use tune_core::checkpoint::gguf::adapter::AdapterExport;
use tune_core::checkpoint::gguf::{Export, FileKind, Importance, modelfile};
use tune_core::checkpoint::merge::{Merged, Part};
use tune_core::checkpoint::{Checkpoint, peft};
use tune_core::data::{Batch, IGNORE, Span};
use tune_core::device::Compute;
use tune_core::engine::{Kernels, Sequences};
use tune_core::models::{Decoder, LoadOptions, ModelSpec};
use tune_core::peft::{LoraModule, LoraOptions, adapter_weights, set_trainable};
use tune_core::tokenizer::{TokenizerConfig, TokenizerFiles};

use LoraModule::{DownProj, GateProj, GateUpProj, KProj, LmHead, OProj, QProj, QkvProj, Router, UpProj, VProj};

const FAMILIES: [&str; 10] = [
    "llama_tied",
    "llama3_1_rope_scaled",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The tokenizer of the tiny model, cut to so many tokens.
fn tokenizer(rows: u64) -> TokenizerFiles {
    let tiny = root().join("recipes/tiny/model");
    let mut json = read_json(&tiny.join("tokenizer.json"));
    let vocab: serde_json::Map<String, Value> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, id)| id.as_u64().unwrap() < rows)
        .map(|(token, id)| (token.clone(), id.clone()))
        .collect();
    let halves = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap(),
        pair => (pair[0].as_str().unwrap().to_owned(), pair[1].as_str().unwrap().to_owned()),
    };
    let merges = json["model"]["merges"].as_array().unwrap().iter().filter(|merge| {
        let (a, b) = halves(merge);
        [&a, &b, &format!("{a}{b}")].into_iter().all(|token| vocab.contains_key(token))
    });
    let merges: Vec<Value> = merges.cloned().collect();
    json["model"]["vocab"] = vocab.into();
    json["model"]["merges"] = merges.into();
    let files = [
        ("tokenizer.json".to_owned(), serde_json::to_vec(&json).unwrap()),
        ("tokenizer_config.json".to_owned(), fs::read(tiny.join("tokenizer_config.json")).unwrap()),
    ];
    TokenizerFiles { files: files.into() }
}

/// The tiny model of a family with a tokenizer, in a folder.
fn family(name: &str, into: &Path) -> PathBuf {
    let (from, to) = (root().join("tests/fixtures/families").join(name), into.join(name));
    fs::create_dir_all(&to).unwrap();
    let mut config = read_json(&from.join("config.json"));
    let rows = config["vocab_size"].as_u64().unwrap();
    config["eos_token_id"] = 1.into();
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    fs::write(to.join("generation_config.json"), json!({"eos_token_id": 1}).to_string()).unwrap();
    fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).unwrap();
    for (file, bytes) in tokenizer(rows).files {
        fs::write(to.join(file), bytes).unwrap();
    }
    to
}

/// An adapter on a model, with numbers that change what it says.
fn adapter(base: &Path, modules: &[LoraModule], seed: u64, to: &Path) -> Part {
    written(base, &LoraOptions { modules: modules.to_vec(), rank: 4, alpha: 6.0, seed, ..Default::default() }, to)
}

/// The same with magnitudes, near to those of the base.
fn dora_adapter(base: &Path, modules: &[LoraModule], to: &Path) -> Part {
    let lora =
        LoraOptions { modules: modules.to_vec(), rank: 4, alpha: 6.0, dora: true, seed: 2, ..Default::default() };
    written(base, &lora, to)
}

fn written(base: &Path, options: &LoraOptions, to: &Path) -> Part {
    let (checkpoint, seed) = (Checkpoint::open(base).unwrap(), options.seed);
    let load = LoadOptions {
        dtype: DType::F32,
        device: Compute::Processor,
        train_weights: false,
        lora: Some(options.clone()),
    };
    let model = Decoder::load(ModelSpec::from_json(checkpoint.config()).unwrap(), &checkpoint, &load).unwrap();
    let numbers = |i: usize, t: &Tensor| {
        let values: Vec<f32> =
            (0..t.elem_count()).map(|k| ((k * 31 + i * 17 + 7 * seed as usize) % 29) as f32 / 145.0 - 0.1).collect();
        let values = Tensor::from_vec(values, t.dims(), &Device::Cpu).unwrap();
        // Magnitudes of zero would leave nothing of the model.
        if t.rank() == 1 { (t.detach() * (values + 1.0).unwrap()).unwrap() } else { values }
    };
    let values = model.trainable().iter().enumerate().map(|(i, p)| (p.name().to_string(), numbers(i, p.var())));
    set_trainable(&model, &values.collect(), "the test").unwrap();
    let config = options.adapter_config(&checkpoint).unwrap();
    let (_, files) = TokenizerConfig::default().open(&checkpoint).unwrap();
    peft::write(to, &config, &adapter_weights(&model).unwrap(), &files).unwrap();
    Part { dir: to.to_owned(), weight: 1.0 }
}

fn modules_of(family: &str) -> &'static [LoraModule] {
    match family {
        "phi3" => &[QkvProj, GateUpProj],
        "qwen3_moe" => &[QProj, VProj, GateProj, UpProj, DownProj, Router],
        "llama3_1_rope_scaled" => &[KProj, OProj, UpProj, LmHead],
        "mistral" => &[GateProj, DownProj],
        _ => &[QProj, KProj, VProj, DownProj],
    }
}

fn check(path: &Path, merged: &Merged, target: &Target<'_>) -> Findings {
    let prompts = Prompts::held_out(merged.tokenizer(), merged.spec().max_position_embeddings).unwrap();
    proof::check(path, merged, target, &prompts).unwrap()
}

#[track_caller]
fn sound(path: &Path, merged: &Merged, target: &Target<'_>) -> Findings {
    let findings = check(path, merged, target);
    assert!(findings.faults.is_empty(), "{}: {:#?}", path.display(), findings.faults);
    findings
}

/// Every family in F32: the logits of the file are those of the folder, with and without an adapter merged in.
#[test]
fn gguf_files_of_every_family_compute_what_was_trained() {
    let temporary = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let base = family(name, temporary.path());
        let part = adapter(&base, modules_of(name), 1, &temporary.path().join(format!("{name}_adapter")));
        for parts in [vec![], vec![part]] {
            let merged = Source { base: base.clone(), parts: parts.clone() }.open().unwrap();
            for kind in FileKind::ALL {
                let file = temporary.path().join(format!("{name}_{}_{}.gguf", parts.len(), kind.name()));
                let export = Export::new(&merged, kind, name).unwrap_or_else(|e| panic!("{name}: {e}"));
                export.write(&file).unwrap();
                assert_eq!(fs::metadata(&file).unwrap().len(), export.bytes(), "{name}");
                let findings = sound(&file, &merged, &Target::Gguf(export));
                let distance = findings.proof.from_trained.unwrap();
                // Nothing but the order of sums, and one added to Gemma's norms.
                if kind == FileKind::F32 {
                    assert!(
                        distance.largest < if parts.is_empty() && !name.starts_with("gemma") { 1e-30 } else { 2e-4 },
                        "{name}: {distance:?}"
                    );
                }
                assert_eq!(findings.proof.base_from_trained.is_some(), !parts.is_empty());
            }
        }
    }
}

/// A merged folder in each precision, in one file and in several, is what was trained; so are weights of several adapters.
#[test]
fn merged_folders_compute_what_was_trained() {
    let temporary = tempfile::tempdir().unwrap();
    let base = family("llama_tied", temporary.path());
    let one = adapter(&base, &[QProj, VProj], 1, &temporary.path().join("one"));
    let other = adapter(&base, &[VProj, DownProj], 2, &temporary.path().join("other"));
    let with = |parts: &[Part]| Source { base: base.clone(), parts: parts.to_vec() }.open().unwrap();
    let merged = with(std::slice::from_ref(&one));
    for (i, (dtype, shard)) in
        [(DType::F32, u64::MAX), (DType::BF16, 30_000), (DType::F16, 60_000)].into_iter().enumerate()
    {
        let to = temporary.path().join(format!("merged_{i}"));
        merged.write(&to, dtype, shard).unwrap();
        assert_eq!(to.join("model.safetensors.index.json").exists(), i > 0);
        sound(&to, &merged, &Target::Folder(dtype));
    }
    // Half of one and twice the other.
    let parts = [Part { weight: 0.5, ..one.clone() }, Part { weight: 2.0, ..other.clone() }];
    let both = with(&parts);
    let to = temporary.path().join("both");
    both.write(&to, DType::F32, u64::MAX).unwrap();
    sound(&to, &both, &Target::Folder(DType::F32));
    let weight = |merged: &Merged, name: &str| merged.tensor(name, DType::F32).unwrap();
    let name = "model.layers.0.self_attn.v_proj.weight";
    let base_weight = weight(&with(&[]), name);
    let update = |part: &Part| (weight(&with(&[Part { weight: 1.0, ..part.clone() }]), name) - &base_weight).unwrap();
    let expected = (&base_weight + ((update(&one) * 0.5).unwrap() + (update(&other) * 2.0).unwrap()).unwrap()).unwrap();
    let error = (weight(&both, name) - expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    assert!(error.to_scalar::<f32>().unwrap() < 1e-6);

    // An adapter on a tied output layer unties it.
    let untied = with(&[adapter(&base, &[LmHead], 3, &temporary.path().join("head"))]);
    let to = temporary.path().join("untied");
    untied.write(&to, DType::F32, u64::MAX).unwrap();
    assert_eq!(read_json(&to.join("config.json"))["tie_word_embeddings"], false);
    sound(&to, &untied, &Target::Folder(DType::F32));
}

/// Weights that an adapter brings along whole stand in for the base's, in folders and in GGUF files; a tied table stays one, and
/// one that an adapter brings along without the output layer is parted from it, as in peft.
#[test]
fn whole_weights_of_adapters_are_taken() {
    let temporary = tempfile::tempdir().unwrap();
    let whole = |base: &Path, save: &[&str], to: &str| {
        let save = save.iter().map(|&name| name.to_owned()).collect();
        let options = LoraOptions { modules: vec![QProj], rank: 4, alpha: 6.0, seed: 4, save, ..Default::default() };
        written(base, &options, &temporary.path().join(to))
    };
    for (name, save) in
        [("llama_tied", &["embed_tokens", "norm"][..]), ("llama3_1_rope_scaled", &["lm_head", "up_proj"])]
    {
        let base = family(name, temporary.path());
        let part = whole(&base, save, &format!("{name}_whole"));
        let merged = Source { base: base.clone(), parts: vec![part.clone()] }.open().unwrap();
        assert_eq!(merged.spec().tie_word_embeddings, name == "llama_tied");
        let to = temporary.path().join(format!("{name}_merged"));
        merged.write(&to, DType::F32, u64::MAX).unwrap();
        let findings = sound(&to, &merged, &Target::Folder(DType::F32));
        assert!(findings.proof.base_from_trained.unwrap().largest > 1e-2);
        let export = Export::new(&merged, FileKind::F32, name).unwrap();
        let file = temporary.path().join(format!("{name}_whole.gguf"));
        export.write(&file).unwrap();
        sound(&file, &merged, &Target::Gguf(export));

        // Beside another adapter, with the weights of a model in memory.
        let options = LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora: None };
        let plain = Source { base: base.clone(), parts: Vec::new() }.open().unwrap();
        let said = |model: &Decoder| -> Vec<Vec<f32>> {
            let ids: [&[u32]; 2] = [&[3, 50, 7, 9], &[11, 2, 13]];
            let mut sequences = Sequences::new(model, &[4, 4], Kernels::OfTraining).unwrap();
            sequences.extend(&ids.into_iter().enumerate().collect::<Vec<_>>()).unwrap()
        };
        let (trained, base_model) = (merged.trained(&options).unwrap(), plain.trained(&options).unwrap());
        assert_eq!(said(&merged.trained_on(&base_model, &plain).unwrap()), said(&trained));
        assert_eq!(said(&plain.trained_on(&trained, &merged).unwrap()), said(&base_model));

        let refused = |parts: &[Part], says: &str| {
            let error = Source { base: base.clone(), parts: parts.to_vec() }.open().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(&[Part { weight: 0.5, ..part.clone() }], "so there is no part of it to take: its weight is 0.5");
        let again = whole(&base, save, &format!("{name}_again"));
        refused(&[part.clone(), again], "whole (modules_to_save), and so does");
        let error = AdapterExport::new(&part.dir, &merged.spec_of_base(), FileKind::F16).unwrap_err().to_string();
        assert!(error.contains("llama.cpp's adapters have no place for it"), "{error}");
    }

    // peft's file without ensure_weight_tying: the table is another, the output layer is the base's.
    let base = family("llama_tied", temporary.path());
    let part = whole(&base, &["embed_tokens"], "alone");
    change(&part.dir.join("adapter_config.json"), |json| {
        json["modules_to_save"] = json!(["embed_tokens"]);
        json["ensure_weight_tying"] = false.into();
    });
    let path = part.dir.join("adapter_model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    let kept: std::collections::HashMap<_, _> =
        tensors.into_iter().filter(|(name, _)| !name.contains("lm_head")).collect();
    candle_core::safetensors::save(&kept, &path).unwrap();
    let merged = Source { base: base.clone(), parts: vec![part] }.open().unwrap();
    assert!(!merged.spec().tie_word_embeddings);
    let head = merged.tensor("lm_head.weight", DType::F32).unwrap();
    let table = Checkpoint::open(&base).unwrap().tensor("model.embed_tokens.weight", DType::F32, &Device::Cpu).unwrap();
    assert_eq!(head.to_vec2::<f32>().unwrap(), table.to_vec2::<f32>().unwrap());
    let to = temporary.path().join("parted");
    merged.write(&to, DType::F32, u64::MAX).unwrap();
    sound(&to, &merged, &Target::Folder(DType::F32));
}

/// Adapters as llama.cpp reads them, on bases with and without interleaved heads.
#[test]
fn gguf_adapters_compute_what_was_trained() {
    let temporary = tempfile::tempdir().unwrap();
    for name in FAMILIES {
        let base = family(name, temporary.path());
        let part = adapter(&base, modules_of(name), 1, &temporary.path().join(format!("{name}_adapter")));
        let merged = Source { base, parts: vec![part.clone()] }.open().unwrap();
        for kind in [FileKind::F32, FileKind::F16] {
            let export = AdapterExport::new(&part.dir, &merged.spec_of_base(), kind).unwrap();
            let file = temporary.path().join(format!("{name}_{}_adapter.gguf", kind.name()));
            export.write(&file).unwrap();
            let findings = sound(&file, &merged, &Target::Adapter(export, kind));
            let distance = findings.proof.from_trained.unwrap();
            assert!(kind != FileKind::F32 || distance.largest < 1e-4, "{name}: {distance:?}");
        }
    }
    let tied = temporary.path().join("llama_tied");
    let part = adapter(&tied, &[LmHead], 1, &temporary.path().join("head"));
    let spec = ModelSpec::from_json(Checkpoint::open(&tied).unwrap().config()).unwrap();
    let error = AdapterExport::new(&part.dir, &spec, FileKind::F16).unwrap_err().to_string();
    assert!(error.contains("llama.cpp has no place for it; merge the adapter"), "{error}");
    let error = AdapterExport::new(&part.dir, &spec, FileKind::Q4_0).unwrap_err().to_string();
    assert!(error.contains("f32, f16 or bf16, and not in q4_0"), "{error}");
    let part = dora_adapter(&tied, &[QProj, DownProj], &temporary.path().join("dora"));
    let error = AdapterExport::new(&part.dir, &spec, FileKind::F16).unwrap_err().to_string();
    assert!(error.contains("llama.cpp has no place for its magnitudes; merge the adapter"), "{error}");
}

/// Magnitudes are in the merged weights, of folders and of GGUF files, and damage to them is found.
#[test]
fn dora_adapters_are_merged_with_their_magnitudes() {
    let temporary = tempfile::tempdir().unwrap();
    let base = family("llama_tied", temporary.path());
    let dora = dora_adapter(&base, &[QProj, VProj, DownProj, LmHead], &temporary.path().join("dora"));
    let with = |parts: &[Part]| Source { base: base.clone(), parts: parts.to_vec() }.open();
    let merged = with(std::slice::from_ref(&dora)).unwrap();
    let to = temporary.path().join("merged");
    merged.write(&to, DType::F32, u64::MAX).unwrap();
    let distance = sound(&to, &merged, &Target::Folder(DType::F32)).proof.from_trained.unwrap();
    assert!(distance.largest < 1e-3, "{distance:?}");
    // The same with lengths as they were: another model.
    let name = "model.layers.0.self_attn.q_proj.weight";
    let lengths = |t: &Tensor| t.sqr().unwrap().sum(1).unwrap().sqrt().unwrap().to_vec1::<f32>().unwrap();
    let magnitudes = peft::read(&dora.dir).unwrap().1["model.layers.0.self_attn.q_proj.lora_magnitude_vector"].clone();
    for (ours, magnitude) in
        lengths(&merged.tensor(name, DType::F32).unwrap()).iter().zip(magnitudes.to_vec1::<f32>().unwrap())
    {
        assert!((ours - magnitude.abs()).abs() < 1e-4, "{ours} instead of {magnitude}");
    }
    // It is merged as a whole, and alone.
    let other = adapter(&base, &[QProj], 1, &temporary.path().join("other"));
    for parts in [vec![dora.clone(), other], vec![Part { weight: 0.5, ..dora }]] {
        let error = with(&parts).unwrap_err().to_string();
        assert!(error.contains("it is merged alone and as a whole"), "{error}");
    }
}

/// A folder and a file, and what happens to them.
struct Damage {
    name: &'static str,
    /// What is said of it.
    said: &'static str,
    /// Done to a folder.
    to_folder: fn(&Path, &Merged),
}

fn change(path: &Path, change: impl Fn(&mut Value)) {
    let mut value = read_json(path);
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn flip(path: &Path, at: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(path).unwrap();
    let at = at(bytes.len());
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

const DAMAGES: &[Damage] = &[
    Damage {
        name: "a bit of a weight",
        said: "1 of its tensors is not what base and adapters make",
        to_folder: |dir, _| flip(&dir.join("model.safetensors"), |len| len - 2),
    },
    Damage {
        name: "a truncated file",
        said: "is truncated",
        to_folder: |dir, _| {
            let path = dir.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
        },
    },
    Damage {
        name: "the base in place of the merged model",
        said: "tensors are not what base and adapters make",
        to_folder: |dir, merged| {
            fs::copy(merged.base().path().join("model.safetensors"), dir.join("model.safetensors")).map(drop).unwrap();
        },
    },
    Damage {
        name: "a missing file of weights",
        said: "has no weights",
        to_folder: |dir, _| fs::remove_file(dir.join("model.safetensors")).unwrap(),
    },
    Damage {
        name: "another byte in the chat template",
        said: "its chat template is not the trained one: they differ from byte",
        to_folder: |dir, _| {
            change(&dir.join("tokenizer_config.json"), |config| {
                let text = config["chat_template"].as_str().unwrap().replace("assistant\\n", "assistant\\n ");
                config["chat_template"] = text.into();
            });
        },
    },
    Damage {
        name: "no chat template",
        said: "it has no chat template",
        to_folder: |dir, _| change(&dir.join("tokenizer_config.json"), |config| config["chat_template"] = Value::Null),
    },
    Damage {
        name: "no stop token",
        said: "it does not list the stop token `<|im_end|>` (1)",
        to_folder: |dir, _| change(&dir.join("generation_config.json"), |config| config["eos_token_id"] = 5.into()),
    },
    Damage {
        name: "a stop token that is gone",
        said: "the eos_token `<|im_end|>` is not in the vocabulary",
        to_folder: |dir, _| {
            change(&dir.join("tokenizer.json"), |json| {
                json["added_tokens"].as_array_mut().unwrap().retain(|token| token["id"] != 1);
                let vocab = json["model"]["vocab"].as_object_mut().unwrap();
                vocab.retain(|token, _| token != "<|im_end|>");
                vocab.insert("<|im-end|>".to_owned(), 1.into());
            });
        },
    },
    Damage {
        name: "a stop token of another number",
        said: "the stop token `<|im_end|>` is not the one token 1 in its tokenizer",
        to_folder: |dir, _| {
            change(&dir.join("tokenizer.json"), |json| {
                let added = json["added_tokens"].as_array_mut().unwrap();
                (added[0]["content"], added[1]["content"]) = ("<|im_end|>".into(), "<|im_start|>".into());
                let vocab = json["model"]["vocab"].as_object_mut().unwrap();
                vocab.insert("<|im_end|>".to_owned(), 0.into());
                vocab.insert("<|im_start|>".to_owned(), 1.into());
            });
        },
    },
    Damage {
        name: "a tokenizer that cuts another way",
        said: "its tokenizer cuts another way",
        to_folder: |dir, _| {
            change(&dir.join("tokenizer.json"), |json| {
                let (a, b) = (json["model"]["vocab"]["a"].clone(), json["model"]["vocab"]["b"].clone());
                (json["model"]["vocab"]["a"], json["model"]["vocab"]["b"]) = (b, a);
            });
        },
    },
    Damage {
        name: "another rotary base",
        said: "its config.json describes another model",
        to_folder: |dir, _| {
            change(&dir.join("config.json"), |config| {
                config.as_object_mut().unwrap().remove("rope_parameters");
                config["rope_theta"] = 12345.0.into();
            });
        },
    },
    Damage {
        name: "no config",
        said: "has no config.json",
        to_folder: |dir, _| fs::remove_file(dir.join("config.json")).unwrap(),
    },
];

#[test]
fn damage_to_a_folder_is_found() {
    let temporary = tempfile::tempdir().unwrap();
    let base = family("llama_tied", temporary.path());
    let part = adapter(&base, &[QProj, VProj], 1, &temporary.path().join("adapter"));
    let merged = Source { base, parts: vec![part] }.open().unwrap();
    for Damage { name, said, to_folder } in DAMAGES {
        let dir = temporary.path().join("merged");
        let _ = fs::remove_dir_all(&dir);
        merged.write(&dir, DType::F32, u64::MAX).unwrap();
        sound(&dir, &merged, &Target::Folder(DType::F32));
        to_folder(&dir, &merged);
        let faults = check(&dir, &merged, &Target::Folder(DType::F32)).faults;
        assert!(faults.iter().any(|fault| fault.contains(said)), "{name}: {faults:#?}");
    }
}

#[test]
fn damage_to_a_gguf_file_is_found() {
    let temporary = tempfile::tempdir().unwrap();
    let base = family("llama_tied", temporary.path());
    let part = adapter(&base, &[QProj, VProj], 1, &temporary.path().join("adapter"));
    let with = |parts: &[Part]| Source { base: base.clone(), parts: parts.to_vec() }.open().unwrap();
    let merged = with(std::slice::from_ref(&part));
    let file = temporary.path().join("model.gguf");
    let write = |of: &Merged| Export::new(of, FileKind::Q8_0, "model").unwrap().write(&file).unwrap();
    let faults = || {
        let faults =
            check(&file, &merged, &Target::Gguf(Export::new(&merged, FileKind::Q8_0, "model").unwrap())).faults;
        assert!(!faults.is_empty());
        faults.join("\n")
    };
    let replace = |from: &[u8], to: &[u8]| {
        let mut bytes = fs::read(&file).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to);
        fs::write(&file, bytes).unwrap();
    };
    write(&merged);
    flip(&file, |len| len - 40);
    assert!(faults().contains("1 of its tensors is not what base and adapters make"));
    // The adapter is not in it, or not all of it.
    write(&with(&[]));
    assert!(faults().contains("tensors are not what base and adapters make"));
    write(&with(&[Part { weight: 0.999, ..part.clone() }]));
    assert!(faults().contains("tensors are not what base and adapters make"));
    write(&merged);
    replace(b"'<|im_start|>assistant", b"'<|im_start|>Assistant");
    assert!(faults().contains("its chat template is not the trained one"));
    write(&merged);
    replace(b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.EOS_token_id");
    assert!(faults().contains("it does not list the stop token"), "{}", faults());
    write(&merged);
    let mut theta = b"llama.rope.freq_base".to_vec();
    theta.extend(6u32.to_le_bytes());
    let mut other = theta.clone();
    let before = fs::read(&file).unwrap();
    let at = before.windows(theta.len()).position(|window| window == theta).unwrap() + theta.len();
    theta.extend(&before[at..at + 4]);
    other.extend(4321f32.to_le_bytes());
    replace(&theta, &other);
    assert!(faults().contains("describe another model"), "{}", faults());

    // An adapter that changes nothing is found, too.
    let (config, mut tensors) = peft::read(&part.dir).unwrap();
    for (name, tensor) in &mut tensors {
        if name.ends_with("lora_B.weight") {
            *tensor = tensor.zeros_like().unwrap();
        }
    }
    let nothing = temporary.path().join("nothing");
    peft::write(&nothing, &config, &tensors, &merged.tokenizer_files().clone()).unwrap();
    let merged = with(&[Part { dir: nothing, weight: 1.0 }]);
    let dir = temporary.path().join("merged");
    merged.write(&dir, DType::F32, u64::MAX).unwrap();
    let faults = check(&dir, &merged, &Target::Folder(DType::F32)).faults;
    assert!(faults.iter().any(|fault| fault.contains("the adapter changes nothing")), "{faults:?}");
}

/// What a format cannot say is refused before anything is written.
#[test]
fn models_that_gguf_files_cannot_hold_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let refused = |name: &str, change_config: &dyn Fn(&mut Value), change_tokenizer: &dyn Fn(&mut Value)| {
        let base = family(name, temporary.path());
        change(&base.join("config.json"), change_config);
        change(&base.join("tokenizer.json"), change_tokenizer);
        let merged = Source { base, parts: vec![] }.open().unwrap();
        Export::new(&merged, FileKind::F32, "model").unwrap_err().to_string()
    };
    let error = refused("gemma2", &|config| config["query_pre_attn_scalar"] = 17.into(), &|_| ());
    assert!(error.contains("the format cannot say all of its settings: `scale: "), "{error}");
    let error = refused("qwen2", &|_| (), &|json| json["pre_tokenizer"]["add_prefix_space"] = true.into());
    assert!(error.contains("cuts text before merging in a way that has no name in llama.cpp"), "{error}");
    let error = refused("qwen2", &|_| (), &|json| {
        json["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": 900, "content": "<new>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false
        }));
    });
    assert!(error.contains("`<new>` has no embedding"), "{error}");
}

/// The tokenizers of all kinds of GGUF files, written again, cut as before.
#[test]
fn tokenizers_are_written_as_they_were_read() {
    let temporary = tempfile::tempdir().unwrap();
    for name in ["smollm", "llama3", "spm", "gpt2", "qwen2"] {
        let base = root().join(format!("tests/fixtures/gguf/{name}.gguf"));
        let merged = Source { base, parts: vec![] }.open().unwrap();
        let export = Export::new(&merged, FileKind::F32, name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let file = temporary.path().join(format!("{name}.gguf"));
        export.write(&file).unwrap();
        let written = Checkpoint::open(&file).unwrap();
        let (tokenizer, _) = TokenizerConfig::default().open(&written).unwrap();
        let cases: Vec<(String, Vec<u32>)> =
            serde_json::from_value(read_json(&root().join(format!("tests/fixtures/gguf/{name}.tokens.json")))).unwrap();
        for (text, ids) in cases {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{name}: {text:?}");
        }
        assert_eq!(tokenizer.stop_tokens(), merged.tokenizer().stop_tokens(), "{name}");
        assert_eq!(tokenizer.begins_with_bos(), merged.tokenizer().begins_with_bos(), "{name}");
    }
}

#[test]
fn a_modelfile_says_what_the_template_says() {
    let base = root().join("recipes/tiny/model");
    let merged = Source { base, parts: vec![] }.open().unwrap();
    let text = modelfile("tiny.gguf", None, merged.tokenizer());
    assert_eq!(
        text,
        "FROM ./tiny.gguf\n\
         TEMPLATE \"\"\"{{- range .Messages }}\
         {{- if eq .Role \"system\" }}{{ \"<|im_start|>system\\n\" }}{{ .Content }}{{ \"<|im_end|>\\n\" }}\
         {{- else if eq .Role \"user\" }}{{ \"<|im_start|>user\\n\" }}{{ .Content }}{{ \"<|im_end|>\\n\" }}\
         {{- else if eq .Role \"assistant\" }}{{ \"<|im_start|>assistant\\n\" }}{{ .Content }}{{ \"<|im_end|>\\n\" }}\
         {{- end }}{{- end }}{{ \"<|im_start|>assistant\\n\" }}\"\"\"\n\
         PARAMETER stop \"<|im_end|>\"\n"
    );
    // Each message is numbered: no text stands around a message of a role alone.
    let numbered = "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}";
    let tokenizer = merged.tokenizer().clone().with_chat_template(numbered).unwrap();
    let text = modelfile("adapter.gguf", Some("org/name"), &tokenizer);
    assert!(
        text.starts_with("# The base model as a GGUF file")
            && text.contains("FROM ./base.gguf\nADAPTER ./adapter.gguf\n")
    );
    assert!(text.contains("is one that no TEMPLATE was found for") && !text.contains("TEMPLATE \"\"\""), "{text}");
}
