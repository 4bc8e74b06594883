//! The plainest backend: f64 and the loops of [`tune_reference`]. What the others compute is compared with what it computes,
//! and its gradients with finite differences: so those reach the very lines that train.

use candle_core::{DType, Tensor};
use tune_reference::{View, ViewMut};
use tune_reference::{attention, dropout, gate, loss, norm, products, rotary, rows};

use super::backend::{Backend, Finish, Losses, Norm, Part, PartMut, Reads, Term, Weight};
use crate::Result;
use crate::kernels::attention::Attention;
use crate::kernels::rope::Turn;
use crate::kernels::{Dropout, Rotary};

/// See the [module](self).
pub(super) struct Reference;

impl<'m> Reads<'m> for Reference {
    fn param(&self, tensor: &'m Tensor) -> Result<Vec<f64>> {
        Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
    }

    fn numbers(&self, x: &Vec<f64>) -> Vec<f32> {
        x.iter().map(|&x| x as f32).collect()
    }
}

fn view<'a>(part: Part<'a, Vec<f64>>) -> View<'a> {
    View::strided(&part.of[part.range()], (part.rows, part.cols), part.stride)
}

fn view_mut<'a>(part: PartMut<'a, Vec<f64>>) -> ViewMut<'a> {
    let range = part.range();
    let PartMut { of, rows, cols, stride, .. } = part;
    ViewMut::strided(&mut of[range], (rows, cols), stride)
}

fn weight<'a>(w: &Weight<'a, Reference>) -> View<'a> {
    View::strided(w.param, (w.out, w.inner), w.inner)
}

/// Adds a sum of products, times a factor.
fn add(terms: &[Term<'_, Reference>], factor: f64, y: &mut ViewMut<'_>) {
    for term in terms {
        match term {
            Term::Up { x, w } => products::up(view(*x), weight(w), factor, y),
            Term::Down { g, w } => products::down(view(*g), weight(w), factor, y),
            Term::Across { g, x } => products::across(view(*g), view(*x), factor, y),
        }
    }
}

/// The stretches of `how` as ranges of rows.
fn spans(how: &Attention<'_>) -> Vec<std::ops::Range<usize>> {
    how.stretches.iter().map(|s| s.queries..s.queries + s.len).collect()
}

fn attention(how: &Attention<'_>) -> attention::Attention {
    let shape = &how.shape;
    attention::Attention {
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        scale: shape.scale,
        window: shape.window,
        softcap: None,
    }
}

impl Backend for Reference {
    type Acts = Vec<f64>;
    type Sums = Vec<f64>;
    type Param = Vec<f64>;

    /// Not zeros: what is read before it is written shows.
    fn acts(&self, rows: usize, cols: usize) -> Vec<f64> {
        vec![f64::NAN; rows * cols]
    }

    fn zeros(&self, rows: usize, cols: usize) -> Vec<f64> {
        vec![0.0; rows * cols]
    }

    fn sums(&self, rows: usize, cols: usize) -> Vec<f64> {
        self.acts(rows, cols)
    }

    fn gradient(&self, rows: usize, cols: usize) -> Vec<f64> {
        self.acts(rows, cols)
    }

    fn clear(&self, x: &mut Vec<f64>) {
        x.fill(0.0);
    }

    fn accumulate(&self, onto: &mut Vec<f64>, more: &Vec<f64>) {
        onto.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
    }

    fn transpose(&self, x: &Vec<f64>, (rows, cols): (usize, usize), y: &mut Vec<f64>) {
        for row in 0..rows {
            (0..cols).for_each(|col| y[col * rows + row] = x[row * cols + col]);
        }
    }

    fn multiply(&self, terms: &[Term<'_, Self>], finish: Finish<'_, Vec<f64>>, y: PartMut<'_, Vec<f64>>) {
        let mut y = view_mut(y);
        match finish {
            Finish::Store | Finish::Scaled(_) => y.fill(0.0),
            Finish::Onto(other) => {
                let other = view(other);
                (0..y.rows()).for_each(|row| y.row(row).copy_from_slice(other.row(row)));
            }
            Finish::AddDropped(dropout, rows) => {
                let (m, n) = (y.rows(), y.cols());
                let mut sums = vec![0.0; m * n];
                add(terms, 1.0, &mut ViewMut::new(&mut sums, n));
                dropout::apply(View::new(&sums, n), dropout.parts(), rows, true, &mut y);
                return;
            }
        }
        let factor = if let Finish::Scaled(factor) = finish { factor } else { 1.0 };
        add(terms, factor, &mut y);
    }

    fn multiply_sums(&self, terms: &[Term<'_, Self>], adding: bool, y: PartMut<'_, Vec<f64>>) {
        let mut y = view_mut(y);
        if !adding {
            y.fill(0.0);
        }
        add(terms, 1.0, &mut y);
    }

    fn lookup(&self, table: &Vec<f64>, width: usize, ids: &[u32], y: &mut Vec<f64>) {
        rows::lookup(View::new(table, width), ids, 1.0, &mut ViewMut::new(y, width));
    }

    fn lookup_back(&self, g: &Vec<f64>, width: usize, ids: &[u32], table: &mut Vec<f64>) {
        rows::lookup_back(View::new(g, width), ids, 1.0, &mut ViewMut::new(table, width));
    }

    fn gather(&self, x: &Vec<f64>, width: usize, rows: &[usize], y: &mut Vec<f64>) {
        rows::gather(View::new(x, width), rows, &mut ViewMut::new(y, width));
    }

    fn scatter(&self, x: &Vec<f64>, width: usize, rows: &[usize], y: &mut Vec<f64>) {
        rows::scatter(View::new(x, width), rows, &mut ViewMut::new(y, width));
    }

    fn norm(&self, x: Part<'_, Vec<f64>>, weight: &Vec<f64>, norm: Norm, y: PartMut<'_, Vec<f64>>) {
        let norm = norm::Norm { eps: norm.eps, from_one: false };
        norm::forward(view(x), weight, norm, None, &mut view_mut(y));
    }

    fn norm_back(
        &self,
        x: Part<'_, Vec<f64>>,
        weight: &Vec<f64>,
        norm: Norm,
        g: Part<'_, Vec<f64>>,
        onto: PartMut<'_, Vec<f64>>,
        own: Option<&mut Vec<f64>>,
    ) {
        let norm = norm::Norm { eps: norm.eps, from_one: false };
        let own = own.map(|own| {
            own.fill(0.0);
            own.as_mut_slice()
        });
        norm::backward(view(x), weight, norm, view(g), &mut view_mut(onto), own);
    }

    fn rotate(&self, x: PartMut<'_, Vec<f64>>, angles: &Rotary, turn: Turn) {
        let f64s = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (cos, sin, half) = (f64s(&angles.cos), f64s(&angles.sin), angles.head_dim / 2);
        let turn = match turn {
            Turn::Forward => rotary::Turn::Forward,
            Turn::Back => rotary::Turn::Back,
        };
        rotary::turn(&mut view_mut(x), angles.head_dim, (View::new(&cos, half), View::new(&sin, half)), turn);
    }

    fn gate(&self, gate: &Vec<f64>, up: &Vec<f64>, y: &mut Vec<f64>) {
        let width = gate.len();
        gate::forward(
            gate::Activation::Silu,
            View::new(gate, width),
            View::new(up, width),
            &mut ViewMut::new(y, width),
        );
    }

    fn gate_back(&self, gate: &mut Vec<f64>, up: &mut Vec<f64>, g: &mut Vec<f64>) {
        let (width, of_result) = (gate.len(), g.clone());
        let before = (gate.clone(), up.clone());
        self.gate(gate, up, g);
        gate::backward(
            gate::Activation::Silu,
            View::new(&before.0, width),
            View::new(&before.1, width),
            View::new(&of_result, width),
            &mut ViewMut::new(gate, width),
            &mut ViewMut::new(up, width),
        );
    }

    fn dropped(&self, x: &Vec<f64>, width: usize, dropout: Dropout, rows: Option<&[usize]>, y: &mut Vec<f64>) {
        dropout::apply(View::new(x, width), dropout.parts(), rows, false, &mut ViewMut::new(y, width));
    }

    fn attend(&self, how: &Attention<'_>, qkv: [Part<'_, Vec<f64>>; 3], y: PartMut<'_, Vec<f64>>, lse: &mut Vec<f64>) {
        if qkv.iter().all(|part| part.rows == y.rows) {
            attention(how).forward(qkv.map(view), &spans(how), &mut view_mut(y), lse);
            return;
        }
        // Normalizers are for the backward pass, and the past has none.
        let ([q, k, v], stride) = (qkv, y.stride);
        for s in how.stretches {
            let [k, v] = [k, v].map(|of| view(of.some_rows(s.keys, s.past + s.len)));
            let out = PartMut { of: &mut *y.of, at: y.at + s.queries * stride, rows: s.len, cols: y.cols, stride };
            attention(how).cached(view(q.some_rows(s.queries, s.len)), (k, v), &mut view_mut(out));
        }
    }

    fn attend_back(
        &self,
        how: &Attention<'_>,
        qkv: [Part<'_, Vec<f64>>; 3],
        (y, lse): (Part<'_, Vec<f64>>, &Vec<f64>),
        g: Part<'_, Vec<f64>>,
        gqkv: [PartMut<'_, Vec<f64>>; 3],
    ) {
        let [q, k, v] = gqkv.map(view_mut);
        let mut into = attention::Gradients { q, k, v };
        attention(how).backward(qkv.map(view), &spans(how), (view(y), lse), view(g), &mut into);
    }

    fn loss(&self, logits: Vec<f64>, vocab: usize, targets: &[u32], weights: Option<&[f64]>) -> Losses<Self> {
        let of = View::new(&logits, vocab);
        let each = loss::cross_entropy(of, targets);
        let gradient = weights.map(|weights| {
            let mut gradient = vec![0.0; logits.len()];
            loss::cross_entropy_back(of, targets, weights, &mut ViewMut::new(&mut gradient, vocab));
            (gradient, vocab)
        });
        Losses { each, gradient }
    }
}
