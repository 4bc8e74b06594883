//! GGUF files appear as the Hugging Face models that they were made from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value as Meta};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use tune_core::checkpoint::{Checkpoint, OpenOptions};
use tune_core::models::ModelSpec;
use tune_core::tokenizer::Tokenizer;

use crate::support::{assert_error, fixture, tensor, values};

const CPU: Device = Device::Cpu;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn weights_and_config_are_those_of_hugging_face() {
    for name in ["smollm", "llama3", "spm", "gpt2", "qwen2"] {
        let read = Checkpoint::open(fixture(&format!("gguf/{name}.gguf"))).unwrap();
        let expected = json(&fixture(&format!("gguf/{name}.config.json")));
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&read.config()[key], value, "{name}: {key}");
        }
        let expected = candle_core::safetensors::load(fixture(&format!("gguf/{name}.safetensors")), &CPU).unwrap();
        let expected: BTreeMap<String, Tensor> = expected.into_iter().collect();
        assert!(read.names().eq(expected.keys()), "{name}");
        for (key, tensor) in &expected {
            assert_eq!(read.shape(key), Some(tensor.dims()), "{name}: {key}");
            let loaded = read.tensor(key, DType::F32, &CPU).unwrap();
            assert!(values(&loaded) == values(tensor), "{name}: {key}");
        }
    }
}

/// See `fixtures/gguf/families.py`.
#[test]
fn every_family_has_the_weights_and_the_meaning_of_hugging_face() {
    for name in ["gemma", "gemma2", "gemma3_text", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3"]
    {
        let read = Checkpoint::open(fixture(&format!("gguf/families/{name}.gguf"))).unwrap();
        let theirs = ModelSpec::from_json(&json(&fixture(&format!("gguf/families/{name}.config.json")))).unwrap();
        let mut ours = ModelSpec::from_json(read.config()).unwrap();
        // The token that fills up rows is the tokenizer's matter, and these files have none.
        ours.embedding.padding = theirs.embedding.padding;
        assert_eq!(ours, theirs, "{name}");
        let path = fixture(&format!("gguf/families/{name}.safetensors"));
        let expected: BTreeMap<String, Tensor> =
            candle_core::safetensors::load(path, &CPU).unwrap().into_iter().collect();
        assert!(read.names().eq(expected.keys()), "{name}: {:?}", read.names().collect::<Vec<_>>());
        for (key, tensor) in &expected {
            assert_eq!(read.shape(key), Some(tensor.dims()), "{name}: {key}");
            assert!(values(&read.tensor(key, DType::F32, &CPU).unwrap()) == values(tensor), "{name}: {key}");
        }
    }
}

#[test]
fn tokenizers_give_the_ids_of_those_they_were_made_from() {
    for name in ["smollm", "llama3", "spm", "gpt2", "qwen2"] {
        let read = Checkpoint::open(fixture(&format!("gguf/{name}.gguf"))).unwrap();
        let tokenizer = Tokenizer::from_files(&read.tokenizer_files().unwrap()).unwrap();
        let cases: Vec<(String, Vec<u32>)> =
            serde_json::from_value(json(&fixture(&format!("gguf/{name}.tokens.json")))).unwrap();
        assert!(cases.len() > 50);
        for (text, ids) in cases {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{name}: {text:?}");
            // Composed characters do not come apart again, and the unknown one is gone.
            if name != "qwen2" && name != "spm" {
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}");
            }
        }
    }
}

#[test]
fn special_tokens_and_template_come_along() {
    let config = |name: &str| -> Value {
        let files = Checkpoint::open(fixture(&format!("gguf/{name}.gguf"))).unwrap().tokenizer_files().unwrap();
        serde_json::from_slice(&files.files["tokenizer_config.json"]).unwrap()
    };
    let smollm = config("smollm");
    assert_eq!(smollm["bos_token"], "<|im_start|>");
    assert_eq!(smollm["eos_token"], "<|im_end|>");
    assert_eq!(smollm["pad_token"], "<|im_end|>");
    assert_eq!(smollm["unk_token"], "<|endoftext|>");
    assert_eq!(smollm["add_bos_token"], false);
    assert_eq!(smollm["model_max_length"], 128);
    assert_eq!(smollm["chat_template"], "{% for m in messages %}{{ m['content'] }}{% endfor %}");

    // Llama 3's files rely on the default.
    let llama3 = config("llama3");
    assert_eq!(llama3["add_bos_token"], true);
    assert_eq!(llama3.get("pad_token"), None);
    assert_eq!(llama3.get("chat_template"), None);
    assert_eq!(config("spm")["unk_token"], "<unk>");

    let generation =
        |name: &str| Checkpoint::open(fixture(&format!("gguf/{name}.gguf"))).unwrap().generation_config().unwrap();
    assert_eq!(generation("llama3"), serde_json::json!({"bos_token_id": 0, "eos_token_id": [1, 2]}));
    assert_eq!(generation("smollm"), serde_json::json!({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}));
}

/// A model with one layer that can be changed before it is written.
struct File {
    metadata: BTreeMap<String, Meta>,
    tensors: BTreeMap<String, QTensor>,
}

const HIDDEN: usize = 256;

fn file(dtype: GgmlDType) -> File {
    let number = |n: usize| Meta::U32(n as u32);
    let texts = |t: &[&str]| Meta::Array(t.iter().map(|t| Meta::String(t.to_string())).collect());
    let metadata = [
        ("general.architecture", Meta::String("llama".into())),
        ("llama.context_length", number(64)),
        ("llama.embedding_length", number(HIDDEN)),
        ("llama.feed_forward_length", number(HIDDEN)),
        ("llama.block_count", number(1)),
        ("llama.attention.head_count", number(4)),
        ("llama.attention.head_count_kv", number(2)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-6)),
        ("tokenizer.ggml.model", Meta::String("gpt2".into())),
        ("tokenizer.ggml.pre", Meta::String("gpt-2".into())),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "ab"])),
        ("tokenizer.ggml.merges", texts(&["a b"])),
    ];
    let mut tensors = BTreeMap::new();
    for (i, (name, shape)) in [
        ("token_embd.weight", vec![3, HIDDEN]),
        ("output_norm.weight", vec![HIDDEN]),
        ("blk.0.attn_norm.weight", vec![HIDDEN]),
        ("blk.0.attn_q.weight", vec![HIDDEN, HIDDEN]),
        ("blk.0.attn_k.weight", vec![HIDDEN / 2, HIDDEN]),
        ("blk.0.attn_v.weight", vec![HIDDEN / 2, HIDDEN]),
        ("blk.0.attn_output.weight", vec![HIDDEN, HIDDEN]),
        ("blk.0.ffn_norm.weight", vec![HIDDEN]),
        ("blk.0.ffn_gate.weight", vec![HIDDEN, HIDDEN]),
        ("blk.0.ffn_up.weight", vec![HIDDEN, HIDDEN]),
        ("blk.0.ffn_down.weight", vec![HIDDEN, HIDDEN]),
    ]
    .into_iter()
    .enumerate()
    {
        let dtype = if shape.len() == 1 { GgmlDType::F32 } else { dtype };
        tensors.insert(name.to_string(), QTensor::quantize(&tensor(i, &shape, DType::F32), dtype).unwrap());
    }
    File { metadata: metadata.into_iter().map(|(k, v)| (k.to_string(), v)).collect(), tensors }
}

impl File {
    fn write(&self, path: &Path) {
        let metadata: Vec<_> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        gguf_file::write(&mut fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }
}

#[test]
fn every_type_that_candle_quantizes_to_is_read() {
    use GgmlDType::{BF16, F16, F32, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Q8_1, Q8K};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    for dtype in [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2K, Q3K, Q4K, Q5K, Q6K, Q8K] {
        let file = file(dtype);
        file.write(&path);
        let read = Checkpoint::open(&path).unwrap();
        for (gguf, hf) in [
            ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
            ("token_embd.weight", "model.embed_tokens.weight"),
        ] {
            let expected = file.tensors[gguf].dequantize(&CPU).unwrap();
            assert_eq!(values(&read.tensor(hf, DType::F32, &CPU).unwrap()), values(&expected), "{dtype:?}");
            let expected = expected.to_dtype(DType::BF16).unwrap();
            assert_eq!(values(&read.tensor(hf, DType::BF16, &CPU).unwrap()), values(&expected), "{dtype:?}");
        }
        assert_eq!(read.config()["rms_norm_eps"], 1e-6);
        assert_eq!(read.config()["head_dim"], 64);
        assert_eq!(read.config()["rope_theta"], 10000.0);
        assert_eq!(read.config()["tie_word_embeddings"], true);
    }
}

#[test]
fn a_sliding_window_makes_it_mistral() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut file = file(GgmlDType::F16);
    file.metadata.insert("llama.attention.sliding_window".into(), Meta::U32(32));
    file.write(&path);
    let read = Checkpoint::open(&path).unwrap();
    assert_eq!(read.config()["model_type"], "mistral");
    assert_eq!(read.config()["sliding_window"], 32);
}

#[test]
fn a_folder_with_one_gguf_file_stands_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    file(GgmlDType::F16).write(&path);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().path(), path);
    file(GgmlDType::F16).write(&dir.path().join("other.gguf"));
    assert_error(Checkpoint::open(dir.path()), dir.path(), &["2 GGUF files"]);
    let options = |files: &[&str]| OpenOptions {
        files: Some(files.iter().map(ToString::to_string).collect()),
        ..OpenOptions::default()
    };
    let named = Checkpoint::open_with(dir.path(), &options(&["other.gguf"])).unwrap();
    assert_eq!(named.path(), dir.path().join("other.gguf"));
    assert!(
        Checkpoint::open_with(dir.path(), &options(&["a.gguf", "b.gguf"]))
            .unwrap_err()
            .to_string()
            .contains("name it alone")
    );
}

#[test]
fn models_that_do_not_fit_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let with = |change: &dyn Fn(&mut File), says: &[&str]| {
        let mut changed = file(GgmlDType::F16);
        change(&mut changed);
        changed.write(&path);
        assert_error(Checkpoint::open(&path), &path, says);
    };
    let set =
        |key: &'static str, value: Meta| move |f: &mut File| drop(f.metadata.insert(key.to_string(), value.clone()));
    let extra = |name: &'static str| {
        move |f: &mut File| {
            let tensor = QTensor::quantize(&tensor(1, &[HIDDEN], DType::F32), GgmlDType::F32).unwrap();
            f.tensors.insert(name.to_string(), tensor);
        }
    };

    with(
        &set("general.architecture", Meta::String("qwen3next".into())),
        &["architecture `qwen3next`", "read for: llama"],
    );
    with(&set("general.architecture", Meta::U32(1)), &["`general.architecture` is not text"]);
    with(&|f| drop(f.metadata.remove("general.architecture")), &["no metadata `general.architecture`"]);
    with(&|f| drop(f.metadata.remove("llama.block_count")), &["no metadata `llama.block_count`"]);
    with(&set("llama.block_count", Meta::U32(2)), &["no tensor `blk.1.attn_norm.weight`"]);
    with(&set("llama.block_count", Meta::U32(0)), &["`llama.block_count` is 0"]);
    with(&set("llama.block_count", Meta::U64(u64::MAX)), &["`llama.block_count` is 18446744073709551615"]);
    with(&set("llama.attention.head_count", Meta::U32(3)), &["do not fit together"]);
    with(&set("llama.attention.head_count", Meta::U32(1 << 20)), &["do not fit together"]);
    with(
        &set("llama.attention.head_count_kv", Meta::Array(vec![Meta::U32(1), Meta::U32(2)])),
        &["differs between layers"],
    );
    with(
        &set("llama.attention.key_length", Meta::U32(32)),
        &["`blk.0.attn_q.weight` has the shape [256, 256]", "[128, 256]"],
    );
    with(&set("llama.attention.value_length", Meta::U32(32)), &["values of size 32", "only equal sizes"]);
    with(&set("llama.rope.dimension_count", Meta::U32(32)), &["32 rotated dimensions"]);
    with(&set("llama.attention.layer_norm_rms_epsilon", Meta::F32(f32::NAN)), &["not a finite number"]);
    with(&set("llama.embedding_length", Meta::U32(512)), &["shape"]);
    with(
        &set("llama.feed_forward_length", Meta::U32(128)),
        &["`blk.0.ffn_gate.weight` has the shape [256, 256]", "[128, 256]"],
    );
    with(&set("llama.expert_count", Meta::U32(8)), &["mixture of 8 experts"]);
    with(&set("llama.rope.scaling.type", Meta::String("longrope".into())), &["no factor"]);
    with(&set("llama.rope.freq_base", Meta::F32(-1.0)), &["in the words of a config.json: `rope_theta` must be"]);
    with(&set("split.count", Meta::U16(3)), &["llama-gguf-split --merge"]);
    with(&|f| drop(f.tensors.remove("token_embd.weight")), &["no tensor `token_embd.weight`"]);
    with(&extra("blk.0.attn_sinks.weight"), &["`blk.0.attn_sinks.weight`", "has no use"]);
    with(&extra("blk.0.attn_q.bias"), &["only 1 of", "all of them or none"]);
    with(&extra("rope_freqs.weight"), &["`rope_freqs.weight` has the shape"]);
    with(
        &|f| {
            let odd = QTensor::quantize(&tensor(1, &[32], DType::F32), GgmlDType::F32).unwrap();
            f.tensors.insert("rope_freqs.weight".into(), odd);
        },
        &["not Llama 3's scaling"],
    );
}

#[test]
fn tokenizers_that_do_not_fit_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let texts = |t: &[&str]| Meta::Array(t.iter().map(|t| Meta::String(t.to_string())).collect());
    for (key, value, says) in [
        ("tokenizer.ggml.model", Meta::String("t5".into()), "of the kind `t5`"),
        ("tokenizer.ggml.model", Meta::String("llama".into()), "no metadata `tokenizer.ggml.scores`"),
        ("tokenizer.ggml.pre", Meta::String("klingon".into()), "rules `klingon`"),
        ("tokenizer.ggml.tokens", Meta::U32(1), "`tokenizer.ggml.tokens` is not a list of texts"),
        ("tokenizer.ggml.tokens", texts(&["a", "b", "ab", "c"]), "4 tokens and embeddings for 3"),
        ("tokenizer.ggml.merges", texts(&["a c"]), "\"a c\" does not join"),
        ("tokenizer.ggml.merges", texts(&["ab"]), "\"ab\" does not join"),
        ("tokenizer.ggml.token_type", Meta::Array(vec![Meta::I32(1)]), "3 tokens and 1 token types"),
        ("tokenizer.ggml.bos_token_id", Meta::U32(3), "`tokenizer.ggml.bos_token_id` is 3"),
        ("tokenizer.chat_template", Meta::Bool(true), "`tokenizer.chat_template` is not text"),
    ] {
        let mut changed = file(GgmlDType::F16);
        changed.metadata.insert(key.into(), value);
        changed.write(&path);
        // The weights are of use all the same.
        let read = Checkpoint::open(&path).unwrap();
        assert_error(read.tokenizer_files(), &path, &[says]);
    }
}

fn open_bytes(dir: &Path, bytes: &[u8]) -> tune_core::Result<Checkpoint> {
    let path = dir.join("broken.gguf");
    fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

#[test]
fn a_file_that_was_cut_short_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("gguf/gpt2.gguf")).unwrap();
    open_bytes(dir.path(), &whole).unwrap();
    for len in (0..whole.len()).step_by(7).chain(whole.len() - 32..whole.len()) {
        // The last tensor is padded; some of that may be missing.
        if let Err(error) = open_bytes(dir.path(), &whole[..len]) {
            assert!(error.to_string().contains("broken.gguf"), "{error}");
        } else {
            assert!(len > whole.len() - 32, "{len} of {}", whole.len());
        }
    }
}

#[test]
fn damage_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("gguf/gpt2.gguf")).unwrap();
    for at in (0..whole.len().min(13_000)).filter(|at| at % 11 == 0 || *at < 700 || *at > 12_300) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        if let Ok(read) = open_bytes(dir.path(), &bytes) {
            if let Ok(files) = read.tokenizer_files() {
                let _ = Tokenizer::from_files(&files);
            }
            for name in read.names() {
                let _ = read.tensor(name, DType::F32, &CPU);
            }
        }
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bytes =
        |parts: &[&[u8]]| [&b"GGUF"[..]].iter().chain(parts).flat_map(|p| p.iter().copied()).collect::<Vec<u8>>();
    let refused = |bytes: &[u8], says: &str| {
        assert_error(open_bytes(dir.path(), bytes), &dir.path().join("broken.gguf"), &[says]);
    };
    let (one, zero, huge) = (1u64.to_le_bytes(), 0u64.to_le_bytes(), (u64::MAX / 2).to_le_bytes());
    let v3 = 3u32.to_le_bytes();
    let named = |n: &str| [&(n.len() as u64).to_le_bytes()[..], n.as_bytes()].concat();

    refused(b"", "is truncated");
    refused(b"ggml-old", "does not begin with `GGUF`");
    refused(b"version https://git-lfs", "Git LFS pointer");
    refused(&bytes(&[&9u32.to_le_bytes()]), "version 9");
    refused(&bytes(&[&3u32.to_be_bytes()]), "big-endian");
    refused(&bytes(&[&v3, &huge, &zero]), "claims 9223372036854775807 tensors");
    refused(&bytes(&[&v3, &zero, &huge]), "claims 9223372036854775807 metadata entries");
    refused(&bytes(&[&v3, &zero, &one, &huge, &[0; 9]]), "bytes of text");
    refused(&bytes(&[&v3, &zero, &one, &named("k"), &99u32.to_le_bytes(), &[0; 9]]), "unknown type 99");
    let array = |kind: u32, n: &[u8; 8]| [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), n].concat();
    refused(&bytes(&[&v3, &zero, &one, &named("k"), &array(4, &huge), &[0; 9]]), "values in `k`");
    refused(&bytes(&[&v3, &zero, &one, &named("k"), &array(9, &one), &[0; 9]]), "array of arrays");
    refused(
        &bytes(&[&v3, &zero, &one, &named("k"), &array(0, &20_000_000u64.to_le_bytes()), &vec![0; 20_000_000]]),
        "absurd",
    );
    for alignment in [0u32, 3, u32::MAX] {
        let entry =
            [named("general.alignment"), 4u32.to_le_bytes().to_vec(), alignment.to_le_bytes().to_vec()].concat();
        refused(&bytes(&[&v3, &zero, &one, &entry]), "not a power of two");
    }
    let described = |dims: &[u64], kind: u32, offset: u64| {
        let mut t = named("t");
        t.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| t.extend(d.to_le_bytes()));
        t.extend(kind.to_le_bytes());
        t.extend(offset.to_le_bytes());
        t.resize(t.len() + 64, 0);
        t
    };
    let tensor = |dims: &[u64], kind: u32, offset: u64| bytes(&[&v3, &one, &zero, &described(dims, kind, offset)]);
    refused(&tensor(&[1 << 40, 1 << 40], 0, 0), "cannot have the dimensions");
    refused(&tensor(&[0, 4], 0, 0), "cannot have the dimensions");
    refused(&tensor(&[1 << 20], 0, 0), "is truncated, or its header lies: tensor `t` of type F32");
    refused(&tensor(&[33], 8, 0), "cannot have the dimensions");
    refused(&tensor(&[], 0, 0), "0 dimensions");
    refused(&tensor(&[1; 5], 0, 0), "5 dimensions");
    refused(&tensor(&[4], 0, 1), "not aligned");
    refused(&tensor(&[4], 0, u64::MAX - 31), "is truncated");
    refused(&tensor(&[4], 0, 1 << 20), "is truncated");
    refused(&tensor(&[32], 23, 0), "IQ4_XS");
    refused(&tensor(&[32], 4, 0), "type 4");
    let twice = |second: &str| {
        let mut b = described(&[4], 0, 0);
        b.truncate(b.len() - 64);
        let mut other = described(&[4], 0, 0);
        other[8] = second.as_bytes()[0];
        bytes(&[&v3, &2u64.to_le_bytes(), &zero, &b, &other])
    };
    refused(&twice("t"), "`t` is in the header twice");
    refused(&twice("u"), "overlap");
}

#[test]
#[ignore = "needs SMOLLM2_DIR: the folder with the GGUF file of SmolLM2-135M-Instruct and its conversion in hf/"]
fn smollm2_equals_its_conversion() {
    let dir = PathBuf::from(std::env::var_os("SMOLLM2_DIR").unwrap());
    let options = OpenOptions { round_to: Some(DType::BF16), ..OpenOptions::default() };
    let gguf = Checkpoint::open_with(dir.join("SmolLM2-135M-Instruct.Q4_1.gguf"), &options).unwrap();
    let hf = Checkpoint::open(dir.join("hf")).unwrap();
    assert_eq!(gguf.config(), hf.config());
    assert!(gguf.names().eq(hf.names()));
    for name in hf.names() {
        let read = |from: &Checkpoint| values(&from.tensor(name, DType::F32, &CPU).unwrap());
        assert!(read(&gguf) == read(&hf), "{name}");
    }
    let tokenizer = |from: &Checkpoint| Tokenizer::from_files(&from.tokenizer_files().unwrap()).unwrap();
    let (ours, theirs) = (tokenizer(&gguf), tokenizer(&hf));
    let cases: Vec<(String, Vec<u32>)> = serde_json::from_value(json(&fixture("gguf/smollm.tokens.json"))).unwrap();
    for (text, _) in cases {
        assert_eq!(ours.encode(&text).unwrap(), theirs.encode(&text).unwrap(), "{text:?}");
    }
}
