//! `key=value` and `~key`.

mod common;

use common::{AdamW, Dataset, LEAST, Optimizer, Sgd, Train, bad, good, snapshot};

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

#[test]
fn text_needs_no_quotes_within_quotes() {
    assert_eq!(with(&["name=123"]).name, "123");
    assert_eq!(with(&["name=true"]).name, "true");
    assert_eq!(with(&["name='None'"]).name, "None");
    assert_eq!(with(&["name=two words"]).name, "two words");
    assert_eq!(with(&["name=\"two\\nlines\""]).name, "two\nlines");
    assert_eq!(with(&["name=|\n  two\n  lines"]).name, "two\nlines\n");
}

#[test]
fn a_comment_does_not_cut_a_value_off() {
    for written in ["name=a # b", "name=# b", "name='a' # b", "batch_size=4 # more", "model.lora_attn_modules=[a] #"] {
        let error = bad(LEAST, &[written]);
        assert!(error.contains("would be cut off at a comment"), "{error}");
    }
    assert_eq!(with(&["name=a#b"]).name, "a#b");
    assert_eq!(with(&["name=\"a # b\""]).name, "a # b");
}

#[test]
fn an_empty_value_is_reported_where_it_was_written() {
    let error = bad(LEAST, &["output_dir="]);
    assert!(error.contains(" --> command line:1:25"), "{error}");
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
