//! torchtune's configs that only read a model: where it is, and what it is asked.

use std::path::PathBuf;

use tune_config::{Config, Input, load};

/// A recipe that asks a model.
#[derive(Debug, PartialEq, Config)]
#[config(crate = tune_config, ignored(model = "a folder says what it is", tokenizer = "it is in the folder"))]
struct Ask {
    /// The model.
    checkpoint_dir: PathBuf,
    /// What is asked.
    prompt: Option<String>,
    /// What stands before it.
    system_prompt: Option<String>,
    /// Results go here.
    output_dir: Option<PathBuf>,
}

const THEIRS: &str = "\
model: {_component_: torchtune.models.llama2.llama2_7b}
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: theirs
  checkpoint_files: [a.safetensors]
  adapter_checkpoint: null
  output_dir: there
";

fn ask(prompt: &str, overrides: &[&str]) -> Result<Ask, String> {
    let yaml = format!("{THEIRS}{prompt}");
    let loaded = load::<Ask>(Input::yaml("theirs.yaml", &yaml).overrides(overrides.iter().copied()));
    loaded.map(|loaded| loaded.config).map_err(|report| report.to_string())
}

/// Empty keys say nothing, what is written in our words holds, and who writes nothing has no folder for it.
#[test]
fn a_folder_takes_the_place_of_a_checkpointer() {
    let config = ask("prompt: {system: null, user: Why?}\n", &[]);
    let expected =
        Ask { checkpoint_dir: "theirs".into(), prompt: Some("Why?".into()), system_prompt: None, output_dir: None };
    assert_eq!(config, Ok(expected));
    let config = ask("prompt: {user: Why?}\n", &["checkpoint_dir=ours"]);
    assert_eq!(config.map(|config| config.checkpoint_dir), Ok("ours".into()));
}

/// Newer configs have pieces, of which one is a text.
#[test]
fn a_prompt_is_the_text_of_its_pieces() {
    let config = ask("prompt:\n  system: {text: Be brief.}\n  user: {image: null, text: Why?}\n", &[]);
    let said = config.map(|config| (config.system_prompt, config.prompt));
    assert_eq!(said, Ok((Some("Be brief.".into()), Some("Why?".into()))));
    let refused = ask("prompt: {user: {image: a.png, text: Why?}}\n", &[]).map(drop);
    assert!(refused.as_ref().is_err_and(|said| said.contains("a prompt is text here")), "{refused:?}");
}

/// What would be read in the place of what is named is refused.
#[test]
fn files_that_are_not_read_are_refused() {
    for (overridden, what) in [
        ("checkpointer.checkpoint_files=a-8da4w.pt", "torchtune's own files (.pt)"),
        ("checkpointer.checkpoint_files=[a.safetensors, b.pt]", "torchtune's own files (.pt)"),
        ("checkpointer.adapter_checkpoint=adapter.pt", "an adapter is read from a folder in PEFT's form"),
        ("model._component_=torchtune.models.llama3_2_vision.llama3_2_vision_11b", "only models of text are"),
    ] {
        let said = ask("prompt: {user: Why?}\n", &[overridden]).map(drop);
        assert!(said.as_ref().is_err_and(|said| said.contains(what)), "{overridden}: {said:?}");
    }
}
