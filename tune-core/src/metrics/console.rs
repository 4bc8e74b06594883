//! What the person at the keyboard sees.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use tune_config::output;
use tune_hub::plain;

use super::format::{bytes, count, seconds};
use super::{EvaluationMetrics, Extra, MetricLogger, StepMetrics, ValidationMetrics};
use crate::{Result, words};

/// Shows how training goes: a progress bar on a terminal, a line per recorded step
/// elsewhere. Everything else (the report at the start, validations, notes, warnings) is
/// lines, above the bar.
///
/// A console that went away (a closed pipe) stops no training: failures to write are
/// ignored.
pub struct Console {
    out: Box<dyn Write + Send>,
    /// Where a bar may be drawn, until it is.
    target: Option<ProgressDrawTarget>,
    bar: Option<ProgressBar>,
    /// Steps of the whole run, once they are known.
    total: Option<u64>,
    /// Steps that this process did, and the time they took.
    steps: u64,
    seconds: f64,
}

impl Console {
    /// On standard error, which leaves standard output to results.
    pub fn stderr() -> Self {
        let terminal = output::stderr().is_terminal();
        Self::with(output::stderr(), terminal.then(ProgressDrawTarget::stderr))
    }

    /// Lines, to any writer.
    pub fn lines(out: impl Write + Send + 'static) -> Self {
        Self::with(out, None)
    }

    /// Nothing.
    pub fn silent() -> Self {
        Self::lines(std::io::sink())
    }

    /// A bar at `target`, and lines to `out`, which should be the same terminal.
    pub fn bar(out: impl Write + Send + 'static, target: ProgressDrawTarget) -> Self {
        Self::with(out, Some(target))
    }

    fn with(out: impl Write + Send + 'static, target: Option<ProgressDrawTarget>) -> Self {
        Self { out: Box::new(out), target, bar: None, total: None, steps: 0, seconds: 0.0 }
    }

    /// Writes a title and an aligned table below it: what is about to be trained.
    pub fn report<K: AsRef<str>, V: AsRef<str>>(&mut self, title: &str, rows: &[(K, V)]) {
        let width = rows.iter().map(|(k, _)| k.as_ref().chars().count()).max();
        let width = width.unwrap_or(0);
        let mut text = title.to_owned();
        for (key, value) in rows {
            let indent = format!("\n  {:width$}  ", "");
            let value = value.as_ref().trim_end().replace('\n', &indent);
            let _ = write!(text, "\n  {:width$}  {value}", key.as_ref());
        }
        self.line(&text);
    }

    /// Writes a line.
    pub fn note(&mut self, text: &str) {
        self.line(text);
    }

    /// Writes a line that begins with `warning:`.
    pub fn warn(&mut self, text: &str) {
        self.line(&format!("warning: {text}"));
    }

    /// The training loop begins: `done` of `total` steps are done. The total may come later.
    pub fn begin(&mut self, done: u64, total: impl Into<Option<u64>>) {
        self.total = total.into();
        self.steps = 0;
        self.seconds = 0.0;
        if let Some(target) = self.target.take() {
            let style = ProgressStyle::with_template("{bar:10} {pos}/{len} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(self.total, target)
                .with_style(style)
                .with_position(done)
                // What a run that fails had reached stays on the screen.
                .with_finish(ProgressFinish::Abandon);
            bar.tick();
            self.bar = Some(bar);
        }
    }

    /// The steps of the whole run are known.
    pub fn set_total(&mut self, total: u64) {
        self.total = Some(total);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    /// Counts a step and moves the bar, if there is one.
    pub fn advance(&mut self, metrics: &StepMetrics) {
        self.steps += 1;
        self.seconds += metrics.pace.seconds;
        if let Some(bar) = &self.bar {
            let [epoch, loss, extra, lr, grad, rate, trained, memory, left] = self.facts(metrics);
            // What matters most comes first: the terminal cuts off what it has no room for.
            let facts = [loss, extra, lr, rate, memory, left, grad, trained, epoch];
            bar.set_message(facts.into_iter().flatten().collect::<Vec<_>>().join(" · "));
            bar.set_position(metrics.step);
        }
    }

    /// What can be said of a step: epoch, loss, the recipe's own numbers, learning rate, gradient norm, tokens per
    /// second and trained ones, peak memory, time left.
    fn facts(&self, metrics: &StepMetrics) -> [Option<String>; 9] {
        let left = self.total.unwrap_or(0).saturating_sub(metrics.step);
        let each = self.seconds / self.steps.max(1) as f64;
        let pace = &metrics.pace;
        [
            Some(format!("epoch {}", metrics.epoch + 1)),
            Some(format!("loss {:.4}", metrics.loss)),
            Some(extras(&metrics.extra, "  ")).filter(|extras| !extras.is_empty()),
            Some(format!("lr {:.2e}", metrics.lr)),
            metrics.grad_norm.map(|norm| format!("grad {norm:.3}")),
            Some(format!("{} tok/s", count(pace.tokens_per_second()))),
            Some(format!("{} trained", count(pace.trained_tokens_per_second()))),
            metrics.peak_memory_bytes.map(bytes),
            (left > 0).then(|| format!("{} left", seconds(each * left as f64))),
        ]
    }

    fn line(&mut self, text: &str) {
        let (text, out) = (plain(text), &mut self.out);
        let mut write = || {
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

/// The numbers that are shown, in words.
fn extras(extra: &[Extra], between: &str) -> String {
    let name = |extra: &Extra| extra.name.rsplit('/').next().unwrap_or_default();
    let shown = extra.iter().filter(|extra| extra.on_console);
    shown.map(|extra| format!("{} {:.4}", name(extra), extra.value)).collect::<Vec<_>>().join(between)
}

impl MetricLogger for Console {
    /// Writes a line where there is no bar.
    fn log_step(&mut self, metrics: &StepMetrics) -> Result<()> {
        if self.bar.is_none() {
            let total = self.total.map_or_else(|| "?".to_owned(), |total| total.to_string());
            let width = total.len();
            let facts: Vec<_> = self.facts(metrics).into_iter().flatten().collect();
            let facts = facts.join("  ");
            self.line(&format!("step {:width$}/{total}  {facts}", metrics.step));
        }
        Ok(())
    }

    fn log_validation(&mut self, metrics: &ValidationMetrics) -> Result<()> {
        self.line(&format!(
            "step {}: validation loss {:.4}{} over {}, {}",
            metrics.step,
            metrics.loss,
            Some(extras(&metrics.extra, ", "))
                .filter(|extras| !extras.is_empty())
                .map_or_else(String::new, |extras| format!(", {extras}")),
            words::count(metrics.pace.trained_tokens, "token"),
            seconds(metrics.pace.seconds)
        ));
        Ok(())
    }

    fn log_evaluation(&mut self, metrics: &EvaluationMetrics) -> Result<()> {
        let values: Vec<String> = metrics.values.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let mut text = format!("step {}: ", metrics.step);
        match values.is_empty() {
            true => text += "samples",
            false => text += &format!("{}, {}", values.join(", "), seconds(metrics.seconds)),
        }
        for (prompt, answer) in &metrics.samples {
            let indented = |text: &str| text.trim_end().replace('\n', "\n     ");
            let _ = write!(text, "\n  {}\n  -> {}", indented(prompt), indented(answer));
        }
        self.line(&text);
        Ok(())
    }

    fn log_note(&mut self, step: u64, note: &str) -> Result<()> {
        self.line(&format!("step {step}: {note}"));
        Ok(())
    }

    /// The bar stays as it is, and what follows is written below it.
    fn close(&mut self) -> Result<()> {
        if let Some(bar) = self.bar.take() {
            bar.abandon();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    use super::super::tests::{step, validation};
    use super::*;

    /// A terminal, or a pipe, that remembers what was written to it.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<String>>);

    impl Screen {
        fn text(&self) -> String {
            self.0.lock().unwrap().clone()
        }

        fn push(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }
    }

    impl Write for Screen {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.push(std::str::from_utf8(buf).unwrap())?;
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            120
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, s: &str) -> io::Result<()> {
            self.push(&format!("{s}\n"))
        }
        fn write_str(&self, s: &str) -> io::Result<()> {
            self.push(s)
        }
        fn clear_line(&self) -> io::Result<()> {
            self.push("<clear>")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_where_there_is_no_terminal() {
        let screen = Screen::default();
        let mut console = Console::lines(screen.clone());
        console.report("lora", &[("device", "cpu, fp32"), ("base model", "tiny\nof 1.1 M")]);
        console.warn("`compile` has no meaning here");
        console.begin(7, None);
        console.log_step(&step(8)).unwrap();
        console.set_total(120);
        console.advance(&step(8));
        console.log_step(&step(8)).unwrap();
        console.log_validation(&validation(8)).unwrap();
        console.log_note(8, "saved out/step_8").unwrap();
        let last = StepMetrics { grad_norm: None, peak_memory_bytes: None, ..step(120) };
        console.advance(&last);
        console.log_step(&last).unwrap();
        console.close().unwrap();
        console.note("done");
        assert_eq!(
            screen.text(),
            "\
lora
  device      cpu, fp32
  base model  tiny
              of 1.1 M
warning: `compile` has no meaning here
step 8/?  epoch 1  loss 1.5000  lr 3.00e-4  grad 0.750  2.0k tok/s  500 trained  1.5 GiB
step   8/120  epoch 1  loss 1.5000  lr 3.00e-4  grad 0.750  2.0k tok/s  500 trained  1.5 GiB  56s left
step 8: validation loss 2.2500 over 40 tokens, 2s
step 8: saved out/step_8
step 120/120  epoch 1  loss 1.5000  lr 3.00e-4  2.0k tok/s  500 trained
done
"
        );
    }

    #[test]
    fn what_is_said_does_nothing_to_a_terminal() {
        let screen = Screen::default();
        Console::lines(screen.clone()).warn("columns that are not used: `\u{1b}[2J\u{202e}x`");
        assert_eq!(screen.text(), "warning: columns that are not used: `\\u{1b}[2J\\u{202e}x`\n");
    }

    #[test]
    fn a_bar_on_a_terminal_with_lines_above_it() {
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let mut console = Console::bar(screen.clone(), target);
        console.begin(0, 2);
        for n in 1..=2 {
            console.advance(&step(n));
            console.log_step(&step(n)).unwrap();
        }
        console.note("a note");
        console.close().unwrap();
        let at_close = screen.text();
        console.note("after");

        assert!(!at_close.contains("step 1/2"), "{at_close}");
        let (before, after) = at_close.rsplit_once("a note\n").unwrap();
        assert!(before.contains("0/2") && before.ends_with("<clear>"), "{before}");
        assert!(after.contains("2/2 loss 1.5000 · lr 3.00e-4 · 2.0k tok/s · 1.5 GiB · grad 0.750"), "{after}");
        assert_eq!(screen.text(), format!("{at_close}after\n"));
    }

    #[test]
    fn a_console_that_went_away_stops_nothing() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut console = Console::lines(Closed);
        console.note("nobody reads this");
        console.log_step(&step(1)).unwrap();
    }
}
