use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(default = 1.5)]
    batch_size: Count,
}

type Count = usize;

fn main() {}
