//! `a.b=v`, `a.0.b=v` and `~a.b` from the command line, put into the tree
//! before it is checked.

mod apply;
mod switch;
mod written;

use tune_yaml::{Code, MAX_DEPTH, Node, SourceId, Span, Value as Tree};

use crate::codes;
use crate::report::Diagnostic;

pub(crate) use apply::apply;
use written::Written;

/// The command line as one line of text, and where each override stands in it.
pub(crate) struct CommandLine {
    pub(crate) text: String,
    /// The bytes of each override, quotes excluded.
    pub(crate) overrides: Vec<std::ops::Range<usize>>,
}

impl CommandLine {
    /// The line that was typed, more or less: arguments with blanks in quotes.
    pub(crate) fn new(command: &str, overrides: &[String]) -> Self {
        // A line break would break the line; a blank is as long.
        let one_line = |text: &str| text.replace(['\n', '\r', '\t'], " ");
        let mut line = Self { text: one_line(command), overrides: Vec::new() };
        for written in overrides {
            let quote = if written.contains(char::is_whitespace) { "'" } else { "" };
            if !line.text.is_empty() {
                line.text.push(' ');
            }
            line.text += quote;
            let start = line.text.len();
            line.text += &one_line(written);
            line.overrides.push(start..line.text.len());
            line.text += quote;
        }
        line
    }
}

/// What an override asks for.
pub(crate) struct Override<'a> {
    path: Vec<(String, Span)>,
    action: Action<'a>,
}

enum Action<'a> {
    Set(Written<'a>),
    Delete,
}

/// Reads the override that stands at `range` of the command line.
pub(crate) fn parse<'a>(
    written: &'a str,
    line: &'a CommandLine,
    range: std::ops::Range<usize>,
    source: SourceId,
) -> Result<Override<'a>, Box<Diagnostic>> {
    let whole = Span::new(source, range.start, range.end);
    let (path, start, action) = if let Some(path) = written.strip_prefix('~') {
        (path, range.start + 1, Action::Delete)
    } else if let Some((path, value)) = written.split_once('=') {
        // Bytes of the line are those of the argument, except for line breaks.
        let span = Span::new(source, range.start + path.len() + 1, range.end);
        (path, range.start, Action::Set(Written { path, text: value, line: &line.text, span }))
    } else {
        let diagnostic = no_override(written, whole, "expected `key=value` or `~key`");
        return Err(Box::new(match written.split_once(':') {
            Some((path, value)) if is_path(path) => diagnostic.help(format!("write `{path}={}`", value.trim_start())),
            _ if written.ends_with(".yaml") || written.ends_with(".yml") => {
                diagnostic.help(format!("a config is named by an option: `--config {written}`"))
            }
            _ => diagnostic,
        }));
    };
    if !is_path(path) {
        let trimmed = written.split_once('=').filter(|(path, _)| is_path(path.trim()));
        let help = match trimmed {
            Some((path, value)) => format!("write `{}={}`", path.trim(), value.trim()),
            None => "a path is made of keys and list positions, such as `datasets.0.path`".to_owned(),
        };
        return Err(no_override(written, whole, "expected `key=value` or `~key`").help(help).into());
    }
    if path.starts_with('+') {
        return Err(no_override(written, whole, "keys are added without a `+`")
            .help(format!("write `{}`", written.trim_start_matches('+')))
            .into());
    }
    let mut at = start;
    let mut steps = Vec::new();
    for step in path.split('.') {
        let span = Span::new(source, at, at + step.len());
        if steps.len() == MAX_DEPTH {
            return Err(Diagnostic::error(Code::TOO_LARGE, "this path is longer than any in a config")
                .at(span, "the next key within another")
                .help(format!("a config has at most {MAX_DEPTH} levels"))
                .into());
        }
        steps.push((step.to_owned(), span));
        at += step.len() + 1;
    }
    Ok(Override { path: steps, action })
}

fn no_override(written: &str, span: Span, label: &str) -> Diagnostic {
    Diagnostic::error(codes::NO_OVERRIDE, format!("`{written}` is no override")).at(span, label)
}

/// Whether these are steps with dots between.
fn is_path(written: &str) -> bool {
    written.split('.').all(|step| !step.is_empty() && !step.contains(char::is_whitespace))
}

/// Puts a value and all that is in it at `span`.
pub(crate) fn relocate(node: &mut Node, span: Span) {
    node.span = span;
    match &mut node.value {
        Tree::List(items) => items.iter_mut().for_each(|item| relocate(item, span)),
        Tree::Map(entries) => {
            for entry in entries {
                entry.key_span = span;
                relocate(&mut entry.value, span);
            }
        }
        Tree::Scalar(_) | Tree::Reported => {}
    }
}
