use tune_config::Config;

type Count = usize;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(one_of = ["a"])]
    key: Count,
}

fn main() {}
