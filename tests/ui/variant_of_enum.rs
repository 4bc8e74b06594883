use tune_config::Config;

/// What moves the weights.
#[derive(Config)]
#[config(crate = tune_config)]
enum Optimizer {
    /// Gradient descent.
    #[config(name = "sgd")]
    Sgd(Kind),
}

/// A choice.
#[derive(Config)]
#[config(crate = tune_config)]
enum Kind {
    /// Plain.
    #[config(name = "plain")]
    Plain,
}

fn main() {}
