use tune_config::Config;

/// What moves the weights.
#[derive(Config)]
#[config(crate = tune_config, ignored(fused = "all of it is"))]
enum Optimizer {
    /// Gradient descent.
    #[config(name = "sgd")]
    Sgd,
}

fn main() {}
