//! Configs of Axolotl, LLaMA-Factory, TRL and Unsloth: made into ours, and read as those tools read them.
//!
//! What a tool's keys become is in its table (`axolotl/keys.rs` and the like, rows as in `rules`); what takes several
//! keys together is in the file beside it. [`convert_other`] applies both; [`lint_other`] says what the tool itself
//! does with the file. All messages point into the user's own file.

mod axolotl;
mod common;
mod conversion;
pub(crate) mod draft;
mod given;
mod llama_factory;
mod markdown;
mod rules;
mod trainer;
mod trl;
mod unsloth;

use tune_yaml::{Entry, Node, SourceId, Value, nearest, parse};

use crate::codes;
use crate::report::{Diagnostic, Level, Report, Sources};
use conversion::{Conversion, Recipe, removed};
use given::Given;
use rules::{NoEffect, Row, Rule, find};

pub use markdown::other_tools_in_markdown;

/// A tool whose configs are understood.
pub(crate) struct Tool {
    /// Its name.
    name: &'static str,
    /// The version whose keys and behaviour the tables tell.
    version: &'static str,
    /// What becomes of its keys.
    rows: &'static [&'static [Row]],
    /// Whether it drops a key that it does not know without a word, or refuses it.
    drops_unknown: bool,
    /// Keys that have no effect in it, as others in the file are.
    no_effect: &'static [&'static [NoEffect]],
    /// Whether a file is its own.
    is_own: fn(Given<'_>) -> bool,
    /// What a file is for; an error where there is no recipe for it here.
    recipe: fn(Given<'_>) -> Result<Recipe, Box<Diagnostic>>,
    /// What takes several keys together.
    convert: fn(&mut Conversion<'_>),
    /// What else the tool does that its user may not expect.
    lint: fn(&Tool, Given<'_>, &mut Vec<Diagnostic>),
}

impl Tool {
    /// An error that is the tool's own.
    fn refuses(&self, what: &str) -> Diagnostic {
        Diagnostic::error(codes::NOT_HERE, format!("{} {} refuses this: {what}", self.name, self.version))
    }
}

/// All tools, in the order in which a file is recognized.
const TOOLS: [&Tool; 5] = [&axolotl::TOOL, &unsloth::TOOL, &unsloth::STUDIO, &llama_factory::TOOL, &trl::TOOL];

/// A config of another tool's in our names.
#[derive(Debug)]
pub struct Converted {
    /// The recipe that it is for.
    pub recipe: &'static str,
    /// The config, with the tool's keys in comments.
    pub yaml: String,
    /// What is not taken over, and what has no meaning here.
    pub warnings: Report,
}

/// The tool whose config a text is: its name. `None` for ours, torchtune's, and anything else.
///
/// ```
/// let yaml = "base_model: org/model\ndatasets:\n- {path: a.jsonl, type: alpaca}\n";
/// assert_eq!(tune_config::other_tool(yaml), Some("Axolotl"));
/// ```
pub fn other_tool(yaml: &str) -> Option<&'static str> {
    Some(tool_of(&parse(yaml, SourceId(0)).ok()?)?.name)
}

/// The names of the tools and their versions.
pub fn other_tools() -> impl Iterator<Item = (&'static str, &'static str)> {
    TOOLS.iter().map(|tool| (tool.name, tool.version))
}

fn tool_of(root: &Node) -> Option<&'static Tool> {
    TOOLS.into_iter().find(|tool| (tool.is_own)(Given { root }))
}

/// The text read as YAML, and whose it is.
fn read(name: &str, text: &str) -> Result<(Sources, Node, &'static Tool), Report> {
    let mut sources = Sources::default();
    let source = sources.add(name, text);
    let report = |sources, diagnostic| Report { sources, diagnostics: vec![diagnostic], more: 0 };
    match parse(text, source) {
        Err(error) => Err(report(sources, error.into())),
        Ok(root) => match tool_of(&root) {
            Some(tool) => Ok((sources, root, tool)),
            None => {
                let names: Vec<_> = TOOLS.iter().map(|tool| tool.name).collect();
                let message = format!("{name} is no config of a tool that is known: {}", names.join(", "));
                Err(report(sources, Diagnostic::error(codes::NO_CONFIG, message)))
            }
        },
    }
}

/// The config `text` of another tool in our own names; `name` is what messages call it.
///
/// # Errors
/// What is no such config, or asks for what no recipe can do.
pub fn convert_other(name: &str, text: &str) -> Result<Converted, Report> {
    let (sources, root, tool) = read(name, text)?;
    let given = Given { root: &root };
    let recipe = match (tool.recipe)(given) {
        Ok(recipe) => recipe,
        Err(diagnostic) => return Err(Report { sources, diagnostics: vec![*diagnostic], more: 0 }),
    };
    let mut conversion = Conversion::new(tool, given, recipe);
    conversion.rows(&root, tool.rows);
    (tool.convert)(&mut conversion);
    let (recipe, draft, diagnostics, meaningless) = conversion.end();
    let report = Report { sources, diagnostics, more: 0 };
    if report.diagnostics.iter().any(|diagnostic| diagnostic.level == Level::Error) {
        return Err(report);
    }
    let recipe = recipe.name;
    let one_line = |text: &str| -> String { text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect() };
    let mut yaml = format!(
        "# Converted from {}, a config of {}'s; check it with: tune validate {recipe} --config FILE\n",
        one_line(name),
        tool.name
    );
    for warning in report.diagnostics.iter().filter(|warning| !warning.help.is_empty()) {
        yaml += &format!("# {} ({})\n", one_line(&warning.message), one_line(&warning.help.join("; ")));
    }
    if !meaningless.is_empty() {
        yaml += "# Without a meaning here:\n";
        meaningless.iter().for_each(|line| yaml += &format!("#   {}\n", one_line(line)));
    }
    yaml += &format!("\n{}", draft.to_yaml());
    Ok(Converted { recipe, yaml, warnings: report })
}

/// What the tool that the config `text` is for does with it without saying so: keys that it drops, settings without
/// effect, a stop token that is not learned. Errors are what the tool refuses.
///
/// # Errors
/// What is no such config.
pub fn lint_other(name: &str, text: &str) -> Result<Report, Report> {
    let (sources, root, tool) = read(name, text)?;
    let given = Given { root: &root };
    let mut diagnostics = Vec::new();
    keys(tool, &root, tool.rows, &mut diagnostics);
    for rule in tool.no_effect.iter().copied().flatten().filter(|rule| (rule.when)(given)) {
        for entry in rule.keys.iter().filter_map(|key| given.entry(key)) {
            let said = |found: &Diagnostic| found.primary.as_ref().is_some_and(|(span, _)| *span == entry.key_span);
            if !diagnostics.iter().any(said) {
                diagnostics.push(no_effect(entry, rule.why));
            }
        }
    }
    (tool.lint)(tool, given, &mut diagnostics);
    diagnostics.sort_by_key(|diagnostic| diagnostic.primary.as_ref().map(|(span, _)| span.start));
    Ok(Report { sources, diagnostics, more: 0 })
}

/// Keys that the tool does not know or refuses.
fn keys(tool: &Tool, node: &Node, rows: &[&'static [Row]], out: &mut Vec<Diagnostic>) {
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| keys(tool, item, rows, out)),
        Value::Map(entries) => {
            for entry in entries {
                match find(rows, &entry.key).map(|row| &row.rule) {
                    None => out.push(unknown(tool, entry, rows)),
                    Some(Rule::Removed(instead)) if !entry.value.is_null() => out.push(removed(tool, entry, instead)),
                    Some(Rule::Inside(rows)) => keys(tool, &entry.value, rows, out),
                    Some(_) => {}
                }
            }
        }
        _ => {}
    }
}

/// A key that the tool does not know.
fn unknown(tool: &Tool, entry: &Entry, rows: &[&'static [Row]]) -> Diagnostic {
    let known = rows.iter().copied().flatten().flat_map(|row| row.keys.iter().copied());
    let (key, name, version) = (&entry.key, tool.name, tool.version);
    let diagnostic = match tool.drops_unknown {
        true => Diagnostic::warning(format!("{name} {version} has no key `{key}` here, and drops it without a word")),
        false => Diagnostic::error(codes::UNKNOWN_KEY, format!("{name} {version} has no key `{key}` here")),
    };
    let diagnostic = diagnostic.at(entry.key_span, "unknown key");
    match nearest(key, known) {
        Some(near) => diagnostic.help(format!("did you mean `{near}`?")),
        None => diagnostic.help("remove it, or look for its new name in the tool's documentation"),
    }
}

/// A key that has no effect in the tool itself.
pub(crate) fn no_effect(entry: &Entry, why: &str) -> Diagnostic {
    Diagnostic::warning(format!("`{}` has no effect", entry.key)).at(entry.key_span, why)
}
