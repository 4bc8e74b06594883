//! GGUF files appear as the Hugging Face models that they were made from.

use std::path::PathBuf;

use candle_core::{DType, Device};
use tune_core::checkpoint::{Checkpoint, OpenOptions};

use crate::support::values;

const CPU: Device = Device::Cpu;

#[test]
#[ignore = "needs SMOLLM2_DIR: the folder with the GGUF file of SmolLM2-135M-Instruct and its conversion in hf/"]
fn smollm2_equals_its_conversion() {
    let dir = PathBuf::from(std::env::var_os("SMOLLM2_DIR").unwrap());
    let options = OpenOptions {
        round_to: Some(DType::BF16),
        ..OpenOptions::default()
    };
    let gguf =
        Checkpoint::open_with(dir.join("SmolLM2-135M-Instruct.Q4_1.gguf"), &options).unwrap();
    let hf = Checkpoint::open(dir.join("hf")).unwrap();
    assert_eq!(gguf.config(), hf.config());
    assert!(gguf.names().eq(hf.names()));
    for name in hf.names() {
        let (ours, theirs) = (
            gguf.tensor(name, DType::F32, &CPU).unwrap(),
            hf.tensor(name, DType::F32, &CPU).unwrap(),
        );
        assert!(values(&ours) == values(&theirs), "{name}");
    }
    if let Some(out) = std::env::var_os("OUT") {
        for (n, b) in gguf.tokenizer_files().unwrap().files {
            std::fs::write(PathBuf::from(&out).join(n), b).unwrap();
        }
    }
}
