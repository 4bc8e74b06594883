//! The tiny model's tokenizer: byte-level BPE with a ChatML template.

use std::collections::BTreeMap;

use serde_json::json;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};
use tune_core::tokenizer::TokenizerFiles;

use super::text::Exercise;
use crate::Result;

/// Rows of the embedding table.
pub(super) const VOCAB: usize = 384;
/// The id of the token that ends a message.
pub(super) const END: u32 = 1;

const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
                        + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\
                        {% endif %}";

/// Trains the tokenizer on the exercises and returns the files that a checkpoint carries.
pub(super) fn train(exercises: &[Exercise]) -> Result<TokenizerFiles> {
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevelDecoder::new(false, true, true)));
    let special = ["<|im_start|>", "<|im_end|>"].map(|t| AddedToken::from(t, true));
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCAB)
        .special_tokens(special.to_vec())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let texts = exercises.iter().flat_map(|e| [e.question.as_str(), e.answer.as_str()]);
    tokenizer.train(&mut TrainerWrapper::from(trainer), texts).map_err(|e| e.to_string())?;
    let id = tokenizer.token_to_id("<|im_end|>");
    if id != Some(END) {
        return Err(format!("<|im_end|> has the id {id:?} instead of {END}").into());
    }
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": null,
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "model_max_length": 256,
        "chat_template": TEMPLATE,
    });
    let json = tokenizer.to_string(false).map_err(|e| e.to_string())?;
    Ok(TokenizerFiles {
        files: BTreeMap::from([
            ("tokenizer.json".to_string(), json.into_bytes()),
            ("tokenizer_config.json".to_string(), serde_json::to_vec_pretty(&config)?),
        ]),
    })
}
