//! Where each parameter of a model is in a GGUF file: one list for reading and for writing.

use crate::models::{BlockNorm, Half, LayerSpec, ModelSpec, Site, Slot};

/// A tensor of a file.
#[derive(Debug)]
pub(super) struct Placed {
    /// llama.cpp's name.
    pub(super) gguf: String,
    /// Row-major, as it is in the file.
    pub(super) shape: Vec<usize>,
    /// The parameters that are in it.
    pub(super) names: Names,
    pub(super) change: Change,
}

/// Hugging Face's names of what a tensor holds.
#[derive(Debug)]
pub(super) enum Names {
    One(String),
    /// One weight for each expert, one behind the other.
    Experts(Vec<String>),
}

/// What is done to a tensor on its way into a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Change {
    None,
    /// The two rotary halves of each of this number of heads are interleaved, row by row.
    Interleaved(usize),
    /// One is added to each element, so that norms need not count from one.
    PlusOne,
}

/// All tensors of a model; `interleaved` says whether its family has the rows of queries and keys interleaved.
pub(super) fn layout(model: &ModelSpec, interleaved: bool) -> Vec<Placed> {
    let head_dim = model.blocks.first().map_or(0, |block| block.attention.shape.head_dim);
    let of_norm = if model.norm.from_one { Change::PlusOne } else { Change::None };
    let of_layer = |layer: &LayerSpec| match layer.site.slot {
        Slot::QProj | Slot::KProj if interleaved => Change::Interleaved(layer.out / head_dim),
        _ => Change::None,
    };
    let mut placed = Vec::new();
    let mut put = |gguf: String, shape: &[usize], name: String, change| {
        placed.push(Placed { gguf, shape: shape.to_vec(), names: Names::One(name), change });
    };
    let table = [model.vocab_size, model.hidden_size];
    put("token_embd.weight".into(), &table, "model.embed_tokens.weight".into(), Change::None);
    put("output_norm.weight".into(), &[model.hidden_size], "model.norm.weight".into(), of_norm);
    if !model.tie_word_embeddings {
        put("output.weight".into(), &table, "lm_head.weight".into(), Change::None);
    }
    for (index, block) in model.blocks.iter().enumerate() {
        let (gguf, hf) = (format!("blk.{index}"), format!("model.layers.{index}"));
        for (norm, width) in model.norms(index) {
            let name = format!("{hf}.{}.weight", norm.path(block.norms));
            placed.push(Placed {
                gguf: format!("{gguf}.{}.weight", norm_name(norm)),
                shape: vec![width],
                names: Names::One(name),
                change: of_norm,
            });
        }
        let layers = model.layers(index);
        let experts = layers.iter().filter_map(|layer| layer.site.expert).max().map_or(0, |last| last + 1);
        for layer in &layers {
            let own = format!("{gguf}.{}", layer_name(layer.site));
            let path = |site: Site| format!("{hf}.{}", site.path());
            let names = match layer.site.expert {
                // All experts are one tensor.
                Some(0) => Names::Experts(
                    (0..experts)
                        .map(|expert| format!("{}.weight", path(Site { expert: Some(expert), ..layer.site })))
                        .collect(),
                ),
                Some(_) => continue,
                None => Names::One(format!("{}.weight", path(layer.site))),
            };
            let mut shape = vec![layer.out, layer.inner];
            if let Names::Experts(names) = &names {
                shape.insert(0, names.len());
            }
            placed.push(Placed { gguf: format!("{own}.weight"), shape, names, change: of_layer(layer) });
            if layer.bias {
                placed.push(Placed {
                    gguf: format!("{own}.bias"),
                    shape: vec![layer.out],
                    names: Names::One(format!("{}.bias", path(layer.site))),
                    change: of_layer(layer),
                });
            }
        }
    }
    placed
}

/// What llama.cpp calls a layer, after `blk.N.`.
pub(crate) fn layer_name(site: Site) -> &'static str {
    match (site.slot, site.expert.is_some()) {
        (Slot::QProj, _) => "attn_q",
        (Slot::KProj, _) => "attn_k",
        (Slot::VProj, _) => "attn_v",
        (Slot::QkvProj, _) => "attn_qkv",
        (Slot::OProj, _) => "attn_output",
        (Slot::GateProj, false) => "ffn_gate",
        // Gate and input in one layer have the name of the input.
        (Slot::UpProj, false) | (Slot::GateUpProj, _) => "ffn_up",
        (Slot::DownProj, false) => "ffn_down",
        (Slot::Router, _) => "ffn_gate_inp",
        (Slot::GateProj, true) => "ffn_gate_exps",
        (Slot::UpProj, true) => "ffn_up_exps",
        (Slot::DownProj, true) => "ffn_down_exps",
        (Slot::LmHead, _) => "output",
    }
}

/// What llama.cpp calls a norm, after `blk.N.`.
fn norm_name(norm: BlockNorm) -> &'static str {
    match norm {
        BlockNorm::Before(Half::Attention) => "attn_norm",
        BlockNorm::Before(Half::Mlp) => "ffn_norm",
        BlockNorm::After(Half::Attention) => "post_attention_norm",
        BlockNorm::After(Half::Mlp) => "post_ffw_norm",
        BlockNorm::Queries => "attn_q_norm",
        BlockNorm::Keys => "attn_k_norm",
    }
}
