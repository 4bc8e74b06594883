//! What the engine takes of the arena, on paper: the steps of [`super::forward_backward`], of the blocks and of the top
//! with the same buffers in the same order, and nothing computed. A change there belongs here, too; a test below
//! compares both.

use std::marker::PhantomData;

use crate::data::{Batch, IGNORE};
use crate::kernels::attention::Attention;
use crate::kernels::footprint::Paper;
use crate::kernels::gemm::Sides;
use crate::kernels::ledger::{Entry, Purpose};
use crate::kernels::{Element, rms_norm};
use crate::models::Slot::{self, DownProj, GateProj, KProj, LmHead, OProj, QProj, UpProj, VProj};
use crate::models::{DecoderConfig, LoraOptions, PerSlot};

use super::top::rows_at_once;

/// What is known of a training step before there is a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepOnPaper<'a> {
    pub(crate) model: &'a DecoderConfig,
    /// The adapters that are trained; the model's own weights if `None`.
    pub(crate) lora: Option<&'a LoraOptions>,
    pub(crate) activation_checkpointing: bool,
    /// Whether gradients are used up as they come.
    pub(crate) optimizer_in_backward: bool,
}

impl StepOnPaper<'_> {
    /// A training step with micro-batches that are given without padding, in the type `T`.
    pub(crate) fn train<T: Element>(&self, micro_batches: &[&Batch], paper: &Paper) {
        let mut gathered = Gathered { keeps: !self.optimizer_in_backward, gradients: Vec::new() };
        for (i, batch) in micro_batches.iter().enumerate() {
            // From the second on gradients are added to those of the first.
            gathered.keeps &= i == 0;
            Run::<T>::new(*self, batch, paper).forward_backward(&mut gathered);
        }
    }

    /// See [`super::evaluate`].
    pub(crate) fn evaluate<T: Element>(&self, batch: &Batch, paper: &Paper) {
        let run = Run::<T>::new(*self, batch, paper);
        let mut x = run.buffer(run.model.hidden_size);
        for _ in 0..run.model.num_hidden_layers {
            x = run.block().forward(false).0;
        }
        run.top(false, false);
        drop(x);
    }
}

/// Who takes the gradients.
struct Gathered {
    keeps: bool,
    gradients: Vec<Entry>,
}

impl Gathered {
    fn take(&mut self, found: Found) {
        for gradient in found {
            if self.keeps {
                self.gradients.push(gradient);
            }
        }
    }
}

type Found = Vec<Entry>;

/// See [`super::Run`].
struct Run<'a, T> {
    step: StepOnPaper<'a>,
    model: &'a DecoderConfig,
    batch: &'a Batch,
    paper: &'a Paper,
    element: PhantomData<T>,
}

/// See [`super::block::CpuBlock`].
struct Block<'a, T> {
    run: &'a Run<'a, T>,
    layers: PerSlot<Layer<'a, T>>,
}

/// See [`super::linear::Layer`].
struct Layer<'a, T> {
    run: &'a Run<'a, T>,
    inner: usize,
    out: usize,
    adapter: Option<Adapter>,
}

struct Adapter {
    rank: usize,
    dropout: bool,
    /// `A` and `B` in the type of the activations, where that is not f32.
    _converted: Option<[Entry; 2]>,
}

/// See [`super::linear::Back`].
struct Back<'a, T> {
    layer: &'a Layer<'a, T>,
    _low_rank: Option<Entry>,
}

/// See [`super::block::Saved`]; `_of_attention` are queries, keys, values, the attention's output and its normalizers.
struct Saved {
    _of_attention: [Entry; 5],
    _middle: Entry,
    _gate_and_up: Option<[Entry; 2]>,
    low_rank: PerSlot<Option<Entry>>,
}

/// See [`super::top::Top`].
struct Top {
    of_blocks: Option<Entry>,
    tied: Option<Entry>,
    found: Found,
}

impl<'a, T: Element> Run<'a, T> {
    fn new(step: StepOnPaper<'a>, batch: &'a Batch, paper: &'a Paper) -> Self {
        Self { step, model: step.model, batch, paper, element: PhantomData }
    }

    fn tokens(&self) -> usize {
        self.batch.input_ids.len()
    }

    /// Whether the model's own weights are trained.
    fn trains_weights(&self) -> bool {
        self.step.lora.is_none()
    }

    /// `width` elements for each token.
    fn buffer(&self, width: usize) -> Entry {
        self.paper.buffer::<T>(self.tokens() * width)
    }

    fn layer(&self, slot: Slot) -> Layer<'_, T> {
        let (out, inner) = self.model.sides(slot);
        let adapter = self.step.lora.filter(|lora| lora.modules.contains(&slot)).map(|lora| Adapter {
            rank: lora.rank,
            dropout: lora.dropout > 0.0,
            _converted: T::IS_BF16.then(|| [lora.rank * inner, out * lora.rank].map(|len| self.paper.buffer::<T>(len))),
        });
        Layer { run: self, inner, out, adapter }
    }

    fn block(&self) -> Block<'_, T> {
        Block { run: self, layers: PerSlot::new(|slot| self.layer(slot)) }
    }

    fn forward_backward(&self, gathered: &mut Gathered) {
        let blocks = self.model.num_hidden_layers;
        let in_blocks = self.step.lora.is_some_and(|lora| lora.modules.iter().any(|&slot| slot != LmHead));
        let lowest = if self.trains_weights() || in_blocks { 0 } else { blocks };
        let mut x = self.buffer(self.model.hidden_size);
        let mut saved = Vec::new();
        for index in 0..blocks {
            let (y, inner) = self.block().forward(index >= lowest && !self.step.activation_checkpointing);
            let input = std::mem::replace(&mut x, y);
            if index >= lowest {
                saved.push((input, inner));
            }
        }
        let top = self.top(true, lowest < blocks);
        drop(x);
        gathered.take(top.found);
        let Some(gradient) = top.of_blocks else { return };
        while let Some((_input, inner)) = saved.pop() {
            let wants_input = !saved.is_empty() || self.trains_weights();
            let found = self.block().backward(inner, wants_input);
            gathered.take(found);
        }
        if self.trains_weights() {
            let table = || self.paper.gradient(self.model.vocab_size * self.model.hidden_size);
            gathered.take(vec![top.tied.unwrap_or_else(table)]);
        }
        drop(gradient);
    }

    /// See [`super::Run::top`].
    fn top(&self, backward: bool, below: bool) -> Top {
        self.paper.accounting(Purpose::Output, || self.top_and_loss(backward, below))
    }

    fn top_and_loss(&self, backward: bool, below: bool) -> Top {
        let (width, vocab) = (self.model.hidden_size, self.model.vocab_size);
        let head = self.layer(LmHead);
        let trained = self.batch.targets.iter().filter(|&&t| t != IGNORE).count();
        let norm_trained = backward && self.trains_weights();

        let weight_gradient = norm_trained.then(|| self.paper.gradient(vocab * width));
        let mut adapter_gradients = None;
        let norm_gradient = norm_trained.then(|| self.paper.gradient(width));
        let of_blocks = (below && backward).then(|| self.buffer(width));
        let chunk = rows_at_once(trained, vocab);
        for rows in (0..trained).step_by(chunk).map(|first| chunk.min(trained - first)) {
            let of = |width: usize| self.paper.buffer::<T>(rows * width);
            let (_input, normed) = (of(width), of(width));
            let low_rank = head.low_rank(rows);
            let logits = self.paper.buffer::<f32>(rows * vocab);
            head.forward::<T>(rows, &low_rank);
            if !backward {
                continue;
            }
            let back = head.back(rows);
            if weight_gradient.is_some() {
                head.weight_gradient(rows);
            }
            let own = head.adapter_gradients(rows);
            adapter_gradients = adapter_gradients.or(own);
            if of_blocks.is_none() && norm_gradient.is_none() {
                continue;
            }
            input_gradient(&[&back], rows);
            let _of_input = of(width);
            rms_norm::backward_on_paper(self.paper, rows, width, norm_trained);
            drop((normed, logits));
        }
        let (tied, untied) =
            if self.model.tie_word_embeddings { (weight_gradient, None) } else { (None, weight_gradient) };
        let mut found: Found = untied.into_iter().collect();
        if let (Some(adapter), true) = (&head.adapter, backward) {
            let zeros = || [width, vocab].map(|side| self.paper.gradient(adapter.rank * side));
            found.extend(adapter_gradients.unwrap_or_else(zeros));
        }
        found.extend(norm_gradient);
        Top { of_blocks, tied, found }
    }
}

impl<T: Element> Block<'_, T> {
    fn forward(&self, keep: bool) -> (Entry, Option<Saved>) {
        let m = self.run.tokens();
        let down = &self.layers[DownProj];
        let mut saved = self.attend();
        self.gate_and_up(&mut saved);
        let _activated = self.run.buffer(down.inner);
        saved.low_rank[DownProj] = down.low_rank(m);
        let y = self.run.buffer(down.out);
        down.forward::<T>(m, &saved.low_rank[DownProj]);
        (y, keep.then_some(saved))
    }

    fn attend(&self) -> Saved {
        let (run, m) = (self.run, self.run.tokens());
        let o = &self.layers[OProj];
        let normed = run.buffer(self.layers[QProj].inner);
        let mut low_rank = PerSlot::new(|_| None);
        let mut project = |slot| {
            let layer = &self.layers[slot];
            low_rank[slot] = layer.low_rank(m);
            let y = run.buffer(layer.out);
            layer.forward::<T>(m, &low_rank[slot]);
            y
        };
        let (q, k, v) = (project(QProj), project(KProj), project(VProj));
        drop(normed);
        let attended = run.buffer(o.inner);
        let lse = run.paper.buffer::<f32>(m * run.model.num_attention_heads);
        self.attention().forward_on_paper::<T>(m, run.paper);
        low_rank[OProj] = o.low_rank(m);
        let middle = run.buffer(o.out);
        o.forward::<T>(m, &low_rank[OProj]);
        Saved { _of_attention: [q, k, v, attended, lse], _middle: middle, _gate_and_up: None, low_rank }
    }

    fn gate_and_up(&self, saved: &mut Saved) {
        let m = self.run.tokens();
        let layers = [GateProj, UpProj].map(|slot| &self.layers[slot]);
        let _normed = self.run.buffer(layers[0].inner);
        saved.low_rank[GateProj] = layers[0].low_rank(m);
        saved.low_rank[UpProj] = layers[1].low_rank(m);
        saved._gate_and_up = Some(layers.map(|layer| self.run.buffer(layer.out)));
        layers[0].forward::<T>(m, &saved.low_rank[GateProj]);
        layers[1].forward::<T>(m, &saved.low_rank[UpProj]);
    }

    fn attention(&self) -> Attention<'_> {
        Attention { shape: self.run.model.attention(), spans: &self.run.batch.spans, len: self.run.batch.len }
    }

    fn backward(&self, saved: Option<Saved>, wants_input: bool) -> Found {
        let mut found = Found::new();
        let mut saved = saved.unwrap_or_else(|| {
            let mut saved = self.attend();
            self.gate_and_up(&mut saved);
            saved
        });
        self.mlp_backward(&mut saved, &mut found);
        self.attention_backward(saved, wants_input, &mut found);
        found
    }

    fn mlp_backward(&self, saved: &mut Saved, found: &mut Found) {
        let m = self.run.tokens();
        let [gate, up, down] = [GateProj, UpProj, DownProj].map(|slot| &self.layers[slot]);
        let activated = self.run.buffer(down.inner);
        let back = down.back(m);
        input_gradient(&[&back], m);
        if saved.low_rank[DownProj].is_none() {
            saved.low_rank[DownProj] = down.low_rank(m);
        }
        down.train(m, found);
        drop((back, activated));

        let _normed = self.run.buffer(gate.inner);
        let (of_gate, of_up) = (gate.back(m), up.back(m));
        gate.train(m, found);
        up.train(m, found);
        input_gradient(&[&of_gate, &of_up], m);
        drop((of_gate, of_up));
        saved._gate_and_up = None;
        self.norm_backward(found);
    }

    fn attention_backward(&self, saved: Saved, wants_input: bool, found: &mut Found) {
        let (run, m) = (self.run, self.run.tokens());
        let Saved { _of_attention: of_attention, _middle, low_rank: _low_rank, .. } = saved;
        let o = &self.layers[OProj];
        let inputs = [QProj, KProj, VProj].map(|slot| &self.layers[slot]);
        let back = o.back(m);
        o.train(m, found);
        let wants_input = wants_input || run.trains_weights();
        if !wants_input && inputs.iter().all(|l| l.is_frozen()) {
            return;
        }
        let of_attended = run.buffer(o.inner);
        input_gradient(&[&back], m);
        drop(back);
        let _of_inputs = inputs.map(|layer| run.buffer(layer.out));
        self.attention().backward_on_paper::<T>(m, run.paper);
        drop((of_attention, of_attended));

        let _normed = run.buffer(inputs[0].inner);
        let backs = inputs.map(|layer| layer.back(m));
        inputs.iter().for_each(|layer| layer.train(m, found));
        if !wants_input {
            return;
        }
        input_gradient(&backs.each_ref(), m);
        self.norm_backward(found);
    }

    fn norm_backward(&self, found: &mut Found) {
        let (run, width) = (self.run, self.run.model.hidden_size);
        found.extend(rms_norm::backward_on_paper(run.paper, run.tokens(), width, run.trains_weights()));
    }
}

impl<T: Element> Layer<'_, T> {
    fn is_frozen(&self) -> bool {
        self.adapter.is_none() && !self.run.trains_weights()
    }

    fn buffer(&self, len: usize) -> Entry {
        self.run.paper.buffer::<T>(len)
    }

    fn low_rank(&self, m: usize) -> Option<Entry> {
        let adapter = self.adapter.as_ref()?;
        let _dropped = self.dropped(m);
        let low_rank = self.buffer(m * adapter.rank);
        self.run.paper.multiply::<T>((m, adapter.rank), &[Sides::plain(self.inner)]);
        Some(low_rank)
    }

    /// The input with dropout.
    fn dropped(&self, m: usize) -> Option<Entry> {
        self.adapter.as_ref().filter(|a| a.dropout).map(|_| self.buffer(m * self.inner))
    }

    fn forward<D: Element>(&self, m: usize, low_rank: &Option<Entry>) {
        let base = Sides::plain(self.inner);
        match (low_rank, &self.adapter) {
            (Some(_), Some(adapter)) => {
                self.run.paper.multiply::<D>((m, self.out), &[base, Sides::plain(adapter.rank)]);
            }
            _ => self.run.paper.multiply::<D>((m, self.out), &[base]),
        }
    }

    fn train(&self, m: usize, found: &mut Found) {
        if self.run.trains_weights() {
            let gradient = self.run.paper.gradient(self.out * self.inner);
            self.weight_gradient(m);
            found.push(gradient);
        }
        found.extend(self.adapter_gradients(m).into_iter().flatten());
    }

    fn weight_gradient(&self, m: usize) {
        self.run.paper.multiply::<T>((self.out, self.inner), &[Sides::transposed(m)]);
    }

    fn adapter_gradients(&self, m: usize) -> Option<[Entry; 2]> {
        let (paper, rank) = (self.run.paper, self.adapter.as_ref()?.rank);
        let _dropped = self.dropped(m);
        let a = paper.gradient(rank * self.inner);
        paper.multiply::<T>((rank, self.inner), &[Sides::transposed(m)]);
        let _transposed = paper.buffer::<f32>(rank * self.out);
        paper.multiply::<T>((rank, self.out), &[Sides::transposed(m)]);
        let b = paper.gradient(self.out * rank);
        Some([a, b])
    }

    fn back(&self, m: usize) -> Back<'_, T> {
        let low_rank = self.adapter.as_ref().map(|adapter| {
            let low_rank = self.buffer(m * adapter.rank);
            self.run.paper.multiply::<T>((m, adapter.rank), &[Sides::plain(self.out)]);
            low_rank
        });
        Back { layer: self, _low_rank: low_rank }
    }
}

/// See [`super::linear::input_gradient`].
fn input_gradient<T: Element>(backs: &[&Back<'_, T>], m: usize) {
    let Some(first) = backs.first() else { return };
    let (paper, inner) = (first.layer.run.paper, first.layer.inner);
    let adapters = |dropout: bool| {
        let adapters = backs.iter().filter_map(|back| back.layer.adapter.as_ref());
        adapters.filter(move |a| a.dropout == dropout).map(|a| Sides::plain(a.rank))
    };
    let terms: Vec<_> = backs.iter().map(|back| Sides::plain(back.layer.out)).chain(adapters(false)).collect();
    paper.multiply::<T>((m, inner), &terms);
    for term in adapters(true) {
        paper.multiply::<T>((m, inner), &[term]);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use half::bf16;

    use super::*;
    use crate::data::Span;
    use crate::engine::{RunOptions, forward_backward};
    use crate::kernels::ledger::Ledger;
    use crate::kernels::recorder;
    use crate::models::{Decoder, LoadOptions, RandomWeights, RopeScaling};
    use crate::optim::{Gradients, InBackward, OptimizerConfig};

    /// Sizes that fit neither tiles nor pages.
    fn model(tied: bool) -> DecoderConfig {
        DecoderConfig {
            model_type: "llama".to_string(),
            vocab_size: 5003,
            hidden_size: 144,
            intermediate_size: 400,
            num_hidden_layers: 3,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            head_dim: 24,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: RopeScaling::None,
            sliding_window: None,
            tie_word_embeddings: tied,
        }
    }

    /// Samples of these lengths in one row; the first third of each is not trained.
    fn batch(lens: &[usize]) -> Batch {
        let mut batch = Batch {
            rows: 1,
            len: lens.iter().sum(),
            input_ids: Vec::new(),
            targets: Vec::new(),
            positions: Vec::new(),
            spans: Vec::new(),
            origins: vec![String::new(); lens.len()],
        };
        for &len in lens {
            batch.spans.push(Span { row: 0, start: batch.input_ids.len(), len });
            for i in 0..len {
                batch.input_ids.push((i * 31 % 5003) as u32);
                batch.targets.push(if i < len / 3 { IGNORE } else { (i * 17 % 5003) as u32 });
                batch.positions.push(i as u32);
            }
        }
        batch
    }

    fn lora(modules: &[Slot], dropout: f64) -> LoraOptions {
        LoraOptions { modules: modules.to_vec(), rank: 5, alpha: 10.0, dropout, seed: 1 }
    }

    /// What two steps really take, and what they take on paper, on one thread: with more, which of them is where
    /// decides about the order of small buffers, and so about the gaps that large ones find.
    fn both(step: StepOnPaper<'_>, dtype: DType, batches: &[&Batch]) -> [Ledger; 2] {
        let options =
            LoadOptions { dtype, device: Device::Cpu, train_weights: step.lora.is_none(), lora: step.lora.cloned() };
        let model = Decoder::load(step.model.clone(), &RandomWeights { seed: 1, std: 0.05 }, &options).unwrap();
        let mut optimizer =
            OptimizerConfig::Sgd(crate::optim::SgdConfig { lr: 0.0, momentum: 0.0, weight_decay: 0.0 }).build();
        let real = recorder::record(1, || {
            for number in 1..=2 {
                let mut gradients = Gradients::default();
                for batch in batches {
                    let options = RunOptions {
                        scale: 1e-3,
                        activation_checkpointing: step.activation_checkpointing,
                        dropout: Some(7),
                    };
                    if step.optimizer_in_backward {
                        let optimizer = optimizer.as_mut();
                        let mut sink = InBackward { optimizer, lr: 0.0, step: number, squared_norm: 0.0 };
                        forward_backward(&model, batch, options, &mut sink).unwrap();
                    } else {
                        forward_backward(&model, batch, options, &mut gradients).unwrap();
                    }
                }
            }
        });
        let paper = Paper::new(1);
        for _ in 1..=2 {
            match dtype {
                DType::BF16 => step.train::<bf16>(batches, &paper),
                _ => step.train::<f32>(batches, &paper),
            }
        }
        [real, paper.ledger]
    }

    fn modes() -> Vec<(String, DecoderConfig, Option<LoraOptions>, bool, bool)> {
        let adapters =
            [Some(lora(&Slot::ALL, 0.0)), Some(lora(&[QProj, DownProj], 0.1)), Some(lora(&[LmHead], 0.0)), None];
        let mut modes = Vec::new();
        for tied in [true, false] {
            for (which, lora) in adapters.iter().enumerate() {
                for checkpointing in [true, false] {
                    for in_backward in [true, false] {
                        let name = format!("tied {tied}, adapters {which}, {checkpointing}, {in_backward}");
                        modes.push((name, model(tied), lora.clone(), checkpointing, in_backward));
                    }
                }
            }
        }
        modes
    }

    #[test]
    fn one_thread_touches_what_the_paper_says() {
        let (short, long) = (batch(&[70, 41, 130]), batch(&[300, 9, 77, 1]));
        for (name, model, lora, activation_checkpointing, optimizer_in_backward) in modes() {
            let lora = lora.as_ref();
            let step = StepOnPaper { model: &model, lora, activation_checkpointing, optimizer_in_backward };
            for dtype in [DType::F32, DType::BF16] {
                let [real, paper] = both(step, dtype, &[&long, &short]).map(|ledger| ledger.touched(1));
                assert_eq!(real, paper, "{name}, {dtype:?}");
            }
        }
    }
}
