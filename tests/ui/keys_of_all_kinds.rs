use tune_config::Config;

/// One mistake a key.
#[derive(Config)]
#[config(crate = tune_config)]
struct Keys {
    /// A name with a dot.
    #[config(name = "a.b", default = 1)]
    dotted: usize,
    /// No range.
    #[config(default = 1, range = 3)]
    range: usize,
    /// No list.
    #[config(default = "a", one_of = "a")]
    choices: String,
    /// No `Option`.
    #[config(default = None)]
    number: usize,
    /// No number.
    #[config(default = [1, 2])]
    text: String,
    #[config(flatten, default)]
    inner: Inner,
    /// `default` twice.
    #[config(default = 1, default = 2)]
    twice: usize,
    /// A value where there is none.
    #[config(required = true)]
    required: Option<usize>,
}

/// Keys within keys.
#[derive(Config)]
#[config(crate = tune_config)]
struct Inner {}

fn main() {}
