use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    #[config(flatten, may_change)]
    run: Run,
}

/// Where it goes.
#[derive(Config)]
#[config(crate = tune_config)]
struct Run {
    /// Where the results go.
    output_dir: String,
}

fn main() {}
