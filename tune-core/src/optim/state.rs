//! The state of parameters between steps: in memory, on a card, or in a file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};

use super::by_place::ByPlace;
use super::values::Real;
use crate::engine::OnCard;
use crate::models::{Parameter, Piece, Trainable};
use crate::offload::{OffloadFile, Region};
use crate::{Error, Result};

/// Elements of a state in a file that are in memory at a time.
pub(super) const AT_ONCE: usize = 1 << 20;

/// The state tensors of parameters, for one part of an optimizer's state.
#[derive(Debug, Default)]
pub(super) struct StatePart {
    kept: ByPlace<Kept>,
    /// Where it is kept, if not in memory.
    file: Option<Arc<OffloadFile>>,
}

/// The state of one parameter, where its steps are taken.
#[derive(Debug)]
enum Kept {
    Here(Tensor),
    OnCard(OnCard),
    InFile(InFile),
}

/// A tensor in a file.
#[derive(Debug)]
pub(super) struct InFile {
    region: Region,
    shape: Shape,
    dtype: DType,
}

/// The state of a parameter that is moved on the processor.
#[derive(Debug, Clone, Copy)]
pub(super) enum State<'a> {
    Here(&'a Tensor),
    InFile(&'a InFile),
}

impl State<'_> {
    pub(super) fn shape(&self) -> &Shape {
        match self {
            Self::Here(state) => state.shape(),
            Self::InFile(state) => &state.shape,
        }
    }
}

/// What a parameter's state is computed in.
pub(super) fn dtype_of(parameter: &Parameter) -> DType {
    if parameter.var().dtype() == DType::F64 { DType::F64 } else { DType::F32 }
}

impl StatePart {
    /// Keeps it in a file from now on, before there is any.
    pub(super) fn keep_in(&mut self, file: Option<&Arc<OffloadFile>>) {
        self.file = file.cloned();
    }

    pub(super) fn has(&self, parameter: &Parameter) -> bool {
        self.kept.get(parameter).is_some()
    }

    /// The parameter's state for the processor, zero at first.
    pub(super) fn get(&mut self, parameter: &Parameter) -> Result<State<'_>> {
        let fresh = match (self.kept.get(parameter), &self.file) {
            (Some(Kept::Here(_) | Kept::InFile(_)), _) => None,
            (Some(Kept::OnCard(state)), _) => Some(Kept::Here(state.read()?)),
            (None, Some(file)) => {
                let (shape, dtype) = (parameter.var().shape().clone(), dtype_of(parameter));
                Some(Kept::InFile(InFile::zeros(file, shape, dtype)?))
            }
            (None, None) => {
                let var = parameter.var();
                // Written zeros: those that the system promises would fault twice, when read and when written.
                let zeros = Tensor::zeros(var.shape(), dtype_of(parameter), var.device())?;
                zeros.zero_set()?;
                Some(Kept::Here(zeros))
            }
        };
        if let Some(fresh) = fresh {
            self.kept.insert(parameter, fresh);
        }
        match self.kept.get(parameter) {
            Some(Kept::Here(state)) => Ok(State::Here(state)),
            Some(Kept::InFile(state)) => Ok(State::InFile(state)),
            _ => Err(Error::Training(format!("no optimizer state for `{}`", parameter.name()))),
        }
    }

    /// The same as a whole: the very tensor where it is in memory, else a copy.
    pub(super) fn whole(&mut self, parameter: &Parameter) -> Result<Tensor> {
        match self.get(parameter)? {
            State::Here(state) => Ok(state.clone()),
            State::InFile(state) => state.tensor(),
        }
    }

    /// Keeps `state`, which nobody else may hold, in place of what was there.
    pub(super) fn put(&mut self, parameter: &Parameter, state: Tensor) -> Result<()> {
        let state = match (self.kept.take(parameter), &self.file) {
            (Some(Kept::InFile(there)), _) => {
                there.fill(&state)?;
                Kept::InFile(there)
            }
            (_, Some(file)) => {
                let there = InFile::zeros(file, state.shape().clone(), state.dtype())?;
                there.fill(&state)?;
                Kept::InFile(there)
            }
            (_, None) => Kept::Here(state),
        };
        self.kept.insert(parameter, state);
        Ok(())
    }

    /// Takes back what [`StatePart::whole`] gave, which has changed.
    pub(super) fn give_back(&self, parameter: &Parameter, state: &Tensor) -> Result<()> {
        match self.kept.get(parameter) {
            Some(Kept::InFile(there)) => there.fill(state),
            _ => Ok(()),
        }
    }

    /// Takes the parameter's state out, on a card; zero at first.
    pub(super) fn take_on(&mut self, card: &Arc<crate::engine::Card>, parameter: &Parameter) -> Result<OnCard> {
        match self.kept.take(parameter) {
            Some(Kept::OnCard(state)) => Ok(state),
            Some(Kept::Here(state)) => OnCard::of(card, &state),
            Some(Kept::InFile(state)) => OnCard::of(card, &state.tensor()?),
            None => Ok(OnCard::zeros(card, parameter.var().shape())),
        }
    }

    pub(super) fn put_on_card(&mut self, parameter: &Parameter, state: OnCard) {
        self.kept.insert(parameter, Kept::OnCard(state));
    }

    /// Adds what is saved, by `<parameter>.<part>`.
    pub(super) fn pieces<'a>(&'a self, part: &str, into: &mut Vec<Piece<'a>>) {
        into.extend(self.kept.iter().map(|(_, name, state)| {
            let name = format!("{name}.{part}");
            match state {
                Kept::Here(state) => Piece::of(&name, state),
                Kept::OnCard(state) => Piece::new(name, DType::F32, state.shape().dims().to_vec(), || state.read())
                    .copied_by(|| Some(state.begin_copy())),
                Kept::InFile(state) => Piece::new(name, state.dtype, state.shape.dims().to_vec(), || state.tensor()),
            }
        }));
    }

    /// Splits `state` by the parts of its names.
    pub(super) fn load(
        state: BTreeMap<String, Tensor>,
        parts: &mut [(&str, &mut Self)],
        parameters: &Trainable,
    ) -> Result<()> {
        for (key, tensor) in state {
            let found = parts.iter_mut().find_map(|(part, state)| {
                let name = key.strip_suffix(*part)?.strip_suffix('.')?;
                Some((name.to_string(), state))
            });
            let (name, part) =
                found.ok_or_else(|| Error::setup(format!("the saved optimizer state `{key}` is not this optimizer's; resume with the optimizer that the run was started with")))?;
            match parameters.get(&name) {
                Some(parameter) if parameter.var().shape() == tensor.shape() => {
                    let tensor = tensor.to_device(parameter.var().device())?;
                    // A copy of its own: the optimizer changes it in place. A file is one.
                    let own = if part.file.is_some() { tensor } else { tensor.copy()? };
                    part.put(parameter, own)?;
                }
                _ => {
                    return Err(Error::setup(format!(
                        "the saved optimizer state `{key}` {:?} fits no parameter of this run; resume with the settings that the run was started with",
                        tensor.dims()
                    )));
                }
            }
        }
        Ok(())
    }
}

impl InFile {
    fn zeros(file: &Arc<OffloadFile>, shape: Shape, dtype: DType) -> Result<Self> {
        let region = file.take((shape.elem_count() * dtype.size_in_bytes()) as u64)?;
        Ok(Self { region, shape, dtype })
    }

    /// Elements from `first` on.
    fn read<R: Real>(&self, first: usize, into: &mut [R]) -> Result<()> {
        self.check(R::DTYPE)?;
        self.region.read((first * size_of::<R>()) as u64, bytemuck::cast_slice_mut(into))
    }

    fn write<R: Real>(&self, first: usize, from: &[R]) -> Result<()> {
        self.check(R::DTYPE)?;
        self.region.write((first * size_of::<R>()) as u64, bytemuck::cast_slice(from))
    }

    fn check(&self, dtype: DType) -> Result<()> {
        match dtype == self.dtype {
            true => Ok(()),
            false => {
                Err(Error::Training(format!("optimizer state is kept in {:?}, and asked for in {dtype:?}", self.dtype)))
            }
        }
    }

    fn tensor(&self) -> Result<Tensor> {
        fn of<R: Real>(state: &InFile) -> Result<Tensor> {
            let mut values = vec![R::zero(); state.shape.elem_count()];
            state.read(0, &mut values)?;
            Ok(Tensor::from_vec(values, state.shape.clone(), &Device::Cpu)?)
        }
        if self.dtype == DType::F64 { of::<f64>(self) } else { of::<f32>(self) }
    }

    fn fill(&self, with: &Tensor) -> Result<()> {
        fn of<R: Real>(state: &InFile, with: &Tensor) -> Result<()> {
            let values = super::values::Values::<R>::of(with)?;
            state.write::<R>(0, &values)
        }
        if with.shape() != &self.shape {
            return Err(Error::Training(format!(
                "optimizer state of {:?} is kept, and given {:?}",
                self.shape,
                with.shape()
            )));
        }
        if self.dtype == DType::F64 { of::<f64>(self, with) } else { of::<f32>(self, with) }
    }
}

/// What is done to a range of elements and the parts of their state.
pub(super) type OnParts<'f, R> = dyn for<'a> FnMut(Range<usize>, Vec<&'a mut [R]>) -> candle_core::Result<()> + 'f;

/// Calls `f` with ranges of elements and what several tensors of `len` elements in files have there, to be changed: all elements once.
pub(super) fn in_parts<R: Real>(files: &[&InFile], len: usize, f: &mut OnParts<'_, R>) -> Result<()> {
    let mut buffers: Vec<Vec<R>> = files.iter().map(|_| vec![R::zero(); len.min(AT_ONCE)]).collect();
    for first in (0..len).step_by(AT_ONCE) {
        let part = first..len.min(first + AT_ONCE);
        let next = part.end..len.min(part.end + AT_ONCE);
        for (file, buffer) in files.iter().zip(&mut buffers) {
            file.read(first, &mut buffer[..part.len()])?;
            if !next.is_empty() {
                file.region.will_read((next.start * size_of::<R>()) as u64, (next.len() * size_of::<R>()) as u64);
            }
        }
        f(part.clone(), buffers.iter_mut().map(|buffer| &mut buffer[..part.len()]).collect())?;
        for (file, buffer) in files.iter().zip(&buffers) {
            file.write(first, &buffer[..part.len()])?;
        }
    }
    Ok(())
}

/// Makes all of them, by name.
pub(super) fn made(pieces: &[Piece<'_>]) -> Result<BTreeMap<String, Tensor>> {
    pieces.iter().map(|piece| Ok((piece.name.clone(), piece.make()?))).collect()
}
