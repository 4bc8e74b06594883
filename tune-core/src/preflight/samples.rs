//! A few samples as the model will see them.

use std::ops::Range;

use tune_hub::plain;

use crate::data::{self, IGNORE, Loader, Sample};
use crate::preflight::report::{Report, Style};
use crate::recipe::Outline;
use crate::tokenizer::Tokenizer;
use crate::words::count;

/// Samples that are shown of each dataset.
const EACH: usize = 2;
/// Samples that are shown of all.
const ALL: usize = 4;
/// Longer stretches of text are shown without their middle, in characters.
const LONGEST: usize = 480;
/// Stretches of a sample that are shown.
const STRETCHES: usize = 24;
/// Around what is trained, where there are no colours.
const MARKS: (&str, &str) = ("«", "»");

/// Shows the first samples of each dataset, also where not all of the data is sound.
pub(super) fn show(outline: &Outline, tokenizer: &Tokenizer, train_data: Option<&Loader>, report: &mut Report<'_>) {
    let samples = match train_data {
        Some(loader) => loader.examples(EACH),
        None => data::examples(&outline.data.dataset, tokenizer, outline.data.tokenizer.max_seq_len, EACH),
    };
    if samples.is_empty() {
        return;
    }
    let trained = match report.color() {
        true => report.paint(Style::Green, "trained"),
        false => format!("{}trained{}", MARKS.0, MARKS.1),
    };
    report.line(&format!("\nSamples as the model sees them ({trained}, ⏎ is a line break):"));
    for sample in samples.iter().take(ALL) {
        let trained = sample.targets.iter().filter(|&&target| target != IGNORE).count();
        let origin = plain(&sample.origin);
        let label = sample.label.map_or("", |is_good| if is_good { ", labelled good" } else { ", labelled bad" });
        let head = format!("{origin}, {}, {trained} of them trained{label}", count(sample.input_ids.len(), "token"));
        report.line(&format!("\n{}", report.paint(Style::Dim, &head)));
        let text = text(sample, tokenizer, report);
        report.line(text.trim_end_matches('\n'));
    }
}

/// Tokens next to each other of which the same is to be said.
struct Stretch {
    tokens: Range<usize>,
    trained: bool,
    special: bool,
}

fn stretches(sample: &Sample, tokenizer: &Tokenizer) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for (i, &id) in sample.input_ids.iter().enumerate() {
        // The target of a position is the token behind it.
        let trained = i > 0 && sample.targets[i - 1] != IGNORE;
        let special = tokenizer.is_special(id);
        match stretches.last_mut() {
            Some(last) if last.trained == trained && last.special == special => last.tokens.end = i + 1,
            _ => stretches.push(Stretch { tokens: i..i + 1, trained, special }),
        }
    }
    stretches
}

fn text(sample: &Sample, tokenizer: &Tokenizer, report: &Report<'_>) -> String {
    let stretches = stretches(sample, tokenizer);
    let left_out = stretches.len().saturating_sub(STRETCHES);
    let mut text = String::new();
    let mut trained = false;
    for stretch in &stretches[..stretches.len() - left_out] {
        if !report.color() && stretch.trained != trained {
            text += if trained { MARKS.1 } else { MARKS.0 };
        }
        trained = stretch.trained;
        let style = match (stretch.trained, stretch.special) {
            (true, true) => Some(Style::GreenUnderlined),
            (true, false) => Some(Style::Green),
            (false, true) => Some(Style::Cyan),
            (false, false) => None,
        };
        let shown = visible(&shortened(&decoded(sample, &stretch.tokens, tokenizer)));
        // Line by line: a style that spans lines is a nuisance to pagers.
        let lines = shown.split('\n').map(|line| match style {
            Some(style) if !line.is_empty() => report.paint(style, line),
            _ => line.to_owned(),
        });
        text += &lines.collect::<Vec<_>>().join("\n");
    }
    if !report.color() && trained {
        text += MARKS.1;
    }
    if left_out > 0 {
        let tokens = sample.input_ids.len() - stretches[stretches.len() - left_out].tokens.start;
        text += &format!("… ({tokens} more tokens)");
    }
    text
}

/// The text of some of the tokens as it stands in the whole: decoded alone, a word may lose the space before it.
fn decoded(sample: &Sample, tokens: &Range<usize>, tokenizer: &Tokenizer) -> String {
    let decode = |range: Range<usize>| tokenizer.decode(&sample.input_ids[range], false).unwrap_or_default();
    let (before, with) = (decode(0..tokens.start), decode(0..tokens.end));
    with.strip_prefix(&before).map_or_else(|| decode(tokens.clone()), str::to_owned)
}

/// The beginning and the end of a long text.
fn shortened(text: &str) -> String {
    let length = text.chars().count();
    if length <= LONGEST {
        return text.to_owned();
    }
    let head: String = text.chars().take(LONGEST / 2).collect();
    let tail: String = text.chars().skip(length - LONGEST / 2).collect();
    format!("{head} … ({} characters) … {tail}", length - 2 * (LONGEST / 2))
}

/// Line breaks and tabs with a mark, and what would do something to a terminal as its code.
fn visible(text: &str) -> String {
    plain(text).replace('\n', "⏎\n").replace('\t', "→")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::testing;

    /// A sample of a part that is not trained and one that is, in a report with or without colours.
    fn shown(prompt: &str, answer: &str, color: bool) -> String {
        let tokenizer = testing::byte_level(None);
        let mut input_ids = tokenizer.encode(prompt).unwrap();
        let begin = input_ids.len();
        input_ids.extend(tokenizer.encode_continuation(answer).unwrap());
        let target = |next: usize| input_ids.get(next).copied().filter(|_| next >= begin).unwrap_or(IGNORE);
        let targets = (1..=input_ids.len()).map(target).collect();
        let sample = Sample { input_ids, targets, origin: "x.jsonl:1".into(), label: None };
        let mut out = Vec::new();
        text(&sample, &tokenizer, &Report::new(&mut out, color))
    }

    #[test]
    fn what_is_trained_is_marked() {
        assert_eq!(shown("<|user|>a b\n", "c\nd<|end|>", false), "<|user|>a b⏎\n«c⏎\nd<|end|>»");
        assert_eq!(
            shown("<|user|>a\n", "c\nd<|end|>", true),
            "\x1b[36m<|user|>\x1b[0ma⏎\n\x1b[32mc⏎\x1b[0m\n\x1b[32md\x1b[0m\x1b[4;32m<|end|>\x1b[0m"
        );
    }

    #[test]
    fn a_character_whose_bytes_are_on_both_sides_is_shown() {
        // The umlaut is two tokens.
        assert_eq!(shown("für", "über", false), "für«über»");
    }

    #[test]
    fn what_would_do_something_to_a_terminal_is_shown() {
        // It would turn the text around.
        assert_eq!(shown("a\u{202e}b", "c", false), "a\\u{202e}b«c»");
        assert_eq!(shown("a\tb", "\u{1b}[31mred\u{7}", false), "a→b«\\u{1b}[31mred\\u{7}»");
    }

    #[test]
    fn long_texts_are_shortened() {
        let text = shown(&"x".repeat(1000), "y", false);
        assert!(text.contains("x … (520 characters) … x") && text.ends_with("x«y»"), "{text}");
        let text = shown(&"a<|end|>".repeat(50), "y", false);
        assert!(text.ends_with("… (77 more tokens)"), "{text}");
    }
}
