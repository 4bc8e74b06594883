use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(name = "size")]
    batch_size: usize,
    /// Another.
    #[config(alias = "size")]
    other: usize,
}

fn main() {}
