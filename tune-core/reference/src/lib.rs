//! The arithmetic of training, forward and backward, in f64 and plain loops.
//!
//! It is written to be checked by eye against the formulas that the documentation states, not to be fast: every backend
//! that computes the same with tiles, threads and narrower numbers is compared with it. Each backward pass is itself
//! compared with central differences.
//!
//! Matrices are views with a stride ([`View`], [`ViewMut`]). Sizes are written `[rows, cols]`. A function that gives a
//! gradient says whether it stores or adds it. Functions panic on shapes that do not fit: these are mistakes of the
//! program that calls, never of its user.

pub mod attention;
pub mod draw;
pub mod dropout;
pub mod experts;
pub mod fake_quant;
pub mod gate;
pub mod loss;
pub mod norm;
pub mod optim;
pub mod products;
pub mod rotary;
pub mod rows;
pub mod softcap;
mod view;

pub use view::{View, ViewMut};
