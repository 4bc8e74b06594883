//! Steps with fixed gradients, against PyTorch's optimizers and those of their authors.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;
use tune_config::{Input, load};

use super::{Gradient, Optimizer, OptimizerConfig};
use crate::models::Trainable;

/// What `make_optimizers.py` wrote.
struct Fixture(Value);

impl Fixture {
    fn read() -> Self {
        Self(serde_json::from_str(include_str!("../../../tests/fixtures/optimizers.json")).unwrap())
    }

    fn cases(&self) -> &[Value] {
        self.0["cases"].as_array().unwrap()
    }

    fn optimizer(case: &Value) -> OptimizerConfig {
        load::<OptimizerConfig>(Input::yaml("optimizer.yaml", case["optimizer"].to_string())).unwrap().config
    }

    fn tensor(&self, of: &Value, name: &str, dtype: DType) -> Tensor {
        let dims: Vec<usize> = numbers(&self.0["shapes"][name]).into_iter().map(|n| n as usize).collect();
        Tensor::from_vec(numbers(&of[name]), dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    fn start(&self, dtype: DType) -> Trainable {
        let var = |name: &str| Var::from_tensor(&self.tensor(&self.0["start"], name, dtype)).unwrap();
        self.0["shapes"].as_object().unwrap().keys().map(|name| (name.to_owned(), var(name))).collect()
    }

    /// Takes steps with gradients that are half of the fixture's and a scale of two.
    fn step(&self, optimizer: &mut dyn Optimizer, parameters: &Trainable, steps: std::ops::Range<usize>) {
        for step in steps {
            let lr = optimizer.base_lr() * self.0["factors"][step].as_f64().unwrap();
            optimizer.prepare_all(parameters, step as u64 + 1).unwrap();
            for parameter in parameters {
                let gradient = self.tensor(&self.0["gradients"][step], parameter.name(), DType::F32);
                let gradient = Gradient::from((gradient * 0.5).unwrap());
                optimizer.update(parameter, &gradient, lr, 2.0, step as u64 + 1).unwrap();
            }
        }
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn values(parameters: &Trainable) -> BTreeMap<String, Vec<f64>> {
    let of = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
    parameters.iter().map(|parameter| (parameter.name().to_string(), of(parameter.var()))).collect()
}

#[test]
fn steps_are_those_of_others() {
    let fixture = Fixture::read();
    for case in fixture.cases() {
        let (parameters, what) = (fixture.start(DType::F32), &case["optimizer"]);
        let mut optimizer = Fixture::optimizer(case).build();
        for (step, theirs) in case["after"].as_array().unwrap().iter().enumerate() {
            fixture.step(optimizer.as_mut(), &parameters, step..step + 1);
            for (name, ours) in values(&parameters) {
                for (ours, theirs) in ours.iter().zip(numbers(&theirs[&name])) {
                    let off = (ours - theirs).abs() / theirs.abs().max(1.0);
                    assert!(off < 2e-6, "{what}, {name} after step {}: {ours} instead of {theirs}", step + 1);
                }
            }
        }
    }
}

/// What is saved after some steps and taken back goes on as if nothing had been.
#[test]
fn steps_go_on_from_what_was_saved() {
    let fixture = Fixture::read();
    for case in fixture.cases() {
        let (config, what) = (Fixture::optimizer(case), &case["optimizer"]);
        for dtype in [DType::F32, DType::BF16] {
            let whole = fixture.start(dtype);
            let mut optimizer = config.build();
            fixture.step(optimizer.as_mut(), &whole, 0..8);

            let halves = fixture.start(dtype);
            let mut first = config.build();
            fixture.step(first.as_mut(), &halves, 0..3);
            let mut second = config.build();
            second.set_state(first.state().unwrap(), &halves).unwrap();
            fixture.step(second.as_mut(), &halves, 3..8);
            assert_eq!(values(&whole), values(&halves), "{what}, {dtype:?}");
        }
        let state = config.build().state().unwrap();
        assert!(state.is_empty(), "{what}: a state before the first step");
    }
}

/// State in a file is changed as it is in memory, and read when it is saved.
#[test]
fn steps_in_a_file_are_those_in_memory() {
    let fixture = Fixture::read();
    let folder = tempfile::tempdir().unwrap();
    for case in fixture.cases() {
        let mut in_file = case.clone();
        in_file["optimizer"]["offload_dir"] = folder.path().to_str().unwrap().into();
        let (memory, file, what) = (Fixture::optimizer(case), Fixture::optimizer(&in_file), &case["optimizer"]);
        for dtype in [DType::F32, DType::BF16] {
            let (here, there) = (fixture.start(dtype), fixture.start(dtype));
            let (mut one, mut other) = (memory.build(), file.build());
            fixture.step(one.as_mut(), &here, 0..4);
            fixture.step(other.as_mut(), &there, 0..2);
            // As a run that goes on does it: the parameters one after the other.
            let mut resumed = file.build();
            let mut by_parameter: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
            for (name, tensor) in other.state().unwrap() {
                let parameter = name.rsplit_once('.').unwrap().0.to_owned();
                by_parameter.entry(parameter).or_default().insert(name, tensor);
            }
            by_parameter.into_values().for_each(|of_one| resumed.set_state(of_one, &there).unwrap());
            fixture.step(resumed.as_mut(), &there, 2..4);
            assert_eq!(values(&here), values(&there), "{what}, {dtype:?}");
            let numbers = |optimizer: &dyn Optimizer| -> BTreeMap<String, Vec<f64>> {
                let of = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
                optimizer.state().unwrap().iter().map(|(name, tensor)| (name.clone(), of(tensor))).collect()
            };
            assert_eq!(numbers(one.as_ref()), numbers(resumed.as_ref()), "{what}, {dtype:?}");
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A parameter whose state is in memory part by part, and whose last part is no whole block.
#[test]
fn large_parameters_pass_part_by_part() {
    let folder = tempfile::tempdir().unwrap();
    let len = super::state::AT_ONCE + 1234;
    let numbers = |seed: u64| Tensor::from_vec(crate::models::uniform(seed, len, 1.0), len, &Device::Cpu).unwrap();
    for name in ["adamw", "adamw_8bit", "schedule_free_adamw"] {
        let ended = ["", &format!(", offload_dir: {}", folder.path().display())].map(|more| {
            let text = format!("{{_component_: {name}, lr: 0.01{more}}}");
            let mut optimizer = load::<OptimizerConfig>(Input::yaml("o.yaml", text)).unwrap().config.build();
            let var = Var::from_tensor(&numbers(1).to_dtype(DType::BF16).unwrap()).unwrap();
            let parameters = Trainable::from_iter([("w".to_owned(), var)]);
            for step in 1..=3 {
                optimizer.prepare_all(&parameters, step).unwrap();
                let gradient = numbers(step + 1).into();
                optimizer.update(parameters.at(0).unwrap(), &gradient, 0.01, 1.0, step).unwrap();
            }
            values(&parameters)
        });
        assert!(ended[0] == ended[1], "{name}");
    }
}

/// The plans of memory and of disk count what is kept of each parameter.
#[test]
fn the_state_is_as_large_as_is_said() {
    let fixture = Fixture::read();
    for case in fixture.cases() {
        let (config, parameters) = (Fixture::optimizer(case), fixture.start(DType::BF16));
        let mut optimizer = config.build();
        fixture.step(optimizer.as_mut(), &parameters, 0..1);
        let bytes = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
        let held: u64 = optimizer.state().unwrap().values().map(bytes).sum();
        let said: u64 =
            parameters.iter().map(|parameter| config.saved_bytes(parameter.name(), &parameter.dims())).sum();
        assert_eq!(held, said, "{}", case["optimizer"]);
        for parameter in &parameters {
            let here = config.state_bytes(parameter.name(), &parameter.dims());
            let on_card = config.parts_on_card(parameter.name(), &parameter.dims()).iter().sum::<usize>() as u64;
            // What a mean counts is not on the card.
            assert!(on_card == 0 || [0, 16].contains(&(here - on_card)), "{}", case["optimizer"]);
        }
    }
}

/// What another optimizer has saved is refused.
#[test]
fn the_state_of_another_optimizer_is_refused() {
    let fixture = Fixture::read();
    let of = |name: &str| fixture.cases().iter().find(|case| case["optimizer"]["_component_"] == *name).unwrap();
    let (adamw, lion) = (Fixture::optimizer(of("adamw")), Fixture::optimizer(of("lion")));
    let parameters = fixture.start(DType::F32);
    let mut before = adamw.build();
    fixture.step(before.as_mut(), &parameters, 0..1);
    let error = lion.build().set_state(before.state().unwrap(), &parameters).unwrap_err().to_string();
    assert!(
        error.contains("is not this optimizer's; resume with the optimizer that the run was started with"),
        "{error}"
    );
}

/// The codes of a number that is as near to two may differ, and with it what comes of it; most weights are torchao's.
#[test]
fn steps_in_eight_bits_are_those_of_torchao() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/adamw_8bit.safetensors");
    let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
    let var = Var::from_tensor(&tensors["start"]).unwrap();
    let parameters = Trainable::from_iter([("w".to_owned(), var.clone())]);
    let mut optimizer = super::AdamW8bit::new(0.01, [0.9, 0.95], 1e-6, 0.1);
    let mut plain = super::AdamW::new(0.01, [0.9, 0.95], 1e-6, 0.1);
    let exact = Var::from_tensor(&tensors["start"].copy().unwrap()).unwrap();
    let exactly = Trainable::from_iter([("w".to_owned(), exact.clone())]);
    let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for step in 0..6 {
        let gradient = Gradient::from(tensors[&format!("gradient_{step}")].clone());
        optimizer.update(parameters.at(0).unwrap(), &gradient, 0.01, 1.0, step + 1).unwrap();
        plain.update(exactly.at(0).unwrap(), &gradient, 0.01, 1.0, step + 1).unwrap();
        let (ours, theirs) = (numbers(&var), numbers(&tensors[&format!("after_{step}")]));
        let off = ours.iter().zip(&theirs).filter(|(a, b)| (*a - *b).abs() > 2e-6).count();
        assert!(off * 500 <= ours.len(), "step {}: {off} of {} weights are others", step + 1, ours.len());
        let differ = ours.iter().zip(numbers(&exact)).filter(|(a, b)| (*a - b).abs() > 1e-5).count();
        assert!(step == 0 || differ * 10 > ours.len(), "step {}: the state is not in eight bits", step + 1);
    }
}

/// The state of a large matrix goes through a checkpoint without a change, and takes what is said.
#[test]
fn blocks_go_on_from_what_was_saved() {
    for dtype in [DType::F32, DType::BF16] {
        let numbers = |seed: u64| {
            let numbers = crate::models::uniform(seed, 30 * 150, 1.0);
            Tensor::from_vec(numbers, (30, 150), &Device::Cpu).unwrap()
        };
        let fresh = || {
            let var = Var::from_tensor(&numbers(1).to_dtype(dtype).unwrap()).unwrap();
            Trainable::from_iter([("w".to_owned(), var)])
        };
        let config =
            load::<OptimizerConfig>(Input::yaml("o.yaml", "{_component_: adamw_8bit, lr: 0.01}")).unwrap().config;
        let step = |optimizer: &mut dyn Optimizer, parameters: &Trainable, step: u64| {
            let gradient = Gradient::from(numbers(step + 1).to_dtype(DType::F32).unwrap());
            optimizer.update(parameters.at(0).unwrap(), &gradient, 0.01, 1.0, step).unwrap();
        };
        let (whole, halves) = (fresh(), fresh());
        let mut optimizer = config.build();
        (1..=6).for_each(|i| step(optimizer.as_mut(), &whole, i));
        let (mut first, mut second) = (config.build(), config.build());
        (1..=3).for_each(|i| step(first.as_mut(), &halves, i));
        let state = first.state().unwrap();
        let bytes: usize = state.values().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum();
        assert_eq!(bytes as u64, config.saved_bytes("w", &[30, 150]));
        assert_eq!(config.state_bytes("w", &[30, 150]), 2 * (4500 + 4 * 18));
        second.set_state(state.clone(), &halves).unwrap();
        (4..=6).for_each(|i| step(second.as_mut(), &halves, i));
        assert_eq!(values(&whole), values(&halves), "{dtype:?}");

        let smaller = Trainable::from_iter([("w".to_owned(), Var::zeros((30, 151), dtype, &Device::Cpu).unwrap())]);
        let error = config.build().set_state(state, &smaller).unwrap_err().to_string();
        assert!(error.contains("fits no parameter of this run"), "{error}");
    }
}

/// Gradients of the schedule-free optimizer belong to weights that are not those which are saved.
#[test]
fn a_step_without_the_weights_of_its_gradients_is_an_error() {
    let fixture = Fixture::read();
    let case = fixture.cases().iter().find(|case| case["optimizer"]["_component_"] == "schedule_free_adamw").unwrap();
    let (mut optimizer, parameters) = (Fixture::optimizer(case).build(), fixture.start(DType::F32));
    let saved = values(&parameters);
    fixture.step(optimizer.as_mut(), &parameters, 0..2);
    let averaged = values(&parameters);
    optimizer.prepare_all(&parameters, 3).unwrap();
    let elsewhere = values(&parameters);
    assert!(saved != averaged && averaged != elsewhere);
    // Those of the step before are no help.
    let (parameter, gradient) =
        (parameters.at(0).unwrap(), fixture.tensor(&fixture.0["gradients"][3], "matrix", DType::F32));
    let error = optimizer.update(parameter, &gradient.into(), 0.01, 1.0, 4).unwrap_err().to_string();
    assert!(error.contains("a recipe calls `prepare_all` before each step"), "{error}");
}

/// AdamW moves what is no matrix within a block, and what is moved by which is what the plans of memory count.
#[test]
fn muon_is_for_matrices_within_blocks() {
    let config = load::<OptimizerConfig>(Input::yaml("o.yaml", "_component_: muon")).unwrap().config;
    let of = |name: &str, dims: &[usize]| config.state_bytes(name, dims);
    assert_eq!(of("model.layers.0.mlp.up_proj.weight", &[3, 5]), 4 * 15);
    assert_eq!(of("lm_head.lora_A.weight", &[2, 5]), 4 * 10);
    assert_eq!(of("model.embed_tokens.weight", &[3, 5]), 8 * 15);
    assert_eq!(of("lm_head.weight", &[3, 5]), 8 * 15);
    assert_eq!(of("model.layers.0.input_layernorm.weight", &[5]), 8 * 5);
}

/// A quarter of AdamW's state, and next to nothing: what the table in `docs/optimizers.md` says.
#[test]
fn the_state_of_a_large_matrix_is_what_the_table_says() {
    let of = |name: &str| {
        let config = load::<OptimizerConfig>(Input::yaml("o.yaml", format!("_component_: {name}"))).unwrap().config;
        config.state_bytes("model.layers.0.mlp.up_proj.weight", &[1024, 4096]) as f64 / (1024.0 * 4096.0)
    };
    let expected = [
        ("adamw", 8.0),
        ("adamw_8bit", 2.03125),
        ("sgd", 0.0),
        ("lion", 4.0),
        ("adafactor", 4.0 * 5120.0 / (1024.0 * 4096.0)),
        ("muon", 4.0),
    ];
    for (name, bytes) in expected {
        assert_eq!(of(name), bytes, "{name}");
    }
    assert!((of("schedule_free_adamw") - 12.0).abs() < 1e-4);
}
