//! Checkpoints of a run: when one is saved, what is in it, and where it is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use tune_config::cli::signals;

use super::Run;
use crate::Result;
use crate::checkpoint::run::Saved;
use crate::checkpoint::state::TrainingState;
use crate::optim::Optimizer;
use crate::recipe::background::{Background, Copied, CopiedPiece, Place};
use crate::recipe::outline::fingerprints;
use crate::recipe::together::Together;
use crate::recipe::{Weights, steps};

impl Run {
    /// Whether a checkpoint is to be saved now.
    pub fn saves(&self) -> bool {
        self.position.saves(&self.outline.run.checkpointer) || self.stops_early()
    }

    /// Waits for the checkpoint that is being written, if one is.
    ///
    /// # Errors
    /// Where it could not be written.
    pub(super) fn finish_saving(&mut self) -> Result<()> {
        if let Some(background) = self.background.take() {
            self.last_saved = Some(background.wait()?);
        }
        Ok(())
    }

    /// Whether training goes on while the run is saved as it is now: not behind the last step, and not where it is to end.
    fn saves_in_background(&self) -> bool {
        let is_over = self.position.epoch >= self.outline.plan().epochs || self.stops_early();
        let ends = is_over || self.is_ending.get() || signals::requested().is_some();
        self.outline.run.enable_async_checkpointing && !ends
    }

    /// What is saved from here on is saved at once.
    pub(in crate::recipe) fn ends(&self) {
        self.is_ending.set(true);
    }

    /// Saves a checkpoint of the run as it is now, and deletes those that are not to be kept. Waits until all data is
    /// tokenized: a checkpoint says what it was trained on. Where the config wants that and training goes on, a copy is written in the
    /// background, and what is returned will be there when it is written: [`Run::last_saved`] says so.
    ///
    /// # Errors
    /// Data that cannot be tokenized, weights that cannot be gathered from all processes, or a folder that cannot be
    /// written: full disk, no permission. Where it is written in the background, those of the checkpoint before.
    pub fn save(&mut self, weights: &Weights<'_>, optimizer: &dyn Optimizer) -> Result<Saved> {
        self.settle()?;
        self.tell_of_waiting()?;
        let state = self.training_state()?;
        let before = self.finish_saving();
        let (epoch, step) = (self.position.epoch_of_last_step(), self.position.step);
        if let Some(saved) = self.last_saved.clone()
            && before.is_ok()
            && self.is_ending.get()
            && self.outline.group.is_single()
            && saved.step == step
        {
            return Ok(saved);
        }
        let in_background = self.saves_in_background();
        let pieces = weights.pieces(optimizer.state_pieces()?);
        let together = Together::new(&self.mesh, &pieces);
        let (form, of_models) = weights.form();
        let saved = match (self.place(), before) {
            (None, _) => together.serve(step, epoch)?,
            // Others are told, too.
            (Some(_), Err(error)) => together.end(Err(error))?,
            (Some(place), Ok(())) if in_background => {
                let copy = || {
                    let asked = together.asked();
                    let pieces = asked.iter().map(|piece| CopiedPiece::of(piece, self.mesh.divides()));
                    let pieces = pieces.collect::<Result<_>>()?;
                    Ok(Copied { state, form: form.clone(), pieces, of_models, bytes: weights.bytes() })
                };
                let saved = Saved { path: place.run_dir.path_of(epoch, step), step, epoch };
                let begun = copy().and_then(|copied| Background::begin(saved.clone(), copied, place));
                let (saved, background) = match begun {
                    Ok(background) => (Ok(saved), Some(background)),
                    Err(error) => (Err(error), None),
                };
                let saved = together.end(saved)?;
                self.background = background;
                return Ok(saved);
            }
            (Some(place), Ok(())) => {
                let asked = together.asked();
                let console = Some(self.metrics.console());
                together.end(place.write(&state, form, asked.split_at(of_models), weights.bytes(), console))?
            }
        };
        match in_background {
            true => self.background = Some(Background::elsewhere(saved.clone())),
            false => self.last_saved = Some(saved.clone()),
        }
        Ok(saved)
    }

    /// Says so where a checkpoint is to wait until all data is tokenized.
    fn tell_of_waiting(&mut self) -> Result<()> {
        if !self.train_data.wait(steps::PATIENCE)? {
            let way_out = match signals::requested() {
                Some(_) => "; another Ctrl-C ends the run at once, without it",
                None => "",
            };
            let why = "the checkpoint tells what it was trained on";
            self.console().note(&format!("Waiting until all data is tokenized: {why}{way_out}"));
        }
        Ok(())
    }

    /// What a checkpoint says of the run, but for the optimizer's state. Waits until all data is tokenized.
    ///
    /// # Errors
    /// A record that cannot be tokenized.
    fn training_state(&self) -> Result<TrainingState> {
        Ok(TrainingState {
            position: self.position,
            total_steps: self.outline.plan().total_steps(self.train_data.len()?),
            seed: self.seed,
            now: self.tokenizer.now(),
            settings: self.outline.settings.clone(),
            inputs: fingerprints(&self.train_data, &self.shape, &self.weight_fingerprints)?,
            extra: self.extra.clone().into_iter().chain([self.measured.extra()]).collect(),
            optimizer: BTreeMap::new(),
        })
    }

    /// Where this process writes checkpoints, if it does, and what goes with them.
    fn place(&self) -> Option<Place> {
        Some(Place {
            run_dir: Arc::clone(self.run_dir.as_ref()?),
            config: self.outline.run.checkpointer.clone(),
            by: self.outline.best_by().to_owned(),
            base: Arc::clone(&self.base),
            tokenizer: Arc::clone(&self.tokenizer_files),
            stop: self.tokenizer.stop_tokens().clone(),
            shape: self.shape.clone(),
            head: self.outline.head.clone(),
            pad: self.tokenizer.pad(),
        })
    }
}
