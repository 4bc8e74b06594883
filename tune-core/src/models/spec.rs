//! What a model computes, as data: sizes, and how its blocks differ from each other and from those of other families.

use std::fmt;

use super::slots::{Half, Slot};
use super::whole::{SCORE, module_of};
use crate::kernels::{Activation, AttentionShape, RotarySpec};

/// A decoder-only language model.
#[derive(Clone, PartialEq)]
pub struct ModelSpec {
    /// `model_type` of `config.json`, or of its part for text.
    pub model_type: String,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// The longest sequence that the model is made for.
    pub max_position_embeddings: usize,
    /// Whether the output layer is the embedding table.
    pub tie_word_embeddings: bool,
    /// How tokens become rows of the residual stream.
    pub embedding: EmbeddingSpec,
    /// How all its norms are computed.
    pub norm: NormSpec,
    /// The rotary tables that blocks name by number.
    pub rotary: Vec<RotarySpec>,
    /// Its blocks, bottom first.
    pub blocks: Vec<BlockSpec>,
    /// Logits `z` become `cap · tanh(z / cap)`.
    pub logit_softcap: Option<f64>,
    /// How many scores the output layer gives a sequence, at its last token; `None` where it gives logits of tokens.
    pub scores: Option<usize>,
}

/// Checkpoints hold a checksum of this text, by which a run knows its model again: a model without a head that scores is described as it
/// was before there were such heads.
impl fmt::Debug for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            model_type,
            vocab_size,
            hidden_size,
            max_position_embeddings,
            tie_word_embeddings,
            embedding,
            norm,
            rotary,
            blocks,
            logit_softcap,
            scores,
        } = self;
        let mut described = f.debug_struct("ModelSpec");
        described
            .field("model_type", model_type)
            .field("vocab_size", vocab_size)
            .field("hidden_size", hidden_size)
            .field("max_position_embeddings", max_position_embeddings)
            .field("tie_word_embeddings", tie_word_embeddings)
            .field("embedding", embedding)
            .field("norm", norm)
            .field("rotary", rotary)
            .field("blocks", blocks)
            .field("logit_softcap", logit_softcap);
        if let Some(scores) = scores {
            described.field("scores", scores);
        }
        described.finish()
    }
}

/// How tokens become rows of the residual stream.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EmbeddingSpec {
    /// Factor on the rows of the table.
    pub scale: Option<f64>,
    /// The token whose row gets no gradient from where it enters the model, as torch's `padding_idx` has it.
    pub padding: Option<u32>,
}

/// How a root-mean-square norm is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Added to the mean of squares.
    pub eps: f64,
    /// The factor is `1 + weight` (Gemma), and not the weight itself.
    pub from_one: bool,
}

/// One transformer block.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockSpec {
    /// Where its norms are.
    pub norms: Norms,
    /// Its first half.
    pub attention: AttentionSpec,
    /// Its second half.
    pub mlp: MlpSpec,
}

/// Where the norms of a block's halves are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norms {
    /// On each half's input.
    Before,
    /// On what each half adds to the residual stream.
    After,
    /// On both.
    Both,
}

/// The attention of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Heads, and how they look back.
    pub shape: AttentionShape,
    /// The rotary table, a number in [`ModelSpec::rotary`]; none in blocks without positions.
    pub rotary: Option<usize>,
    /// The norm of queries and of keys, before they are turned.
    pub head_norm: Option<HeadNorm>,
    /// Whether the layers that make queries, keys and values have a bias.
    pub input_bias: bool,
    /// Whether the layer of the attention's output has one.
    pub output_bias: bool,
    /// Whether queries, keys and values are made by one layer.
    pub fused: bool,
}

/// What is normed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadNorm {
    /// Each head by itself, all with the same weight.
    Each,
    /// All heads of a token.
    All,
}

/// The gated network of a block.
#[derive(Debug, Clone, PartialEq)]
pub enum MlpSpec {
    /// One for all tokens.
    Gated {
        /// Its width.
        inner: usize,
        /// The function of the gate.
        activation: Activation,
        /// Whether its layers have biases.
        bias: bool,
        /// Whether gate and input are one layer.
        fused: bool,
    },
    /// Several, of which each token takes some (a mixture of experts).
    Experts {
        /// How many there are.
        count: usize,
        /// How many a token takes.
        chosen: usize,
        /// The width of each.
        inner: usize,
        /// The function of their gates.
        activation: Activation,
        /// Whether the weights of the chosen ones are made to sum to one.
        renormalized: bool,
    },
}

/// A norm of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockNorm {
    /// Of a half's input.
    Before(Half),
    /// Of what a half adds to the residual stream.
    After(Half),
    /// Of queries.
    Queries,
    /// Of keys.
    Keys,
}

/// A linear layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Site {
    /// Which of the block's layers.
    pub slot: Slot,
    /// In which of its experts.
    pub expert: Option<u32>,
}

/// The shape of a linear layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSpec {
    /// Which one.
    pub site: Site,
    /// Rows of its weight.
    pub out: usize,
    /// How many of them each result has, where it makes several.
    pub parts: Vec<usize>,
    /// Columns of its weight.
    pub inner: usize,
    /// Whether it has a bias, `[out]`.
    pub bias: bool,
}

impl LayerSpec {
    /// The elements of weight and bias.
    pub fn elements(&self) -> u64 {
        let bias = if self.bias { self.out } else { 0 };
        self.out as u64 * self.inner as u64 + bias as u64
    }
}

impl ModelSpec {
    /// The linear layers of a block, in the order in which it uses them.
    pub fn layers(&self, block: usize) -> Vec<LayerSpec> {
        let BlockSpec { attention, mlp, .. } = &self.blocks[block];
        let (hidden, (queries, keys)) = (self.hidden_size, attention.widths());
        let mut layers = Vec::new();
        let mut put = |slot, expert, parts: Vec<usize>, inner: usize, bias| {
            let out = parts.iter().sum();
            layers.push(LayerSpec { site: Site { slot, expert }, out, parts, inner, bias });
        };
        if attention.fused {
            put(Slot::QkvProj, None, vec![queries, keys, keys], hidden, attention.input_bias);
        } else {
            put(Slot::QProj, None, vec![queries], hidden, attention.input_bias);
            put(Slot::KProj, None, vec![keys], hidden, attention.input_bias);
            put(Slot::VProj, None, vec![keys], hidden, attention.input_bias);
        }
        put(Slot::OProj, None, vec![hidden], queries, attention.output_bias);
        match *mlp {
            MlpSpec::Gated { inner, bias, fused, .. } => {
                if fused {
                    put(Slot::GateUpProj, None, vec![inner, inner], hidden, bias);
                } else {
                    put(Slot::GateProj, None, vec![inner], hidden, bias);
                    put(Slot::UpProj, None, vec![inner], hidden, bias);
                }
                put(Slot::DownProj, None, vec![hidden], inner, bias);
            }
            MlpSpec::Experts { count, inner, .. } => {
                put(Slot::Router, None, vec![count], hidden, false);
                for expert in (0..count as u32).map(Some) {
                    put(Slot::GateProj, expert, vec![inner], hidden, false);
                    put(Slot::UpProj, expert, vec![inner], hidden, false);
                    put(Slot::DownProj, expert, vec![hidden], inner, false);
                }
            }
        }
        layers
    }

    /// The same model with a head that scores sequences in place of the output layer for tokens, as transformers' models for
    /// sequence classification have it: a matrix `[scores, hidden]` of its own, without bias and without softcap.
    #[must_use]
    pub fn with_scores(self, scores: usize) -> Self {
        Self { scores: Some(scores), tie_word_embeddings: false, logit_softcap: None, ..self }
    }

    /// What the output layer gives a position: logits of tokens, or scores.
    pub fn outputs(&self) -> usize {
        self.scores.unwrap_or(self.vocab_size)
    }

    /// The output layer.
    pub fn output(&self) -> LayerSpec {
        let (site, out) = (Site { slot: Slot::LmHead, expert: None }, self.outputs());
        LayerSpec { site, out, parts: vec![out], inner: self.hidden_size, bias: false }
    }

    /// The Hugging Face name of the output layer: `lm_head`, or `score` where it scores sequences.
    pub fn output_name(&self) -> String {
        if self.scores.is_some() { module_of(SCORE).to_owned() } else { Slot::LmHead.path() }
    }

    /// The norms of a block and the lengths of their weights.
    pub fn norms(&self, block: usize) -> Vec<(BlockNorm, usize)> {
        let BlockSpec { norms, attention, .. } = &self.blocks[block];
        let mut all = Vec::new();
        for half in Half::ALL {
            all.extend(norms.before().then_some((BlockNorm::Before(half), self.hidden_size)));
            all.extend(norms.after().then_some((BlockNorm::After(half), self.hidden_size)));
        }
        if let Some(norm) = attention.head_norm {
            let (queries, keys) = match norm {
                HeadNorm::Each => (attention.shape.head_dim, attention.shape.head_dim),
                HeadNorm::All => attention.widths(),
            };
            all.extend([(BlockNorm::Queries, queries), (BlockNorm::Keys, keys)]);
        }
        all
    }

    /// All linear layers of the model with their Hugging Face names, the output layer last.
    pub fn named_layers(&self) -> Vec<(String, LayerSpec)> {
        let named = |index: usize| {
            let named = move |layer: LayerSpec| (format!("model.layers.{index}.{}", layer.site.path()), layer);
            self.layers(index).into_iter().map(named)
        };
        let output = (self.output_name(), self.output());
        (0..self.blocks.len()).flat_map(named).chain([output]).collect()
    }

    /// All weights of the model by their Hugging Face names, with their shapes; a tied output layer is left out.
    pub fn weights(&self) -> Vec<(String, Vec<usize>)> {
        let mut weights = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, self.hidden_size])];
        for (index, block) in self.blocks.iter().enumerate() {
            let named = |(norm, width): (BlockNorm, usize)| {
                (format!("model.layers.{index}.{}.weight", norm.path(block.norms)), vec![width])
            };
            weights.extend(self.norms(index).into_iter().map(named));
        }
        weights.push(("model.norm.weight".to_owned(), vec![self.hidden_size]));
        for (name, layer) in self.named_layers() {
            if layer.bias {
                weights.push((format!("{name}.bias"), vec![layer.out]));
            }
            if layer.site.slot != Slot::LmHead || !self.tie_word_embeddings {
                weights.push((format!("{name}.weight"), vec![layer.out, layer.inner]));
            }
        }
        weights
    }

    /// All layers of the model that are of this kind.
    pub fn layers_of(&self, slot: Slot) -> Vec<LayerSpec> {
        match slot {
            Slot::LmHead => vec![self.output()],
            _ => (0..self.blocks.len()).flat_map(|i| self.layers(i)).filter(|layer| layer.site.slot == slot).collect(),
        }
    }

    /// The elements of keys and values that are kept for each token of a sequence.
    pub fn kept_per_token(&self) -> usize {
        self.blocks.iter().map(|block| 2 * block.attention.widths().1).sum()
    }

    /// The elements of all weights; a tied output layer counts once.
    pub fn parameter_count(&self) -> u64 {
        let of_block = |block| {
            let norms: usize = self.norms(block).iter().map(|(_, width)| width).sum();
            self.layers(block).iter().map(LayerSpec::elements).sum::<u64>() + norms as u64
        };
        let blocks: u64 = (0..self.blocks.len()).map(of_block).sum();
        let output = if self.tie_word_embeddings { 0 } else { self.output().elements() };
        let table = self.vocab_size as u64 * self.hidden_size as u64;
        blocks + table + output + self.hidden_size as u64
    }
}

impl AttentionSpec {
    /// Elements of a token: of its queries, and of its keys and of its values.
    pub fn widths(&self) -> (usize, usize) {
        (self.shape.heads * self.shape.head_dim, self.shape.kv_heads * self.shape.head_dim)
    }
}

impl MlpSpec {
    /// Its width, or that of one of its experts.
    pub fn inner(&self) -> usize {
        match *self {
            Self::Gated { inner, .. } | Self::Experts { inner, .. } => inner,
        }
    }
}

impl Norms {
    /// Whether a half's input is normed.
    pub fn before(self) -> bool {
        self != Self::After
    }

    /// Whether what a half adds is normed.
    pub fn after(self) -> bool {
        self != Self::Before
    }
}

impl BlockNorm {
    /// Its Hugging Face name, without the block's; `norms` are all that the block has.
    pub fn path(self, norms: Norms) -> &'static str {
        match (self, norms) {
            (Self::Before(Half::Attention), _) => "input_layernorm",
            (Self::Before(Half::Mlp), Norms::Both) => "pre_feedforward_layernorm",
            (Self::Before(Half::Mlp), _) | (Self::After(Half::Attention), _) => "post_attention_layernorm",
            (Self::After(Half::Mlp), _) => "post_feedforward_layernorm",
            (Self::Queries, _) => "self_attn.q_norm",
            (Self::Keys, _) => "self_attn.k_norm",
        }
    }
}

impl Site {
    /// Its Hugging Face name, without the block's.
    pub fn path(self) -> String {
        match self.expert {
            None => self.slot.path(),
            Some(expert) => format!("mlp.experts.{expert}.{}", self.slot.name()),
        }
    }
}

impl From<Slot> for Site {
    fn from(slot: Slot) -> Self {
        Self { slot, expert: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As earlier versions describe it, whose runs go on with this one: where this number changes, they do not.
    #[test]
    fn a_model_without_a_head_that_scores_is_described_as_it_was() {
        let config = include_str!("../../../recipes/tiny/model/config.json");
        let model = ModelSpec::from_json(&serde_json::from_str(config).unwrap()).unwrap();
        assert_eq!(crc32c::crc32c(format!("{model:?}").as_bytes()), 205_209_128);
        let scoring = format!("{:?}", model.with_scores(2));
        assert!(scoring.ends_with(", scores: 2 }"), "{scoring}");
    }
}
