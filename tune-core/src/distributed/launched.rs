//! Who started this process, and how many others.

use super::Place;
use crate::{Result, environment};

/// What the environment says of the processes that were started together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Launched {
    /// Who started them.
    pub(super) by: &'static str,
    /// How many there are: more than one.
    pub(super) processes: usize,
    /// Which of them this is, if that is said.
    pub(super) rank: Option<usize>,
    /// Which of those on its machine it is, and how many these are, as far as that is said.
    pub(super) local: (Option<usize>, Option<usize>),
    /// Whether MPI connects them, in a program that has it.
    pub(super) by_mpi: bool,
}

/// Who starts processes, and the variables in which each is told how many there are, which it is, and the same of its machine.
struct Launcher {
    name: &'static str,
    variables: [&'static str; 4],
}

/// Those whose processes MPI connects.
const LAUNCHERS: &[Launcher] = &[
    Launcher {
        name: "Open MPI",
        variables: [
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ],
    },
    Launcher { name: "MPICH", variables: ["PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"] },
    Launcher {
        name: "MVAPICH",
        variables: [
            "MV2_COMM_WORLD_SIZE",
            "MV2_COMM_WORLD_RANK",
            "MV2_COMM_WORLD_LOCAL_RANK",
            "MV2_COMM_WORLD_LOCAL_SIZE",
        ],
    },
    // A batch script has some of SLURM's variables, too; only what `srun` starts has a number of its own.
    Launcher { name: "srun", variables: ["SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", ""] },
];

/// What torchrun tells the processes that it starts, and `tune run` where it starts them itself.
const TORCHRUN: Launcher =
    Launcher { name: "torchrun", variables: ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"] };

/// The variable in which `tune run` names a run whose processes it starts itself.
pub const RUN_ID: &str = "TUNE_RUN_ID";

impl Launched {
    /// What the variables say; `None` where this process is alone.
    ///
    /// # Errors
    /// A number that is none.
    pub(super) fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        // Where torchrun or `tune run` was started by another launcher, the processes have the variables of both.
        let is_inner = [RUN_ID, "TORCHELASTIC_RUN_ID"].iter().any(|name| variable(name).is_some());
        let number = |name: &str| variable(name).and_then(|value| value.trim().parse::<usize>().ok());
        for Launcher { name: by, variables: [size, rank, local, here] } in LAUNCHERS.iter().filter(|_| !is_inner) {
            if *by == "srun" && number(rank).is_none() {
                continue;
            }
            if let Some(processes) = number(size) {
                let (rank, local) = (number(rank), (number(local), number(here)));
                return Ok((processes > 1).then_some(Self { by, processes, rank, local, by_mpi: true }));
            }
        }
        let [size, rank, local, here] = TORCHRUN.variables;
        if variable(rank).is_none() {
            return Ok(None);
        }
        // Users set these by hand, too, where the launchers' own are sound.
        let said = |name: &str, expected: &str| match variable(name) {
            Some(value) => value.trim().parse().map(Some).map_err(|_| environment::refused(name, &value, expected)),
            None => Ok(None),
        };
        let Some(processes @ 2usize..) = said(size, "a number of processes was expected")? else { return Ok(None) };
        let last = processes - 1;
        let rank = said(rank, &format!("a number was expected, from 0 to {last}, as WORLD_SIZE={processes}"))?;
        let local = said(local, "the number of the process on its machine was expected, from 0 on")?;
        let here = said(here, "the number of processes on this machine was expected")?;
        let by = if variable(RUN_ID).is_some() { "tune run" } else { TORCHRUN.name };
        Ok(Some(Self { by, processes, rank, local: (local, here), by_mpi: false }))
    }
}

/// Has each process of a machine compute on its share of the threads, unless the user has said how many.
///
/// # Errors
/// As [`environment::threads`].
pub(super) fn divide_threads(place: Place) -> Result<()> {
    if environment::threads()?.is_some() {
        return Ok(());
    }
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // A process that was bound to some processors has these for itself.
    let threads = if is_bound() { available } else { available / place.local_world_size };
    // One that computes already keeps the threads that it has.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build_global();
    Ok(())
}

/// Whether the process may run on some of the machine's processors alone.
#[cfg(target_os = "linux")]
fn is_bound() -> bool {
    // SAFETY: plain numbers, and the set is of the size that is said.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let found = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) == 0;
        let online = libc::sysconf(libc::_SC_NPROCESSORS_ONLN);
        found && i64::from(libc::CPU_COUNT(&set)) < online
    }
}

#[cfg(not(target_os = "linux"))]
fn is_bound() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Launched>> {
        Launched::of(&|name| variables.iter().find(|(of, _)| *of == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn launchers_are_known_by_their_variables() {
        assert_eq!(of(&[]).unwrap(), None);
        let mpirun = Launched { by: "Open MPI", processes: 4, rank: Some(3), local: (Some(1), None), by_mpi: true };
        let variables = [
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("RANK", "1"),
            ("WORLD_SIZE", "4"),
        ];
        assert_eq!(of(&variables).unwrap(), Some(mpirun));
        assert_eq!(of(&[("OMPI_COMM_WORLD_SIZE", "1")]).unwrap(), None);
        let srun = [("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")];
        let by_srun = Launched { by: "srun", processes: 2, rank: Some(0), local: (Some(0), None), by_mpi: true };
        assert_eq!(of(&srun).unwrap(), Some(by_srun));
        assert_eq!(of(&srun[..1]).unwrap(), None, "a batch script is one process");
        assert_eq!(of(&[("WORLD_SIZE", "1"), ("RANK", "0")]).unwrap(), None);
        assert_eq!(of(&[("WORLD_SIZE", "2")]).unwrap(), None, "nobody was started as one of two");
    }

    #[test]
    fn torchrun_tells_who_a_process_is() {
        let variables = [("WORLD_SIZE", "8"), ("RANK", "5"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "4")];
        let fifth = |by| Launched { by, processes: 8, rank: Some(5), local: (Some(1), Some(4)), by_mpi: false };
        assert_eq!(of(&variables).unwrap(), Some(fifth("torchrun")));
        // It may have been started by another launcher, whose variables are there, too.
        for (id, by) in [("TORCHELASTIC_RUN_ID", "torchrun"), (RUN_ID, "tune run")] {
            let srun = [("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "1"), (id, "1")];
            assert_eq!(of(&[&srun[..], &variables].concat()).unwrap(), Some(fifth(by)));
        }
        let error = of(&[("WORLD_SIZE", "2"), ("RANK", "first")]).unwrap_err().to_string();
        assert!(error.contains("RANK=first: a number was expected, from 0 to 1"), "{error}");
        for (name, expected) in [
            ("WORLD_SIZE", "a number of processes was expected"),
            ("LOCAL_RANK", "the number of the process on its machine was expected, from 0 on"),
            ("LOCAL_WORLD_SIZE", "the number of processes on this machine was expected"),
        ] {
            let mut all = variables.to_vec();
            all.retain(|(of, _)| *of != name);
            all.push((name, "two"));
            assert_eq!(of(&all).unwrap_err().to_string(), format!("{name}=two: {expected}"));
            // Nobody was started as one of several: what others call by this name is not meant.
            assert_eq!(of(&[(name, "two")]).unwrap(), None);
        }
    }
}
