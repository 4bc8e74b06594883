//! `tune run --max-restarts N`: a run that has lost a process is started again, from its newest checkpoint.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::SystemTime;

use tune_core::checkpoint::run::{Saved, checkpoints};
use tune_core::config::cli::{LOST, USAGE, signals};
use tune_core::config::{SourceId, complain};
use tune_core::words::count;
use tune_yaml::Node;

use crate::{Result, launch};

/// What becomes of a run that loses a process.
#[derive(clap::Args, Clone, Copy, Default)]
pub(crate) struct Restarts {
    /// Start the run again from its newest checkpoint when a process is killed, dies or hangs, up to N times; on half the processes,
    /// with the same batches in a step, where a restart is lost before it has saved anything.
    #[arg(long, alias = "max_restarts", value_name = "N")]
    pub(crate) max_restarts: Option<u16>,
    /// Never start it again on fewer than N processes; 1 where this is left out.
    #[arg(
        long,
        alias = "min_nproc",
        value_name = "N",
        requires = "max_restarts",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub(crate) min_nproc: Option<u16>,
}

/// Whether a recipe with these arguments does its work, and does not only show something.
pub(crate) fn does_its_work(args: &[OsString]) -> bool {
    let shows = |arg: &OsString| {
        let arg = arg.to_string_lossy();
        arg.starts_with('-') && !arg.starts_with("-c") && !arg.starts_with("--config")
    };
    !args.iter().any(shows)
}

impl Restarts {
    /// Whether a recipe with these arguments is started again.
    pub(crate) fn are_for(&self, args: &[OsString]) -> bool {
        self.max_restarts.is_some_and(|most| most > 0) && does_its_work(args)
    }

    /// On how many processes a lost run is started again; `None` where it is not. The first
    /// loss may be an accident. A restart that is lost before it has saved anything would be lost again: on fewer processes there is one
    /// less that can be lost, and together they need less memory.
    fn next(&self, lost: &Attempt, division: &Division) -> Option<u16> {
        let Attempt { restarts, processes, has_saved } = *lost;
        let most = self.max_restarts.unwrap_or_default();
        (restarts < most).then(|| match restarts > 0 && !has_saved {
            true => division.fewer(processes, self.min_nproc.unwrap_or(1)).unwrap_or(processes),
            false => processes,
        })
    }
}

/// A run that was lost.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    /// How often it had been started again before.
    restarts: u16,
    /// On how many processes it ran.
    processes: u16,
    /// Whether it had saved a checkpoint since it was started.
    has_saved: bool,
}

/// How a run lost a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// By this signal.
    Killed(u8),
    /// The others have waited for it until the time limit of collectives.
    Waited,
    /// It died with an exit code that no recipe has.
    Died(u8),
}

impl Loss {
    /// What an exit code tells, which mpirun hands on from the first process that has failed. `None` where the recipe has ended by
    /// itself, and has said why, or was asked to end.
    fn of(code: u8) -> Option<Self> {
        /// SIGHUP, SIGINT, SIGQUIT and SIGTERM.
        const ASKED: [u8; 4] = [129, 130, 131, 143];
        match code {
            0 | 1 | USAGE => None,
            _ if ASKED.contains(&code) => None,
            LOST => Some(Self::Waited),
            129..=159 => Some(Self::Killed(code - 128)),
            _ => Some(Self::Died(code)),
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(9) => f.write_str("a process was killed (signal 9, as by the system where memory runs out)"),
            Self::Killed(signal) => write!(f, "a process was ended by signal {signal}"),
            Self::Waited => f.write_str("a process has died or hangs, and the others have waited for it in vain"),
            Self::Died(code) => write!(f, "a process has died with exit code {code}"),
        }
    }
}

/// How the batches and the model of a run are divided among its processes, as it was first started.
#[derive(Debug, Clone, Copy)]
struct Division {
    processes: u16,
    /// The micro-batches that each process takes in a step, if the recipe accumulates.
    accumulated: Option<u64>,
    /// Whether gradients are applied at once, so that nothing can be accumulated.
    in_backward: bool,
    /// How many copies of the model there are, if the recipe divides it.
    replicas: Option<u64>,
    /// The micro-batches that an update takes, as many from each process, where a step has several updates.
    of_update: Option<u64>,
}

impl Division {
    /// The most processes, at least `least` and at most half of `processes`, that can take the same batches in a step.
    fn fewer(&self, processes: u16, least: u16) -> Option<u16> {
        let all = self.micro_batches()?;
        let can_take = |fewer: &u16| {
            let fewer = u64::from(*fewer);
            all.is_multiple_of(fewer) && self.of_update.is_none_or(|of_update| of_update.is_multiple_of(fewer))
        };
        (least..=processes / 2).rev().find(can_take)
    }

    /// Those of a step over all processes, where each may take more of them.
    fn micro_batches(&self) -> Option<u64> {
        let accumulated = self.accumulated.filter(|_| !self.in_backward)?;
        Some(accumulated.max(1).saturating_mul(self.processes.into()))
    }

    /// What the recipe is told on `processes` of them: the same micro-batches in a step, and no process with a larger part of the model
    /// than before, where that can be.
    fn overrides(&self, processes: u16) -> Vec<String> {
        let Some(all) = self.micro_batches().filter(|_| processes != self.processes) else { return Vec::new() };
        let processes = u64::from(processes);
        let mut overrides = vec![format!("gradient_accumulation_steps={}", all / processes)];
        if let Some(replicas) = self.replicas {
            // Each copy is divided among as many as before; or else there is one.
            let shards = u64::from(self.processes) / replicas.max(1);
            let replicas = if shards > 0 && processes.is_multiple_of(shards) { processes / shards } else { 1 };
            overrides.push(format!("data_parallel_replicate_dim={replicas}"));
            overrides.push("data_parallel_shard_dim=-1".to_owned());
        }
        overrides
    }
}

/// What a recipe's config says that matters here.
struct Asked {
    output_dir: PathBuf,
    /// Whether it goes on from what is there already.
    resumes: bool,
    division: Division,
}

impl Asked {
    /// Of the config that a recipe shows.
    ///
    /// # Errors
    /// It has no checkpoints to go on from.
    fn of(config: &str, processes: u16) -> Result<Self> {
        let root = tune_yaml::parse(config, SourceId(0)).map_err(|error| format!("what it would run with: {error}"))?;
        // References are written so that they can be read again.
        let (root, _) = tune_yaml::interpolate(root);
        let text = |key: &str| root.get(key).map(|entry| &entry.value).and_then(Node::as_str);
        let number = |key: &str| text(key).and_then(|text| text.parse::<u64>().ok());
        let (Some(output_dir), Some(resumes)) = (text("output_dir"), text("resume_from_checkpoint")) else {
            return Err(
                "--max-restarts is for recipes that save checkpoints and go on from them (their keys are output_dir \
                        and resume_from_checkpoint), and this one does not: leave it out"
                    .into(),
            );
        };
        let division = Division {
            processes,
            accumulated: number("gradient_accumulation_steps"),
            in_backward: text("optimizer_in_bwd") == Some("true"),
            replicas: number("data_parallel_replicate_dim"),
            of_update: number("ppo_batch_size").zip(number("batch_size")).map(|(rows, batch)| rows / batch.max(1)),
        };
        Ok(Self { output_dir: output_dir.into(), resumes: resumes == "true", division })
    }
}

/// Which checkpoint it is: one of another run may have had its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    epoch: u64,
    step: u64,
    changed: Option<SystemTime>,
}

impl Stamp {
    fn of(saved: &Saved) -> Self {
        let changed = saved.path.metadata().and_then(|meta| meta.modified()).ok();
        Self { epoch: saved.epoch, step: saved.step, changed }
    }
}

/// The newest checkpoint of this run: those of an earlier one, which it is to overwrite, are none of its own.
fn newest(output_dir: &Path, of_others: &[Stamp]) -> Result<Option<Saved>> {
    let mut all = checkpoints(output_dir)?;
    all.retain(|saved| !of_others.contains(&Stamp::of(saved)));
    Ok(all.pop())
}

/// Starts a recipe, and starts it again as often as is allowed while it is lost. `started` makes the command that starts it on a
/// number of processes, with more arguments behind `args`.
///
/// # Errors
/// It cannot be started, or cannot be started again: a config that can be read only once, a recipe without checkpoints.
pub(crate) fn run(
    limits: Restarts,
    processes: u16,
    args: &[OsString],
    started: &dyn Fn(u16, &[String]) -> Command,
) -> Result<ExitCode> {
    if let Some(least) = limits.min_nproc.filter(|&least| least > processes) {
        return Err(format!(
            "--min-nproc {least} is more than the run begins with: --nproc-per-node {processes}; at most that many were expected"
        )
        .into());
    }
    if let Some(config) = config_of(args).filter(|config| config.exists() && !config.is_file()) {
        let config = config.display();
        return Err(format!(
            "{config} is no file: it can be read only once, and a restart reads it again; write it to a file"
        )
        .into());
    }
    let mut command = started(1, &["--print-config".to_owned()]);
    let shown = command.stderr(Stdio::inherit()).output().map_err(|error| launch::cannot_start(&command, &error))?;
    if !shown.status.success() {
        return Ok(ExitCode::from(code_of(shown.status)));
    }
    let Asked { output_dir, resumes, division } = Asked::of(&String::from_utf8_lossy(&shown.stdout), processes)?;
    let of_others: Vec<Stamp> = match resumes {
        true => Vec::new(),
        false => checkpoints(&output_dir)?.iter().map(Stamp::of).collect(),
    };

    let (mut processes, mut restarts, mut more) = (processes, 0, Vec::new());
    let mut before = newest(&output_dir, &of_others)?;
    loop {
        let mut command = started(processes, &more);
        let (status, signal) = signals::run(&mut command).map_err(|error| launch::cannot_start(&command, &error))?;
        if let Some(signal) = signal.filter(|_| !status.success()) {
            return Ok(ExitCode::from(signal.exit_code()));
        }
        let code = code_of(status);
        let Some(loss) = Loss::of(code) else { return Ok(ExitCode::from(code)) };
        let saved = newest(&output_dir, &of_others)?;
        let has_saved = saved.as_ref().map(Stamp::of) != before.as_ref().map(Stamp::of);
        let lost = Attempt { restarts, processes, has_saved };
        let Some(next) = limits.next(&lost, &division) else {
            complain!("error: {}", given_up(loss, restarts, saved.as_ref()));
            return Ok(ExitCode::from(code));
        };
        let most = limits.max_restarts.unwrap_or_default();
        complain!("restart {} of {most}: {loss}; {}", restarts + 1, goes_on(saved.as_ref(), &lost, next, &division));
        more = division.overrides(next);
        more.extend(saved.is_some().then(|| "resume_from_checkpoint=true".to_owned()));
        (processes, before) = (next, saved);
        restarts += 1;
    }
}

/// The config that a recipe is told to read.
fn config_of(args: &[OsString]) -> Option<&Path> {
    let at = args.iter().position(|arg| arg == "--config" || arg == "-c")?;
    args.get(at + 1).map(Path::new)
}

/// From where and on how many processes a run goes on.
fn goes_on(saved: Option<&Saved>, lost: &Attempt, next: u16, division: &Division) -> String {
    let from = match saved {
        Some(saved) => format!("the run goes on from {}", saved.path.display()),
        None => "it had saved no checkpoint, and begins anew".to_owned(),
    };
    let Attempt { restarts, processes, has_saved } = *lost;
    let on = match next {
        _ if division.processes == 1 => String::new(),
        _ if next < processes => {
            format!(" on {next} instead of {processes} processes, with the same batches in a step")
        }
        _ if restarts > 0 && !has_saved && division.in_backward => format!(
            " on {next} processes (fewer would have to accumulate gradients, for which optimizer_in_bwd=true leaves no room)"
        ),
        _ => format!(" on {}", count(next, "process")),
    };
    from + &on
}

/// That a run is not started again, and how it goes on by hand.
fn given_up(loss: Loss, restarts: u16, saved: Option<&Saved>) -> String {
    let times = if restarts == 1 { "once".to_owned() } else { format!("{restarts} times") };
    let way_on = match saved {
        Some(saved) => {
            format!("Its newest checkpoint is {}: resume_from_checkpoint=true goes on from it", saved.path.display())
        }
        None => "It has saved no checkpoint (checkpointer.save_every_n_steps saves one sooner)".to_owned(),
    };
    format!("{loss}, and the run was started again {times} already, which --max-restarts allows. {way_on}")
}

/// The exit code as a shell has it: of a program that a signal has ended 128 and the signal's number.
pub(crate) fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| signal_of(status).map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

#[cfg(unix)]
fn signal_of(status: ExitStatus) -> Option<i32> {
    std::os::unix::process::ExitStatusExt::signal(&status)
}

#[cfg(not(unix))]
fn signal_of(_: ExitStatus) -> Option<i32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Restarts = Restarts { max_restarts: Some(3), min_nproc: None };

    fn division(processes: u16, accumulated: u64, replicas: u64) -> Division {
        let (accumulated, replicas) = (Some(accumulated), Some(replicas));
        Division { processes, accumulated, in_backward: false, replicas, of_update: None }
    }

    #[test]
    fn what_is_lost_is_told_from_what_has_failed() {
        // Done; an error, with its message; a wrong config; SIGHUP, Ctrl-C, SIGQUIT, SIGTERM.
        for code in [0, 1, 2, 129, 130, 131, 143] {
            assert_eq!(Loss::of(code), None, "{code}");
        }
        assert_eq!(Loss::of(137), Some(Loss::Killed(9)));
        assert_eq!(Loss::of(134), Some(Loss::Killed(6)));
        assert_eq!(Loss::of(LOST), Some(Loss::Waited));
        // A panic; what mpirun could not start.
        assert_eq!(Loss::of(101), Some(Loss::Died(101)));
        assert_eq!(Loss::of(183), Some(Loss::Died(183)));
    }

    #[test]
    fn a_restart_that_saves_nothing_is_followed_by_one_on_fewer_processes() {
        let next = |restarts, processes, has_saved| {
            LIMITS.next(&Attempt { restarts, processes, has_saved }, &division(8, 1, 1))
        };
        assert_eq!(next(0, 8, false), Some(8), "the first loss may be an accident");
        assert_eq!(next(1, 8, true), Some(8));
        assert_eq!(next(1, 8, false), Some(4));
        assert_eq!(next(2, 4, true), Some(4));
        assert_eq!(next(2, 1, false), Some(1));
        assert_eq!(next(3, 8, true), None);
        let at_least_4 = Restarts { min_nproc: Some(4), ..LIMITS };
        let lost = |processes| Attempt { restarts: 1, processes, has_saved: false };
        assert_eq!(at_least_4.next(&lost(8), &division(8, 1, 1)), Some(4));
        assert_eq!(at_least_4.next(&lost(4), &division(8, 1, 1)), Some(4));
    }

    #[test]
    fn fewer_processes_take_the_same_batches() {
        for (processes, accumulated, on, fewer) in
            [(4, 1, 4, Some(2)), (6, 1, 3, Some(1)), (5, 2, 5, Some(2)), (7, 1, 7, Some(1)), (6, 2, 6, Some(3))]
        {
            let division = division(processes, accumulated, 1);
            assert_eq!(division.fewer(on, 1), fewer, "{processes} with {accumulated} each, on {on}");
        }
        assert_eq!(division(7, 1, 1).fewer(7, 2), None, "7 micro-batches are not those of 2 or 3 processes");
        assert_eq!(division(4, 1, 1).overrides(4), [""; 0]);
        assert_eq!(division(4, 3, 1).overrides(2)[0], "gradient_accumulation_steps=6");
        let of_five = Division { of_update: Some(5), ..division(5, 2, 1) };
        assert_eq!(of_five.fewer(5, 1), Some(1), "2 processes have no equal shares of an update of 5");
        let at_once = Division { in_backward: true, ..division(4, 1, 1) };
        assert_eq!(at_once.fewer(4, 1), None);
    }

    #[test]
    fn nobody_gets_a_larger_part_of_the_model_where_that_can_be() {
        let replicas = |processes, replicas, fewer| division(processes, 1, replicas).overrides(fewer)[1].clone();
        // Whole models stay whole.
        assert_eq!(replicas(4, 4, 2), "data_parallel_replicate_dim=2");
        // Two copies, each divided among four: one such copy.
        assert_eq!(replicas(8, 2, 4), "data_parallel_replicate_dim=1");
        assert_eq!(replicas(8, 4, 4), "data_parallel_replicate_dim=2");
        // What was divided among all is again.
        assert_eq!(replicas(8, 1, 4), "data_parallel_replicate_dim=1");
        assert_eq!(replicas(8, 2, 2), "data_parallel_replicate_dim=1");
    }

    #[test]
    fn a_config_tells_where_checkpoints_are() {
        let config = "output_dir: \"my: out\"  # a.yaml:1:2\nresume_from_checkpoint: false  # default\n\
                      gradient_accumulation_steps: 2\noptimizer_in_bwd: true\ndata_parallel_replicate_dim: 4\n\
                      batch_size: 2\nppo_batch_size: 8\n";
        let asked = Asked::of(config, 4).unwrap();
        assert_eq!((asked.output_dir, asked.resumes), (PathBuf::from("my: out"), false));
        assert!(asked.division.in_backward && asked.division.replicas == Some(4));
        assert_eq!((asked.division.accumulated, asked.division.of_update), (Some(2), Some(4)));
        let error = Asked::of("prompt: x\n", 1).err().unwrap().to_string();
        assert!(error.contains("--max-restarts is for recipes that save checkpoints"), "{error}");
    }

    #[test]
    fn only_what_trains_is_started_again() {
        let are_for = |line: &str| LIMITS.are_for(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(are_for("--config a.yaml epochs=2 ~b") && are_for("-c a.yaml") && are_for("--config=a.yaml x=-1"));
        assert!(!are_for("--help") && !are_for("--config a.yaml --convert") && !are_for("-V"));
        assert!(!Restarts::default().are_for(&[]));
    }
}
