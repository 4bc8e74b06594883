//! What a monitor asks for, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the times that are counted apart, in seconds.
const BOUNDS: [f64; 12] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// Times, by how long they were.
#[derive(Debug, Default)]
struct Times {
    counts: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    microseconds: AtomicU64,
}

impl Times {
    fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bound, count) in BOUNDS.iter().zip(&self.counts) {
            count.fetch_add(u64::from(seconds <= *bound), Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.microseconds.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
    }

    fn write(&self, name: &str, what: &str, to: &mut String) {
        let count = self.count.load(Ordering::Relaxed);
        let _ = writeln!(to, "# HELP {name} {what}\n# TYPE {name} histogram");
        for (bound, count) in BOUNDS.iter().zip(&self.counts) {
            let _ = writeln!(to, "{name}_bucket{{le=\"{bound}\"}} {}", count.load(Ordering::Relaxed));
        }
        let sum = self.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(to, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum}\n{name}_count {count}");
    }
}

/// What the server has done, and what it does now.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    responses: Mutex<BTreeMap<(&'static str, u16), u64>>,
    prompt_tokens: AtomicU64,
    new_tokens: AtomicU64,
    hung_up: AtomicU64,
    running: AtomicUsize,
    waiting: AtomicUsize,
    first: Times,
    whole: Times,
}

impl Metrics {
    /// A response begins.
    pub(crate) fn response(&self, route: &'static str, status: u16) {
        let mut responses = self.responses.lock().unwrap_or_else(PoisonError::into_inner);
        *responses.entry((route, status)).or_default() += 1;
    }

    pub(crate) fn now(&self, running: usize, waiting: usize) {
        self.running.store(running, Ordering::Relaxed);
        self.waiting.store(waiting, Ordering::Relaxed);
    }

    pub(crate) fn prompt(&self, tokens: usize) {
        self.prompt_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    pub(crate) fn token(&self) {
        self.new_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// The first token of a request came so long after it.
    pub(crate) fn first(&self, time: Duration) {
        self.first.add(time);
    }

    /// A request was answered in so long.
    pub(crate) fn whole(&self, time: Duration) {
        self.whole.add(time);
    }

    /// A client did not wait for the end.
    pub(crate) fn hung_up(&self) {
        self.hung_up.fetch_add(1, Ordering::Relaxed);
    }

    /// All of it.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "# HELP tune_responses_total Responses by route and status.\n# TYPE tune_responses_total counter"
        );
        for ((route, status), count) in &*self.responses.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = writeln!(text, "tune_responses_total{{route=\"{route}\",status=\"{status}\"}} {count}");
        }
        let counters = [
            ("tune_prompt_tokens_total", "Tokens of prompts that were accepted.", &self.prompt_tokens),
            ("tune_new_tokens_total", "Tokens that were drawn.", &self.new_tokens),
            ("tune_hung_up_total", "Requests whose client did not wait for the end.", &self.hung_up),
        ];
        for (name, what, value) in counters {
            let value = value.load(Ordering::Relaxed);
            let _ = writeln!(text, "# HELP {name} {what}\n# TYPE {name} counter\n{name} {value}");
        }
        let gauges = [
            ("tune_sequences_running", "Sequences that are being answered.", &self.running),
            ("tune_sequences_waiting", "Sequences that wait.", &self.waiting),
        ];
        for (name, what, value) in gauges {
            let value = value.load(Ordering::Relaxed);
            let _ = writeln!(text, "# HELP {name} {what}\n# TYPE {name} gauge\n{name} {value}");
        }
        self.first.write("tune_first_token_seconds", "From a request to its first token.", &mut text);
        self.whole.write("tune_answer_seconds", "From a request to the end of its answer.", &mut text);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_counted() {
        let metrics = Metrics::default();
        metrics.response("/v1/completions", 200);
        metrics.response("/v1/completions", 200);
        metrics.response("/v1/completions", 429);
        metrics.now(3, 5);
        metrics.token();
        metrics.first(Duration::from_millis(50));
        metrics.first(Duration::from_secs(1000));
        let text = metrics.text();
        for line in [
            "tune_responses_total{route=\"/v1/completions\",status=\"200\"} 2",
            "tune_responses_total{route=\"/v1/completions\",status=\"429\"} 1",
            "tune_sequences_running 3",
            "tune_sequences_waiting 5",
            "tune_new_tokens_total 1",
            "tune_first_token_seconds_bucket{le=\"0.03\"} 0",
            "tune_first_token_seconds_bucket{le=\"0.1\"} 1",
            "tune_first_token_seconds_bucket{le=\"600\"} 1",
            "tune_first_token_seconds_bucket{le=\"+Inf\"} 2",
            "tune_first_token_seconds_sum 1000.05",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
