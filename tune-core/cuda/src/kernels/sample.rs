use super::one;
use crate::buffer::{Buffer, View};
use crate::context::Context;
use crate::launch::{Launch, Size};
use crate::modules::Kernel;

static SAMPLE: [Kernel; 1] = [one("sample", "sample_tokens", "pppi")];

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&SAMPLE];

/// Shared memory of a block.
const SHARED: usize = 43_008;

/// How a token is drawn from a row of logits.
///
/// The weight of a token is `floor(2^(40 + z))`, with `z = (logit - the largest) * factor` in f32, and `2^z` by a fixed sequence of
/// operations, see `kernels/sample.cu`. Tokens are in order of their logits, of equal ones the lower id first. As all of it is computed
/// in integers, a row and a draw give the same token on every machine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// The token is the one at which the sum of weights passes this part of the mass, of 2^64.
    pub random: u64,
    /// The fewest first tokens are kept that have this part of the mass, of 2^64; all of them if it is 0.
    pub share: u64,
    /// Which row.
    pub row: u32,
    /// So many first tokens are kept, before `share` is asked for; all of them if it is 0.
    pub most: u32,
    /// `log2(e) / temperature`, above 0 and finite; the first token is drawn if it is 0.
    pub factor: f32,
    /// The same of the temperature at which the token's log-probability is wanted; 0 if it is not.
    pub scored: f32,
}

impl Draw {
    /// Numbers of four bytes that each takes on a card.
    pub const WORDS: usize = 8;

    /// Tokens of a row, at most: the sum of as many weights fits into 64 bits.
    pub const MOST_TOKENS: usize = (1 << 24) - 1;

    /// What a card is given: `Draw` of `kernels/sample.cu`.
    pub fn words(self) -> [u32; Self::WORDS] {
        let halves = |x: u64| [x as u32, (x >> 32) as u32];
        let ([random, random_high], [share, share_high]) = (halves(self.random), halves(self.share));
        [random, random_high, share, share_high, self.row, self.most, self.factor.to_bits(), self.scored.to_bits()]
    }
}

impl Context {
    /// Draws tokens by rows of `logits` `[.., vocab]`, for each of `draws` one, which are [`Draw::words`]. Returns `[draws, 2]`: the token,
    /// and the bits of the natural logarithm of its probability among all tokens of its row, an f32, 0 where that is not wanted. A row
    /// whose first token's logit is not finite gives that token, and what is no number for the logarithm.
    ///
    /// # Panics
    /// If shapes do not fit; a vocabulary of no tokens, or of more than [`Draw::MOST_TOKENS`].
    pub fn sample(&self, logits: View<'_, f32>, draws: &Buffer<u32>) -> Buffer<u32> {
        let (count, vocab) = (draws.len() / Draw::WORDS, logits.cols);
        let fits = draws.len().is_multiple_of(Draw::WORDS) && logits.stride == vocab;
        assert!(fits && (1..=Draw::MOST_TOKENS).contains(&vocab), "sample: shapes that do not fit");
        let found = self.buffer(2 * count);
        Launch::new(self, &SAMPLE[0])
            .pointer(found.address())
            .pointer(logits.address)
            .pointer(draws.address())
            .int(vocab)
            .go(Size::row(count, 1024, SHARED));
        found
    }
}
