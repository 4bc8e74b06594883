//! What a program says: the one door to the standard streams.
//!
//! `println!` panics when nobody can take what is said: a pipe whose reader has gone, a full disk behind a redirection.
//! Nothing here does. [`say!`](crate::say) and [`Stdout`] are for a program that has other things to do, such as training:
//! it goes on, and a full disk is told once, on the standard error. [`show`] is for what a program was asked for, which
//! has failed where it could not be written. A reader that has gone has seen enough, and is no failure anywhere.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Writes a line to the standard output as `println!` does, and goes on where that fails.
#[macro_export]
macro_rules! say {
    () => { $crate::output::line(::core::format_args!("")) };
    ($($text:tt)*) => { $crate::output::line(::core::format_args!($($text)*)) };
}

/// Writes a line to the standard error as `eprintln!` does, and goes on where that fails.
#[macro_export]
macro_rules! complain {
    ($($text:tt)*) => { $crate::output::complaint(::core::format_args!($($text)*)) };
}

/// What [`say!`](crate::say) does.
pub fn line(text: Arguments<'_>) {
    if RANK.get().is_none_or(|&rank| rank == 0) {
        let _ = writeln!(Stdout, "{text}");
    }
}

/// The number of this process among those of a run, if there are several.
static RANK: OnceLock<usize> = OnceLock::new();

/// From here on this process is one of several, with this number: what it complains of says so, and all but number 0 say nothing on the
/// standard output.
pub fn as_rank(rank: usize) {
    // The first one stays.
    let _ = RANK.set(rank);
}

/// What [`complain!`](crate::complain) does.
pub fn complaint(text: Arguments<'_>) {
    let _ = match RANK.get() {
        None => writeln!(stderr(), "{text}"),
        Some(rank) => writeln!(stderr(), "rank {rank}: {text}"),
    };
}

/// Writes what a program was asked for, whole, to the standard output. Returns whether somebody still reads it.
///
/// # Errors
/// It could not be written, for another reason than that nobody reads it.
pub fn show(text: &str) -> io::Result<bool> {
    match write_all(text.as_bytes()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// The standard output for what a program says on its way: writing to it never fails.
#[derive(Debug, Clone, Copy)]
pub struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Err(error) = write_all(bytes) {
            tell_once(&error);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The standard error. Whoever writes to it ignores failures: there is nobody left to be told of them.
#[allow(clippy::disallowed_methods)]
pub fn stderr() -> io::Stderr {
    io::stderr()
}

/// Whether the standard output is a terminal.
#[allow(clippy::disallowed_methods)]
pub fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

#[allow(clippy::disallowed_methods)]
fn write_all(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}

/// Says on the standard error, once, that the standard output cannot be written.
fn tell_once(error: &io::Error) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if error.kind() != ErrorKind::BrokenPipe && !TOLD.swap(true, Ordering::Relaxed) {
        complaint(format_args!("warning: {}", unwritten(error)));
    }
}

/// That the standard output could not be written, in words.
pub fn unwritten(error: &io::Error) -> String {
    format!("cannot write to the standard output: {error}")
}
