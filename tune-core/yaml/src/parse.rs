//! YAML events to a tree. The only place that knows the parser.

use std::collections::HashMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, Tag};

use crate::limits::{self, Budget};
use crate::syntax::Stop;
use crate::{Code, Entry, Error, Node, Scalar, SourceId, Span, Value};

/// Reads the one document of `text`, with anchors, aliases and merge keys
/// resolved. A text without a document is a null.
///
/// # Errors
/// What is not YAML; a key that is written twice; tags other than the core
/// ones; more than one document; more than 1 MiB of text, 64 levels, or 16 MiB
/// of values.
pub fn parse(text: &str, source: SourceId) -> Result<Node, Error> {
    parse_noting(text, source).map(|(root, _)| root)
}

/// An outermost key, or the root where a value is merged into it, and the outermost key that it has an alias of a value
/// of.
pub type Alias = (Option<String>, String);

/// The same, with who has an alias of what, which the tree does not tell: a copy of the value is in its place.
///
/// # Errors
/// As for [`parse`].
pub fn parse_noting(text: &str, source: SourceId) -> Result<(Node, Vec<Alias>), Error> {
    if text.len() > limits::TEXT {
        let message = format!("more than {} KiB of YAML", limits::TEXT >> 10);
        return Err(Error::new(Code::TOO_LARGE, message, Span::new(source, 0, 0)).help("this is no config"));
    }
    Reader::new(text, source).document()
}

/// Reads `text[start..]` of a larger text, up to `end`, as a document of its
/// own; its spans are those of the larger text. For the value of an override.
///
/// # Errors
/// As for [`parse`].
pub fn parse_value(text: &str, start: usize, end: usize, source: SourceId) -> Result<Node, Error> {
    let part = text.get(start..end).unwrap_or_default();
    let mut node = parse(part, source).map_err(|mut error| {
        shift(&mut error.span, start);
        for (span, _) in &mut error.labels {
            shift(span, start);
        }
        error
    })?;
    shift_node(&mut node, start);
    Ok(node)
}

fn shift(span: &mut Span, by: usize) {
    span.start += by;
    span.end += by;
}

fn shift_node(node: &mut Node, by: usize) {
    shift(&mut node.span, by);
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| shift_node(item, by)),
        Value::Map(entries) => {
            for entry in entries {
                shift(&mut entry.key_span, by);
                shift_node(&mut entry.value, by);
            }
        }
        Value::Scalar(_) | Value::Reported => {}
    }
}

/// A collection that is still open.
struct Open {
    anchor: usize,
    start: usize,
    items: Items,
}

enum Items {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<(Scalar, Span)>, merges: Vec<Node> },
}

struct Reader<'a> {
    text: &'a str,
    source: SourceId,
    budget: Budget,
    open: Vec<Open>,
    /// Complete nodes by anchor; `None` while the node is still open.
    anchors: HashMap<usize, Option<Node>>,
    root: Option<Node>,
    /// The outermost keys in which anchors are.
    homes: HashMap<usize, String>,
    aliases: Vec<Alias>,
    /// Where the mapping begins that was closed last.
    closed: Option<usize>,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str, source: SourceId) -> Self {
        let (open, anchors) = (Vec::new(), HashMap::new());
        let (homes, aliases) = (HashMap::new(), Vec::new());
        Self { text, source, budget: Budget::new(), open, anchors, root: None, homes, aliases, closed: None }
    }

    fn document(mut self) -> Result<(Node, Vec<Alias>), Error> {
        let mut options = Options::default();
        options.set_emit_comments(false);
        for event in Parser::new_from_str_with_options(self.text, options) {
            let (event, span) = event.map_err(|error| self.syntax(&error))?;
            let range = span.byte_range().unwrap_or(0..0);
            let span = self.span(range.start, range.end);
            self.event(event, span)?;
        }
        let end = self.text.trim_end().len();
        Ok((self.root.unwrap_or_else(|| Node::plain("", Span::new(self.source, 0, end))), self.aliases))
    }

    /// A span without the line breaks that the parser counts in.
    fn span(&self, start: usize, end: usize) -> Span {
        let end = end.min(self.text.len());
        let start = start.min(end);
        let written = self.text.get(start..end).unwrap_or_default();
        Span::new(self.source, start, start + written.trim_end().len())
    }

    fn syntax(&self, error: &granit_parser::ScanError) -> Error {
        let open = self.open.iter().map(|open| open.start).collect();
        Stop { text: self.text, source: self.source, open, closed: self.closed }.error(error)
    }

    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Error> {
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                Err(Error::new(Code::SECOND_DOCUMENT, "a second document", span)
                    .help("a config is one document; remove the `---` between the two"))
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.budget.value(text.len(), span)?;
                let quoted = match tag {
                    Some(tag) => self.scalar_tag(&tag, span)?,
                    None => style != ScalarStyle::Plain,
                };
                // The parser writes `~` for a value that was left out.
                let text = if !quoted && span.start == span.end { String::new() } else { text.into_owned() };
                self.node(anchor, Node { value: Value::Scalar(Scalar { text, quoted }), span })
            }
            Event::Alias(id) => {
                let node = match self.anchors.get(&id) {
                    Some(Some(node)) => node.clone(),
                    Some(None) => {
                        return Err(Error::new(Code::ALIAS, "an alias of the very value that it stands in", span)
                            .help("such a value would have no end"));
                    }
                    None => return Err(Error::new(Code::ALIAS, "an alias without its anchor", span)),
                };
                if let Some(home) = self.homes.get(&id) {
                    let user = self.outermost().filter(|key| key.quoted || key.text != "<<" || self.open.len() > 1);
                    self.aliases.push((user.map(|key| key.text.clone()), home.clone()));
                }
                self.budget.copy(&node, span)?;
                if self.open.len() + limits::depth(&node) > limits::DEPTH {
                    return Err(limits::too_deep(span));
                }
                self.node(0, Node { span, ..node })
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.collection_tag(tag.as_deref(), "seq", span)?;
                self.start(anchor, span, Items::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.collection_tag(tag.as_deref(), "map", span)?;
                let items = Items::Map { entries: Vec::new(), key: None, merges: Vec::new() };
                self.start(anchor, span, items)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(span),
            _ => Ok(()),
        }
    }

    /// Whether a scalar with this tag is text.
    fn scalar_tag(&self, tag: &Tag, span: Span) -> Result<bool, Error> {
        match tag.core_suffix() {
            Some("str") => Ok(true),
            Some("int" | "float" | "bool" | "null") => Ok(false),
            _ => Err(self.unknown_tag(tag, span)),
        }
    }

    fn collection_tag(&self, tag: Option<&Tag>, expected: &str, span: Span) -> Result<(), Error> {
        match tag {
            Some(tag) if tag.core_suffix() != Some(expected) => Err(self.unknown_tag(tag, span)),
            _ => Ok(()),
        }
    }

    /// The place is that of the tag, which stands before its value.
    fn unknown_tag(&self, tag: &Tag, value: Span) -> Error {
        let written = tag.original();
        let at = self.text.get(..value.start).and_then(|before| before.rfind(written.as_str()));
        let span = at.map_or(value, |at| Span::new(self.source, at, at + written.len()));
        Error::new(Code::TAG, format!("the tag `{written}` has no meaning here"), span).help("remove it")
    }

    fn start(&mut self, anchor: usize, span: Span, items: Items) -> Result<(), Error> {
        self.budget.value(0, span)?;
        if self.open.len() >= limits::DEPTH {
            return Err(limits::too_deep(span));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, None);
        }
        self.open.push(Open { anchor, start: span.start, items });
        Ok(())
    }

    fn end(&mut self, span: Span) -> Result<(), Error> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let span = self.span(open.start, span.end.max(span.start));
        let value = match open.items {
            Items::List(items) => Value::List(items),
            Items::Map { entries, merges, .. } => {
                self.closed = Some(open.start);
                Value::Map(self.merge(entries, merges)?)
            }
        };
        self.node(open.anchor, Node { value, span })
    }

    /// The outermost key whose value is being read.
    fn outermost(&self) -> Option<&Scalar> {
        match self.open.first().map(|open| &open.items) {
            Some(Items::Map { key: Some((key, _)), .. }) => Some(key),
            _ => None,
        }
    }

    /// Puts a complete node where it belongs.
    fn node(&mut self, anchor: usize, node: Node) -> Result<(), Error> {
        if anchor != 0 {
            if let Some(key) = self.outermost().map(|key| key.text.clone()) {
                self.homes.insert(anchor, key);
            }
            self.budget.copy(&node, node.span)?;
            self.anchors.insert(anchor, Some(node.clone()));
        }
        match self.open.last_mut().map(|open| &mut open.items) {
            None => self.root = Some(node),
            Some(Items::List(items)) => items.push(node),
            Some(Items::Map { entries, key, merges }) => match key.take() {
                None => match node.value {
                    Value::Scalar(scalar) if !scalar.quoted && scalar.text.starts_with(char::is_whitespace) => {
                        return Err(Error::new(Code::TAB, "this is no space to YAML", node.span)
                            .label("begins with a blank of another kind")
                            .help("use spaces"));
                    }
                    Value::Scalar(scalar) => *key = Some((scalar, node.span)),
                    _ => {
                        return Err(Error::new(Code::KEY, "a key must be a name", node.span).label("not a name"));
                    }
                },
                Some((name, _)) if !name.quoted && name.text == "<<" => merges.push(node),
                Some((key, key_span)) => entries.push(Entry { key: key.text, key_span, value: node }),
            },
        }
        Ok(())
    }

    /// The entries of a mapping with those of its merge keys: what is written
    /// wins over what is merged, what is merged first over what comes later.
    fn merge(&mut self, entries: Vec<Entry>, merges: Vec<Node>) -> Result<Vec<Entry>, Error> {
        let mut written: HashMap<&str, Span> = HashMap::with_capacity(entries.len());
        for entry in &entries {
            if let Some(first) = written.insert(&entry.key, entry.key_span) {
                return Err(Error::new(
                    Code::DUPLICATE_KEY,
                    format!("the key `{}` is written twice", entry.key),
                    entry.key_span,
                )
                .label("again here")
                .also(first, "first written here")
                .help("remove one of the two"));
            }
        }
        if merges.is_empty() {
            return Ok(entries);
        }
        let mut merged = Vec::new();
        let mut seen: std::collections::HashSet<String> = written.into_keys().map(str::to_owned).collect();
        for node in merges {
            let maps = match node.value {
                Value::List(maps) => maps,
                _ => vec![node],
            };
            for map in maps {
                let Value::Map(others) = map.value else {
                    return Err(Error::new(Code::MERGE, "a merge of something that is no mapping", map.span)
                        .label("not a mapping")
                        .help("`<<` merges mappings only"));
                };
                merged.extend(others.into_iter().filter(|entry| seen.insert(entry.key.clone())));
            }
        }
        merged.extend(entries);
        Ok(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Node {
        parse(text, SourceId(0)).unwrap()
    }

    /// The message and the text at its span.
    fn refused(text: &str) -> (String, &str) {
        let error = parse(text, SourceId(0)).unwrap_err();
        (error.message, &text[error.span.start..error.span.end])
    }

    /// The tree as one line: `{a: 1, b: [x, "1"]}`.
    fn show(node: &Node) -> String {
        match &node.value {
            Value::Scalar(scalar) if scalar.quoted => format!("{:?}", scalar.text),
            Value::Scalar(scalar) => scalar.text.clone(),
            Value::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
            Value::Map(entries) => {
                let entries: Vec<_> = entries.iter().map(|e| format!("{}: {}", e.key, show(&e.value))).collect();
                format!("{{{}}}", entries.join(", "))
            }
            Value::Reported => "!".to_owned(),
        }
    }

    #[test]
    fn values_know_where_they_are() {
        let text = "# ü\nmodel:\n  name: \"tiny\"\n  sizes:\n  - 1\n  - 22\nlast: x\n";
        let tree = read(text);
        let model = tree.get("model").unwrap();
        assert_eq!(&text[model.value.span.start..model.value.span.end], "name: \"tiny\"\n  sizes:\n  - 1\n  - 22");
        let Value::List(sizes) = &model.value.get("sizes").unwrap().value.value else { panic!() };
        let at = sizes[1].span.position(text);
        assert_eq!((at.line, at.column), (6, 5));
        let at = tree.get("last").unwrap().key_span.position(text);
        assert_eq!((at.line, at.column), (7, 1));
    }

    #[test]
    fn anchors_aliases_and_merges() {
        let text = "base: &b {lr: 1, wd: 2}\nother: &o {wd: 3, x: 4}\n\
                    one:\n  <<: *b\n  lr: 5\ntwo: {<<: [*o, *b], y: 6}\ncopy: *b\nlist: [&n 7, *n]\n";
        let tree = read(text);
        let at = |key| show(&tree.get(key).unwrap().value);
        assert_eq!(at("one"), "{wd: 2, lr: 5}");
        assert_eq!(at("two"), "{wd: 3, x: 4, lr: 1, y: 6}");
        assert_eq!(at("copy"), "{lr: 1, wd: 2}");
        assert_eq!(at("list"), "[7, 7]");
        let copy = &tree.get("copy").unwrap().value.span;
        assert_eq!(&text[copy.start..copy.end], "*b");
        assert_eq!(show(&read("'<<': 1")), "{<<: 1}");
        assert_eq!(refused("a: 1\nb:\n  <<: 2\n"), ("a merge of something that is no mapping".into(), "2"));
    }

    #[test]
    fn scalars_keep_their_text() {
        assert_eq!(show(&read("[a, 'b', \"c\\n\", 1.10, ]")), r#"[a, "b", "c\n", 1.10]"#);
        assert_eq!(show(&read("a: |\n  x\n  y\nb:\nc: !!str 1\n")), r#"{a: "x\ny\n", b: , c: "1"}"#);
    }

    #[test]
    fn empty_texts() {
        for text in ["", "\n", "# nothing\n", "---\n", "---\n...\n"] {
            assert!(read(text).is_null(), "{text:?}");
        }
    }

    #[test]
    fn what_is_refused() {
        let text = "a: 1\nb: 2\na: 3\n";
        let error = parse(text, SourceId(0)).unwrap_err();
        assert_eq!(error.message, "the key `a` is written twice");
        assert_eq!((error.span.start, error.labels[0].0.start), (10, 0));

        assert_eq!(refused("a:\n  b: 1\n\tc: 2\n"), ("a tab cannot indent YAML".into(), "\t"));
        assert_eq!(refused("a:\n\t- 1\n"), ("a tab cannot indent YAML".into(), "\t"));
        assert_eq!(refused("a: 1\n---\nb: 2\n").0, "a second document");
        assert_eq!(
            refused("a: !python/object x\n"),
            ("the tag `!python/object` has no meaning here".into(), "!python/object")
        );
        assert_eq!(refused("a: *nowhere\n"), ("an alias without its anchor".into(), "*"));
        assert_eq!(refused("a: &x [*x]\n"), ("an alias of the very value that it stands in".into(), "*x"));
        assert_eq!(refused("? [1]\n: 2\n"), ("a key must be a name".into(), "[1]"));
        assert_eq!(refused("a: [1, 2\nb: 3\n").0.split(':').next(), Some("this is not YAML"));
        assert_eq!(refused("a: \"x\n").0.split(':').next(), Some("this is not YAML"));
    }

    #[test]
    fn bombs_are_refused() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            text += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        assert_eq!(refused(&text).0, "aliases or references make this config too large");
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 1000].join(", "));
        assert_eq!(refused(&long).0, "aliases or references make this config too large");

        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert_eq!(refused(&deep).0, "more than 64 levels of nesting");
        let mut aliased = "a0: &a0 [[[[[[[[[[x]]]]]]]]]]\n".to_owned();
        for level in 1..9 {
            aliased += &format!("a{level}: &a{level} [[[[[[[[[[*a{}]]]]]]]]]]\n", level - 1);
        }
        assert_eq!(refused(&aliased).0, "more than 64 levels of nesting");
        assert_eq!(refused(&"a".repeat(2 << 20)).0, "more than 1024 KiB of YAML");
    }

    #[test]
    fn values_within_a_larger_text() {
        let text = "lora a=[1, {b: 2}]";
        let node = parse_value(text, 7, text.len(), SourceId(1)).unwrap();
        assert_eq!(show(&node), "[1, {b: 2}]");
        assert_eq!(&text[node.span.start..node.span.end], "[1, {b: 2}]");
        let error = parse_value("x a=[1", 4, 6, SourceId(1)).unwrap_err();
        assert!(error.span.start >= 4);
    }
}
