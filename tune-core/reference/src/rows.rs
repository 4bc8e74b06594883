//! Rows taken from a matrix, and put back.

use crate::{View, ViewMut};

/// `y[i] = scale · table[ids[i]]`: an embedding. `table` `[vocab, width]`, `y` `[ids, width]`.
pub fn lookup(table: View<'_>, ids: &[u32], scale: f64, y: &mut ViewMut<'_>) {
    assert!(y.rows() == ids.len() && y.cols() == table.cols(), "lookup: shapes that do not fit");
    for (i, &id) in ids.iter().enumerate() {
        y.row(i).iter_mut().zip(table.row(id as usize)).for_each(|(y, t)| *y = scale * t);
    }
}

/// The gradient of [`lookup`]'s table, added to `own` `[vocab, width]`: `own[ids[i]] += scale · g[i]`.
pub fn lookup_back(g: View<'_>, ids: &[u32], scale: f64, own: &mut ViewMut<'_>) {
    assert!(g.rows() == ids.len() && g.cols() == own.cols(), "lookup_back: shapes that do not fit");
    for (i, &id) in ids.iter().enumerate() {
        own.row(id as usize).iter_mut().zip(g.row(i)).for_each(|(own, g)| *own += scale * g);
    }
}

/// `y[i] = x[rows[i]]`. Its backward pass is [`scatter_add`] with the same rows.
pub fn gather(x: View<'_>, rows: &[usize], y: &mut ViewMut<'_>) {
    assert!(y.rows() == rows.len() && y.cols() == x.cols(), "gather: shapes that do not fit");
    for (i, &row) in rows.iter().enumerate() {
        y.row(i).copy_from_slice(x.row(row));
    }
}

/// `y[rows[i]] = x[i]`, other rows as they were. No row may be named twice.
pub fn scatter(x: View<'_>, rows: &[usize], y: &mut ViewMut<'_>) {
    assert!(x.rows() == rows.len() && y.cols() == x.cols(), "scatter: shapes that do not fit");
    for (i, &row) in rows.iter().enumerate() {
        y.row(row).copy_from_slice(x.row(i));
    }
}

/// `y[rows[i]] += weights[i] · x[i]` (weights of one if `None`), in the order of `rows`. Its backward pass is
/// [`gather`] with the same rows and weights.
pub fn scatter_add(x: View<'_>, rows: &[usize], weights: Option<&[f64]>, y: &mut ViewMut<'_>) {
    assert!(x.rows() == rows.len() && y.cols() == x.cols(), "scatter_add: shapes that do not fit");
    assert!(weights.is_none_or(|w| w.len() == rows.len()), "scatter_add: a weight for each row");
    for (i, &row) in rows.iter().enumerate() {
        let weight = weights.map_or(1.0, |w| w[i]);
        y.row(row).iter_mut().zip(x.row(i)).for_each(|(y, x)| *y += weight * x);
    }
}
