//! What to do about text that is no JSON: mistakes that programs and people make, by what is written where the parser stops.

use crate::files::is_lfs_pointer;

/// The advice for a line of a file of JSON lines; empty where nothing comes to mind.
pub(super) fn of_a_line(line: &[u8], error: &serde_json::Error) -> &'static str {
    match of(line, error) {
        "" if error.is_eof() => {
            "; the record is cut off, or goes on in the next line: records of several lines are read with `source: json`"
        }
        "" if error.to_string().starts_with("trailing characters") => {
            "; a line holds one record: records of several lines are read with `source: json`"
        }
        advice => advice,
    }
}

/// The advice for any text; empty where nothing comes to mind.
pub(super) fn of(text: &[u8], error: &serde_json::Error) -> &'static str {
    let line = text.split(|&byte| byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or(text);
    // The parser is at the first byte that does not fit, or has just taken it.
    let ends =
        [error.column(), error.column() + 1].map(|column| line.get(column.saturating_sub(2)..).unwrap_or_default());
    let stops_at = |word: &str| ends.iter().any(|rest| rest.starts_with(word.as_bytes()));
    if is_lfs_pointer(text) {
        "; it is a Git LFS pointer, not the data: run `git lfs pull` in its folder"
    } else if ["NaN", "Infinity", "-Infinity"].into_iter().any(stops_at) {
        "; JSON has no NaN and no Infinity: write null"
    } else if ["'", "True", "False", "None"].into_iter().any(stops_at) {
        "; this is Python's form of it: `json.dumps(record)` writes JSON"
    } else if error.to_string().contains("surrogate") || error.to_string().contains("end of hex escape") {
        "; a `\\ud8..` or `\\udc..` is half of a character: remove it, or write the character itself"
    } else {
        ""
    }
}
