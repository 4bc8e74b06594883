use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(default = "tanh", one_of = ["relu", "gelu"])]
    activation: String,
}

fn main() {}
