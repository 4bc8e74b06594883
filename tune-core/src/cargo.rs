//! Cargo, started by a program that cargo itself may have started.

use std::process::Command;

/// Cargo as a command, without what it tells those whom it starts of themselves. Build scripts ask for some of that (ring's does): it
/// would have them, and all that depends on them, compiled again, now and once more by the next build that somebody starts by hand.
pub fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        command.env_remove(name);
    }
    command
}
