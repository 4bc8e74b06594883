use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(default = 300)]
    batch_size: u8,
}

fn main() {}
