//! A template's text to its statements.

pub(crate) mod ast;
mod expressions;
mod lexer;
mod operands;
mod parser;
mod statements;
mod strings;

pub(crate) use parser::parse;

/// What Python's `str.isspace` and `\s` take for white space.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
