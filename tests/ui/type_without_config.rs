use tune_config::recipe;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Not a config.
struct Model;

/// Trains.
#[recipe(crate = tune_config)]
fn lora(
    /// The model.
    model: Model,
) -> Result<()> {
    drop(model);
    Ok(())
}
