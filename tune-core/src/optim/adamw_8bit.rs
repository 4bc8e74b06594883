//! AdamW whose state is in eight bits.

use std::collections::BTreeMap;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Tensor, bail};
use half::bf16;

use super::adamw::Rule;
use super::blocks::{BLOCK, Map, SIGNED, UNSIGNED};
use super::by_place::ByPlace;
use super::update::{UpdateRule, rounded, write};
use super::{AdamW, Gradient, Optimizer, rounding};
use crate::kernels::Element;
use crate::kernels::parallel::{self, Parts};
use crate::models::{Parameter, Trainable};
use crate::{Error, Result};

/// The least number of elements whose state is in blocks, as in bitsandbytes and torchao.
const LEAST: usize = 4096;

/// Blocks that one task handles.
const AT_ONCE: usize = 64;

/// Their elements.
const TASK: usize = AT_ONCE * BLOCK;

/// AdamW with the two means of large parameters in blocks of eight bits. Steps are those of [`AdamW`] on the numbers that the codes
/// stand for; those of small parameters are its steps.
#[derive(Debug)]
pub struct AdamW8bit {
    plain: AdamW,
    blocks: ByPlace<Blocks>,
}

/// The state of a parameter.
#[derive(Debug)]
struct Blocks {
    first: Part,
    second: Part,
}

/// A running mean.
#[derive(Debug)]
struct Part {
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Part {
    /// Zeros.
    fn new(map: &Map, len: usize) -> Self {
        let mut zero = [0];
        let scale = map.encode(&[0.0], &mut zero);
        Self { codes: vec![zero[0]; len], scales: vec![scale; len.div_ceil(BLOCK)] }
    }

    /// Codes and scales of [`AT_ONCE`] blocks for each task.
    fn tasks(&mut self) -> impl Parts<Part = (&mut [u8], &mut [f32])> {
        (parallel::chunks(&mut self.codes, TASK), parallel::chunks(&mut self.scales, AT_ONCE))
    }
}

/// The names of what is saved: codes and scales. bf16 has every whole number up to 256.
const CODES: [&str; 2] = ["exp_avg_codes", "exp_avg_sq_codes"];
const SCALES: [&str; 2] = ["exp_avg_scales", "exp_avg_sq_scales"];

impl AdamW8bit {
    /// Without state yet.
    pub fn new(lr: f64, betas: [f64; 2], eps: f64, weight_decay: f64) -> Self {
        Self { plain: AdamW::new(lr, betas, eps, weight_decay), blocks: ByPlace::default() }
    }

    /// Bytes of the state of a parameter of this shape.
    pub(super) fn state_bytes(dims: &[usize]) -> u64 {
        Self::bytes(dims, 1)
    }

    /// Bytes that a checkpoint has of it.
    pub(super) fn saved_bytes(dims: &[usize]) -> u64 {
        Self::bytes(dims, size_of::<bf16>())
    }

    fn bytes(dims: &[usize], of_code: usize) -> u64 {
        let len: usize = dims.iter().product();
        2 * if len < LEAST { 4 * len } else { of_code * len + 4 * len.div_ceil(BLOCK) } as u64
    }
}

fn is_in_blocks(parameter: &Parameter) -> bool {
    parameter.var().elem_count() >= LEAST && parameter.var().dtype() != DType::F64
}

impl Optimizer for AdamW8bit {
    fn base_lr(&self) -> f64 {
        self.plain.base_lr()
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        if !is_in_blocks(parameter) {
            return self.plain.update(parameter, gradient, lr, scale, step);
        }
        let len = parameter.var().elem_count();
        if self.blocks.get(parameter).is_none() {
            let fresh = Blocks { first: Part::new(&SIGNED, len), second: Part::new(&UNSIGNED, len) };
            self.blocks.insert(parameter, fresh);
        }
        let Some(Blocks { first, second }) = self.blocks.get_mut(parameter) else { return Ok(()) };
        let rule = self.plain.rule(lr, scale, step);
        let gradient = gradient.values::<f32>()?;
        let round = rounded(rounding(parameter, step));
        write(parameter.var(), |weight, range| match weight {
            CpuStorage::F32(w) => sweep(&mut w[range], &gradient, [first, second], &rule, |_, w| w),
            CpuStorage::BF16(w) => sweep(&mut w[range], &gradient, [first, second], &rule, round),
            other => bail!("update: tensors of {:?} are not trained", other.dtype()),
        })?;
        Ok(())
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = self.plain.state()?;
        for (_, name, Blocks { first, second }) in self.blocks.iter() {
            for (i, part) in [first, second].into_iter().enumerate() {
                let mut codes = vec![bf16::ZERO; part.codes.len()];
                parallel::each_chunk(&mut codes, TASK, |task, codes| {
                    let wide = codes.iter_mut().zip(&part.codes[task * TASK..]);
                    wide.for_each(|(wide, &code)| *wide = bf16::from_f32(f32::from(code)));
                });
                let (codes, scales) = (Tensor::new(codes, &Device::Cpu)?, Tensor::new(&part.scales[..], &Device::Cpu)?);
                state.insert(format!("{name}.{}", CODES[i]), codes);
                state.insert(format!("{name}.{}", SCALES[i]), scales);
            }
        }
        Ok(state)
    }

    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        let is_ours = |key: &String| CODES.iter().chain(&SCALES).any(|part| key.ends_with(&format!(".{part}")));
        let (mut ours, plain): (BTreeMap<_, _>, BTreeMap<_, _>) = state.into_iter().partition(|(key, _)| is_ours(key));
        for parameter in parameters.iter().filter(|parameter| is_in_blocks(parameter)) {
            let len = parameter.var().elem_count();
            let mut part = |i: usize| -> Result<Option<Part>> {
                let mut take = |part: &str| ours.remove(&format!("{}.{part}", parameter.name()));
                let (codes, scales) = match (take(CODES[i]), take(SCALES[i])) {
                    (Some(codes), Some(scales)) => (codes, scales),
                    (None, None) => return Ok(None),
                    _ => return Err(unfit(parameter.name())),
                };
                let codes: Vec<f32> = codes.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
                let scales: Vec<f32> = scales.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
                if codes.len() != len || scales.len() != len.div_ceil(BLOCK) {
                    return Err(unfit(parameter.name()));
                }
                Ok(Some(Part { codes: codes.into_iter().map(|code| code as u8).collect(), scales }))
            };
            match (part(0)?, part(1)?) {
                (Some(first), Some(second)) => self.blocks.insert(parameter, Blocks { first, second }),
                (None, None) => (),
                _ => return Err(unfit(parameter.name())),
            }
        }
        match ours.keys().next() {
            Some(key) => Err(unfit(key)),
            None => self.plain.set_state(plain, parameters),
        }
    }
}

fn unfit(what: &str) -> Error {
    Error::setup(format!(
        "the saved optimizer state of `{what}` fits no parameter of this run; resume with the settings that the run was started with"
    ))
}

/// Moves all weights, some blocks at a time.
fn sweep<W: Element>(
    weight: &mut [W],
    gradient: &[f32],
    [first, second]: [&mut Part; 2],
    rule: &Rule,
    narrow: impl Fn(usize, f32) -> W + Sync,
) -> candle_core::Result<()> {
    if [gradient.len(), first.codes.len(), second.codes.len()].iter().any(|&len| len != weight.len()) {
        bail!("update: a weight, its gradient and their state differ in size");
    }
    let tasks = (parallel::chunks(weight, TASK), (first.tasks(), second.tasks()));
    parallel::each_part(tasks, |task, (w, (first, second))| {
        let g = &gradient[task * TASK..][..w.len()];
        let blocks = w.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).enumerate();
        let state = first.0.chunks_mut(BLOCK).zip(first.1).zip(second.0.chunks_mut(BLOCK).zip(second.1));
        for ((block, (w, g)), ((m_codes, m_scale), (v_codes, v_scale))) in blocks.zip(state) {
            let (mut m, mut v) = ([0f32; BLOCK], [0f32; BLOCK]);
            for i in 0..w.len() {
                let mut state = [SIGNED.value(m_codes[i]) * *m_scale, UNSIGNED.value(v_codes[i]) * *v_scale];
                let moved = rule.step(w[i].to_f32(), &mut state, g[i]);
                w[i] = narrow(task * TASK + block * BLOCK + i, moved);
                [m[i], v[i]] = state;
            }
            *m_scale = SIGNED.encode(&m[..w.len()], m_codes);
            *v_scale = UNSIGNED.encode(&v[..w.len()], v_codes);
        }
    });
    Ok(())
}
