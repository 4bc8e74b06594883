//! Hugging Face folders: what is written is read back, what is broken is refused with a reason.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tune_core::checkpoint::{Checkpoint, OpenOptions, hf};

use crate::support::{assert_error, config, model, names_in, tensor, tokenizer, values};

const CPU: Device = Device::Cpu;
const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn write(dir: &Path, tensors: BTreeMap<String, Tensor>, max_shard_bytes: u64) {
    hf::write(dir, &config(), tensors, &tokenizer(), Some(&json!({"eos_token_id": 2})), max_shard_bytes).unwrap();
}

#[test]
fn what_is_written_is_read_back_bit_for_bit() {
    for (dtype, name) in
        [(DType::BF16, "bfloat16"), (DType::F16, "float16"), (DType::F32, "float32"), (DType::F64, "float64")]
    {
        let dir = tempfile::tempdir().unwrap();
        let tensors = model(dtype);
        write(dir.path(), tensors.clone(), u64::MAX);

        let read = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(read.config()["torch_dtype"], name);
        assert_eq!(read.config()["model_type"], "llama");
        assert_eq!(read.generation_config(), Some(json!({"eos_token_id": 2})));
        assert_eq!(read.tokenizer_files().unwrap().files, tokenizer().files);
        assert!(read.names().eq(tensors.keys()));
        for (name, tensor) in &tensors {
            assert_eq!(read.shape(name), Some(tensor.dims()));
            assert_eq!(read.stored_dtype(name), Some(dtype));
            assert_eq!(values(&read.tensor(name, dtype, &CPU).unwrap()), values(tensor));
        }
    }
}

#[test]
fn a_fingerprint_stands_for_the_weights() {
    let fingerprint = |tensors: BTreeMap<String, Tensor>, max_shard_bytes| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), tensors, max_shard_bytes);
        Checkpoint::open(dir.path()).unwrap().fingerprint().unwrap()
    };
    let large = |seed| [("w".to_string(), tensor(seed, &[100, 100], DType::F32))].into();
    let small = fingerprint(model(DType::F32), u64::MAX);
    // How they are spread over files does not matter.
    assert_eq!(small, fingerprint(model(DType::F32), 139));
    assert_ne!(small, fingerprint(model(DType::BF16), u64::MAX));
    let mut changed = model(DType::F32);
    changed.insert("a.weight".into(), tensor(9, &[11], DType::F32));
    assert_ne!(small, fingerprint(changed, u64::MAX));
    assert_eq!(fingerprint(large(1), u64::MAX), fingerprint(large(1), u64::MAX));
    assert_ne!(fingerprint(large(1), u64::MAX), fingerprint(large(2), u64::MAX));
}

/// One bit anywhere makes another model, whether the weights were loaded before, and as what, or not.
#[test]
fn a_fingerprint_is_of_every_bit() {
    let dir = tempfile::tempdir().unwrap();
    // More than two chunks.
    let tensors: BTreeMap<String, Tensor> =
        [("a", DType::BF16), ("b", DType::F32)].map(|(n, d)| (n.to_string(), tensor(3, &[3, 200_003], d))).into();
    write(dir.path(), tensors, u64::MAX);
    let unread = || Checkpoint::open(dir.path()).unwrap().fingerprint().unwrap();
    let read_as = |dtype| {
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        checkpoint.tensor("b", dtype, &CPU).unwrap();
        checkpoint.tensor("a", dtype, &CPU).unwrap();
        checkpoint.fingerprint().unwrap()
    };
    let whole = unread();
    for dtype in [DType::F32, DType::BF16, DType::F64] {
        assert_eq!(read_as(dtype), whole);
    }
    let file = dir.path().join(FILE);
    let good = fs::read(&file).unwrap();
    for at in [good.len() - 600_000, good.len() - 300_001, good.len() - 3_000_000, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_ne!(unread(), whole, "byte {at}");
        assert_eq!(read_as(DType::F32), unread());
    }
}

#[test]
fn which_of_two_sets_of_weights_is_taken_is_said() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), model(DType::F32), 139);
    assert!(Checkpoint::open(dir.path()).unwrap().warnings().is_empty());
    let mut other = model(DType::F32);
    other.insert("a.weight".into(), tensor(9, &[11], DType::F32));
    write(dir.path(), other.clone(), u64::MAX);
    let read = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(values(&read.tensor("a.weight", DType::F32, &CPU).unwrap()), values(&other["a.weight"]));
    let [warning] = read.warnings() else { panic!("{:?}", read.warnings()) };
    for part in ["two sets of weights: model.safetensors is taken", "3 files", INDEX, "checkpoint_files"] {
        assert!(warning.contains(part), "{warning}");
    }
    // Of half a set there is nothing to say.
    fs::remove_file(dir.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert!(Checkpoint::open(dir.path()).unwrap().warnings().is_empty());
}

#[test]
fn a_broken_generation_config_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), model(DType::F32), u64::MAX);
    let path = dir.path().join("generation_config.json");
    for (content, says) in [("{", "is not the JSON"), ("[1]", "is not a JSON object")] {
        fs::write(&path, content).unwrap();
        assert_error(Checkpoint::open(dir.path()), &path, &[says]);
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().generation_config(), None);
}

#[test]
fn types_are_converted_as_candle_converts_them_and_rounded_where_asked() {
    let types = [DType::BF16, DType::F16, DType::F32, DType::F64];
    for stored in types {
        let dir = tempfile::tempdir().unwrap();
        // More than one chunk, so that chunks are put together in order.
        let large = tensor(3, &[3, 100_003], stored);
        write(dir.path(), [("w".to_string(), large.clone())].into(), u64::MAX);
        for wanted in types {
            let read = Checkpoint::open(dir.path()).unwrap().tensor("w", wanted, &CPU).unwrap();
            assert_eq!(read.dtype(), wanted);
            let through = |t: &Tensor, d| t.to_dtype(d).unwrap();
            assert_eq!(values(&read), values(&through(&through(&large, DType::F32), wanted)));

            let options = OpenOptions { round_to: Some(DType::BF16), ..OpenOptions::default() };
            let rounded = Checkpoint::open_with(dir.path(), &options).unwrap().tensor("w", wanted, &CPU).unwrap();
            assert_eq!(values(&rounded), values(&through(&through(&large, DType::BF16), wanted)));
        }
    }
}

#[test]
fn large_models_are_split_as_transformers_splits_them() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = model(DType::F32);
    // b.weight alone is larger than a file may be.
    write(dir.path(), tensors.clone(), 139);
    let index: Value = serde_json::from_slice(&fs::read(dir.path().join(INDEX)).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 4 * (11 + 35 + 24 + 1));
    assert_eq!(
        index["weight_map"],
        json!({
            "a.weight": "model-00001-of-00003.safetensors",
            "b.weight": "model-00002-of-00003.safetensors",
            "c.weight": "model-00003-of-00003.safetensors",
            "scalar": "model-00003-of-00003.safetensors",
        })
    );
    let read = Checkpoint::open(dir.path()).unwrap();
    for (name, tensor) in &tensors {
        assert_eq!(values(&read.tensor(name, DType::F32, &CPU).unwrap()), values(tensor));
    }
    assert!(!names_in(dir.path()).contains(&FILE.to_string()));

    // The same files, named by hand as torchtune has it, and found without an index.
    let files = (1..=3).map(|i| format!("model-0000{i}-of-00003.safetensors")).collect();
    let options = OpenOptions { files: Some(files), ..OpenOptions::default() };
    assert_eq!(Checkpoint::open_with(dir.path(), &options).unwrap().names().count(), 4);
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().names().count(), 4);
}

#[test]
fn tensors_can_be_made_when_their_turn_comes() {
    let dir = tempfile::tempdir().unwrap();
    let base = tensor(1, &[4, 6], DType::F32);
    let mut weights = hf::Weights::new();
    // A view, which does not lie in memory as it must in the file.
    weights.insert_with("merged", DType::BF16, &[6, 4], || Ok(base.t()?.to_dtype(DType::BF16)?));
    weights.insert("plain", base.t().unwrap());
    assert_eq!(weights.bytes(), 24 * 2 + 24 * 4);
    hf::write(dir.path(), &config(), weights, &tokenizer(), None, u64::MAX).unwrap();
    let read = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(
        values(&read.tensor("plain", DType::F32, &CPU).unwrap()),
        values(&base.t().unwrap().contiguous().unwrap())
    );
    assert_eq!(read.stored_dtype("merged"), Some(DType::BF16));

    let mut weights = hf::Weights::new();
    weights.insert_with("liar", DType::F32, &[2], || Ok(base.clone()));
    let error = hf::write(dir.path(), &config(), weights, &tokenizer(), None, u64::MAX).unwrap_err();
    assert!(error.to_string().contains("`liar` was announced as"), "{error}");
}

#[test]
fn a_tokenizer_file_cannot_leave_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = tokenizer();
    files.files.insert("../escaped".into(), Vec::new());
    let inner = dir.path().join("inner");
    assert!(hf::write(&inner, &config(), model(DType::F32), &files, None, u64::MAX).is_err());
    assert_eq!(names_in(dir.path()), ["inner"]);
}

/// A safetensors file with this header and this many bytes after it.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn open_raw(bytes: &[u8], parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let file = dir.path().join(FILE);
    fs::write(&file, bytes).unwrap();
    assert_error(Checkpoint::open(dir.path()), &file, parts);
}

#[test]
fn a_file_that_was_cut_short_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), model(DType::F32), u64::MAX);
    let file = dir.path().join(FILE);
    let whole = fs::read(&file).unwrap();
    for len in 0..whole.len() {
        fs::write(&file, &whole[..len]).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(FILE) && error.contains("fetch it again"), "{len}: {error}");
    }
    fs::write(&file, [&whole[..], b"more"].concat()).unwrap();
    assert_error(Checkpoint::open(dir.path()), &file, &["4 bytes longer than its header says"]);
}

#[test]
fn damage_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), model(DType::BF16), u64::MAX);
    let file = dir.path().join(FILE);
    let whole = fs::read(&file).unwrap();
    for at in 0..whole.len().min(600) {
        for bit in [0, 3, 7] {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            fs::write(&file, &bytes).unwrap();
            if let Ok(read) = Checkpoint::open(dir.path()) {
                for name in read.names() {
                    let _ = read.tensor(name, DType::F32, &CPU);
                }
            }
        }
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let entry = |dtype: &str, shape: &str, range: &str| {
        format!(r#""w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{range}}}"#)
    };
    let one = |dtype: &str, shape: &str, range: &str| format!("{{{}}}", entry(dtype, shape, range));

    open_raw(&[0xff; 64], &["gives", "length"].map(|_| "the header a length of"));
    open_raw(&u64::MAX.to_le_bytes(), &["the header a length of 18446744073709551615 bytes"]);
    open_raw(b"version https://git-lfs.github.com/spec/v1\n", &["Git LFS pointer", "git lfs pull"]);
    open_raw(&raw("not json", 0), &["its header is not what safetensors files have"]);
    open_raw(&raw(&one("F32", "[2]", "[0,4]"), 4), &["its header lies", "`w`", "[2]"]);
    open_raw(&raw(&one("F32", "[2]", "[8,0]"), 8), &["its header lies"]);
    open_raw(&raw(&one("F32", "[4611686018427387904,4]", "[0,0]"), 0), &["its header lies"]);
    open_raw(&raw(&one("F32", "[0,4611686018427387904,16]", "[0,0]"), 0), &["its header lies"]);
    open_raw(&raw(&one("F32", "[-1]", "[0,4]"), 4), &["its header is not"]);
    open_raw(&raw(&one("F32", "[2]", "[0,8]"), 4), &["is truncated"]);
    open_raw(&raw(&one("F32", "[1]", "[4,8]"), 8), &["nothing claims the 4 bytes before"]);
    open_raw(&raw(&one("F33", "[1]", "[0,4]"), 4), &["unknown type \"F33\""]);
    open_raw(
        &raw(&one("I8", "[4]", "[0,4]").replace("\"w\"", "\"q.weight\""), 4),
        &["`q.weight` is stored as I8", "GGUF"],
    );
    let overlap = format!(
        "{{{},\"v\":{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}}}",
        entry("F32", "[2]", "[0,8]")
    );
    open_raw(&raw(&overlap, 12), &["tensor `v` overlaps"]);
    let twice = format!("{{{0},{0}}}", entry("F32", "[1]", "[0,4]"));
    open_raw(&raw(&twice, 4), &["`w` is in the header twice"]);
    open_raw(&raw(&"[".repeat(100_000), 0), &["its header is not"]);
}

#[test]
fn folders_that_are_no_model_say_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let options = |files: &[&str]| OpenOptions {
        files: Some(files.iter().map(ToString::to_string).collect()),
        ..OpenOptions::default()
    };
    assert_error(Checkpoint::open(path.join("absent")), &path.join("absent"), &["does not exist"]);
    assert_error(Checkpoint::open(path), path, &["has no config.json"]);
    fs::write(path.join("adapter_config.json"), "{}").unwrap();
    assert_error(Checkpoint::open(path), path, &["it is an adapter"]);

    let config = path.join("config.json");
    fs::write(&config, "").unwrap();
    assert_error(Checkpoint::open(path), &config, &["is not the JSON"]);
    fs::write(&config, "[]").unwrap();
    assert_error(Checkpoint::open(path), &config, &["not a JSON object"]);
    fs::write(&config, r#"{"quantization_config": {"quant_method": "gptq"}}"#).unwrap();
    assert_error(Checkpoint::open(path), &config, &["quantized (gptq)"]);
    fs::write(&config, "{}").unwrap();
    assert_error(Checkpoint::open(path), path, &["no *.safetensors"]);
    fs::write(path.join("pytorch_model.bin"), "x").unwrap();
    assert_error(Checkpoint::open(path), path, &["PyTorch's own format"]);
    assert_error(
        Checkpoint::open_with(path, &options(&["pytorch_model.bin"])),
        path,
        &["pytorch_model.bin", "not a safetensors file"],
    );
    assert_error(
        Checkpoint::open_with(path, &options(&["gone.safetensors"])),
        path,
        &["gone.safetensors", "does not exist"],
    );
    assert_error(Checkpoint::open_with(path, &options(&["../x.safetensors"])), path, &["only files of this folder"]);
    assert_error(Checkpoint::open(&config), &config, &["neither a folder nor a .gguf file"]);

    fs::write(path.join(FILE), raw("{}", 0)).unwrap();
    assert_error(Checkpoint::open(path), path, &["hold no tensors"]);
}

#[test]
fn an_index_must_agree_with_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    write(path, model(DType::F32), 139);
    let index = path.join(INDEX);
    let good = fs::read_to_string(&index).unwrap();

    fs::rename(path.join("model-00002-of-00003.safetensors"), path.join("away")).unwrap();
    assert_error(Checkpoint::open(path), &index, &["model-00002-of-00003.safetensors", "not there"]);
    fs::copy(path.join("model-00001-of-00003.safetensors"), path.join("model-00002-of-00003.safetensors")).unwrap();
    assert_error(
        Checkpoint::open(path),
        &path.join("model-00002-of-00003.safetensors"),
        &["`a.weight`", "model-00001-of-00003.safetensors holds too"],
    );
    fs::rename(path.join("away"), path.join("model-00002-of-00003.safetensors")).unwrap();

    fs::write(&index, good.replace("\"scalar\"", "\"other\"")).unwrap();
    assert_error(Checkpoint::open(path), &index, &["`other`", "not of one model"]);
    fs::write(&index, good.replace("model-00001", "../model-00001")).unwrap();
    assert_error(Checkpoint::open(path), path, &["only files of this folder"]);
    fs::write(&index, r#"{"weight_map": {}}"#).unwrap();
    assert_error(Checkpoint::open(path), &index, &["names no weight files"]);
    fs::write(&index, "{}").unwrap();
    assert_error(Checkpoint::open(path), &index, &["weight_map"]);
}

#[test]
fn a_missing_tensor_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), model(DType::F32), u64::MAX);
    let read = Checkpoint::open(dir.path()).unwrap();
    assert_error(read.tensor("d.weight", DType::F32, &CPU), dir.path(), &["no tensor `d.weight`"]);
    assert!(read.tensor("a.weight", DType::U8, &CPU).unwrap_err().to_string().contains("U8"));
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), model(DType::F32), u64::MAX);
    let read = Checkpoint::open(dir.path()).unwrap();
    let file = dir.path().join(FILE);
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(100).unwrap();
    assert_error(read.tensor("c.weight", DType::F32, &CPU), &file, &["became shorter"]);
}

/// Without an index the names themselves tell how many files there are.
#[test]
fn a_missing_shard_is_named() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), model(DType::F32), 139);
    let mut shards: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    shards.sort();
    assert!(shards.len() > 2, "{shards:?}");
    fs::remove_file(dir.path().join(INDEX)).unwrap();
    Checkpoint::open(dir.path()).unwrap();
    fs::remove_file(dir.path().join(&shards[1])).unwrap();
    let says = format!("the weight file {} is not there", shards[1]);
    assert_error(Checkpoint::open(dir.path()), dir.path(), &[&says]);
}

#[test]
fn a_pointer_in_the_place_of_a_config_is_told() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), model(DType::F32), u64::MAX);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n";
    fs::write(dir.path().join("config.json"), pointer).unwrap();
    assert_error(Checkpoint::open(dir.path()), &dir.path().join("config.json"), &["is a Git LFS pointer"]);
}
