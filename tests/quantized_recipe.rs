//! `lora` on bases that are held in few bits: a GGUF file as it is, and NF4.

#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;
#[path = "common/stand_in.rs"]
mod stand_in;

use std::fs;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value as Meta};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use runs::{fail, newest, root, succeed, text};
use serde_json::Value;
use tune_core::checkpoint::Checkpoint;

/// The tiny model as a GGUF file, its matrices in this type.
fn write_gguf(path: &Path, dtype: GgmlDType) {
    let base = Checkpoint::open(root().join("recipes/tiny/model")).unwrap();
    let files = base.tokenizer_files().unwrap().files;
    let tokenizer: Value = serde_json::from_slice(&files["tokenizer.json"]).unwrap();
    let settings: Value = serde_json::from_slice(&files["tokenizer_config.json"]).unwrap();
    let mut tokens = vec![String::new(); tokenizer["model"]["vocab"].as_object().unwrap().len()];
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize].clone_from(token);
    }
    let special = tokenizer["added_tokens"].as_array().unwrap();
    let types = (0..tokens.len()).map(|id| special.iter().any(|token| token["id"] == id));
    let types = types.map(|special| Meta::I32(if special { 3 } else { 1 })).collect();
    let merge = |pair: &Value| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter().map(|pair| Meta::String(merge(pair)));
    let number = |key: &str| Meta::U32(base.config()[key].as_u64().unwrap() as u32);
    let metadata = [
        ("general.architecture", Meta::String("llama".into())),
        ("llama.context_length", number("max_position_embeddings")),
        ("llama.embedding_length", number("hidden_size")),
        ("llama.feed_forward_length", number("intermediate_size")),
        ("llama.block_count", number("num_hidden_layers")),
        ("llama.attention.head_count", number("num_attention_heads")),
        ("llama.attention.head_count_kv", number("num_key_value_heads")),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("tokenizer.ggml.model", Meta::String("gpt2".into())),
        ("tokenizer.ggml.pre", Meta::String("gpt-2".into())),
        ("tokenizer.ggml.tokens", Meta::Array(tokens.into_iter().map(Meta::String).collect())),
        ("tokenizer.ggml.token_type", Meta::Array(types)),
        ("tokenizer.ggml.merges", Meta::Array(merges.collect())),
        ("tokenizer.ggml.eos_token_id", number("eos_token_id")),
        ("tokenizer.ggml.padding_token_id", number("pad_token_id")),
        ("tokenizer.ggml.add_bos_token", Meta::Bool(false)),
        ("tokenizer.chat_template", Meta::String(settings["chat_template"].as_str().unwrap().into())),
    ];
    let tensors: Vec<(String, QTensor)> = base
        .names()
        .map(|name| {
            let tensor = base.tensor(name, DType::F32, &Device::Cpu).unwrap();
            let heads = match name {
                name if name.ends_with("q_proj.weight") => 4,
                name if name.ends_with("k_proj.weight") => 2,
                _ => 0,
            };
            let stored = if heads > 0 { interleaved(&tensor, heads) } else { tensor };
            let dtype = if stored.rank() == 1 { GgmlDType::F32 } else { dtype };
            (gguf_name(name), QTensor::quantize(&stored, dtype).unwrap())
        })
        .collect();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// The rows of each head, the two halves of which llama.cpp has in turn.
fn interleaved(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, cols) = weight.dims2().unwrap();
    let halves = weight.reshape((heads, 2, rows / heads / 2, cols)).unwrap();
    halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, cols)).unwrap()
}

fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_owned(),
        "model.norm.weight" => return "output_norm.weight".to_owned(),
        _ => {}
    }
    let (block, layer) = name.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
    let layer = match layer.strip_suffix(".weight").unwrap() {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => panic!("{other}"),
    };
    format!("blk.{block}.{layer}.weight")
}

fn losses(output_dir: &Path) -> Vec<f64> {
    let log = fs::read_to_string(output_dir.join("logs/metrics.jsonl")).unwrap();
    log.lines().filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64()).collect()
}

/// Runs some steps, and returns what is said and the losses.
fn train(dir: &Path, extra: &[&str]) -> (String, Vec<f64>) {
    let output = format!("output_dir={}", dir.display());
    let mut args = vec!["--config", "configs/lora/tiny.yaml", &output, "epochs=1", "max_steps_per_epoch=8"];
    args.extend(["log_every_n_steps=1", "~exact_match"].iter().chain(extra));
    (text(&succeed("lora", &args).stderr), losses(dir))
}

#[test]
fn a_gguf_file_is_trained_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    for (dtype, name) in [(GgmlDType::Q8_0, "Q8_0"), (GgmlDType::Q4_1, "Q4_1"), (GgmlDType::F16, "F16")] {
        let file = folder.path().join(format!("{name}.gguf"));
        write_gguf(&file, dtype);
        let base = format!("checkpointer.checkpoint_dir={}", file.display());
        let run = |what: &str, extra: &[&str]| {
            let extra: Vec<&str> = [base.as_str()].iter().chain(extra).copied().collect();
            train(&folder.path().join(format!("{name}_{what}")), &extra)
        };
        let (said, ours) = run("kept", &[]);
        assert!(said.contains(&format!("held quantized: 29 in {name}, together ")), "{said}");
        let (said, right) = run("numbers", &["model.keep_quantized=false"]);
        assert!(!said.contains("held quantized"), "{said}");
        assert!(right[7] < 0.9 * right[0], "{right:?}");
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 * b;
        assert!(ours.iter().zip(&right).all(near), "{name}: {ours:?} instead of {right:?}");
        let (_, half) = run("bf16", &["dtype=bf16"]);
        assert!(half.iter().zip(&right).all(|(a, b)| (a - b).abs() <= 2e-2 * b), "{half:?} instead of {right:?}");
    }
}

#[test]
fn an_adapter_on_normal_floats_learns_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let dir = |name: &str| folder.path().join(name);
    let (_, plain) = train(&dir("plain"), &[]);
    let nf4 = ["model.quantize_base=true", "checkpointer.save_every_n_steps=4"];
    let (said, ours) = train(&dir("nf4"), &nf4);
    assert!(said.contains("held quantized: 28 in NF4, together "), "{said}");
    assert!(ours != plain && ours[7] < 0.9 * ours[0], "{ours:?}");
    assert!(ours.iter().zip(&plain).all(|(a, b)| (a - b).abs() <= 0.1 * b), "{ours:?} instead of {plain:?}");

    // From the middle on, with the same losses; on another base, not.
    fs::remove_dir_all(newest(&dir("nf4"))).unwrap();
    let output = format!("output_dir={}", dir("nf4").display());
    let resume = [
        "--config",
        "configs/lora/tiny.yaml",
        &output,
        "overwrite=false",
        "resume_from_checkpoint=true",
        "epochs=1",
        "max_steps_per_epoch=8",
        "log_every_n_steps=1",
        "~exact_match",
    ];
    let error = fail("lora", &resume);
    assert!(error.contains("model.quantize_base: true then, false now"), "{error}");
    let args: Vec<&str> = resume.iter().chain(&nf4).copied().collect();
    succeed("lora", &args);
    assert_eq!(losses(&dir("nf4")), ours);
}

#[test]
fn what_cannot_be_done_with_it_is_said_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    write_gguf(&file, GgmlDType::Q4_0);
    let base = format!("checkpointer.checkpoint_dir={}", file.display());
    let out = folder.path().join("out");
    let output = format!("output_dir={}", out.display());
    let refused = |extra: &[&str], words: &[&str]| {
        let args = ["--config", "configs/lora/tiny.yaml", &output];
        let args: Vec<&str> = args.iter().chain(extra).copied().collect();
        for check in [false, true] {
            let args: Vec<&str> = args.iter().copied().chain(check.then_some("--check")).collect();
            let output = runs::run("lora", &args);
            let said = text(&output.stdout) + &text(&output.stderr);
            assert!(!output.status.success() && words.iter().all(|word| said.contains(word)), "{said}");
        }
        assert!(!out.exists());
    };
    let merged = "save_adapter_weights_only=false";
    refused(&[&base, merged], &["held quantized (29 in Q4_0)", "or model.keep_quantized=false"]);
    refused(&["model.quantize_base=true", merged], &["held quantized (28 in NF4)", "or model.quantize_base=false"]);
}

#[test]
fn check_and_plan_name_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    write_gguf(&file, GgmlDType::Q4_0);
    let base = format!("checkpointer.checkpoint_dir={}", file.display());
    let output = format!("output_dir={}", folder.path().join("out").display());
    let say = |extra: &[&str]| {
        let args = ["--config", "configs/lora/tiny.yaml", &output];
        let args: Vec<&str> = args.iter().chain(extra).copied().collect();
        text(&succeed("lora", &args).stdout)
    };
    let elements = 4 * (128 * 128 * 2 + 2 * 64 * 128 + 3 * 384 * 128) + 384 * 128;
    let checked = say(&["--check", &base]);
    assert!(checked.contains(&format!("held quantized, 29 in Q4_0: {elements} elements in ")), "{checked}");
    for (extra, mib) in [
        ([base.as_str(), "dtype=bf16"], elements as f64 * 18.0 / 32.0 / 1048576.0),
        // A byte of scale for 64 codes, and a factor for 256 of these: each layer has fewer than two of them or three.
        (["model.quantize_base=true", "dtype=bf16"], (elements - 384 * 128) as f64 / 64.0 * 33.0 / 1048576.0),
    ] {
        let plan = say(&["--plan", extra[0], extra[1]]);
        let line = plan.lines().find(|line| line.contains("quantized weights")).unwrap_or_else(|| panic!("{plan}"));
        assert!(line.contains(&format!("{mib:.1} MiB")), "{line}: {mib}");
    }
}

/// On a card, or on what stands in for one: a file as it is, and NF4, with the losses of the processor; and a plan that names the card.
#[test]
fn a_card_trains_on_blocks() {
    let Some(stand_in) = stand_in::folder() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tiny.gguf");
    write_gguf(&file, GgmlDType::Q4_0);
    let base = format!("checkpointer.checkpoint_dir={}", file.display());
    for (what, base, held) in
        [("gguf", base.as_str(), "held quantized: 29 in Q4_0"), ("nf4", "model.quantize_base=true", "28 in NF4")]
    {
        let run = |device: &str| {
            let output = folder.path().join(format!("{what}_{device}"));
            let (output_dir, device) = (format!("output_dir={}", output.display()), format!("device={device}"));
            let args = ["--config", "configs/lora/tiny.yaml", &output_dir, &device, base];
            let few = ["batch_size=4", "epochs=1", "max_steps_per_epoch=3", "log_every_n_steps=1", "~exact_match"];
            let mut command = runs::recipe("lora", &[&args[..], &few].concat());
            stand_in::environment(&mut command, stand_in);
            let output_of_run = command.output().unwrap();
            let said = text(&output_of_run.stderr);
            assert!(output_of_run.status.success() && said.contains(held), "{said}");
            losses(&output)
        };
        let [here, there] = ["cpu", "cuda"].map(run);
        assert!(here.len() == 3 && there.len() == 3, "{here:?} {there:?}");
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 * b;
        assert!(there.iter().zip(&here).all(near), "{what}: {there:?} instead of {here:?}");

        let output = format!("output_dir={}", folder.path().join("none").display());
        let args = ["--config", "configs/lora/tiny.yaml", &output, "device=cuda", base, "--plan"];
        let mut command = runs::recipe("lora", &args);
        stand_in::environment(&mut command, stand_in);
        let said = text(&command.output().unwrap().stdout);
        assert!(said.contains("Memory on Stand-in") && said.contains("quantized weights"), "{said}");
    }
}
