use tune_config::recipe;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Not a config.
struct Settings;

/// Trains.
#[recipe(crate = tune_config)]
fn lora(settings: Settings) -> Result<()> {
    drop(settings);
    Ok(())
}
