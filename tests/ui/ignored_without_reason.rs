use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config, ignored(compile))]
struct Train {
    /// Something.
    #[config(default = 1)]
    key: usize,
}

fn main() {}
