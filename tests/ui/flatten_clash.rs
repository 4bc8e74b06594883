use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// The learning rate.
    lr: f64,
    #[config(flatten)]
    optimizer: Optimizer,
}

/// What moves the weights.
#[derive(Config)]
#[config(crate = tune_config)]
struct Optimizer {
    /// The learning rate.
    #[config(name = "rate", alias = "lr")]
    learning_rate: f64,
}

fn main() {}
