use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(range = 1..)]
    inner: Inner,
}

/// Within.
#[derive(Config)]
#[config(crate = tune_config)]
struct Inner {}

fn main() {}
