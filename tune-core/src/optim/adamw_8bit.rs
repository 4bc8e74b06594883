//! AdamW whose state is in eight bits.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, Tensor, bail};
use half::bf16;
use tune_cuda::Maps;

use super::adamw::Rule;
use super::blocks::{BLOCK, Map, SIGNED, UNSIGNED};
use super::by_place::ByPlace;
use super::state::AT_ONCE as OF_FILE;
use super::update::{UpdateRule, rounded, write};
use super::{AdamW, Gradient, Optimizer, made, rounding, rounding_key};
use crate::engine::{BlocksOnCard, Card, Move8bit, OnCard, Step8bit};
use crate::kernels::parallel::{self, Parts};
use crate::kernels::{Dropout, Element};
use crate::models::{Parameter, Piece, Trainable};
use crate::offload::{OffloadFile, Region};
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
    /// Where blocks are kept, if not in memory.
    file: Option<Arc<OffloadFile>>,
}

/// The two running means of a parameter.
#[derive(Debug)]
enum Blocks {
    Here([Part; 2]),
    OnCard([BlocksOnCard; 2]),
    InFile([PartInFile; 2]),
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

    /// A copy of what is on a card.
    fn read(there: &BlocksOnCard) -> Result<Self> {
        Ok(Self { codes: there.codes()?, scales: there.scales()? })
    }

    /// Codes and scales of [`AT_ONCE`] blocks for each task.
    fn tasks(&mut self) -> impl Parts<Part = (&mut [u8], &mut [f32])> {
        (parallel::chunks(&mut self.codes, TASK), parallel::chunks(&mut self.scales, AT_ONCE))
    }
}

/// Codes as a checkpoint has them: bf16 has every whole number up to 256.
fn codes_to_save(codes: &[u8]) -> Result<Tensor> {
    let mut wide = vec![bf16::ZERO; codes.len()];
    parallel::each_chunk(&mut wide, TASK, |task, wide| {
        let each = wide.iter_mut().zip(&codes[task * TASK..]);
        each.for_each(|(wide, &code)| *wide = bf16::from_f32(f32::from(code)));
    });
    Ok(Tensor::new(wide, &Device::Cpu)?)
}

/// A running mean in a file: its codes, and its scales behind them.
#[derive(Debug)]
struct PartInFile {
    region: Region,
    len: usize,
}

impl PartInFile {
    fn new(file: &Arc<OffloadFile>, len: usize) -> Result<Self> {
        Ok(Self { region: file.take((len + 4 * len.div_ceil(BLOCK)) as u64)?, len })
    }

    /// Where the scales of these elements are, which begin with a block.
    fn at_scales(&self, elements: &Range<usize>) -> u64 {
        (self.len + 4 * (elements.start / BLOCK)) as u64
    }

    fn read(&self, elements: Range<usize>) -> Result<Part> {
        Ok(Part { codes: self.codes(&elements)?, scales: self.scales(&elements)? })
    }

    fn codes(&self, elements: &Range<usize>) -> Result<Vec<u8>> {
        let mut codes = vec![0; elements.len()];
        self.region.read(elements.start as u64, &mut codes)?;
        Ok(codes)
    }

    fn scales(&self, elements: &Range<usize>) -> Result<Vec<f32>> {
        let mut scales = vec![0.0; elements.len().div_ceil(BLOCK)];
        self.region.read(self.at_scales(elements), bytemuck::cast_slice_mut(&mut scales))?;
        Ok(scales)
    }

    fn write(&self, elements: &Range<usize>, part: &Part) -> Result<()> {
        self.region.write(elements.start as u64, &part.codes)?;
        self.region.write(self.at_scales(elements), bytemuck::cast_slice(&part.scales))
    }
}

/// What is done to a range of elements and their two means.
type OnMeans<'f> = dyn for<'a> FnMut(Range<usize>, [&'a mut Part; 2]) -> Result<()> + 'f;

/// Elements in parts that are in memory at a time, each of whole blocks.
fn in_parts(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(OF_FILE).map(move |first| first..len.min(first + OF_FILE))
}

impl Blocks {
    /// What zeros are.
    fn new(file: Option<&Arc<OffloadFile>>, len: usize) -> Result<Self> {
        let maps: [&Map; 2] = [&SIGNED, &UNSIGNED];
        let Some(file) = file else { return Ok(Self::Here(maps.map(|map| Part::new(map, len)))) };
        let parts = [PartInFile::new(file, len)?, PartInFile::new(file, len)?];
        for (part, map) in parts.iter().zip(maps) {
            in_parts(len).try_for_each(|elements| part.write(&elements, &Part::new(map, elements.len())))?;
        }
        Ok(Self::InFile(parts))
    }

    /// What was saved.
    fn of(file: Option<&Arc<OffloadFile>>, parts: [Part; 2]) -> Result<Self> {
        let Some(file) = file else { return Ok(Self::Here(parts)) };
        let of_file = |part: &Part| -> Result<PartInFile> {
            let there = PartInFile::new(file, part.codes.len())?;
            there.write(&(0..part.codes.len()), part)?;
            Ok(there)
        };
        Ok(Self::InFile([of_file(&parts[0])?, of_file(&parts[1])?]))
    }

    /// Calls `f` with ranges of elements and what the means of these are, to be changed: all elements once.
    fn each(&mut self, len: usize, f: &mut OnMeans<'_>) -> Result<()> {
        match self {
            Self::Here([first, second]) => f(0..len, [first, second]),
            Self::OnCard([first, second]) => {
                *self = Self::Here([Part::read(first)?, Part::read(second)?]);
                self.each(len, f)
            }
            Self::InFile([first, second]) => in_parts(len).try_for_each(|elements| {
                let (mut m, mut v) = (first.read(elements.clone())?, second.read(elements.clone())?);
                f(elements.clone(), [&mut m, &mut v])?;
                first.write(&elements, &m)?;
                second.write(&elements, &v)
            }),
        }
    }

    /// The same on a card.
    fn on_card(self, card: &Arc<Card>) -> Result<[BlocksOnCard; 2]> {
        let put = |part: &Part| BlocksOnCard::of(card, &part.codes, &part.scales);
        Ok(match self {
            Self::Here([first, second]) => [put(&first), put(&second)],
            Self::OnCard(parts) => parts,
            Self::InFile([first, second]) => [put(&first.read(0..first.len)?), put(&second.read(0..second.len)?)],
        })
    }

    /// Codes and scales of the first mean (0) or the second (1), as they are saved, to be made later.
    fn pieces<'a>(&'a self, name: &str, i: usize, into: &mut Vec<Piece<'a>>) {
        let len = match self {
            Self::Here(parts) => parts[i].codes.len(),
            Self::OnCard(parts) => parts[i].len(),
            Self::InFile(parts) => parts[i].len,
        };
        let codes = move || match self {
            Self::Here(parts) => codes_to_save(&parts[i].codes),
            Self::OnCard(parts) => codes_to_save(&parts[i].codes()?),
            Self::InFile(parts) => codes_to_save(&parts[i].codes(&(0..len))?),
        };
        let scales = move || match self {
            Self::Here(parts) => Ok(Tensor::new(&parts[i].scales[..], &Device::Cpu)?),
            Self::OnCard(parts) => Ok(Tensor::new(parts[i].scales()?, &Device::Cpu)?),
            Self::InFile(parts) => Ok(Tensor::new(parts[i].scales(&(0..len))?, &Device::Cpu)?),
        };
        into.push(Piece::new(format!("{name}.{}", CODES[i]), DType::BF16, vec![len], codes));
        into.push(Piece::new(format!("{name}.{}", SCALES[i]), DType::F32, vec![len.div_ceil(BLOCK)], scales));
    }
}

/// The names of what is saved: codes and scales.
const CODES: [&str; 2] = ["exp_avg_codes", "exp_avg_sq_codes"];
const SCALES: [&str; 2] = ["exp_avg_scales", "exp_avg_sq_scales"];

impl AdamW8bit {
    /// Without state yet.
    pub fn new(lr: f64, betas: [f64; 2], eps: f64, weight_decay: f64) -> Self {
        Self { plain: AdamW::new(lr, betas, eps, weight_decay), blocks: ByPlace::default(), file: None }
    }

    /// Keeps its state in this file, before there is any.
    pub(super) fn keep_in(mut self, file: Option<&Arc<OffloadFile>>) -> Self {
        self.plain = self.plain.keep_in(file);
        self.file = file.cloned();
        self
    }

    /// Moves parameters whose state is in blocks, on their card.
    fn update_blocks(&mut self, all: &[(&Parameter, &Gradient)], lr: f64, scale: f64, step: u64) -> Result<()> {
        let all: Vec<(&Parameter, &OnCard)> =
            all.iter().filter_map(|(parameter, gradient)| Some((*parameter, gradient.on_card()?))).collect();
        let Some(card) = all.first().map(|(_, gradient)| gradient.card()) else { return Ok(()) };
        let mut state = Vec::with_capacity(all.len());
        for (parameter, _) in &all {
            let kept = self.blocks.take(parameter).map_or_else(|| Blocks::new(None, parameter.var().elem_count()), Ok);
            state.push(kept?.on_card(card)?);
        }
        let moves = all.iter().zip(&mut state).map(|((parameter, gradient), means)| {
            let key = Dropout::mix(rounding_key(parameter, step), 0);
            Move8bit { var: parameter.var(), gradient, means, key }
        });
        let AdamW { betas, eps, weight_decay, .. } = self.plain;
        let rule = tune_cuda::AdamW { lr, betas, eps, weight_decay };
        let maps = Maps { first: SIGNED.tables(), second: UNSIGNED.tables() };
        let result = card.step_8bit(Step8bit { rule, maps, scale, step }, moves.collect());
        for ((parameter, _), means) in all.iter().zip(state) {
            self.blocks.insert(parameter, Blocks::OnCard(means));
        }
        result
    }

    /// Bytes of each thing that is kept on a card for a parameter of this many numbers.
    pub(super) fn parts_on_card(elements: usize) -> Vec<usize> {
        let mean = if elements < LEAST { vec![4 * elements] } else { vec![elements, 4 * elements.div_ceil(BLOCK)] };
        mean.repeat(2)
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
        if gradient.card().is_some() {
            return self.update_blocks(&[(parameter, gradient)], lr, scale, step);
        }
        let len = parameter.var().elem_count();
        if self.blocks.get(parameter).is_none() {
            self.blocks.insert(parameter, Blocks::new(self.file.as_ref(), len)?);
        }
        let Some(blocks) = self.blocks.get_mut(parameter) else { return Ok(()) };
        let rule = self.plain.rule(lr, scale, step);
        let gradient = gradient.values::<f32>()?;
        let round = rounded(rounding(parameter, step));
        if gradient.len() != len {
            return Err(Error::Training(format!("`{}` has a gradient of another size", parameter.name())));
        }
        blocks.each(len, &mut |part, means| {
            let (begin, gradient) = (part.start, &gradient[part.clone()]);
            write(parameter.var(), |weight, all| match weight {
                CpuStorage::F32(w) => sweep(&mut w[all][part], gradient, means, &rule, |_, w| w),
                CpuStorage::BF16(w) => sweep(&mut w[all][part], gradient, means, &rule, |i, w| round(begin + i, w)),
                other => bail!("update: tensors of {:?} are not trained", other.dtype()),
            })?;
            Ok(())
        })
    }

    fn works_on_cards(&self) -> bool {
        true
    }

    fn update_all(&mut self, all: &[(&Parameter, &Gradient)], lr: f64, scale: f64, step: u64) -> Result<()> {
        let (blocks, plain): (Vec<(&Parameter, &Gradient)>, Vec<_>) =
            all.iter().partition(|(parameter, gradient)| is_in_blocks(parameter) && gradient.card().is_some());
        let (here, small): (Vec<(&Parameter, &Gradient)>, Vec<_>) =
            plain.iter().partition(|(parameter, _)| is_in_blocks(parameter));
        here.iter().try_for_each(|(parameter, gradient)| self.update(parameter, gradient, lr, scale, step))?;
        self.plain.update_all(&small, lr, scale, step)?;
        self.update_blocks(&blocks, lr, scale, step)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        made(&self.state_pieces()?)
    }

    fn state_pieces(&self) -> Result<Vec<Piece<'_>>> {
        let mut pieces = self.plain.state_pieces()?;
        for (_, name, blocks) in self.blocks.iter() {
            (0..2).for_each(|i| blocks.pieces(name, i, &mut pieces));
        }
        Ok(pieces)
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
                (Some(first), Some(second)) => {
                    self.blocks.insert(parameter, Blocks::of(self.file.as_ref(), [first, second])?);
                }
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
