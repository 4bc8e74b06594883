//! Ctrl-C and SIGTERM: a run that listens finishes its step and saves; any other program ends at once.

use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fmt, io};

/// The first signal that came while somebody listened; 0 before.
static REQUEST: AtomicI32 = AtomicI32::new(0);
/// How many listen.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);
/// When the first signal came, in milliseconds of the system's clock.
#[cfg(unix)]
static FIRST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// For this many milliseconds after the first signal another one is the same request: `timeout` and systemd send theirs to a program and
/// to its group, and [`run`] passes on what the terminal may have sent already.
#[cfg(unix)]
const SAME_REQUEST: u64 = 400;
/// How often a program that was started is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// What asked a program to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// The exit code of a program that ends because of it: 130 after Ctrl-C, 143 after SIGTERM.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        u8::try_from(128 + self.0).unwrap_or(u8::MAX)
    }
}

impl Signal {
    /// Whether it is Ctrl-C.
    #[must_use]
    pub fn is_interrupt(self) -> bool {
        self.0 == 2
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            2 => "Ctrl-C",
            15 => "SIGTERM",
            1 => "SIGHUP",
            _ => "a signal",
        })
    }
}

/// The signal that asked the program to end, while somebody listened.
pub fn requested() -> Option<Signal> {
    match REQUEST.load(Ordering::Relaxed) {
        0 => None,
        number => Some(Signal(number)),
    }
}

/// The same, once: what was asked for is done, and the next signal is the first again.
pub fn take() -> Option<Signal> {
    match REQUEST.swap(0, Ordering::SeqCst) {
        0 => None,
        number => Some(Signal(number)),
    }
}

/// While this lives, the first signal is an answer of [`requested`], and only a second one, a moment later, ends the program at once.
#[derive(Debug)]
pub struct Listening(());

impl Listening {
    /// Begins to listen.
    #[must_use]
    pub fn begin() -> Self {
        LISTENERS.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Starts a program and waits for its end. What asks this program to end meanwhile asks that one: each signal is passed on. Returned is
/// how it ended, and the first of these signals.
///
/// # Errors
/// It cannot be started.
pub fn run(command: &mut Command) -> io::Result<(ExitStatus, Option<Signal>)> {
    let _listening = Listening::begin();
    let mut asked = None;
    let mut child = command.spawn()?;
    loop {
        let ended = child.try_wait()?;
        if let Some(signal) = take() {
            asked.get_or_insert(signal);
            if ended.is_none() {
                pass_on(signal, &child);
            }
        }
        match ended {
            Some(status) => return Ok((status, asked)),
            None => std::thread::sleep(PAUSE),
        }
    }
}

/// Starts programs that are one run, and waits until all have ended. Signals are passed on to each, as by [`run`]. Once one has failed,
/// the others have a while to end by themselves, the second of `grace` where a signal has asked for it and else the first; then they are
/// killed. Returned is how those ended that were not killed so, in that order.
///
/// # Errors
/// One cannot be started; then those that were are killed.
pub fn run_together(commands: &mut [Command], grace: [Duration; 2]) -> io::Result<Vec<ExitStatus>> {
    let _listening = Listening::begin();
    let mut children: Vec<Child> = Vec::new();
    let (mut ended, mut failed, mut asked) = (Vec::new(), None, false);
    for command in commands {
        match command.spawn() {
            Ok(child) => children.push(child),
            Err(error) => {
                kill(&mut children);
                return Err(error);
            }
        }
    }
    while !children.is_empty() {
        if let Some(signal) = take() {
            asked = true;
            children.iter().for_each(|child| pass_on(signal, child));
        }
        let mut running = Vec::new();
        for mut child in children {
            match child.try_wait()? {
                None => running.push(child),
                Some(status) => {
                    ended.push(status);
                    if !status.success() {
                        failed.get_or_insert_with(Instant::now);
                    }
                }
            }
        }
        children = running;
        if failed.is_some_and(|since: Instant| since.elapsed() > grace[usize::from(asked)]) {
            kill(&mut children);
            break;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(ended)
}

/// Ends programs at once.
fn kill(children: &mut [Child]) {
    for child in children {
        // One that has just ended need not be.
        _ = child.kill();
        _ = child.wait();
    }
}

#[cfg(unix)]
fn pass_on(signal: Signal, to: &Child) {
    if let Ok(process) = libc::pid_t::try_from(to.id()) {
        // SAFETY: a plain call; nobody has waited for the process, so that its number is still its own.
        unsafe { libc::kill(process, signal.0) };
    }
}

#[cfg(not(unix))]
fn pass_on(_: Signal, _: &Child) {}

/// Makes signals what this module says, for the whole process; those that are ignored, as under `nohup`, stay so. A
/// file that grows beyond `ulimit -f` becomes an error of writing it. Called once by a program's `main`.
#[cfg(unix)]
pub fn handle() {
    let handler = on_signal as *const () as libc::sighandler_t;
    // SAFETY: `on_signal` does only what a signal handler may: atomics, `write` and `_exit`.
    unsafe {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            if libc::signal(signal, handler) == libc::SIG_IGN {
                libc::signal(signal, libc::SIG_IGN);
            }
        }
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// There are no signals here: Ctrl-C ends the program at once.
#[cfg(not(unix))]
pub fn handle() {}

#[cfg(unix)]
extern "C" fn on_signal(signal: libc::c_int) {
    let now = milliseconds();
    let listened = LISTENERS.load(Ordering::SeqCst) > 0;
    if listened && REQUEST.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        FIRST.store(now, Ordering::SeqCst);
        return;
    }
    // It may save already, and listen no more; or another thread may be just where the first one is noted.
    let (second, first) = (REQUEST.load(Ordering::SeqCst) != 0, FIRST.load(Ordering::SeqCst));
    if second && (first == 0 || now.saturating_sub(first) < SAME_REQUEST) {
        return;
    }
    let said: &[u8] = if second { b"\nstopped at once\n" } else { b"\nstopped\n" };
    // SAFETY: both may be called in a signal handler, and `said` is as long as it says.
    unsafe {
        libc::write(libc::STDERR_FILENO, said.as_ptr().cast(), said.len());
        libc::_exit(128 + signal);
    }
}

/// The system's clock, which a signal handler may ask.
#[cfg(unix)]
fn milliseconds() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes where there is a `timespec`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    (now.tv_sec as u64).saturating_mul(1000).saturating_add(now.tv_nsec as u64 / 1_000_000)
}
