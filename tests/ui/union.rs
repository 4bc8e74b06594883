use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
union Train {
    /// Something.
    key: u32,
}

fn main() {}
