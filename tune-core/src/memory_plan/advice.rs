//! The settings that need less memory.

use std::path::PathBuf;

use candle_core::DType;

use super::{MemoryPlan, Setting};
use crate::Result;
use crate::data::{Batch, Span};

/// The shortest rows that are advised.
const SHORTEST: usize = 64;

/// Settings to change, and where that leads together with the changes before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// As they are written on the command line.
    pub overrides: Vec<String>,
    /// The peak in bytes.
    pub peak: u64,
    /// Whether that fits, with a little to spare.
    pub fits: bool,
}

/// What would make a run fit, or come nearest to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// Whether each of the changes is enough alone; else each is made together with those before it.
    pub each_is_enough: bool,
    /// The changes.
    pub changes: Vec<Change>,
}

/// What is advised leaves one part in so many of its peak free.
const SPARE: u64 = 50;

/// A setting that is being changed, with what its batches are cut to.
#[derive(Clone)]
struct Trial {
    setting: Setting,
    rows: usize,
    len: usize,
}

impl Trial {
    fn setting(&self) -> Setting {
        let mut setting = self.setting.clone();
        if self.rows < setting.batch_size || self.len < usize::MAX {
            let packed = setting.packed;
            let cut = |steps: &mut Vec<Vec<Batch>>| {
                for step in steps {
                    *step = step.iter().flat_map(|batch| parts(batch, self.rows, self.len, packed)).collect();
                }
            };
            cut(&mut setting.steps);
            cut(&mut setting.validation_steps);
        }
        if setting.gradient_accumulation_steps == setting.processes.all() {
            // Of which each process has one.
            setting.steps = setting.steps.into_iter().flatten().map(|batch| vec![batch]).collect();
        }
        setting
    }
}

impl MemoryPlan {
    /// What would make the run fit. Files on a disk, which make its steps slower, are advised only where it does not fit otherwise.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`].
    pub fn advice(&self) -> Result<Advice> {
        for makers in [&IN_MEMORY[..], &TO_DISK[..]] {
            let changes = self.single_changes(makers)?;
            if !changes.is_empty() {
                return Ok(Advice { each_is_enough: true, changes });
            }
            let changes = self.changes(makers)?;
            if changes.iter().any(|change| change.fits) {
                return Ok(Advice { each_is_enough: false, changes });
            }
        }
        Ok(Advice { each_is_enough: false, changes: self.changes(&ALL)? })
    }

    /// Changes of settings one after the other, those first that change least of what is learned, until the run fits
    /// or there are no more. What saves nothing is left out.
    fn changes(&self, makers: &[Maker]) -> Result<Vec<Change>> {
        let mut trial = Trial { setting: self.setting.clone(), rows: self.setting.batch_size, len: usize::MAX };
        let mut peak = self.peak();
        let mut changes = Vec::new();
        for make in makers {
            if self.available.is_some() && self.fits_easily(peak) {
                break;
            }
            let mut best = None;
            for (overrides, next) in make(&trial) {
                let plan = self.like(&next.setting())?;
                let (next_peak, fits) = (plan.peak(), self.fits_easily(plan.peak()));
                if next_peak < peak {
                    peak = next_peak;
                    best = Some((Change { overrides, peak, fits }, next));
                }
                if fits && self.available.is_some() {
                    break;
                }
            }
            if let Some((change, next)) = best {
                trial = next;
                changes.push(change);
            }
        }
        Ok(changes)
    }

    /// Changes of which each is enough alone, those first that change least of what is learned; none without a limit.
    fn single_changes(&self, makers: &[Maker]) -> Result<Vec<Change>> {
        if self.available.is_none() {
            return Ok(Vec::new());
        }
        let trial = Trial { setting: self.setting.clone(), rows: self.setting.batch_size, len: usize::MAX };
        let mut changes: Vec<Change> = Vec::new();
        for make in makers {
            for (overrides, next) in make(&trial) {
                let peak = self.like(&next.setting())?.peak();
                if self.fits_easily(peak) {
                    // Two kinds of change may come to the same.
                    if changes.iter().all(|change| change.overrides != overrides) {
                        changes.push(Change { overrides, peak, fits: true });
                    }
                    break;
                }
            }
        }
        Ok(changes)
    }

    /// Whether a run with this peak fits even if program, tokenizer and data, which are measured, take a little more in
    /// the next process than in this one.
    fn fits_easily(&self, peak: u64) -> bool {
        self.available.as_ref().is_none_or(|available| peak + peak / SPARE <= available.bytes)
    }

    /// The plan of another setting for the same process.
    fn like(&self, setting: &Setting) -> Result<Self> {
        let plan = Self::with_program(setting, self.program)?;
        Ok(Self { so_far: self.so_far, available: self.available.clone(), ..plan })
    }
}

/// Ever more of a kind of change: what to write, and the setting that it makes.
type Trials = Vec<(Vec<String>, Trial)>;

/// Makes a kind of change.
type Maker = fn(&Trial) -> Trials;

/// Each kind that needs no disk, those first that change least of what is learned.
const IN_MEMORY: [Maker; 6] = [checkpointing, in_backward, fewer_rows, in_backward_alone, half_precision, shorter_rows];

/// What can be kept in a file.
const TO_DISK: [Maker; 2] = [state_to_disk, inputs_to_disk];

/// Each kind, those first that change least of what is learned.
const ALL: [Maker; 8] = [
    checkpointing,
    in_backward,
    fewer_rows,
    state_to_disk,
    inputs_to_disk,
    in_backward_alone,
    half_precision,
    shorter_rows,
];

/// The name that stands for a folder in what is advised.
const FOLDER: &str = "FOLDER";

fn one(trial: &Trial, overrides: &[&str], change: impl FnOnce(&mut Setting)) -> Trials {
    let mut next = trial.clone();
    change(&mut next.setting);
    vec![(overrides.iter().map(ToString::to_string).collect(), next)]
}

fn checkpointing(trial: &Trial) -> Trials {
    if trial.setting.activation_checkpointing {
        return Vec::new();
    }
    one(trial, &["enable_activation_checkpointing=true"], |s| s.activation_checkpointing = true)
}

/// Where it is free: nothing is accumulated or clipped.
fn in_backward(trial: &Trial) -> Trials {
    let s = &trial.setting;
    let accumulates = s.gradient_accumulation_steps > s.processes.all();
    if s.optimizer_in_backward != Some(false) || accumulates || s.clips_gradients {
        return Vec::new();
    }
    one(trial, &["optimizer_in_bwd=true"], |s| s.optimizer_in_backward = Some(true))
}

fn in_backward_alone(trial: &Trial) -> Trials {
    let s = &trial.setting;
    if s.optimizer_in_backward != Some(false) {
        return Vec::new();
    }
    let mut overrides = vec!["optimizer_in_bwd=true"];
    let processes = s.processes.all();
    overrides.extend((s.gradient_accumulation_steps > processes).then_some("gradient_accumulation_steps=1"));
    overrides.extend(s.clips_gradients.then_some("clip_grad_norm=null"));
    one(trial, &overrides, |s| {
        s.optimizer_in_backward = Some(true);
        s.gradient_accumulation_steps = processes;
    })
}

/// The optimizer's state, where it has one and nobody copies it.
fn state_to_disk(trial: &Trial) -> Trials {
    let s = &trial.setting;
    let has_none = s.optimizer.has_nothing_to_offload().is_some() || s.optimizer.offload_dir().is_some();
    if has_none || s.card.is_some() || s.copied.is_some() {
        return Vec::new();
    }
    let overrides = format!("optimizer.offload_dir={FOLDER}");
    one(trial, &[overrides.as_str()], |s| s.optimizer = s.optimizer.clone().offloaded_to(PathBuf::from(FOLDER)))
}

/// The inputs of blocks, which are all that is kept where blocks are run again.
fn inputs_to_disk(trial: &Trial) -> Trials {
    let s = &trial.setting;
    if s.card.is_some() || s.activation_offload_dir.is_some() {
        return Vec::new();
    }
    let folder = format!("activation_offload_dir={FOLDER}");
    let mut overrides = vec![folder.as_str()];
    overrides.extend((!s.activation_checkpointing).then_some("enable_activation_checkpointing=true"));
    one(trial, &overrides, |s| {
        s.activation_checkpointing = true;
        s.activation_offload_dir = Some(PathBuf::from(FOLDER));
    })
}

/// Ever fewer rows in a batch, and more batches in a step where that can be.
fn fewer_rows(trial: &Trial) -> Trials {
    let mut trials = Vec::new();
    let mut next = trial.clone();
    let least = if next.setting.mismatched.is_some() { 2 } else { 1 };
    while next.rows > least {
        let samples = next.rows * next.setting.gradient_accumulation_steps;
        next.rows = next.rows.div_ceil(2).max(least);
        let mut overrides = vec![format!("batch_size={}", next.rows)];
        if next.setting.optimizer_in_backward != Some(true) {
            let processes = next.setting.processes.all();
            let each = samples.div_ceil(next.rows).div_ceil(processes);
            next.setting.gradient_accumulation_steps = each * processes;
            overrides.push(format!("gradient_accumulation_steps={each}"));
        }
        if next.setting.rows_of_update.is_none_or(|rows| rows.is_multiple_of(next.rows * next.setting.processes.all()))
        {
            trials.push((overrides, next.clone()));
        }
    }
    trials
}

fn half_precision(trial: &Trial) -> Trials {
    if trial.setting.dtype != DType::F32 {
        return Vec::new();
    }
    one(trial, &["dtype=bf16"], |s| s.dtype = DType::BF16)
}

/// Ever shorter rows.
fn shorter_rows(trial: &Trial) -> Trials {
    let mut trials = Vec::new();
    // The data's samples are not what is learnt from.
    if trial.setting.drawing.is_some() {
        return trials;
    }
    let lens = |batch: &Batch| match trial.setting.packed {
        true => row_lens(batch),
        false => batch.spans.iter().map(|span| span.len).collect(),
    };
    let mut len = largest(&trial.setting).into_iter().flat_map(lens).max().unwrap_or(0);
    while len / 2 >= SHORTEST {
        // Powers of two, as people write them.
        len = (len / 2).next_power_of_two().min(len - 1);
        trials.push((vec![format!("tokenizer.max_seq_len={len}")], Trial { len, ..trial.clone() }));
    }
    trials
}

/// The batch with the most tokens.
pub(super) fn largest(setting: &Setting) -> Option<&Batch> {
    setting.steps.iter().flatten().max_by_key(|batch| batch.tokens())
}

/// The tokens of each row.
fn row_lens(batch: &Batch) -> Vec<usize> {
    let mut lens = vec![0; batch.rows];
    batch.spans.iter().for_each(|span| lens[span.row] += span.len);
    lens
}

/// A batch in parts of `rows` rows, each row cut to `max_len` tokens, or each sample where rows are not packed.
fn parts(batch: &Batch, rows: usize, max_len: usize, packed: bool) -> Vec<Batch> {
    let part = |first: usize| {
        let mut room = vec![max_len; batch.rows];
        let of_part = batch.spans.iter().filter(|span| (first..first + rows).contains(&span.row));
        let cut = of_part.map(|span| {
            let len = span.len.min(room[span.row]);
            room[span.row] -= if packed { len } else { 0 };
            Span { len, ..*span }
        });
        let spans = cut.filter(|span| span.len > 0).collect();
        Batch { spans, ..batch.clone() }.without_padding()
    };
    (0..batch.rows).step_by(rows).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_parted_and_cut() {
        let ids: Vec<u32> = (0..18).collect();
        let span = |row, start, len| Span { row, start, len };
        let batch = Batch {
            rows: 3,
            len: 6,
            targets: ids.clone(),
            positions: vec![0; 18],
            input_ids: ids,
            spans: vec![span(0, 0, 3), span(1, 0, 2), span(1, 2, 4), span(2, 0, 5)],
            origins: vec![String::new(); 4],
            labels: Vec::new(),
        };
        let apart = parts(&batch, 2, 4, false);
        assert_eq!(apart[0].input_ids, [0, 1, 2, 6, 7, 8, 9, 10, 11]);
        let parts = parts(&batch, 2, 4, true);
        assert_eq!(parts[0].input_ids, [0, 1, 2, 6, 7, 8, 9]);
        assert_eq!(parts[0].spans, [span(0, 0, 3), span(0, 3, 2), span(0, 5, 2)]);
        assert_eq!(parts[1].input_ids, [12, 13, 14, 15]);
        assert_eq!(row_lens(&batch), [3, 6, 5]);
    }
}
