use tune_config::recipe;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Trains.
#[recipe(preflight, crate = tune_config)]
fn lora(
    /// Passes over the data.
    #[config(default = 1)]
    epochs: usize,
) -> Result<()> {
    println!("{epochs}");
    Ok(())
}
