//! "Did you mean": the name that was probably meant.

/// The candidate that `written` is most likely a slip of, if one is near
/// enough: a third of its letters may differ, or one of them is contained in
/// the other as a whole word.
pub fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody mistypes a name this long, and the distance is quadratic.
    if written.is_empty() || written.len() > 100 {
        return None;
    }
    let fold = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let written = fold(written);
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates.into_iter().take(500) {
        let folded = fold(candidate);
        let distance = strsim::osa_distance(&written, &folded);
        let allowed = (written.len().max(folded.len()) / 3).max(1);
        let score = if distance <= allowed && distance < folded.len() {
            distance
        } else if words_of(&written, &folded) || words_of(&folded, &written) {
            // Worse than any slip of the finger.
            100 + distance
        } else {
            continue;
        };
        if best.is_none_or(|(least, _)| score < least) {
            best = Some((score, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// Whether `part` is one or more whole words of `name` (`lr` of `max_lr`).
fn words_of(part: &str, name: &str) -> bool {
    part.len() > 1
        && name.match_indices(part).any(|(at, _)| {
            let end = at + part.len();
            (at == 0 || name.as_bytes()[at - 1] == b'_') && (end == name.len() || name.as_bytes()[end] == b'_')
        })
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
            ("size", "batch_size"),
        ] {
            assert_eq!(nearest(written, keys), Some(meant), "{written}");
        }
        for written in ["", "zzz", "x", "weight_decay"] {
            assert_eq!(nearest(written, keys), None, "{written}");
        }
    }
}
