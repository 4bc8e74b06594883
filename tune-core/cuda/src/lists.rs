//! Short lists that change from step to step, at addresses that do not.

use std::sync::Arc;

use bytemuck::Pod;

use crate::buffer::Buffer;
use crate::context::Context;
use crate::ranges::ALIGNMENT;

/// Lists of numbers of four bytes, or of some such numbers, in one piece of the card's memory, which one copy brings there.
#[derive(Debug)]
pub struct Lists {
    on_card: Arc<Buffer<u32>>,
    here: Vec<u32>,
    /// Where each begins, and how many numbers of four bytes it has.
    places: Vec<(usize, usize)>,
}

impl Context {
    /// Memory for lists of so many numbers of four bytes each.
    pub fn lists(&self, lens: &[usize]) -> Lists {
        let mut end = 0;
        let place = |&len: &usize| {
            let at = end;
            end = (at + len).next_multiple_of(ALIGNMENT as usize / size_of::<u32>());
            (at, len)
        };
        let places: Vec<_> = lens.iter().map(place).collect();
        Lists { on_card: Arc::new(self.buffer(end)), here: vec![0; end], places }
    }

    /// Brings the lists to the card, behind all work so far.
    pub fn write_lists(&self, lists: &Lists) {
        if !lists.here.is_empty() {
            self.0.stage(lists.on_card.address(), bytemuck::cast_slice(&lists.here), self.0.stream);
        }
    }
}

impl Lists {
    /// A list on the card.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn on_card<T: Pod>(&self, list: usize) -> Buffer<T> {
        let (at, len) = self.places[list];
        Buffer::<u32>::within(&self.on_card, at, len).reused()
    }

    /// Replaces a list here.
    ///
    /// # Panics
    /// If it has not as many numbers.
    pub fn set<T: Pod>(&mut self, list: usize, numbers: &[T]) {
        let (at, len) = self.places[list];
        self.here[at..at + len].copy_from_slice(bytemuck::cast_slice(numbers));
    }
}
