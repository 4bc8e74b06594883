//! The filters of jinja2, with `tojson` as `transformers` has it.

#![allow(clippy::needless_pass_by_value, reason = "all filters are functions of one type")]

mod numbers;
mod select;
mod sequences;
mod text;

use crate::arguments::Args;
use crate::error::{Error, Result};
use crate::interpret::Interpreter;
use crate::json;
use crate::pretty;
use crate::value::Value;

type Run = fn(&mut Interpreter<'_>, Value, Args) -> Result<Value>;

/// A filter.
#[derive(Clone, Copy)]
pub(crate) struct Filter(Run);

const FILTERS: [(&str, Run); 54] = [
    ("abs", numbers::abs),
    ("attr", sequences::attr),
    ("batch", sequences::batch),
    ("capitalize", text::capitalize),
    ("center", text::center),
    ("count", sequences::length),
    ("d", sequences::default),
    ("default", sequences::default),
    ("dictsort", sequences::dictsort),
    ("e", text::escape),
    ("escape", text::escape),
    ("filesizeformat", numbers::filesizeformat),
    ("first", sequences::first),
    ("float", numbers::float),
    ("forceescape", text::forceescape),
    ("format", text::format),
    ("groupby", sequences::groupby),
    ("indent", text::indent),
    ("int", numbers::int),
    ("items", sequences::items),
    ("join", text::join),
    ("last", sequences::last),
    ("length", sequences::length),
    ("list", sequences::list),
    ("lower", text::lower),
    ("map", select::map),
    ("max", select::max),
    ("min", select::min),
    ("pprint", |_, value, args| {
        args.none("pprint")?;
        pretty::pformat(&value).map(Value::from)
    }),
    ("random", |_, _, _| Err(unsupported("random"))),
    ("reject", select::reject),
    ("rejectattr", select::rejectattr),
    ("replace", text::replace),
    ("reverse", sequences::reverse),
    ("round", numbers::round),
    ("safe", text::safe),
    ("select", select::select),
    ("selectattr", select::selectattr),
    ("slice", sequences::slice),
    ("sort", sequences::sort),
    ("string", text::string),
    ("striptags", text::striptags),
    ("sum", select::sum),
    ("title", text::title),
    ("tojson", |_, value, args| json::tojson(&value, args)),
    ("trim", text::trim),
    ("truncate", text::truncate),
    ("unique", sequences::unique),
    ("upper", text::upper),
    ("urlencode", text::urlencode),
    ("urlize", |_, _, _| Err(unsupported("urlize"))),
    ("wordcount", text::wordcount),
    ("wordwrap", text::wordwrap),
    ("xmlattr", text::xmlattr),
];

fn unsupported(name: &str) -> Error {
    Error::runtime(format!("the filter `{name}` is not supported"))
}

impl Filter {
    pub(crate) fn named(name: &str) -> Option<Self> {
        FILTERS.binary_search_by_key(&name, |(name, _)| name).ok().map(|at| Self(FILTERS[at].1))
    }

    pub(crate) fn run(self, interpreter: &mut Interpreter<'_>, value: Value, args: Args) -> Result<Value> {
        self.0(interpreter, value, args)
    }
}

#[cfg(test)]
mod unit {
    #[test]
    fn filters_are_in_order() {
        assert!(super::FILTERS.is_sorted_by_key(|(name, _)| *name));
    }
}
