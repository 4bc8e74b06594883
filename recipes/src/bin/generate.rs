//! Text from a model: a Hugging Face folder, a GGUF file, or either with an adapter.
//!
//!     cargo run --release -p recipes --bin generate -- --config configs/generate/tiny.yaml prompt="…"

use serde_json::{Map, Value};
use tune_core::artifact::Receipt;
use tune_core::checkpoint::merge::{Merged, Part};
use tune_core::config::cli::Exit;
use tune_core::config::{complain, files, output};
use tune_core::prelude::*;
use tune_core::tokenizer::{Conversation, Message, Streaming};

/// No file of prompts is longer.
const LARGEST: u64 = 1 << 30;

/// Answers a prompt, or a file of them.
#[recipe(configs = ["../configs/generate/tiny.yaml", "../configs/generate/smollm2_135m.yaml"])]
fn generate(
    /// The model: a Hugging Face folder, a .gguf file, or hf://org/name.
    checkpoint_dir: PathBuf,
    /// A folder with a PEFT adapter for it, or hf://org/name.
    adapter_dir: Option<PathBuf>,
    /// What the model is asked, or what it continues.
    prompt: Option<String>,
    /// In place of prompt: a file of them, `-` for the standard input. JSON lines with `prompt` or `messages` (and `tools`), or plain
    /// text, a prompt a line. Answers are written as JSON lines, in the order of the prompts.
    prompts: Option<PathBuf>,
    /// How many prompts of a file are answered at a time.
    #[config(default = 8, range = 1..=256)]
    batch_size: usize,
    /// What stands before the conversation.
    system_prompt: Option<String>,
    /// Render the prompt with the model's chat template; by default if it has one.
    apply_chat_template: Option<bool>,
    /// The most tokens of the answer: a longer one is cut off.
    #[config(default = 256, range = 1..)]
    max_new_tokens: usize,
    /// Divides the logits; at 0 the likeliest token is always taken.
    #[config(default = 0.8, range = 0.0..)]
    temperature: f64,
    /// Draw from the N likeliest tokens only.
    #[config(range = 1..)]
    top_k: Option<usize>,
    /// Draw from the fewest likeliest tokens whose probabilities add up to this.
    #[config(range = 0.0..=1.0)]
    top_p: Option<f64>,
    /// Tokens that end the answer, besides the model's own.
    #[config(default)]
    stop_tokens: Vec<String>,
    /// Where the drawing starts; null is a fresh one, which is printed.
    seed: Option<u64>,
    /// cpu, cuda, cuda:N, or auto: the first card, if there is one.
    #[config(default = "cpu")]
    device: DeviceConfig,
    /// Precision of weights and activations.
    #[config(default)]
    dtype: Precision,
) -> Result<()> {
    init_process_group()?;
    hub::watch(Downloads::stderr());
    let parts: Vec<Part> = adapter_dir.into_iter().map(|dir| Part { dir, weight: 1.0 }).collect();
    let merged = Merged::open(Checkpoint::open(&checkpoint_dir)?, &parts)?;
    let tokenizer = merged.tokenizer().clone();
    merged.warnings().iter().for_each(|warning| complain!("warning: {warning}"));
    if let Some(said) = Receipt::brief(merged.base().path()) {
        complain!("{said}");
    }
    let (device, chosen) = device.choose()?;
    chosen.iter().for_each(|line| complain!("{line}"));
    let options = LoadOptions { dtype: dtype.dtype(), device, train_weights: false, lora: None };
    let model = merged.trained(&options)?;

    let mut stop: Vec<u32> = tokenizer.stop_tokens().iter().copied().collect();
    for token in &stop_tokens {
        let id = tokenizer.token_id(token);
        stop.push(id.ok_or_else(|| Error::setup(format!("stop_tokens: the tokenizer has no token `{token}`")))?);
    }
    let stop = StopOptions { max_new_tokens, stop_tokens: stop };
    let sampling = SamplerOptions { temperature, top_k, top_p };
    let asks = Asks { tokenizer: &tokenizer, system: system_prompt.as_deref(), chat: apply_chat_template };
    let inputs = match (&prompt, &prompts) {
        (Some(_), None) => Vec::new(),
        (None, Some(file)) => asks.read(file)?,
        (Some(_), Some(_)) => return Err(Error::setup("prompt and prompts are set: one of them is answered")),
        (None, None) => return Err(Error::setup("there is nothing to answer: set prompt, or prompts to a file")),
    };
    let chosen_seed = choose_seed(seed);
    if seed.is_none() && temperature > 0.0 {
        complain!("seed {chosen_seed}");
    }
    let Some(prompt) = prompt else {
        // What the answer to a prompt may have, where the model does not end it.
        let longest = model.config.max_position_embeddings;
        let room = |input: &Input| max_new_tokens.min(longest.saturating_sub(input.ids.len()));
        return inputs.chunks(batch_size).enumerate().try_for_each(|(i, inputs)| {
            // Each prompt has a sampler of its own: what it is answered does not depend on the others.
            let first = i * batch_size;
            let sampler = |j: usize| Sampler::new(sampling, chosen_seed.wrapping_add((first + j) as u64));
            let mut samplers: Vec<Sampler> = (0..inputs.len()).map(sampler).collect();
            let ids: Vec<&[u32]> = inputs.iter().map(|input| input.ids.as_slice()).collect();
            let answers =
                tune_core::generate::generate_many(&model, &ids, &mut samplers, &stop, Kernels::Fast, |_, _| Ok(()))?;
            let lines: Result<String> =
                inputs.iter().zip(answers).map(|(input, ids)| line_of(input, &ids, &tokenizer, room(input))).collect();
            show(&lines?)
        });
    };
    let prompt = tokenizer.prompt(&prompt, system_prompt.as_deref(), apply_chat_template)?;
    let mut sampler = Sampler::new(sampling, chosen_seed);
    let mut text = Streaming::default();
    // A character may come in several tokens: it is shown when it is whole.
    tune_core::generate::generate(&model, &prompt, &mut sampler, &stop, |token| show(&text.push(&tokenizer, token)?))?;
    show(&format!("{}\n", text.rest(&tokenizer)?))
}

/// Writes to the standard output; who has read enough need not wait for the rest.
fn show(text: &str) -> Result<()> {
    match output::show(text) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Stopped(Exit::quietly())),
        Err(error) => Err(Error::io("write to", "the standard output")(error)),
    }
}

/// A prompt of a file, as it was given and as the model meets it.
struct Input {
    given: Map<String, Value>,
    ids: Vec<u32>,
}

/// How prompts become tokens.
struct Asks<'a> {
    tokenizer: &'a Tokenizer,
    system: Option<&'a str>,
    chat: Option<bool>,
}

impl Asks<'_> {
    /// The prompts of a file, all of them checked before the first is answered.
    fn read(&self, file: &Path) -> Result<Vec<Input>> {
        let text = if file == Path::new("-") {
            std::io::read_to_string(std::io::stdin().lock()).map_err(Error::io("read", "the standard input"))?
        } else {
            let bytes = files::read(file, LARGEST).map_err(Error::io("read", file))?;
            String::from_utf8(bytes).map_err(|_| Error::file(file, "is not UTF-8 text"))?
        };
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let inputs: Result<Vec<Input>> =
            lines.map(|(i, line)| self.input(line).map_err(|e| Error::line(file, i + 1, e.to_string()))).collect();
        match inputs {
            Ok(inputs) if inputs.is_empty() => Err(Error::file(file, "holds no prompt")),
            inputs => inputs,
        }
    }

    fn input(&self, line: &str) -> Result<Input> {
        if !line.trim_start().starts_with('{') {
            let ids = self.tokenizer.prompt(line, self.system, self.chat)?;
            return Ok(Input { given: [("prompt".to_owned(), line.into())].into_iter().collect(), ids });
        }
        let given: Map<String, Value> =
            serde_json::from_str(line).map_err(|e| Error::setup(format!("is no JSON object: {e}")))?;
        let ids = match (given.get("prompt"), given.get("messages")) {
            (Some(Value::String(prompt)), None) => self.tokenizer.prompt(prompt, self.system, self.chat)?,
            (None, Some(messages)) => {
                let objects = |value: &Value, key: &str| -> Result<Vec<Message>> {
                    let objects: Option<Vec<Message>> =
                        value.as_array().and_then(|list| list.iter().map(|entry| entry.as_object().cloned()).collect());
                    objects.ok_or_else(|| Error::setup(format!("`{key}` is no list of objects")))
                };
                let mut messages: Vec<Message> = objects(messages, "messages")?;
                // A last message of the assistant's is the answer that is known: it is asked for anew.
                if messages.last().is_some_and(|last| last.get("role").is_some_and(|role| role == "assistant")) {
                    messages.pop();
                }
                let has_system = messages.first().is_some_and(|m| m.get("role").is_some_and(|role| role == "system"));
                if let (Some(system), false) = (self.system, has_system) {
                    let message = [("role", "system"), ("content", system)];
                    messages.insert(0, message.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect());
                }
                let tools = given.get("tools").filter(|tools| !tools.is_null());
                let tools = tools.map(|tools| objects(tools, "tools")).transpose()?;
                self.tokenizer.prompt_of(Conversation { tools, ..Conversation::new(messages) })?
            }
            _ => return Err(Error::setup("`prompt` (a text) or `messages` was expected, one of them")),
        };
        Ok(Input { given, ids })
    }
}

/// A line of the output: what was given, the answer, and why it ended.
fn line_of(input: &Input, ids: &[u32], tokenizer: &Tokenizer, room: usize) -> Result<String> {
    let mut line = input.given.clone();
    line.insert("answer".to_owned(), tokenizer.decode(ids, true)?.into());
    line.insert("tokens".to_owned(), ids.len().into());
    line.insert("finish_reason".to_owned(), if ids.len() >= room { "length" } else { "stop" }.into());
    Ok(format!("{}\n", Value::Object(line)))
}
