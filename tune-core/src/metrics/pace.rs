//! Tokens per second.

use std::ops::AddAssign;

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

impl AddAssign for Pace {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.trained_tokens += other.trained_tokens;
        self.seconds += other.seconds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_apart_and_finite() {
        let pace = Pace { tokens: 300, trained_tokens: 100, seconds: 0.5 };
        assert_eq!(pace.tokens_per_second(), 600.0);
        assert_eq!(pace.trained_tokens_per_second(), 200.0);
        assert_eq!(Pace::default().tokens_per_second(), 0.0);
        let mut twice = pace;
        twice += pace;
        assert_eq!(twice, Pace { tokens: 600, trained_tokens: 200, seconds: 1.0 });
    }
}
