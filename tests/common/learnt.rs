//! What runs have logged and saved, and how far they are from each other.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

/// The losses of a run's steps and validations, in their order.
pub fn losses(output: &Path) -> Vec<f64> {
    let text = fs::read_to_string(output.join("logs/metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    records.filter_map(|record| record["loss"].as_f64().or(record["val_loss"].as_f64())).collect()
}

/// The tensors of a safetensors file, by name.
pub fn tensors(file: &Path) -> BTreeMap<String, Vec<f64>> {
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let values = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    tensors.iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

/// The length of the difference of two files' tensors, relative to that of the second.
pub fn distance(a: &Path, b: &Path) -> f64 {
    let (a, b) = (tensors(a), tensors(b));
    assert!(a.keys().eq(b.keys()));
    let length = |all: &mut dyn Iterator<Item = f64>| all.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = || a.values().flatten().zip(b.values().flatten());
    length(&mut pairs().map(|(a, b)| a - b)) / length(&mut pairs().map(|(_, b)| *b))
}

/// The largest difference of two series, relative to the second.
pub fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0f64, |worst, (a, b)| worst.max((a - b).abs() / b.abs()))
}
