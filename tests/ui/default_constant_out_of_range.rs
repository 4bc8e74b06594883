use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(default = LEAST, range = 1..)]
    batch_size: usize,
}

const LEAST: usize = 0;

fn main() {}
