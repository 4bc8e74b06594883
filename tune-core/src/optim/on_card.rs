//! Steps that are taken on a card, where weights, gradients and state are.
//!
//! A step's numbers have the bits that the processor's steps have: both round each product, sum, quotient and root by itself, in
//! the same order. Only the norm of all gradients is summed in another order.

use super::{Gradient, StatePart, rounding};
use crate::Result;
use crate::engine::{Move, OnCard, Rule};
use crate::kernels::Dropout;
use crate::models::Parameter;

/// Moves parameters whose gradients are on a card by a rule, with `N` parts of state, and gradients times `scale`.
pub(super) fn update_on_card<const N: usize>(
    all: &[(&Parameter, &Gradient)],
    parts: [&mut StatePart; N],
    rule: Rule,
    scale: f64,
    step: u64,
) -> Result<()> {
    update_by_keys(all, parts, rule, scale, &|parameter| key_of_part(rounding(parameter, step)))
}

/// The key of the random bits of a part that begins at an element: other parts have other bits.
fn key_of_part((key, first): (u64, usize)) -> u64 {
    if first == 0 { key } else { Dropout::mix(key, first as u64) }
}

/// The same with a key of its own for the random bits that round a parameter.
pub(super) fn update_by_keys<const N: usize>(
    all: &[(&Parameter, &Gradient)],
    mut parts: [&mut StatePart; N],
    rule: Rule,
    scale: f64,
    key_of: &dyn Fn(&Parameter) -> u64,
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
        let (first, second, third) = (state.next(), state.next(), state.next());
        Move { var: parameter.var(), gradient, first, second, third, key: Dropout::mix(key_of(parameter), 0) }
    });
    let result = card.step(rule, scale, moves.collect());
    for ((parameter, _), state) in all.iter().zip(state) {
        parts.iter_mut().zip(state).for_each(|(part, state)| part.put_on_card(parameter, state));
    }
    result
}

/// Puts a parameter of a card between two parts of a state, this share of the way from `near` to `far`; where `near` is nothing, at `far`.
pub(super) fn place_on_card(
    parameter: &Parameter,
    (near, far): (Option<&mut StatePart>, &mut StatePart),
    share: f64,
    key: u64,
) -> Result<()> {
    let Some(card) = parameter.card() else { return Ok(()) };
    let mut first = near.map(|near| Ok::<_, crate::Error>((near.take_on(card, parameter)?, near))).transpose()?;
    let gradient = far.take_on(card, parameter)?;
    let from = first.as_mut().map(|(first, _)| first);
    let key = Dropout::mix(key, 0);
    let one = Move { var: parameter.var(), gradient: &gradient, first: from, second: None, third: None, key };
    let result = card.step(Rule::Between(share), 1.0, vec![one]);
    far.put_on_card(parameter, gradient);
    if let Some((state, near)) = first {
        near.put_on_card(parameter, state);
    }
    result
}
