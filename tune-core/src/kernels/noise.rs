//! Noise on the embeddings of tokens (NEFTune, Jain et al. 2023, <https://arxiv.org/abs/2310.05914>).

use super::attention::Stretch;
use super::dropout::Dropout;
use super::element::Element;
use super::parallel;

/// Uniform noise, no larger than `alpha / sqrt(len * width)` in a sample of `len` tokens, whose embedding has `width` elements. Every
/// element is computed from a key and its index: a resumed run draws the same.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Noise {
    key: u64,
    width: usize,
    /// The largest of each token.
    largest: Vec<f64>,
}

impl Noise {
    /// That of a batch of `tokens`, among which its samples are.
    pub(crate) fn new(alpha: f64, key: u64, samples: &[Stretch], tokens: usize, width: usize) -> Self {
        let mut largest = vec![0.0; tokens];
        for sample in samples {
            largest[sample.queries..][..sample.len].fill(alpha / (sample.len as f64 * width as f64).sqrt());
        }
        Self { key: Dropout::mix_name(key, "embed_tokens"), width, largest }
    }

    /// The elements of a token's embedding.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// That of an element.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, column: usize) -> f64 {
        let bits = Dropout::mix(self.key, (row * self.width + column) as u64) >> 11;
        self.largest[row] * (bits as f64 / (1u64 << 52) as f64 - 1.0)
    }

    /// All of it, `[tokens, width]`.
    pub(crate) fn numbers<T: Element>(&self) -> Vec<T> {
        let mut numbers = vec![T::from_f32(0.0); self.largest.len() * self.width];
        parallel::each_chunk(&mut numbers, self.width.max(1), |row, numbers| {
            for (column, number) in numbers.iter_mut().enumerate() {
                *number = T::from_f32(self.at(row, column) as f32);
            }
        });
        numbers
    }

    /// Adds it to the embeddings `x` `[tokens, width]`.
    pub(crate) fn add_to<T: Element>(&self, x: &mut [T]) {
        parallel::each_chunk(x, self.width.max(1), |row, x| {
            for (column, x) in x.iter_mut().enumerate() {
                // Rounded before it is added, as where all of it is brought to a card.
                let noise = T::from_f32(self.at(row, column) as f32);
                *x = T::from_f32(x.to_f32() + noise.to_f32());
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(queries: usize, len: usize) -> Stretch {
        Stretch { queries, len, keys: queries, past: 0 }
    }

    #[test]
    fn it_is_uniform_up_to_what_a_samples_length_allows() {
        let width = 64;
        let noise = Noise::new(5.0, 7, &[sample(0, 100), sample(100, 25)], 125, width);
        let numbers: Vec<f32> = noise.numbers();
        for (rows, len) in [(0..100, 100.0), (100..125, 25.0)] {
            let largest = 5.0 / (len * width as f64).sqrt();
            let shares: Vec<_> =
                numbers[rows.start * width..rows.end * width].iter().map(|&x| f64::from(x) / largest).collect();
            let mean = |of: &dyn Fn(f64) -> f64| shares.iter().map(|&x| of(x)).sum::<f64>() / shares.len() as f64;
            assert!(shares.iter().all(|x| x.abs() <= 1.0) && shares.iter().any(|x| x.abs() > 0.99));
            assert!(mean(&|x| x).abs() < 0.04, "{}", mean(&|x| x));
            assert!((mean(&|x| x * x) - 1.0 / 3.0).abs() < 0.03, "{}", mean(&|x| x * x));
        }
    }

    #[test]
    fn what_is_added_is_what_a_card_is_given() {
        let noise = Noise::new(5.0, 7, &[sample(0, 3)], 3, 8);
        let numbers: Vec<half::bf16> = noise.numbers();
        let mut x = vec![half::bf16::ZERO; 24];
        noise.add_to(&mut x);
        assert_eq!(x, numbers);
        assert_ne!(numbers, Noise::new(5.0, 8, &[sample(0, 3)], 3, 8).numbers());
    }
}
