//! Both forms in one crate, raw identifiers, attributes of others, and names
//! that the generated code must not stumble over.
#![deny(warnings)]

use std::path::PathBuf;

use tune_config::{Config, Input, ResolvedConfig, load, recipe};

/// What `?` of the generated code must not be taken for.
type Result<T> = std::result::Result<T, String>;

#[allow(dead_code)]
struct Option;

/// A count.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
struct Count {
    /// How many.
    #[config(default = 3, range = 1..)]
    r#type: usize,
}

/// A config of any two parts.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
struct Pair<A, B> {
    /// The first.
    first: A,
    /// The second.
    second: B,
}

/// So many numbers.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
struct Numbers<const N: usize> {
    /// The numbers.
    numbers: [f64; N],
}

/// One of two.
#[derive(Debug, Config)]
#[config(crate = tune_config)]
enum Either<A, B> {
    #[config(name = "left")]
    Left(A),
    #[config(name = "right", default)]
    Right(B),
}

/// Trains low-rank adapters.
#[recipe(name = "lora-single", crate = tune_config)]
fn lora(
    /// Checkpoints go here.
    output_dir: PathBuf,
    /// A count.
    #[config(default)]
    count: Count,
    /// A pair.
    pair: Pair<usize, std::option::Option<f64>>,
    #[allow(unused_mut)]
    #[config(resolved)]
    mut config: ResolvedConfig,
) -> Result<()> {
    Err(format!("{output_dir:?} {} {pair:?} {}", count.r#type, config.to_yaml()))
}

/// The other form.
mod full {
    use tune_config::{Config, recipe};

    /// How long to train.
    #[derive(Config)]
    #[config(crate = tune_config)]
    pub(crate) struct FullConfig {
        /// Passes over the data.
        #[config(default = 1, range = 1..)]
        pub(crate) epochs: usize,
    }

    /// Trains all weights.
    #[recipe(crate = tune_config)]
    pub(crate) fn full(cfg: FullConfig) -> super::Result<()> {
        assert_eq!(cfg.epochs, 2);
        Ok(())
    }
}

fn errors<T>(loaded: Read<T>) -> std::result::Result<T, String> {
    loaded.map(|loaded| loaded.config).map_err(|report| report.to_string())
}

type Read<T> = std::result::Result<tune_config::Loaded<T>, tune_config::Report>;

#[test]
fn parameters_are_keys() {
    let yaml = "output_dir: out\ncount: {type: 4}\npair: {first: 1, second: null}\n";
    let loaded = load::<LoraConfig>(Input::yaml("lora.yaml", yaml)).expect("a good config");
    assert_eq!(loaded.config.count.r#type, 4);
    let failed = lora(loaded.config.output_dir, loaded.config.count, loaded.config.pair, loaded.resolved);
    let yaml = "output_dir: out\ncount:\n  type: 4\npair:\n  first: 1\n  second: null\n";
    assert_eq!(failed, Err(format!(r#""out" 4 Pair {{ first: 1, second: None }} {yaml}"#)));
}

#[test]
fn a_struct_is_the_same_written_out() {
    let config = errors(load::<full::FullConfig>(Input::new().overrides(["epochs=2"])));
    assert_eq!(config.map(full::full), Ok(Ok(())));
    let config = errors(load::<full::FullConfig>(Input::new().overrides(["epochs=0"])));
    assert!(config.is_err_and(|report| report.contains("must be in 1..")));
}

#[test]
fn types_with_parameters() {
    type Either = crate::Either<Pair<Numbers<1>, bool>, Numbers<2>>;
    let read = |yaml: &str| errors(load::<Either>(Input::yaml("either.yaml", yaml)));
    assert!(matches!(read("numbers: [1, 2]"), Ok(Either::Right(Numbers { numbers: [1.0, 2.0] }))));
    let left = read("{_component_: left, first: {numbers: [3]}, second: true}");
    assert!(matches!(left, Ok(Either::Left(Pair { first: Numbers { numbers: [3.0] }, second: true }))));
    let wrong = read("{_component_: left, first: {numbers: [3, 4]}, second: true}");
    assert!(wrong.is_err_and(|report| report.contains("either.yaml:1:38") && report.contains("a list of 1")));
}
