//! Thousands of small templates render as in jinja2, in the sandbox of transformers: `chat_templates/expressions.json`
//! is what `chat_templates/expressions.py` got there.

use std::path::Path;

use serde_json::Value as Json;
use tune_jinja::{Kind, Names, Template, Value};

/// What jinja2 gives and we refuse, with the reasons in the documentation of the crate: never rendered differently.
const REFUSED: [&str; 5] = ["(-8) ** 0.5", ".encode()", "'a'.upper | string", "\\N{", "safe).format("];

#[test]
fn expressions_are_what_jinja2_makes_of_them() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/chat_templates/expressions.json");
    let expected = tune_jinja::parse_json(&std::fs::read_to_string(path).unwrap()).unwrap();
    let given = expected["names"].as_object().unwrap();
    let values: Vec<(&str, Value)> =
        given.iter().map(|(name, value)| (name.as_str(), Value::try_from(value).unwrap())).collect();
    let mut names = Names::new(&values);
    names.now = expected["now"].as_i64().unwrap();

    let cases = expected["expressions"].as_array().unwrap();
    assert!(cases.len() > 5000);
    let mut wrong = Vec::new();
    let mut refused = Vec::new();
    for case in cases {
        let source = case[0].as_str().unwrap();
        let got = Template::new(source).and_then(|template| template.render(&names));
        match (&got, &case[1], &case[2]) {
            (Ok(got), Json::String(text), _) if got.text == *text => {}
            (Err(error), Json::String(text), _) => {
                let known = REFUSED.iter().any(|part| source.contains(part));
                if known { refused.push(source) } else { wrong.push(format!("{source}\n got {error}\nwant {text:?}")) }
            }
            (Ok(got), want, _) => wrong.push(format!("{source}\n got {:?}\nwant {want:?}", got.text)),
            (Err(error), _, Json::String(message)) if error.kind() == Kind::Refused && error.message() != message => {
                wrong.push(format!("{source}\n got {error}\nwant {message}"));
            }
            (Err(_), _, _) => {}
        }
    }
    for part in REFUSED {
        assert!(refused.iter().any(|source| source.contains(part)), "{part} is not refused any more");
    }
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
