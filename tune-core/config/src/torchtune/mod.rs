//! torchtune's configs, taken as they are.
//!
//! Where a name is all that differs, the schema has torchtune's as an alias, and
//! keys without a meaning here are in the schema as ignored. What takes more is
//! in tables: components that stand for one of ours with other keys or defaults
//! (`components`), keys (`keys`), and whole files for which there is no recipe
//! (`files`). [`translate`] applies them to what was read, before it is checked;
//! values keep the places where they were written, so that messages point there.
//! What generates, is evaluated or quantized has its parts in other places (`generation`).

mod components;
mod files;
mod generation;
mod keys;
mod rules;
mod translate;

use tune_yaml::{Node, SourceId, Value};

use crate::schema::COMPONENT;

pub(crate) use translate::{Change, Dropped, Translation, What, translate};

/// The sections in which torchtune names a component and this project does not:
/// a file with one of them is torchtune's.
const SECTIONS: [&str; 3] = ["model", "tokenizer", "checkpointer"];

/// The component that `section` of a config names.
fn component<'n>(root: &'n Node, section: &str) -> Option<&'n Node> {
    Some(&root.get(section)?.value.get(COMPONENT)?.value)
}

/// Whether the config in `file` is torchtune's and not one of ours, whatever overrides say.
fn is_torchtune(root: &Node, file: SourceId) -> bool {
    let names = |section| component(root, section).filter(|node| node.span.source == file).and_then(Node::as_str);
    SECTIONS.iter().any(|section| names(section).is_some_and(|name| name.starts_with("torchtune.")))
}

/// The recipe that a config of torchtune's is for: `generate` where there is a prompt, `eleuther_eval` where there are tasks, `distill` where
/// there is a teacher, `ppo` where there is a policy, `dpo` by its loss, `qat` or `quantize` where there is a quantizer, with an optimizer or
/// without, `lora` or `full` by its model.
/// `None` for any other text.
///
/// ```
/// let yaml = "model:\n  _component_: torchtune.models.llama3_2.lora_llama3_2_1b\n";
/// assert_eq!(tune_config::recipe_of_torchtune(yaml), Some("lora"));
/// ```
pub fn recipe_of_torchtune(yaml: &str) -> Option<&'static str> {
    let root = tune_yaml::parse(yaml, SourceId(0)).ok().filter(|root| matches!(root.value, Value::Map(_)))?;
    if component(&root, files::POLICY).and_then(Node::as_str).is_some_and(|name| name.starts_with("torchtune.")) {
        return Some("ppo");
    }
    let model = component(&root, "model")?.as_str()?.strip_prefix("torchtune.models.")?;
    let loss = component(&root, "loss").and_then(Node::as_str);
    Some(match loss.is_some_and(|loss| loss.starts_with(files::PREFERENCE_LOSSES)) {
        _ if root.get(generation::PROMPT).is_some() => "generate",
        _ if root.get(files::TASKS).is_some() => "eleuther_eval",
        _ if root.get(files::TEACHER).is_some() => "distill",
        true => "dpo",
        false => files::recipe_of_quantizer(&root).unwrap_or_else(|| files::recipe_of(model)),
    })
}
