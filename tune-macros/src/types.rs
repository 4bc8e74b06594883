//! What the tokens of a type say. An alias hides it; then the schema decides,
//! when it is evaluated.

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{GenericArgument, PathArguments, Type};

/// What a type looks like.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Shape {
    Bool,
    Int,
    Float,
    Text,
    Other,
}

impl Shape {
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Shape::Bool => "a bool",
            Shape::Int => "a whole number",
            Shape::Float => "a number",
            Shape::Text => "text",
            Shape::Other => "something else",
        }
    }
}

/// The last name of a path.
fn name(ty: &Type) -> Option<&Ident> {
    match ty {
        Type::Path(path) if path.qself.is_none() => path.path.segments.last().map(|last| &last.ident),
        _ => None,
    }
}

/// What `wrapper<T>` wraps.
fn inside<'t>(ty: &'t Type, wrapper: &str) -> Option<&'t Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last()?;
    if last.ident != wrapper {
        return None;
    }
    match &last.arguments {
        PathArguments::AngleBracketed(arguments) => arguments.args.iter().find_map(|argument| match argument {
            GenericArgument::Type(ty) => Some(ty),
            _ => None,
        }),
        _ => None,
    }
}

pub(crate) fn is_option(ty: &Type) -> bool {
    inside(ty, "Option").is_some()
}

pub(crate) fn is_list(ty: &Type) -> bool {
    inside(ty, "Vec").is_some() || matches!(ty, Type::Array(_))
}

/// Whether there may be a list: `Vec<T>` or `Option<Vec<T>>`.
pub(crate) fn is_vec(ty: &Type) -> bool {
    inside(inside(ty, "Option").unwrap_or(ty), "Vec").is_some()
}

/// The type of the single values: `f64` of `Option<Vec<f64>>`.
pub(crate) fn single(ty: &Type) -> &Type {
    if let Type::Array(array) = ty {
        return single(&array.elem);
    }
    ["Option", "Vec", "Box"].iter().find_map(|wrapper| inside(ty, wrapper)).map_or(ty, single)
}

pub(crate) fn shape(ty: &Type) -> Shape {
    let Some(name) = name(ty) else {
        return Shape::Other;
    };
    match name.to_string().as_str() {
        "bool" => Shape::Bool,
        "i8" | "i16" | "i32" | "i64" | "isize" | "u8" | "u16" | "u32" | "u64" | "usize" => Shape::Int,
        "f32" | "f64" => Shape::Float,
        "String" | "PathBuf" => Shape::Text,
        _ => Shape::Other,
    }
}

/// Whether the type names `this`, which would make it contain itself.
pub(crate) fn mentions(ty: &Type, this: &Ident) -> bool {
    fn find(tokens: TokenStream, this: &Ident) -> bool {
        let mut after_path = false;
        tokens.into_iter().any(|token| match token {
            TokenTree::Ident(ident) => !std::mem::take(&mut after_path) && (ident == *this || ident == "Self"),
            TokenTree::Group(group) => find(group.stream(), this),
            TokenTree::Punct(punct) => {
                // `other::Name` is another type.
                after_path = punct.as_char() == ':';
                false
            }
            TokenTree::Literal(_) => false,
        })
    }
    find(ty.to_token_stream(), this)
}
