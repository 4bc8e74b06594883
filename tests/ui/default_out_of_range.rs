use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(default = 0, range = 1..=8)]
    batch_size: usize,
}

fn main() {}
