//! What becomes of the sums of a product while they are still in the cache.

use crate::kernels::view::View;
use crate::kernels::{Dropout, Element};

/// What becomes of a sum.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Finish<'a, D> {
    /// It is rounded to the destination's type.
    Store,
    /// It is added to the destination.
    Add,
    /// It is multiplied by a factor.
    Scaled(f32),
    /// It is added to the same element of another matrix.
    Onto(View<'a, D>),
    /// A row is added to each of its rows.
    Plus(&'a [D]),
    /// It is dropped or scaled, and added to the destination. Row `i` of a selection counts as row `rows[i]`.
    AddDropped(Dropout, Option<&'a [usize]>),
}

/// Where part of a row of the result is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    pub(crate) row: usize,
    pub(crate) col: usize,
}

/// What becomes of a part of a row of sums: `epilogue(at, sums, destination)`.
pub(crate) trait Epilogue<D>: Fn(At, &[f32], &mut [D]) + Sync {}
impl<D, F: Fn(At, &[f32], &mut [D]) + Sync> Epilogue<D> for F {}

/// See [`Finish::Store`].
#[inline(always)]
pub(crate) fn store<D: Element>(_: At, sums: &[f32], dst: &mut [D]) {
    for (d, &s) in dst.iter_mut().zip(sums) {
        *d = D::from_f32(s);
    }
}

/// See [`Finish::Add`].
#[inline(always)]
pub(crate) fn add<D: Element>(_: At, sums: &[f32], dst: &mut [D]) {
    for (d, &s) in dst.iter_mut().zip(sums) {
        *d = D::from_f32(d.to_f32() + s);
    }
}

/// See [`Finish::Scaled`].
pub(super) fn scaled<D: Element>(factor: f32) -> impl Epilogue<D> {
    move |_: At, sums: &[f32], dst: &mut [D]| {
        for (d, s) in dst.iter_mut().zip(sums) {
            *d = D::from_f32(s * factor);
        }
    }
}

/// See [`Finish::Onto`].
pub(super) fn onto<D: Element>(other: View<'_, D>) -> impl Epilogue<D> {
    move |at: At, sums: &[f32], dst: &mut [D]| {
        let row = &other.row(at.row)[at.col..][..sums.len()];
        for ((d, s), r) in dst.iter_mut().zip(sums).zip(row) {
            *d = D::from_f32(r.to_f32() + s);
        }
    }
}

/// See [`Finish::Plus`].
pub(super) fn plus<D: Element>(row: &[D]) -> impl Epilogue<D> {
    move |at: At, sums: &[f32], dst: &mut [D]| {
        for ((d, s), r) in dst.iter_mut().zip(sums).zip(&row[at.col..]) {
            *d = D::from_f32(s + r.to_f32());
        }
    }
}

/// See [`Finish::AddDropped`], for rows of `width` elements.
pub(super) fn add_dropped<D: Element>(
    dropout: Dropout,
    rows: Option<&[usize]>,
    width: usize,
) -> impl Epilogue<D> + use<'_, D> {
    move |at: At, sums: &[f32], dst: &mut [D]| {
        let first = rows.map_or(at.row, |r| r[at.row]) * width + at.col;
        for (i, (d, s)) in dst.iter_mut().zip(sums).enumerate() {
            *d = D::from_f32(d.to_f32() + s * dropout.factor(first + i) as f32);
        }
    }
}
