//! Steps of optimizers, without rounding.

/// Adam with decoupled weight decay (Loshchilov & Hutter 2017, <https://arxiv.org/abs/1711.05101>), in the order of PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a weight taken away, times the learning rate.
    pub weight_decay: f64,
}

impl AdamW {
    /// Step `step` (from 1) with the gradient `scale · g`: weights and both moments are changed in place.
    ///
    /// `m ← β₁ m + (1 - β₁) g`, `v ← β₂ v + (1 - β₂) g²`,
    /// `w ← (1 - lr · decay) w - lr / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps)`.
    pub fn step(&self, w: &mut [f64], [m, v]: [&mut [f64]; 2], g: &[f64], scale: f64, step: u64) {
        assert_eq!([w.len(), m.len(), v.len()], [g.len(); 3], "AdamW: shapes that do not fit");
        let [b1, b2] = self.betas;
        let size = self.lr / (1.0 - b1.powf(step as f64));
        let root = (1.0 - b2.powf(step as f64)).sqrt();
        for (i, g) in g.iter().map(|g| g * scale).enumerate() {
            m[i] = b1 * m[i] + (1.0 - b1) * g;
            v[i] = b2 * v[i] + (1.0 - b2) * g * g;
            w[i] = (1.0 - self.lr * self.weight_decay) * w[i] - size * m[i] / (v[i].sqrt() / root + self.eps);
        }
    }
}

/// Gradient descent with momentum, as PyTorch defines it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    /// Learning rate of this step.
    pub lr: f64,
    /// Share of the velocity that a step keeps.
    pub momentum: f64,
    /// Share of a weight added to its gradient.
    pub weight_decay: f64,
}

impl Sgd {
    /// One step with the gradient `scale · g`: `u ← momentum · u + scale · g + decay · w`, `w ← w - lr · u`. Without a velocity `u`
    /// counts as zero before the step.
    pub fn step(&self, w: &mut [f64], mut velocity: Option<&mut [f64]>, g: &[f64], scale: f64) {
        assert_eq!(w.len(), g.len(), "SGD: shapes that do not fit");
        for (i, w) in w.iter_mut().enumerate() {
            let before = velocity.as_deref().map_or(0.0, |u| u[i]);
            let u = self.momentum * before + scale * g[i] + self.weight_decay * *w;
            if let Some(velocity) = velocity.as_deref_mut() {
                velocity[i] = u;
            }
            *w -= self.lr * u;
        }
    }
}

/// Lion (Chen et al. 2023, <https://arxiv.org/abs/2302.06675>), as its authors have it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lion {
    /// Learning rate of this step: the way that a weight goes.
    pub lr: f64,
    /// The share of the mean in a step's direction, and the decay of the mean.
    pub betas: [f64; 2],
    /// Share of a weight taken away, times the learning rate.
    pub weight_decay: f64,
}

impl Lion {
    /// One step with the gradient `scale · g`: `w ← (1 - lr · decay) w - lr · sign(β₁ m + (1 - β₁) g)`, `m ← β₂ m + (1 - β₂) g`. Zero
    /// has no sign.
    pub fn step(&self, w: &mut [f64], m: &mut [f64], g: &[f64], scale: f64) {
        assert_eq!([w.len(), m.len()], [g.len(); 2], "Lion: shapes that do not fit");
        let [b1, b2] = self.betas;
        for (i, g) in g.iter().map(|g| g * scale).enumerate() {
            let direction = b1 * m[i] + (1.0 - b1) * g;
            let sign = if direction == 0.0 { 0.0 } else { direction.signum() };
            w[i] = (1.0 - self.lr * self.weight_decay) * w[i] - self.lr * sign;
            m[i] = b2 * m[i] + (1.0 - b2) * g;
        }
    }
}

/// AdamW without a schedule (Defazio et al. 2024, <https://arxiv.org/abs/2405.15682>), as its authors have it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScheduleFree {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of the weights taken away, times the learning rate.
    pub weight_decay: f64,
    /// The share of where this step leads to in the mean.
    pub new: f64,
}

impl ScheduleFree {
    /// Step `step` (from 1) with the gradient `scale · g` at the weights `y`: `v ← β₂ v + (1 - β₂) g²`,
    /// `z ← z - lr (g / (√(v / (1 - β₂ᵗ)) + eps) + decay · y)`, `x ← x + new (z - x)`, `y ← x`.
    pub fn step(&self, y: &mut [f64], [z, v, x]: [&mut [f64]; 3], g: &[f64], scale: f64, step: u64) {
        assert_eq!([y.len(), z.len(), v.len(), x.len()], [g.len(); 4], "schedule-free AdamW: shapes that do not fit");
        let bias = 1.0 - self.beta2.powf(step as f64);
        for (i, g) in g.iter().map(|g| g * scale).enumerate() {
            v[i] = self.beta2 * v[i] + (1.0 - self.beta2) * g * g;
            z[i] -= self.lr * (g / ((v[i] / bias).sqrt() + self.eps) + self.weight_decay * y[i]);
            x[i] += self.new * (z[i] - x[i]);
            y[i] = x[i];
        }
    }
}

/// Goes a share of the way from `x` to `z`.
pub fn between(x: &[f64], z: &[f64], share: f64) -> Vec<f64> {
    assert_eq!(x.len(), z.len(), "between: shapes that do not fit");
    x.iter().zip(z).map(|(x, z)| x + share * (z - x)).collect()
}

/// Numbers as an optimizer's state in blocks has them (Dettmers et al. 2021, <https://arxiv.org/abs/2110.02861>): each is the nearest of
/// `values` times the largest of its block.
pub fn in_blocks(x: &mut [f64], block: usize, values: &[f64]) {
    for numbers in x.chunks_mut(block) {
        let scale = numbers.iter().fold(1e-12f64, |most, x| most.max(x.abs()));
        for x in numbers {
            let off = |value: &f64| (value * scale - *x).abs();
            let nearest = values.iter().min_by(|a, b| off(a).total_cmp(&off(b)));
            *x = nearest.map_or(0.0, |value| value * scale);
        }
    }
}

/// The sum of squares.
pub fn squared_norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum()
}
