use tune_config::recipe;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Trains.
#[recipe(crate = tune_config)]
#[config(ignored(compile = "there is nothing to compile"))]
fn lora(
    /// Passes over the data.
    #[config(default = 1)]
    epochs: usize,
) -> Result<()> {
    println!("{epochs}");
    Ok(())
}
