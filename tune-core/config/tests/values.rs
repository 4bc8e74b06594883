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

/// In paths only, wherever they are written; a file's own `~` is null.
#[test]
fn a_tilde_is_the_home_folder() {
    let home = std::env::var("HOME").expect("HOME");
    let yaml = "base: ~/base\noutput_dir: ${base}/runs\nname: ${base}\n\
                datasets:\n- {_component_: instruct, path: ~root/a.json}\n- {_component_: instruct, path: './~/b'}\n\
                - {_component_: instruct, path: 'hf://~/b', column_map: {~a: ~/b}}\n";
    let config = good(yaml, &[]);
    assert_eq!(config.output_dir.to_str(), Some(format!("{home}/base/runs").as_str()));
    assert_eq!(config.name, "~/base");
    let common::Dataset::Instruct(root) = &config.datasets[0];
    assert!(root.path.is_absolute() && root.path.ends_with("a.json"), "{root:?}");
    let [common::Dataset::Instruct(here), common::Dataset::Instruct(hub)] = &config.datasets[1..] else { panic!() };
    assert_eq!((here.path.to_str(), hub.path.to_str()), (Some("./~/b"), Some("hf://~/b")));
    assert_eq!(hub.column_map["~a"], "~/b");
    // The written config has the whole path, and means the same elsewhere.
    let written = read(yaml, &[]).expect("a good config").resolved.to_yaml();
    assert!(written.starts_with(&format!("output_dir: {home}/base/runs\n")), "{written}");
    again(&config);
    for (over, path) in [("~", home.clone()), ("~/x: y", format!("{home}/x: y")), ("'~/a'", format!("{home}/a"))] {
        assert_eq!(good(LEAST, &[&format!("output_dir={over}")]).output_dir.to_str(), Some(path.as_str()));
    }
    let mut config = good(LEAST, &[]);
    config.output_dir = "~/x".into();
    assert_eq!(good(&config.to_yaml(), &[]).output_dir, PathBuf::from("./~/x"));

    let error = common::bad(LEAST, &["output_dir=~no-such-user/x"]);
    assert!(error.starts_with("error[E0031]: `~no-such-user/x` leads to no home folder: there is no user"), "{error}");
    assert!(common::bad("output_dir: ~\n", &[]).contains("for the home folder write `~/`"));
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
        // A path with a `~` comes back as `./~`.
        config.output_dir = if text == "~" { "./~".into() } else { PathBuf::from(text) };
        let common::Dataset::Instruct(instruct) = &mut config.datasets[0];
        instruct.column_map.insert(text.to_owned(), text.to_owned());
        again(&config);
    }
}

/// Outermost keys that only others need.
#[test]
fn keys_of_ones_own_are_accepted_where_something_refers_to_them() {
    let yaml = "run_name: REPLACE_ME\nbase: {dir: /data, data: '${base.dir}/d'}\nwhere: ${base.dir}/${run_name}\n\
                output_dir: ${where}/out\nranks: [4, 8]\nmodel: {lora_rank: '${ranks.1}'}\n\
                datasets: {_component_: instruct, path: '${base.data}'}\n";
    let config = good(yaml, &["run_name=night: one"]);
    assert_eq!(config.output_dir.to_str(), Some("/data/night: one/out"));
    assert_eq!(config.model.lora_rank, 8);
    again(&config);
    // They are not part of what is written, which is complete without them.
    let loaded = read(yaml, &[]).expect("a good config");
    assert_eq!((loaded.resolved.to_yaml(), loaded.warnings.to_string()), (loaded.config.to_yaml(), String::new()));
    let shown = loaded.resolved.to_yaml_with_origins();
    assert!(shown.starts_with("output_dir: /data/REPLACE_ME/out  # lora.yaml:4:13\n"), "{shown}");
    // An override that takes the place of what referred to them makes no mistake of them; one may refer to them, too.
    assert_eq!(good(yaml, &["output_dir=a", "model.lora_rank=1"]).output_dir, PathBuf::from("a"));
    assert_eq!(good(LEAST, &["mine=x", "output_dir=${mine}/y"]).output_dir, PathBuf::from("x/y"));
    // By an alias, too.
    let aliases = "ours: &ours {lora_rank: &rank 16}\nmodel:\n  <<: *ours\nmine: {x: &x 3}\nbatch_size: *x\n";
    let config = after_least(aliases);
    assert_eq!((config.model.lora_rank, config.batch_size), (16, 3));
    assert_eq!(after_least("mine: &mine {batch_size: 5}\n<<: *mine\n").batch_size, 5);
    // What is needed only by a key without effect is needed.
    assert_eq!(after_least("mine: 1\ncompile: ${mine}\n").batch_size, 2);
}

#[test]
fn keys_that_nothing_refers_to_are_mistakes() {
    let bad = |yaml: &str, overrides: &[&str]| common::bad(&format!("{LEAST}{yaml}"), overrides);
    let one = |report: &str| assert_eq!(report.matches("error[").count(), 1, "{report}");
    for yaml in ["mine: 1\n", "mine: 1\nname: \\${mine}\n", "mine: {a: 1, b: '${mine.a}'}\n"] {
        let report = bad(yaml, &[]);
        one(&report);
        assert!(report.starts_with("error[E0020]: unknown key `mine`"), "{report}");
    }
    // Those that refer to each other alone, each of them, and what they need; not where a key of the recipe needs them.
    let ring = "mine: {a: 1, b: '${ours.a}'}\nours: {a: 2, b: '${mine.a}', c: '${theirs}'}\ntheirs: 3\n";
    let report = bad(ring, &[]);
    assert_eq!(report.matches("error[").count(), 3, "{report}");
    for key in ["mine", "ours", "theirs"] {
        assert!(report.contains(&format!("error[E0020]: unknown key `{key}`")), "{report}");
    }
    assert_eq!(after_least(&format!("{ring}batch_size: ${{mine.b}}\n")).batch_size, 2);
    assert_eq!(after_least(&format!("{ring}compile: ${{theirs}}-${{mine.a}}\n")).batch_size, 2);
    // A key of the recipe in the ring, which is needed itself.
    let both = "mine: {a: 16, b: '${model.lora_rank}'}\nmodel: {lora_rank: '${mine.a}'}\n";
    assert_eq!(after_least(both).model.lora_rank, 16);
    // Also those of a list of others; the one that it refers to is none.
    let report = bad("mine: 1\nepohcs: ${mine}\n", &[]);
    one(&report);
    assert!(report.contains("did you mean `epochs`?"), "{report}");
    // Only outermost ones are one's own.
    assert!(bad("model: {mine: 1}\nname: ${model.mine}\n", &[]).contains("unknown key `model.mine`"));
    // A slip in a reference is one mistake.
    let report = bad("run_name: 1\nname: ${run_nmae}\n", &[]);
    one(&report);
    assert!(report.contains("did you mean `${run_name}`?"), "{report}");
    // A slip in one of one's own keys.
    let report = bad("run_name: a\nname: ${run_name}\n", &["run_nmae=b"]);
    assert!(report.contains("unknown key `run_nmae`") && report.contains("did you mean `run_name`?"), "{report}");
    // One that is missing is missing, whatever is near.
    let report = common::bad("output_dri: a\nname: ${output_dri}\ndatasets: []\n", &[]);
    one(&report);
    assert!(report.contains("missing key `output_dir`"), "{report}");
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

/// The key's own bounds are told, not those of its type.
#[test]
fn what_is_below_both_bounds_is_told_the_nearer() {
    for (key, bounds) in
        [("epochs", "must be in 1.."), ("batch_size", "must be in 1..=1024"), ("seed", "must be at least 0")]
    {
        let input = Input::yaml("a.yaml", LEAST).overrides([format!("{key}=-1")]);
        let error = load::<Train>(input).map(drop).unwrap_err().render(false);
        assert!(error.contains(&format!("^^ {bounds}\n")), "{error}");
    }
}

#[test]
fn types_have_the_names_that_others_give_them() {
    for (written, ours) in [("bfloat16", "bf16"), ("torch.bfloat16", "bf16"), ("float", "fp32")] {
        let input = Input::yaml("a.yaml", LEAST).overrides([format!("dtype={written}")]);
        let error = load::<Train>(input).map(drop).unwrap_err().render(false);
        assert!(error.contains(&format!("did you mean `{ours}`?")), "{error}");
    }
}
