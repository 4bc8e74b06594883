//! The run's folder, what is in it already, and whether there is room for what is to come.

use std::path::{Path, PathBuf};

use crate::checkpoint::run::{self, Saved, Start};
use crate::checkpoint::state::TrainingState;
use crate::checkpoint::{Checkpoint, free_bytes, human};
use crate::memory_plan;
use crate::metrics::Metrics;
use crate::models::ModelSpec;
use crate::offload::check_room;
use crate::preflight::model::Model;
use crate::preflight::report::Report;
use crate::recipe::{Outline, Plan, Trained};
use crate::{Error, Result};

/// Looks at everything that the run would write. `batches` are those of an epoch, if they are known.
pub(super) fn look(outline: &Outline, model: Option<&Model>, batches: Option<usize>, report: &mut Report<'_>) {
    let there = model.and_then(|model| {
        let check = |()| run::check(&outline.run.output_dir, model.base.path(), outline.run.start());
        report.take(outline.check_output_dir(&model.base).and_then(check))
    });
    if let Some(there) = &there {
        report.fact("output", describe(outline, there));
    }
    report.take(check_writable(&outline.run.output_dir));
    if let (Some(shape), Some(there)) = (model.and_then(|model| model.shape.as_ref()), &there) {
        // Adapters that cannot be were found with the model.
        if let Ok(Room { needed, refusal }) = room(outline, shape, there, batches) {
            report.fact("disk", needed);
            refusal.into_iter().for_each(|error| report.error(error));
        }
        if let Ok(Some(Room { needed, refusal })) = offloaded(outline, shape) {
            report.fact("offloaded", needed);
            refusal.into_iter().for_each(|error| report.error(error));
        }
    }
    report.take(check_logs(outline));
    logs(outline, report);
}

/// The same for a run that is about to begin: its first error. `state` is that of the run that goes on.
pub(crate) fn check(
    outline: &Outline,
    base: &Checkpoint,
    shape: &ModelSpec,
    batches: Option<usize>,
    state: Option<&TrainingState>,
) -> Result<()> {
    let there = run::check(&outline.run.output_dir, base.path(), outline.run.start())?;
    check_writable(&outline.run.output_dir)?;
    check_logs(outline)?;
    if let Some(refusal) = offloaded(outline, shape)?.and_then(|room| room.refusal) {
        return Err(refusal);
    }
    let has_more_to_save = state.is_none_or(|state| state.position.step < state.total_steps);
    room(outline, shape, &there, batches)?.refusal.filter(|_| has_more_to_save).map_or(Ok(()), Err)
}

fn describe(outline: &Outline, there: &[Saved]) -> String {
    let dir = outline.run.output_dir.display();
    let checkpoints = match there {
        [] => return format!("{dir}, which has no checkpoints yet"),
        [one] => format!("one checkpoint, {}", name(&one.path)),
        [.., last] => format!("{} checkpoints, the newest {}", there.len(), name(&last.path)),
    };
    match outline.run.start() {
        Start::Resume => format!("{dir}, which has {checkpoints}: the run goes on from it"),
        _ => format!("{dir}, which has {checkpoints}: overwrite=true deletes what is there"),
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The folder itself, or the nearest one above it that is there.
fn existing(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new(".")).to_path_buf()
}

/// Whether files can be made in a folder, or the folder itself.
fn check_writable(path: &Path) -> Result<()> {
    let place = existing(path);
    if !place.is_dir() {
        return Err(Error::file(place, "is a file; a folder is to be made here"));
    }
    match refused(&place) {
        Some(error) => Err(Error::io("write into", &place)(error)),
        None => Ok(()),
    }
}

#[cfg(unix)]
fn refused(folder: &Path) -> Option<std::io::Error> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: `name` is a C string.
    let answer = unsafe { libc::access(name.as_ptr(), libc::W_OK | libc::X_OK) };
    (answer != 0).then(std::io::Error::last_os_error)
}

#[cfg(not(unix))]
fn refused(folder: &Path) -> Option<std::io::Error> {
    let readonly = std::fs::metadata(folder).is_ok_and(|meta| meta.permissions().readonly());
    readonly.then(|| std::io::ErrorKind::PermissionDenied.into())
}

/// Bytes of one checkpoint: what is trained (and a merged model), and the optimizer's state; the same of a value model.
fn checkpoint_bytes(outline: &Outline, shape: &ModelSpec) -> Result<u64> {
    let parameters = shape.parameter_count();
    let all = parameters * outline.run.dtype.dtype().size_in_bytes() as u64;
    let (lora, weights) = match &outline.trained {
        Trained::Weights => (None, all),
        Trained::Adapters { lora, merged } => {
            let adapters = memory_plan::of_adapters(shape, lora, 1)?;
            // Those that took a part of their weights are saved with it.
            let saved = if lora.start.takes_of_weight() { 8 } else { 4 };
            // A table that is the output layer, too, is there under both names.
            let both = if shape.tie_word_embeddings { 2 } else { 1 };
            let whole = memory_plan::of_whole(shape, lora, 1)?;
            let whole_bytes = both * whole * outline.run.dtype.dtype().size_in_bytes() as u64;
            (Some(&**lora), saved * adapters + whole_bytes + if *merged { all } else { 0 })
        }
    };
    let saved = |name: &str, dims: &[usize]| outline.optimizer.saved_bytes(name, dims);
    let state = memory_plan::of_state(shape, lora, 1, &saved)?;
    let value = match outline.value()? {
        Some((_, value)) => {
            let weights = value.parameter_count() * outline.run.dtype.dtype().size_in_bytes() as u64;
            weights + memory_plan::of_state(&value, None, 1, &saved)?
        }
        None => 0,
    };
    Ok(weights + state + value + run::SPARE_BYTES)
}

/// Bytes of the optimizers' state that this process keeps in a file.
fn offloaded_bytes(outline: &Outline, shape: &ModelSpec) -> Result<u64> {
    let optimizer = &outline.optimizer;
    let kept = |name: &str, dims: &[usize]| optimizer.state_bytes(name, dims) - optimizer.held_bytes(name, dims);
    let lora = match &outline.trained {
        Trained::Weights => None,
        Trained::Adapters { lora, .. } => Some(&**lora),
    };
    let layout = outline.run.mesh.layout(outline.group.world_size())?;
    let value = match outline.value()? {
        Some((_, value)) => memory_plan::of_state(&value, None, layout.shards, &kept)?,
        None => 0,
    };
    Ok(memory_plan::of_state(shape, lora, layout.shards, &kept)? + value)
}

/// What is kept in a file while the run trains, if anything is, and why that cannot be, if so.
fn offloaded(outline: &Outline, shape: &ModelSpec) -> Result<Option<Room>> {
    let Some(dir) = outline.optimizer.offload_dir() else { return Ok(None) };
    let processes = outline.group.place().local_world_size as u64;
    let bytes = offloaded_bytes(outline, shape)?.saturating_mul(processes);
    let free = free_bytes(dir);
    let text = free.map_or_else(String::new, |free| format!(", which has {} free", human(free)));
    let needed = format!("{} of optimizer state in {}{text}", human(bytes), dir.display());
    let room = check_room(dir, "optimizer.offload_dir", "the optimizer's state", bytes);
    let refusal = room.and_then(|()| check_writable(dir)).err();
    Ok(Some(Room { needed, refusal }))
}

/// Whether two folders share what is free.
#[cfg(unix)]
fn share_a_disk(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let disk = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
    disk(a).is_some_and(|a| Some(a) == disk(b))
}

#[cfg(not(unix))]
fn share_a_disk(_: &Path, _: &Path) -> bool {
    false
}

/// How often a run of so many batches an epoch saves: at the end of each, and after every so many steps.
fn saves(plan: Plan, batches: usize, every: Option<u64>) -> u64 {
    let Some(every) = every else { return plan.epochs };
    let each = plan.steps_per_epoch(batches);
    let between = plan.total_steps(batches) / every;
    // Epochs whose last step is such a step, too: one in so many.
    let both = plan.epochs / (every / gcd(each, every));
    plan.epochs.saturating_add(between - both.min(between))
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What the run needs, and why that is refused, if it is more than there is.
struct Room {
    needed: String,
    refusal: Option<Error>,
}

/// What the run needs, against what is free. As long as the data is being counted, one checkpoint is all that is known.
fn room(outline: &Outline, shape: &ModelSpec, there: &[Saved], batches: Option<usize>) -> Result<Room> {
    let one = checkpoint_bytes(outline, shape)?;
    let saves = batches.map_or(1, |n| saves(outline.plan(), n, outline.run.checkpointer.save_every_n_steps));
    let keep = outline.run.checkpointer.keep_last_n_checkpoints.map_or(u64::MAX, |n| n as u64);
    // The best one, besides.
    let keep = keep.saturating_add(u64::from(outline.run.checkpointer.keep_best));
    // The oldest goes when the newest is there.
    let most = saves.min(keep.saturating_add(1));
    let key = "checkpointer.keep_last_n_checkpoints";
    let kept = match saves.min(keep) {
        all if all == saves => format!("all {saves} are kept ({key} keeps fewer)"),
        kept => format!("{kept} are kept ({key}) while the next is written"),
    };
    let size = |saved: &Saved| bytes_below(&saved.path);
    let (freed, needed) = match outline.run.start() {
        Start::Overwrite => (there.iter().map(size).sum(), one.saturating_mul(most)),
        _ => (0, one.saturating_mul(most.saturating_sub(there.len() as u64).max(1))),
    };
    let place = existing(&outline.run.output_dir);
    // What is kept beside checkpoints is there before them.
    let beside = match outline.optimizer.offload_dir() {
        Some(dir) if share_a_disk(dir, &place) => offloaded_bytes(outline, shape)?,
        _ => 0,
    };
    let free = free_bytes(&place).map(|free| free.saturating_add(freed).saturating_sub(beside));
    let free_text = free.map_or_else(String::new, |free| format!(", of {} that are free", human(free)));
    let text = match batches {
        None => format!("a checkpoint takes {}", human(one)),
        Some(_) => format!("a checkpoint takes {}, {kept}: {}{free_text}", human(one), human(needed)),
    };
    let refusal = free.filter(|&free| free < needed).map(|free| {
        let advice = match one.saturating_mul(2.min(saves)) <= free {
            true => format!("set {key}={}", (free / one).saturating_sub(1).max(1)),
            false => "make room".to_owned(),
        };
        Error::file(
            &outline.run.output_dir,
            format!(
                "there is no room for the checkpoints: they take up to {} ({} each, {kept}), and {} are free; {advice}, or \
                 choose another output_dir",
                human(needed),
                human(one),
                human(free)
            ),
        )
    });
    Ok(Room { needed: text, refusal })
}

/// The bytes of all files below a folder, as far as they can be seen.
fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Logs that share a file, or whose folder cannot be written.
fn check_logs(outline: &Outline) -> Result<()> {
    Metrics::check(&outline.run.metric_logger, &outline.run.output_dir)?;
    let places = outline.run.metric_logger.iter().filter_map(|config| config.place(&outline.run.output_dir));
    places
        .filter(|place| !place.starts_with(&outline.run.output_dir))
        .try_for_each(|place| check_writable(place.parent().unwrap_or(&place)))
}

fn logs(outline: &Outline, report: &mut Report<'_>) {
    let mut places = Vec::new();
    for config in &outline.run.metric_logger {
        config.warning().into_iter().for_each(|warning| report.warning(warning));
        places.extend(config.describe(&outline.run.output_dir));
    }
    match places.is_empty() {
        true => report.fact("metrics", "on the console alone"),
        false => report.fact("metrics", places.join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saves_are_counted_once() {
        for (batches, epochs, accumulated) in [(10, 3, 1), (7, 6, 2), (94, 8, 1), (1, 5, 4)] {
            let plan = Plan { gradient_accumulation_steps: accumulated, max_steps_per_epoch: None, epochs };
            assert_eq!(saves(plan, batches, None), epochs);
            let each = plan.steps_per_epoch(batches);
            for every in 1..30 {
                let saved = |step: &u64| step.is_multiple_of(each) || step.is_multiple_of(every);
                let expected = (1..=plan.total_steps(batches)).filter(saved).count() as u64;
                assert_eq!(saves(plan, batches, Some(every)), expected, "{plan:?}, every {every} steps");
            }
        }
        // More than can be counted is no overflow.
        let plan = Plan { gradient_accumulation_steps: 1, max_steps_per_epoch: None, epochs: u64::MAX };
        assert_eq!(saves(plan, 10, Some(1)), u64::MAX);
    }
}
