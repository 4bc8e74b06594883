use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config, may_change)]
struct Train {
    /// Where the results go.
    output_dir: String,
}

fn main() {}
