//! Whole files that no recipe here can run: other kinds of training, other
//! models.

use tune_yaml::Node;

use super::component;
use super::rules::Refused;

/// A top-level key that tells what a file is for.
struct Mark {
    key: &'static str,
    /// How the component that it names begins.
    component: &'static str,
    /// What the file is for.
    purpose: &'static str,
    /// What to do.
    instead: &'static str,
}

const fn mark(key: &'static str, component: &'static str, purpose: &'static str, instead: &'static str) -> Mark {
    Mark { key, component, purpose, instead }
}

const NO_RECIPE: &str = "there is no recipe for it here; `lora` and `full` fine-tune";

const MARKS: &[Mark] = &[
    mark("teacher_model", "", "knowledge distillation", NO_RECIPE),
    mark("policy_model", "", "PPO", NO_RECIPE),
    mark("ref_checkpointer", "", "DPO", NO_RECIPE),
    mark("loss", "torchtune.rlhf.", "DPO", NO_RECIPE),
    mark(
        "tasks",
        "",
        "evaluation with EleutherAI's harness",
        "that harness reads the checkpoints that the recipes write",
    ),
    mark("prompt", "", "generation", "use the recipe `generate`, with checkpoint_dir=FOLDER and prompt=TEXT"),
    mark("quantizer", "", "quantization", NO_RECIPE),
];

const fn family(prefix: &'static str, what: &'static str) -> Refused {
    const INSTEAD: &str = "use a Llama or Mistral model";
    Refused { prefix, what, instead: INSTEAD }
}

/// Model families that the engine does not have. A family that it learns goes
/// from here to `tune_core::models::Architecture`.
const FAMILIES: &[Refused] = &[
    family("torchtune.models.llama3_2_vision.", "Llama 3.2 Vision models"),
    family("torchtune.models.llama4.", "Llama 4 models"),
    family("torchtune.models.clip.", "CLIP models"),
    family("torchtune.models.t5.", "T5 models"),
    family("torchtune.models.flux.", "Flux models"),
    family("torchtune.models.gemma.", "Gemma models"),
    family("torchtune.models.gemma2.", "Gemma 2 models"),
    family("torchtune.models.phi3.", "Phi-3 models"),
    family("torchtune.models.phi4.", "Phi-4 models"),
    family("torchtune.models.qwen2.", "Qwen2 models"),
    family("torchtune.models.qwen2_5.", "Qwen2.5 models"),
    family("torchtune.models.qwen3.", "Qwen3 models"),
];

/// Why a file cannot be used, and what to do.
pub(super) struct Refusal<'n> {
    pub(super) at: &'n Node,
    pub(super) message: String,
    pub(super) label: String,
    pub(super) help: String,
}

/// What the file is for, if it is not for fine-tuning; `knows` says which keys the recipe has.
pub(super) fn purpose(root: &Node, knows: impl Fn(&str) -> bool) -> Option<Refusal<'_>> {
    MARKS.iter().find_map(|mark| {
        let entry = root.get(mark.key).filter(|entry| !entry.value.is_null())?;
        let named = match mark.component {
            // A key that the recipe has says nothing.
            "" if knows(mark.key) => None,
            "" => Some(&entry.value),
            prefix => {
                component(root, mark.key).filter(|node| node.as_str().is_some_and(|name| name.starts_with(prefix)))
            }
        }?;
        Some(Refusal {
            at: named,
            message: format!("this config of torchtune's is for {}", mark.purpose),
            label: format!("`{}` says so", mark.key),
            help: mark.instead.to_owned(),
        })
    })
}

/// The recipe of a model builder such as `llama3_2.lora_llama3_2_1b`.
pub(super) fn recipe_of(builder: &str) -> &'static str {
    let name = builder.rsplit('.').next().unwrap_or_default();
    if name.starts_with("lora_") || name.starts_with("qlora_") { "lora" } else { "full" }
}

/// What is wrong with the model: of a family that is not here, or for another recipe than one that
/// trains adapters (`adapters`) or does not.
pub(super) fn model(root: &Node, adapters: bool) -> Option<Refusal<'_>> {
    let node = component(root, "model")?;
    let name = node.as_str()?;
    let builder = name.strip_prefix("torchtune.models.")?;
    if let Some(family) = FAMILIES.iter().find(|family| name.starts_with(family.prefix)) {
        return Some(Refusal {
            at: node,
            message: format!("{} are not supported yet", family.what),
            label: "the model is chosen here".to_owned(),
            help: family.instead.to_owned(),
        });
    }
    let (recipe, trains) = match (recipe_of(builder), adapters) {
        ("lora", false) => ("lora", "LoRA adapters"),
        ("full", true) => ("full", "all weights"),
        _ => return None,
    };
    Some(Refusal {
        at: node,
        message: format!("this config of torchtune's is for the recipe `{recipe}`"),
        label: format!("it trains {trains}"),
        help: format!("start `{recipe}` with it"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_tells_its_recipe() {
        assert_eq!(recipe_of("llama3_2.lora_llama3_2_1b"), "lora");
        assert_eq!(recipe_of("llama2.qlora_llama2_7b"), "lora");
        assert_eq!(recipe_of("llama2.llama2_7b"), "full");
    }
}
