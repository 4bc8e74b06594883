//! What stands in for an item with a mistake in it, so that nothing else
//! complains: the function as it is written, and a `Config` that says nothing.

use proc_macro2::TokenStream;
use quote::quote;

use crate::attr::Errors;
use crate::expand;
use crate::parse::{Input, Recipe};

pub(crate) fn input(input: &Input, errors: Errors) -> TokenStream {
    let krate = input.attrs.krate();
    let ident = &input.ident;
    let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
    let errors = errors.into_tokens(&krate);
    let body = broken(&krate);
    quote! {
        #errors
        #[automatically_derived]
        impl #impl_generics #krate::Config for #ident #ty_generics #where_clause { #body }
    }
}

pub(crate) fn recipe(recipe: &Recipe, errors: Errors) -> TokenStream {
    let krate = recipe.args.krate();
    let errors = errors.into_tokens(&krate);
    let function = expand::function(recipe);
    if recipe.function.sig.receiver().is_some() {
        // Within an `impl`, where nothing else can stand.
        return quote!(#errors #function);
    }
    let config = recipe.config.is_none().then(|| {
        let config = expand::config_struct(recipe);
        let ident = recipe.config_ident();
        let body = broken(&krate);
        quote! {
            #[allow(dead_code)]
            #config
            impl #krate::Config for #ident { #body }
        }
    });
    quote! {
        #errors
        #[allow(dead_code)]
        #function
        #config
        #[allow(dead_code)]
        fn main() {}
    }
}

fn broken(krate: &TokenStream) -> TokenStream {
    quote! {
        const SCHEMA: #krate::Schema = #krate::Schema::Broken;
        fn from_value(__value: &#krate::Value) -> ::core::result::Result<Self, #krate::Mismatch> {
            ::core::result::Result::Err(__value.refuse(""))
        }
        fn to_value(&self) -> #krate::Value {
            #krate::Value::null()
        }
    }
}
