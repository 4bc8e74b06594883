use tune_config::recipe;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Trains.
#[recipe(crate = tune_config)]
fn lora(
    /// What moves the weights.
    optimizer: impl tune_config::Config,
) -> Result<()> {
    drop(optimizer);
    Ok(())
}
