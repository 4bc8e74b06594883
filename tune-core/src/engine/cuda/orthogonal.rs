//! Matrices that are made orthogonal on a card, for Muon.

use std::sync::Arc;

use tune_cuda::{Onto, Term};

use super::OnCard;
use crate::Result;

impl OnCard {
    /// `keep · self + share · other`, in memory of its own. A factor that clips `other` must have been applied.
    pub(crate) fn mixed(&self, keep: f64, other: &Self, share: f64) -> Self {
        let (context, len) = (&self.card.context, self.values.len());
        let mut values = context.buffer::<f32>(len);
        context.convert(self.values.view(len), keep as f32, false, values.view_mut(len));
        context.convert(other.values.view(len), share as f32, true, values.view_mut(len));
        Self { card: Arc::clone(&self.card), values, shape: self.shape.clone(), factor: None }
    }

    /// A matrix with the same singular vectors and singular values near 1, by so many steps of Newton and Schulz's iteration with these
    /// coefficients, from the matrix over its norm or over `least_norm`. Nothing of it is waited for. Sums are in f32, as the
    /// processor's are, in an order of cuBLASLt's.
    ///
    /// # Errors
    /// What is no matrix.
    pub(crate) fn orthogonal(self, steps: usize, [a, b, c]: [f64; 3], least_norm: f64) -> Result<Self> {
        let (out, inner) = self.shape.dims2()?;
        let Self { card, values, shape, .. } = self;
        let (context, len) = (&card.context, values.len());
        // Gradients are clipped to one by a factor of at most one: in units of the least norm that divides by the larger of both.
        let mut x = context.buffer::<f32>(len);
        context.convert(values.view(len), (1.0 / least_norm) as f32, false, x.view_mut(len));
        drop(values);
        let factor = context.clip_factor(&context.squares(&[&x]), 1.0);
        context.scale_rows(x.view_mut(len), &factor);
        // Products with the transpose are as small as can be, and symmetric.
        let (is_tall, small) = (out > inner, out.min(inner));
        let square = small * small;
        for _ in 0..steps {
            let [mut gram, mut odd] = [(); 2].map(|()| context.buffer::<f32>(square));
            let of_itself = match is_tall {
                true => Term::Across { g: x.view(inner), x: x.view(inner) },
                false => Term::Up { x: x.view(inner), w: x.view(inner) },
            };
            context.multiply(of_itself, 1.0, None, Onto::Nothing, gram.view_mut(small));
            context.convert(gram.view(square), b as f32, false, odd.view_mut(square));
            let squared = Term::Up { x: gram.view(small), w: gram.view(small) };
            context.multiply(squared, c as f32, None, Onto::Itself, odd.view_mut(small));
            drop(gram);
            let mut next = context.buffer::<f32>(len);
            context.convert(x.view(len), a as f32, false, next.view_mut(len));
            let moved = match is_tall {
                true => Term::Up { x: x.view(inner), w: odd.view(small) },
                false => Term::Down { g: odd.view(small), w: x.view(inner) },
            };
            context.multiply(moved, 1.0, None, Onto::Itself, next.view_mut(inner));
            x = next;
        }
        Self::new(&card, x, &shape).map_err(Into::into)
    }
}
