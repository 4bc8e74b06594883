//! From a record to the pieces of a sample, for each kind of dataset.

use super::config::{AlpacaDataset, DatasetConfig, InstructDataset, Mask, Masking, TextDataset};
use super::content::message;
use super::conversation::{Chat, conversation, is_answer, set_system_prompt, text_column};
use super::encoder::{Encoded, Encoder};
use super::pieces::{self, Closing, Ends, Piece, Sink};
use super::records::{Record, Records};
use super::{alpaca, beside, json_text, stand_in, trained};
use crate::tokenizer::{ChatTemplate, Forms, Message, Names, Tokenizer, unrendered};
use crate::{Error, Result};

/// What a record holds, before anything is rendered or tokenized.
pub(super) enum Form {
    Conversation(Chat),
    Pieces(Vec<Piece>, Closing),
}

/// A record's sample, and what there is to say of it.
pub(super) struct Formatted {
    pub(super) encoded: Encoded,
    pub(super) ends: Ends,
    /// Messages whose calls the chat template renders, and whose text it leaves out.
    pub(super) text_beside_calls: usize,
    /// Whether the record says that nothing of it is trained.
    pub(super) left_out: bool,
}

/// Makes samples of one dataset's records.
pub(super) struct Formatter<'a> {
    pub(super) config: &'a DatasetConfig,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    pub(super) masking: Masking,
    prompt: Option<PromptTemplate>,
    /// The forms of content that the template renders.
    forms: Forms,
    /// The names that it mentions.
    pub(super) names: Names,
}

impl<'a> Formatter<'a> {
    pub(super) fn new(config: &'a DatasetConfig, tokenizer: &'a Tokenizer) -> Result<Self> {
        let template = match config {
            DatasetConfig::Chat(_) => Some(required_template(tokenizer, A_CHAT_NEEDS_ONE)?),
            DatasetConfig::Instruct(InstructDataset { apply_chat_template: choice, .. })
            | DatasetConfig::Alpaca(AlpacaDataset { apply_chat_template: choice, .. }) => match choice {
                Some(false) => None,
                Some(true) => Some(required_template(tokenizer, "`apply_chat_template` asks for one: remove it")?),
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
        let forms = template.map(Forms::of).unwrap_or_default();
        let names = template.map(Names::of).unwrap_or_default();
        Ok(Self { config, tokenizer, template, masking, prompt, forms, names })
    }

    /// Record `i` (from 0) of the dataset.
    pub(super) fn read(&self, records: &Records, i: usize) -> Result<Record> {
        let mut record = records.read(i)?;
        json_text::read_lists(&mut record, self.config);
        Ok(record)
    }

    /// The chat template with which samples are rendered.
    pub(super) fn template(&self) -> Option<&ChatTemplate> {
        self.template
    }

    /// Checks that a record has what this kind of dataset expects. It is far quicker than making the sample.
    pub(super) fn check(&self, record: &Record) -> Result<()> {
        self.form(record).map(drop)
    }

    /// A record's sample of at most `max_seq_len` tokens. With `count_cut`, what is cut off is looked at, too, to
    /// count it. An error names the record.
    pub(super) fn encode(&self, record: &Record, max_seq_len: Option<usize>, count_cut: bool) -> Result<Formatted> {
        let encoder = || Encoder::new(self.tokenizer, max_seq_len);
        if count_cut && let Ok(encoded) = self.encode_with(record, encoder().counting()) {
            return Ok(encoded);
        }
        // A mistake in what is cut off is none.
        self.encode_with(record, encoder())
    }

    fn encode_with(&self, record: &Record, mut encoder: Encoder<'_>) -> Result<Formatted> {
        let form = self.form(record)?;
        let left_out = form.is_left_out();
        let (ends, text_beside_calls) = match form {
            Form::Conversation(chat) => self.pieces(&chat, &mut encoder),
            Form::Pieces(pieces, closing) => {
                pieces.into_iter().try_for_each(|piece| encoder.push(piece)).map(|()| (closing.into(), 0))
            }
        }
        .map_err(|e| record.origin.error(e))?;
        let encoded = encoder.finish(record.origin.to_string()).map_err(|e| record.origin.error(e))?;
        Ok(Formatted { encoded, ends, text_beside_calls, left_out })
    }

    /// Cuts a conversation into pieces. Returns how its answers end, and how many messages' texts the template leaves out
    /// beside their calls.
    fn pieces(&self, chat: &Chat, encoder: &mut Encoder<'_>) -> Result<(Ends, usize)> {
        let template = required_template(self.tokenizer, A_CHAT_NEEDS_ONE)?;
        let beside_calls = unrendered::check(template, &chat.conversation, false)?;
        let ends = pieces::of_conversation(template, self.tokenizer, chat, self.masking, encoder)?;
        Ok((ends, beside_calls.len()))
    }

    pub(super) fn form(&self, record: &Record) -> Result<Form> {
        let mut form = match self.config {
            DatasetConfig::Chat(config) => {
                stand_in::check(record, config, &self.names)?;
                let mut chat = conversation(record, config, &self.forms)?;
                beside::add(&mut chat.conversation, record, &self.names)?;
                return Ok(Form::Conversation(chat));
            }
            DatasetConfig::Instruct(config) => {
                let columns = &config.column_map;
                let input = text_column(record, &columns.input)?;
                let output = text_column(record, &columns.output)?;
                let turn = match &self.prompt {
                    Some(template) => template.fill(input, output),
                    None => (input.to_owned(), output.to_owned()),
                };
                self.exchange(config.new_system_prompt.as_deref(), vec![turn])
            }
            DatasetConfig::Alpaca(config) => {
                let alpaca::Exchange { system, turns } = alpaca::exchange(record, config)?;
                self.exchange(system.as_deref(), turns)
            }
            DatasetConfig::Text(config) => self.text(record, config)?,
        };
        let said = trained::of_record(&record.columns, &self.config.columns(), 0);
        if said.map_err(|what| record.origin.error(what))?.all == Some(false) {
            form.leave_out();
        }
        Ok(form)
    }

    /// Prompts and answers, as messages where there is a template for them.
    fn exchange(&self, system: Option<&str>, turns: Vec<(String, String)>) -> Form {
        if self.template.is_some() {
            let form = |role: &str| self.forms.choose(role);
            let turns = turns.into_iter().flat_map(|(prompt, answer)| {
                [message("user", prompt, form("user")), message("assistant", answer, form("assistant"))]
            });
            let mut messages: Vec<Message> = turns.collect();
            if let Some(system) = system {
                set_system_prompt(&mut messages, system, &self.forms);
            }
            return Form::Conversation(Chat::from(messages));
        }
        let mut pieces = self.beginning();
        let mut closing = Closing::Nothing;
        let last = turns.len().saturating_sub(1);
        for (i, (prompt, answer)) in turns.into_iter().enumerate() {
            let prompt = match system {
                Some(system) if i == 0 => format!("{system}\n\n{prompt}"),
                _ => prompt,
            };
            let trained = i == last || self.masking != Masking::Last;
            pieces.push(Piece::text(prompt, self.masking == Masking::All));
            pieces.push(Piece::text(answer, trained));
            closing = self.end(&mut pieces, trained);
        }
        Form::Pieces(pieces, closing)
    }

    fn text(&self, record: &Record, config: &TextDataset) -> Result<Form> {
        let text = text_column(record, &config.column)?;
        let mut pieces = self.beginning();
        pieces.push(Piece::text(text, true));
        // Whoever turns `add_eos` off does not want the text to end.
        let closing = if config.add_eos { self.end(&mut pieces, true) } else { Closing::Stop };
        Ok(Form::Pieces(pieces, closing))
    }

    /// What this tokenizer puts in front of every text.
    fn beginning(&self) -> Vec<Piece> {
        match self.tokenizer.bos() {
            Some(bos) if self.tokenizer.begins_with_bos() => vec![Piece::token(bos, false)],
            _ => Vec::new(),
        }
    }

    fn end(&self, pieces: &mut Vec<Piece>, trained: bool) -> Closing {
        match self.tokenizer.eos() {
            Some(eos) => {
                pieces.push(Piece::token(eos, trained));
                Closing::Stop
            }
            None => Closing::Nothing,
        }
    }
}

impl Form {
    /// The same, of which nothing is trained.
    fn leave_out(&mut self) {
        match self {
            Self::Conversation(chat) => {
                let messages = chat.conversation.messages.iter().enumerate();
                chat.left_out = messages.filter(|(_, message)| is_answer(message)).map(|(i, _)| i).collect();
            }
            Self::Pieces(pieces, _) => pieces.iter_mut().for_each(|piece| piece.trained = false),
        }
    }

    fn is_left_out(&self) -> bool {
        match self {
            Self::Conversation(chat) => {
                let messages = chat.conversation.messages.iter().enumerate();
                let mut answers = messages.filter(|(_, message)| is_answer(message)).map(|(i, _)| i);
                !chat.left_out.is_empty() && answers.all(|answer| chat.left_out.contains(&answer))
            }
            Self::Pieces(pieces, _) => !pieces.iter().any(|piece| piece.trained),
        }
    }
}

/// Why a chat template must be there, and what would do without.
const A_CHAT_NEEDS_ONE: &str = "a chat dataset needs one: a base model can be trained with an `instruct` dataset";

fn required_template<'a>(tokenizer: &'a Tokenizer, why: &str) -> Result<&'a ChatTemplate> {
    tokenizer.chat_template().ok_or_else(|| {
        Error::setup(format!(
            "the model's tokenizer has no chat template, and {why}, or name a file with one as \
             `tokenizer.chat_template`"
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
