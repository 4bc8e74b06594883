//! Text from a model: a Hugging Face folder, a GGUF file, or either with an adapter.
//!
//!     cargo run --release -p recipes --bin generate -- --config configs/generate/tiny.yaml prompt="…"

use tune_core::config::cli::Exit;
use tune_core::config::{complain, output};
use tune_core::prelude::*;

/// Continues a prompt.
#[recipe(configs = ["../configs/generate/tiny.yaml", "../configs/generate/smollm2_135m.yaml"])]
fn generate(
    /// The model: a Hugging Face folder, a .gguf file, or hf://org/name.
    checkpoint_dir: PathBuf,
    /// A folder with a PEFT adapter for it, or hf://org/name.
    adapter_dir: Option<PathBuf>,
    /// What the model is asked, or what it continues.
    prompt: String,
    /// What stands before the conversation.
    system_prompt: Option<String>,
    /// Render the prompt with the model's chat template; by default if it has one.
    apply_chat_template: Option<bool>,
    /// The answer is cut off after so many tokens.
    #[config(default = 256, range = 1..)]
    max_new_tokens: usize,
    /// Divides the logits; at 0 the likeliest token is always taken.
    #[config(default = 0.8, range = 0.0..)]
    temperature: f64,
    /// Draw from so many likeliest tokens only.
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
    /// cpu, cuda or cuda:N.
    #[config(default = "cpu")]
    device: DeviceConfig,
    /// Precision of weights and activations.
    #[config(default)]
    dtype: Precision,
) -> Result<()> {
    init_process_group()?;
    hub::watch(Downloads::stderr());
    let checkpoint = Checkpoint::open(&checkpoint_dir)?;
    let (tokenizer, _) = TokenizerConfig::default().open_with(&checkpoint, adapter_dir.as_deref())?;
    let mut warnings = checkpoint.warnings().to_vec();
    warnings.extend(adapter_dir.as_deref().and_then(|dir| peft::other_base(dir, &checkpoint)));
    warnings.iter().for_each(|warning| complain!("warning: {warning}"));
    let lora = adapter_dir.as_deref().map(peft::LoraOptions::of_folder).transpose()?;
    let options =
        LoadOptions { dtype: dtype.dtype(), device: device.open()?, train_weights: false, lora: lora.clone() };
    let model = Decoder::load(ModelSpec::from_json(checkpoint.config())?, &checkpoint, &options)?;
    if let (Some(lora), Some(dir)) = (lora, adapter_dir) {
        lora.load_into(&model, &dir)?;
    }

    let mut stop: Vec<u32> = tokenizer.stop_tokens().iter().copied().collect();
    for token in &stop_tokens {
        let id = tokenizer.token_id(token);
        stop.push(id.ok_or_else(|| Error::setup(format!("stop_tokens: the tokenizer has no token `{token}`")))?);
    }
    let prompt = tokenizer.prompt(&prompt, system_prompt.as_deref(), apply_chat_template)?;
    let chosen_seed = choose_seed(seed);
    if seed.is_none() && temperature > 0.0 {
        complain!("seed {chosen_seed}");
    }

    let mut sampler = Sampler::new(SamplerOptions { temperature, top_k, top_p }, chosen_seed);
    let stop = StopOptions { max_new_tokens, stop_tokens: stop };
    let mut answer = Vec::new();
    let mut shown = 0;
    // Who has read enough need not wait for the rest.
    let show = |text: &str| match output::show(text) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::Stopped(Exit::quietly())),
        Err(error) => Err(Error::io("write to", "the standard output")(error)),
    };
    tune_core::generate::generate(&model, &prompt, &mut sampler, &stop, |token| {
        answer.push(token);
        let text = tokenizer.decode(&answer, true)?;
        // A character may come in several tokens: it is shown when it is whole.
        if !text.ends_with('\u{fffd}') && text.len() > shown {
            show(&text[shown..])?;
            shown = text.len();
        }
        Ok(())
    })?;
    let rest = tokenizer.decode(&answer, true)?;
    show(&format!("{}\n", rest.get(shown..).unwrap_or_default()))
}
