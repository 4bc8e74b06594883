//! What the tests of this folder share.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tune_core::tokenizer::TokenizerFiles;

/// A file of `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// Numbers that no rounding leaves alone, the same for the same seed.
pub(crate) fn numbers(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 10_007) as f32 / 3333.3 - 1.5).collect()
}

pub(crate) fn tensor(seed: usize, shape: &[usize], dtype: DType) -> Tensor {
    Tensor::from_vec(numbers(seed, shape.iter().product()), shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// Every element as the f64 that it is.
pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn model(dtype: DType) -> BTreeMap<String, Tensor> {
    [("b.weight", vec![5, 7]), ("a.weight", vec![11]), ("c.weight", vec![2, 3, 4]), ("scalar", vec![])]
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| (name.to_string(), tensor(i, &shape, dtype)))
        .collect()
}

pub(crate) fn config() -> Value {
    json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float64"})
}

pub(crate) fn tokenizer() -> TokenizerFiles {
    let files = [("tokenizer.json", &b"{ \"odd\" :  \"spacing\"}"[..]), ("chat_template.jinja", b"{{ messages }}\r\n")];
    TokenizerFiles { files: files.into_iter().map(|(n, b)| (n.to_string(), b.to_vec())).collect() }
}

/// The names in a folder, sorted.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The message of an error, which must name `path` and hold all of `parts`.
#[track_caller]
pub(crate) fn assert_error<T>(result: tune_core::Result<T>, path: &Path, parts: &[&str]) {
    let Err(error) = result else {
        panic!("expected an error that says {parts:?}");
    };
    let message = error.to_string();
    assert!(message.contains(path.to_str().unwrap()), "{message} does not name {}", path.display());
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}
