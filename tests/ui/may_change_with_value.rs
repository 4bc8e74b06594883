use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Where the results go.
    #[config(may_change = true)]
    output_dir: String,
}

fn main() {}
