use std::collections::HashMap;
use tune_config::Config;

/// Names in no order.
#[derive(Config)]
#[config(crate = tune_config)]
struct Columns {
    /// Which is which.
    names: HashMap<String, String>,
}

fn main() {}
