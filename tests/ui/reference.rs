use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    name: &'static str,
}

fn main() {}
