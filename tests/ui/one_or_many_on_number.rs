use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(one_or_many)]
    batch_size: usize,
}

fn main() {}
