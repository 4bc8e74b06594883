use tune_config::Config;

/// How numbers are held.
#[derive(Config)]
#[config(crate = tune_config)]
enum Dtype {
    /// 32 bits.
    #[config(name = "fp32", may_change)]
    F32,
}

fn main() {}
