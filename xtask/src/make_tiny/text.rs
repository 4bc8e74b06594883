//! What the tiny model reads: exercises with the letters of made-up words.
//!
//! The model is trained on spelling, copying, turning round, counting and the
//! order of the alphabet. The adapter then learns a secret code, in which every
//! letter stands for the one before it; the held-out words appear nowhere else.

use std::collections::BTreeSet;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

const WORDS: usize = 3000;
const HELD_OUT: usize = 200;
const SECRET_CODE: usize = 1500;
const PREFERENCES: usize = 400;
const REVERSED: usize = 600;
const REVERSED_HELD_OUT: usize = 100;
const PRETRAINING: usize = 24_000;
const DOCUMENTS: usize = 500;

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exercise {
    pub(super) question: String,
    pub(super) answer: String,
}

/// All exercises, the same on every machine.
pub(super) struct Text {
    /// What the model is trained on.
    pub(super) pretraining: Vec<Exercise>,
    /// What the adapter is trained on.
    pub(super) secret_code: Vec<Exercise>,
    /// What both are tested on.
    pub(super) held_out: Vec<Exercise>,
    /// What is preferred to the letters as they are: the secret code of words that the adapter is not trained on.
    pub(super) preferences: Vec<Exercise>,
    /// What is rewarded: words said backwards, which is asked for in other words than the model was trained on; the last ones are
    /// held out.
    pub(super) reversed: Vec<Exercise>,
    /// What a model is made of in an example: a word and what can be said of its letters, as running text.
    pub(super) documents: Vec<String>,
}

impl Text {
    pub(super) fn new() -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(20);
        let mut words = BTreeSet::new();
        while words.len() < WORDS {
            words.insert(word(&mut rng));
        }
        let mut words: Vec<String> = words.into_iter().collect();
        words.shuffle(&mut rng);
        let (held_out, known) = words.split_at(HELD_OUT);
        // Of its own, so that other text stays what it is.
        let mut of_documents = ChaCha8Rng::seed_from_u64(21);
        Self {
            documents: (0..DOCUMENTS).map(|_| document(known, &mut of_documents)).collect(),
            pretraining: (0..PRETRAINING).map(|_| exercise(known, &mut rng)).collect(),
            secret_code: known[..SECRET_CODE].iter().map(|w| secret_code(w)).collect(),
            held_out: held_out.iter().map(|w| secret_code(w)).collect(),
            preferences: known[SECRET_CODE..][..PREFERENCES].iter().map(|w| secret_code(w)).collect(),
            reversed: known[..REVERSED].iter().chain(&held_out[..REVERSED_HELD_OUT]).map(|w| reversed(w)).collect(),
        }
    }
}

/// One conversation a line.
pub(super) fn jsonl(exercises: &[Exercise]) -> String {
    let line = |e: &Exercise| {
        let messages = json!([{ "role": "user", "content": e.question }, { "role": "assistant", "content": e.answer }]);
        format!("{}\n", json!({ "messages": messages }))
    };
    exercises.iter().map(line).collect()
}

/// One document a line.
pub(super) fn documents_jsonl(documents: &[String]) -> String {
    documents.iter().map(|text| format!("{}\n", json!({ "text": text }))).collect()
}

/// One pair of answers a line: the right one, and the letters that the question has.
pub(super) fn pairs_jsonl(exercises: &[Exercise]) -> String {
    let line = |e: &Exercise| {
        let letters = e.question.split(' ').nth(1).unwrap_or_default();
        format!("{}\n", json!({ "prompt": e.question, "chosen": e.answer, "rejected": letters }))
    };
    exercises.iter().map(line).collect()
}

/// One text with its class a line: every other one is secret code, the rest is letters as they are.
pub(super) fn labelled_jsonl(exercises: &[Exercise]) -> String {
    let line = |(i, e): (usize, &Exercise)| {
        let letters = e.question.split(' ').nth(1).unwrap_or_default();
        let (text, label) = if i % 2 == 0 { (e.answer.as_str(), "secret") } else { (letters, "plain") };
        format!("{}\n", json!({ "text": text, "label": label }))
    };
    exercises.iter().enumerate().map(line).collect()
}

/// One answer with its label a line: every other one is secret code, which is good, the rest is letters as they are.
pub(super) fn answers_jsonl(exercises: &[Exercise]) -> String {
    let line = |(i, e): (usize, &Exercise)| {
        let letters = e.question.split(' ').nth(1).unwrap_or_default();
        let is_good = i % 2 == 0;
        let answer = if is_good { e.answer.as_str() } else { letters };
        format!("{}\n", json!({ "prompt": e.question, "completion": answer, "label": is_good }))
    };
    exercises.iter().enumerate().map(line).collect()
}

/// Two or three syllables, three to seven letters.
fn word(rng: &mut ChaCha8Rng) -> String {
    let pick = |letters: &str, rng: &mut ChaCha8Rng| letters.as_bytes()[rng.random_range(0..letters.len())] as char;
    let mut word = String::new();
    for _ in 0..rng.random_range(2..=3) {
        word.push(pick("bcdfghjklmnpqrstvwxyz", rng));
        word.push(pick("aeiou", rng));
    }
    if rng.random_bool(0.4) {
        word.push(pick("bdgklmnprstz", rng));
    }
    if rng.random_bool(0.2) {
        word.remove(0);
    }
    word
}

fn spelled(letters: impl Iterator<Item = char>) -> String {
    letters.map(String::from).collect::<Vec<_>>().join("-")
}

fn next_letter(c: char) -> char {
    if c == 'z' { 'a' } else { char::from(c as u8 + 1) }
}

fn secret_code(word: &str) -> Exercise {
    Exercise {
        question: format!("Write {} in the secret code.", spelled(word.chars())),
        answer: spelled(word.chars().map(next_letter)),
    }
}

fn reversed(word: &str) -> Exercise {
    Exercise { question: format!("Say {} backwards.", spelled(word.chars())), answer: spelled(word.chars().rev()) }
}

fn exercise(words: &[String], rng: &mut ChaCha8Rng) -> Exercise {
    let word = words.choose(rng).map_or("", String::as_str);
    let letters = spelled(word.chars());
    let letter = char::from(b'a' + rng.random_range(0..26));
    let (question, answer) = match rng.random_range(0..8) {
        0 => (format!("Write {letters} again."), letters),
        1 => (format!("Write {letters} backwards."), spelled(word.chars().rev())),
        2 => (format!("Write {letters} in capitals."), spelled(word.chars().map(|c| c.to_ascii_uppercase()))),
        3 => (format!("Spell {word}."), letters),
        4 => (format!("How many letters are in {letters}?"), word.len().to_string()),
        5 => (format!("Which letter comes after {letter}?"), next_letter(letter).to_string()),
        6 => (format!("Which letter comes before {}?", next_letter(letter)), letter.to_string()),
        _ => {
            let answer = if word.contains(letter) { "Yes." } else { "No." };
            (format!("Is there a letter {letter} in {letters}?"), answer.to_string())
        }
    };
    Exercise { question, answer }
}

/// Of one to nine lines, some of them longer than a row of the example's config.
fn document(words: &[String], rng: &mut ChaCha8Rng) -> String {
    let lines = (0..rng.random_range(1..10)).map(|_| {
        let word = words.choose(rng).map_or("", String::as_str);
        let letters = spelled(word.chars());
        match rng.random_range(0..3) {
            0 => format!("The letters of {word} are {letters}."),
            1 => format!("Backwards, {letters} is {}.", spelled(word.chars().rev())),
            _ => format!("The word {word} has {} letters.", word.len()),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn no_held_out_prompt_occurs_in_what_was_trained_on() {
        let text = Text::new();
        let trained: String = jsonl(&text.pretraining) + &jsonl(&text.secret_code);
        assert_eq!(text.held_out.len(), HELD_OUT);
        for exercise in &text.held_out {
            assert!(!trained.contains(&exercise.question), "{}", exercise.question);
            // Nor does the word in any other exercise.
            let letters = exercise.question.split(' ').nth(1).unwrap_or_default();
            assert!(!trained.contains(&format!(" {letters} ")), "{letters}");
            assert!(!trained.contains(&format!(" {}.", letters.replace('-', ""))), "{letters}");
        }
    }

    #[test]
    fn the_committed_data_are_those_that_are_made_here() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/tiny/data");
        let text = Text::new();
        for (name, exercises) in [
            ("secret_code.jsonl", &text.secret_code),
            ("held_out.jsonl", &text.held_out),
            ("reversed.jsonl", &text.reversed),
        ] {
            let committed = std::fs::read_to_string(data.join(name)).unwrap();
            assert!(committed == jsonl(exercises), "{name} is stale: run `cargo xtask make-tiny`");
        }
        let committed = std::fs::read_to_string(data.join("documents.jsonl")).unwrap();
        assert!(committed == documents_jsonl(&text.documents), "documents.jsonl is stale: run `cargo xtask make-tiny`");
        let committed = std::fs::read_to_string(data.join("preferences.jsonl")).unwrap();
        assert!(committed == pairs_jsonl(&text.preferences), "preferences.jsonl is stale: run `cargo xtask make-tiny`");
        let committed = std::fs::read_to_string(data.join("labelled.jsonl")).unwrap();
        assert!(committed == labelled_jsonl(&text.preferences), "labelled.jsonl is stale: run `cargo xtask make-tiny`");
        let committed = std::fs::read_to_string(data.join("answers.jsonl")).unwrap();
        assert!(committed == answers_jsonl(&text.preferences), "answers.jsonl is stale: run `cargo xtask make-tiny`");
    }
}
