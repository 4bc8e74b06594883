//! Tokens that `tokenizer_config.json` adds to those of `tokenizer.json`, or has otherwise.
//!
//! In the order in which transformers adds them: `added_tokens_decoder`, whose flags count where the two files
//! disagree, the special tokens that have a name, and the others.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::{NAMED, token_text};

/// Adds them to a tokenizer. A named token that is not in the vocabulary is left for others to complain about.
pub(super) fn add(
    inner: &mut tokenizers::Tokenizer,
    config: &Value,
    special: &std::collections::BTreeMap<String, String>,
) -> tokenizers::Result<()> {
    let mut known: Vec<AddedToken> = inner.get_added_tokens_decoder().into_values().collect();
    let mut new: Vec<AddedToken> = Vec::new();

    let listed = config["added_tokens_decoder"].as_object();
    let mut listed: Vec<(u32, AddedToken)> =
        listed.into_iter().flatten().filter_map(|(id, token)| Some((id.parse().ok()?, added(token)?))).collect();
    listed.sort_by_key(|(id, _)| *id);
    new.extend(listed.into_iter().map(|(_, token)| token).filter(|token| !known.iter().any(|k| same(k, token))));
    known.extend(new.iter().cloned());

    let named = NAMED.iter().filter_map(|name| special.get(*name)).filter(|token| inner.token_to_id(token).is_some());
    let others = ["extra_special_tokens", "additional_special_tokens"].iter().flat_map(|key| others(&config[*key]));
    for token in named.map(|token| AddedToken::from(token.clone(), true)).chain(others) {
        if !known.iter().any(|k| k.content == token.content) {
            known.push(token.clone());
            new.push(token);
        }
    }
    if !new.is_empty() {
        inner.add_tokens(new)?;
    }
    Ok(())
}

/// Whether two tokens are alike in all that counts. The library compares the text alone in places.
fn same(a: &AddedToken, b: &AddedToken) -> bool {
    let flags = |t: &AddedToken| (t.single_word, t.lstrip, t.rstrip, t.normalized, t.special);
    a.content == b.content && flags(a) == flags(b)
}

/// A token with its flags.
fn added(token: &Value) -> Option<AddedToken> {
    let fields: &Map<String, Value> = token.as_object()?;
    let flag = |key: &str| fields.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Some(AddedToken {
        content: fields.get("content")?.as_str().filter(|content| !content.is_empty())?.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}

/// Special tokens without a name of their own: a list, or names with their tokens.
fn others(tokens: &Value) -> Vec<AddedToken> {
    let tokens: Vec<&Value> = match tokens {
        Value::Array(tokens) => tokens.iter().collect(),
        Value::Object(tokens) => tokens.values().collect(),
        _ => Vec::new(),
    };
    let special = |token: &&Value| match token {
        Value::String(text) => Some(AddedToken::from(text.clone(), true)),
        _ => added(token).map(|token| token.special(true)).or_else(|| Some(AddedToken::from(token_text(token)?, true))),
    };
    tokens.iter().filter_map(special).collect()
}
