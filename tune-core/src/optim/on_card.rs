//! Steps that are taken on a card, where weights, gradients and state are.
//!
//! A step's numbers have the bits that the processor's steps have: both round each product, sum, quotient and root by itself, in
//! the same order. Only the norm of all gradients is summed in another order.

use super::{Gradient, StatePart, rounding_key};
use crate::Result;
use crate::engine::{Move, OnCard, Rule};
use crate::kernels::Dropout;
use crate::models::Parameter;

/// Moves parameters whose gradients are on a card by a rule, with `N` parts of state, and gradients times `scale`.
pub(super) fn update_on_card<const N: usize>(
    all: &[(&Parameter, &Gradient)],
    mut parts: [&mut StatePart; N],
    rule: Rule,
    scale: f64,
    step: u64,
) -> Result<()> {
    let all: Vec<(&Parameter, &OnCard)> =
        all.iter().filter_map(|(parameter, gradient)| Some((*parameter, gradient.on_card()?))).collect();
    let Some(card) = all.first().map(|(_, gradient)| gradient.card()) else { return Ok(()) };
    let mut state = Vec::with_capacity(all.len());
    for (parameter, _) in &all {
        let mut of_one = Vec::with_capacity(N);
        for part in &mut parts {
            of_one.push(part.take_on(card, parameter)?);
        }
        state.push(of_one);
    }
    let moves = all.iter().zip(&mut state).map(|((parameter, gradient), state)| {
        let mut state = state.iter_mut();
        let key = Dropout::mix(rounding_key(parameter, step), 0);
        Move { var: parameter.var(), gradient, first: state.next(), second: state.next(), key }
    });
    let result = card.step(rule, scale, moves.collect());
    for ((parameter, _), state) in all.iter().zip(state) {
        parts.iter_mut().zip(state).for_each(|(part, state)| part.put_on_card(parameter, state));
    }
    result
}
