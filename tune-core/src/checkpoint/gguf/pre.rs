//! How text is cut before byte-pair encoding, by the name that `tokenizer.ggml.pre` gives.

use serde_json::{Value, json};

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

/// The names that are known, some under several.
pub(super) const NAMES: &[&str] = &[
    "default",
    "gpt-2",
    "gpt2",
    "smollm",
    "starcoder",
    "refact",
    "command-r",
    "codeshell",
    "exaone",
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "pixtral",
    "smaug-bpe",
    "dbrx",
    "olmo",
    "olmo2",
    "phi-2",
    "mpt",
    "jina-en",
    "jina-es",
    "jina-de",
    "roberta-bpe",
    "qwen2",
    "deepseek-r1-qwen",
    "stablelm2",
    "megrez",
    "tekken",
    "gpt-4o",
    "llama4",
];

/// The cut of that name; none where it is not known.
pub(super) fn named(name: &str) -> Option<Pre> {
    let plain = Pre { splits: &[], gpt2: false, nfc: false, ignore_merges: false };
    Some(match name {
        "default" => Pre { splits: DEFAULT, ..plain },
        "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jina-en" | "jina-es" | "jina-de" | "roberta-bpe" => {
            Pre { gpt2: true, ..plain }
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => {
            Pre { splits: &[DIGIT], gpt2: true, ..plain }
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" => {
            Pre { splits: &[LLAMA3], ignore_merges: true, ..plain }
        }
        "smaug-bpe" | "dbrx" | "olmo2" => Pre { splits: &[LLAMA3], ..plain },
        "qwen2" | "deepseek-r1-qwen" => Pre { splits: &[QWEN2], nfc: true, ..plain },
        "stablelm2" | "megrez" => Pre { splits: &[QWEN2], ..plain },
        "tekken" => Pre { splits: &[TEKKEN], ignore_merges: true, ..plain },
        "gpt-4o" | "llama4" => Pre { splits: &[GPT4O], ..plain },
        _ => return None,
    })
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
