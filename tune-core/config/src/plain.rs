//! What may be written without quotes.

use tune_yaml::Text;

/// Adds `text` as it is, where it cannot be taken for anything else, or in quotes.
pub(crate) const fn text<const N: usize>(text: &str, out: &mut Text<N>) {
    if is_plain(text) {
        return out.push(text);
    }
    out.push("\"");
    let (mut rest, mut at) = (text, 0);
    while at < rest.len() {
        let escape = match rest.as_bytes()[at] {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\t' => "\\t",
            _ => {
                at += 1;
                continue;
            }
        };
        let (before, after) = rest.split_at(at);
        out.push(before);
        out.push(escape);
        (rest, at) = (after.split_at(1).1, 0);
    }
    out.push(rest);
    out.push("\"");
}

/// Whether `text` is text without quotes, too, for every reader of YAML.
pub(crate) const fn is_plain(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let inside = at > 0 && (bytes[at].is_ascii_digit() || bytes[at] == b'-');
        if !inside && !bytes[at].is_ascii_alphabetic() && !matches!(bytes[at], b'_' | b'/' | b'.') {
            return false;
        }
        at += 1;
    }
    // A number begins with a digit, a sign, or a point and one of these.
    let number = bytes.len() > 1 && bytes[0] == b'.' && (bytes[1].is_ascii_digit() || is_any(text, &[".inf", ".nan"]));
    // Null and truth values, those of YAML 1.1 among them.
    let word = is_any(text, &["null", "none", "true", "false", "yes", "no", "on", "off", "y", "n"]);
    !bytes.is_empty() && !number && !word
}

const fn is_any(text: &str, words: &[&str]) -> bool {
    let mut at = 0;
    while at < words.len() {
        if text.eq_ignore_ascii_case(words[at]) {
            return true;
        }
        at += 1;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use tune_yaml::{Kind, Scalar};

    #[test]
    fn plain_text_is_read_as_text() {
        for text in ["a", "a.b/c-d", ".hidden", "/x", "_", "out_1", ".", "..", "e5", "nullable", "inf"] {
            assert!(is_plain(text) && Scalar::plain(text).kind() == Kind::Text, "{text}");
        }
        for text in ["", "1", "-a", ".5", ".inf", ".NaN", "None", "NULL", "yes", "Off", "a b", "a:", "~", "ü"] {
            assert!(!is_plain(text), "{text}");
        }
    }

    #[test]
    fn other_text_stands_in_quotes() {
        const QUOTED: Text<40> = {
            let mut out = Text::new();
            text("a \"b\"\n", &mut out);
            out
        };
        assert_eq!(QUOTED.as_str(), r#""a \"b\"\n""#);
    }
}
