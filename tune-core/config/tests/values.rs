//! What is accepted, what it becomes, and that it comes back the same.

mod common;

use std::path::PathBuf;

use common::{Dtype, LEAST, Optimizer, Train, good, read, snapshot};
use tune_config::{Config, Input, load};

fn after_least(yaml: &str) -> Train {
    good(&format!("{LEAST}{yaml}"), &[])
}

/// Runs the written config again.
fn again(config: &Train) {
    let yaml = config.to_yaml();
    assert_eq!(&good(&yaml, &[]), config, "{yaml}");
    assert_eq!(good(&yaml, &[]).to_yaml(), yaml);
}

#[test]
fn defaults() {
    let config = good(LEAST, &[]);
    assert_eq!(config.output_dir, PathBuf::from("out"));
    assert_eq!((config.batch_size, config.epochs, config.seed), (2, 1, None));
    assert_eq!(config.dtype, Dtype::F32);
    assert_eq!(config.model.lora_attn_modules, ["q_proj", "v_proj"]);
    assert!(matches!(&config.optimizer, Optimizer::AdamW(adamw) if adamw.lr == 2e-5));
    assert_eq!(config.log.log_every_n_steps, 1);
    snapshot("defaults", &config.to_yaml());
    again(&config);
}

#[test]
fn numbers_as_people_write_them() {
    let config = after_least("batch_size: 1_000\nseed: 0xff\noptimizer: {lr: 2e-5, weight_decay: 1}\n");
    assert_eq!((config.batch_size, config.seed), (1000, Some(255)));
    let Optimizer::AdamW(adamw) = &config.optimizer else { panic!() };
    assert_eq!((adamw.lr, adamw.weight_decay), (2e-5, 1.0));
    again(&config);
}

#[test]
fn null_in_all_its_forms() {
    for null in ["null", "~", "None", ""] {
        assert_eq!(after_least(&format!("seed: {null}\n")).seed, None, "{null}");
        assert_eq!(good(&format!("{LEAST}seed: 3\n"), &[&format!("seed={null}")]).seed, None, "{null}");
    }
}

#[test]
fn components_by_name_alias_and_bare() {
    for yaml in [
        "optimizer: sgd\n",
        "optimizer: torch.optim.SGD\n",
        "optimizer: {_component_: sgd}\n",
        "optimizer:\n  _component_: torch.optim.SGD\n  lr: 1e-3\n",
    ] {
        assert!(matches!(after_least(yaml).optimizer, Optimizer::Sgd(sgd) if sgd.lr == 1e-3), "{yaml}");
    }
    assert_eq!(after_least("optimizer: none\n").optimizer, Optimizer::Frozen);
    // Without a name it is the default one.
    assert!(matches!(after_least("optimizer: {lr: 1}\n").optimizer, Optimizer::AdamW(adamw) if adamw.lr == 1.0));
    assert_eq!(after_least("dtype: {_component_: float32}\n").dtype, Dtype::F32);
}

#[test]
fn aliases_merges_and_references() {
    let config = good(
        "output_dir: out/${name}\nname: r${model.lora_rank}\nmodel: &model {lora_rank: 16}\n\
         num_epochs: ${model.lora_rank}\ndataset: {_component_: instruct, path: '${output_dir}/a.json'}\n",
        &["model.lora_rank=4"],
    );
    assert_eq!(config.output_dir, PathBuf::from("out/r4"));
    assert_eq!(config.epochs, 4);
    assert_eq!(config.datasets.len(), 1);
    again(&config);
}

#[test]
fn texts_that_look_like_something_else_come_back() {
    for text in [
        "None",
        "null",
        "~",
        "true",
        "yes",
        "1",
        "1.5",
        "1_000",
        "0x1f",
        ".inf",
        "",
        " ",
        "a: b",
        "- a",
        "#",
        "a #b",
        "${name}",
        r"\${name}",
        r"\\${x",
        "$",
        "'",
        "\"",
        "\\",
        "\n",
        "a\nb\n",
        "\t",
        "\u{85}\u{2028}\u{feff}",
        "ü",
        "🦀",
        "[a]",
        "{a}",
        "*a",
        "&a",
        "!a",
        "|",
        ">",
        "%",
        "@",
        "`",
        "a,b",
        "---",
        "...",
        "=",
        "<<",
        "\u{0}\u{7f}\u{9f}",
    ] {
        let mut config = good(LEAST, &[]);
        config.name = text.to_owned();
        config.output_dir = PathBuf::from(text);
        let common::Dataset::Instruct(instruct) = &mut config.datasets[0];
        instruct.column_map.insert(text.to_owned(), text.to_owned());
        again(&config);
    }
}

#[test]
fn numbers_come_back() {
    for float in [0.0, -0.0, 0.1, 1e-5, 2e-308, 5e-324, 1e300, f64::MAX, 1.0, 1e16, 123_456_789.123_456_79] {
        let mut config = good(LEAST, &[]);
        let Optimizer::AdamW(adamw) = &mut config.optimizer else { panic!() };
        adamw.lr = float;
        adamw.weight_decay = -float;
        config.model.lora_dropout = 0.1;
        again(&config);
    }
    let mut config = good(LEAST, &[]);
    config.seed = Some(u64::MAX);
    again(&config);
    assert!(config.to_yaml().contains("seed: 18446744073709551615"));
}

#[test]
fn the_resolved_config_knows_where_its_values_come_from() {
    let yaml = format!("{LEAST}optimizer: {{lr: 1}}\n");
    let loaded = read(&yaml, &["batch_size=4", "model.lora_rank=2"]).expect("a good config");
    assert_eq!(loaded.resolved.to_yaml(), loaded.config.to_yaml());
    snapshot("origins", &loaded.resolved.to_yaml_with_origins());
    assert_eq!(good(&loaded.resolved.to_yaml_with_origins(), &[]), loaded.config);
}

#[test]
fn a_type_of_ones_own() {
    /// A size such as `16k`.
    #[derive(Debug, PartialEq)]
    struct Tokens(usize);

    impl Config for Tokens {
        const SCHEMA: tune_config::Schema = tune_config::Schema::Text;

        fn from_value(value: &tune_config::Value) -> Result<Self, tune_config::Mismatch> {
            let text = value.text()?;
            let number = text.strip_suffix('k').and_then(|k| k.parse::<usize>().ok());
            number.map(|k| Tokens(k * 1000)).ok_or_else(|| value.refuse(format!("`{text}` is no size such as `16k`")))
        }

        fn to_value(&self) -> tune_config::Value {
            tune_config::Value::from_text(format!("{}k", self.0 / 1000))
        }
    }

    /// With one.
    #[derive(Debug, PartialEq, Config)]
    #[config(crate = tune_config)]
    struct Sized {
        /// How much.
        #[config(default = "4k")]
        tokens: Tokens,
    }

    let read = |yaml: &str| load::<Sized>(Input::yaml("a.yaml", yaml)).map(|loaded| loaded.config.tokens.0);
    assert_eq!(read("tokens: 16k").map_err(|report| report.to_string()), Ok(16_000));
    assert_eq!(read("{}").map_err(|report| report.to_string()), Ok(4_000));
    let report = read("tokens: 16m").map_err(|report| report.to_string());
    assert_eq!(
        report,
        Err("error[E0029]: `16m` is no size such as `16k`\n --> a.yaml:1:9\n  |\n1 | tokens: 16m\n  |         ^^^"
            .to_owned())
    );
}
