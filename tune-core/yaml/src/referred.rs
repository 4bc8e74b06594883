//! Which keys a config needs for its own references.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::interpolate::{Piece, pieces};
use crate::{Alias, Node, Value, nearest};

/// Wrong references whose nearest key is looked for.
const SLIPS: usize = 20;

/// By outermost key: which other ones it is needed for, see [`referred`].
pub type Referred = BTreeMap<String, Vec<String>>;

/// Others that a key is needed for and that are looked at. Beyond them, it is taken for needed.
const LOOKED_AT: usize = 64;

/// The outermost keys of `root` that others refer to, or into, by a `${}` or an alias. With each are those that need it,
/// also by way of others, where all of them are needed only for each other and for it; none are with a key that one
/// needs to which nobody refers. `aliases` are those of [`parse_noting`](crate::parse_noting).
///
/// A `${}` with a slip in it refers to the nearest key: it is told as a mistake, and the key is none.
pub fn referred(root: &Node, aliases: &[Alias]) -> Referred {
    let Value::Map(entries) = &root.value else { return Referred::new() };
    // Who refers to a key; the root, where that is merged into it, has no name.
    let mut users: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let keys: HashSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
    let mut slips = 0;
    for entry in entries {
        each(&entry.value, &mut |path| {
            let first = path.split('.').next().unwrap_or_default().trim();
            let named = match keys.get(first) {
                Some(named) => Some(*named),
                None if slips < SLIPS => {
                    slips += 1;
                    nearest(first, entries.iter().map(|entry| entry.key.as_str()))
                }
                None => None,
            };
            if let Some(named) = named {
                users.entry(named).or_default().insert(&entry.key);
            }
        });
    }
    for (user, used) in aliases {
        if let Some(used) = keys.get(used.as_str()) {
            users.entry(used).or_default().insert(user.as_deref().unwrap_or_default());
        }
    }
    // Itself is no other.
    users.iter_mut().for_each(|(key, users)| _ = users.remove(key));
    users.retain(|_, users| !users.is_empty());
    users.keys().map(|key| ((*key).to_owned(), needed_for(key, &users))).collect()
}

/// Those that need a key, where nobody else needs any of them.
fn needed_for(key: &str, users: &BTreeMap<&str, BTreeSet<&str>>) -> Vec<String> {
    let mut found = BTreeSet::from([key]);
    let mut left = vec![key];
    while let Some(next) = left.pop() {
        let Some(users) = users.get(next) else { return Vec::new() };
        for user in users {
            if found.insert(user) {
                left.push(user);
            }
            if found.len() > LOOKED_AT {
                return Vec::new();
            }
        }
    }
    found.remove(key);
    found.into_iter().map(str::to_owned).collect()
}

/// Calls `of` with the path of each reference in a value.
fn each(node: &Node, of: &mut dyn FnMut(&str)) {
    match &node.value {
        Value::Scalar(scalar) if scalar.text.contains("${") => {
            for piece in pieces(&scalar.text).unwrap_or_default() {
                if let Piece::Reference(path, _) = piece {
                    of(path);
                }
            }
        }
        Value::List(items) => items.iter().for_each(|item| each(item, of)),
        Value::Map(entries) => entries.iter().for_each(|entry| each(&entry.value, of)),
        Value::Scalar(_) | Value::Reported => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SourceId, parse_noting};

    /// The keys that are referred to, each with those that it is needed for if nobody else needs them.
    fn of(text: &str) -> Vec<String> {
        let (root, aliases) = parse_noting(text, SourceId(0)).unwrap();
        let show = |(key, by): (String, Vec<String>)| match by.is_empty() {
            true => key,
            false => format!("{key} by {}", by.join(" ")),
        };
        referred(&root, &aliases).into_iter().map(show).collect()
    }

    #[test]
    fn keys_that_others_refer_to() {
        assert_eq!(of("a: 1\nb: x/${a}\nc: [{d: '${ b }-${e.f}'}]\ne: {f: 1}\ng: 1\n"), ["a", "b", "e"]);
        // Itself is no other.
        assert_eq!(of("a: {b: 1, c: '${a.b}'}\n"), [""; 0]);
        assert_eq!(of("a: 1\nb: \\${a}\n"), [""; 0]);
        assert_eq!(of("run_name: 1\nb: ${run_nmae.x}\n"), ["run_name"]);
        assert_eq!(of("- ${a}\n"), [""; 0]);
        assert_eq!(of("a: 1\nb: ${a\nc: ${oc.env:HOME}\n"), [""; 0]);
    }

    #[test]
    fn keys_that_others_have_an_alias_of() {
        assert_eq!(of("a: &x 1\nb: {c: &y [2]}\nd: [*x, {e: *y}]\n"), ["a", "b"]);
        assert_eq!(of("a: &x {b: 1}\nc:\n  <<: *x\n"), ["a"]);
        // Into the root itself.
        assert_eq!(of("a: &x {b: 1}\n<<: *x\n"), ["a"]);
        assert_eq!(of("a: &x {b: 1}\n<<: [*x]\n"), ["a"]);
        assert_eq!(of("a: {b: &x 1, c: *x}\n"), [""; 0]);
        assert_eq!(of("a: &x 1\nb: &x 2\nc: *x\n"), ["b"]);
        assert_eq!(of("a: &x 1\nb: {'<<': *x}\n"), ["a"]);
    }

    #[test]
    fn keys_that_are_needed_for_each_other_alone() {
        let ring = "a: {x: 1, y: '${b.x}'}\nb: {x: 2, y: '${a.x}'}\n";
        assert_eq!(of(ring), ["a by b", "b by a"]);
        assert_eq!(of(&format!("{ring}c: ${{b.x}}\n")), ["a", "b"]);
        // What they refer to is needed no more than they are; who refers to them is.
        assert_eq!(of(&format!("{ring}c: 1\nd: ${{c}}-${{a.x}}\n")), ["a", "b", "c"]);
        assert_eq!(of("a: {x: &x 1, y: '${b.x}'}\nb: {x: 2, y: *x}\n"), ["a by b", "b by a"]);
        let chain = "c: 1\n".to_owned() + &ring.replace("x: 1,", "x: '${c}',");
        assert_eq!(of(&chain), ["a by b", "b by a", "c by a b"]);
    }

    #[test]
    fn long_rings_take_no_long_time() {
        let ring: String = (0..5_000).map(|i| format!("k{i}: {{x: 1, y: '${{k{}.x}}'}}\n", (i + 1) % 5_000)).collect();
        assert_eq!(of(&ring).len(), 5_000);
    }
}
