use tune_config::recipe;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Trains.
#[recipe(crate = tune_config)]
fn lora(
    /// Checkpoints go here.
    output_dir: &str,
) -> Result<()> {
    println!("{output_dir}");
    Ok(())
}
