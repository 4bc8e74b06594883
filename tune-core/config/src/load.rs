//! Text and overrides to a typed config.

use std::collections::btree_map::Entry;

use tune_yaml::{Node, Referred, SourceId, Span};

use crate::check::{Findings, check};
use crate::overrides::{self, CommandLine};
use crate::report::{COMMAND_LINE, DEFAULTS, Diagnostic, Level, Report, SHOWN, Sources};
use crate::resolve::resolve;
use crate::schema::Ignored;
use crate::torchtune::{Dropped, Translation, translate};
use crate::tree::{Tree, borrowed, flatten};
use crate::value::{Origin, Value};
use crate::{Config, Schema, codes, emit};

/// What a config is made of.
#[derive(Debug, Clone, Default)]
pub struct Input {
    file: Option<(String, String)>,
    command: String,
    overrides: Vec<String>,
}

impl Input {
    /// Defaults only.
    pub fn new() -> Self {
        Self::default()
    }

    /// The text of a YAML file and the name that messages give it.
    pub fn yaml(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { file: Some((name.into(), text.into())), ..Self::default() }
    }

    /// The text of the YAML file.
    pub(crate) fn text(&self) -> Option<&str> {
        self.file.as_ref().map(|(_, text)| &**text)
    }

    /// `key=value` and `~key`, in this order, after those that are there.
    #[must_use]
    pub fn overrides(mut self, overrides: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.overrides.extend(overrides.into_iter().map(Into::into));
        self
    }

    /// What stood before the overrides on the command line, for messages.
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.command = command.into();
        self
    }
}

/// A config that has been checked.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    /// The config.
    pub config: T,
    /// The same with its origins, to be written beside the results.
    pub resolved: ResolvedConfig,
    /// What was written and has no effect.
    pub warnings: Report,
}

/// A checked config as a whole, whatever its type: every key with its value
/// and the value's origin. A recipe asks for it with a parameter that is
/// marked `#[config(resolved)]`, and writes it beside its results.
#[derive(Debug, Clone)]
pub struct ResolvedConfig {
    value: Value,
    sources: Sources,
}

impl ResolvedConfig {
    /// The config as YAML that can be run again as it is.
    pub fn to_yaml(&self) -> String {
        emit::yaml(&self.value, None)
    }

    /// The same with each value's origin in a comment.
    pub fn to_yaml_with_origins(&self) -> String {
        emit::yaml(&self.value, Some(&self.sources))
    }

    /// The value.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Where a value of [`Self::value`] comes from: `lora.yaml:3:7`,
    /// `command line`, `default`.
    pub fn origin(&self, value: &Value) -> String {
        self.sources.origin(value.origin)
    }
}

/// The texts of an input put together, and what is wrong with them as texts.
pub(crate) struct Read {
    sources: Sources,
    root: Node,
    /// The outermost keys that others refer to.
    referred: Referred,
    command_line: SourceId,
    diagnostics: Vec<Diagnostic>,
    /// Warnings about keys that a newly chosen component lacks.
    left_out: Vec<Diagnostic>,
    /// What is torchtune's way of writing, and became ours.
    pub(crate) translation: Translation,
}

pub(crate) fn read(schema: &Schema, input: Input) -> Result<Read, Report> {
    let mut sources = Sources::default();
    let (mut diagnostics, mut left_out) = (Vec::new(), Vec::new());
    let line = CommandLine::new(&input.command, &input.overrides);
    let has_file = input.file.is_some();
    let (name, text) = input.file.unwrap_or_default();
    let file = sources.add(name, text);
    let command_line = sources.add(COMMAND_LINE, line.text.as_str());

    if sources.text(file).len() > tune_yaml::MAX_TEXT {
        // Not to be shown.
        let limit = tune_yaml::MAX_TEXT >> 10;
        let message = format!("{} is no config: it has more than {limit} KiB", sources.name(file));
        let diagnostics = vec![Diagnostic::error(codes::Code::TOO_LARGE, message)];
        return Err(Report { sources, diagnostics, more: 0 });
    }
    let (mut root, aliases) = match tune_yaml::parse_noting(sources.text(file), file) {
        Ok(parsed) => parsed,
        Err(error) => {
            diagnostics.push(error.into());
            (Node { value: tune_yaml::Value::Reported, span: Span::new(file, 0, 0) }, Vec::new())
        }
    };
    if root.is_null() && !has_file {
        root.value = tune_yaml::Value::Map(Vec::new());
        root.span = Span::new(command_line, 0, line.text.len());
    }
    // Also what an override takes the place of: it does not make a mistake of the keys that it was made of.
    let mut referred = tune_yaml::referred(&root, &aliases);
    for (written, range) in input.overrides.iter().zip(&line.overrides) {
        let applied = overrides::parse(written, &line, range.clone(), command_line)
            .and_then(|with| overrides::apply(schema, &mut root, &with));
        match applied {
            Ok(warning) => left_out.extend(warning),
            Err(diagnostic) => diagnostics.push(*diagnostic),
        }
    }
    for (key, by) in tune_yaml::referred(&root, &aliases) {
        // Needed in any case, before or after.
        match referred.entry(key) {
            Entry::Vacant(entry) => _ = entry.insert(by),
            Entry::Occupied(mut entry) if by.is_empty() => entry.get_mut().clear(),
            Entry::Occupied(mut entry) if !entry.get().is_empty() => entry.get_mut().extend(by),
            Entry::Occupied(_) => {}
        }
    }
    let (mut root, mistakes) = tune_yaml::interpolate(root);
    diagnostics.extend(mistakes.into_iter().map(Diagnostic::from));
    let translation = translate(schema, &mut root, sources.text(file), file);
    Ok(Read { sources, root, referred, command_line, diagnostics, left_out, translation })
}

/// What an input comes to as far as it is right, for help.
pub(crate) fn explore(schema: &Schema, input: Input) -> Result<(Option<Value>, Sources), Report> {
    let Read { sources, mut root, referred, command_line, .. } = read(schema, input)?;
    if matches!(root.value, tune_yaml::Value::Reported) {
        root.value = tune_yaml::Value::Map(Vec::new());
    }
    let referred = borrowed(&referred);
    let items = flatten(&root, &referred, &|span| span.source == command_line);
    Ok((resolve(schema, Tree(&items)).value, sources))
}

/// Reads, merges, resolves and checks a config.
///
/// # Errors
/// Everything that is wrong with it, at once.
pub fn load<T: Config>(input: Input) -> Result<Loaded<T>, Report> {
    let Read { sources, root, referred, command_line, mut diagnostics, left_out, translation } =
        read(&T::SCHEMA, input)?;
    let is_error = |diagnostic: &Diagnostic| diagnostic.level == Level::Error;
    let (errors, other_warnings): (Vec<_>, Vec<_>) = translation.diagnostics.into_iter().partition(is_error);
    diagnostics.extend(errors);
    let referred = borrowed(&referred);
    let items = flatten(&root, &referred, &|span| span.source == command_line);
    let tree = Tree(&items);
    let found: Findings<'_, SHOWN> = check(&T::SCHEMA, tree);
    let shown = (0..SHOWN).map_while(|index| found.get(index));
    diagnostics.extend(shown.map(|finding| Diagnostic::of(finding, tree)));
    let resolved = resolve(&T::SCHEMA, tree);
    diagnostics.extend(resolved.homeless.into_iter().map(|(span, homeless)| {
        let diagnostic = Diagnostic::error(codes::NO_HOME, homeless.message).help(homeless.help);
        if span.source == DEFAULTS { diagnostic } else { diagnostic.at(span, "") }
    }));
    let mut warnings = ignored(&translation.dropped, &resolved.ignored);
    warnings.extend(left_out);
    warnings.extend(other_warnings);
    let converted = match resolved.value {
        Some(value) if resolved.complete && diagnostics.is_empty() => match T::from_value(&value) {
            Ok(config) => Some((config, value)),
            Err(mismatch) => {
                let diagnostic = Diagnostic::error(codes::REFUSED, mismatch.message);
                diagnostics.push(match mismatch.origin {
                    Origin::Written(span) => diagnostic.at(span, ""),
                    Origin::Default | Origin::Made => diagnostic,
                });
                None
            }
        },
        _ => None,
    };
    match converted {
        Some((config, value)) => Ok(Loaded {
            config,
            warnings: Report { sources: sources.clone(), diagnostics: warnings, more: 0 },
            resolved: ResolvedConfig { value, sources },
        }),
        None => {
            if diagnostics.is_empty() {
                diagnostics.push(Diagnostic::error(codes::REFUSED, "this config cannot be used"));
            }
            // In the order of the text, the file first.
            diagnostics.sort_by_key(|diagnostic| {
                diagnostic.primary.as_ref().map_or((u16::MAX, 0), |(span, _)| (span.source.0, span.start))
            });
            diagnostics.extend(warnings);
            Err(Report { sources, diagnostics, more: found.total().saturating_sub(SHOWN) })
        }
    }
}

/// One warning for all keys that have no effect, in the order of the text.
fn ignored(dropped: &[Dropped], ignored: &[(Span, &'static Ignored)]) -> Vec<Diagnostic> {
    let dropped = dropped.iter().map(|key| (key.span, key.key.as_str(), key.why));
    let mut keys: Vec<_> = dropped.chain(ignored.iter().map(|(span, key)| (*span, key.name, key.why))).collect();
    keys.sort_by_key(|(span, ..)| (span.source.0, span.start));
    let Some(((first, name, why), rest)) = keys.split_first() else {
        return Vec::new();
    };
    let message = match rest {
        [] => format!("the key `{name}` has no effect here"),
        _ => format!("{} keys have no effect here", keys.len()),
    };
    let warning = Diagnostic::warning(message).at(*first, *why);
    vec![rest.iter().fold(warning, |warning, (span, _, why)| warning.also(*span, *why))]
}
