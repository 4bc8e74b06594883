//! The processes of a run that `tune run` starts itself, where no MPI is: cards connect them, and they meet at a port of this machine.

use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tune_core::config::cli::{LOST, signals};
use tune_core::distributed::RUN_ID;

use crate::{Result, launch, restart};

/// How long the others have when one has failed: they learn of it at once, say so, and end.
const GRACE: Duration = Duration::from_secs(8);
/// How long they have when the run was asked to end, for the last checkpoint.
const GRACE_TO_SAVE: Duration = Duration::from_secs(300);

/// A program, and in how many processes it is started.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many.
    processes: u16,
    /// The program of a recipe, and what it is told.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_names = ["PROGRAM", "ARGS"])]
    command: Vec<OsString>,
}

/// Starts all, and waits for them. The exit code is that of the first that failed, as mpirun has it; one that was only lost to
/// others does not count before one that failed itself.
///
/// # Errors
/// A program that cannot be started; no port that is free.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Some((program, told)) = args.command.split_first() else { return Err("which program?".into()) };
    let port = free_port().map_err(|error| format!("this machine has no port where processes could meet: {error}"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let run = format!("{}-{now}", std::process::id());
    let of_rank = |rank: u16| {
        let mut command = Command::new(program);
        command.args(told).env(RUN_ID, &run);
        for (name, value) in [("RANK", rank), ("LOCAL_RANK", rank), ("MASTER_PORT", port)] {
            command.env(name, value.to_string());
        }
        for name in ["WORLD_SIZE", "LOCAL_WORLD_SIZE"] {
            command.env(name, args.processes.to_string());
        }
        command.env("MASTER_ADDR", Ipv4Addr::LOCALHOST.to_string());
        // What torchrun said to this one is not for those.
        command.env_remove("TORCHELASTIC_USE_AGENT_STORE");
        if rank > 0 {
            command.stdin(Stdio::null());
        }
        command
    };
    let mut commands: Vec<Command> = (0..args.processes).map(of_rank).collect();
    let ended = signals::run_together(&mut commands, [GRACE, GRACE_TO_SAVE]);
    let ended = ended.map_err(|error| launch::cannot_start(&commands[0], &error))?;
    Ok(ExitCode::from(code_of_all(&ended)))
}

/// The exit code of a run whose processes have ended so, one after the other.
fn code_of_all(ended: &[ExitStatus]) -> u8 {
    let codes: Vec<u8> = ended.iter().map(|status| restart::code_of(*status)).filter(|code| *code != 0).collect();
    codes.iter().find(|code| **code != LOST).or(codes.first()).copied().unwrap_or_default()
}

/// A port that nobody uses: it is free again when rank 0 asks for it, and if not, that takes the next one.
fn free_port() -> std::io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn the_first_that_failed_itself_says_how_the_run_has_ended() {
        let of = |raw: &[i32]| code_of_all(&raw.iter().map(|raw| ExitStatus::from_raw(*raw)).collect::<Vec<_>>());
        let (killed, lost, wrong) = (9, i32::from(LOST) << 8, 1 << 8);
        assert_eq!(of(&[0, 0]), 0);
        assert_eq!(of(&[killed, lost, lost]), 137);
        assert_eq!(of(&[lost, killed]), 137);
        assert_eq!(of(&[0, lost, wrong, killed]), 1);
        assert_eq!(of(&[lost, lost]), LOST);
    }
}
