//! Numbers that nobody waits for before they are needed.

use std::fmt;

use crate::Result;

/// A number that is known, or that a card still computes.
#[derive(Default)]
pub struct Later(State);

enum State {
    Known(f64),
    Awaited(Box<dyn FnOnce() -> Result<f64> + Send>),
}

impl Default for State {
    fn default() -> Self {
        Self::Known(0.0)
    }
}

impl From<f64> for Later {
    fn from(known: f64) -> Self {
        Self(State::Known(known))
    }
}

impl Later {
    pub(crate) fn of(wait: impl FnOnce() -> Result<f64> + Send + 'static) -> Self {
        Self(State::Awaited(Box::new(wait)))
    }

    /// The number, if it is known already.
    pub fn known(&self) -> Option<f64> {
        match self.0 {
            State::Known(known) => Some(known),
            State::Awaited(_) => None,
        }
    }

    /// The number, when it is computed.
    ///
    /// # Errors
    /// What failed on the card that computes it.
    pub fn wait(self) -> Result<f64> {
        match self.0 {
            State::Known(known) => Ok(known),
            State::Awaited(wait) => wait(),
        }
    }

    /// Adds `factor` times another number.
    pub fn add(&mut self, factor: f64, other: Self) {
        let sum = match (std::mem::take(self).0, other.0) {
            (State::Known(sum), State::Known(other)) => State::Known(sum + factor * other),
            (sum, other) => State::Awaited(Box::new(move || Ok(Self(sum).wait()? + factor * Self(other).wait()?))),
        };
        *self = Self(sum);
    }
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.known() {
            Some(known) => write!(f, "Later({known})"),
            None => write!(f, "Later(..)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_sum_has_the_bits_of_what_is_known() {
        let numbers = [0.1, 0.7, -0.3];
        let mut right = 0.0;
        for number in numbers {
            right += 0.3 * number;
        }
        for later in 0..8 {
            let mut sum = Later::default();
            for (i, number) in numbers.into_iter().enumerate() {
                sum.add(0.3, if later & (1 << i) == 0 { number.into() } else { Later::of(move || Ok(number)) });
            }
            assert_eq!(sum.known().is_some(), later == 0);
            assert_eq!(sum.wait().unwrap().to_bits(), right.to_bits());
        }
    }

    #[test]
    fn what_failed_is_told() {
        let mut sum = Later::from(1.0);
        sum.add(1.0, Later::of(|| Err(Error::Training("lost".into()))));
        assert!(sum.wait().unwrap_err().to_string().contains("lost"));
    }
}
