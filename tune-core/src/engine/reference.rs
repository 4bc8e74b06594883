//! The plainest backend: f64 and the loops of [`tune_reference`]. What the others compute is compared with what it computes,
//! and its gradients with finite differences: so those reach the very lines that train.

mod losses;

use candle_core::{DType, Tensor};
use tune_reference::{View, ViewMut};
use tune_reference::{attention, dropout, experts, fake_quant, gate, norm, products, rotary, rows, softcap};

use losses::Logits;

use super::backend::{
    AtPlaces, Backend, ByExperts, Experts, Finish, Losses, Norm, Part, PartMut, Reads, Selection, Term, Weight,
};
use crate::Result;
use crate::distributed::{Mesh, Pending};
use crate::kernels::attention::Attention;
use crate::kernels::experts::Routes;
use crate::kernels::fake_quant::{self as kernels, Levels};
use crate::kernels::rope::Turn;
use crate::kernels::{Dropout, Mixture, Noise, Quantized, Rotary, TokenLoss, TopRows};
use crate::models::{Activation, EmbeddingSpec, Gathered, Here, Magnitude, gather};

/// See the [module](self).
pub(super) struct Reference;

/// Magnitudes, the squares of a weight's rows, and the norms of those of weight and update.
pub(super) struct Scaling {
    magnitudes: Vec<f64>,
    squares: Vec<f64>,
    norms: Vec<f64>,
}

impl Scaling {
    /// What a result is scaled by.
    fn factor(&self, row: usize) -> f64 {
        if self.norms[row] > 0.0 { self.magnitudes[row] / self.norms[row] } else { 1.0 }
    }
}

impl<'m> Reads<'m> for Reference {
    fn param(&self, tensor: &'m Tensor) -> Result<Vec<f64>> {
        Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
    }

    fn quantized(&self, of: &'m Quantized) -> Result<Vec<f64>> {
        Ok(of.dequantized().into_iter().map(f64::from).collect())
    }

    type OnTheWay = Pending<Vec<Gathered>>;
    type Gathered = Gathered;

    fn bring(&self, mesh: &Mesh, of: &str, here: &[Here]) -> Result<Self::OnTheWay> {
        Ok(gather(mesh.shards(), of, here.to_vec()))
    }

    fn arrived(&self, on_the_way: Self::OnTheWay) -> Result<Vec<Gathered>> {
        on_the_way.wait()
    }

    fn gathered(&self, of: Gathered) -> Result<Vec<f64>> {
        Ok(match of {
            Gathered::F32(x) => x.iter().map(|&x| x.into()).collect(),
            Gathered::Bf16(x) => x.iter().map(|&x| x.into()).collect(),
            Gathered::F64(x) => x,
            Gathered::Blocks(of) => of.dequantized().into_iter().map(f64::from).collect(),
        })
    }

    fn scaling(&self, of: &'m Magnitude) -> Result<Scaling> {
        let [magnitudes, squares] = [of.weight.as_tensor(), &of.squares].map(|tensor| self.param(tensor));
        Ok(Scaling { magnitudes: magnitudes?, squares: squares?, norms: Vec::new() })
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
    View::strided(&w.param[w.first * w.inner..], (w.out, w.inner), w.inner)
}

/// Adds a sum of products, times a factor.
fn tokens_of<'a>(rows: Selection<'a, Reference>) -> &'a [usize] {
    match rows {
        Selection::Tokens(tokens) => tokens,
        Selection::Places { routes, first, count } => &routes.tokens[first..][..count],
    }
}

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
        softcap: shape.softcap,
    }
}

fn kind(norm: Norm) -> norm::Norm {
    norm::Norm { eps: norm.eps, from_one: norm.from_one }
}

fn curve(activation: Activation) -> gate::Activation {
    match activation {
        Activation::Silu => gate::Activation::Silu,
        Activation::GeluTanh => gate::Activation::GeluTanh,
    }
}

/// Levels that are not those of a file.
fn plain(levels: Levels) -> Option<fake_quant::Levels> {
    match levels {
        Levels::Int4 { .. } => Some(fake_quant::Levels::Int4),
        Levels::Int4Affine { .. } => Some(fake_quant::Levels::Int4Affine),
        Levels::Blocks(_) => None,
    }
}

impl Backend for Reference {
    type Acts = Vec<f64>;
    type Sums = Vec<f64>;
    type Param = Vec<f64>;
    type Each = Vec<f64>;
    type Scaling = Scaling;
    type Routes = Routes;

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

    fn multiply(&self, terms: &[Term<'_, Self>], finish: Finish<'_, Self>, y: PartMut<'_, Vec<f64>>) {
        let mut y = view_mut(y);
        match finish {
            Finish::Store | Finish::Scaled(_) => y.fill(0.0),
            Finish::Onto(other) => {
                let other = view(other);
                (0..y.rows()).for_each(|row| y.row(row).copy_from_slice(other.row(row)));
            }
            Finish::Plus(bias, first) => (0..y.rows()).for_each(|row| {
                let row = y.row(row);
                let width = row.len();
                row.copy_from_slice(&bias[first..][..width]);
            }),
            Finish::AddDropped(dropout, rows) => {
                let (m, n) = (y.rows(), y.cols());
                let mut sums = vec![0.0; m * n];
                add(terms, 1.0, &mut ViewMut::new(&mut sums, n));
                let rows = rows.map(tokens_of);
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

    fn lookup(&self, table: &Vec<f64>, width: usize, ids: &[u32], how: EmbeddingSpec, y: &mut Vec<f64>) {
        rows::lookup(View::new(table, width), ids, how.scale.unwrap_or(1.0), &mut ViewMut::new(y, width));
    }

    fn add_noise(&self, noise: &Noise, x: &mut Vec<f64>) {
        let width = noise.width();
        x.iter_mut().enumerate().for_each(|(i, x)| *x += noise.at(i / width, i % width));
    }

    fn lookup_back(&self, g: &Vec<f64>, width: usize, ids: &[u32], how: EmbeddingSpec, table: &mut Vec<f64>) {
        let scale = how.scale.unwrap_or(1.0);
        for (row, id) in g.chunks_exact(width).zip(ids).filter(|(_, id)| Some(**id) != how.padding) {
            rows::lookup_back(View::new(row, width), &[*id], scale, &mut ViewMut::new(table, width));
        }
    }

    fn add_bias(&self, bias: &Vec<f64>, first: usize, y: PartMut<'_, Vec<f64>>) {
        let mut y = view_mut(y);
        (0..y.rows()).for_each(|row| y.row(row).iter_mut().zip(&bias[first..]).for_each(|(y, b)| *y += b));
    }

    fn bias_back(&self, g: Part<'_, Vec<f64>>, first: usize, own: &mut Vec<f64>) {
        let (g, own) = (view(g), &mut own[first..][..g.cols]);
        own.fill(0.0);
        (0..g.rows()).for_each(|row| own.iter_mut().zip(g.row(row)).for_each(|(own, g)| *own += g));
    }

    fn gather(&self, x: &Vec<f64>, width: usize, rows: &[usize], y: &mut Vec<f64>) {
        rows::gather(View::new(x, width), rows, &mut ViewMut::new(y, width));
    }

    fn scatter(&self, x: &Vec<f64>, width: usize, rows: &[usize], y: &mut Vec<f64>) {
        rows::scatter(View::new(x, width), rows, &mut ViewMut::new(y, width));
    }

    fn put_columns(&self, x: &Vec<f64>, columns: &[u32], y: PartMut<'_, Vec<f64>>) {
        let mut y = view_mut(y);
        for (row, x) in x.chunks_exact(columns.len().max(1)).enumerate() {
            let y = y.row(row);
            columns.iter().zip(x).for_each(|(&column, &x)| y[column as usize] = x);
        }
    }

    fn take_columns(&self, x: PartMut<'_, Vec<f64>>, columns: &[u32], y: &mut Vec<f64>) {
        let mut x = view_mut(x);
        for (row, y) in y.chunks_exact_mut(columns.len().max(1)).enumerate() {
            let x = x.row(row);
            columns.iter().zip(y).for_each(|(&column, y)| *y = std::mem::replace(&mut x[column as usize], 0.0));
        }
    }

    fn norm(
        &self,
        x: Part<'_, Vec<f64>>,
        weight: &Vec<f64>,
        norm: Norm,
        onto: Option<Part<'_, Vec<f64>>>,
        y: PartMut<'_, Vec<f64>>,
    ) {
        norm::forward(view(x), weight, kind(norm), onto.map(view), &mut view_mut(y));
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
        let own = own.map(|own| {
            own.fill(0.0);
            own.as_mut_slice()
        });
        norm::backward(view(x), weight, kind(norm), view(g), &mut view_mut(onto), own);
    }

    fn rotate(&self, x: PartMut<'_, Vec<f64>>, angles: &Rotary, turn: Turn) {
        let f64s = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let (cos, sin, half) = (f64s(&angles.cos), f64s(&angles.sin), angles.turned / 2);
        let turn = match turn {
            Turn::Forward => rotary::Turn::Forward,
            Turn::Back => rotary::Turn::Back,
        };
        rotary::turn(&mut view_mut(x), angles.head_dim, (View::new(&cos, half), View::new(&sin, half)), turn);
    }

    fn gate(&self, activation: Activation, gate: &Vec<f64>, up: &Vec<f64>, y: &mut Vec<f64>) {
        let width = gate.len();
        let y = &mut ViewMut::new(y, width);
        gate::forward(curve(activation), View::new(gate, width), View::new(up, width), y);
    }

    fn gate_back(&self, activation: Activation, gate: &mut Vec<f64>, up: &mut Vec<f64>, g: &mut Vec<f64>) {
        let (width, of_result) = (gate.len(), g.clone());
        let before = (gate.clone(), up.clone());
        self.gate(activation, gate, up, g);
        gate::backward(
            curve(activation),
            View::new(&before.0, width),
            View::new(&before.1, width),
            View::new(&of_result, width),
            &mut ViewMut::new(gate, width),
            &mut ViewMut::new(up, width),
        );
    }

    fn dropped(&self, x: Part<'_, Vec<f64>>, dropout: Dropout, rows: Option<Selection<'_, Self>>, y: &mut Vec<f64>) {
        let (width, rows) = (x.cols, rows.map(tokens_of));
        dropout::apply(view(x), dropout.parts(), rows, false, &mut ViewMut::new(y, width));
    }

    fn rounded(&self, weight: &Vec<f64>, _: (usize, usize), levels: Levels) -> Result<Vec<f64>> {
        let mut rounded = weight.clone();
        match plain(levels) {
            Some(of) => rounded.chunks_exact_mut(levels.group()).for_each(|x| fake_quant::round(of, x)),
            // What a file holds of a number is what it holds of its f32.
            None => {
                let x: Vec<f32> = weight.iter().map(|&x| x as f32).collect();
                let mut y = vec![0.0; x.len()];
                kernels::weight(levels, &x, &mut y);
                rounded.iter_mut().zip(y).for_each(|(rounded, y)| *rounded = y.into());
            }
        }
        Ok(rounded)
    }

    fn rounded_back(&self, weight: &Vec<f64>, levels: Levels, g: &mut Vec<f64>) {
        if let Some(of) = plain(levels) {
            let groups = weight.chunks_exact(levels.group()).zip(g.chunks_exact_mut(levels.group()));
            groups.for_each(|(x, g)| fake_quant::backward(of, x, g));
        }
    }

    fn round_tokens(&self, x: Part<'_, Vec<f64>>, y: PartMut<'_, Vec<f64>>) {
        let (x, mut y) = (view(x), view_mut(y));
        for row in 0..x.rows() {
            y.row(row).copy_from_slice(x.row(row));
            fake_quant::round(fake_quant::Levels::Int8, y.row(row));
        }
    }

    fn round_tokens_back(&self, x: Part<'_, Vec<f64>>, onto: Option<Part<'_, Vec<f64>>>, g: PartMut<'_, Vec<f64>>) {
        let (x, onto, mut g) = (view(x), onto.map(view), view_mut(g));
        for row in 0..x.rows() {
            fake_quant::backward(fake_quant::Levels::Int8, x.row(row), g.row(row));
            if let Some(onto) = onto {
                g.row(row).iter_mut().zip(onto.row(row)).for_each(|(g, more)| *g += more);
            }
        }
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

    fn rescale(&self, scaling: &mut Scaling, b: &Vec<f64>, products: (&Vec<f64>, &Vec<f64>), rank: usize, scale: f64) {
        let out = scaling.squares.len();
        let (with_weight, with_itself) = products;
        let square = |row: usize| {
            let b = &b[row * rank..][..rank];
            let with_weight: f64 = (0..rank).map(|i| b[i] * with_weight[i * out + row]).sum();
            let with_itself = (0..rank * rank).map(|i| b[i / rank] * with_itself[i] * b[i % rank]);
            scaling.squares[row] + 2.0 * scale * with_weight + scale * scale * with_itself.sum::<f64>()
        };
        scaling.norms = (0..out).map(|row| square(row).max(0.0).sqrt()).collect();
    }

    fn scale_columns(
        &self,
        (by, first): (&Scaling, usize),
        x: Option<Part<'_, Vec<f64>>>,
        onto: Option<Part<'_, Vec<f64>>>,
        y: PartMut<'_, Vec<f64>>,
    ) {
        let (x, onto, mut y) = (x.map(view), onto.map(view), view_mut(y));
        for row in 0..y.rows() {
            for col in 0..y.cols() {
                let of = x.as_ref().map_or_else(|| y.row(row)[col], |x| x.row(row)[col]);
                let onto = onto.as_ref().map_or(0.0, |onto| onto.row(row)[col]);
                y.row(row)[col] = of * by.factor(first + col) + onto;
            }
        }
    }

    fn scale_sums(&self, by: &Scaling, y: PartMut<'_, Vec<f64>>) {
        self.scale_columns((by, 0), None, None, y);
    }

    fn magnitude_back(
        &self,
        (by, first): (&Scaling, usize),
        g: Part<'_, Vec<f64>>,
        x: Part<'_, Vec<f64>>,
        own: &mut Vec<f64>,
    ) {
        let (g, x) = (view(g), view(x));
        for col in 0..g.cols() {
            let sum: f64 = (0..g.rows()).map(|row| g.row(row)[col] * x.row(row)[col]).sum();
            let norm = by.norms[first + col];
            own[first + col] = if norm > 0.0 { sum / norm } else { 0.0 };
        }
    }

    fn route(&self, logits: &Vec<f64>, _: usize, how: Experts, _: bool) -> Routes {
        let found = experts::route(View::new(logits, how.count), how.chosen, how.renormalized);
        let numbers = found.experts.iter().map(|&expert| expert as u32).collect();
        Routes::new(numbers, found.weights, how.chosen, how.count)
    }

    fn starts(&self, routes: &mut Routes) -> Vec<usize> {
        routes.starts.clone()
    }

    fn has_few_places(&self, _: usize, _: usize) -> bool {
        true
    }

    fn multiply_places(&self, routes: &Routes, by: ByExperts<'_, Self>) {
        let ByExperts { out, inner, rank, of_tokens, factor, products } = by;
        for AtPlaces { x, weights, adapters, y } in products {
            y.fill(0.0);
            for (expert, ends) in routes.starts.windows(2).enumerate() {
                for place in ends[0]..ends[1] {
                    let row = if of_tokens { routes.tokens[place] } else { place };
                    let mut y = ViewMut::new(&mut y[place * out..][..out], out);
                    let mut add = |x: &[f64], w| products::up(View::new(x, x.len()), w, factor, &mut y);
                    add(&x[row * inner..][..inner], View::new(weights[expert], inner));
                    if let Some((h, b)) = &adapters {
                        add(&h[place * rank..][..rank], View::new(b[expert], rank));
                    }
                }
            }
        }
    }

    fn route_back(&self, logits: &Vec<f64>, how: Experts, routes: &Routes, g: &Vec<f64>, y: &mut Vec<f64>) {
        let numbers = routes.experts.iter().map(|&expert| expert as usize).collect();
        let found = experts::Routes { experts: numbers, weights: routes.weights.clone() };
        let of_weights: Vec<f64> = routes.places.iter().map(|&place| g[place]).collect();
        *y = experts::route_back(View::new(logits, how.count), &found, how.renormalized, &of_weights);
    }

    fn to_places(&self, x: &Vec<f64>, width: usize, routes: &Routes, y: &mut Vec<f64>) {
        self.gather(x, width, &routes.tokens, y);
    }

    fn combine(
        &self,
        x: Part<'_, Vec<f64>>,
        routes: &Routes,
        weighted: bool,
        onto: Option<Part<'_, Vec<f64>>>,
        y: PartMut<'_, Vec<f64>>,
    ) {
        let mut y = view_mut(y);
        match onto.map(view) {
            Some(onto) => (0..y.rows()).for_each(|row| y.row(row).copy_from_slice(onto.row(row))),
            None => y.fill(0.0),
        }
        let weights = routes.weights_of_places();
        rows::scatter_add(view(x), &routes.tokens, weighted.then_some(&weights[..]), &mut y);
    }

    fn weigh_places(&self, x: PartMut<'_, Vec<f64>>, routes: &Routes) {
        let (mut x, factors) = (view_mut(x), routes.weights_of_places());
        (0..x.rows()).for_each(|row| x.row(row).iter_mut().for_each(|x| *x *= factors[row]));
    }

    fn row_dots(&self, a: Part<'_, Vec<f64>>, b: Part<'_, Vec<f64>>) -> Vec<f64> {
        let (a, b) = (view(a), view(b));
        (0..a.rows()).map(|row| a.row(row).iter().zip(b.row(row)).map(|(a, b)| a * b).sum()).collect()
    }

    fn cap(&self, logits: &mut Vec<f64>, cap: f64) {
        let width = logits.len();
        softcap::forward(&mut ViewMut::new(logits, width), cap);
    }

    fn multiply_logits(&self, logits: &mut Vec<f64>, _: usize, factor: f64) {
        logits.iter_mut().for_each(|z| *z *= factor);
    }

    fn loss(
        &self,
        logits: Vec<f64>,
        vocab: usize,
        cap: Option<f64>,
        of: TokenLoss,
        targets: &[u32],
        weights: Option<&[f64]>,
    ) -> Losses<Self> {
        Logits::new(logits, vocab, cap).token_losses(of, targets, weights)
    }

    fn distilled(
        &self,
        (logits, teacher): (Vec<f64>, Vec<f64>),
        vocab: usize,
        cap: Option<f64>,
        targets: &[u32],
        mixture: Mixture,
        weights: Option<&[f64]>,
    ) -> (Losses<Self>, Vec<f64>) {
        Logits::new(logits, vocab, cap).distilled(View::new(&teacher, vocab), targets, mixture, weights)
    }

    fn distilled_by_top(
        &self,
        (logits, teacher): (Vec<f64>, TopRows<'_>),
        vocab: usize,
        cap: Option<f64>,
        targets: &[u32],
        mixture: Mixture,
        weights: Option<&[f64]>,
    ) -> (Losses<Self>, Vec<f64>) {
        Logits::new(logits, vocab, cap).distilled_by_top(teacher, targets, mixture, weights)
    }

    fn losses(&self, each: Vec<f64>) -> Vec<f64> {
        each
    }

    fn read_sums(&self, x: &Vec<f64>, count: usize) -> Vec<f64> {
        x[..count].to_vec()
    }

    fn given(&self, numbers: &[f64]) -> Vec<f64> {
        numbers.to_vec()
    }
}
