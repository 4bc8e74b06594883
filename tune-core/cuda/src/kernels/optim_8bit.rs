use bytemuck::{Pod, Zeroable};
use half::bf16;

use super::optim::{AdamW, pieces};
use super::{address, both};
use crate::buffer::{Buffer, Element};
use crate::context::Context;
use crate::launch::{Launch, Size};
use crate::modules::Kernel;

static ADAMW: [Kernel; 2] = both("optim_8bit", ["adamw_8bit_f32", "adamw_8bit_bf16"], "pppffffffff");

#[cfg(test)]
pub(super) const ALL: &[&[Kernel]] = &[&ADAMW];

/// Numbers that share a scale.
const BLOCK: usize = 256;

/// What codes stand for, times the scale of a block, and the number that the next code begins at: infinite for the last.
#[derive(Debug, Clone, Copy)]
pub struct Maps<'a> {
    /// Of the mean of the gradients: values and ends.
    pub first: [&'a [f32; 256]; 2],
    /// Of the mean of their squares.
    pub second: [&'a [f32; 256]; 2],
}

/// A parameter that steps move whose state is in blocks of eight bits: a code for each element, and a scale for each 256 of them.
#[derive(Debug)]
pub struct Moved8bit<'a, W> {
    /// The weight.
    pub weight: &'a mut Buffer<W>,
    /// Codes and scales of the mean of the gradients.
    pub first: (&'a mut Buffer<u8>, &'a mut Buffer<f32>),
    /// Those of the mean of their squares.
    pub second: (&'a mut Buffer<u8>, &'a mut Buffer<f32>),
    /// The gradient.
    pub gradient: &'a Buffer<f32>,
    /// What random rounding uses, of the parameter's name and the step.
    pub key: u64,
    /// Where an f32 weight goes in bf16, too, rounded to the nearest.
    pub copy: Option<&'a mut Buffer<bf16>>,
}

/// A parameter as the kernel reads it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Parameter {
    weight: u64,
    gradient: u64,
    first_codes: u64,
    second_codes: u64,
    first_scales: u64,
    second_scales: u64,
    key: u64,
    copy: u64,
}

impl Context {
    /// Step `step` (from 1) of AdamW on the numbers that codes stand for, with gradients times `scale`. bf16 weights are rounded at random.
    ///
    /// # Panics
    /// If a parameter and what belongs to it differ in length.
    pub fn adamw_8bit<W: Element>(
        &self,
        moved: Vec<Moved8bit<'_, W>>,
        maps: Maps<'_>,
        rule: AdamW,
        scale: f32,
        step: u64,
    ) {
        let parameters: Vec<Parameter> = moved
            .iter()
            .map(|m| {
                let (len, scales) = (m.weight.len(), m.weight.len().div_ceil(BLOCK));
                let fits = [m.gradient.len(), m.first.0.len(), m.second.0.len()] == [len; 3]
                    && [m.first.1.len(), m.second.1.len()] == [scales; 2]
                    && m.copy.as_ref().is_none_or(|copy| copy.len() == len && size_of::<W>() == 4);
                assert!(fits, "a parameter of {len} elements with state or a gradient of another length");
                Parameter {
                    weight: m.weight.address(),
                    gradient: m.gradient.address(),
                    first_codes: m.first.0.address(),
                    second_codes: m.second.0.address(),
                    first_scales: m.first.1.address(),
                    second_scales: m.second.1.address(),
                    key: m.key,
                    copy: address(m.copy.as_deref()),
                }
            })
            .collect();
        let pieces = pieces(moved.iter().map(|m| m.weight.len()));
        let maps = [maps.first, maps.second].as_flattened().iter().flat_map(|map| **map).collect::<Vec<f32>>();
        let (parameters, on_card, maps) =
            (self.upload_ahead(&parameters), self.upload_ahead(&pieces), self.upload_ahead(&maps));
        let ([b1, b2], step) = (rule.betas, step as f64);
        Launch::new(self, &ADAMW[W::INDEX])
            .pointer(parameters.address())
            .pointer(on_card.address())
            .pointer(maps.address())
            .float(scale)
            .float((1.0 - b1) as f32)
            .float(b2 as f32)
            .float((1.0 - b2) as f32)
            .float((rule.lr / (1.0 - b1.powf(step))) as f32)
            .float((1.0 - b2.powf(step)).sqrt() as f32)
            .float((1.0 - rule.lr * rule.weight_decay) as f32)
            .float(rule.eps as f32)
            .go(Size::row(pieces.len(), 256, 4 * 4 * BLOCK));
    }
}
