//! What was probably meant.

use tune_yaml::slip;

use super::{Chosen, Finding, Mistake, entry_of, is_key};
use crate::schema::{COMPONENT, Component, Key, Schema, Struct, Variant, same};
use crate::tree::Tree;

/// What was probably meant by a mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint<'a> {
    /// Nothing comes to mind.
    None,
    /// This name.
    Instead(&'a str),
    /// The very key, of this component.
    KeyOf(&'static str),
    /// The very key, within this one.
    Within(&'static str),
    /// The very key, among the outermost ones.
    Outermost,
    /// The very key, within this outermost one.
    Elsewhere(&'static str),
    /// Within this outermost key, one of this name.
    Below(&'static str, &'static str),
    /// The only component that has all the keys that are written.
    Component(&'static str),
    /// `_component_`, in place of this key.
    IsComponent(&'a str),
}

/// Unknown keys that are looked at when it is asked whether one is meant by them.
const LOOKED_AT: usize = 200;

impl<'a> Finding<'a> {
    /// What was probably meant.
    pub const fn hint(&self, tree: Tree<'a>) -> Hint<'a> {
        let written = match tree.scalar(self.at) {
            Some(scalar) => scalar.text,
            None => "",
        };
        let mut best = Best::new(written);
        match &self.mistake {
            Mistake::UnknownKey(fields, chosen, outermost) => {
                return match unknown_key(fields, tree.item(self.at).key, chosen, *outermost) {
                    Hint::None => match own_key(tree, self.at) {
                        Hint::None if outermost.is_none() => below(fields, tree.item(self.at).key),
                        hint => hint,
                    },
                    hint => hint,
                };
            }
            Mistake::NoComponent(component) => return which_component(component, tree, self.at),
            Mistake::UnknownChoice(choices) => {
                let mut at = 0;
                while at < choices.choices.len() {
                    best.offer_all(choices.choices[at].name, choices.choices[at].aliases);
                    at += 1;
                }
            }
            Mistake::NotAmong(key) => {
                let mut at = 0;
                while at < key.one_of.len() {
                    if let crate::schema::Const::Text(name) = key.one_of[at] {
                        best.offer(name);
                    }
                    at += 1;
                }
            }
            Mistake::UnknownComponent(component) => {
                // Of a dotted path the last part says what is meant.
                let mut last = Best::new(last_part(written));
                let mut same_last = None;
                let mut at = 0;
                while at < component.variants.len() {
                    let variant = &component.variants[at];
                    best.offer_all(variant.name, variant.aliases);
                    last.offer(variant.name);
                    let mut alias = 0;
                    while alias < variant.aliases.len() {
                        if same_last.is_none() && same(last_part(variant.aliases[alias]), last_part(written)) {
                            same_last = Some(variant.name);
                        }
                        alias += 1;
                    }
                    at += 1;
                }
                // A slip in a long path is a few letters; more of them are another name.
                return match (best.name, last.name, same_last) {
                    (Some(name), None, _) => Hint::Instead(name),
                    (Some(name), Some(_), _) if best.distance < 3 => Hint::Instead(name),
                    (_, Some(name), _) | (None, None, Some(name)) => Hint::Instead(name),
                    (None, None, None) => Hint::None,
                };
            }
            _ => {}
        }
        match best.name {
            Some(name) => Hint::Instead(name),
            None => Hint::None,
        }
    }
}

/// The nearest of the names that are offered.
struct Best<'w> {
    written: &'w str,
    distance: usize,
    name: Option<&'static str>,
}

impl<'w> Best<'w> {
    const fn new(written: &'w str) -> Self {
        Self { written, distance: usize::MAX, name: None }
    }

    const fn offer(&mut self, name: &'static str) {
        if is_type(last_part(self.written), name) {
            self.distance = 0;
            self.name = Some(name);
        }
        if let Some(distance) = slip(self.written, name)
            && distance < self.distance
        {
            self.distance = distance;
            self.name = Some(name);
        }
    }

    /// The keys of a value of this type.
    const fn offer_keys(&mut self, schema: &'static Schema) {
        match schema {
            Schema::Optional(inner) | Schema::List(inner) => self.offer_keys(inner),
            Schema::Struct(fields) => self.offer_fields(fields),
            Schema::Component(component) => {
                let mut at = 0;
                while at < component.variants.len() {
                    if let Some(fields) = component.variants[at].fields() {
                        self.offer_fields(fields);
                    }
                    at += 1;
                }
            }
            _ => {}
        }
    }

    const fn offer_fields(&mut self, fields: &'static Struct) {
        let mut index = 0;
        while index < fields.key_count() {
            if let Some(key) = fields.key_at(index) {
                self.offer_all(key.name, key.aliases);
            }
            index += 1;
        }
    }

    const fn offer_all(&mut self, name: &'static str, aliases: &[&'static str]) {
        self.offer(name);
        let mut at = 0;
        while at < aliases.len() {
            self.offer(aliases[at]);
            at += 1;
        }
    }
}

/// Whether `name` is a type of numbers that PyTorch or NumPy calls `written`.
const fn is_type(written: &str, name: &str) -> bool {
    const NAMES: [(&str, &str); 7] = [
        ("bfloat16", "bf16"),
        ("float16", "fp16"),
        ("half", "fp16"),
        ("f16", "fp16"),
        ("float32", "fp32"),
        ("float", "fp32"),
        ("f32", "fp32"),
    ];
    let mut at = 0;
    while at < NAMES.len() {
        if same(NAMES[at].0, written) && same(NAMES[at].1, name) {
            return true;
        }
        at += 1;
    }
    false
}

const fn last_part(path: &str) -> &str {
    let mut start = path.len();
    while start > 0 && path.as_bytes()[start - 1] != b'.' {
        start -= 1;
    }
    path.split_at(start).1
}

/// Whether an entry is no key of the struct.
pub(super) const fn is_unknown(fields: &Struct, written: &str, of_component: bool) -> bool {
    !(of_component && same(written, COMPONENT))
        && fields.find(written).is_none()
        && fields.find_ignored(written).is_none()
}

/// The index of the first key from `from` on that must be written and is not,
/// not even with a slip.
pub(super) const fn next_missing(
    fields: &'static Struct,
    tree: Tree<'_>,
    at: usize,
    chosen: &Option<Chosen>,
    from: usize,
) -> Option<usize> {
    let mut index = from;
    while index < fields.key_count() {
        if let Some(key) = fields.key_at(index)
            && key.when_absent().is_none()
            && entry_of(tree, at, key, at + 1).is_none()
            && !is_meant(fields, key, tree, at, chosen)
        {
            return Some(index);
        }
        index += 1;
    }
    None
}

/// Whether one of the unknown keys is a slip of this one.
const fn is_meant(fields: &'static Struct, key: &Key, tree: Tree<'_>, at: usize, chosen: &Option<Chosen>) -> bool {
    let (mut child, mut looked_at) = (at + 1, 0);
    while child < tree.item(at).end && looked_at < LOOKED_AT {
        let written = tree.item(child).key;
        if is_unknown(fields, written, chosen.is_some()) && !tree.is_needed(child, fields) {
            looked_at += 1;
            if let Hint::Instead(name) = unknown_key(fields, written, chosen, None)
                && is_key(key, name)
            {
                return true;
            }
        }
        child = tree.item(child).end;
    }
    false
}

/// The key of the user's own that is probably meant by an outermost one.
const fn own_key<'a>(tree: Tree<'a>, at: usize) -> Hint<'a> {
    let (mut nearest, mut child) = (Hint::None, 1);
    let mut least = usize::MAX;
    while tree.item(at).parent == 0 && child < tree.item(0).end {
        let item = tree.item(child);
        if item.referred.is_some()
            && let Some(distance) = slip(tree.item(at).key, item.key)
            && distance < least
        {
            least = distance;
            nearest = Hint::Instead(item.key);
        }
        child = item.end;
    }
    nearest
}

const fn unknown_key(
    fields: &Struct,
    written: &str,
    chosen: &Option<Chosen>,
    outermost: Option<&'static Struct>,
) -> Hint<'static> {
    // The very name in another place is more than a similar one here.
    if let Some(chosen) = chosen {
        let mut at = 0;
        while at < chosen.component.variants.len() {
            let variant = &chosen.component.variants[at];
            if let Some(fields) = variant.fields()
                && fields.find(written).is_some()
            {
                return Hint::KeyOf(variant.name);
            }
            at += 1;
        }
    }
    let mut best = Best::new(written);
    let mut index = 0;
    while index < fields.key_count() {
        if let Some(key) = fields.key_at(index) {
            if holds_key(&key.schema, written) {
                return Hint::Within(key.name);
            }
            best.offer_all(key.name, key.aliases);
        }
        index += 1;
    }
    if let Some(outermost) = outermost
        && outermost.find(written).is_some()
    {
        return Hint::Outermost;
    }
    if matches!(chosen, Some(Chosen { span: None, .. })) {
        best.offer(COMPONENT);
    }
    match (best.name, outermost) {
        (Some(name), _) => Hint::Instead(name),
        (None, Some(outermost)) => elsewhere(outermost, written),
        (None, None) => Hint::None,
    }
}

/// The outermost key that has such a key in it.
const fn elsewhere(outermost: &Struct, written: &str) -> Hint<'static> {
    let mut index = 0;
    while index < outermost.key_count() {
        if let Some(key) = outermost.key_at(index)
            && holds_key(&key.schema, written)
        {
            return Hint::Elsewhere(key.name);
        }
        index += 1;
    }
    Hint::None
}

/// The key that is probably meant by an outermost one and is within another.
const fn below(outermost: &Struct, written: &str) -> Hint<'static> {
    let (mut best, mut holder, mut index) = (Best::new(written), "", 0);
    while index < outermost.key_count() {
        if let Some(key) = outermost.key_at(index) {
            let before = best.distance;
            best.offer_keys(&key.schema);
            if best.distance < before {
                holder = key.name;
            }
        }
        index += 1;
    }
    match best.name {
        Some(name) => Hint::Below(holder, name),
        None => Hint::None,
    }
}

/// Which component the mapping `at` is probably meant to be.
const fn which_component<'a>(component: &Component, tree: Tree<'a>, at: usize) -> Hint<'a> {
    let mut child = at + 1;
    while child < tree.item(at).end {
        if slip(tree.item(child).key, COMPONENT).is_some() {
            return Hint::IsComponent(tree.item(child).key);
        }
        child = tree.item(child).end;
    }
    let (mut only, mut index) = (None, 0);
    while index < component.variants.len() {
        let variant = &component.variants[index];
        if tree.count(at) > 0 && has_all(variant, tree, at) {
            if only.is_some() {
                return Hint::None;
            }
            only = Some(variant.name);
        }
        index += 1;
    }
    match only {
        Some(name) => Hint::Component(name),
        None => Hint::None,
    }
}

/// Whether all keys of the mapping `at` are keys of the component.
const fn has_all(variant: &Variant, tree: Tree<'_>, at: usize) -> bool {
    let Some(fields) = variant.fields() else {
        return false;
    };
    let mut child = at + 1;
    while child < tree.item(at).end {
        if is_unknown(fields, tree.item(child).key, false) {
            return false;
        }
        child = tree.item(child).end;
    }
    true
}

/// Whether a value of this type has a key of this name.
const fn holds_key(schema: &Schema, name: &str) -> bool {
    match schema {
        Schema::Struct(fields) => fields.find(name).is_some(),
        Schema::Optional(inner) | Schema::List(inner) => holds_key(inner, name),
        Schema::Component(component) => {
            let mut at = 0;
            while at < component.variants.len() {
                if let Some(fields) = component.variants[at].fields()
                    && fields.find(name).is_some()
                {
                    return true;
                }
                at += 1;
            }
            false
        }
        _ => false,
    }
}
