//! What computes: memory, and the operations that a model is written in.
//!
//! Each operation is as large as a kernel and writes into memory that its caller took, so that whoever counts memory
//! counts all of it. [`super::cpu`] computes, [`super::paper`] counts, [`super::reference`] is what both are compared with.

use std::ops::Range;

use candle_core::Tensor;

use super::new_tokens::{Answered, NewTokens};
use crate::distributed::Mesh;
use crate::kernels::attention::Attention;
use crate::kernels::fake_quant::Levels;
use crate::kernels::gemm::Sides;
use crate::kernels::ledger::Purpose;
use crate::kernels::rope::Turn;
use crate::kernels::{Dropout, Mixture, Noise, Quantized, Rotary, TokenLoss, TopRows};
use crate::models::{Activation, EmbeddingSpec, Here, Magnitude, ParamId, Site};
use crate::{Later, Result};

/// Rows of logits that exist at a time on the processor, at most: 56 MiB in f32.
pub(crate) fn rows_at_once(vocab: usize) -> usize {
    ((14 << 20) / vocab).clamp(16, 1024)
}

/// See the [module](self). In shapes, `m` is a number of rows: tokens, mostly.
pub(crate) trait Backend: Sized {
    /// A buffer of numbers in the type of weights and activations. The memory goes back when it is dropped.
    type Acts;
    /// A buffer of numbers in the type of sums: logits, normalizers, gradients of parameters.
    type Sums;
    /// A parameter as operations read it: borrowed, converted to the type of activations, or in blocks.
    type Param;
    /// The losses of some rows, which may still be on their way.
    type Each;
    /// What a layer's results are scaled by: magnitudes over norms (DoRA).
    type Scaling;
    /// Which experts of a mixture each token goes to. Places are numbered expert by expert, and by token within each.
    type Routes;

    /// Memory of any content for a matrix of activations.
    fn acts(&self, rows: usize, cols: usize) -> Self::Acts;
    /// The same of zeros.
    fn zeros(&self, rows: usize, cols: usize) -> Self::Acts;
    /// Memory of any content for a matrix of sums.
    fn sums(&self, rows: usize, cols: usize) -> Self::Sums;
    /// Memory of any content for a parameter's gradient.
    fn gradient(&self, rows: usize, cols: usize) -> Self::Sums;
    /// The gradient of a parameter that earlier micro-batches have begun, for the next to be added, see [`ParamId::is_begun`].
    fn begun(&self, _: ParamId) -> Option<Self::Sums> {
        None
    }
    /// Zeros.
    fn clear(&self, x: &mut Self::Sums);
    /// Adds `more` to `onto`.
    fn accumulate(&self, onto: &mut Self::Sums, more: &Self::Sums);
    /// `x` `[rows, cols]` transposed into `y` `[cols, rows]`.
    fn transpose(&self, x: &Self::Sums, size: (usize, usize), y: &mut Self::Sums);
    /// Whether a product with few columns is better made transposed: then [`Backend::transpose`] turns it.
    fn wants_wide(&self) -> bool {
        true
    }
    /// Activations as bytes, to be kept elsewhere, if they are in this computer's memory.
    fn content<'a>(&self, _: &'a Self::Acts) -> Option<&'a [u8]> {
        None
    }
    /// The same, to be brought back.
    fn content_mut<'a>(&self, _: &'a mut Self::Acts) -> Option<&'a mut [u8]> {
        None
    }
    /// What a layer of a block is given, for those who ask: see [`super::Inputs`].
    fn observe(&self, _layer: (usize, Site), _x: Part<'_, Self::Acts>) {}
    /// What memory is for that is taken from now on and is no gradient.
    fn purpose(&self, _: Purpose) {}

    /// A sum of products `[m, n]`, and what becomes of it.
    fn multiply(&self, terms: &[Term<'_, Self>], finish: Finish<'_, Self>, y: PartMut<'_, Self::Acts>);
    /// The same in the type of sums; it is added to what is there, or stored.
    fn multiply_sums(&self, terms: &[Term<'_, Self>], adding: bool, y: PartMut<'_, Self::Sums>);

    /// Rows `ids` of `table` `[.., width]`, times a scale in the type of activations, into `y` `[m, width]`.
    fn lookup(&self, table: &Self::Param, width: usize, ids: &[u32], how: EmbeddingSpec, y: &mut Self::Acts);
    /// Adds noise to embeddings.
    fn add_noise(&self, noise: &Noise, x: &mut Self::Acts);
    /// Adds each row of `g` `[m, width]`, times the scale, to row `ids` of `table`, but for that of padding.
    fn lookup_back(&self, g: &Self::Acts, width: usize, ids: &[u32], how: EmbeddingSpec, table: &mut Self::Sums);
    /// Adds a vector to each row of `y`: the elements of `bias` from `first` on.
    fn add_bias(&self, bias: &Self::Param, first: usize, y: PartMut<'_, Self::Acts>);
    /// The sum of the rows of `g` into the elements of `own` from `first` on.
    fn bias_back(&self, g: Part<'_, Self::Acts>, first: usize, own: &mut Self::Sums);
    /// Rows `rows` of `x` `[.., width]` into `y`.
    fn gather(&self, x: &Self::Acts, width: usize, rows: &[usize], y: &mut Self::Acts);
    /// The rows of `x` into rows `rows` of `y` `[.., width]`.
    fn scatter(&self, x: &Self::Acts, width: usize, rows: &[usize], y: &mut Self::Acts);

    /// The columns of `x` `[m, n]` in the place of the columns `columns` of `y`.
    fn put_columns(&self, x: &Self::Sums, columns: &[u32], y: PartMut<'_, Self::Sums>);
    /// Moves the columns `columns` of `x` into `y` `[m, n]`, and leaves zeros.
    fn take_columns(&self, x: PartMut<'_, Self::Acts>, columns: &[u32], y: &mut Self::Acts);

    /// `x / rms(x) · factor`, and what is in `onto` added to it, see [`crate::kernels::rms_norm`].
    fn norm(
        &self,
        x: Part<'_, Self::Acts>,
        weight: &Self::Param,
        norm: Norm,
        onto: Option<Part<'_, Self::Acts>>,
        y: PartMut<'_, Self::Acts>,
    );
    /// Adds the gradient of a norm's input to `onto`, for the gradient `g` of its output; that of the weight into `own`.
    fn norm_back(
        &self,
        x: Part<'_, Self::Acts>,
        weight: &Self::Param,
        norm: Norm,
        g: Part<'_, Self::Acts>,
        onto: PartMut<'_, Self::Acts>,
        own: Option<&mut Self::Sums>,
    );
    /// Turns every head of `x` by its token's angles.
    fn rotate(&self, x: PartMut<'_, Self::Acts>, angles: &Rotary, turn: Turn);
    /// `activation(gate) · up`, element by element.
    fn gate(&self, activation: Activation, gate: &Self::Acts, up: &Self::Acts, y: &mut Self::Acts);
    /// Replaces `gate` and `up` by their gradients, for the gradient `g` of the result, and that one by the result.
    fn gate_back(&self, activation: Activation, gate: &mut Self::Acts, up: &mut Self::Acts, g: &mut Self::Acts);
    /// `x` with dropout into `y`, whose rows follow each other. A row of a selection counts as its token's.
    fn dropped(&self, x: Part<'_, Self::Acts>, dropout: Dropout, rows: Option<Selection<'_, Self>>, y: &mut Self::Acts);

    /// A weight `[rows, cols]` rounded to levels, in memory of its own.
    ///
    /// # Errors
    /// The backend does not round.
    fn rounded(&self, weight: &Self::Param, shape: (usize, usize), levels: Levels) -> Result<Self::Param>;
    /// The gradient of a weight, for that of the rounded one, in its place.
    fn rounded_back(&self, weight: &Self::Param, levels: Levels, g: &mut Self::Sums);
    /// The tokens `x`, each rounded to 8 bits, into `y`.
    fn round_tokens(&self, x: Part<'_, Self::Acts>, y: PartMut<'_, Self::Acts>);
    /// The gradient of the tokens `x`, for that of the rounded ones, in its place, and what is in `onto` added to it.
    fn round_tokens_back(
        &self,
        x: Part<'_, Self::Acts>,
        onto: Option<Part<'_, Self::Acts>>,
        g: PartMut<'_, Self::Acts>,
    );

    /// Attention of queries `[m, ..]` to keys and values, in the rows that `how` says; the logarithm of each query's normalizer into `lse` `[heads, m]`.
    fn attend(
        &self,
        how: &Attention<'_>,
        qkv: [Part<'_, Self::Acts>; 3],
        y: PartMut<'_, Self::Acts>,
        lse: &mut Self::Sums,
    );
    /// The gradients of queries, keys and values, for the gradient `g` of the result `y`.
    fn attend_back(
        &self,
        how: &Attention<'_>,
        qkv: [Part<'_, Self::Acts>; 3],
        y: (Part<'_, Self::Acts>, &Self::Sums),
        g: Part<'_, Self::Acts>,
        gqkv: [PartMut<'_, Self::Acts>; 3],
    );

    /// Computes what results are scaled by: the magnitude of each over the norm of its row of `W + scale · B A`. The squares of
    /// those of `W` are there; `products` are `A Wᵀ` `[rank, out]` and `A Aᵀ` `[rank, rank]`.
    fn rescale(
        &self,
        scaling: &mut Self::Scaling,
        b: &Self::Param,
        products: (&Self::Sums, &Self::Sums),
        rank: usize,
        scale: f64,
    );
    /// Whether that was done, for parameters that do not change.
    fn is_scaled(&self, _: &Self::Scaling) -> bool {
        false
    }
    /// Scales the columns of `x`, or of `y` itself where there is none, into `y`, by the factors from `first` on, and adds what
    /// is in `onto`.
    fn scale_columns(
        &self,
        by: (&Self::Scaling, usize),
        x: Option<Part<'_, Self::Acts>>,
        onto: Option<Part<'_, Self::Acts>>,
        y: PartMut<'_, Self::Acts>,
    );
    /// The same of sums, where they are.
    fn scale_sums(&self, by: &Self::Scaling, y: PartMut<'_, Self::Sums>);
    /// The gradients of magnitudes, from `first` on, for the gradient `g` of results and what these are before they are scaled,
    /// `x`. Norms count as constants.
    fn magnitude_back(
        &self,
        by: (&Self::Scaling, usize),
        g: Part<'_, Self::Acts>,
        x: Part<'_, Self::Acts>,
        own: &mut Self::Sums,
    );

    /// Which of `count` experts each token goes to, by the router's `logits` `[m, count]`. `asks` says whether [`Backend::starts`] follows.
    fn route(&self, logits: &Self::Sums, tokens: usize, how: Experts, asks: bool) -> Self::Routes;
    /// The first place of each expert, and the number of places at the end. A backend that computes later waits here.
    fn starts(&self, routes: &mut Self::Routes) -> Vec<usize>;
    /// Whether the newest tokens of sequences, which have so many places at so many experts, are computed by
    /// [`Backend::multiply_places`], so that nobody asks how many of these each expert has.
    fn has_few_places(&self, _places: usize, _experts: usize) -> bool {
        false
    }
    /// Products of each place's row with the weights of its expert. It is asked for where there are few places, and only there.
    fn multiply_places(&self, routes: &Self::Routes, by: ByExperts<'_, Self>);
    /// Whether routes are better kept until the backward pass than found again, where all else is computed again.
    fn keeps_routes(&self) -> bool {
        false
    }
    /// The gradient of these logits, for that of the weights of the chosen experts, `g` of each place.
    fn route_back(&self, logits: &Self::Sums, how: Experts, routes: &Self::Routes, g: &Self::Sums, y: &mut Self::Acts);
    /// The row of each place's token, of `x` `[m, width]`, into `y` `[places, width]`.
    fn to_places(&self, x: &Self::Acts, width: usize, routes: &Self::Routes, y: &mut Self::Acts);
    /// For each token the sum of the rows of `x` at its places, weighted or not, and what is in `onto`.
    fn combine(
        &self,
        x: Part<'_, Self::Acts>,
        routes: &Self::Routes,
        weighted: bool,
        onto: Option<Part<'_, Self::Acts>>,
        y: PartMut<'_, Self::Acts>,
    );
    /// Multiplies the row of each place by the weight of its expert for its token.
    fn weigh_places(&self, x: PartMut<'_, Self::Acts>, routes: &Self::Routes);
    /// The product of each row of `a` with the same row of `b`.
    fn row_dots(&self, a: Part<'_, Self::Acts>, b: Part<'_, Self::Acts>) -> Self::Sums;

    /// Logits `z` `[m, vocab]` become `cap · tanh(z / cap)`.
    fn cap(&self, logits: &mut Self::Sums, cap: f64);
    /// Multiplies all logits `[m, vocab]`.
    fn multiply_logits(&self, logits: &mut Self::Sums, vocab: usize, factor: f64);
    /// The loss `of` each row of `logits` `[m, vocab]`, capped first where there is a `cap`, and of its target; and with `weights`, a factor
    /// a row, the gradient of the weighted sum, in the memory that the logits had.
    fn loss(
        &self,
        logits: Self::Sums,
        vocab: usize,
        cap: Option<f64>,
        of: TokenLoss,
        targets: &[u32],
        weights: Option<&[f64]>,
    ) -> Losses<Self>;
    /// The same of a student, whose logits come with its teacher's `[m, vocab]`, which are capped already: the gradient is that of the
    /// `mixture` of cross-entropy and divergence. Also returns each row's divergence.
    fn distilled(
        &self,
        logits_and_teachers: (Self::Sums, Self::Sums),
        vocab: usize,
        cap: Option<f64>,
        targets: &[u32],
        mixture: Mixture,
        weights: Option<&[f64]>,
    ) -> (Losses<Self>, Self::Each);
    /// The same where of the teacher the likeliest tokens are known and what all others have together.
    fn distilled_by_top(
        &self,
        logits_and_teachers: (Self::Sums, TopRows<'_>),
        vocab: usize,
        cap: Option<f64>,
        targets: &[u32],
        mixture: Mixture,
        weights: Option<&[f64]>,
    ) -> (Losses<Self>, Self::Each);
    /// The losses, when they are there.
    fn losses(&self, each: Self::Each) -> Vec<f64>;
    /// The sum of losses, one part after the other. A backend that computes later does not wait for it.
    fn total(&self, all: Vec<Self::Each>) -> Later {
        let parts = all.into_iter().map(|each| self.losses(each).iter().sum::<f64>());
        parts.fold(0.0, |total, part| total + part).into()
    }
    /// The first `count` sums of a buffer.
    fn read_sums(&self, x: &Self::Sums, count: usize) -> Vec<f64>;
    /// Numbers as activations: a gradient that was computed elsewhere.
    fn given(&self, numbers: &[f64]) -> Self::Acts;
    /// Rows of logits that exist at a time, at most, where the output layer's weight is trained or is not.
    fn rows_at_once(&self, vocab: usize, _: bool) -> usize {
        rows_at_once(vocab)
    }
}

/// A backend that reads its parameters from the tensors of a model, which it may borrow for as long as `'m`.
pub(crate) trait Reads<'m>: Backend + 'm {
    /// A parameter.
    ///
    /// # Errors
    /// The tensor is elsewhere, or is of a type that the backend does not read.
    fn param(&self, tensor: &'m Tensor) -> Result<Self::Param>;

    /// A frozen matrix that stays in its blocks.
    ///
    /// # Errors
    /// The backend does not read such.
    fn quantized(&self, of: &'m Quantized) -> Result<Self::Param>;

    /// Parameters on their way from the processes that divide a model.
    type OnTheWay;
    /// A parameter that has come from there.
    type Gathered;

    /// Reads what is here of a parameter ahead of its use, where that takes memory.
    ///
    /// # Errors
    /// The backend does not read such.
    fn keep(&self, _here: &Here) -> Result<()> {
        Ok(())
    }

    /// Begins to gather parameters of which these parts are here, those of `of`.
    ///
    /// # Errors
    /// The backend does not read such.
    fn bring(&self, mesh: &Mesh, of: &str, here: &[Here]) -> Result<Self::OnTheWay>;

    /// Those that were gathered, in their order.
    ///
    /// # Errors
    /// Another process is gone.
    fn arrived(&self, on_the_way: Self::OnTheWay) -> Result<Vec<Self::Gathered>>;

    /// A parameter that was gathered from several processes.
    ///
    /// # Errors
    /// The backend does not read such.
    fn gathered(&self, of: Self::Gathered) -> Result<Self::Param>;

    /// The magnitudes of a layer's results, and what they are divided by.
    ///
    /// # Errors
    /// The backend does not read such.
    fn scaling(&self, of: &'m Magnitude) -> Result<Self::Scaling>;

    /// What comes of a step by the newest tokens of sequences, whose logits `compute` computes. Who can does as it did in another step of
    /// that shape, without asking it again; then only what `new` has is other than it was. Who has the logits elsewhere draws there.
    ///
    /// # Errors
    /// Those of `compute`.
    fn newest(&self, new: &NewTokens<'_>, compute: &mut dyn FnMut() -> Result<Self::Sums>) -> Result<Answered> {
        Ok(new.drawn_by(self.numbers(&compute()?)))
    }

    /// A copy of sums.
    fn numbers(&self, x: &Self::Sums) -> Vec<f32>;

    /// Whether all was computed, for a backend that computes later.
    ///
    /// # Errors
    /// What went wrong.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Some columns of some rows of a buffer: `[rows, cols]`, `stride` elements from one row to the next.
#[derive(Debug)]
pub(crate) struct Part<'a, M> {
    pub(crate) of: &'a M,
    /// The first element.
    pub(crate) at: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl<M> Clone for Part<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Part<'_, M> {}

impl<'a, M> Part<'a, M> {
    /// Rows that follow each other without a gap.
    pub(crate) fn new(of: &'a M, rows: usize, cols: usize) -> Self {
        Self::strided(of, (rows, cols), cols)
    }

    /// Some rows of `[.., cols]`, from `first` on.
    pub(crate) fn rows(of: &'a M, first: usize, rows: usize, cols: usize) -> Self {
        Self { of, at: first * cols, rows, cols, stride: cols }
    }

    /// Rows that begin `stride` elements after each other.
    pub(crate) fn strided(of: &'a M, (rows, cols): (usize, usize), stride: usize) -> Self {
        Self { of, at: 0, rows, cols, stride }
    }

    /// `rows` of its rows from `first` on.
    pub(crate) fn some_rows(self, first: usize, rows: usize) -> Self {
        Self { at: self.at + first * self.stride, rows, ..self }
    }

    /// The elements from the first to the last.
    pub(crate) fn range(&self) -> Range<usize> {
        self.at..self.at + extent(self.rows, self.cols, self.stride)
    }
}

/// A [`Part`] to be written.
#[derive(Debug)]
pub(crate) struct PartMut<'a, M> {
    pub(crate) of: &'a mut M,
    /// The first element.
    pub(crate) at: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

impl<'a, M> PartMut<'a, M> {
    /// Some rows of `[.., cols]`, from `first` on.
    pub(crate) fn rows(of: &'a mut M, first: usize, rows: usize, cols: usize) -> Self {
        Self { of, at: first * cols, rows, cols, stride: cols }
    }

    /// Rows that follow each other without a gap.
    pub(crate) fn new(of: &'a mut M, rows: usize, cols: usize) -> Self {
        Self { of, at: 0, rows, cols, stride: cols }
    }

    /// The same part, to be written before this is used again.
    pub(crate) fn again(&mut self) -> PartMut<'_, M> {
        PartMut { of: &mut *self.of, at: self.at, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// The elements from the first to the last.
    pub(crate) fn range(&self) -> Range<usize> {
        self.at..self.at + extent(self.rows, self.cols, self.stride)
    }
}

fn extent(rows: usize, cols: usize, stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols }
}

/// A weight `[out, inner]` in a product: rows of a parameter, from `first` on.
pub(crate) struct Weight<'a, B: Backend> {
    pub(crate) param: &'a B::Param,
    pub(crate) first: usize,
    pub(crate) out: usize,
    pub(crate) inner: usize,
    /// Whether it is in blocks, which a product dequantizes as it goes.
    pub(crate) quantized: bool,
}

impl<B: Backend> Clone for Weight<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Weight<'_, B> {}

/// One product of a sum, by its part in a layer.
pub(crate) enum Term<'a, B: Backend> {
    /// `x · wᵀ` for `x` `[m, inner]`: on the way up.
    Up { x: Part<'a, B::Acts>, w: Weight<'a, B> },
    /// `g · w` for `g` `[m, out]`: on the way down.
    Down { g: Part<'a, B::Acts>, w: Weight<'a, B> },
    /// `gᵀ · x` for `g` `[k, m]` and `x` `[k, n]`: a weight's gradient.
    Across { g: Part<'a, B::Acts>, x: Part<'a, B::Acts> },
}

impl<B: Backend> Term<'_, B> {
    /// Its shape.
    pub(crate) fn sides(&self) -> Sides {
        match self {
            Self::Up { x: left, w } | Self::Down { g: left, w } => {
                let up = matches!(self, Self::Up { .. });
                Sides { left_width: Some(left.stride), inner: left.cols, quantized: w.quantized, up }
            }
            Self::Across { g, .. } => Sides { left_width: None, inner: g.rows, quantized: false, up: false },
        }
    }
}

/// What becomes of a sum of products.
pub(crate) enum Finish<'a, B: Backend> {
    /// It is stored.
    Store,
    /// It is multiplied by a factor.
    Scaled(f64),
    /// It is added to the same element of another matrix.
    Onto(Part<'a, B::Acts>),
    /// A vector is added to each row: the elements of a bias from the given one on.
    Plus(&'a B::Param, usize),
    /// It is dropped or scaled, and added to what is there. A row of a selection counts as its token's.
    AddDropped(Dropout, Option<Selection<'a, B>>),
}

/// Which tokens some rows are.
pub(crate) enum Selection<'a, B: Backend> {
    /// A token for each row.
    Tokens(&'a [usize]),
    /// So many places of tokens at experts, from the first given on.
    Places { routes: &'a B::Routes, first: usize, count: usize },
}

impl<B: Backend> Clone for Selection<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Selection<'_, B> {}

/// How a norm is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Norm {
    /// Elements that are normed together.
    pub(crate) width: usize,
    /// Added to the mean of squares.
    pub(crate) eps: f64,
    /// The factor is `1 + weight`, and not the weight.
    pub(crate) from_one: bool,
}

/// How a mixture of experts is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Experts {
    /// How many there are, and how many a token goes to.
    pub(crate) count: usize,
    pub(crate) chosen: usize,
    /// Whether the weights of the chosen ones are made to sum to one.
    pub(crate) renormalized: bool,
}

/// Products by experts, all of one shape: `y[place] = factor · (x · wᵀ + h · bᵀ)`, where the weights are those of the place's expert.
pub(crate) struct ByExperts<'a, B: Backend> {
    pub(crate) out: usize,
    pub(crate) inner: usize,
    /// Columns of `h`, if there are adapters.
    pub(crate) rank: usize,
    /// Whether `x` has a row for each token, and not for each place.
    pub(crate) of_tokens: bool,
    pub(crate) factor: f64,
    /// One or two.
    pub(crate) products: Vec<AtPlaces<'a, B>>,
}

/// One of these products.
pub(crate) struct AtPlaces<'a, B: Backend> {
    /// `[places, inner]` or `[tokens, inner]`.
    pub(crate) x: &'a B::Acts,
    /// Of each expert, `[out, inner]`.
    pub(crate) weights: Vec<&'a B::Param>,
    /// `h` `[places, rank]`, and of each expert `b` `[out, rank]`.
    pub(crate) adapters: Option<(&'a B::Acts, Vec<&'a B::Param>)>,
    /// `[places, out]`.
    pub(crate) y: &'a mut B::Acts,
}

/// What [`Backend::loss`] gives.
pub(crate) struct Losses<B: Backend> {
    /// Of each row.
    pub(crate) each: B::Each,
    /// The gradient of the logits, if it was asked for: a buffer, and the elements from one of its rows to the next.
    pub(crate) gradient: Option<(B::Acts, usize)>,
}
