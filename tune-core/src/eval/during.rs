//! Tasks that a model is measured on while it trains, and prompts whose answers are shown.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tune_config::Config;

use super::measure::{Answer, Answers, Asking, Prepared, judge};
use super::{Item, Program, compare, scores};
use crate::data::{Batch, part};
use crate::distributed::Group;
use crate::generate::{Kernels, Sampler, SamplerOptions, StopOptions, generate_many};
use crate::kernels::Dropout;
use crate::models::Decoder;
use crate::tokenizer::Tokenizer;
use crate::words::count;
use crate::{Error, Result};

/// Tokens of texts and choices that are computed at a time.
const TOKENS: usize = 2048;

/// A task that the model is measured on while it trains: a file of items, as `tune eval` takes it.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct EvaluationConfig {
    /// A file of items (JSON lines): texts, questions, choices, as `tune eval` takes them.
    pub data_file: PathBuf,
    /// What the task is called in the names of metrics; by default, as the file, without its ending.
    pub name: Option<String>,
    /// Which part of the items is taken, as of a dataset: `train[:50]`, `train[-5%:]` ...
    #[config(default = "train")]
    pub split: String,
    /// The most tokens of an answer: a longer one is cut off.
    #[config(default = 128, range = 1..)]
    pub max_new_tokens: usize,
    /// A command that judges answers, as `tune eval --program` takes it.
    pub program: Option<String>,
    /// What stands before each conversation or prompt.
    pub system_prompt: Option<String>,
    /// Render prompts with the model's chat template. By default, if it has one.
    pub apply_chat_template: Option<bool>,
}

/// Prompts whose answers are shown while the model trains.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct SamplesConfig {
    /// What the model is asked, each for itself.
    pub prompts: Vec<String>,
    /// The most tokens of an answer: a longer one is cut off.
    #[config(default = 64, range = 1..)]
    pub max_new_tokens: usize,
    /// How freely the model chooses its words; at 0 it always takes the likeliest.
    #[config(default = 0.0, range = 0.0..)]
    pub temperature: f64,
    /// What stands before each prompt.
    pub system_prompt: Option<String>,
    /// Render prompts with the model's chat template. By default, if it has one.
    pub apply_chat_template: Option<bool>,
}

/// Tasks and samples, opened for one tokenizer: every prompt is known to fit.
pub struct Evaluation {
    tasks: Vec<Task>,
    samples: Option<Samples>,
}

struct Task {
    name: String,
    config: EvaluationConfig,
    items: Vec<Item>,
    prepared: Prepared,
    /// The program that judges, once it has been started.
    program: Option<Program>,
}

struct Samples {
    config: SamplesConfig,
    prompts: Vec<Vec<u32>>,
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// Names of tasks and metrics, `held_out/exact_match`, with their numbers.
    pub values: Vec<(String, f64)>,
    /// Prompts, and what the model answers.
    pub samples: Vec<(String, String)>,
}

/// How an evaluation goes on.
pub struct Measuring<'a> {
    /// Who trains together: all measure the same, and one of them judges.
    pub group: &'a Group,
    /// Where the drawing of samples starts.
    pub seed: u64,
    /// Is asked every now and then; its error ends the evaluation.
    pub go_on: &'a dyn Fn() -> Result<()>,
}

impl Evaluation {
    /// Reads the tasks' items and renders all prompts, for a model that reads up to `longest` tokens.
    ///
    /// # Errors
    /// The first thing that is not sound: a file that cannot be read, a line that is no item, a prompt that is too long, two tasks
    /// of one name, a program without an answer to judge. The message begins with the config's key.
    pub fn open(
        tasks: &[EvaluationConfig],
        samples: Option<&SamplesConfig>,
        tokenizer: &Tokenizer,
        longest: usize,
    ) -> Result<Self> {
        let mut opened = Vec::with_capacity(tasks.len());
        let mut names = BTreeSet::new();
        for (i, config) in tasks.iter().enumerate() {
            let task =
                Task::open(config, tokenizer, longest).map_err(|error| within(&format!("evaluation.{i}"), &error))?;
            if !names.insert(task.name.clone()) {
                return Err(Error::setup(format!(
                    "evaluation.{i}: another task is called `{}`, too; give one of them another evaluation.{i}.name",
                    task.name
                )));
            }
            opened.push(task);
        }
        let samples = samples.map(|config| Samples::open(config, tokenizer)).transpose()?;
        Ok(Self { tasks: opened, samples })
    }

    /// Whether nothing is measured or shown.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty() && self.samples.is_none()
    }

    /// The names of all that is measured: `held_out/exact_match`.
    #[must_use]
    pub fn metrics(&self) -> Vec<String> {
        self.tasks.iter().flat_map(|task| task.metrics().into_iter().map(|metric| task.named(metric))).collect()
    }

    /// Why something of this name is not measured, in words that follow it.
    #[must_use]
    pub fn why_not(&self, name: &str) -> String {
        let metrics = || compare::names().collect::<Vec<_>>().join(", ");
        let Some((task, metric)) = name.rsplit_once('/') else {
            let of_task = self.tasks.iter().find(|task| task.metrics().contains(&name));
            return match of_task {
                Some(task) => format!("is measured of a task: say which, as in `{}`", task.named(name)),
                None => "is nothing that is measured".to_owned(),
            };
        };
        match self.tasks.iter().find(|known| known.name == task) {
            None => format!("is of a task `{task}`, which `evaluation` does not have"),
            Some(_) if compare::more_is_better(metric).is_none() => {
                format!("is no metric of a task; these are {}", metrics())
            }
            Some(task) => {
                format!("is never measured: {} has no item that `{metric}` is for", task.config.data_file.display())
            }
        }
    }

    /// A line on each task, and one on the samples.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let task = |task: &Task| {
            let (items, file) = (task.items.len(), task.config.data_file.display());
            format!("{}: {} of {file}, by {}", task.name, count(items, "item"), task.metrics().join(", "))
        };
        let samples = |samples: &Samples| format!("samples: answers to {}", count(samples.prompts.len(), "prompt"));
        self.tasks.iter().map(task).chain(self.samples.as_ref().map(samples)).collect()
    }

    /// What of it takes most memory: rows of texts, and prompts that are answered at a time.
    #[must_use]
    pub fn demanding(&self) -> (Vec<Batch>, Vec<Answers>) {
        let (rows, mut answers): (Vec<_>, Vec<_>) = self.tasks.iter().map(|task| task.prepared.demanding()).unzip();
        answers.extend(
            self.samples
                .as_ref()
                .map(|samples| samples.together().map(|some| samples.answers(some)).max_by_key(Answers::tokens)),
        );
        (rows.into_iter().flatten().collect(), answers.into_iter().flatten().collect())
    }

    /// Measures the model on all tasks, and has it answer the samples' prompts. Where several processes train together, all do
    /// so at the same time; the first one judges, and all have its numbers.
    ///
    /// # Errors
    /// A program that cannot be started, or fails; another process that is gone; and what `go_on` says.
    pub fn measure(&mut self, model: &Decoder, tokenizer: &Tokenizer, how: &Measuring<'_>) -> Result<Found> {
        let mut found = Found::default();
        for task in &mut self.tasks {
            let values = task.measure(model, tokenizer, how)?;
            found.values.extend(values.into_iter().map(|(metric, value)| (task.named(metric), value)));
        }
        if let Some(samples) = &self.samples {
            found.samples = samples.ask(model, tokenizer, how)?;
        }
        Ok(found)
    }
}

impl Task {
    fn open(config: &EvaluationConfig, tokenizer: &Tokenizer, longest: usize) -> Result<Self> {
        let stem = config.data_file.file_stem().unwrap_or_default().to_string_lossy();
        let name = config.name.clone().unwrap_or_else(|| stem.into_owned());
        if name.is_empty() || name.contains('/') || name.contains(char::is_control) {
            return Err(Error::setup(format!("`{name}` names no task: a `name` without `/` was expected")));
        }
        let file = &config.data_file;
        let items = part(&config.split, file, Item::read(file, config.program.is_some())?)?;
        let asking = Asking {
            system: config.system_prompt.clone(),
            chat: config.apply_chat_template,
            max_new_tokens: config.max_new_tokens,
            tokens: TOKENS,
        };
        let prepared = Prepared::new(tokenizer, &items, &asking, longest)?;
        let task = Self { name, config: config.clone(), items, prepared, program: None };
        if task.config.program.is_some() && !task.metrics().contains(&super::PROGRAM) {
            return Err(Error::setup(format!(
                "program: there is no answer for it to judge: {} has texts and choices alone",
                task.config.data_file.display()
            )));
        }
        Ok(task)
    }

    /// Those that some item is a part of.
    fn metrics(&self) -> Vec<&'static str> {
        compare::names().filter(|name| self.items.iter().any(|item| item.metrics().contains(name))).collect()
    }

    fn named(&self, metric: &str) -> String {
        format!("{}/{metric}", self.name)
    }

    fn measure(
        &mut self,
        model: &Decoder,
        tokenizer: &Tokenizer,
        how: &Measuring<'_>,
    ) -> Result<Vec<(&'static str, f64)>> {
        let metrics = self.metrics();
        let (mut outcomes, answers) = self.prepared.ask(model, tokenizer, &self.items, how.go_on)?;
        let judged = match how.group.is_main() {
            true => self.judge(&answers, &mut outcomes),
            false => Ok(()),
        };
        let scores = scores(&outcomes);
        let of = |metric: &&'static str| {
            scores.iter().find(|(name, _)| name == metric).map_or(f64::NAN, |(_, value)| *value)
        };
        // Whether the one that judges could; and what it found.
        let mut numbers = vec![u64::from(judged.is_ok())];
        numbers.extend(metrics.iter().map(|metric| of(metric).to_bits()));
        let numbers = how.group.broadcast("what was measured", 0, numbers).wait()?;
        judged?;
        if numbers.first() != Some(&1) {
            return Err(Error::Training("rank 0 could not judge the answers, and says why".to_owned()));
        }
        Ok(metrics.into_iter().zip(numbers[1..].iter().map(|&bits| f64::from_bits(bits))).collect())
    }

    fn judge(&mut self, answers: &[Answer], outcomes: &mut [super::Outcome]) -> Result<()> {
        if let (None, Some(command)) = (&self.program, &self.config.program) {
            self.program = Some(Program::start(command)?);
        }
        answers
            .iter()
            .try_for_each(|(i, answer)| judge(&self.items[*i], answer.trim(), self.program.as_mut(), &mut outcomes[*i]))
    }
}

impl Samples {
    fn open(config: &SamplesConfig, tokenizer: &Tokenizer) -> Result<Self> {
        if config.prompts.is_empty() {
            return Err(Error::setup("samples.prompts: there is no prompt; leave `samples` out, or give it one"));
        }
        let prompt = |(i, text): (usize, &String)| {
            let ids = tokenizer.prompt(text, config.system_prompt.as_deref(), config.apply_chat_template);
            ids.map_err(|error| within(&format!("samples.prompts.{i}"), &error))
        };
        let prompts = config.prompts.iter().enumerate().map(prompt).collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), prompts })
    }

    /// The prompts, some at a time, with the number of the first.
    fn together(&self) -> impl Iterator<Item = &[Vec<u32>]> {
        let mut rest = &self.prompts[..];
        std::iter::from_fn(move || {
            let (some, others) = rest.split_at_checked(super::together(rest.iter().map(Vec::len)))?;
            rest = others;
            Some(some)
        })
    }

    fn answers(&self, some: &[Vec<u32>]) -> Answers {
        Answers { prompts: some.iter().map(Vec::len).collect(), max_new_tokens: self.config.max_new_tokens }
    }

    fn ask(&self, model: &Decoder, tokenizer: &Tokenizer, how: &Measuring<'_>) -> Result<Vec<(String, String)>> {
        let options = SamplerOptions { temperature: self.config.temperature, top_k: None, top_p: None };
        let stop_tokens = tokenizer.stop_tokens().iter().copied().collect();
        let stop = StopOptions { max_new_tokens: self.config.max_new_tokens, stop_tokens };
        let mut answers = Vec::with_capacity(self.prompts.len());
        for some in self.together() {
            (how.go_on)()?;
            let prompts: Vec<&[u32]> = some.iter().map(Vec::as_slice).collect();
            let first = answers.len() as u64;
            let seeds = (first..).map(|i| Dropout::mix(how.seed, i));
            let mut samplers: Vec<Sampler> = seeds.take(some.len()).map(|seed| Sampler::new(options, seed)).collect();
            let given = generate_many(model, &prompts, &mut samplers, &stop, Kernels::Fast, |_, _| Ok(()))?;
            for ids in given {
                answers.push(tokenizer.decode(&ids, true)?);
            }
        }
        Ok(self.config.prompts.iter().cloned().zip(answers).collect())
    }
}

/// The error with the key of the config that it is about.
fn within(key: &str, error: &Error) -> Error {
    Error::setup(format!("{key}: {error}"))
}
