//! The processor: thin calls into [`crate::kernels`], with the memory that these need.

mod peak;
mod weights;

use std::marker::PhantomData;
use std::sync::Arc;

use candle_core::Tensor;
pub(super) use peak::matmul_peak;
use rayon::current_num_threads;
use weights::{Kept, Scaling, Weight};

use super::Inputs;
use super::backend::{Backend, ByExperts, Experts, Finish, Losses, Norm, Part, PartMut, Reads, Selection, Term};
use crate::Result;
use crate::distributed::{Mesh, Pending};
use crate::kernels::attention::Attention;
use crate::kernels::buffers::Buffer;
use crate::kernels::experts::Routes;
use crate::kernels::fake_quant::Levels;
use crate::kernels::isa::Isa;
use crate::kernels::quantized::Rows;
use crate::kernels::rope::{Rotary, Turn};
use crate::kernels::team::Team;
use crate::kernels::view::{View, ViewMut};
use crate::kernels::{
    Dropout, Element, Mixture, Noise, Quantized, TokenLoss, TopRows, columns, distillation, experts, fake_quant, gate,
    gemm, parallel, rms_norm, rope, softmax, top_distillation,
};
use crate::models::{Activation, EmbeddingSpec, Gathered, Here, Magnitude, Site, gather};

/// Weights and activations of type `T`, sums in f32.
pub(super) struct Cpu<'m, T: Element> {
    /// What was converted, where parameters stay as they are.
    kept: Option<Arc<Kept<T>>>,
    /// Who computes, where all tokens are new ones of sequences, one of each.
    newest: Option<Arc<Team>>,
    /// Who asks what layers are given.
    inputs: Option<&'m Inputs>,
    borrowed: PhantomData<&'m ()>,
}

impl<'m, T: Element> Cpu<'m, T> {
    pub(super) fn new() -> Self {
        Self { kept: None, newest: None, inputs: None, borrowed: PhantomData }
    }

    /// What layers are given is added to `inputs`.
    pub(super) fn observing(inputs: &'m Inputs) -> Self {
        Self { inputs: Some(inputs), ..Self::new() }
    }

    /// For parameters that do not change while this is there.
    pub(super) fn keeping() -> Self {
        Self { kept: Some(Arc::new(Kept::new())), ..Self::new() }
    }

    /// The same for passes in which all tokens are new ones of sequences, one of each; a team computes them.
    pub(super) fn of_newest(&self, team: &Arc<Team>) -> Self {
        Self { kept: self.kept.clone(), newest: Some(Arc::clone(team)), ..Self::new() }
    }

    /// A sum of products into `y`, by the kernels for its shape.
    fn product<D: Element>(&self, terms: &[gemm::Term<'_, T>], finish: gemm::Finish<'_, D>, y: &ViewMut<'_, D>) {
        let sides: Vec<_> = terms.iter().map(gemm::Term::sides).collect();
        match &self.newest {
            Some(team) if gemm::is_few(terms) => {
                let len = gemm::workspace_few::<T>(Isa::get(), y.rows(), &sides, current_num_threads());
                gemm::multiply_few(terms, y, finish, &mut Buffer::new(len), team);
            }
            _ => {
                let (size, stored) = ((y.rows(), y.cols()), matches!(finish, gemm::Finish::Store));
                let len = gemm::workspace::<T, D>(Isa::get(), size, &sides, stored, current_num_threads());
                gemm::multiply(terms, y, finish, &mut Buffer::new(len));
            }
        }
    }
}

impl<'m, T: Element> Reads<'m> for Cpu<'m, T> {
    fn param(&self, tensor: &'m Tensor) -> Result<Self::Param> {
        match &self.kept {
            None => Weight::new(tensor),
            Some(kept) => kept.weight(tensor),
        }
    }

    fn quantized(&self, of: &'m Quantized) -> Result<Self::Param> {
        Ok(Weight::Quantized(of))
    }

    type OnTheWay = Pending<Vec<Gathered>>;
    type Gathered = Gathered;

    fn bring(&self, mesh: &Mesh, of: &str, here: &[Here]) -> Result<Self::OnTheWay> {
        Ok(gather(mesh.shards(), of, here.to_vec()))
    }

    fn arrived(&self, on_the_way: Self::OnTheWay) -> Result<Vec<Gathered>> {
        on_the_way.wait()
    }

    fn gathered(&self, of: Gathered) -> Result<Self::Param> {
        Weight::gathered(of)
    }

    fn scaling(&self, of: &'m Magnitude) -> Result<Self::Scaling> {
        Scaling::new(of, self.kept.as_ref())
    }

    fn numbers(&self, x: &Buffer<f32>) -> Vec<f32> {
        x.to_vec()
    }
}

fn view<'a, E: Element>(part: Part<'a, Buffer<E>>) -> View<'a, E> {
    View::strided(&part.of[part.range()], (part.rows, part.cols), part.stride)
}

fn view_mut<E: Element>(part: PartMut<'_, Buffer<E>>) -> ViewMut<'_, E> {
    let range = part.range();
    let PartMut { of, rows, cols, stride, .. } = part;
    ViewMut::strided(&mut of[range], (rows, cols), stride)
}

fn tokens_of<'a, T: Element>(rows: Selection<'a, Cpu<'_, T>>) -> &'a [usize] {
    match rows {
        Selection::Tokens(tokens) => tokens,
        Selection::Places { routes, first, count } => &routes.tokens[first..][..count],
    }
}

fn kind(norm: Norm) -> rms_norm::Kind {
    rms_norm::Kind { eps: norm.eps as f32, from_one: norm.from_one }
}

fn products<'a, 'm, T: Element>(terms: &'a [Term<'_, Cpu<'m, T>>]) -> Vec<gemm::Term<'a, T>> {
    let weight = |w: &super::backend::Weight<'a, Cpu<'m, T>>| {
        View::strided(&w.param[w.first * w.inner..], (w.out, w.inner), w.inner)
    };
    let blocks =
        |w: &super::backend::Weight<'a, Cpu<'m, T>>| w.param.quantized().map(|of| Rows::new(of, w.first, w.out));
    let product = |term: &'a Term<'_, Cpu<'m, T>>| match term {
        Term::Up { x, w } => match blocks(w) {
            Some(w) => gemm::Term::UpQuantized { x: view(*x), w },
            None => gemm::Term::Up { x: view(*x), w: weight(w) },
        },
        Term::Down { g, w } => match blocks(w) {
            Some(w) => gemm::Term::DownQuantized { g: view(*g), w },
            None => gemm::Term::Down { g: view(*g), w: weight(w) },
        },
        Term::Across { g, x } => gemm::Term::Across { g: view(*g), x: view(*x) },
    };
    terms.iter().map(product).collect()
}

impl<'m, T: Element> Backend for Cpu<'m, T> {
    type Acts = Buffer<T>;
    type Sums = Buffer<f32>;
    type Param = Weight<'m, T>;
    type Each = Vec<f64>;
    type Scaling = Scaling<'m>;
    type Routes = Routes;

    fn acts(&self, rows: usize, cols: usize) -> Buffer<T> {
        Buffer::new(rows * cols)
    }

    fn zeros(&self, rows: usize, cols: usize) -> Buffer<T> {
        Buffer::zeros(rows * cols)
    }

    fn content<'a>(&self, x: &'a Buffer<T>) -> Option<&'a [u8]> {
        Some(bytemuck::cast_slice(x))
    }

    fn content_mut<'a>(&self, x: &'a mut Buffer<T>) -> Option<&'a mut [u8]> {
        Some(bytemuck::cast_slice_mut(x))
    }

    fn sums(&self, rows: usize, cols: usize) -> Buffer<f32> {
        Buffer::new(rows * cols)
    }

    fn gradient(&self, rows: usize, cols: usize) -> Buffer<f32> {
        Buffer::new(rows * cols)
    }

    fn clear(&self, x: &mut Buffer<f32>) {
        x.clear();
    }

    fn accumulate(&self, onto: &mut Buffer<f32>, more: &Buffer<f32>) {
        onto.iter_mut().zip(&**more).for_each(|(sum, more)| *sum += more);
    }

    fn transpose(&self, x: &Buffer<f32>, (rows, cols): (usize, usize), y: &mut Buffer<f32>) {
        for (r, row) in x.chunks_exact(cols).enumerate() {
            y.iter_mut().skip(r).step_by(rows).zip(row).for_each(|(y, &x)| *y = x);
        }
    }

    fn observe(&self, layer: (usize, Site), x: Part<'_, Buffer<T>>) {
        if let Some(inputs) = self.inputs {
            inputs.add(layer, view(x));
        }
    }

    fn multiply(&self, terms: &[Term<'_, Self>], finish: Finish<'_, Self>, y: PartMut<'_, Buffer<T>>) {
        let (terms, y) = (products(terms), view_mut(y));
        let finish = match finish {
            Finish::Store => gemm::Finish::Store,
            Finish::Scaled(factor) => gemm::Finish::Scaled(factor as f32),
            Finish::Onto(other) => gemm::Finish::Onto(view(other)),
            Finish::Plus(bias, first) => gemm::Finish::Plus(&bias[first..][..y.cols()]),
            Finish::AddDropped(dropout, rows) => gemm::Finish::AddDropped(dropout, rows.map(tokens_of)),
        };
        self.product(&terms, finish, &y);
    }

    fn multiply_sums(&self, terms: &[Term<'_, Self>], adding: bool, y: PartMut<'_, Buffer<f32>>) {
        let (terms, y) = (products(terms), view_mut(y));
        self.product(&terms, if adding { gemm::Finish::Add } else { gemm::Finish::Store }, &y);
    }

    fn lookup(&self, table: &Weight<'m, T>, width: usize, ids: &[u32], how: EmbeddingSpec, y: &mut Buffer<T>) {
        for (row, &id) in y.chunks_exact_mut(width).zip(ids) {
            match table.quantized() {
                Some(of) => of.row(id as usize, 0, row),
                None => row.copy_from_slice(&table[id as usize * width..][..width]),
            }
        }
        if let Some(factor) = how.scale.map(|factor| T::from_f32(factor as f32).to_f32()) {
            y.iter_mut().for_each(|y| *y = T::from_f32(y.to_f32() * factor));
        }
    }

    fn add_noise(&self, noise: &Noise, x: &mut Buffer<T>) {
        noise.add_to(x);
    }

    fn lookup_back(&self, g: &Buffer<T>, width: usize, ids: &[u32], how: EmbeddingSpec, table: &mut Buffer<f32>) {
        let factor = how.scale.map_or(1.0, |factor| T::from_f32(factor as f32).to_f32());
        for (row, &id) in g.chunks_exact(width).zip(ids).filter(|(_, id)| Some(**id) != how.padding) {
            let entry = &mut table[id as usize * width..][..width];
            entry.iter_mut().zip(row).for_each(|(e, g)| *e += factor * g.to_f32());
        }
    }

    fn add_bias(&self, bias: &Weight<'m, T>, first: usize, y: PartMut<'_, Buffer<T>>) {
        let mut y = view_mut(y);
        for row in 0..y.rows() {
            y.row(row).iter_mut().zip(&bias[first..]).for_each(|(y, b)| *y = T::from_f32(y.to_f32() + b.to_f32()));
        }
    }

    fn bias_back(&self, g: Part<'_, Buffer<T>>, first: usize, own: &mut Buffer<f32>) {
        experts::sum_rows(view(g), &mut own[first..][..g.cols]);
    }

    fn gather(&self, x: &Buffer<T>, width: usize, rows: &[usize], y: &mut Buffer<T>) {
        for (dst, &row) in y.chunks_exact_mut(width).zip(rows) {
            dst.copy_from_slice(&x[row * width..][..width]);
        }
    }

    fn scatter(&self, x: &Buffer<T>, width: usize, rows: &[usize], y: &mut Buffer<T>) {
        for (src, &row) in x.chunks_exact(width).zip(rows) {
            y[row * width..][..width].copy_from_slice(src);
        }
    }

    fn put_columns(&self, x: &Buffer<f32>, columns: &[u32], y: PartMut<'_, Buffer<f32>>) {
        let mut y = view_mut(y);
        for (row, x) in x.chunks_exact(columns.len().max(1)).enumerate() {
            let y = y.row(row);
            columns.iter().zip(x).for_each(|(&column, &x)| y[column as usize] = x);
        }
    }

    fn take_columns(&self, x: PartMut<'_, Buffer<T>>, columns: &[u32], y: &mut Buffer<T>) {
        let mut x = view_mut(x);
        for (row, y) in y.chunks_exact_mut(columns.len().max(1)).enumerate() {
            let x = x.row(row);
            columns
                .iter()
                .zip(y)
                .for_each(|(&column, y)| *y = std::mem::replace(&mut x[column as usize], T::from_f32(0.0)));
        }
    }

    fn norm(
        &self,
        x: Part<'_, Buffer<T>>,
        weight: &Weight<'m, T>,
        norm: Norm,
        onto: Option<Part<'_, Buffer<T>>>,
        y: PartMut<'_, Buffer<T>>,
    ) {
        match onto {
            None => rms_norm::forward(view(x), weight, kind(norm), view_mut(y)),
            Some(onto) => rms_norm::forward_onto(view(x), weight, kind(norm), view(onto), view_mut(y)),
        }
    }

    fn norm_back(
        &self,
        x: Part<'_, Buffer<T>>,
        weight: &Weight<'m, T>,
        norm: Norm,
        g: Part<'_, Buffer<T>>,
        onto: PartMut<'_, Buffer<T>>,
        own: Option<&mut Buffer<f32>>,
    ) {
        let len = if own.is_some() { rms_norm::workspace(x.rows, norm.width) } else { 0 };
        let mut workspace = Buffer::new(len);
        let own = own.map(|own| &mut **own);
        rms_norm::backward(view(x), weight, kind(norm), view(g), view_mut(onto), own, &mut workspace);
    }

    fn rotate(&self, x: PartMut<'_, Buffer<T>>, angles: &Rotary, turn: Turn) {
        rope::turn(view_mut(x), angles, turn);
    }

    fn gate(&self, activation: Activation, gate: &Buffer<T>, up: &Buffer<T>, y: &mut Buffer<T>) {
        gate::forward(activation, gate, up, y);
    }

    fn gate_back(&self, activation: Activation, gate: &mut Buffer<T>, up: &mut Buffer<T>, g: &mut Buffer<T>) {
        gate::backward(activation, gate, up, g);
    }

    fn dropped(&self, x: Part<'_, Buffer<T>>, dropout: Dropout, rows: Option<Selection<'_, Self>>, y: &mut Buffer<T>) {
        dropout.apply(view(x), rows.map(tokens_of), y);
    }

    fn rounded(&self, weight: &Weight<'m, T>, (rows, cols): (usize, usize), levels: Levels) -> Result<Weight<'m, T>> {
        let mut rounded = Buffer::new(rows * cols);
        fake_quant::weight(levels, weight, &mut rounded);
        Ok(Weight::Converted(rounded))
    }

    fn rounded_back(&self, weight: &Weight<'m, T>, levels: Levels, g: &mut Buffer<f32>) {
        fake_quant::weight_back(levels, weight, g);
    }

    fn round_tokens(&self, x: Part<'_, Buffer<T>>, y: PartMut<'_, Buffer<T>>) {
        fake_quant::tokens(view(x), view_mut(y));
    }

    fn round_tokens_back(&self, x: Part<'_, Buffer<T>>, onto: Option<Part<'_, Buffer<T>>>, g: PartMut<'_, Buffer<T>>) {
        fake_quant::tokens_back(view(x), onto.map(view), view_mut(g));
    }

    fn attend(
        &self,
        how: &Attention<'_>,
        qkv: [Part<'_, Buffer<T>>; 3],
        y: PartMut<'_, Buffer<T>>,
        lse: &mut Buffer<f32>,
    ) {
        if let Some(team) = self.newest.as_ref().filter(|_| how.is_of_newest()) {
            let mut workspace = Buffer::new(how.newest_workspace(current_num_threads()));
            return how.newest(qkv.map(view), &view_mut(y), lse, &mut workspace, team);
        }
        let mut workspace = Buffer::new(how.forward_workspace::<T>(current_num_threads()));
        how.forward(qkv.map(view), view_mut(y), lse, &mut workspace);
    }

    fn attend_back(
        &self,
        how: &Attention<'_>,
        qkv: [Part<'_, Buffer<T>>; 3],
        (y, lse): (Part<'_, Buffer<T>>, &Buffer<f32>),
        g: Part<'_, Buffer<T>>,
        gqkv: [PartMut<'_, Buffer<T>>; 3],
    ) {
        let mut workspace = Buffer::new(how.backward_workspace::<T>(current_num_threads()));
        how.backward(qkv.map(view), (view(y), lse), view(g), gqkv.map(view_mut), &mut workspace);
    }

    fn rescale(
        &self,
        scaling: &mut Scaling<'m>,
        b: &Weight<'m, T>,
        products: (&Buffer<f32>, &Buffer<f32>),
        _: usize,
        scale: f64,
    ) {
        scaling.rescale(self.kept.as_ref(), |of, factors| {
            columns::factors(of, b, (products.0, products.1), scale, factors);
        });
    }

    fn is_scaled(&self, scaling: &Scaling<'m>) -> bool {
        scaling.is_scaled()
    }

    fn scale_columns(
        &self,
        (by, first): (&Scaling<'m>, usize),
        x: Option<Part<'_, Buffer<T>>>,
        onto: Option<Part<'_, Buffer<T>>>,
        y: PartMut<'_, Buffer<T>>,
    ) {
        columns::scale(&by.factors()[first..], x.map(view), onto.map(view), view_mut(y));
    }

    fn scale_sums(&self, by: &Scaling<'m>, y: PartMut<'_, Buffer<f32>>) {
        columns::scale(by.factors(), None, None, view_mut(y));
    }

    fn magnitude_back(
        &self,
        (by, first): (&Scaling<'m>, usize),
        g: Part<'_, Buffer<T>>,
        x: Part<'_, Buffer<T>>,
        own: &mut Buffer<f32>,
    ) {
        columns::dots(view(g), view(x), &by.inverses()[first..], &mut own[first..][..g.cols]);
    }

    fn route(&self, logits: &Buffer<f32>, _: usize, how: Experts, _: bool) -> Routes {
        experts::route(logits, how.count, how.chosen, how.renormalized)
    }

    fn starts(&self, routes: &mut Routes) -> Vec<usize> {
        routes.starts.clone()
    }

    /// Here an expert's rows are known at once, and have kernels of their own.
    fn multiply_places(&self, _: &Routes, _: ByExperts<'_, Self>) {
        unreachable!("experts are multiplied one after the other");
    }

    fn route_back(&self, logits: &Buffer<f32>, how: Experts, routes: &Routes, g: &Buffer<f32>, y: &mut Buffer<T>) {
        experts::route_back(logits, how.count, routes, how.renormalized, g, y);
    }

    fn to_places(&self, x: &Buffer<T>, width: usize, routes: &Routes, y: &mut Buffer<T>) {
        self.gather(x, width, &routes.tokens, y);
    }

    fn combine(
        &self,
        x: Part<'_, Buffer<T>>,
        routes: &Routes,
        weighted: bool,
        onto: Option<Part<'_, Buffer<T>>>,
        y: PartMut<'_, Buffer<T>>,
    ) {
        experts::combine(view(x), routes, weighted, onto.map(view), view_mut(y));
    }

    fn weigh_places(&self, x: PartMut<'_, Buffer<T>>, routes: &Routes) {
        experts::scale_rows(view_mut(x), &routes.weights_of_places());
    }

    fn row_dots(&self, a: Part<'_, Buffer<T>>, b: Part<'_, Buffer<T>>) -> Buffer<f32> {
        let mut dots = self.sums(a.rows, 1);
        experts::row_dots(view(a), view(b), &mut dots);
        dots
    }

    fn cap(&self, logits: &mut Buffer<f32>, cap: f64) {
        softmax::cap_rows(logits, cap as f32);
    }

    fn multiply_logits(&self, logits: &mut Buffer<f32>, _: usize, factor: f64) {
        softmax::multiply(logits, factor as f32);
    }

    fn loss(
        &self,
        mut logits: Buffer<f32>,
        vocab: usize,
        cap: Option<f64>,
        of: TokenLoss,
        targets: &[u32],
        weights: Option<&[f64]>,
    ) -> Losses<Self> {
        let rows = parallel::chunks(&mut logits[..targets.len() * vocab], vocab);
        let each = parallel::map_parts(rows, |i, row| {
            let (target, weight) = (targets[i] as usize, weights.map(|weights| weights[i] as f32));
            f64::from(match cap {
                None => softmax::loss_and_gradient::<T>(row, target, of, weight),
                Some(cap) => softmax::capped_loss_and_gradient::<T>(row, cap as f32, target, of, weight),
            })
        });
        // The gradient in the type of the activations is at the beginning of each row of logits.
        let gradient = weights.map(|_| (logits.reused(), vocab * size_of::<f32>() / size_of::<T>()));
        Losses { each, gradient }
    }

    fn distilled(
        &self,
        (mut logits, mut teacher): (Buffer<f32>, Buffer<f32>),
        vocab: usize,
        cap: Option<f64>,
        targets: &[u32],
        mixture: Mixture,
        weights: Option<&[f64]>,
    ) -> (Losses<Self>, Vec<f64>) {
        let both =
            distillation::distilled_rows::<T>((&mut logits, &mut teacher), vocab, cap, targets, mixture, weights);
        let (each, divergences) = both.into_iter().unzip();
        let gradient = weights.map(|_| (logits.reused(), vocab * size_of::<f32>() / size_of::<T>()));
        (Losses { each, gradient }, divergences)
    }

    fn distilled_by_top(
        &self,
        (mut logits, teacher): (Buffer<f32>, TopRows<'_>),
        vocab: usize,
        cap: Option<f64>,
        targets: &[u32],
        mixture: Mixture,
        weights: Option<&[f64]>,
    ) -> (Losses<Self>, Vec<f64>) {
        let both = top_distillation::distilled_rows::<T>((&mut logits, teacher), vocab, cap, targets, mixture, weights);
        let (each, divergences) = both.into_iter().unzip();
        let gradient = weights.map(|_| (logits.reused(), vocab * size_of::<f32>() / size_of::<T>()));
        (Losses { each, gradient }, divergences)
    }

    fn losses(&self, each: Vec<f64>) -> Vec<f64> {
        each
    }

    fn read_sums(&self, x: &Buffer<f32>, count: usize) -> Vec<f64> {
        x[..count].iter().map(|&x| f64::from(x)).collect()
    }

    fn given(&self, numbers: &[f64]) -> Buffer<T> {
        let mut given = Buffer::new(numbers.len());
        given.iter_mut().zip(numbers).for_each(|(y, &x)| *y = T::from_f32(x as f32));
        given
    }
}
