use tune_config::recipe;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Trains.
#[recipe(crate = tune_config)]
fn lora(
    /// A pair.
    #[config(default = [1, 2])]
    [a, b]: [usize; 2],
) -> Result<()> {
    println!("{a} {b}");
    Ok(())
}
