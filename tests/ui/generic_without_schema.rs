use tune_config::{Config, recipe};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Two of something.
#[derive(Config)]
#[config(crate = tune_config)]
struct Pair<T> {
    /// The first.
    first: T,
    /// The second.
    second: T,
}

struct NoConfig;

/// Trains.
#[recipe(crate = tune_config)]
fn lora(
    /// Two of them.
    pair: Pair<NoConfig>,
) -> Result<()> {
    drop(pair);
    Ok(())
}
