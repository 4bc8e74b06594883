//! Configs of other tools: what is made of them, and what is said of them.

mod common;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use common::snapshot;
use tune_config::{convert_other, lint_other, other_tool, other_tools, other_tools_in_markdown};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The example files of a tool, by name.
fn fixtures(tool: &str) -> Vec<(String, String)> {
    let folder = root().join("tests/fixtures/other_tools").join(tool);
    let entries = std::fs::read_dir(&folder).expect("the fixtures are there");
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    assert!(names.len() > 2, "{}", folder.display());
    let read = |name: String| {
        let text = std::fs::read_to_string(folder.join(&name)).expect("a fixture");
        (name, text)
    };
    names.into_iter().map(read).collect()
}

/// Everything that is made of a tool's examples and said of them, in two snapshots.
fn told(folder: &str, tool: &str) {
    let (mut converted, mut linted) = (String::new(), String::new());
    for (name, text) in fixtures(folder) {
        assert_eq!(other_tool(&text), Some(tool), "{name}");
        converted += &match convert_other(&name, &text) {
            Ok(made) => format!("==== {name} for {}\n{}---- said\n{}\n", made.recipe, made.yaml, made.warnings),
            Err(report) => format!("==== {name} refused\n{report}\n"),
        };
        let report = match lint_other(&name, &text) {
            Ok(report) => report,
            Err(report) => panic!("{report}"),
        };
        linted += &format!("==== {name}\n{report}\n");
    }
    snapshot(&format!("{folder}_converted"), &converted);
    snapshot(&format!("{folder}_linted"), &linted);
}

#[test]
fn axolotl() {
    told("axolotl", "Axolotl");
}

#[test]
fn llama_factory() {
    told("llama_factory", "LLaMA-Factory");
}

#[test]
fn trl() {
    told("trl", "TRL");
}

#[test]
fn unsloth() {
    told("unsloth", "Unsloth");
    told("unsloth_studio", "Unsloth Studio");
}

/// A key that nothing is said of would be dropped in silence here, too.
#[test]
fn a_slip_is_named_with_what_was_meant() {
    let yaml = "base_model: org/model\nlora_rr: 8\ndatasets:\n- {path: a.jsonl, type: alpaca, splitt: train}\n";
    let said = lint_other("a.yaml", yaml).unwrap_or_else(|report| report).to_string();
    for expected in
        ["a.yaml:2:1", "did you mean `lora_r`?", "a.yaml:4:33", "did you mean `split`?", "drops it without a word"]
    {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let made = convert_other("a.yaml", yaml).map_or_else(|report| report, |made| made.warnings).to_string();
    assert!(made.contains("did you mean `lora_r`?"), "{made}");
}

/// A list is of the embedding table; a mapping says which module each list is of.
#[test]
fn rows_of_tokens_are_taken_by_module() {
    let made = |tokens: &str| {
        let yaml = format!(
            "base_model: org/model\nadapter: lora\npeft_trainable_token_indices: {tokens}\n\
             datasets:\n- {{path: a.jsonl, type: alpaca}}\n"
        );
        let made = convert_other("a.yaml", &yaml).map_err(|report| report.to_string()).expect("it is converted");
        (made.yaml, made.warnings.to_string())
    };
    let (yaml, _) = made("[5, 17]");
    assert!(yaml.contains("trainable_token_indices: [5, 17]"), "{yaml}");
    let (yaml, _) = made("{embed_tokens: [5], lm_head: [3, 201]}");
    for expected in ["trainable_token_indices: [5]", "trainable_output_token_indices: [3, 201]"] {
        assert!(yaml.contains(expected), "{expected}: {yaml}");
    }
    let (yaml, said) = made("{wte: [5]}");
    assert!(!yaml.contains("token_indices: ["), "{yaml}");
    assert!(said.contains("`wte` is neither `embed_tokens` nor `lm_head`"), "{said}");
}

/// What is made of a config of Axolotl's with these lines, and what is said of it.
fn of_axolotl(lines: &str) -> (String, String) {
    let yaml = format!("base_model: org/model\n{lines}\n");
    let made = convert_other("a.yaml", &yaml).map_err(|report| report.to_string()).expect("it is converted");
    (made.yaml, made.warnings.to_string())
}

/// Weights are rounded where there is the same quantizer here, in groups of 32 where none are named; the rest is told.
#[test]
fn rounding_while_training_is_the_same_or_is_told() {
    let made = |qat: &str| of_axolotl(&format!("qat: {qat}\ndatasets:\n- {{path: a.jsonl, type: alpaca}}"));
    let (yaml, said) = made("{weight_dtype: int4}");
    assert!(yaml.contains("_component_: int4_weight_only") && yaml.contains("groupsize: 32"), "{yaml}");
    assert!(!said.contains("quantize"), "{said}");
    let (yaml, said) = made("{weight_dtype: int4, activation_dtype: int8, group_size: 64, quantize_embedding: false}");
    assert!(yaml.contains("_component_: int8_dyn_act_int4_weight") && yaml.contains("groupsize: 64"), "{yaml}");
    assert!(!said.contains("embeddings are not rounded"), "{said}");
    for (qat, which) in [
        ("{activation_dtype: int8}", "weights in int8 and activations in int8"),
        ("{weight_dtype: nvfp4}", "weights in nvfp4 and activations as they are"),
    ] {
        let (yaml, said) = made(qat);
        assert!(said.contains(&format!("there is no quantizer for {which}")), "{said}");
        assert!(!yaml.contains("_component_: int"), "{yaml}");
    }
    let pairs = "type: {field_prompt: a, field_chosen: b, field_rejected: c}";
    let (_, said) =
        of_axolotl(&format!("rl: dpo\nqat: {{weight_dtype: int4}}\ndatasets:\n- {{path: a.jsonl, {pairs}}}"));
    assert!(said.contains("which compares no answers"), "{said}");
}

/// Formats of questions and answers become one template where they are one, with a place for each.
#[test]
fn formats_of_answers_are_one_template_or_are_told() {
    let made = |formats: &str| {
        let kind = format!("{{field_prompt: a, field_chosen: b, field_rejected: c{formats}}}");
        of_axolotl(&format!("rl: dpo\ndatasets:\n- {{path: a.jsonl, ds_type: json, type: {kind}}}"))
    };
    let told = "there is one format for question and answer, with one place for each";
    for none in ["", ", prompt_format: '', chosen_format: ''"] {
        let (yaml, said) = made(none);
        assert!(!yaml.contains("prompt_template:") && !said.contains(told), "{yaml}{said}");
    }
    let (yaml, said) =
        made(", prompt_format: 'Q: {prompt}', chosen_format: ' A: {chosen}', rejected_format: ' A: {rejected}'");
    assert!(yaml.contains("Q: {input} A: {output}") && !said.contains(told), "{yaml}{said}");
    for other in [
        ", prompt_format: 'Q: {question}'",
        ", prompt_format: '{prompt} of {author}'",
        ", chosen_format: 'A: {chosen}', rejected_format: 'B: {rejected}'",
    ] {
        let (yaml, said) = made(other);
        assert!(!yaml.contains("prompt_template:") && said.contains(told), "{other}: {yaml}{said}");
    }
}

/// The question's column follows from the form, and beta is Axolotl's where none is given.
#[test]
fn labelled_answers_have_the_columns_of_their_form() {
    for (form, column) in [("argilla", "instruction"), ("intel", "question"), ("ultra", "prompt")] {
        let (yaml, _) = of_axolotl(&format!("rl: kto\ndatasets:\n- {{path: org/data, type: chatml.{form}}}"));
        assert!(yaml.contains(&format!("prompt: {column}")) && yaml.contains("beta: 0.1"), "{form}: {yaml}");
    }
}

/// What others move off a card or onto a disk is answered with what there is here.
#[test]
fn offloading_is_answered_with_the_keys_for_files() {
    let said =
        |yaml: &str| convert_other("a.yaml", yaml).map_or_else(|report| report, |made| made.warnings).to_string();
    let axolotl = "base_model: org/model\ndeepspeed: zero3_nvme.json\nactivation_offloading: disk\n\
                   datasets:\n- {path: a.jsonl, type: alpaca}\n";
    let said_of_axolotl = said(axolotl);
    for expected in ["activation_offload_dir=FOLDER", "optimizer.offload_dir=FOLDER"] {
        assert!(said_of_axolotl.contains(expected), "{expected}: {said_of_axolotl}");
    }
    let trl = "model_name_or_path: org/model\ndataset_name: org/data\nmax_length: 512\nactivation_offloading: true\n";
    assert!(said(trl).contains("activation_offload_dir=FOLDER"), "{}", said(trl));
    assert!(!said(&trl.replace("offloading: true", "offloading: false")).contains("activation_offload_dir"));
}

#[test]
fn what_is_no_config_of_theirs_is_said() {
    for (yaml, code) in [("output_dir: out\n", "E0028"), ("base_model: [\n", "E00")] {
        assert_eq!(other_tool(yaml), None);
        let said = lint_other("a.yaml", yaml).expect_err("no config of theirs").to_string();
        assert!(said.contains(code), "{said}");
        let said = convert_other("a.yaml", yaml).expect_err("no config of theirs").to_string();
        assert!(said.contains(code), "{said}");
    }
    let torchtune = "model: {_component_: torchtune.models.llama3_2.llama3_2_1b}\n";
    assert_eq!(other_tool(torchtune), None);
}

/// Any value may be anything: whatever is written, nothing panics.
#[test]
fn no_value_is_too_odd() {
    let values = ["", "null", "true", "-1", "1e400", "text", "[]", "[1, {a: b}]", "{}", "{a: [b]}", "\"a\\nb\"", "*x"];
    for folder in ["axolotl", "llama_factory", "trl", "unsloth", "unsloth_studio"] {
        for (name, text) in fixtures(folder) {
            for (at, line) in text.lines().enumerate() {
                let Some((key, _)) = line.split_once(':') else { continue };
                for value in values {
                    let odd: Vec<String> = text
                        .lines()
                        .enumerate()
                        .map(|(n, line)| if n == at { format!("{key}: {value}") } else { line.to_owned() })
                        .collect();
                    let odd = odd.join("\n");
                    let _ = lint_other(&name, &odd).map(|report| report.to_string());
                    if let Ok(made) = convert_other(&name, &odd) {
                        assert!(tune_yaml::parse(&made.yaml, tune_config::SourceId(0)).is_ok(), "{odd}\n{}", made.yaml);
                    }
                }
            }
        }
    }
}

/// The page has the tables as they are in the program.
#[test]
fn the_page_has_the_tables() {
    const MARK: &str = "<!-- The tables are written by `UPDATE=1 cargo test -p tune-config --test others`. -->\n\n";
    let path = root().join("docs/coming_from.md");
    let page = std::fs::read_to_string(&path).expect("the page is there");
    let (head, tables) = page.split_once(MARK).expect("the page has the mark");
    let now = other_tools_in_markdown();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, format!("{head}{MARK}{now}")).expect("the page is written");
    } else {
        assert!(tables == now, "UPDATE=1 writes the tables of {} anew", path.display());
    }
    for (name, version) in other_tools() {
        assert!(head.contains(&format!("{name} {version}")), "the page names the version of {name}");
    }
    for tool in now.split("## ").skip(1) {
        let mut seen = HashSet::new();
        for line in tool.lines().filter(|line| line.starts_with("| `")) {
            let keys = line.split(" | ").next().unwrap_or_default();
            for key in keys.split('`').skip(1).step_by(2) {
                assert!(seen.insert(key), "`{key}` is in two rows");
            }
        }
        assert!(seen.len() > 20, "{tool}");
    }
}
