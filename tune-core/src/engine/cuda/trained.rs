//! What is trained on a card: weights, gradients, and the state of optimizers, which stay there from step to step.
//!
//! A model's tensors are on the processor. A trained one is copied to the card when it is first read; from then on the card
//! has the newest numbers, until [`Card::fetch`] brings them back. Whoever changes the tensor says so ([`Card::forget`]).

use std::any::Any;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use bytemuck::Pod;
use candle_core::{DType, Device, Shape, Storage, Tensor, TensorId, Var};
use half::bf16;
use tune_cuda::{Buffer, Context, Moved};

use super::Number;
use super::card::{Card, lock, of_card};
use crate::models::CopyOfPiece;
use crate::{Error, Result};

/// A trained parameter on a card.
#[derive(Debug)]
pub(super) struct Trained {
    pub(super) numbers: Numbers,
    /// Numbers of f32 as a model in bf16 reads them, if one does.
    pub(super) rounded: Option<Arc<Buffer<bf16>>>,
    /// Whether they are newer than those of the tensor.
    pub(super) ahead: bool,
}

/// In the type of the tensor.
#[derive(Debug)]
pub(super) enum Numbers {
    F32(Arc<Buffer<f32>>),
    Bf16(Arc<Buffer<bf16>>),
}

/// Numbers of f32 on a card that belong to a parameter: its gradient, or a part of an optimizer's state.
#[derive(Debug)]
pub(crate) struct OnCard {
    pub(super) card: Arc<Card>,
    pub(super) values: Buffer<f32>,
    pub(super) shape: Shape,
    /// What a step multiplies them by, if it is a gradient that is clipped.
    pub(super) factor: Option<Factor>,
}

/// A number on a card that gradients are multiplied by.
#[derive(Debug, Clone)]
pub(crate) struct Factor {
    card: Arc<Card>,
    value: Arc<Buffer<f32>>,
}

/// One parameter of a step, and what it is moved by.
pub(crate) struct Move<'a> {
    /// The parameter.
    pub(crate) var: &'a Var,
    /// Its gradient.
    pub(crate) gradient: &'a OnCard,
    /// Parts of the optimizer's state.
    pub(crate) first: Option<&'a mut OnCard>,
    pub(crate) second: Option<&'a mut OnCard>,
    pub(crate) third: Option<&'a mut OnCard>,
    /// What random rounding uses.
    pub(crate) key: u64,
}

/// What an optimizer does in a step.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rule {
    /// AdamW, in a step from 1.
    AdamW(tune_cuda::AdamW, u64),
    /// SGD.
    Sgd(tune_cuda::Sgd),
    /// Lion.
    Lion(tune_cuda::Lion),
    /// Schedule-free AdamW, in a step from 1.
    ScheduleFree(tune_cuda::ScheduleFree, u64),
    /// Goes this share of the way from the first part of the state to what is given as the gradient; all of it where there is no state.
    Between(f64),
    /// Keeps the weight, and puts in its place a mean that goes this share of the way to it.
    Averaged(f64),
}

/// Sums of squares that a card has been asked for.
#[derive(Debug)]
pub(crate) struct Squares {
    card: Arc<Card>,
    pending: tune_cuda::Squares,
}

impl OnCard {
    pub(crate) fn new(card: &Arc<Card>, values: Buffer<f32>, shape: &Shape) -> candle_core::Result<Self> {
        if values.len() != shape.elem_count() {
            candle_core::bail!("{} numbers on a card for a parameter {shape:?}", values.len());
        }
        Ok(Self { card: Arc::clone(card), values, shape: shape.clone(), factor: None })
    }

    pub(crate) fn zeros(card: &Arc<Card>, shape: &Shape) -> Self {
        let values = card.context.zeros(shape.elem_count());
        Self { values, card: Arc::clone(card), shape: shape.clone(), factor: None }
    }

    /// A copy of a tensor.
    pub(crate) fn of(card: &Arc<Card>, tensor: &Tensor) -> Result<Self> {
        let values = card.context.upload(&numbers::<f32>(tensor)?);
        Ok(Self { card: Arc::clone(card), values, shape: tensor.shape().clone(), factor: None })
    }

    pub(crate) fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// The memory alone.
    pub(crate) fn into_values(self) -> Buffer<f32> {
        self.values
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Begins to copy them to the processor, beside later work.
    pub(crate) fn begin_copy(&self) -> CopyOfPiece {
        copy(&self.card, &self.values, &self.shape)
    }

    /// A copy on the processor, when all work so far is done.
    pub(crate) fn read(&self) -> Result<Tensor> {
        // Who reads them may drop them then.
        self.card.context.join();
        let numbers = self.card.context.download(&self.values).map_err(of_card)?;
        Ok(Tensor::from_vec(numbers, &self.shape, &Device::Cpu)?)
    }

    /// Has the next step multiply them by a factor.
    pub(crate) fn multiply_in_step(&mut self, factor: &Factor) {
        self.factor = Some(factor.clone());
    }

    /// Multiplies them by a factor.
    pub(crate) fn multiply(&mut self, factor: &Factor) {
        let len = self.values.len();
        self.card.context.scale_rows(self.values.view_mut(len), &factor.value);
    }

    /// Adds other numbers of the same parameter.
    pub(crate) fn add(&mut self, other: &Self) {
        let len = other.values.len();
        self.card.context.convert(other.values.view(len), 1.0, true, self.values.view_mut(len));
    }
}

impl Squares {
    /// Asks for the sum of the squares of each of some gradients; `None` if there are none.
    pub(crate) fn of(gradients: &[&OnCard]) -> Option<Self> {
        let card = Arc::clone(&gradients.first()?.card);
        let values: Vec<&Buffer<f32>> = gradients.iter().map(|gradient| &gradient.values).collect();
        let pending = card.context.squares(&values);
        Some(Self { card, pending })
    }

    /// The sums, when they are computed.
    pub(crate) fn read(&self) -> Result<Vec<f64>> {
        self.pending.read().map_err(of_card)
    }

    /// What brings these gradients down to `max_norm`, on the card alone.
    pub(crate) fn clip_factor(&self, max_norm: f64) -> Factor {
        let value = Arc::new(self.card.context.clip_factor(&self.pending, max_norm as f32));
        Factor { card: Arc::clone(&self.card), value }
    }
}

impl Factor {
    /// The number, when all work so far is done.
    pub(crate) fn read(&self) -> Result<f64> {
        let numbers = self.card.context.download(&self.value).map_err(of_card)?;
        Ok(f64::from(numbers.first().copied().unwrap_or(f32::NAN)))
    }
}

impl Trained {
    pub(super) fn of(context: &Context, tensor: &Tensor) -> Result<Self> {
        let numbers = match tensor.dtype() {
            DType::F32 => Numbers::F32(Arc::new(context.upload(&numbers::<f32>(tensor)?))),
            DType::BF16 => Numbers::Bf16(Arc::new(context.upload(&numbers::<bf16>(tensor)?))),
            other => return Err(Error::setup(format!("a card trains numbers of f32 and bf16, not of {other:?}"))),
        };
        Ok(Self { numbers, rounded: None, ahead: false })
    }

    /// As a model of type `T` reads it.
    fn read<T: Number>(&mut self, context: &Context) -> Result<Arc<Buffer<T>>> {
        let numbers: Arc<dyn Any + Send + Sync> = match (&self.numbers, T::IS_BF16) {
            (Numbers::F32(numbers), false) => Arc::<Buffer<f32>>::clone(numbers),
            (Numbers::Bf16(numbers), true) => Arc::<Buffer<bf16>>::clone(numbers),
            (Numbers::F32(numbers), true) => {
                let rounded = self.rounded.get_or_insert_with(|| {
                    let (len, mut rounded) = (numbers.len(), context.buffer(numbers.len()));
                    context.convert(numbers.view(len), 1.0, false, rounded.view_mut(len));
                    Arc::new(rounded)
                });
                Arc::<Buffer<bf16>>::clone(rounded)
            }
            (Numbers::Bf16(_), false) => return Err(Error::setup("a model of f32 trains no weight of bf16")),
        };
        numbers.downcast().map_err(|_| Error::Training("a trained parameter of another type than its model's".into()))
    }

    /// A copy on the processor.
    fn fetched(&self, context: &Context, shape: &Shape) -> Result<Tensor> {
        Ok(match &self.numbers {
            Numbers::F32(numbers) => {
                Tensor::from_vec(context.download(numbers).map_err(of_card)?, shape, &Device::Cpu)?
            }
            Numbers::Bf16(numbers) => {
                Tensor::from_vec(context.download(numbers).map_err(of_card)?, shape, &Device::Cpu)?
            }
        })
    }
}

impl Card {
    /// A trained tensor as a model of type `T` reads it. It is on the card from the first time on.
    pub(super) fn trained<T: Number>(&self, tensor: &Tensor) -> Result<Arc<Buffer<T>>> {
        let mut trained = lock(&self.trained);
        let of = match trained.entry(tensor.id()) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => {
                self.change();
                place.insert(Trained::of(&self.context, tensor)?)
            }
        };
        of.read(&self.context)
    }

    /// Moves parameters by a rule, in one go for each type of weight, with gradients times `scale`. Returns when that is queued.
    ///
    /// # Errors
    /// A tensor that no card trains, and one that a run holds at this moment.
    pub(crate) fn step(&self, rule: Rule, scale: f64, moves: Vec<Move<'_>>) -> Result<()> {
        self.with_trained(moves, |one| one.var, |taken| self.go(rule, scale, taken))
    }

    /// Takes what is trained for each move, and has them written: all are there again afterwards, whatever fails.
    ///
    /// # Errors
    /// A tensor that no card trains, and that of `go`.
    pub(super) fn with_trained<M>(
        &self,
        moves: Vec<M>,
        var: impl Fn(&M) -> &Var,
        go: impl FnOnce(&mut [(TensorId, Trained, M)]) -> Result<()>,
    ) -> Result<()> {
        self.forget_factors();
        // What is being copied for a checkpoint is about to change.
        self.context.join();
        let mut trained = lock(&self.trained);
        // Each is to be written, so that they are taken out meanwhile.
        let mut taken = Vec::with_capacity(moves.len());
        let mut missing = Ok(());
        for one in moves {
            let id = var(&one).id();
            match trained.remove(&id).map_or_else(|| Trained::of(&self.context, var(&one)), Ok) {
                Ok(of) => taken.push((id, of, one)),
                Err(error) => {
                    missing = Err(error);
                    break;
                }
            }
        }
        let result = missing.and_then(|()| go(&mut taken));
        trained.extend(taken.into_iter().map(|(id, of, _)| (id, of)));
        result.and_then(|()| self.check())
    }

    fn go(&self, rule: Rule, scale: f64, taken: &mut [(TensorId, Trained, Move<'_>)]) -> Result<()> {
        let (mut wide, mut narrow) = (Vec::new(), Vec::new());
        // All gradients of a step have the same.
        let factor = taken.first().and_then(|(_, _, one)| one.gradient.factor.clone());
        for (_, trained, one) in taken {
            let Move { gradient, first, second, third, key, .. } = one;
            let state = [first, second, third].map(|part| part.as_deref_mut().map(|part| &mut part.values));
            let copy = trained.rounded.as_mut().map(|copy| Arc::get_mut(copy).ok_or_else(held)).transpose()?;
            trained.ahead = true;
            match &mut trained.numbers {
                Numbers::F32(weight) => wide.push(moved(weight, copy, &gradient.values, state, *key)?),
                Numbers::Bf16(weight) => narrow.push(moved(weight, None, &gradient.values, state, *key)?),
            }
        }
        let factor = factor.as_ref().map(|factor| &*factor.value);
        self.sweep(rule, (scale, factor), wide);
        self.sweep(rule, (scale, factor), narrow);
        Ok(())
    }

    /// Gradients are multiplied by `scale`, and by the number on the card if there is one.
    fn sweep<W: Number>(
        &self,
        rule: Rule,
        (scale, factor): (f64, Option<&Buffer<f32>>),
        moved: Vec<Moved<'_, W, f32>>,
    ) {
        if moved.is_empty() {
            return;
        }
        let mut sweep = self.context.sweep(moved);
        match rule {
            Rule::AdamW(rule, step) => self.context.adamw(&mut sweep, rule, scale as f32, factor, step),
            Rule::Sgd(rule) => self.context.sgd(&mut sweep, rule, scale as f32, factor),
            Rule::Lion(rule) => self.context.lion(&mut sweep, rule, scale as f32, factor),
            Rule::ScheduleFree(rule, step) => self.context.schedule_free(&mut sweep, rule, scale as f32, step),
            Rule::Between(share) => self.context.between(&mut sweep, share),
            Rule::Averaged(share) => self.context.averaged(&mut sweep, share),
        }
    }

    /// A copy of a trained tensor in f32, as the card has it.
    ///
    /// # Errors
    /// A tensor that no card trains.
    pub(crate) fn widened(self: &Arc<Self>, var: &Var) -> Result<OnCard> {
        let mut trained = lock(&self.trained);
        let of = match trained.entry(var.id()) {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => place.insert(Trained::of(&self.context, var)?),
        };
        let len = var.elem_count();
        let mut values = self.context.buffer(len);
        match &of.numbers {
            Numbers::F32(numbers) => self.context.convert(numbers.view(len), 1.0, false, values.view_mut(len)),
            Numbers::Bf16(numbers) => self.context.convert(numbers.view(len), 1.0, false, values.view_mut(len)),
        }
        Ok(OnCard { card: Arc::clone(self), values, shape: var.shape().clone(), factor: None })
    }

    /// Brings the newest numbers of trained parameters into their tensors.
    ///
    /// # Errors
    /// What failed on the card so far.
    pub(crate) fn fetch<'a>(&self, vars: impl IntoIterator<Item = &'a Var>) -> Result<()> {
        let mut trained = lock(&self.trained);
        for var in vars {
            if let Some(trained) = trained.get_mut(&var.id()).filter(|trained| trained.ahead) {
                var.set(&trained.fetched(&self.context, var.shape())?)?;
                trained.ahead = false;
            }
        }
        self.check()
    }

    /// Begins to copy a trained tensor to the processor as the card has it, beside later work; `None` where the tensor itself is as new.
    pub(crate) fn copy_of(self: &Arc<Self>, tensor: &Tensor) -> Option<CopyOfPiece> {
        let trained = lock(&self.trained);
        let of = trained.get(&tensor.id()).filter(|of| of.ahead)?;
        Some(match &of.numbers {
            Numbers::F32(numbers) => copy(self, numbers, tensor.shape()),
            Numbers::Bf16(numbers) => copy(self, numbers, tensor.shape()),
        })
    }

    /// A tensor was changed: the card reads it again.
    pub(crate) fn forget(&self, var: &Var) {
        self.forget_factors();
        self.context.join();
        lock(&self.trained).remove(&var.id());
    }
}

fn moved<'a, W: Number>(
    weight: &'a mut Arc<Buffer<W>>,
    copy: Option<&'a mut Buffer<bf16>>,
    gradient: &'a Buffer<f32>,
    [first, second, third]: [Option<&'a mut Buffer<f32>>; 3],
    key: u64,
) -> Result<Moved<'a, W, f32>> {
    Ok(Moved { weight: Arc::get_mut(weight).ok_or_else(held)?, copy, first, second, third, gradient, key })
}

pub(super) fn held() -> Error {
    Error::Training(
        "a parameter is to be moved while a run reads it; this is a bug of the program, please report it".into(),
    )
}

fn copy<T: candle_core::WithDType + Pod>(card: &Arc<Card>, numbers: &Buffer<T>, shape: &Shape) -> CopyOfPiece {
    let (copy, shape) = (card.context.read_aside(numbers), shape.clone());
    Arc::new(move || Ok(Tensor::from_vec(copy.wait().map_err(of_card)?, &shape, &Device::Cpu)?))
}

/// The numbers of a tensor of this very type.
fn numbers<T: candle_core::WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(storage), Some((start, end))) => Ok(T::cpu_storage_as_slice(storage)?[start..end].to_vec()),
        _ => Err(Error::setup("a card reads tensors of the processor that have no gaps")),
    }
}
