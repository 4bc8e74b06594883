use tune_config::Config;

/// What moves the weights.
#[derive(Config)]
#[config(crate = tune_config)]
enum Optimizer {}

fn main() {}
