//! An optimizer whose state is in a file: room on the disk is taken before the first step.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::{Gradient, Optimizer, OptimizerConfig};
use crate::Result;
use crate::models::{Parameter, Piece, Trainable};
use crate::offload::OffloadFile;

/// An optimizer that keeps its state in a file, whose blocks on disk are taken as soon as it is known what is trained.
pub(super) struct Offloaded {
    optimizer: Box<dyn Optimizer>,
    file: Arc<OffloadFile>,
    config: OptimizerConfig,
    is_reserved: bool,
}

impl Offloaded {
    /// `optimizer` is what `config` says, and its state goes to `file`.
    pub(super) fn new(optimizer: Box<dyn Optimizer>, file: Arc<OffloadFile>, config: OptimizerConfig) -> Self {
        Self { optimizer, file, config, is_reserved: false }
    }

    fn reserve(&mut self, parameters: &Trainable) -> Result<()> {
        if !self.is_reserved {
            let bytes = parameters.iter().map(|parameter| {
                let dims = parameter.var().dims();
                self.config.state_bytes(parameter.name(), dims) - self.config.held_bytes(parameter.name(), dims)
            });
            self.file.reserve(bytes.sum())?;
            self.is_reserved = true;
        }
        Ok(())
    }
}

impl Optimizer for Offloaded {
    fn base_lr(&self) -> f64 {
        self.optimizer.base_lr()
    }

    fn prepare(&mut self, parameter: &Parameter, step: u64) -> Result<()> {
        self.optimizer.prepare(parameter, step)
    }

    fn prepare_all(&mut self, parameters: &Trainable, step: u64) -> Result<()> {
        self.reserve(parameters)?;
        self.optimizer.prepare_all(parameters, step)
    }

    fn update(&mut self, parameter: &Parameter, gradient: &Gradient, lr: f64, scale: f64, step: u64) -> Result<()> {
        self.optimizer.update(parameter, gradient, lr, scale, step)
    }

    fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.optimizer.state()
    }

    fn state_pieces(&self) -> Result<Vec<Piece<'_>>> {
        self.optimizer.state_pieces()
    }

    fn set_state(&mut self, state: BTreeMap<String, Tensor>, parameters: &Trainable) -> Result<()> {
        self.reserve(parameters)?;
        self.optimizer.set_state(state, parameters)
    }
}
