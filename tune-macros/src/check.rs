//! Whether what is written makes sense, as far as tokens can say. The rest
//! (a default that is a constant, a type behind an alias) is asserted by the
//! generated code.

use std::collections::HashMap;

use proc_macro2::Span;
use syn::{Expr, ExprLit, ExprRange, ExprUnary, Lit, RangeLimits, Type, UnOp};

use crate::attr::{self, Attrs, Errors};
use crate::configs;
use crate::parse::{Input, InputShape, Key, Recipe, Variant};
use crate::types::{self, Shape};

pub(crate) fn input(input: &Input, mut errors: Errors) -> Errors {
    match &input.shape {
        InputShape::Struct(fields) => {
            if let Some(word) = &input.attrs.component {
                errors.at(word, "`component` is for an enum");
            }
            keys(fields, &input.attrs, &mut errors);
            for field in fields.iter().filter(|field| types::mentions(&field.ty, &input.ident)) {
                errors.at(&field.ty, "a config that contains itself has no end");
            }
        }
        InputShape::Enum(list) => {
            if let Some((name, _)) = input.attrs.ignored.first() {
                errors.at(name, "`ignored` is for a struct: these are keys");
            }
            variants(list, input, &mut errors);
        }
        InputShape::Other => {}
    }
    errors
}

pub(crate) fn recipe(recipe: &Recipe, mut errors: Errors) -> Errors {
    let sig = &recipe.function.sig;
    if let Some(word) = &sig.asyncness {
        errors.at(word, "a recipe is no `async fn`: training waits for nothing");
    }
    if let syn::Safety::Unsafe(word) = &sig.safety {
        errors.at(word, "a recipe is safe to call: `main` calls it");
    }
    if let Some(abi) = &sig.abi {
        errors.at(abi, "a recipe is called from Rust alone");
    }
    for attr in recipe.function.attrs.iter().filter(|attr| attr.path().is_ident("config")) {
        errors.at(attr, "`#[config]` is for keys; what concerns the recipe is said in `#[recipe(...)]`");
    }
    if !sig.generics.params.is_empty() {
        errors.at(&sig.generics, "a recipe has no generics: its config must be known");
    }
    if let Some(variadic) = &sig.variadic {
        errors.at(variadic, "a recipe has no variadic parameters");
    }
    if sig.ident == "main" {
        errors.at(&sig.ident, "`main` is generated: name the function after the recipe");
    }
    if !recipe.returns_result() {
        let message = "a recipe returns a `Result<()>`: its error is printed and makes the exit code 1";
        match &sig.output {
            syn::ReturnType::Default => errors.at(&sig.ident, message),
            syn::ReturnType::Type(_, ty) => errors.at(ty, message),
        }
    }
    if recipe.config.is_some()
        && let Some((name, _)) = recipe.args.ignored.first()
    {
        errors.at(name, "with a config struct, `ignored` is said on the struct: `#[config(ignored(...))]`");
    }
    keys(&recipe.keys, &recipe.args, &mut errors);
    configs::check(&recipe.args.configs, &mut errors);
    errors
}

fn keys(keys: &[Key], container: &Attrs, errors: &mut Errors) {
    let mut names: HashMap<String, ()> = HashMap::new();
    let mut name = |name: String, span: Span, errors: &mut Errors| {
        if names.insert(name.clone(), ()).is_some() {
            errors.span(span, format!("there is another key `{name}`"));
        }
    };
    for key in keys {
        if key.attrs.flatten.is_none() {
            name(key.name.clone(), key.name_span, errors);
        }
        for alias in &key.attrs.aliases {
            name(alias.value(), alias.span(), errors);
        }
        self::key(key, errors);
    }
    for (ident, _) in &container.ignored {
        name(ident.to_string(), ident.span(), errors);
    }
}

fn key(key: &Key, errors: &mut Errors) {
    let attrs = &key.attrs;
    if key.docs.is_empty() && attrs.flatten.is_none() {
        let message = format!("the key `{}` needs a doc comment: it is the help text", key.name);
        errors.span(key.ident.span(), message);
    }
    if let Some(name) = &attrs.name
        && (name.value().is_empty() || name.value().contains(['.', '=', '~', ' ']))
    {
        errors.at(name, "a key has no dots, `=`, `~` or blanks in its name");
    }
    if let Type::Reference(_) = &key.ty {
        return errors.at(&key.ty, attr::OWNED);
    }
    if let Some(word) = &attrs.flatten {
        let others = attrs.default.is_some()
            || attrs.range.is_some()
            || attrs.one_of.is_some()
            || attrs.required.is_some()
            || attrs.one_or_many.is_some()
            || attrs.may_change.is_some()
            || attrs.name.is_some()
            || !attrs.aliases.is_empty();
        if others {
            errors.at(word, "`flatten` stands alone: the keys of the struct have their own attributes");
        }
        return;
    }
    if let (Some(_), Some(default)) = (&attrs.required, &attrs.default) {
        return errors.at(&default.word, "a key with a default is not `required`");
    }
    if let Some(word) = &attrs.one_or_many
        && !types::is_vec(&key.ty)
        && types::shape(&key.ty) != Shape::Other
    {
        errors.at(word, "`one_or_many` is for a `Vec`");
    }
    let shape = types::shape(types::single(&key.ty));
    if let Some(range) = &attrs.range {
        self::range(range, shape, errors);
    }
    if let Some(one_of) = &attrs.one_of {
        match one_of {
            Expr::Array(array) => {
                for value in &array.elems {
                    literal_fits(value, shape, errors);
                }
                if array.elems.is_empty() {
                    errors.at(array, "nothing would be allowed");
                }
            }
            other => errors.at(other, "expected a list: `one_of = [\"a\", \"b\"]`"),
        }
    }
    if let Some(default) = &attrs.default {
        match &default.value {
            None => own_default(key, default, errors),
            Some(value) => self::default(key, value, shape, errors),
        }
    }
}

fn own_default(key: &Key, default: &attr::Default_, errors: &mut Errors) {
    let none = !types::is_option(&key.ty) && !types::is_vec(&key.ty);
    if none && types::shape(&key.ty) != Shape::Other {
        errors.at(&default.word, "this type has no default of its own: write `default = ...`");
    }
}

fn default(key: &Key, value: &Expr, shape: Shape, errors: &mut Errors) {
    match value {
        Expr::Array(array) if types::is_list(&key.ty) || shape == Shape::Other => {
            for item in &array.elems {
                default(key, item, shape, errors);
            }
        }
        Expr::Array(array) if !types::is_option(&key.ty) => {
            errors.at(array, format!("a list is no default: the key is {}", shape.noun()));
        }
        Expr::Path(path) if path.path.is_ident("None") => {
            if shape != Shape::Other && !types::is_option(&key.ty) {
                errors.at(path, "`None` is the default of an `Option` only");
            }
        }
        Expr::Call(_) | Expr::Group(_) | Expr::Paren(_) if inner(value).is_some() => {
            if let Some(inner) = inner(value) {
                default(key, inner, shape, errors);
            }
        }
        value if shape == Shape::Other && literal(value).is_none() => {
            let message = "expected a literal, or the name of the choice or component in quotes";
            errors.at(value, message);
        }
        value => {
            if literal_fits(value, shape, errors)
                && let Some(range) = &key.attrs.range
                && let Some(outside) = outside(value, range)
            {
                errors.at(value, outside);
            }
        }
    }
}

/// What stands in parentheses or in `Some(...)`.
fn inner(value: &Expr) -> Option<&Expr> {
    match value {
        Expr::Group(group) => Some(&group.expr),
        Expr::Paren(paren) => Some(&paren.expr),
        Expr::Call(call) if call.args.len() == 1 => match &*call.func {
            Expr::Path(path) if path.path.is_ident("Some") => call.args.first(),
            _ => None,
        },
        _ => None,
    }
}

/// Reports a literal of another type than the key's.
fn literal_fits(value: &Expr, shape: Shape, errors: &mut Errors) -> bool {
    let Some(literal) = literal(value) else {
        return true;
    };
    let fits = matches!(
        (shape, literal),
        (Shape::Other, _)
            | (Shape::Bool, Literal::Bool)
            | (Shape::Text, Literal::Text)
            | (Shape::Int | Shape::Float, Literal::Int(_))
            | (Shape::Float, Literal::Float(_))
    );
    if !fits {
        errors.at(value, format!("expected {}", shape.noun()));
    }
    fits
}

fn range(range: &Expr, shape: Shape, errors: &mut Errors) {
    let Expr::Range(bounds) = range else {
        return errors.at(range, "expected a range, such as `1..` or `0.0..=1.0`");
    };
    if matches!(shape, Shape::Bool | Shape::Text) {
        return errors.at(range, format!("`range` is for numbers, and this key is {}", shape.noun()));
    }
    if bounds.start.is_none() && bounds.end.is_none() {
        return errors.at(range, "a range without bounds allows everything");
    }
    for bound in bounds.start.iter().chain(&bounds.end) {
        if !literal_fits(bound, shape, errors) {
            return;
        }
    }
    let number = |bound: &Option<Box<Expr>>| bound.as_deref().and_then(number);
    if let (Some(start), Some(end)) = (number(&bounds.start), number(&bounds.end))
        && (start > end || start == end && matches!(bounds.limits, RangeLimits::HalfOpen(_)))
    {
        errors.at(range, "nothing is in this range");
    }
}

/// What to say of a default that is out of the range, where both are literals.
fn outside(value: &Expr, range: &Expr) -> Option<String> {
    let (value, Expr::Range(ExprRange { start, end, limits, .. })) = (number(value)?, range) else {
        return None;
    };
    let start = start.as_deref().and_then(number);
    let end = end.as_deref().and_then(number);
    let above = |end: f64| match limits {
        RangeLimits::HalfOpen(_) => value >= end,
        RangeLimits::Closed(_) => value > end,
    };
    let is_outside = start.is_some_and(|start| value < start) || end.is_some_and(above);
    is_outside.then(|| "the default is out of the key's range".to_owned())
}

enum Literal {
    Bool,
    Int(f64),
    Float(f64),
    Text,
    Other,
}

fn literal(value: &Expr) -> Option<Literal> {
    match value {
        Expr::Lit(ExprLit { lit, .. }) => Some(match lit {
            Lit::Bool(_) => Literal::Bool,
            Lit::Int(int) => Literal::Int(int.base10_digits().parse().ok()?),
            Lit::Float(float) => Literal::Float(float.base10_parse().ok()?),
            Lit::Str(_) => Literal::Text,
            _ => Literal::Other,
        }),
        Expr::Unary(ExprUnary { op: UnOp::Neg(_), expr, .. }) => Some(match literal(expr)? {
            Literal::Int(int) => Literal::Int(-int),
            Literal::Float(float) => Literal::Float(-float),
            other => other,
        }),
        _ => None,
    }
}

fn number(value: &Expr) -> Option<f64> {
    match literal(value)? {
        Literal::Int(number) | Literal::Float(number) => Some(number),
        _ => None,
    }
}

fn variants(variants: &[Variant], input: &Input, errors: &mut Errors) {
    if variants.is_empty() {
        errors.at(&input.ident, "an enum without variants has nothing to choose");
    }
    let mut names: HashMap<String, ()> = HashMap::new();
    let mut default = false;
    for variant in variants {
        match &variant.attrs.name {
            None => {
                let example = variant.ident.to_string().to_lowercase();
                let message = format!("give the variant its name in configs: `#[config(name = \"{example}\")]`");
                errors.at(&variant.ident, message);
            }
            Some(name) if name.value().is_empty() => {
                errors.at(name, "an empty name cannot be written");
            }
            Some(_) => {}
        }
        for name in variant.attrs.name.iter().chain(&variant.attrs.aliases) {
            if names.insert(name.value(), ()).is_some() {
                errors.at(name, format!("there is another variant `{}`", name.value()));
            }
        }
        if let Some(mark) = &variant.attrs.default {
            if let Some(value) = &mark.value {
                errors.at(value, "`default` marks a variant and takes no value");
            } else if std::mem::replace(&mut default, true) {
                errors.at(&mark.word, "there is another default");
            }
        }
        if let Some(payload) = &variant.payload {
            if types::mentions(payload, &input.ident) {
                errors.at(payload, "a config that contains itself has no end");
            } else if types::shape(payload) != Shape::Other || types::is_vec(payload) || types::is_option(payload) {
                errors.at(payload, "a component holds a struct that derives `Config`");
            }
        }
    }
}
