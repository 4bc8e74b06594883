//! One thing for each of some trained parameters.

use std::sync::Arc;

use crate::models::Parameter;

/// One thing for each of some trained parameters, found by their places; names are there for who writes it down.
#[derive(Debug)]
pub(super) struct ByPlace<T>(Vec<Option<(Arc<str>, T)>>);

impl<T> Default for ByPlace<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> ByPlace<T> {
    pub(super) fn get(&self, parameter: &Parameter) -> Option<&T> {
        self.0.get(parameter.place())?.as_ref().map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, parameter: &Parameter) -> Option<&mut T> {
        self.0.get_mut(parameter.place())?.as_mut().map(|(_, value)| value)
    }

    /// In place of what was there.
    pub(super) fn insert(&mut self, parameter: &Parameter, value: T) {
        let place = parameter.place();
        if place >= self.0.len() {
            self.0.resize_with(place + 1, || None);
        }
        self.0[place] = Some((Arc::clone(parameter.name()), value));
    }

    /// What is there no more after that.
    pub(super) fn take(&mut self, parameter: &Parameter) -> Option<T> {
        self.0.get_mut(parameter.place())?.take().map(|(_, value)| value)
    }

    /// Places, names and values, in the order of places.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Arc<str>, &T)> {
        let slots = self.0.iter().enumerate();
        slots.filter_map(|(place, slot)| slot.as_ref().map(|(name, value)| (place, name, value)))
    }

    /// Places and values, in the order of places.
    pub(super) fn into_values(self) -> impl Iterator<Item = (usize, T)> {
        self.0.into_iter().enumerate().filter_map(|(place, slot)| slot.map(|(_, value)| (place, value)))
    }
}
