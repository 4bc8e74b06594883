use super::super::testing::{byte_level, sentence_piece};
use super::*;

/// Text with everything in it that windows may be parted at.
fn text(words: usize) -> String {
    let word = |i: usize| match i % 11 {
        3 => "\n  ".to_owned(),
        5 => format!("<|im_end|>{i}"),
        7 => "für 🦀".to_owned(),
        9 => " ".repeat(i % 5),
        _ => format!("word{i} "),
    };
    (0..words).map(word).collect()
}

#[test]
fn a_text_in_windows_has_the_tokens_of_the_whole() {
    for tokenizer in [byte_level(None), sentence_piece(None)] {
        for text in [text(2000), "ab".repeat(5000), " ".repeat(3000) + "x"] {
            let whole = tokenizer.window(&text, 0..text.len()).unwrap();
            for window in [512, 1000, 4096] {
                let tokens = tokenizer.windows(&text, usize::MAX, window).unwrap();
                assert!(tokens.complete);
                assert_eq!(tokens.tokens, whole, "{window} {text:.20?}");
                let first = tokenizer.windows(&text, 100, window).unwrap();
                assert!(first.tokens.len() >= 100 && whole.starts_with(&first.tokens));
            }
        }
    }
}

#[test]
fn of_a_long_text_no_more_is_encoded_than_wanted() {
    let text = text(200_000);
    assert!(text.len() > 4 * WINDOW);
    let first = byte_level(None).tokens(&text, 10).unwrap();
    assert!(!first.complete && first.tokens.len() >= 10 && first.tokens.len() <= WINDOW);
}

#[test]
fn a_continuation_keeps_its_own_line_breaks_and_spaces() {
    let tokenizer = sentence_piece(None);
    let tokens = |text: &str| -> Vec<String> {
        let ids = tokenizer.encode_continuation(text).unwrap();
        ids.iter().filter_map(|&id| tokenizer.token(id)).collect()
    };
    assert_eq!(tokens("\n\na"), ["\n", "\n", "a"]);
    assert_eq!(tokens("  a"), ["\u{2581}", "\u{2581}", "a"]);
    // A special token has a space behind it here, as in the middle of a text.
    assert_eq!(tokens("<|im_end|>a"), ["<|im_end|>", "\u{2581}", "a"]);
    assert_eq!(tokens(""), [""; 0]);
}
