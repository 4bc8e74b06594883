use tune_config::Config;

/// What moves the weights.
#[derive(Config)]
#[config(crate = tune_config)]
enum Optimizer {
    /// Gradient descent.
    #[config(name = "sgd")]
    Sgd { lr: f64 },
}

fn main() {}
