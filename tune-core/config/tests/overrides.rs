//! `key=value` and `~key`.

mod common;

use common::{AdamW, Dataset, LEAST, Optimizer, Sgd, Train, bad, good, read, snapshot};
use tune_config::{Config, Input, load};

fn with(overrides: &[&str]) -> Train {
    good(LEAST, overrides)
}

fn paths(config: &Train) -> Vec<String> {
    let path = |dataset: &Dataset| {
        let Dataset::Instruct(instruct) = dataset;
        instruct.path.display().to_string()
    };
    config.datasets.iter().map(path).collect()
}

#[test]
fn keys_are_set_at_any_depth() {
    let config = with(&["batch_size=4", "model.lora_rank=16", "optimizer.lr=1e-3", "batch_size=5"]);
    assert_eq!((config.batch_size, config.model.lora_rank), (5, 16));
    assert!(matches!(config.optimizer, Optimizer::AdamW(AdamW { lr: 1e-3, .. })));
}

#[test]
fn values_are_yaml_and_may_contain_equals() {
    let config = with(&[
        "name=a=b",
        "model.lora_attn_modules=[q_proj, o_proj]",
        "optimizer={_component_: sgd, lr: 0.5}",
        "datasets.0.column_map={a: b=c}",
    ]);
    assert_eq!(config.name, "a=b");
    assert_eq!(config.model.lora_attn_modules, ["q_proj", "o_proj"]);
    assert_eq!(config.optimizer, Optimizer::Sgd(Sgd { lr: 0.5, momentum: 0.0 }));
    let Dataset::Instruct(instruct) = &config.datasets[0];
    assert_eq!(instruct.column_map["a"], "b=c");
}

/// A key of type text takes what was typed.
#[test]
fn text_is_taken_literally() {
    for text in [
        "Translate to French: hello",
        "a: b: c",
        "a # b",
        "# b",
        "  two blanks ",
        "[a, b]",
        "[1",
        "{a: b}",
        "123",
        "1.0",
        "1_000",
        "true",
        "yes",
        "null",
        "None",
        "~",
        "*.json",
        "&a",
        "!x",
        "@home",
        "%",
        "- a",
        "| a | b |",
        "two\nlines: x",
        "tab\tbed",
        "line\r\n",
        "it's",
        "\"Hello\" and \"bye\"",
        "\"not closed",
        "'",
        "'a' # b",
        "C:\\new",
        "a=b",
        "\"two\nlines\"",
        "---",
        "\u{2028}",
        "ü: 🦀",
        "\u{0}",
    ] {
        assert_eq!(with(&[&format!("name={text}")]).name, text, "{text}");
        // Within a map, too.
        let config = with(&[&format!("datasets.0.column_map.a={text}")]);
        let Dataset::Instruct(instruct) = &config.datasets[0];
        assert_eq!(instruct.column_map["a"], text);
        assert_eq!(good(&config.to_yaml(), &[]), config);
    }
    // Quotes around all of it are YAML's, so anything can be said.
    for (written, text) in [
        ("'None'", "None"),
        ("\"two\\nlines\"", "two\nlines"),
        ("''", ""),
        ("'  a # b: c '", "  a # b: c "),
        ("'it''s'", "it's"),
        ("\"\\\"quoted\\\"\"", "\"quoted\""),
    ] {
        assert_eq!(with(&[&format!("name={written}")]).name, text, "{written}");
    }
    // References are followed.
    assert_eq!(with(&["name=a: ${batch_size}", "batch_size=3"]).name, "a: 3");
    assert_eq!(with(&[r"name=a: \${b} # c"]).name, "a: ${b} # c");
}

#[test]
fn paths_are_taken_literally() {
    for path in ["a: b.json", "a #1.json", "my data.json", "*.json", "@a", "[a.json", "12", "it's", "{a}"] {
        assert_eq!(with(&[&format!("output_dir={path}")]).output_dir.to_str(), Some(path));
        assert_eq!(paths(&with(&[&format!("dataset.path={path}")])), [path]);
    }
    assert_eq!(with(&["output_dir='a b'"]).output_dir.to_str(), Some("a b"));
    // Nobody wants a folder of this name.
    assert!(bad(LEAST, &["output_dir=null"]).contains("expected a path, found null"));
}

/// Some texts, which may be none.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
struct Texts {
    /// One or nothing.
    one: Option<String>,
    /// Files.
    #[config(default, one_or_many)]
    files: Vec<std::path::PathBuf>,
    /// Words.
    #[config(default)]
    words: Vec<String>,
    /// Some, or those that somebody else names.
    #[config(one_or_many)]
    names: Option<Vec<String>>,
}

#[test]
fn one_may_stand_for_a_list_that_may_be_none() {
    let read = |yaml: &str, overrides: &[&str]| {
        let input = Input::yaml("a.yaml", yaml).overrides(overrides.iter().copied());
        load::<Texts>(input).map(|loaded| loaded.config.names).map_err(|report| report.to_string())
    };
    let names = |names: &[&str]| Ok(Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()));
    assert_eq!(read("one: x\n", &[]), Ok(None));
    assert_eq!(read("names: null\n", &[]), Ok(None));
    assert_eq!(read("names: []\n", &[]), names(&[]), "an empty list is no null");
    assert_eq!(read("names: a\n", &[]), names(&["a"]));
    assert_eq!(read("names: [a, b]\n", &[]), names(&["a", "b"]));
    for (over, expected) in [
        ("names=c", names(&["c"])),
        ("names=[c, d]", names(&["c", "d"])),
        ("names=null", Ok(None)),
        ("~names", Ok(None)),
        ("names.0=c", names(&["c"])),
    ] {
        assert_eq!(read("names: a\n", &[over]), expected, "{over}");
    }
    assert_eq!(read("names: null\n", &["names.0=c"]), names(&["c"]));
}

#[test]
fn null_clears_a_text_that_may_be_none() {
    let read = |overrides: &[&str]| {
        let input = Input::yaml("a.yaml", "one: x\nwords: [x]\n").overrides(overrides.iter().copied());
        load::<Texts>(input).map(|loaded| loaded.config).map_err(|report| report.to_string())
    };
    let one = |written: &str| read(&[&format!("one={written}")]).map(|texts| texts.one);
    for null in ["null", "None", "~", ""] {
        assert_eq!(one(null), Ok(None), "{null}");
    }
    for text in ["nothing", "null and void", "no: thing", "[a]", "1"] {
        assert_eq!(one(text), Ok(Some(text.to_owned())));
    }
    assert_eq!(one("'null'"), Ok(Some("null".to_owned())));
    // Elements of a list are YAML; a single file that stands for a list is not.
    let texts =
        read(&["words=[a, 'b: c', 1, \"d\\n\"]", "files=a: b.json"]).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(texts.words, ["a", "b: c", "1", "d\n"]);
    assert_eq!(texts.files, [std::path::PathBuf::from("a: b.json")]);
    let texts = read(&["words.0=a: b # c", "files=[a.json, b c.json]"]).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!((texts.words, texts.files.len()), (vec!["a: b # c".to_owned()], 2));
    assert!(read(&["files=[a.json"]).is_err_and(|report| report.contains("close it with `]`")));
}

/// However long or deep it is: a message, and no overflow of the stack.
#[test]
fn a_path_has_an_end() {
    for step in ["a", "0", "model", "datasets"] {
        let path = vec![step; 10_000].join(".");
        for with in [format!("{path}=1"), format!("~{path}"), format!("model.{path}=[1]")] {
            let error = bad(LEAST, &[&with]);
            assert!(error.contains("longer than any in a config") && error.len() < 4_000, "{}", error.len());
        }
    }
    let path = vec!["a"; 40].join(".");
    let deep = format!("{path}={}x{}", "[".repeat(40), "]".repeat(40));
    assert!(bad(LEAST, &[&deep]).contains("more than 64 levels"));
    let long = "k".repeat(100_000);
    for with in
        [long.clone(), format!("{long}=1"), format!("model.{long}=1"), format!("~{long}"), format!("epochs.{long}=1")]
    {
        let error = bad(LEAST, &[&with]);
        assert!(error.len() < 8_000, "{} {}", error.len(), &error[..100]);
    }
}

#[test]
fn a_comment_does_not_cut_a_value_off() {
    for written in ["batch_size=4 # more", "seed=# b", "optimizer='sgd' # b", "model.lora_attn_modules=[a] #"] {
        let error = bad(LEAST, &[written]);
        assert!(error.contains("would be cut off at a comment"), "{error}");
    }
}

#[test]
fn an_empty_value_is_reported_where_it_was_written() {
    let error = bad(LEAST, &["output_dir="]);
    assert!(error.contains(" --> command line:1:25"), "{error}");
}

/// A reference stands for what it refers to: nothing is set inside it.
#[test]
fn a_reference_is_no_component() {
    let config = format!("{LEAST}name: adamw\noptimizer: ${{name}}\n");
    assert!(matches!(good(&config, &[]).optimizer, Optimizer::AdamW(_)));
    let error = bad(&config, &["optimizer.lr=0.1"]);
    assert!(error.contains("cannot set `optimizer.lr`") && error.contains("`optimizer` is no mapping"), "{error}");
    assert!(error.contains("it is this"), "{error}");
}

#[test]
fn items_of_lists() {
    let yaml = "output_dir: out\ndatasets:\n- {_component_: instruct, path: a}\n- {_component_: instruct, path: b}\n";
    assert_eq!(paths(&good(yaml, &["datasets.1.path=c"])), ["a", "c"]);
    assert_eq!(paths(&good(yaml, &["~datasets.0"])), ["b"]);
    assert_eq!(paths(&good(yaml, &["datasets.2={_component_: instruct, path: c}"])), ["a", "b", "c"]);
    assert_eq!(paths(&good(yaml, &["dataset.2._component_=instruct", "dataset.2.path=c"])), ["a", "b", "c"]);
    // One that stands for a list of one, by its key and by its place.
    assert_eq!(paths(&with(&["datasets.path=x"])), ["x"]);
    assert_eq!(paths(&with(&["dataset.0.path=x"])), ["x"]);
    // Of a default.
    assert_eq!(with(&["model.lora_attn_modules.1=k_proj"]).model.lora_attn_modules, ["q_proj", "k_proj"]);
    assert_eq!(with(&["model.lora_attn_modules.2=k_proj"]).model.lora_attn_modules.len(), 3);
}

#[test]
fn another_component_keeps_what_it_knows() {
    let yaml = format!("{LEAST}optimizer: {{_component_: adamw, lr: 0.25, betas: [0.5, 0.5], fused: true}}\n");
    let sgd = |momentum| Optimizer::Sgd(Sgd { lr: 0.25, momentum });
    assert_eq!(good(&yaml, &["optimizer=sgd"]).optimizer, sgd(0.0));
    assert_eq!(good(&yaml, &["optimizer=torch.optim.SGD", "optimizer.momentum=0.9"]).optimizer, sgd(0.9));
    assert_eq!(good(&yaml, &["optimizer._component_=sgd"]).optimizer, sgd(0.0));
    assert_eq!(good(&yaml, &["optimizer=none"]).optimizer, Optimizer::Frozen);
    assert_eq!(
        good(&yaml, &["optimizer=none", "optimizer=sgd"]).optimizer,
        Optimizer::Sgd(Sgd { lr: 1e-3, momentum: 0.0 })
    );
    // Without one in the file.
    assert_eq!(with(&["optimizer=sgd", "optimizer.lr=0.25"]).optimizer, sgd(0.0));
    assert_eq!(with(&["optimizer.lr=0.25", "optimizer=sgd"]).optimizer, sgd(0.0));
    assert_eq!(good(&format!("{LEAST}optimizer: sgd\n"), &["optimizer.lr=0.25"]).optimizer, sgd(0.0));
    // What neither knows is still a mistake.
    let yaml = format!("{LEAST}optimizer: {{_component_: adamw, betta: 1}}\n");
    assert!(bad(&yaml, &["optimizer=sgd"]).contains("unknown key `optimizer.betta`"));
}

/// What another component has no key for is told.
#[test]
fn keys_that_are_left_out_are_told() {
    let yaml = format!("{LEAST}optimizer: {{_component_: adamw, lr: 0.25, betas: [0.5, 0.5], fused: true}}\n");
    let told = |overrides: &[&str]| read(&yaml, overrides).expect("a good config").warnings.to_string();
    let warning = told(&["optimizer=sgd"]);
    let expected = "warning: the key `betas` of `adamw` is left out: `sgd` has no such key\n --> lora.yaml:3:43";
    assert!(warning.starts_with(expected), "{warning}");
    assert!(
        told(&["optimizer=none"]).starts_with("warning: 2 keys of `adamw` are left out: `none` has no such keys\n")
    );
    assert_eq!(told(&["optimizer=adamw"]).matches("left out").count(), 0);
    assert_eq!(told(&["optimizer={_component_: sgd}"]), "");
}

#[test]
fn keys_are_removed_under_any_of_their_names() {
    let yaml = format!("{LEAST}num_epochs: 3\nmodel: {{lora_rank: 2, lora_dropout: 0.5}}\n");
    assert_eq!(good(&yaml, &["~epochs"]).epochs, 1);
    let config = good(&yaml, &["~model.lora_dropout"]);
    assert_eq!((config.model.lora_rank, config.model.lora_dropout), (2, 0.0));
    assert_eq!(good(&yaml, &["~model"]).model.lora_rank, 8);
    assert_eq!(good(&yaml, &["epochs=5"]).epochs, 5);
}

#[test]
fn keys_are_removed_from_one_that_stands_for_a_list_of_one() {
    let yaml = "output_dir: out\ndatasets: {_component_: instruct, path: a, column_map: {b: c}, x: 1}\n";
    for path in ["datasets.0", "dataset.0", "datasets"] {
        let config = good(yaml, &[&format!("~{path}.x"), &format!("~{path}.column_map.b")]);
        let Dataset::Instruct(instruct) = &config.datasets[0];
        assert!(instruct.column_map.is_empty(), "{path}");
    }
    assert!(paths(&with(&["~dataset.0"])).is_empty());
    let error = bad(LEAST, &["~dataset.1.path"]);
    assert!(error.contains("no item `dataset.1`") && error.contains("its only item is 0"), "{error}");
    assert!(bad(LEAST, &["~dataset.0.pth"]).contains("did you mean `path`?"));
}

#[test]
fn what_is_refused() {
    let overrides = [
        "epochs",
        "=1",
        "a..b=1",
        "+epochs=2",
        "epochs.x=1",
        "~nope",
        "~seed",
        "~datasets.path.x",
        "datasets.3.path=a",
        "model.lora_attn_modules.x=1",
        "modle.lora_rank=1",
        "name=[1",
        "name=a: b: c",
        "~",
        "output_dir.x=1",
        "model.lora_rank=\t",
        "seed={a: 1}",
        "epochs=two words",
        "compile.a=1",
    ];
    snapshot("overrides", &bad(LEAST, &overrides));
}
