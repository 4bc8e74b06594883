//! Tokens per second.

use std::time::Instant;

/// The tokens that went through the model in a stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pace {
    /// Tokens processed, padding not counted.
    pub tokens: u64,
    /// Those of them whose next token was trained.
    pub trained_tokens: u64,
    /// Wall-clock time in seconds.
    pub seconds: f64,
}

impl Pace {
    /// Processed tokens per second, 0 where no time has passed.
    pub fn tokens_per_second(&self) -> f64 {
        self.rate(self.tokens)
    }

    /// Trained tokens per second, 0 where no time has passed.
    pub fn trained_tokens_per_second(&self) -> f64 {
        self.rate(self.trained_tokens)
    }

    fn rate(&self, count: u64) -> f64 {
        if self.seconds > 0.0 { count as f64 / self.seconds } else { 0.0 }
    }
}

/// Counts the tokens of one step and takes its time.
///
/// A step lasts from [`begin`](Self::begin) to [`end`](Self::end), so that what is done
/// between steps (saving, validation) does not count against the speed of training.
#[derive(Debug, Default)]
pub struct Throughput {
    begun: Option<Instant>,
    tokens: u64,
    trained_tokens: u64,
}

impl Throughput {
    /// A step begins, before its first batch is fetched.
    pub fn begin(&mut self) {
        *self = Self { begun: Some(Instant::now()), ..Self::default() };
    }

    /// Counts a micro-batch.
    pub fn count(&mut self, tokens: usize, trained_tokens: usize) {
        self.tokens += tokens as u64;
        self.trained_tokens += trained_tokens as u64;
    }

    /// The step is over. Its time is 0 if it was never begun.
    pub fn end(&mut self) -> Pace {
        let pace = Pace {
            tokens: self.tokens,
            trained_tokens: self.trained_tokens,
            seconds: self.begun.map_or(0.0, |t| t.elapsed().as_secs_f64()),
        };
        *self = Self::default();
        pace
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_step_counts_from_begin_to_end() {
        let mut meter = Throughput::default();
        meter.count(1000, 1000);
        std::thread::sleep(Duration::from_millis(20));
        let begun = Instant::now();
        meter.begin();
        meter.count(30, 10);
        meter.count(50, 20);
        let pace = meter.end();
        assert_eq!((pace.tokens, pace.trained_tokens), (80, 30));
        assert!(pace.seconds > 0.0 && pace.seconds <= begun.elapsed().as_secs_f64(), "{pace:?}");
        assert_eq!(meter.end(), Pace::default());
    }

    #[test]
    fn rates_are_apart_and_finite() {
        let pace = Pace { tokens: 300, trained_tokens: 100, seconds: 0.5 };
        assert_eq!(pace.tokens_per_second(), 600.0);
        assert_eq!(pace.trained_tokens_per_second(), 200.0);
        assert_eq!(Pace::default().tokens_per_second(), 0.0);
    }
}
