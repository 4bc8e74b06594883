use candle_core::DType;
use half::bf16;
use serde_json::json;

use super::{Paper, StepOnPaper};
use crate::data::{Batch, IGNORE, Span};
use crate::device::Compute;
use crate::distributed::Layout;
use crate::engine::{RunOptions, forward_backward};
use crate::kernels::Element;
use crate::kernels::ledger::Ledger;
use crate::kernels::recorder;
use crate::models::Slot::{DownProj, LmHead, QProj};
use crate::models::{
    Decoder, FakeQuantizer, GgufFormat, GgufLevels, Groups, InBlocks, LoadOptions, LoraOptions, ModelSpec,
    RandomWeights, Slot, TrainedTokens,
};
use crate::optim::{Gradients, InBackward, OptimizerConfig};

/// Sizes that fit neither tiles nor pages.
fn model(tied: bool) -> ModelSpec {
    let config = json!({
        "model_type": "llama", "vocab_size": 5003, "hidden_size": 144, "intermediate_size": 400,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 24,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": tied,
    });
    ModelSpec::from_json(&config).unwrap()
}

/// Samples of these lengths in one row; the first third of each is not trained.
fn batch(lens: &[usize]) -> Batch {
    let mut batch = Batch {
        rows: 1,
        len: lens.iter().sum(),
        input_ids: Vec::new(),
        targets: Vec::new(),
        positions: Vec::new(),
        spans: Vec::new(),
        origins: vec![String::new(); lens.len()],
        labels: Vec::new(),
    };
    for &len in lens {
        batch.spans.push(Span { row: 0, start: batch.input_ids.len(), len });
        for i in 0..len {
            batch.input_ids.push((i * 31 % 5003) as u32);
            batch.targets.push(if i < len / 3 { IGNORE } else { (i * 17 % 5003) as u32 });
            batch.positions.push(i as u32);
        }
    }
    batch
}

fn lora(modules: &[Slot], dropout: f64) -> LoraOptions {
    LoraOptions { modules: modules.to_vec(), rank: 5, alpha: 10.0, dropout, seed: 1, ..Default::default() }
}

/// A step of all weights as they are, whose activations are kept.
fn plain<'a>(model: &'a ModelSpec, none: &'a InBlocks) -> StepOnPaper<'a> {
    StepOnPaper {
        model,
        in_blocks: none,
        lora: None,
        activation_checkpointing: false,
        offloads_inputs: false,
        optimizer_in_backward: false,
        layout: Layout::ONE,
        teacher: None,
        fake: None,
    }
}

/// What two steps really take, and what they take on paper, on one thread: with more, which of them is where
/// decides about the order of small buffers, and so about the gaps that large ones find.
fn both(step: StepOnPaper<'_>, dtype: DType, batches: &[&Batch]) -> [Ledger; 2] {
    let options =
        LoadOptions { dtype, device: Compute::Processor, train_weights: step.lora.is_none(), lora: step.lora.cloned() };
    let mut model = Decoder::load(step.model.clone(), &RandomWeights { seed: 1, std: 0.05 }, &options).unwrap();
    model.fake_quantize(step.fake).unwrap();
    let folder = tempfile::tempdir().unwrap();
    if step.offloads_inputs {
        model.offload_inputs(folder.path());
    }
    let mut optimizer = OptimizerConfig::Sgd(crate::optim::SgdConfig {
        lr: 0.0,
        momentum: 0.0,
        weight_decay: 0.0,
        groups: Default::default(),
    })
    .build();
    let real = recorder::record(1, || {
        for number in 1..=2 {
            let mut gradients = Gradients::default();
            for batch in batches {
                let options = RunOptions {
                    scale: 1e-3,
                    activation_checkpointing: step.activation_checkpointing,
                    dropout: Some(7),
                    ..RunOptions::PLAIN
                };
                if step.optimizer_in_backward {
                    let optimizer = optimizer.as_mut();
                    let mut sink = InBackward::new(optimizer, 0.0, number);
                    forward_backward(&model, batch, options, &mut sink).unwrap();
                } else {
                    forward_backward(&model, batch, options, &mut gradients).unwrap();
                }
            }
        }
    });
    fn on_paper<T: Element>(step: StepOnPaper<'_>, batches: &[&Batch]) -> Ledger {
        let paper = Paper::<T>::new(1);
        (1..=2).for_each(|_| step.train(batches, &paper).unwrap());
        paper.ledger
    }
    let paper = match dtype {
        DType::BF16 => on_paper::<bf16>(step, batches),
        _ => on_paper::<f32>(step, batches),
    };
    [real, paper]
}

fn modes() -> Vec<(String, ModelSpec, Option<LoraOptions>, bool, bool)> {
    let adapters = [
        Some(lora(
            &[QProj, Slot::KProj, Slot::VProj, Slot::OProj, Slot::GateProj, Slot::UpProj, DownProj, LmHead],
            0.0,
        )),
        Some(lora(&[QProj, DownProj], 0.1)),
        Some(lora(&[LmHead], 0.0)),
        Some(LoraOptions { dora: true, ..lora(&[QProj, DownProj, LmHead], 0.1) }),
        Some(LoraOptions { save: ["embed_tokens", "up_proj"].map(String::from).into(), ..lora(&[QProj], 0.1) }),
        Some(LoraOptions { save: vec!["norm".into()], ..lora(&[DownProj], 0.0) }),
        Some(LoraOptions { tokens: TrainedTokens::of(&[31, 62, 5000]), ..lora(&[QProj], 0.1) }),
        None,
    ];
    let of_output = Some(LoraOptions { output_tokens: TrainedTokens::of(&[31, 5000]), ..lora(&[QProj], 0.0) });
    let mut modes = Vec::new();
    for tied in [true, false] {
        for (which, lora) in adapters.iter().chain((!tied).then_some(&of_output)).enumerate() {
            for checkpointing in [true, false] {
                for in_backward in [true, false] {
                    let name = format!("tied {tied}, adapters {which}, {checkpointing}, {in_backward}");
                    modes.push((name, model(tied), lora.clone(), checkpointing, in_backward));
                }
            }
        }
    }
    modes
}

#[test]
fn one_thread_touches_what_the_paper_says() {
    let (short, long) = (batch(&[70, 41, 130]), batch(&[300, 9, 77, 1]));
    let none = InBlocks::default();
    for (name, model, lora, activation_checkpointing, optimizer_in_backward) in modes() {
        let lora = lora.map(|lora| lora.resolved(&model).unwrap());
        let lora = lora.as_ref();
        let step = StepOnPaper { lora, activation_checkpointing, optimizer_in_backward, ..plain(&model, &none) };
        for dtype in [DType::F32, DType::BF16] {
            let [real, paper] = both(step, dtype, &[&long, &short]).map(|ledger| ledger.touched(1));
            assert_eq!(real, paper, "{name}, {dtype:?}");
        }
    }
}

/// The inputs of blocks go to a file, and come back into other memory.
#[test]
fn inputs_in_a_file_touch_what_the_paper_says() {
    let (short, long) = (batch(&[70, 41, 130]), batch(&[300, 9, 77, 1]));
    let none = InBlocks::default();
    let (mut in_file, mut in_memory) = (0, 0);
    for (name, model, lora, activation_checkpointing, optimizer_in_backward) in modes() {
        // Without it there is nothing to keep in a file.
        if !activation_checkpointing {
            continue;
        }
        let lora = lora.map(|lora| lora.resolved(&model).unwrap());
        let lora = lora.as_ref();
        let kept = StepOnPaper { lora, activation_checkpointing, optimizer_in_backward, ..plain(&model, &none) };
        let step = StepOnPaper { offloads_inputs: true, ..kept };
        for dtype in [DType::F32, DType::BF16] {
            let [real, paper] = both(step, dtype, &[&long, &short]).map(|ledger| ledger.touched(1));
            assert_eq!(real, paper, "{name}, {dtype:?}");
            in_file += real;
            in_memory += both(kept, dtype, &[&long, &short])[1].touched(1);
        }
    }
    assert!(in_file < in_memory, "{in_file} instead of {in_memory}");
}

/// The other families, but for experts: which of them has how many tokens decides about the order of small buffers.
#[test]
fn families_touch_what_the_paper_says() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/families");
    let (short, long) = (batch(&[70, 41, 130]), batch(&[300, 9, 77, 1]));
    let none = InBlocks::default();
    let all = lora(&Slot::ALL, 0.1);
    for family in ["gemma2", "gemma3_text", "olmo2", "phi3", "qwen2", "qwen3"] {
        let config = std::fs::read_to_string(format!("{fixtures}/{family}/config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        for (key, size) in [("vocab_size", 5003), ("hidden_size", 144), ("intermediate_size", 400), ("head_dim", 36)] {
            config[key] = size.into();
        }
        let model = ModelSpec::from_json(&config).unwrap();
        let all = all.resolved(&model).unwrap();
        for lora in [None, Some(&all)] {
            for activation_checkpointing in [true, false] {
                let optimizer_in_backward = lora.is_none();
                let step =
                    StepOnPaper { lora, activation_checkpointing, optimizer_in_backward, ..plain(&model, &none) };
                for dtype in [DType::F32, DType::BF16] {
                    let [real, paper] = both(step, dtype, &[&long, &short]).map(|ledger| ledger.touched(1));
                    assert_eq!(real, paper, "{family}, {}, {activation_checkpointing}, {dtype:?}", lora.is_some());
                }
            }
        }
    }
}

/// Weights that are rounded have memory of their own for as long as their block is open, and inputs for a product.
#[test]
fn rounded_weights_touch_what_the_paper_says() {
    let (short, long) = (batch(&[70, 41, 130]), batch(&[300, 9, 77, 1]));
    let none = InBlocks::default();
    let groups = Groups { groupsize: 16 };
    for fake in [
        FakeQuantizer::Int8DynActInt4Weight(groups),
        FakeQuantizer::Int4WeightOnly(groups),
        FakeQuantizer::Gguf(GgufLevels { format: GgufFormat::Q8_0 }),
    ] {
        for tied in [true, false] {
            let model = model(tied);
            let all = lora(&[QProj, Slot::VProj, Slot::UpProj, DownProj, LmHead], 0.1).resolved(&model).unwrap();
            for lora in [None, Some(&all)] {
                for activation_checkpointing in [true, false] {
                    let step = StepOnPaper {
                        lora,
                        activation_checkpointing,
                        optimizer_in_backward: lora.is_none(),
                        fake: Some(fake),
                        ..plain(&model, &none)
                    };
                    for dtype in [DType::F32, DType::BF16] {
                        let [real, paper] = both(step, dtype, &[&long, &short]).map(|ledger| ledger.touched(1));
                        assert_eq!(real, paper, "{fake:?}, {tied}, {}, {activation_checkpointing}", lora.is_some());
                    }
                }
            }
        }
    }
}
