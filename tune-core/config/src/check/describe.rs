//! A mistake in words.

use tune_yaml::{Code, Place as Shown, Span, Text};

use super::hint::next_missing;
use super::{Chosen, Finding, Hint, Mistake, meant};
use crate::codes;
use crate::schema::{COMPONENT, Component, Const, Key, Schema, Struct};
use crate::tree::{Scalar, Tree, Written};
use crate::words::{self, between};

/// What to say about a mistake.
pub(crate) struct Described {
    pub(crate) code: Code,
    pub(crate) message: Text<512>,
    /// What stands below the caret.
    pub(crate) label: Text<1024>,
    /// Another place that matters.
    pub(crate) also: Option<(Span, &'static str)>,
    /// Facts, one a line.
    pub(crate) notes: Text<4096>,
    /// What to do; may be empty.
    pub(crate) help: Text<512>,
}

/// A path longer than this is cut short.
const DEPTH: usize = 80;

impl<'a> Finding<'a> {
    /// The mistake in words.
    pub(crate) const fn describe(&self, tree: Tree<'a>) -> Described {
        let mut said = Described {
            code: codes::WRONG_TYPE,
            message: Text::new(),
            label: Text::new(),
            also: None,
            notes: Text::new(),
            help: Text::new(),
        };
        match &self.mistake {
            Mistake::UnknownKey(fields, chosen, _) => self.unknown_key(tree, fields, chosen, &mut said),
            Mistake::MissingKeys(fields, chosen) => self.missing(tree, fields, chosen, &mut said),
            Mistake::TwoNames(first) => self.two_names(tree, *first, &mut said),
            Mistake::WrongType(schema, key) => self.wrong_type(tree, schema, key, &mut said),
            Mistake::DoesNotFit { min, max } => {
                self.value_is(tree, " is out of range", codes::OUT_OF_RANGE, &mut said);
                let below = matches!(tree.scalar(self.at), Some(scalar) if is_below(scalar, *min));
                said.label.push(if below { "must be at least " } else { "must be at most " });
                said.label.int(if below { *min } else { *max });
            }
            Mistake::OutOfRange(key) => {
                self.value_is(tree, " is out of range", codes::OUT_OF_RANGE, &mut said);
                said.label.push("must be in ");
                if let Some(range) = &key.range {
                    words::range(range, &mut said.label);
                }
            }
            Mistake::NotFinite => {
                self.value_is(tree, " is no finite number", codes::OUT_OF_RANGE, &mut said);
                said.label.push("expected a finite number");
            }
            Mistake::NotAmong(key) => {
                self.value_is(tree, " is not allowed", codes::NOT_ALLOWED, &mut said);
                one_of(key.one_of, &mut said.label);
            }
            Mistake::UnknownChoice(choices) => {
                self.value_is(tree, " is not allowed", codes::NOT_ALLOWED, &mut said);
                said.label.push("expected ");
                words::noun(&Schema::Choice(choices), &mut said.label);
            }
            Mistake::UnknownComponent(component) => self.unknown_component(tree, component, &mut said),
            Mistake::NoComponent(component) => self.no_component(tree, component, &mut said),
        }
        self.suggest(tree, &mut said.help);
        said
    }

    /// What is probably meant.
    const fn suggest(&self, tree: Tree<'a>, help: &mut Text<512>) {
        match self.hint(tree) {
            Hint::None => {}
            Hint::Instead(name) => help.push_all(&["did you mean `", name, "`?"]),
            Hint::KeyOf(other) => help.push_all(&["`", tree.item(self.at).key, "` is a key of `", other, "`"]),
            Hint::Within(key) => {
                help.push("there is a key `");
                let parent = tree.item(self.at).parent;
                path(tree, parent, help);
                help.push_all(&[if parent == 0 { "" } else { "." }, key, ".", tree.item(self.at).key, "`"]);
            }
            Hint::Outermost => {
                help.push_all(&["there is a key `", tree.item(self.at).key, "` at the outermost level"]);
            }
            Hint::Elsewhere(key) => help.push_all(&["there is a key `", key, ".", tree.item(self.at).key, "`"]),
            Hint::Below(key, name) => help.push_all(&["there is a key `", key, ".", name, "`"]),
            Hint::Component(name) => help.push_all(&["write `", COMPONENT, ": ", name, "`"]),
            Hint::IsComponent(written) => help.push_all(&["write `", COMPONENT, "` instead of `", written, "`"]),
        }
    }

    const fn two_names(&self, tree: Tree<'a>, first: usize, said: &mut Described) {
        said.code = codes::TWO_NAMES;
        said.message.name(tree.item(first).key);
        said.message.push(" and ");
        said.message.name(tree.item(self.at).key);
        said.message.push(" are the same key");
        said.label.push("again here");
        said.also = Some((tree.item(first).key_span, "first written here"));
        said.help.push("remove one of the two");
    }

    const fn unknown_component(&self, tree: Tree<'a>, component: &Component, said: &mut Described) {
        said.code = codes::UNKNOWN_COMPONENT;
        said.message.push("unknown component `");
        if let Some(scalar) = tree.scalar(self.at) {
            said.message.short(scalar.text);
        }
        said.message.push("`");
        of(tree, component_at(tree, self.at), &mut said.message);
        said.label.push("no such component");
        said.notes.push("the components are ");
        names(component, &mut said.notes);
    }

    const fn no_component(&self, tree: Tree<'a>, component: &Component, said: &mut Described) {
        said.code = codes::NO_COMPONENT;
        said.message.push_all(&["missing key `", COMPONENT, "`"]);
        of(tree, self.at, &mut said.message);
        said.label.push("which component?");
        said.notes.push("choose one of ");
        names(component, &mut said.notes);
    }

    const fn unknown_key(&self, tree: Tree<'a>, fields: &Struct, chosen: &Option<Chosen>, said: &mut Described) {
        said.code = codes::UNKNOWN_KEY;
        let mut written = Text::<512>::new();
        path(tree, self.at, &mut written);
        said.message.push("unknown key `");
        said.message.short(written.as_str());
        said.message.push("`");
        if let Some(chosen) = chosen {
            said.label.push_all(&["no key of `", chosen.variant.name, "`"]);
            if let Some(span) = chosen.span {
                said.also = Some((span, "component chosen here"));
            }
        }
        let count = fields.key_count();
        said.notes.push(if count == 0 { "there are no keys here" } else { "the keys are " });
        let mut index = 0;
        while index < count {
            if let Some(key) = fields.key_at(index) {
                said.notes.push(between(index, count, ", "));
                said.notes.name(key.name);
            }
            index += 1;
        }
    }

    const fn missing(&self, tree: Tree<'a>, fields: &'static Struct, chosen: &Option<Chosen>, said: &mut Described) {
        said.code = codes::MISSING_KEY;
        let mut count = 0;
        let mut next = next_missing(fields, tree, self.at, chosen, 0);
        while let Some(index) = next {
            count += 1;
            next = next_missing(fields, tree, self.at, chosen, index + 1);
        }
        said.message.push(if count > 1 { "missing keys " } else { "missing key " });
        said.label.push("needs ");
        let (mut shown, mut next) = (0, next_missing(fields, tree, self.at, chosen, 0));
        while let Some(index) = next {
            if let Some(key) = fields.key_at(index) {
                said.message.push(between(shown, count, " and "));
                said.message.name(key.name);
                said.label.push(between(shown, count, " and "));
                said.label.name(key.name);
                said.notes.push(if shown > 0 { "\n" } else { "" });
                said.notes.name(key.name);
                said.notes.push(": ");
                words::key(key, &mut said.notes);
            }
            shown += 1;
            next = next_missing(fields, tree, self.at, chosen, index + 1);
        }
        of(tree, self.at, &mut said.message);
        if let Some(Chosen { span: Some(span), .. }) = chosen
            && (span.start != self.span.start || span.source.0 != self.span.source.0)
        {
            said.also = Some((*span, "component chosen here"));
        }
    }

    const fn wrong_type(&self, tree: Tree<'a>, schema: &Schema, key: &Option<&'static Key>, said: &mut Described) {
        if self.at > 0 {
            said.message.push("wrong type for `");
            path(tree, self.at, &mut said.message);
            said.message.push("`");
        } else {
            said.code = codes::NO_CONFIG;
            said.message.push(match tree.is_null(0) {
                true => "this config is empty",
                false => "this config is no mapping of keys",
            });
        }
        said.label.push("expected ");
        words::noun(schema, &mut said.label);
        if let Some(key) = key
            && key.one_or_many
            && !matches!(schema, Schema::List(_))
        {
            said.label.push(" or a list of ");
            words::noun(schema, &mut said.label);
        }
        said.label.push(", found ");
        words::found(tree, self.at, &mut said.label);
        meant::instead(schema, tree, self.at, &mut said.help);
    }

    const fn value_is(&self, tree: Tree<'a>, what: &str, code: Code, said: &mut Described) {
        said.code = code;
        said.message.push("`");
        if let Some(scalar) = tree.scalar(self.at) {
            said.message.short(scalar.text);
        }
        said.message.push_all(&["`", what]);
        of(tree, component_at(tree, self.at), &mut said.message);
    }

    /// Adds the mistake as rustc would show it, with what stands around it.
    pub(crate) const fn show<const N: usize>(&self, tree: Tree<'a>, name: &str, text: &str, out: &mut Text<N>) {
        let said = self.describe(tree);
        out.push(said.message.as_str());
        let primary = Shown::new(self.span, said.label.as_str());
        let margin = match said.also {
            Some((span, label)) => out.snippet(name, text, &[primary, Shown::new(span, label)]),
            None => out.snippet(name, text, &[primary]),
        };
        let mut notes = said.notes.as_str();
        while !notes.is_empty() {
            let mut end = 0;
            while end < notes.len() && notes.as_bytes()[end] != b'\n' {
                end += 1;
            }
            let (note, rest) = notes.split_at(end);
            out.remark(margin, "note", note);
            notes = if rest.is_empty() { rest } else { rest.split_at(1).1 };
        }
        out.remark(margin, "help", said.help.as_str());
        let mut code = Text::<64>::new();
        code.push_all(&["config error ", said.code.text().as_str()]);
        out.remark(margin, "note", code.as_str());
    }
}

/// Adds the keys from the root to `at`, with dots; nothing for the root.
const fn path<const N: usize>(tree: Tree<'_>, at: usize, out: &mut Text<N>) {
    let mut steps = [0; DEPTH];
    let (mut count, mut step) = (0, at);
    while step > 0 && count < DEPTH {
        steps[count] = step;
        count += 1;
        step = tree.item(step).parent;
    }
    let mut left = count;
    while left > 0 {
        left -= 1;
        let item = tree.item(steps[left]);
        match tree.item(item.parent).written {
            Written::List => out.int(tree.position(steps[left]) as i128),
            _ => out.push(item.key),
        }
        if left > 0 {
            out.push(".");
        }
    }
}

/// Adds ` for ` and the path; nothing for the root.
const fn of<const N: usize>(tree: Tree<'_>, at: usize, out: &mut Text<N>) {
    if at > 0 {
        out.push(" for `");
        path(tree, at, out);
        out.push("`");
    }
}

/// What a `_component_` is the name of; anything else is itself.
const fn component_at(tree: Tree<'_>, at: usize) -> usize {
    match crate::schema::same(tree.item(at).key, COMPONENT) {
        true => tree.item(at).parent,
        false => at,
    }
}

const fn names<const N: usize>(component: &Component, out: &mut Text<N>) {
    let mut at = 0;
    while at < component.variants.len() {
        out.push(between(at, component.variants.len(), ", "));
        out.name(component.variants[at].name);
        at += 1;
    }
}

/// Adds that one of these was expected.
const fn one_of<const N: usize>(values: &[Const], out: &mut Text<N>) {
    out.push("expected ");
    let mut at = 0;
    while at < values.len() {
        out.push(between(at, values.len(), " or "));
        out.push("`");
        words::constant(&values[at], out);
        out.push("`");
        at += 1;
    }
}

const fn is_below(scalar: &Scalar<'_>, min: i128) -> bool {
    matches!(scalar.number, Some(tune_yaml::Number::Int(int)) if int < min)
}
