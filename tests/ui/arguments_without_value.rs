use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(default = 1, range)]
    key: usize,
    /// Something.
    #[config(default = "a", one_of)]
    choice: String,
    /// Something.
    #[config(default = 1, alias)]
    named: usize,
    /// Something.
    #[config(default(1))]
    call: usize,
}

fn main() {}
