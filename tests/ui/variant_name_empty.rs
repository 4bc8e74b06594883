use tune_config::Config;

/// How numbers are held.
#[derive(Config)]
#[config(crate = tune_config)]
enum Dtype {
    /// 32 bits.
    #[config(name = "")]
    F32,
}

fn main() {}
