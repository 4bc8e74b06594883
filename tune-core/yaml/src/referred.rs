//! Which keys a config needs for its own references.

use std::collections::{BTreeSet, HashSet};

use crate::interpolate::{Piece, pieces};
use crate::{Node, Value, nearest};

/// Wrong references whose nearest key is looked for.
const SLIPS: usize = 20;

/// The outermost keys of `root` that a `${}` of another one refers to, or into. One with a slip in it refers to the
/// nearest key: it is told as a mistake, and the key is none.
pub fn referred(root: &Node) -> BTreeSet<String> {
    let Value::Map(entries) = &root.value else { return BTreeSet::new() };
    let keys: HashSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
    let (mut found, mut slips) = (BTreeSet::new(), 0);
    for entry in entries {
        each(&entry.value, &mut |path| {
            let first = path.split('.').next().unwrap_or_default().trim();
            let named = match keys.contains(first) {
                true => Some(first),
                false if slips < SLIPS => {
                    slips += 1;
                    nearest(first, entries.iter().map(|entry| entry.key.as_str()))
                }
                false => None,
            };
            if let Some(named) = named.filter(|named| *named != entry.key)
                && !found.contains(named)
            {
                found.insert(named.to_owned());
            }
        });
    }
    found
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
    use crate::{SourceId, parse};

    fn of(text: &str) -> Vec<String> {
        parse(text, SourceId(0)).map(|root| referred(&root)).unwrap_or_default().into_iter().collect()
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
}
