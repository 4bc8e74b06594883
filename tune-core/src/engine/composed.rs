//! A block at a time through candle's graph: each block's input is a fresh variable, so its backward
//! pass is a graph of its own, seeded with the gradient from above.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, Var};

use super::{GradientSink, RunOptions, lost, lowest_trained};
use crate::Result;
use crate::data::Batch;
use crate::models::{Decoder, Pass};
use crate::ops::cross_entropy;
use crate::optim::add_assign;

/// What a block leaves behind for its backward pass.
struct Saved {
    input: Tensor,
    /// The output with its graph; `None` if the block is to be run again.
    output: Option<Tensor>,
}

/// See [`super::forward_backward`].
pub(super) fn forward_backward(
    model: &Decoder,
    batch: &Batch,
    options: RunOptions,
    sink: &mut dyn GradientSink,
) -> Result<f64> {
    let pass = model.pass(batch, options.dropout);
    let train_embedding = model.trains_embedding();
    let lowest = lowest_trained(model);

    let embedded = model.embed(batch)?;
    let mut x_bsh = embedded.detach();
    let mut saved = Vec::with_capacity(model.blocks.len() - lowest);
    for block in &model.blocks {
        if block.index < lowest {
            x_bsh = block.forward(&x_bsh, &pass)?.detach();
            continue;
        }
        let wants_input = train_embedding || block.index > lowest;
        let input = if wants_input { variable(&x_bsh)? } else { x_bsh };
        let output = block.forward(&input, &pass)?;
        x_bsh = output.detach();
        saved.push(Saved { input, output: (!options.activation_checkpointing).then_some(output) });
    }

    let below = lowest < model.blocks.len();
    let (sum, mut held) = run_top(model, batch, &pass, &x_bsh, options.scale, below, sink)?;
    drop(x_bsh);
    if !sum.is_finite() {
        return Ok(sum);
    }
    while let Some(Saved { input, output }) = saved.pop() {
        let block = &model.blocks[lowest + saved.len()];
        let output = match output {
            Some(output) => output,
            None => block.forward(&input, &pass)?,
        };
        let Some(gradient) = held.below.take() else { return Err(lost("the residual stream")) };
        let mut grads = seeded_backward(&output, gradient)?;
        drop(output);
        emit(model, &format!("model.layers.{}.", block.index), &mut grads, sink)?;
        held.below = grads.remove(&input);
    }
    if train_embedding {
        let Some(gradient) = held.below.take() else { return Err(lost("the residual stream")) };
        let mut grads = seeded_backward(&embedded, gradient)?;
        for (name, var) in model.trainable_under("model.embed_tokens.") {
            let gradient = grads.remove(var).ok_or_else(|| lost(name))?;
            if let Some(tied) = held.tied.take() {
                add_assign(&gradient, &tied)?;
            }
            sink.take(name, var, gradient.into())?;
        }
    }
    Ok(sum)
}

/// Gradients that go on below the top of the model.
struct Held {
    /// Of the last block's output.
    below: Option<Tensor>,
    /// Of the embedding table in its role as output layer.
    tied: Option<Tensor>,
}

/// Last norm, output layer and loss, forward and back.
fn run_top(
    model: &Decoder,
    batch: &Batch,
    pass: &Pass,
    x_bsh: &Tensor,
    scale: f64,
    below: bool,
    sink: &mut dyn GradientSink,
) -> Result<(f64, Held)> {
    let input = if below { variable(x_bsh)? } else { x_bsh.clone() };
    let normed = model.final_norm(&input)?;
    let head = model.head(pass);
    let loss = cross_entropy(&normed.detach(), &head, &batch.targets, Some(scale))?;
    let mut held = Held { below: None, tied: None };
    if !loss.sum.is_finite() {
        return Ok((loss.sum, held));
    }
    let gradients = loss.gradients.ok_or_else(|| lost("the output layer"))?;
    if let Some(gradient) = gradients.weight {
        if model.config.tie_word_embeddings {
            held.tied = Some(gradient);
        } else {
            take_named(model, "lm_head.weight", gradient, sink)?;
        }
    }
    if let Some((a, b)) = gradients.lora {
        take_named(model, "lm_head.lora_A.weight", a, sink)?;
        take_named(model, "lm_head.lora_B.weight", b, sink)?;
    }
    if normed.track_op() {
        let mut grads = seeded_backward(&normed, gradients.hidden)?;
        emit(model, "model.norm.", &mut grads, sink)?;
        held.below = grads.remove(&input);
    }
    Ok((loss.sum, held))
}

/// See [`super::evaluate`].
pub(super) fn evaluate(model: &Decoder, batch: &Batch) -> Result<f64> {
    let pass = model.pass(batch, None);
    let mut x_bsh = model.embed(batch)?.detach();
    for block in &model.blocks {
        x_bsh = block.forward(&x_bsh, &pass)?.detach();
    }
    let normed = model.final_norm(&x_bsh)?.detach();
    Ok(cross_entropy(&normed, &model.head(&pass), &batch.targets, None)?.sum)
}

fn variable(t: &Tensor) -> Result<Tensor> {
    Ok(Var::from_tensor(t)?.into_inner())
}

fn take_named(model: &Decoder, name: &str, gradient: Tensor, sink: &mut dyn GradientSink) -> Result<()> {
    let var = model.trainable().get(name).ok_or_else(|| lost(name))?;
    sink.take(name, var, gradient.into())
}

/// Hands over the gradients of everything trained below `prefix`.
fn emit(model: &Decoder, prefix: &str, grads: &mut GradStore, sink: &mut dyn GradientSink) -> Result<()> {
    for (name, var) in model.trainable_under(prefix) {
        let gradient = grads.remove(var).ok_or_else(|| lost(name))?;
        sink.take(name, var, gradient.into())?;
    }
    Ok(())
}

/// The backward pass from `output`, whose gradient is `gradient`.
fn seeded_backward(output: &Tensor, gradient: Tensor) -> Result<GradStore> {
    let loss =
        if output.device().is_cpu() { output.apply_op1(Seed { gradient })? } else { (output * gradient)?.sum_all()? };
    Ok(loss.backward()?)
}

/// Stands for a loss whose gradient is known.
struct Seed {
    gradient: Tensor,
}

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, x: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let zero = match candle_core::backend::BackendStorage::dtype(x) {
            DType::F64 => CpuStorage::F64(vec![0.0]),
            DType::BF16 => CpuStorage::BF16(vec![half::bf16::ZERO]),
            _ => CpuStorage::F32(vec![0.0]),
        };
        Ok((zero, Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.gradient.clone()))
    }
}
