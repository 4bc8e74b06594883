use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(default = [0.9])]
    key: [f64; 2],
}

fn main() {}
