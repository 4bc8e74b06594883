//! Who started this process, and how many others.

use super::Place;
use crate::{Error, Result};

/// What the environment says of the processes that were started together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Launched {
    /// Who started them.
    pub(super) by: &'static str,
    /// How many there are: more than one.
    pub(super) processes: usize,
}

/// Who starts processes that MPI connects, and the variable in which each says how many.
const LAUNCHERS: &[(&str, &str)] = &[
    ("Open MPI", "OMPI_COMM_WORLD_SIZE"),
    ("MPICH", "PMI_SIZE"),
    ("MVAPICH", "MV2_COMM_WORLD_SIZE"),
    ("srun", "SLURM_STEP_NUM_TASKS"),
];

impl Launched {
    /// What the variables say; `None` where this process is alone.
    ///
    /// # Errors
    /// Processes that torchrun started, which MPI does not connect.
    pub(super) fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| variable(name).and_then(|value| value.trim().parse::<usize>().ok());
        for &(by, name) in LAUNCHERS {
            // A batch script has some of SLURM's variables, too; only what `srun` starts has a number of its own.
            if by == "srun" && number("SLURM_PROCID").is_none() {
                continue;
            }
            if let Some(processes) = number(name) {
                return Ok((processes > 1).then_some(Self { by, processes }));
            }
        }
        match (number("WORLD_SIZE"), number("RANK")) {
            (Some(processes @ 2..), Some(_)) => Err(Error::setup(format!(
                "RANK and WORLD_SIZE={processes} are what torchrun says to the processes that it starts; here MPI starts and \
                 connects them: `tune run --nproc-per-node {processes} RECIPE ...` or `mpirun -n {processes} PROGRAM ...`"
            ))),
            _ => Ok(None),
        }
    }
}

/// Has each process of a machine compute on its share of the threads, unless the user has said how many.
pub(super) fn divide_threads(place: Place) {
    if std::env::var_os("RAYON_NUM_THREADS").is_some() {
        return;
    }
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    // A process that was bound to some processors has these for itself.
    let threads = if is_bound() { available } else { available / place.local_world_size };
    // One that computes already keeps the threads that it has.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build_global();
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
        let mpirun = Launched { by: "Open MPI", processes: 4 };
        assert_eq!(of(&[("OMPI_COMM_WORLD_SIZE", "4"), ("RANK", "1"), ("WORLD_SIZE", "4")]).unwrap(), Some(mpirun));
        assert_eq!(of(&[("OMPI_COMM_WORLD_SIZE", "1")]).unwrap(), None);
        let srun = [("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_PROCID", "0")];
        assert_eq!(of(&srun).unwrap(), Some(Launched { by: "srun", processes: 2 }));
        assert_eq!(of(&srun[..1]).unwrap(), None, "a batch script is one process");
        assert_eq!(of(&[("WORLD_SIZE", "1"), ("RANK", "0")]).unwrap(), None);
    }

    #[test]
    fn what_torchrun_started_is_told_how_to_start_here() {
        let error = of(&[("WORLD_SIZE", "2"), ("RANK", "0")]).unwrap_err().to_string();
        assert!(error.contains("tune run --nproc-per-node 2"), "{error}");
    }
}
