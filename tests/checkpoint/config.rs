//! The keys of a config file.

use std::path::PathBuf;

use candle_core::DType;
use tune_core::checkpoint::{CheckpointConfig, Size};
use tune_core::config::{Config, Input, load};

use crate::support::fixture;

#[test]
fn sizes_are_read_as_hugging_face_writes_them() {
    for (text, bytes, written) in [
        ("5GB", 5_000_000_000, "5GB"),
        ("1.5 gib", 3 << 29, "1536MiB"),
        ("500MB", 500_000_000, "500MB"),
        ("1000", 1000, "1KB"),
        ("7", 7, "7B"),
    ] {
        let size: Size = text.parse().unwrap();
        assert_eq!(size, Size(bytes), "{text}");
        assert_eq!(size.to_string(), written);
        assert_eq!(written.parse::<Size>().unwrap(), size);
    }
    for text in ["", "GB", "5XB", "-5GB", "0GB", "0.1B", "1e3", "5..0GB", "99999999999TB", "five"] {
        assert!(text.parse::<Size>().unwrap_err().contains("5GB, 500MB"), "{text}");
    }
}

#[test]
fn its_keys_are_what_torchtune_users_write() {
    let yaml = format!(
        "_component_: torchtune.training.FullModelHFCheckpointer\n\
         checkpoint_dir: {}\n\
         checkpoint_files: [llama3.gguf]\n\
         model_type: LLAMA3\n\
         output_dir: /tmp/x\n\
         round_to: bf16\n\
         keep_last_n_checkpoints: 2\n",
        fixture("gguf").display()
    );
    let loaded = load::<CheckpointConfig>(Input::yaml("a.yaml", yaml)).unwrap();
    let config = &loaded.config;
    assert_eq!(config.max_shard_size, Size(5_000_000_000));
    assert_eq!(config.keep_last_n_checkpoints, Some(2));
    let read = config.open().unwrap();
    assert_eq!(read.config()["model_type"], "llama");
    let norm = read.tensor("model.norm.weight", DType::F32, &candle_core::Device::Cpu).unwrap();
    let rounded = norm.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    assert_eq!(crate::support::values(&norm), crate::support::values(&rounded));

    // What is written beside the results is the same again.
    let again = load::<CheckpointConfig>(Input::yaml("b.yaml", loaded.config.to_yaml())).unwrap();
    assert_eq!(again.config.checkpoint_dir, PathBuf::from(&config.checkpoint_dir));
    assert_eq!(again.config.max_shard_size, config.max_shard_size);
}

#[test]
fn a_wrong_size_is_shown_where_it_stands() {
    let yaml = "checkpoint_dir: x\nmax_shard_size: large\nkeep_last_n_checkpoints: 0\n";
    let report = load::<CheckpointConfig>(Input::yaml("a.yaml", yaml)).unwrap_err().to_string();
    assert!(report.contains("a.yaml:3"), "{report}");
    println!("{report}");
}
