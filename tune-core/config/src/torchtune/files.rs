//! Whole files that no recipe here can run: other kinds of training, other
//! models.

use tune_yaml::{Node, SourceId, Span};

use super::component;
use super::generation::{FOLDER, PROMPT};
use super::rules::Refused;
use crate::codes;
use crate::report::Diagnostic;
use crate::schema::{Key, Schema, Struct};

/// How the losses of pairs of answers are called.
pub(super) const PREFERENCE_LOSSES: &str = "torchtune.rlhf.";

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

const START_DPO: &str = "start `dpo` with it";
const START_DISTILL: &str = "start `distill` with it";

/// The key of knowledge distillation.
pub(super) const TEACHER: &str = "teacher_model";

/// The key of proximal policy optimization.
pub(super) const POLICY: &str = "policy_model";

/// The key of evaluation.
pub(super) const TASKS: &str = "tasks";

/// The key of quantization, and of training for it.
pub(super) const QUANTIZER: &str = "quantizer";

/// What is in every file that trains.
const OPTIMIZER: &str = "optimizer";

const MARKS: &[Mark] = &[
    mark(TEACHER, "", "knowledge distillation", START_DISTILL),
    mark(POLICY, "", "PPO", "start `ppo` with it"),
    mark("ref_checkpointer", "", "DPO", START_DPO),
    mark("loss", PREFERENCE_LOSSES, "DPO", START_DPO),
    mark(TASKS, "", "evaluation with EleutherAI's harness", "start `eleuther_eval` with it"),
    mark(PROMPT, "", "generation", "start `generate` with it"),
];

const fn no_text(prefix: &'static str, what: &'static str) -> Refused {
    Refused { prefix, what, instead: "use a model of text" }
}

/// Models of other things than text.
const FAMILIES: &[Refused] = &[
    no_text("torchtune.models.llama3_2_vision.", "Llama 3.2 Vision models"),
    no_text("torchtune.models.llama4.", "Llama 4 models"),
    no_text("torchtune.models.clip.", "CLIP models"),
    no_text("torchtune.models.t5.", "T5 models"),
    no_text("torchtune.models.flux.", "Flux models"),
];

/// Why no recipe can run the file, or which other one than that of `schema`.
pub(super) fn refusal(schema: &Schema, root: &Node) -> Option<Diagnostic> {
    let Schema::Struct(fields) = schema else { return None };
    // Where the rank may be null, either is trained.
    let trains_adapters = |key: &Key| match &key.schema {
        Schema::Struct(model) => Some(model.find("lora_rank").map(|rank| !matches!(rank.schema, Schema::Optional(_)))),
        _ => None,
    };
    let adapters = fields.find("model").and_then(trains_adapters);
    purpose(root, fields).or_else(|| quantizer(root, fields)).or_else(|| model(root, adapters?))
}

fn refused(at: &Node, message: String, label: String, help: impl Into<String>) -> Diagnostic {
    Diagnostic::error(codes::NOT_HERE, message).at(at.span, label).help(help)
}

/// What the file is for, if it is not for fine-tuning.
fn purpose(root: &Node, fields: &Struct) -> Option<Diagnostic> {
    MARKS.iter().find_map(|mark| {
        let entry = root.get(mark.key).filter(|entry| !entry.value.is_null())?;
        let named = match mark.component {
            // A key that the recipe has says nothing.
            _ if fields.find(mark.key).is_some() || fields.find_ignored(mark.key).is_some() => None,
            "" => Some(&entry.value),
            prefix => {
                component(root, mark.key).filter(|node| node.as_str().is_some_and(|name| name.starts_with(prefix)))
            }
        }?;
        let message = format!("this config of torchtune's is for {}", mark.purpose);
        Some(refused(named, message, format!("`{}` says so", mark.key), mark.instead))
    })
}

/// The recipe of a file that names a quantizer.
pub(super) fn recipe_of_quantizer(root: &Node) -> Option<&'static str> {
    root.get(QUANTIZER).filter(|entry| !entry.value.is_null())?;
    Some(if root.get(OPTIMIZER).is_some() { "qat" } else { "quantize" })
}

/// What a file with a quantizer is for, if it is for another recipe: training, or quantization alone. What only reads a model was to quantize
/// it meanwhile, see `keys`.
fn quantizer(root: &Node, fields: &Struct) -> Option<Diagnostic> {
    let (recipe, entry) = (recipe_of_quantizer(root)?, root.get(QUANTIZER)?);
    let reads_only = fields.find(FOLDER).is_some();
    let purpose = match recipe {
        "quantize" if !reads_only => "quantization",
        "qat" if reads_only == fields.find(QUANTIZER).is_some() => "quantization-aware training",
        _ => return None,
    };
    let message = format!("this config of torchtune's is for {purpose}");
    Some(refused(&entry.value, message, "`quantizer` says so".to_owned(), format!("start `{recipe}` with it")))
}

/// The recipe of a model builder such as `llama3_2.lora_llama3_2_1b`.
pub(super) fn recipe_of(builder: &str) -> &'static str {
    let name = builder.rsplit('.').next().unwrap_or_default();
    if name.starts_with("lora_") || name.starts_with("qlora_") { "lora" } else { "full" }
}

/// Where a file names a builder of QLoRA.
pub(super) fn qlora(text: &str, file: SourceId) -> Option<Span> {
    let root = tune_yaml::parse(text, file).ok()?;
    let named = component(&root, "model")?;
    named.as_str().is_some_and(|name| name.contains(".qlora_")).then_some(named.span)
}

/// What is wrong with the model: of a family that is not here, or for another recipe than one that
/// trains adapters (`Some(true)`), all weights (`None`), or either, as the rank says (`Some(false)`).
fn model(root: &Node, adapters: Option<bool>) -> Option<Diagnostic> {
    if let Some(refused) = family(root) {
        return Some(refused);
    }
    let node = component(root, "model")?;
    let builder = node.as_str()?.strip_prefix("torchtune.models.")?;
    let (recipe, trains) = match (recipe_of(builder), adapters) {
        ("lora", None) => ("lora", "LoRA adapters"),
        ("full", Some(true)) => ("full", "all weights"),
        ("lora", Some(false)) => return without_rank(root, node),
        _ => return None,
    };
    let message = format!("this config of torchtune's is for the recipe `{recipe}`");
    Some(refused(node, message, format!("it trains {trains}"), format!("start `{recipe}` with it")))
}

/// Why the model is not here, if it is of a family of another kind.
pub(super) fn family(root: &Node) -> Option<Diagnostic> {
    let node = component(root, "model")?;
    let name = node.as_str()?;
    let family = FAMILIES.iter().find(|family| name.starts_with(family.prefix))?;
    let message = format!("{} are not supported, only models of text are", family.what);
    Some(refused(node, message, "the model is chosen here".to_owned(), family.instead))
}

/// Adapters without a rank, in a file for a recipe in which that means all weights; torchtune takes 8.
fn without_rank(root: &Node, node: &Node) -> Option<Diagnostic> {
    let has_rank = root.get("model")?.value.get("lora_rank").is_some_and(|rank| !rank.value.is_null());
    let message = "`model.lora_rank` is missing: without it, all weights are trained here".to_owned();
    (!has_rank).then(|| refused(node, message, "it trains LoRA adapters".to_owned(), "set model.lora_rank=8"))
}

/// torchtune's command for the file stands in its comments; where it starts several processes, a step has more samples.
pub(super) fn processes(root: &Node, text: &str, file: SourceId) -> Option<Diagnostic> {
    const OPTION: &str = "--nproc_per_node ";
    let (start, digits) = text.match_indices(OPTION).find_map(|(at, _)| {
        let line = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let start = at + OPTION.len();
        let digits = text[start..].split(|c: char| !c.is_ascii_digit()).next()?;
        text[line..].starts_with('#').then_some((start, digits))
    })?;
    let count = digits.parse::<u64>().ok().filter(|count| *count > 1)?;
    let written = |key: &str| root.get(key).and_then(|entry| entry.value.as_str());
    // An optimizer in the backward pass leaves no room for accumulation.
    let in_backward = written("optimizer_in_bwd").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let key = if in_backward { "batch_size" } else { "gradient_accumulation_steps" };
    let larger = written(key).map_or(Some(1), |text| text.parse::<u64>().ok())?.saturating_mul(count);
    Some(
        Diagnostic::warning(format!("torchtune's command starts {count} processes, and here one trains"))
            .at(Span::new(file, start, start + digits.len()), format!("each step has 1/{count} of the samples"))
            .help(format!("for steps of the same size set {key}={larger}")),
    )
}

/// A step of proximal policy optimization: there accumulation divides an update's answers, and here it multiplies the prompts of a step.
pub(super) fn accumulation(root: &Node) -> Option<Diagnostic> {
    root.get(POLICY)?;
    let steps = root.get("gradient_accumulation_steps")?;
    let number =
        |key: &str| root.get(key).and_then(|entry| entry.value.as_str()).and_then(|text| text.parse::<u64>().ok());
    let accumulated = number("gradient_accumulation_steps").filter(|steps| *steps > 1)?;
    let (prompts, update) = (number("batch_size")?, number("ppo_batch_size")?);
    let (rows, times) = ((update / accumulated).max(1), (prompts * accumulated / update.max(1)).max(1));
    Some(
        Diagnostic::warning("torchtune divides `ppo_batch_size` by `gradient_accumulation_steps`, and here `batch_size` is multiplied by it")
            .at(steps.key_span, format!("a step has {} prompts", prompts.saturating_mul(accumulated)))
            .help(format!("for torchtune's steps set batch_size={rows} gradient_accumulation_steps={times}")),
    )
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
