use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    key: Inner,
}

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Inner {
    /// Something.
    key: Option<Box<Train>>,
}

fn main() {}
