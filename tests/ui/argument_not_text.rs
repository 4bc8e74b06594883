use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(default = 1, alias = size)]
    key: usize,
    /// Something.
    #[config(default = 1, name = 3)]
    other: usize,
}

fn main() {}
