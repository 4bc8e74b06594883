//! Every mistake is shown at its place, with what was expected.

mod common;

use common::{LEAST, bad, good, read, snapshot};

/// [`LEAST`] and more.
fn bad_after_least(yaml: &str, overrides: &[&str]) -> String {
    bad(&format!("{LEAST}{yaml}"), overrides)
}

#[test]
fn all_mistakes_at_once() {
    let yaml = "batch_size: 0
batchsize: two
epochs: 1.5
model:
  lora_rank: x
  lora_attn_modules: [q_proj, q]
optimizer:
  _component_: sgd
  betas: [1, 2]
  lr: -1
dtype: fp16
log_every_n_step: 3
";
    let overrides = ["seed=-1", "optimizer.moment=3", "~nope", "foo", "name=[1, 2", "epochs.x=1"];
    snapshot("all_at_once", &bad(yaml, &overrides));
}

#[test]
fn texts_that_are_no_config() {
    let cases = [
        "",
        "# nothing\n",
        "- 1\n- 2\n",
        "output_dir\n",
        "output_dir: [a\nname: b\n",
        "output_dir: a\n\tname: b\n",
        "output_dir: a\nname: b\noutput_dir: c\n",
        "output_dir: a\n---\nname: b\n",
    ];
    let reports: Vec<_> = cases.iter().map(|yaml| bad(yaml, &[])).collect();
    snapshot("no_config", &reports.join("\n\n"));
}

#[test]
fn missing_keys_are_named_where_their_mapping_begins() {
    let yaml = "output_dir: a\ndatasets:\n  - _component_: instruct\n    column_map: {}\n  - {}\n";
    snapshot("missing", &bad(yaml, &[]));
    snapshot("missing_everything", &read("{}", &[]).err().unwrap_or_default());
}

#[test]
fn components() {
    let yaml = "optimizer:\n  _component_: torch.optim.Adam\n  lr: 1\n";
    snapshot("unknown_component", &bad_after_least(yaml, &[]));
    let yaml = "output_dir: a\ndatasets:\n  path: a.json\n  columns: {}\n";
    snapshot("no_component", &bad(yaml, &[]));
    let yaml = "optimizer:\n  _component_: adamw\n  learning_rate: 1\n  momentum: 0.1\n";
    snapshot("keys_of_a_component", &bad_after_least(yaml, &[]));
    snapshot("component_of_other_type", &bad_after_least("optimizer: [adamw]\n", &[]));
}

#[test]
fn scalars_of_other_types() {
    let yaml = "seed: '1'\nepochs: 1e3\nname: 12\nenable_activation_checkpointing: yes\n\
                model: {lora_dropout: .nan, lora_attn_modules: q_proj}\n\
                optimizer: {betas: [0.9], lr: null, weight_decay: 1e999}\n";
    snapshot("scalars", &bad_after_least(yaml, &["batch_size=", "dtype=null"]));
}

#[test]
fn references() {
    let yaml = "name: ${nam}\nmodel: {lora_rank: '${name2}'}\nepochs: ${batch_size}\nbatch_size: ${epochs}\n\
                seed: ${output_dir}\n";
    snapshot("references", &bad_after_least(yaml, &["optimizer.lr=${optimizer.lrr}"]));
}

#[test]
fn a_key_under_two_names() {
    snapshot("two_names", &bad_after_least("epochs: 1\nnum_epochs: 2\n", &[]));
}

#[test]
fn an_alias_bomb() {
    let mut yaml = String::from("a: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]\n");
    for level in 1..12 {
        let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
        yaml += &format!("b{level}: &a{level} [{aliases}]\n");
    }
    assert!(bad(&yaml, &[]).starts_with("error[E0009]: aliases or references make this config too large"));
}

#[test]
fn many_mistakes_are_cut_short() {
    let yaml: String = (0..1000).map(|index| format!("x{index}: 1\n")).collect();
    let report = bad(&yaml, &[]);
    assert!(report.contains("... and 981 more"), "{report}");
    assert!(report.contains("error: 1001 mistakes in the config"));
}

#[test]
fn keys_without_effect_give_one_warning() {
    let yaml = format!("{LEAST}compile: false\nprofiler: {{a: 1}}\noptimizer: {{_component_: adamw, fused: True}}\n");
    let loaded = read(&yaml, &["compile=true"]).expect("a good config");
    snapshot("ignored", &loaded.warnings.to_string());
    assert_eq!(loaded.config, good(LEAST, &[]));
}

#[test]
fn no_colour_in_plain_text() {
    let report = bad("a: 1\n", &[]);
    assert!(!report.contains('\u{1b}'));
}

#[test]
fn a_slip_is_one_mistake() {
    let yaml = "output_dri: a\ndatasets: {_component_: instruct, path: a}\n";
    snapshot("slip", &bad(yaml, &[]));
    // A name that is right elsewhere is not taken for another one.
    assert!(bad_after_least("lr: 1\n", &[]).contains("there is a key `optimizer.lr`"));
    // Nor is the name that another tool has for it.
    assert!(bad_after_least("learning_rate: 1\n", &[]).contains("there is a key `optimizer.lr`"));
    assert!(bad_after_least("path: b.json\n", &[]).contains("there is a key `datasets.path`"));
}

#[test]
fn line_ends_of_other_systems() {
    let yaml = "output_dir: a\r\ndatasets:\r\n- _component_: instruct\r\n  path: a\r\nepochs: x\r\n";
    assert_eq!(
        bad(yaml, &[]),
        "error[E0022]: wrong type for `epochs`\n --> lora.yaml:5:9\n  |\n5 | epochs: x\n  \
         |         ^ expected a whole number from 0, found the text \"x\""
    );
}
