use tune_config::Config;

/// What moves the weights.
#[derive(Config)]
#[config(crate = tune_config)]
enum Optimizer {
    /// Gradient descent.
    #[config(name = "sgd", default)]
    Sgd,
    /// Nothing moves.
    #[config(name = "none", default)]
    Frozen,
}

fn main() {}
