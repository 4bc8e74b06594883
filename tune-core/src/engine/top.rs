//! The last norm, the output layer and the loss: logits exist for a chunk of trained tokens at a time.

use super::backend::{Backend, Losses, Norm, Part, PartMut, Selection};
use super::linear::{Layer, LowRank, input_gradient};
use super::parameters::{LayerParams, NormParams};
use super::run::{By, Found, Run, Taught, Weights};
use crate::data::IGNORE;
use crate::kernels::ledger::Purpose;
use crate::kernels::{TokenLoss, check_targets};
use crate::models::{Of, ParamId};
use crate::{Later, Result};

/// Of this many trained tokens, those whose logits exist at a time, at most `most`: about as many each time, for the weights
/// are read anew.
pub(super) fn rows_at_once(trained: usize, most: usize) -> usize {
    trained.div_ceil(trained.div_ceil(most).max(1)).next_multiple_of(8).min(most).max(1)
}

/// What comes out at the top.
pub(super) struct Top<B: Backend> {
    /// The loss summed over trained tokens, without weights; 0 where what is minimized is a function of scores.
    pub(super) loss: f64,
    /// The same where nobody waited for it; `loss` is 0 then.
    pub(super) unread: Option<Later>,
    /// The divergence from a teacher summed over trained tokens; 0 where there is none.
    pub(super) divergence: f64,
    /// The gradient of the last block's output, `[m, hidden]`, if it was asked for.
    pub(super) of_blocks: Option<B::Acts>,
    /// The gradient of a tied embedding table in its role as output layer.
    pub(super) tied: Option<B::Sums>,
    /// The gradient of rows of single tokens in a tied table, in their role as rows of the output layer.
    pub(super) of_tokens: Option<B::Sums>,
    /// The gradients of what is trained here.
    pub(super) found: Found<B>,
}

/// Rows on their way to the loss.
struct Chunk<B: Backend> {
    /// `[m, hidden]`.
    input: B::Acts,
    /// `[m, hidden]`.
    normed: B::Acts,
    low_rank: LowRank<B>,
}

/// The gradients that are summed up chunk by chunk, as far as they are asked for.
struct Summed<B: Backend> {
    /// Of the output layer's weight, `[vocab, hidden]`.
    weight: Option<B::Sums>,
    /// Whether there is something in it before the first chunk.
    has_begun: bool,
    /// Of the output layer's adapter.
    adapter: Option<Vec<(Of, B::Sums)>>,
    /// Of rows of single tokens, `[tokens, hidden]`.
    tokens: Option<B::Sums>,
    /// Of the last norm, `[1, hidden]`.
    norm: Option<B::Sums>,
    /// Of the last block's output, `[m, hidden]`.
    of_blocks: Option<B::Acts>,
}

impl<B: Backend> Run<'_, B> {
    /// How the model's norms are computed.
    pub(super) fn norm(&self) -> Norm {
        Norm { width: self.shape.hidden_size, eps: self.shape.norm.eps, from_one: self.shape.norm.from_one }
    }

    /// The loss of the residual stream `x` `[m, hidden]`, which `how` says whether to wait for, and with `weights` the gradients of the
    /// weighted sum.
    pub(super) fn top(
        &self,
        x: &B::Acts,
        how: (TokenLoss, bool),
        weights: Option<&Weights>,
        below: bool,
    ) -> Result<Top<B>> {
        self.backend.purpose(Purpose::Output);
        let top = self.norm_head_and_loss(x, how, weights, below);
        self.backend.purpose(Purpose::Activations);
        top
    }

    /// Logits of some rows of `x`, `[rows, vocab]`.
    pub(super) fn logits(&self, x: &B::Acts, rows: &[usize]) -> Result<B::Sums> {
        let (norm, head) = self.parameters.top(self.backend)?;
        Ok(self.logits_by(&norm, &head, x, rows))
    }

    /// The same by a norm and an output layer that are open already.
    fn logits_by(&self, norm: &NormParams<B>, head: &LayerParams<B>, x: &B::Acts, rows: &[usize]) -> B::Sums {
        let (_, mut logits) = self.chunk(x, rows, norm, Layer { backend: self.backend, params: head });
        if let Some(cap) = self.shape.logit_softcap {
            self.backend.cap(&mut logits, cap);
        }
        logits
    }

    /// The loss of each position of `x`, 0 where none is trained.
    pub(super) fn losses_at(&self, x: &B::Acts) -> Result<Vec<f64>> {
        let (targets, vocab) = (&self.batch.targets, self.shape.outputs());
        check_targets(targets, vocab)?;
        let (norm, head) = self.parameters.top(self.backend)?;
        let head = Layer { backend: self.backend, params: &head };
        let mut losses = vec![0.0; targets.len()];
        let (trained, mut each) = (self.trained(), Vec::new());
        for rows in trained.chunks(rows_at_once(trained.len(), self.backend.rows_at_once(vocab, false))) {
            let of_rows: Vec<u32> = rows.iter().map(|&row| targets[row]).collect();
            let (_, mut logits) = self.chunk(x, rows, &norm, head);
            let mut cap = self.shape.logit_softcap;
            if self.temperature != 1.0 {
                // In the order of generation, whose logits are capped when they are divided: all bits are the same.
                if let Some(cap) = cap.take() {
                    self.backend.cap(&mut logits, cap);
                }
                self.backend.multiply_logits(&mut logits, vocab, 1.0 / self.temperature);
            }
            each.push(self.backend.loss(logits, vocab, cap, TokenLoss::CROSS_ENTROPY, &of_rows, None).each);
        }
        let each = each.into_iter().flat_map(|each| self.backend.losses(each));
        trained.iter().zip(each).for_each(|(&row, loss)| losses[row] = loss);
        Ok(losses)
    }

    /// What the output layer gives each position that has a target, `[trained, outputs]`.
    pub(super) fn scores_at(&self, x: &B::Acts) -> Result<Vec<f64>> {
        let (trained, outputs) = (self.trained(), self.shape.outputs());
        check_targets(&self.batch.targets, outputs)?;
        let (norm, head) = self.parameters.top(self.backend)?;
        let head = Layer { backend: self.backend, params: &head };
        let mut scores = Vec::with_capacity(trained.len() * outputs);
        for rows in trained.chunks(rows_at_once(trained.len(), self.backend.rows_at_once(outputs, false))) {
            let (_, logits) = self.chunk(x, rows, &norm, head);
            scores.extend(self.backend.read_sums(&logits, rows.len() * outputs));
        }
        Ok(scores)
    }

    /// The positions that are trained.
    pub(super) fn trained(&self) -> Vec<usize> {
        let targets = &self.batch.targets;
        (0..targets.len()).filter(|&i| targets[i] != IGNORE).collect()
    }

    /// Some rows of `x` up to their logits, `[rows, vocab]`.
    fn chunk(&self, x: &B::Acts, rows: &[usize], norm: &NormParams<B>, head: Layer<'_, B>) -> (Chunk<B>, B::Sums) {
        let (backend, m, width) = (self.backend, rows.len(), self.shape.hidden_size);
        let mut input = backend.acts(m, width);
        backend.gather(x, width, rows, &mut input);
        let mut normed = backend.acts(m, width);
        let y = PartMut::new(&mut normed, m, width);
        backend.norm(Part::new(&input, m, width), &norm.weight, self.norm(), None, y);
        let low_rank = head.low_rank(Part::new(&normed, m, width), Some(Selection::Tokens(rows)));
        let mut logits = backend.sums(m, self.shape.outputs());
        head.forward_sums(&normed, m, &low_rank, &mut logits);
        (Chunk { input, normed, low_rank }, logits)
    }

    /// What the logits of some rows lose, and how far they are from a teacher's, if there is one. `first` of the trained positions come
    /// before these.
    fn lost(
        &self,
        mut logits: B::Sums,
        rows: &[usize],
        first: usize,
        of: TokenLoss,
        top_of_teacher: Option<&(NormParams<B>, LayerParams<B>)>,
        weights: Option<&Weights>,
    ) -> (Losses<B>, Option<B::Each>) {
        let (backend, vocab, mut cap) = (self.backend, self.shape.outputs(), self.shape.logit_softcap);
        let targets: Vec<u32> = rows.iter().map(|&row| self.batch.targets[row]).collect();
        let mut weights = weights.map(|weights| weights.of(rows));
        if self.taught.is_none() && self.temperature != 1.0 {
            // cap tanh(z / cap) / T is (cap / T) tanh((z / T) / (cap / T)), so what is divided may be capped afterwards.
            backend.multiply_logits(&mut logits, vocab, 1.0 / self.temperature);
            cap = cap.map(|cap| cap / self.temperature);
            weights.iter_mut().flatten().for_each(|weight| *weight /= self.temperature);
        }
        let weights = weights.as_deref();
        let (losses, from_teacher) = match (&self.taught, top_of_teacher) {
            (Some(Taught { by: By::Model(teacher, x), mixture }), Some((norm, head))) => {
                let theirs = teacher.logits_by(norm, head, x, rows);
                backend.distilled((logits, theirs), vocab, cap, &targets, *mixture, weights)
            }
            (Some(Taught { by: By::Said(said), mixture }), _) => {
                let theirs = said.rows(first..first + rows.len());
                backend.distilled_by_top((logits, theirs), vocab, cap, &targets, *mixture, weights)
            }
            _ => return (backend.loss(logits, vocab, cap, of, &targets, weights), None),
        };
        (losses, Some(from_teacher))
    }

    fn norm_head_and_loss(
        &self,
        x: &B::Acts,
        (of, waits): (TokenLoss, bool),
        weights: Option<&Weights>,
        below: bool,
    ) -> Result<Top<B>> {
        let (backend, vocab) = (self.backend, self.shape.outputs());
        check_targets(&self.batch.targets, vocab)?;
        let (norm, head) = self.parameters.top(backend)?;
        let head = Layer { backend, params: &head };
        // Once, however many chunks there are: where processes share a teacher, all gather it as often.
        let top_of_teacher = match &self.taught {
            Some(Taught { by: By::Model(teacher, _), .. }) => Some(teacher.parameters.top(backend)?),
            _ => None,
        };
        let (trained, backward) = (self.trained(), weights.is_some());
        let mut summed = match backward {
            true => self.begin_sums(&norm, head, trained.is_empty(), below),
            false => Summed::none(),
        };
        let (mut losses, mut divergences, mut done) = (Vec::new(), Vec::new(), 0);
        let most = backend.rows_at_once(vocab, summed.weight.is_some());
        for rows in trained.chunks(rows_at_once(trained.len(), most)) {
            let (chunk, logits) = self.chunk(x, rows, &norm, head);
            let gradient = if let Some(Weights::Scores(slopes)) = weights {
                drop(logits);
                Some((backend.given(&slopes[done * vocab..][..rows.len() * vocab]), vocab))
            } else {
                let (Losses { each, gradient }, from_teacher) =
                    self.lost(logits, rows, done, of, top_of_teacher.as_ref(), weights);
                divergences.extend(from_teacher);
                losses.push(each);
                gradient
            };
            if let Some(gradient) = gradient {
                self.chunk_back(chunk, rows, gradient, done == 0, (&norm, head), &mut summed);
            }
            done += rows.len();
        }
        // All that comes before is asked for by now: who computes later is waited for once.
        let losses = backend.total(losses);
        let (loss, unread) = if waits { (losses.wait()?, None) } else { (0.0, Some(losses)) };
        let divergence = backend.total(divergences).wait()?;
        let (of_blocks, found) = (summed.of_blocks.take(), Found::<B>::new());
        let mut top = Top { loss, unread, divergence, of_blocks, tied: None, of_tokens: None, found };
        if backward && loss.is_finite() && divergence.is_finite() {
            self.hand_out(summed, head, &mut top);
        }
        Ok(top)
    }

    /// Takes the memory of what is trained here. Where there is no chunk (`is_empty`), the sums are zeros.
    fn begin_sums(&self, norm: &NormParams<B>, head: Layer<'_, B>, is_empty: bool, below: bool) -> Summed<B> {
        let (backend, width, vocab) = (self.backend, self.shape.hidden_size, self.shape.outputs());
        let zeros = |rows, cols| {
            let mut zeros = backend.gradient(rows, cols);
            backend.clear(&mut zeros);
            zeros
        };
        // The first chunk's gradient is set, and not added.
        let fresh = |rows| if is_empty { zeros(rows, width) } else { backend.gradient(rows, width) };
        let id = if self.shape.tie_word_embeddings { ParamId::Embedding } else { ParamId::Output(Of::Weight) };
        let begun = head.params.trained.then(|| backend.begun(id)).flatten();
        let has_begun = begun.is_some();
        Summed {
            weight: head.params.trained.then(|| begun.unwrap_or_else(|| fresh(vocab))),
            has_begun,
            adapter: None,
            tokens: head.params.tokens.as_ref().map(|tokens| fresh(tokens.ids.len())),
            norm: norm.trained.then(|| zeros(1, width)),
            of_blocks: below.then(|| backend.zeros(self.tokens(), width)),
        }
    }

    /// The way back from the gradient of some rows' logits, `[rows, vocab]` with a stride; `is_first` of all chunks.
    fn chunk_back(
        &self,
        chunk: Chunk<B>,
        rows: &[usize],
        gradient: (B::Acts, usize),
        is_first: bool,
        (norm, head): (&NormParams<B>, Layer<'_, B>),
        summed: &mut Summed<B>,
    ) {
        let (backend, m, width, vocab) = (self.backend, rows.len(), self.shape.hidden_size, self.shape.outputs());
        let (Chunk { input, normed, low_rank }, (mut gradient, stride)) = (chunk, gradient);
        let of_tokens = head.take_tokens(PartMut { of: &mut gradient, at: 0, rows: m, cols: vocab, stride });
        let gradient = Part::strided(&gradient, (m, vocab), stride);
        let back = head.back(vec![gradient]).with_tokens(of_tokens.as_ref());
        if let (Some(sum), Some(of_tokens)) = (&mut summed.tokens, &of_tokens) {
            head.tokens_gradient(of_tokens, Part::new(&normed, m, width), !is_first, sum);
        }
        if let Some(sum) = &mut summed.weight {
            let x = head.fed(Part::new(&normed, m, width));
            head.weight_gradient(&x, gradient, 0, summed.has_begun || !is_first, sum);
        }
        let x = Part::new(&normed, m, width);
        if let Some(more) = head.adapter_gradients(&back, x, &low_rank, Some(Selection::Tokens(rows))) {
            match &mut summed.adapter {
                None => summed.adapter = Some(more),
                Some(sums) => {
                    sums.iter_mut().zip(&more).for_each(|((_, sum), (_, more))| backend.accumulate(sum, more));
                }
            }
        }
        if summed.of_blocks.is_none() && summed.norm.is_none() {
            return;
        }
        let (input_of_head, mut g_normed) = match back.rounds_inputs() {
            true => (Some(normed), backend.acts(m, width)),
            false => (None, normed),
        };
        let of_head = input_of_head.as_ref().map(|input| Part::new(input, m, width));
        input_gradient(&[&back], Some(Selection::Tokens(rows)), of_head, None, PartMut::new(&mut g_normed, m, width));
        let mut g_input = backend.zeros(m, width);
        let mut own = norm.trained.then(|| backend.gradient(1, width));
        backend.norm_back(
            Part::new(&input, m, width),
            &norm.weight,
            self.norm(),
            Part::new(&g_normed, m, width),
            PartMut::new(&mut g_input, m, width),
            own.as_mut(),
        );
        if let (Some(sum), Some(own)) = (&mut summed.norm, own) {
            backend.accumulate(sum, &own);
        }
        if let Some(of_blocks) = &mut summed.of_blocks {
            backend.scatter(&g_input, width, rows, of_blocks);
        }
    }

    /// Says whose gradients the sums are.
    fn hand_out(&self, summed: Summed<B>, head: Layer<'_, B>, top: &mut Top<B>) {
        let tied = self.shape.tie_word_embeddings;
        if let Some(mut gradient) = summed.weight {
            head.limit(&mut gradient);
            match tied {
                true => top.tied = Some(gradient),
                false => top.found.push((ParamId::Output(Of::Weight), gradient)),
            }
        }
        if let Some(gradient) = summed.tokens {
            match tied {
                true => top.of_tokens = Some(gradient),
                false => top.found.push((ParamId::OutputTokens, gradient)),
            }
        }
        let of_adapter = summed.adapter.or_else(|| head.no_adapter_gradients());
        top.found.extend(of_adapter.into_iter().flatten().map(|(of, gradient)| (ParamId::Output(of), gradient)));
        top.found.extend(summed.norm.map(|gradient| (ParamId::LastNorm, gradient)));
    }
}

impl<B: Backend> Summed<B> {
    /// None is asked for.
    fn none() -> Self {
        Self { weight: None, has_begun: false, adapter: None, tokens: None, norm: None, of_blocks: None }
    }
}
