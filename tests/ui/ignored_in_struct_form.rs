use tune_config::{Config, recipe};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(default = 1)]
    epochs: usize,
}

/// Trains.
#[recipe(ignored(compile = "there is nothing to compile"), crate = tune_config)]
fn lora(
    cfg: Train,
) -> Result<()> {
    println!("{}", cfg.epochs);
    Ok(())
}
