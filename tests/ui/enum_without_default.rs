use tune_config::Config;

/// A config.
#[derive(Config)]
#[config(crate = tune_config)]
struct Train {
    /// Something.
    #[config(default)]
    dtype: Dtype,
}

/// How numbers are held.
#[derive(Config)]
#[config(crate = tune_config)]
enum Dtype {
    /// 32 bits.
    #[config(name = "fp32")]
    F32,
}

fn main() {}
