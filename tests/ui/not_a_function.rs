use tune_config::recipe;

/// Trains.
#[recipe(crate = tune_config)]
struct Lora;

fn main() {}
