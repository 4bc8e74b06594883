use super::{both, one};
use crate::aside::Reading;
use crate::buffer::{Buffer, Element, View, ViewMut};
use crate::context::Context;
use crate::error::Result;
use crate::launch::{Launch, MOST_ROWS, Size};
use crate::modules::Kernel;

static CHOOSE: [Kernel; 1] = [one("routes", "routes_choose", "pppliii")];
static PLACE: [Kernel; 1] = [one("routes", "routes_place", "ppppppli")];
static BACK: [Kernel; 2] = both("routes", ["routes_back_f32", "routes_back_bf16"], "pppppliii");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&CHOOSE, &PLACE, &BACK];

/// Which experts each token goes to. Places are numbered expert by expert, and by token within each. All of it is on the card; what is
/// known here is the shapes, and, once somebody has asked and waited for it, how many places each expert has.
#[derive(Debug)]
pub struct Routes {
    /// The experts of each token, `[tokens, chosen]`, and how much each counts.
    experts: Buffer<u32>,
    weights: Buffer<f32>,
    /// The place of each token at each of its experts.
    places: Buffer<u32>,
    /// The token at each place, and the weight of the choice that led there.
    tokens: Buffer<u32>,
    of_places: Buffer<f32>,
    /// The first place of each expert and the number of places: on the card, as they come, and once they are here.
    firsts: Buffer<u32>,
    on_the_way: Option<Reading<u32>>,
    starts: Vec<usize>,
    shape: Choice,
}

/// What is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Experts that there are.
    pub count: usize,
    /// Experts that a token goes to.
    pub chosen: usize,
    /// Whether the weights of the chosen ones are made to sum to one.
    pub renormalized: bool,
}

impl Routes {
    /// Places: a token has one at each of its experts.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The place of each token at each of its experts, `[tokens, chosen]`.
    pub fn places(&self) -> &Buffer<u32> {
        &self.places
    }

    /// How much each of these counts.
    pub fn weights(&self) -> &Buffer<f32> {
        &self.weights
    }

    /// The token at each place.
    pub fn tokens(&self) -> &Buffer<u32> {
        &self.tokens
    }

    /// How much each place counts.
    pub fn weights_of_places(&self) -> &Buffer<f32> {
        &self.of_places
    }

    /// The first place of each expert, and the number of places at the end, on the card.
    pub(super) fn firsts(&self) -> &Buffer<u32> {
        &self.firsts
    }

    /// Experts that there are.
    pub(super) fn count(&self) -> usize {
        self.shape.count
    }

    /// Experts that a token goes to.
    pub(super) fn chosen(&self) -> usize {
        self.shape.chosen
    }
}

impl Context {
    /// The most probable experts of each row of `logits` `[tokens, count]`, of equal ones the first, as the processor chooses them. Their
    /// weights are their probabilities over all experts, divided by their sum if `renormalized`. Does not wait.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn route(&self, logits: View<'_, f32>, choice: Choice) -> Routes {
        let Choice { count, chosen, renormalized } = choice;
        let (tokens, choices) = (logits.rows, logits.rows * chosen);
        let fits = logits.cols == count && logits.stride == count && (1..=count).contains(&chosen);
        assert!(fits && u32::try_from(choices).is_ok(), "route: shapes that do not fit");
        let (experts, weights) = (self.buffer(choices), self.buffer(choices));
        Launch::new(self, &CHOOSE[0])
            .pointer(experts.address())
            .pointer(weights.address())
            .pointer(logits.address)
            .long(tokens)
            .int(count)
            .int(chosen)
            .int(usize::from(renormalized))
            .go(by_tokens(tokens));
        let (places, of_places) = (self.buffer(choices), self.buffer(choices));
        let (tokens, firsts) = (self.buffer(choices), self.buffer::<u32>(count + 1));
        Launch::new(self, &PLACE[0])
            .pointer(places.address())
            .pointer(tokens.address())
            .pointer(of_places.address())
            .pointer(firsts.address())
            .pointer(experts.address())
            .pointer(weights.address())
            .long(choices)
            .int(chosen)
            .go(Size::row(count, 256, 2 * 8 * 4));
        let (on_the_way, starts) = (None, Vec::new());
        Routes { experts, weights, places, tokens, of_places, firsts, on_the_way, starts, shape: choice }
    }

    /// Has the first place of each expert be brought here behind the work so far. Does not wait.
    pub fn ask_starts(&self, routes: &mut Routes) {
        if routes.starts.is_empty() && routes.on_the_way.is_none() {
            routes.on_the_way = Some(self.read_later(&routes.firsts));
        }
    }

    /// The first place of each expert, and the number of places at the end. The first call waits until that is here.
    ///
    /// # Errors
    /// The context's first error.
    pub fn starts<'r>(&self, routes: &'r mut Routes) -> Result<&'r [usize]> {
        self.ask_starts(routes);
        if let Some(reading) = routes.on_the_way.take() {
            routes.starts = reading.wait()?.into_iter().map(|start| start as usize).collect();
        }
        Ok(&routes.starts)
    }

    /// The gradient of the logits, for that of the weights, `g` of each place. Which experts are chosen counts as fixed.
    ///
    /// # Panics
    /// If shapes do not fit.
    pub fn route_back<T: Element>(&self, logits: View<'_, f32>, routes: &Routes, g: &Buffer<f32>, y: ViewMut<'_, T>) {
        let Choice { count, chosen, renormalized } = routes.shape;
        let fits = logits.cols == count && logits.stride == count && y.shape() == logits.shape() && y.stride == count;
        let as_many = routes.len() == logits.rows * chosen && g.len() == routes.len();
        assert!(fits && as_many, "route_back: shapes that do not fit");
        Launch::new(self, &BACK[T::INDEX])
            .pointer(y.address)
            .pointer(logits.address)
            .pointer(routes.experts.address())
            .pointer(routes.places.address())
            .pointer(g.address())
            .long(logits.rows)
            .int(count)
            .int(chosen)
            .int(usize::from(renormalized))
            .go(by_tokens(logits.rows));
    }
}

/// A warp for each token.
fn by_tokens(tokens: usize) -> Size {
    Size::row(tokens.div_ceil(4).min(MOST_ROWS), 128, 0)
}
