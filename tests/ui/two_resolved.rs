use tune_config::{ResolvedConfig, recipe};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Trains.
#[recipe(crate = tune_config)]
fn lora(
    #[config(resolved)] one: ResolvedConfig,
    #[config(resolved)] two: ResolvedConfig,
) -> Result<()> {
    println!("{}{}", one.to_yaml(), two.to_yaml());
    Ok(())
}
