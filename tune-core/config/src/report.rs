//! What is wrong with a config, shown at the place where it was written.

use std::borrow::Cow;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level as Snippet_Level, Renderer, Snippet};
use tune_yaml::{SourceId, Span};

use crate::check::Finding;
use crate::codes::{self, Code};
use crate::tree::Tree;
use crate::value::Origin;

/// The texts that a config was put together from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    texts: Vec<Source>,
}

#[derive(Debug, Clone)]
struct Source {
    name: String,
    text: String,
}

/// The source of what nobody wrote.
pub(crate) const DEFAULTS: SourceId = SourceId(u16::MAX);

impl Sources {
    /// Adds a text, under the name that messages give it.
    pub(crate) fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> SourceId {
        let id = SourceId(u16::try_from(self.texts.len()).unwrap_or(u16::MAX));
        // A name stands on a line of its own, and in comments.
        let name: String = name.into();
        let printable = |c: char| if c.is_control() { '?' } else { c };
        self.texts.push(Source { name: name.chars().map(printable).collect(), text: text.into() });
        id
    }

    fn get(&self, id: SourceId) -> Option<&Source> {
        self.texts.get(usize::from(id.0))
    }

    pub(crate) fn name(&self, id: SourceId) -> &str {
        self.get(id).map_or("", |source| &source.name)
    }

    pub(crate) fn text(&self, id: SourceId) -> &str {
        self.get(id).map_or("", |source| &source.text)
    }

    /// Where a value comes from, in words: `lora.yaml:3:7`, `command line`, `default`.
    pub fn origin(&self, origin: Origin) -> String {
        let Origin::Written(span) = origin else {
            return "default".to_owned();
        };
        match self.get(span.source) {
            Some(source) if source.name == COMMAND_LINE => COMMAND_LINE.to_owned(),
            Some(source) => {
                let at = span.position(&source.text);
                format!("{}:{}:{}", source.name, at.line, at.column)
            }
            None => "default".to_owned(),
        }
    }
}

/// The name of the command line among the sources.
pub(crate) const COMMAND_LINE: &str = "command line";

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The config cannot be used.
    Error,
    /// It can, but not all of it has an effect.
    Warning,
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    /// How bad it is.
    pub level: Level,
    /// Which kind of mistake it is, see [`codes`](crate::codes).
    pub code: Option<Code>,
    /// What is wrong.
    pub message: String,
    /// Where, with a few words for the caret.
    pub primary: Option<(Span, String)>,
    /// Other places that matter.
    pub secondary: Vec<(Span, String)>,
    /// Facts: the valid keys, the choices.
    pub notes: Vec<String>,
    /// What to do.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// An error of a kind, without a place.
    pub fn error(code: Code, message: impl Into<String>) -> Self {
        Self {
            level: Level::Error,
            code: Some(code),
            message: message.into(),
            primary: None,
            secondary: Vec::new(),
            notes: Vec::new(),
            help: Vec::new(),
        }
    }

    /// A warning without a place.
    pub fn warning(message: impl Into<String>) -> Self {
        Self { level: Level::Warning, code: None, ..Self::error(codes::REFUSED, message) }
    }

    /// With its place.
    #[must_use]
    pub fn at(mut self, span: Span, label: impl Into<String>) -> Self {
        self.primary = Some((span, label.into()));
        self
    }

    /// With another place.
    #[must_use]
    pub fn also(mut self, span: Span, label: impl Into<String>) -> Self {
        self.secondary.push((span, label.into()));
        self
    }

    /// With a fact.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// With advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }
}

impl From<tune_yaml::Error> for Diagnostic {
    fn from(error: tune_yaml::Error) -> Self {
        Self {
            secondary: error.labels,
            help: error.help.into_iter().map(String::from).collect(),
            ..Self::error(error.code, error.message).at(error.span, error.label)
        }
    }
}

impl Diagnostic {
    /// A mistake of a tree.
    pub(crate) fn of(finding: &Finding<'_>, tree: Tree<'_>) -> Self {
        let said = finding.describe(tree);
        let lines = |text: &str| text.lines().map(str::to_owned).collect();
        let mut diagnostic = Self {
            notes: lines(said.notes.as_str()),
            help: lines(said.help.as_str()),
            ..Self::error(said.code, said.message.as_str())
        };
        // Of what nobody wrote there is nothing to show.
        if finding.span.source != DEFAULTS {
            diagnostic = diagnostic.at(finding.span, said.label.as_str());
        }
        match said.also {
            Some((span, label)) => diagnostic.also(span, label),
            None => diagnostic,
        }
    }
}

/// Everything that is wrong with a config.
///
/// Shown by [`Report::render`]; [`Display`](std::fmt::Display) is the same
/// without colour.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The texts that the spans point into.
    pub sources: Sources,
    /// What is wrong, in the order of the text.
    pub diagnostics: Vec<Diagnostic>,
    /// Mistakes that are not listed: there are too many.
    pub more: usize,
}

/// More than this many and nobody reads on.
pub(crate) const SHOWN: usize = 20;

impl Report {
    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.diagnostics.is_empty()
    }

    /// The report as text for a terminal, with colour or without.
    pub fn render(&self, color: bool) -> String {
        let renderer = match color {
            true => Renderer::styled(),
            false => Renderer::plain(),
        };
        let renderer = renderer.decor_style(DecorStyle::Ascii);
        let mut text = String::new();
        for diagnostic in self.diagnostics.iter().take(SHOWN) {
            text += &self.one(diagnostic, &renderer);
            text += "\n\n";
        }
        let errors = self.diagnostics.iter().filter(|d| d.level == Level::Error).count() + self.more;
        let left = self.diagnostics.len().saturating_sub(SHOWN) + self.more;
        if left > 0 {
            text += &format!("... and {left} more\n\n");
        }
        if errors > 1 {
            text += &format!("error: {errors} mistakes in the config\n");
        } else {
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    fn one(&self, diagnostic: &Diagnostic, renderer: &Renderer) -> String {
        let level = match diagnostic.level {
            Level::Error => Snippet_Level::ERROR,
            Level::Warning => Snippet_Level::WARNING,
        };
        let code = diagnostic.code.map(|code| code.to_string());
        let message = cut(&diagnostic.message, MESSAGE);
        let title = level.primary_title(&*message);
        let mut group = Group::with_title(match &code {
            Some(code) => title.id(code.as_str()),
            None => title,
        });
        // One snippet for each text, the one with the caret first.
        let mut places: Vec<(SourceId, Vec<Place<'_>>)> = Vec::new();
        let primary = diagnostic.primary.iter().map(|(span, label)| (span, label, AnnotationKind::Primary));
        let others = diagnostic.secondary.iter().map(|(span, label)| (span, label, AnnotationKind::Context));
        for (span, label, kind) in primary.chain(others) {
            let place = (span, label.as_str(), kind);
            match places.iter_mut().find(|(source, _)| *source == span.source) {
                Some((_, list)) => list.push(place),
                None => places.push((span.source, vec![place])),
            }
        }
        for (id, list) in places {
            let Some(source) = self.sources.get(id) else {
                continue;
            };
            let annotations = list.into_iter().map(|(span, label, kind)| {
                kind.span(first_line(&source.text, span)).label((!label.is_empty()).then_some(label))
            });
            group = group
                .element(Snippet::source(source.text.as_str()).path(source.name.as_str()).annotations(annotations));
        }
        for note in &diagnostic.notes {
            group = group.element(Snippet_Level::NOTE.message(cut(note, REMARK)));
        }
        for help in &diagnostic.help {
            group = group.element(Snippet_Level::HELP.message(cut(help, REMARK)));
        }
        renderer.render(&[group])
    }
}

/// The bytes of a message that are shown, and of a remark: keys and values in them may be of any length.
const MESSAGE: usize = 600;
const REMARK: usize = 4096;

/// The beginning of a text that is too long.
fn cut(text: &str, limit: usize) -> Cow<'_, str> {
    match text.len() <= limit {
        true => text.into(),
        false => format!("{} ...", &text[..text.floor_char_boundary(limit)]).into(),
    }
}

/// A span, the words for it, and whether it is the one with the caret.
type Place<'a> = (&'a Span, &'a str, AnnotationKind);

/// The part of a span on its first line: a caret below a whole mapping would
/// show the whole mapping. Within the text, whatever the span says.
fn first_line(text: &str, span: &Span) -> std::ops::Range<usize> {
    let boundary = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = boundary(span.start);
    let end = boundary(span.end).max(start);
    let line = text[start..end].find('\n').map_or(end, |newline| start + newline);
    start..line
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for Report {}
