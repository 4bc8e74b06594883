//! From a record to the pieces of a sample, for each kind of dataset.

use super::config::{AlpacaDataset, DatasetConfig, InstructDataset, Mask, Masking, TextDataset};
use super::conversation::{conversation, message, set_system_prompt, text_column};
use super::pieces::{self, Closing, Encoded, Encoder, Piece, Sink};
use super::records::Record;
use crate::tokenizer::{ChatTemplate, Conversation, Message, Tokenizer};
use crate::{Error, Result};

/// What a record holds, before anything is rendered or tokenized.
enum Form {
    Conversation(Vec<Message>),
    Pieces(Vec<Piece>, Closing),
}

/// Makes samples of one dataset's records.
pub(super) struct Formatter<'a> {
    config: &'a DatasetConfig,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    masking: Masking,
    prompt: Option<PromptTemplate>,
}

impl<'a> Formatter<'a> {
    pub(super) fn new(config: &'a DatasetConfig, tokenizer: &'a Tokenizer) -> Result<Self> {
        let template = match config {
            DatasetConfig::Chat(_) => Some(required_template(tokenizer, "a chat dataset needs one")?),
            DatasetConfig::Instruct(InstructDataset { apply_chat_template: choice, .. })
            | DatasetConfig::Alpaca(AlpacaDataset { apply_chat_template: choice, .. }) => match choice {
                Some(false) => None,
                Some(true) => Some(required_template(tokenizer, "`apply_chat_template` asks for it")?),
                None => tokenizer.chat_template(),
            },
            DatasetConfig::Text(_) => None,
        };
        let masking = match config {
            DatasetConfig::Chat(c) => masking(&c.mask, Masking::Assistant)?,
            DatasetConfig::Instruct(c) => masking(&c.mask, Masking::Assistant)?,
            DatasetConfig::Alpaca(c) => masking(&c.mask, Masking::All)?,
            DatasetConfig::Text(_) => Masking::All,
        };
        let prompt = match config {
            DatasetConfig::Instruct(c) => c.prompt_template.as_deref().map(PromptTemplate::new).transpose()?,
            _ => None,
        };
        Ok(Self { config, tokenizer, template, masking, prompt })
    }

    /// The chat template with which samples are rendered.
    pub(super) fn template(&self) -> Option<&ChatTemplate> {
        self.template
    }

    /// Checks that a record has what this kind of dataset expects. It is far quicker than making the sample.
    pub(super) fn check(&self, record: &Record) -> Result<()> {
        self.form(record).map(drop)
    }

    /// Whether a sample is to end with a stop token that is trained.
    pub(super) fn ends_samples(&self) -> bool {
        !matches!(self.config, DatasetConfig::Text(TextDataset { add_eos: false, .. }))
    }

    /// A record's sample of at most `max_seq_len` tokens. With `count_cut`, what is cut off is looked at, too, to
    /// count it. An error names the record.
    pub(super) fn encode(
        &self,
        record: &Record,
        max_seq_len: Option<usize>,
        count_cut: bool,
    ) -> Result<(Encoded, Closing)> {
        let encoder = || Encoder::new(self.tokenizer, max_seq_len);
        if count_cut && let Ok(encoded) = self.encode_with(record, encoder().counting()) {
            return Ok(encoded);
        }
        // A mistake in what is cut off is none.
        self.encode_with(record, encoder())
    }

    fn encode_with(&self, record: &Record, mut encoder: Encoder<'_>) -> Result<(Encoded, Closing)> {
        let closing = match self.form(record)? {
            Form::Conversation(messages) => {
                let template = required_template(self.tokenizer, "a conversation needs one")?;
                let conversation = Conversation::new(messages);
                pieces::of_conversation(template, self.tokenizer, &conversation, self.masking, &mut encoder)
            }
            Form::Pieces(pieces, closing) => {
                pieces.into_iter().try_for_each(|piece| encoder.push(piece)).map(|()| closing)
            }
        };
        let closing = closing.map_err(|e| record.origin.error(e))?;
        Ok((encoder.finish(record.origin.to_string()), closing))
    }

    fn form(&self, record: &Record) -> Result<Form> {
        match self.config {
            DatasetConfig::Chat(config) => conversation(record, config).map(Form::Conversation),
            DatasetConfig::Instruct(config) => {
                let columns = &config.column_map;
                let input = text_column(record, &columns.input)?;
                let output = text_column(record, &columns.output)?;
                let (prompt, answer) = match &self.prompt {
                    Some(template) => template.fill(input, output),
                    None => (input.to_owned(), output.to_owned()),
                };
                let system = config.new_system_prompt.as_deref();
                Ok(self.question(system, prompt, answer))
            }
            DatasetConfig::Alpaca(config) => {
                let (prompt, answer) = alpaca(record, config)?;
                Ok(self.question(None, prompt, answer))
            }
            DatasetConfig::Text(config) => self.text(record, config),
        }
    }

    fn question(&self, system: Option<&str>, prompt: String, answer: String) -> Form {
        if self.template.is_some() {
            let mut messages = vec![message("user", prompt), message("assistant", answer)];
            if let Some(system) = system {
                set_system_prompt(&mut messages, system);
            }
            return Form::Conversation(messages);
        }
        let prompt = match system {
            Some(system) => format!("{system}\n\n{prompt}"),
            None => prompt,
        };
        let mut pieces = self.beginning();
        pieces.push(Piece::text(prompt, self.masking == Masking::All));
        pieces.push(Piece::text(answer, true));
        let closing = self.end(&mut pieces);
        Form::Pieces(pieces, closing)
    }

    fn text(&self, record: &Record, config: &TextDataset) -> Result<Form> {
        let text = text_column(record, &config.column)?;
        let mut pieces = self.beginning();
        pieces.push(Piece::text(text, true));
        // Whoever turns `add_eos` off does not want the text to end.
        let closing = if config.add_eos { self.end(&mut pieces) } else { Closing::Stop };
        Ok(Form::Pieces(pieces, closing))
    }

    /// What this tokenizer puts in front of every text.
    fn beginning(&self) -> Vec<Piece> {
        match self.tokenizer.bos() {
            Some(bos) if self.tokenizer.begins_with_bos() => vec![Piece::token(bos, false)],
            _ => Vec::new(),
        }
    }

    fn end(&self, pieces: &mut Vec<Piece>) -> Closing {
        match self.tokenizer.eos() {
            Some(eos) => {
                pieces.push(Piece::token(eos, true));
                Closing::Stop
            }
            None => Closing::Nothing,
        }
    }
}

fn required_template<'a>(tokenizer: &'a Tokenizer, why: &str) -> Result<&'a ChatTemplate> {
    tokenizer.chat_template().ok_or_else(|| {
        Error::setup(format!(
            "the model's tokenizer has no chat template, and {why}; a base model can be trained with an `instruct` \
             dataset, or put a `chat_template.jinja` beside its tokenizer.json"
        ))
    })
}

fn masking(mask: &Mask, default: Masking) -> Result<Masking> {
    match (mask.masking_strategy, mask.train_on_input) {
        (Some(Masking::All), Some(false)) | (Some(Masking::Assistant | Masking::Last), Some(true)) => {
            Err(Error::setup("`masking_strategy` and `train_on_input` contradict each other; remove `train_on_input`"))
        }
        (Some(strategy), _) => Ok(strategy),
        (None, Some(true)) => Ok(Masking::All),
        (None, Some(false)) => Ok(Masking::Assistant),
        (None, None) => Ok(default),
    }
}

/// `Question: {input}\nAnswer: {output}`, in three parts.
struct PromptTemplate {
    before_input: String,
    before_output: String,
    after_output: String,
}

impl PromptTemplate {
    fn new(template: &str) -> Result<Self> {
        let wrong = |what: &str| {
            Error::setup(format!(
                "`prompt_template` {what}; expected a text like \"Question: {{input}}\\nAnswer: {{output}}\""
            ))
        };
        let (before_input, rest) = template.split_once("{input}").ok_or_else(|| wrong("has no `{input}`"))?;
        let (before_output, after_output) = rest.split_once("{output}").unwrap_or((rest, ""));
        if [before_input, before_output, after_output]
            .iter()
            .any(|part| part.contains("{input}") || part.contains("{output}"))
        {
            return Err(wrong("must have `{input}` once and after it `{output}` once"));
        }
        Ok(Self {
            before_input: before_input.to_owned(),
            before_output: before_output.to_owned(),
            after_output: after_output.to_owned(),
        })
    }

    /// The prompt and the answer.
    fn fill(&self, input: &str, output: &str) -> (String, String) {
        (format!("{}{input}{}", self.before_input, self.before_output), format!("{output}{}", self.after_output))
    }
}

/// Alpaca's prompt, which has a section for the input if there is one, and the answer.
fn alpaca(record: &Record, config: &AlpacaDataset) -> Result<(String, String)> {
    let columns = &config.column_map;
    let instruction = text_column(record, &columns.instruction)?;
    let input = match record.columns.get(&columns.input) {
        None | Some(serde_json::Value::Null) => "",
        Some(_) => text_column(record, &columns.input)?,
    };
    let output = text_column(record, &columns.output)?;
    let prompt = if input.is_empty() {
        format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        )
    } else {
        format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. \
             Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n\
             ### Input:\n{input}\n\n### Response:\n"
        )
    };
    Ok((prompt, output.to_owned()))
}
