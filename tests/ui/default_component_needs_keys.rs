use tune_config::Config;

/// What moves the weights.
#[derive(Config)]
#[config(crate = tune_config)]
enum Optimizer {
    /// Gradient descent.
    #[config(name = "sgd")]
    Sgd(Sgd),
}

/// Gradient descent.
#[derive(Config)]
#[config(crate = tune_config)]
struct Sgd {
    /// The learning rate.
    lr: f64,
}

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(default = "sgd")]
    key: Optimizer,
}

fn main() {}
