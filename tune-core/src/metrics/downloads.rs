//! Downloads as they are seen on a terminal, and in a log.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use tune_config::output;

use super::format::bytes;
use crate::hub::Event;

/// Shows downloads on the standard error: a bar a file on a terminal, elsewhere a line a file. For
/// [`hub::watch`](crate::hub::watch).
pub struct Downloads {
    terminal: bool,
    bar: Option<ProgressBar>,
}

impl Downloads {
    /// What is to be told of each event.
    pub fn stderr() -> impl FnMut(Event<'_>) + Send + 'static {
        let mut downloads = Self { terminal: output::stderr().is_terminal(), bar: None };
        move |event| downloads.show(event)
    }

    fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Begin { file, size, done } if self.terminal => {
                let style = ProgressStyle::with_template("{msg} {bar:20} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar());
                let bar = ProgressBar::new(size).with_style(style).with_message(file.to_owned()).with_position(done);
                // The speed is that of this run.
                bar.reset_eta();
                self.bar = Some(bar);
            }
            Event::Begin { file, size, done: 0 } => {
                output::complaint(format_args!("downloading {file} ({})", bytes(size)));
            }
            Event::Begin { file, size, done } => {
                output::complaint(format_args!("downloading {file} ({} of {} are there)", bytes(done), bytes(size)));
            }
            Event::Bytes(count) => self.bar.iter().for_each(|bar| bar.inc(count)),
            Event::End => self.bar.take().iter().for_each(ProgressBar::finish),
            Event::Note(note) => output::complaint(format_args!("{note}")),
        }
    }
}
