//! "Did you mean": the name that was probably meant.

/// The candidate that `written` is most likely a slip of, if one is near
/// enough; see [`slip`].
pub fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates.into_iter().take(500) {
        if let Some(distance) = slip(written, candidate)
            && best.is_none_or(|(least, _)| distance < least)
        {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Nobody mistypes a name this long, and the distance is quadratic.
const LONGEST: usize = 100;

/// How far `written` is from `candidate`, where it may be a slip of it: a third
/// of its letters may differ, or one of them is contained in the other as a
/// whole word, or is its initials. Letters of other scripts count as the bytes that they are.
pub const fn slip(written: &str, candidate: &str) -> Option<usize> {
    let (a, b) = (written.as_bytes(), candidate.as_bytes());
    if a.is_empty() || b.is_empty() || a.len() > LONGEST || b.len() > LONGEST {
        return None;
    }
    let longer = if a.len() > b.len() { a.len() } else { b.len() };
    let allowed = if longer < 6 { 1 } else { longer / 3 };
    let difference = a.len().abs_diff(b.len());
    // The distance is at least the difference in length.
    let distance = if difference > allowed { difference } else { distance(a, b) };
    if distance <= allowed && distance < b.len() {
        Some(distance)
    } else if words_of(a, b) || words_of(b, a) {
        // Worse than any slip of the finger.
        Some(LONGEST + difference)
    } else if initials_of(a, b) || initials_of(b, a) {
        Some(2 * LONGEST + difference)
    } else {
        None
    }
}

/// A letter without its case; a dash is an underscore.
const fn fold(byte: u8) -> u8 {
    if byte == b'-' { b'_' } else { byte.to_ascii_lowercase() }
}

/// Letters that are missing, superfluous, replaced or swapped with the next.
const fn distance(a: &[u8], b: &[u8]) -> usize {
    // The row before the last, the last one and this one.
    let (mut before, mut last, mut this) = ([0_u8; LONGEST + 1], [0_u8; LONGEST + 1], [0_u8; LONGEST + 1]);
    let mut column = 0;
    while column <= b.len() {
        last[column] = column as u8;
        column += 1;
    }
    let mut row = 1;
    while row <= a.len() {
        this[0] = row as u8;
        let mut column = 1;
        while column <= b.len() {
            let (x, y) = (fold(a[row - 1]), fold(b[column - 1]));
            let mut least = last[column - 1] + (x != y) as u8;
            if last[column] + 1 < least {
                least = last[column] + 1;
            }
            if this[column - 1] + 1 < least {
                least = this[column - 1] + 1;
            }
            let swapped = row > 1 && column > 1 && x == fold(b[column - 2]) && y == fold(a[row - 2]);
            if swapped && before[column - 2] + 1 < least {
                least = before[column - 2] + 1;
            }
            this[column] = least;
            column += 1;
        }
        (before, last, this) = (last, this, before);
        row += 1;
    }
    last[b.len()] as usize
}

/// Whether `part` is one or more whole words of `name` (`lr` of `max_lr`).
const fn words_of(part: &[u8], name: &[u8]) -> bool {
    if part.len() < 2 || part.len() > name.len() {
        return false;
    }
    let mut start = 0;
    while start + part.len() <= name.len() {
        let end = start + part.len();
        let is_word = (start == 0 || fold(name[start - 1]) == b'_') && (end == name.len() || fold(name[end]) == b'_');
        let mut at = 0;
        while is_word && at < part.len() && fold(part[at]) == fold(name[start + at]) {
            at += 1;
        }
        if at == part.len() {
            return true;
        }
        start += 1;
    }
    false
}

/// Whether `short` is the first letters of the words of `name` (`lr` of
/// `learning_rate`).
const fn initials_of(short: &[u8], name: &[u8]) -> bool {
    if short.len() < 2 {
        return false;
    }
    let (mut at, mut letters) = (0, 0);
    while at < name.len() {
        if fold(name[at]) != b'_' && (at == 0 || fold(name[at - 1]) == b'_') {
            if letters == short.len() || fold(short[letters]) != fold(name[at]) {
                return false;
            }
            letters += 1;
        }
        at += 1;
    }
    letters == short.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let keys = ["batch_size", "lr", "max_seq_len", "output_dir", "epochs"];
        for (written, meant) in [
            ("batchsize", "batch_size"),
            ("batch-size", "batch_size"),
            ("max_seq_length", "max_seq_len"),
            ("epoch", "epochs"),
            ("epcohs", "epochs"),
            ("max_lr", "lr"),
            ("learning-rate", "lr"),
            ("bs", "batch_size"),
            ("size", "batch_size"),
        ] {
            assert_eq!(nearest(written, keys), Some(meant), "{written}");
        }
        for written in ["", "zzz", "x", "weight_decay", "learning", "b_s_x"] {
            assert_eq!(nearest(written, keys), None, "{written}");
        }
        const AT_COMPILE_TIME: Option<usize> = slip("Bacth-size", "batch_size");
        assert_eq!(AT_COMPILE_TIME, Some(1));
    }
}
