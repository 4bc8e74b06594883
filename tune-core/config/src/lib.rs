//! Typed configs: one schema, and everything that reads it.
//!
//! A config is a struct that derives [`Config`]. Its [`Config::SCHEMA`] is a
//! constant that says which keys there are, of which type, with which default,
//! range, choices and documentation; checking, `--help` and conversion all
//! read that one constant. A config value exists only validated.
//!
//! ```
//! use tune_config::Config;
//!
//! /// Where and how long to train.
//! #[derive(Debug, Config)]
//! # #[config(crate = tune_config)]
//! struct Train {
//!     /// Checkpoints and logs go here.
//!     output_dir: std::path::PathBuf,
//!     /// Sequences per micro-batch.
//!     #[config(default = 2, range = 1..)]
//!     batch_size: usize,
//!     /// What moves the weights.
//!     #[config(default)]
//!     optimizer: Optimizer,
//! }
//!
//! /// An enum with data is a component, chosen by `_component_`.
//! #[derive(Debug, Config)]
//! # #[config(crate = tune_config)]
//! enum Optimizer {
//!     /// Adam with decoupled weight decay.
//!     #[config(name = "adamw", alias = "torch.optim.AdamW", default)]
//!     AdamW(AdamW),
//!     /// Plain gradient descent.
//!     #[config(name = "sgd")]
//!     Sgd,
//! }
//!
//! /// Adam with decoupled weight decay.
//! #[derive(Debug, Config)]
//! # #[config(crate = tune_config)]
//! struct AdamW {
//!     /// The learning rate.
//!     #[config(default = 2e-5, range = 0.0..)]
//!     lr: f64,
//! }
//!
//! let yaml = "output_dir: out\noptimizer:\n  _component_: torch.optim.AdamW\n  lr: 1e-4\n";
//! let loaded = tune_config::load::<Train>(
//!     tune_config::Input::yaml("train.yaml", yaml).overrides(["batch_size=8"]),
//! )?;
//! assert_eq!(loaded.config.batch_size, 8);
//!
//! let report = tune_config::load::<Train>(
//!     tune_config::Input::yaml("train.yaml", "output_dir: out\nbatchsize: 3\n"),
//! )
//! .unwrap_err()
//! .to_string();
//! assert!(report.contains("train.yaml:2:1"));
//! assert!(report.contains("did you mean `batch_size`?"));
//! # Ok::<(), tune_config::Report>(())
//! ```

pub mod attributes;
pub mod check;
pub mod cli;
pub mod codes;
mod completions;
mod convert;
pub mod embedded;
mod emit;
pub mod files;
mod help;
mod home;
mod json_schema;
mod load;
mod others;
pub mod output;
mod overrides;
mod plain;
mod report;
mod resolve;
pub mod schema;
mod torchtune;
pub mod tree;
mod types;
mod value;
mod words;

pub use convert::convert;
pub use json_schema::json_schema;
pub use load::{Input, Loaded, ResolvedConfig, load};
pub use others::{Converted, convert_other, lint_other, other_tool, other_tools, other_tools_in_markdown};
pub use report::{Diagnostic, Level, Report, Sources};
pub use schema::Schema;
pub use torchtune::recipe_of_torchtune;
pub use tune_macros::{Config, recipe};
pub use tune_yaml::{SourceId, Span, nearest};
pub use value::{Data, Field, Mismatch, Origin, Value};

/// A type that can stand in a config. Derive it for structs and enums; write
/// it by hand for a type that is written as one of the types known here.
///
/// ```
/// use tune_config::{Config, Mismatch, Schema, Value};
///
/// /// A size such as `16k`.
/// struct Tokens(usize);
///
/// impl Config for Tokens {
///     const SCHEMA: Schema = Schema::Text;
///
///     fn from_value(value: &Value) -> Result<Self, Mismatch> {
///         let text = value.text()?;
///         let number = text.strip_suffix('k').and_then(|k| k.parse::<usize>().ok());
///         number
///             .and_then(|k| k.checked_mul(1000))
///             .map(Tokens)
///             .ok_or_else(|| value.refuse(format!("`{text}` is no size such as `16k`")))
///     }
///
///     fn to_value(&self) -> Value {
///         Value::from_text(format!("{}k", self.0 / 1000))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot stand in a config",
    label = "does not implement `Config`",
    note = "derive it for a type of your own: `#[derive(Config)]`"
)]
pub trait Config: Sized {
    /// What may be written.
    const SCHEMA: Schema;

    /// The value, from what has been checked against [`Self::SCHEMA`].
    ///
    /// # Errors
    /// What the schema cannot say: the message is shown at the place where the
    /// value was written.
    fn from_value(value: &Value) -> Result<Self, Mismatch>;

    /// The value as it would be written: [`Self::from_value`] of it is the
    /// same again.
    fn to_value(&self) -> Value;

    /// The value as YAML that can be run again as it is.
    fn to_yaml(&self) -> String {
        emit::yaml(&self.to_value(), None)
    }
}
