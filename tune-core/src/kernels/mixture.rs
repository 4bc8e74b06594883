//! What a distilled student minimizes.

/// A mixture of cross-entropy and of divergence from a teacher.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixture {
    /// The share of the divergence; the rest is cross-entropy.
    pub(crate) ratio: f64,
    /// The share of the forward divergence in it; the rest is the reverse one.
    forward: f64,
    /// Whether both are compared with their weighted mean, the teacher's share being `forward`, and not with each other.
    from_middle: bool,
    /// What the logits of both are divided by in the divergence.
    temperature: f64,
}

impl Mixture {
    /// The divergence counts `ratio` and cross-entropy the rest; of the divergence, `forward` is the forward one and the rest
    /// the reverse one. Both are from 0 to 1.
    pub fn new(ratio: f64, forward: f64) -> Self {
        Self { ratio, forward, from_middle: false, temperature: 1.0 }
    }

    /// The divergence counts `ratio` and cross-entropy the rest; teacher and student are compared with their weighted mean, in
    /// which the teacher's share is `teacher`, from 0 to 1 without the ends.
    pub(crate) fn from_middle(ratio: f64, teacher: f64) -> Self {
        Self { from_middle: true, ..Self::new(ratio, teacher) }
    }

    /// With the logits of both divided by a `temperature` above 0 in the divergence (and not in cross-entropy). As in TRL, nothing makes
    /// up for the smaller gradients of a high one.
    #[must_use]
    pub fn at(self, temperature: f64) -> Self {
        Self { temperature, ..self }
    }

    /// Whether the two are compared with each other, at a temperature of 1.
    pub(crate) fn is_plain(&self) -> bool {
        !self.from_middle && self.temperature == 1.0
    }

    /// What logits are divided by in the divergence.
    pub(crate) fn temperature(&self) -> f64 {
        self.temperature
    }

    /// The teacher's share of the mean of the two, where they are compared with that.
    pub(crate) fn middle(&self) -> Option<f64> {
        self.from_middle.then_some(self.forward)
    }

    /// What is minimized, of a cross-entropy and a divergence.
    pub fn of(&self, cross_entropy: f64, divergence: f64) -> f64 {
        (1.0 - self.ratio) * cross_entropy + self.ratio * divergence
    }

    /// What forward and reverse divergence count in the divergence, or the teacher's and the student's from their mean.
    pub(crate) fn shares(&self) -> [f64; 2] {
        [self.forward, 1.0 - self.forward]
    }

    /// What cross-entropy and these two count in what is minimized.
    pub(crate) fn parts(&self) -> [f64; 3] {
        let [forward, reverse] = self.shares();
        [1.0 - self.ratio, self.ratio * forward, self.ratio * reverse]
    }
}
