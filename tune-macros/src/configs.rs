//! The configs that a recipe ships with.
//!
//! They must exist, and cargo rebuilds the recipe when one changes. This is
//! also where their text is at hand to be checked against the schema.

use std::path::PathBuf;

use proc_macro2::TokenStream;
use quote::quote;
use syn::LitStr;

use crate::attr::Errors;

/// The file that a literal names, relative to the package.
fn path(written: &LitStr) -> Option<PathBuf> {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")?;
    Some(PathBuf::from(package).join(written.value()))
}

pub(crate) fn check(configs: &[LitStr], errors: &mut Errors) {
    for config in configs {
        if path(config).is_some_and(|path| !path.is_file()) {
            let message = format!(
                "there is no file `{}`: the path is relative to the folder of the package's Cargo.toml",
                config.value()
            );
            errors.at(config, message);
        }
    }
}

/// Each config as a pair of its path and its text.
pub(crate) fn embed(configs: &[LitStr]) -> TokenStream {
    let pairs = configs.iter().filter_map(|config| {
        let absolute = path(config)?.display().to_string();
        Some(quote!((#config, ::core::include_str!(#absolute))))
    });
    quote!(&[#(#pairs),*])
}
