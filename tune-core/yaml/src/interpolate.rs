//! `${a.b}`: what stands at `a.b`, counted from the root.
//!
//! Where the reference is the whole value, it stands for the value, be it a
//! number, a list or a mapping; within other text it stands for the text of a
//! scalar. `\${` is a `${` that means itself.

use std::collections::HashSet;
use std::ops::Range;

use crate::limits::{self, Budget};
use crate::{Code, Entry, Error, Node, Scalar, Span, Value, nearest};

/// Replaces every reference in `root`. A value with a wrong reference becomes
/// [`Value::Reported`], and each mistake is in the list once.
pub fn interpolate(root: Node) -> (Node, Vec<Error>) {
    let mut resolver = Resolver {
        root: &root,
        budget: Budget::new(),
        references: limits::REFERENCES,
        stack: Vec::new(),
        cycles: HashSet::new(),
        errors: Vec::new(),
        seen: HashSet::new(),
    };
    if !mentions(&root) {
        return (root, Vec::new());
    }
    let tree = resolver.node(&root, 0);
    let errors = std::mem::take(&mut resolver.errors);
    (tree, errors)
}

/// `text` such that [`interpolate`] gives it back.
pub fn escape_references(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let before = &rest[..at];
        let slashes = before.len() - before.trim_end_matches('\\').len();
        escaped += before;
        // The slashes twice, and one for the reference.
        escaped.extend(std::iter::repeat_n('\\', slashes + 1));
        escaped += "${";
        rest = &rest[at + 2..];
    }
    escaped + rest
}

fn mentions(node: &Node) -> bool {
    match &node.value {
        Value::Scalar(scalar) => scalar.text.contains("${"),
        Value::List(items) => items.iter().any(mentions),
        Value::Map(entries) => entries.iter().any(|entry| mentions(&entry.value)),
        Value::Reported => false,
    }
}

/// A piece of a text with references in it.
pub(crate) enum Piece<'t> {
    Text(String),
    /// The path of a reference, and the bytes of the text that it is written in.
    Reference(&'t str, Range<usize>),
}

/// Splits a text at its references; the mistake with the byte that it stands at.
pub(crate) fn pieces(text: &str) -> Result<Vec<Piece<'_>>, (&'static str, usize)> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let start = text.len() - rest.len() + at;
        let before = &rest[..at];
        let bare = before.trim_end_matches('\\');
        let slashes = before.len() - bare.len();
        let mut kept = format!("{bare}{}", "\\".repeat(slashes / 2));
        if slashes % 2 == 1 {
            kept += "${";
            pieces.push(Piece::Text(kept));
            rest = &rest[at + 2..];
            continue;
        }
        if !kept.is_empty() {
            pieces.push(Piece::Text(kept));
        }
        let inner = &rest[at + 2..];
        let end = inner.find('}').ok_or(("a `${` without its `}`", start))?;
        if inner[..end].contains("${") {
            return Err(("a reference within a reference", start));
        }
        pieces.push(Piece::Reference(inner[..end].trim(), start..start + "${}".len() + end));
        rest = &inner[end + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// The part of a scalar that the bytes `part` of its text are written in, where
/// it is written as it is: without escapes, or in a single piece at all.
fn part_of(scalar: &Scalar, span: Span, part: Range<usize>) -> Span {
    match (span.end - span.start).checked_sub(scalar.text.len()) {
        Some(0) => Span::new(span.source, span.start + part.start, span.start + part.end),
        Some(2) if scalar.quoted => Span::new(span.source, span.start + 1 + part.start, span.start + 1 + part.end),
        _ => span,
    }
}

/// The mistake has been put into the list.
struct Failed;

struct Resolver<'a> {
    root: &'a Node,
    budget: Budget,
    references: usize,
    /// The references that are being followed.
    stack: Vec<(String, Span)>,
    /// Cycles that have been reported, each as the sorted list of its members.
    cycles: HashSet<Vec<String>>,
    errors: Vec<Error>,
    /// The mistakes of `errors`.
    seen: HashSet<(Span, String)>,
}

impl Resolver<'_> {
    fn fail<T>(&mut self, error: Error) -> Result<T, Failed> {
        // The same reference may be met again through another one.
        if self.seen.insert((error.span, error.message.clone())) {
            self.errors.push(error);
        }
        Err(Failed)
    }

    /// `node` with its references replaced.
    fn node(&mut self, node: &Node, depth: usize) -> Node {
        let value = self.value(node, depth).unwrap_or(Value::Reported);
        Node { value, span: node.span }
    }

    fn value(&mut self, node: &Node, depth: usize) -> Result<Value, Failed> {
        if depth > limits::DEPTH {
            return self.fail(limits::too_deep(node.span));
        }
        Ok(match &node.value {
            Value::List(items) => Value::List(items.iter().map(|item| self.node(item, depth + 1)).collect()),
            Value::Map(entries) => Value::Map(
                entries
                    .iter()
                    .map(|entry| Entry {
                        key: entry.key.clone(),
                        key_span: entry.key_span,
                        value: self.node(&entry.value, depth + 1),
                    })
                    .collect(),
            ),
            Value::Scalar(scalar) if scalar.text.contains("${") => self.scalar(scalar, node.span, depth)?,
            other => other.clone(),
        })
    }

    fn scalar(&mut self, scalar: &Scalar, span: Span, depth: usize) -> Result<Value, Failed> {
        let pieces = match pieces(&scalar.text) {
            Ok(pieces) => pieces,
            Err((message, at)) => {
                let span = part_of(scalar, span, at..scalar.text.trim_end().len());
                let help = "close it with `}`, or write `\\${` for a `${` that means itself";
                return self.fail(Error::new(Code::REFERENCE, message, span).help(help));
            }
        };
        if let [Piece::Reference(path, part)] = &pieces[..] {
            return self.follow(path, part_of(scalar, span, part.clone()), depth);
        }
        let mut joined = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => joined += &text,
                Piece::Reference(path, part) => {
                    let part = part_of(scalar, span, part);
                    match self.follow(path, part, depth)? {
                        Value::Scalar(scalar) => joined += &scalar.text,
                        Value::Reported => return Err(Failed),
                        other => return self.fail(no_text(path, &other, part)),
                    }
                }
            }
            // Before the next piece, not after all of them.
            if joined.len() > limits::TEXT {
                return self.fail(Error::new(Code::TOO_LARGE, "references make this text too long", span));
            }
        }
        if let Err(error) = self.budget.value(joined.len(), span) {
            return self.fail(error);
        }
        Ok(Value::Scalar(Scalar::quoted(joined)))
    }

    /// What stands at `path`, with its own references replaced.
    fn follow(&mut self, path: &str, span: Span, depth: usize) -> Result<Value, Failed> {
        if let Some(error) = malformed(path, span) {
            return self.fail(error);
        }
        if let Some(at) = self.stack.iter().position(|(open, _)| open == path) {
            return self.cycle(at, span);
        }
        if self.references == 0 {
            return Err(Failed);
        }
        self.references -= 1;
        if self.references == 0 {
            let message = format!("more than {} references to follow", limits::REFERENCES);
            return self.fail(Error::new(Code::TOO_LARGE, message, span));
        }
        self.stack.push((path.to_owned(), span));
        let found = self.look_up(path, span, depth);
        self.stack.pop();
        found
    }

    fn look_up(&mut self, path: &str, span: Span, depth: usize) -> Result<Value, Failed> {
        let root = self.root;
        let mut at = root;
        let mut walked = String::new();
        for step in path.split('.') {
            if at.as_str().is_some_and(|text| text.contains("${")) {
                let value = self.value(at, depth + 1)?;
                let through = Node { value, span: at.span };
                // The rest of the way leads through a copy.
                return match descend(&through, &path[walked.len()..]) {
                    Ok(node) => Ok(node.value.clone()),
                    Err(Failed) => {
                        let message = format!("nothing stands at `{path}`");
                        self.fail(
                            Error::new(Code::UNKNOWN_REFERENCE, message, span)
                                .also(at.span, format!("`{walked}` stands here")),
                        )
                    }
                };
            }
            let next = match &at.value {
                Value::Map(_) => at.get(step).map(|entry| &entry.value),
                Value::List(items) => step.parse().ok().and_then(|index: usize| items.get(index)),
                Value::Reported => return Err(Failed),
                Value::Scalar(_) => None,
            };
            let Some(next) = next else {
                let error = unknown(path, &walked, step, at, span);
                return self.fail(error);
            };
            if !walked.is_empty() {
                walked.push('.');
            }
            walked += step;
            at = next;
        }
        if let Err(error) = self.budget.copy(at, span) {
            return self.fail(error);
        }
        self.value(at, depth + 1)
    }

    fn cycle<T>(&mut self, at: usize, span: Span) -> Result<T, Failed> {
        let members = &self.stack[at..];
        let mut names: Vec<String> = members.iter().map(|(path, _)| path.clone()).collect();
        names.sort();
        if !self.cycles.insert(names) {
            return Err(Failed);
        }
        let way: Vec<String> = members.iter().chain(&members[..1]).map(|(path, _)| format!("`{path}`")).collect();
        let mut error = Error::new(Code::CYCLE, format!("references in a cycle: {}", way.join(" -> ")), span)
            .label(format!("needs {}", way[0]))
            .help("one of them must be a value");
        for (path, place) in members.iter().filter(|(_, place)| *place != span) {
            error = error.also(*place, format!("needs `{path}`"));
        }
        self.fail(error)
    }
}

/// Walks `.a.b` (or `a.b`) without references on the way.
fn descend<'n>(mut node: &'n Node, path: &str) -> Result<&'n Node, Failed> {
    for step in path.split('.').filter(|step| !step.is_empty()) {
        node = match &node.value {
            Value::Map(_) => node.get(step).map(|entry| &entry.value),
            Value::List(items) => step.parse().ok().and_then(|index: usize| items.get(index)),
            _ => None,
        }
        .ok_or(Failed)?;
    }
    Ok(node)
}

/// A list or mapping within text.
fn no_text(path: &str, value: &Value, span: Span) -> Error {
    let message = format!("`${{{path}}}` is no text and cannot stand within text");
    let error = Error::new(Code::REFERENCE_IN_TEXT, message, span);
    let is_text = |node: &&Node| matches!(node.value, Value::Scalar(_));
    let first = match value {
        Value::Map(entries) => entries.iter().find(|entry| is_text(&&entry.value)).map(|entry| entry.key.clone()),
        Value::List(items) => items.iter().position(|item| is_text(&item)).map(|at| at.to_string()),
        Value::Scalar(_) | Value::Reported => None,
    };
    match first {
        Some(first) => error.help(format!("name a value in it, such as `${{{path}.{first}}}`")),
        None => error,
    }
}

fn malformed(path: &str, span: Span) -> Option<Error> {
    let written = format!("`${{{path}}}`");
    if let Some((resolver, of)) = path.split_once(':') {
        let message = format!("{written}: there are no resolvers such as `{resolver}:`");
        let variable = of.split(',').next().unwrap_or_default().trim();
        let help = match (resolver, variable) {
            ("oc.env", "HOME") => "at the beginning of a path write `~` for the home folder".to_owned(),
            ("oc.env", variable) => {
                format!("write the value, or give it on the command line, where a shell knows `${variable}`")
            }
            _ => "write the value, or give it on the command line".to_owned(),
        };
        return Some(Error::new(Code::REFERENCE, message, span).help(help));
    }
    if path.split('.').any(|step| step.trim().is_empty()) {
        let message = format!("{written} is not a path");
        return Some(
            Error::new(Code::REFERENCE, message, span).help("a reference names a key from the root, such as `${a.b}`"),
        );
    }
    None
}

fn unknown(path: &str, walked: &str, step: &str, at: &Node, span: Span) -> Error {
    let mut error = Error::new(Code::UNKNOWN_REFERENCE, format!("nothing stands at `{path}`"), span);
    let place = |step: &str| match walked {
        "" => step.to_owned(),
        _ => format!("{walked}.{step}"),
    };
    match &at.value {
        Value::Map(entries) => match nearest(step, entries.iter().map(|entry| entry.key.as_str())) {
            Some(near) => error = error.help(format!("did you mean `${{{}}}`?", place(near))),
            None => {
                error = error.help("a reference names a key that is written in the config, from the root");
            }
        },
        Value::List(items) => {
            let label = format!("a list of {}", items.len());
            error = error.also(at.span, label).help("its items are counted from 0");
        }
        _ => error = error.also(at.span, format!("`{walked}` is a single value")),
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SourceId, parse};

    fn resolve(text: &str) -> (Node, Vec<Error>) {
        interpolate(parse(text, SourceId(0)).unwrap())
    }

    fn at<'n>(node: &'n Node, key: &str) -> &'n Value {
        &node.get(key).unwrap().value.value
    }

    fn messages(text: &str) -> Vec<String> {
        resolve(text).1.iter().map(Error::to_string).collect()
    }

    #[test]
    fn whole_values_keep_their_type() {
        let (tree, errors) = resolve(
            "a: 3\nb: ${a}\nc: [x, {d: '${ a }'}]\ne: ${c.1.d}\nf: ${g.lr}\ng: ${h}\nh: {lr: 0.5}\ni: run-${a}/${c.0}\n",
        );
        assert_eq!(errors, []);
        assert_eq!(at(&tree, "b"), &Value::Scalar(Scalar::plain("3")));
        assert_eq!(at(&tree, "e"), &Value::Scalar(Scalar::plain("3")));
        assert_eq!(at(&tree, "f"), &Value::Scalar(Scalar::plain("0.5")));
        assert!(matches!(at(&tree, "g"), Value::Map(entries) if entries.len() == 1));
        assert_eq!(at(&tree, "i"), &Value::Scalar(Scalar::quoted("run-3/x")));
    }

    #[test]
    fn escapes_round_trip() {
        let (tree, errors) = resolve(r"{a: 1, b: 'x\${a}', c: '\\${a}', d: '\\\${a}'}");
        assert_eq!(errors, []);
        for (key, text) in [("b", "x${a}"), ("c", r"\1"), ("d", r"\${a}")] {
            assert_eq!(at(&tree, key), &Value::Scalar(Scalar::quoted(text)), "{key}");
        }
        for text in ["${a}", r"\${a}", r"\\${", "$ {a}", "a${b}c${d}", r"\", "${${"] {
            let node = Node {
                value: Value::Scalar(Scalar::quoted(escape_references(text))),
                span: Span::new(SourceId(0), 0, 0),
            };
            let (back, errors) = interpolate(node);
            assert_eq!(errors, []);
            assert_eq!(back.as_str(), Some(text));
        }
    }

    #[test]
    fn cycles_are_shown_once() {
        assert_eq!(
            messages("a: ${b}\nb: x${c}\nc: ${a}\n"),
            ["references in a cycle: `b` -> `c` -> `a` -> `b` (one of them must be a value)"]
        );
        assert_eq!(messages("a: ${a}\n"), ["references in a cycle: `a` -> `a` (one of them must be a value)"]);
        assert_eq!(messages("a: {b: {c: '${a.b}'}}\n").len(), 1);
        assert_eq!(messages("a: {b: '${a.c}', c: 1}\n"), [""; 0]);
        assert_eq!(messages("a: ${a.b}\n").len(), 1);
    }

    #[test]
    fn unknown_references_name_the_nearest_key() {
        assert_eq!(
            messages("model: {rank: 8}\na: ${model.rnak}\nb: ${modle}\nc: ${model.rank.x}\n"),
            [
                "nothing stands at `model.rnak` (did you mean `${model.rank}`?)",
                "nothing stands at `modle` (did you mean `${model}`?)",
                "nothing stands at `model.rank.x`",
            ]
        );
        assert_eq!(messages("a: ${oc.env:HOME}").len(), 1);
        assert_eq!(
            messages("a: ${"),
            ["a `${` without its `}` (close it with `}`, or write `\\${` for a `${` that means itself)"]
        );
        assert_eq!(messages("a: ${}").len(), 1);
        assert_eq!(messages("a: ${.b}\nb: 1").len(), 1);
        assert_eq!(messages("a: [1]\nb: x${a}").len(), 1);
        assert_eq!(messages("a: [1]\nb: ${a.1}"), ["nothing stands at `a.1` (its items are counted from 0)"]);
        assert_eq!(messages("a: ${b}\nb: {c: 1}\nd: ${a.x}").len(), 1);
    }

    #[test]
    fn bombs_are_refused() {
        let mut text = "a0: x\n".to_owned();
        for level in 1..40 {
            text += &format!("a{level}: ${{a{0}}}${{a{0}}}\n", level - 1);
        }
        assert!(!messages(&text).is_empty());
        let mut text = "a0: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
        for level in 1..10 {
            let references = vec![format!("\"${{a{}}}\"", level - 1); 10].join(", ");
            text += &format!("a{level}: [{references}]\n");
        }
        assert!(!messages(&text).is_empty());
    }
}
