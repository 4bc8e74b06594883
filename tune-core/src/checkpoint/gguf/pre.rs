//! How text is cut before byte-pair encoding, by the name that `tokenizer.ggml.pre` gives.

use serde_json::{Value, json};

use super::vocabulary::steps;

/// A way to cut, and what belongs to it.
pub(super) struct Pre {
    /// Regular expressions applied one after the other, each to the pieces of the one before.
    splits: &'static [&'static str],
    /// Then GPT-2's own expression.
    gpt2: bool,
    /// Text is brought to Unicode's composed form first.
    pub(super) nfc: bool,
    /// A piece that is a token as it is, is not merged.
    pub(super) ignore_merges: bool,
    /// A text begins with the begin token where the file does not say.
    pub(super) add_bos: bool,
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
/// What llama.cpp does where a file names nothing.
const DEFAULT: &[&str] = &[
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

const PLAIN: Pre = Pre { splits: &[], gpt2: false, nfc: false, ignore_merges: false, add_bos: false };

/// Names in llama.cpp's terms, and what they stand for.
const KNOWN: &[(&[&str], Pre)] = &[
    (&["default"], Pre { splits: DEFAULT, ..PLAIN }),
    (&["gpt-2", "phi-2", "mpt", "olmo"], Pre { gpt2: true, ..PLAIN }),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        Pre { splits: &[DIGIT], gpt2: true, ..PLAIN },
    ),
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        Pre { splits: &[LLAMA3], ignore_merges: true, add_bos: true, ..PLAIN },
    ),
    (&["smaug-bpe", "dbrx"], Pre { splits: &[LLAMA3], ..PLAIN }),
    (&["qwen2"], Pre { splits: &[QWEN2], nfc: true, ..PLAIN }),
    (&["deepseek-r1-qwen", "stablelm2", "megrez"], Pre { splits: &[QWEN2], ..PLAIN }),
    (&["tekken"], Pre { splits: &[TEKKEN], ignore_merges: true, add_bos: true, ..PLAIN }),
    (&["gpt-4o", "llama4"], Pre { splits: &[GPT4O], ..PLAIN }),
];

/// The cut of that name; none where it is not known.
pub(super) fn named(name: &str) -> Option<&'static Pre> {
    KNOWN.iter().find(|(names, _)| names.contains(&name)).map(|(_, pre)| pre)
}

/// All names that are known.
pub(super) fn names() -> String {
    let names: Vec<&str> = KNOWN.iter().flat_map(|(names, _)| *names).copied().collect();
    names.join(", ")
}

impl Pre {
    /// As `tokenizer.json` says it.
    pub(super) fn to_json(&self) -> Value {
        let mut steps: Vec<Value> = self
            .splits
            .iter()
            .map(|regex| {
                if *regex == DIGIT {
                    return json!({"type": "Digits", "individual_digits": true});
                }
                json!({
                    "type": "Split",
                    "pattern": {"Regex": regex},
                    "behavior": "Isolated",
                    "invert": false,
                })
            })
            .collect();
        let bytes = json!({
            "type": "ByteLevel",
            "add_prefix_space": false,
            "trim_offsets": true,
            "use_regex": self.gpt2,
        });
        if steps.is_empty() {
            return bytes;
        }
        steps.push(bytes);
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

/// llama.cpp's name for the way in which a tokenizer of byte-level BPE cuts text, by its `tokenizer.json`.
pub(super) fn of_tokenizer(json: &Value) -> Option<&'static str> {
    let (mut splits, mut gpt2) = (Vec::new(), false);
    for step in steps(&json["pre_tokenizer"]) {
        match step["type"].as_str()? {
            "Digits" if step["individual_digits"] == true => splits.push(DIGIT),
            "Split" if step["behavior"] == "Isolated" && step["invert"] != true => {
                splits.push(step["pattern"]["Regex"].as_str()?);
            }
            "ByteLevel" if step["add_prefix_space"] == false => gpt2 = step["use_regex"] != false,
            _ => return None,
        }
    }
    let normalizers = steps(&json["normalizer"]);
    let nfc = match normalizers.as_slice() {
        [] => false,
        [one] if one["type"] == "NFC" => true,
        _ => return None,
    };
    let ignore_merges = json["model"]["ignore_merges"] == true;
    let fits = |pre: &Pre| pre.splits == splits.as_slice() && pre.gpt2 == gpt2 && pre.nfc == nfc;
    // Whether a whole word that is a token is looked up first seldom matters: what does is found when the file is read.
    let found = KNOWN.iter().find(|(_, pre)| fits(pre) && pre.ignore_merges == ignore_merges);
    found.or_else(|| KNOWN.iter().find(|(_, pre)| fits(pre))).and_then(|(names, _)| names.first().copied())
}
