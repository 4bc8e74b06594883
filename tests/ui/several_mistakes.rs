use tune_config::recipe;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Trains.
#[recipe(crate = tune_config)]
fn lora(
    output_dir: String,
    /// Sequences per micro-batch.
    #[config(default = 0, range = 1..)]
    batch_size: usize,
    /// Passes over the data.
    #[config(defualt = 1)]
    epochs: usize,
) -> Result<()> {
    println!("{output_dir} {batch_size} {epochs}");
    Ok(())
}
