//! The macros behind a recipe: [`macro@recipe`] and [`macro@Config`].
//!
//! An item goes through `parse` (what is written), `check` (whether it makes
//! sense, all mistakes at once) and `expand`; with a mistake, `fallback` stands
//! in, so that one mistake gives one message. The body of a recipe is never
//! parsed, and always emitted: editors keep working in it.

mod attr;
mod check;
mod configs;
mod expand;
mod fallback;
mod parse;
mod types;

use proc_macro::TokenStream;

/// Makes a function the `main` of a recipe.
///
/// # Parameters as keys
/// Each parameter is a key of the config, its doc comment the help text. The
/// attributes are those of [`macro@Config`]. The macro makes the struct
/// (`Lora` + `Config`), its `Config` impl and `main`.
///
/// ```
/// use std::path::PathBuf;
/// use tune_config::{Config, ResolvedConfig, recipe};
///
/// type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
///
/// /// Trains low-rank adapters on a frozen base model.
/// #[recipe(
///     ignored(compile = "there is nothing to compile at run time"),
///     crate = tune_config // a recipe leaves this out: `tune_core::config` is meant
/// )]
/// fn lora(
///     /// Checkpoints, logs and the resolved config go here.
///     output_dir: PathBuf,
///     /// Sequences per micro-batch.
///     #[config(default = 2, range = 1..)]
///     batch_size: usize,
///     // No key: the config as a whole, with the origin of each value.
///     #[config(resolved)] config: ResolvedConfig,
/// ) -> Result<()> {
///     std::fs::write(output_dir.join("config.yaml"), config.to_yaml())?;
///     println!("{batch_size} sequences");
///     Ok(())
/// }
/// ```
///
/// # A struct
/// A single parameter without doc comment and `#[config]` is the config as a
/// struct. (`#[config(resolved)]` may stand beside it.)
///
/// ```
/// # use tune_config::{Config, recipe};
/// # type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
/// /// How long to train.
/// #[derive(Config)]
/// # #[config(crate = tune_config)]
/// struct FullConfig {
///     /// Passes over the data.
///     #[config(default = 1, range = 1..)]
///     epochs: usize,
/// }
///
/// /// Trains all weights.
/// #[recipe(crate = tune_config)]
/// fn full(cfg: FullConfig) -> Result<()> {
///     println!("{} epochs", cfg.epochs);
///     Ok(())
/// }
/// ```
///
/// # Arguments
/// - `configs = ["../configs/lora/tiny.yaml"]`: the configs that the recipe
///   ships with, relative to the folder of its `Cargo.toml` or, where it is
///   not there, to that of the source file. The compiler checks them, and
///   cargo rebuilds the recipe when one of them changes:
///
///   ```text
///   error[E0080]: evaluation panicked: unknown key `optimizer.lrr`
///                 --> configs/lora/tiny.yaml:35:3
///                  |
///               34 |   _component_: adamw
///                  |                ----- component chosen here
///               35 |   lrr: 2.0e-3
///                  |   ^^^ no key of `adamw`
///                  = help: did you mean `lr`?
///   ```
///
///   What only a type of your own can say (`Config` written by hand) is said
///   when the recipe starts.
/// - `preflight = LoraFinetune`: a type that implements `tune_core::recipe::Recipe` with this config. The
///   program then has `--check` and `--plan`, which say what would become of a run before weights are read:
///
///   ```ignore (needs tune_core, which depends on this crate)
///   #[recipe(preflight = LoraFinetune, configs = ["../configs/lora/tiny.yaml"])]
///   fn lora(cfg: LoraConfig) -> Result<()> {
///       let mut recipe = LoraFinetune::setup(cfg)?;
///       recipe.train()?;
///       recipe.cleanup()
///   }
///   ```
/// - `name = "lora"`: the name in messages, where it is not the function's.
/// - `ignored(key = "why", ...)`: keys that are accepted without effect.
/// - `crate = path`: where `tune_core::config` is found.
#[proc_macro_attribute]
pub fn recipe(args: TokenStream, item: TokenStream) -> TokenStream {
    let (recipe, errors) = parse::recipe(args.into(), item.clone().into());
    let Some(recipe) = recipe else {
        let mut tokens: TokenStream = errors.into_tokens(&attr::Attrs::default().krate()).into();
        tokens.extend(item);
        return tokens;
    };
    let errors = check::recipe(&recipe, errors);
    match errors.is_empty() {
        true => expand::recipe(&recipe),
        false => fallback::recipe(&recipe, errors),
    }
    .into()
}

/// Makes a struct or an enum a part of a config.
///
/// # Structs
/// Each field is a key, and has a doc comment: it is the help text.
///
/// | `#[config(...)]` | |
/// |---|---|
/// | `default = 2e-5` | the value where the key is not written: a literal, a list of them, `None`, a constant of a number or bool, the name of a choice or component |
/// | `default` | the type's own: a struct whose keys all have one, the enum's variant that is marked, null, no items |
/// | `range = 1..`, `0.0..=1.0` | the bounds of a number, or of the numbers in a list |
/// | `one_of = ["a", "b"]` | the values that are allowed |
/// | `required` | to be written, although the type is an `Option` |
/// | `alias = "old_name"` | another name for the key; may be repeated |
/// | `name = "type"` | the name, where it is not the field's |
/// | `one_or_many` | for a `Vec`, or an `Option` of one: a single item stands for a list of one |
/// | `flatten` | the keys of the field's struct stand among those of this one |
/// | `may_change` | the value, with all that is in it, may be another one when a run is resumed: it has no part in the result |
///
/// An `Option` is null where it is not written.
///
/// # Enums
/// An enum with data is a component, chosen by `_component_: name` (or by the
/// name alone); the data of a variant is a struct that derives `Config`. An
/// enum without data is a choice between names. Each variant has
/// `#[config(name = "...")]`, and may have `alias = "..."` and `default`.
///
/// A variant can hold a struct of another crate: an enum around those of a
/// library, with one more variant, is how a recipe gets a component of its own.
///
/// ```
/// use tune_config::{Config, Input, load};
///
/// // Of a library.
/// /// Adam with decoupled weight decay.
/// #[derive(Debug, Config)]
/// # #[config(crate = tune_config)]
/// struct AdamW {
///     /// The learning rate.
///     #[config(default = 2e-5, range = 0.0..)]
///     lr: f64,
/// }
///
/// /// Moves by the sign.
/// #[derive(Debug, Config)]
/// # #[config(crate = tune_config)]
/// struct Lion {
///     /// The learning rate.
///     #[config(default = 1e-4, range = 0.0..)]
///     lr: f64,
/// }
///
/// /// What moves the weights.
/// #[derive(Debug, Config)]
/// # #[config(crate = tune_config)]
/// enum Optimizer {
///     #[config(name = "adamw", default)]
///     AdamW(AdamW),
///     #[config(name = "lion")]
///     Lion(Lion),
/// }
///
/// let yaml = "_component_: lion\nlr: 0.5\n";
/// let optimizer = load::<Optimizer>(Input::yaml("a.yaml", yaml))?.config;
/// assert!(matches!(optimizer, Optimizer::Lion(lion) if lion.lr == 0.5));
/// # Ok::<(), tune_config::Report>(())
/// ```
///
/// A type cannot contain itself, not even within a list or through another
/// type: its schema is a constant. Through another type, rustc is the one who
/// notices, and says that it found a cycle in `SCHEMA`.
///
/// # On the type
/// - `#[config(ignored(compile = "why", ...))]`: keys that are accepted
///   without effect, with one warning.
/// - `#[config(component)]`: an enum without data is a component, too.
/// - `#[config(crate = path)]`: where `tune_core::config` is found.
///
/// ```
/// use tune_config::Config;
///
/// /// Low-rank adapters.
/// #[derive(Config)]
/// # #[config(crate = tune_config)]
/// struct Lora {
///     /// The rank of each adapter.
///     #[config(default = 8, range = 1..=1024)]
///     rank: usize,
///     /// Which projections get one.
///     #[config(default = ["q_proj", "v_proj"], one_of = ["q_proj", "k_proj", "v_proj", "o_proj"])]
///     modules: Vec<String>,
///     /// How numbers are held.
///     #[config(default = "fp32")]
///     dtype: Dtype,
///     /// Ends the run early.
///     max_steps: Option<usize>,
/// }
///
/// /// How numbers are held.
/// #[derive(Config)]
/// # #[config(crate = tune_config)]
/// enum Dtype {
///     #[config(name = "fp32", alias = "float32")]
///     F32,
///     #[config(name = "bf16", alias = "bfloat16")]
///     Bf16,
/// }
/// ```
#[proc_macro_derive(Config, attributes(config))]
pub fn derive_config(item: TokenStream) -> TokenStream {
    let (input, errors) = match parse::derive(item.into()) {
        Ok(parsed) => parsed,
        Err(error) => return error.into_compile_error().into(),
    };
    let errors = check::input(&input, errors);
    match errors.is_empty() {
        true => expand::input(&input),
        false => fallback::input(&input, errors),
    }
    .into()
}
