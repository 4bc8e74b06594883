//! The datasets: files, columns, templates, what is trained of them and what is cut off.

use crate::data::{self, DataConfig, DatasetReport, Faults, Loader, LoaderOptions, Padding};
use crate::eval::{Evaluation, ExactMatch};
use crate::memory_plan::Asked;
use crate::preflight::model::Model;
use crate::preflight::report::{Report, percent};
use crate::recipe::Outline;
use crate::tokenizer::Tokenizer;
use crate::words::{count, for_number};

/// The data that is sound.
#[derive(Default)]
pub(super) struct Data {
    pub(super) train: Option<Loader>,
    pub(super) validation: Option<Loader>,
    /// What the model is asked beside it.
    pub(super) asked: Asked,
}

/// Looks at every record of all data as training would.
pub(super) fn look(
    outline: &Outline,
    tokenizer: Option<&Tokenizer>,
    model: Option<&Model>,
    seed: u64,
    report: &mut Report<'_>,
) -> Data {
    let Some(tokenizer) = tokenizer else {
        let all = outline.data.dataset.iter().chain(&outline.data.dataset_val);
        report_faults(data::faults(all, None, outline.data.tokenizer.max_seq_len), report);
        return Data::default();
    };
    let max_positions = model.and_then(|model| model.shape.as_ref()).map(|shape| shape.max_position_embeddings);
    let context = Context { outline, tokenizer, max_positions };
    // What is refused is told here with the rest.
    let options = LoaderOptions { count_cut: true, must_stop: false, ..outline.loader_options(tokenizer, seed) };
    let train = context.look("data", &outline.data.dataset, options.clone(), report);
    let validation = match outline.data.dataset_val.as_slice() {
        [] => None,
        // What is wrong with data of which a part is held out is told.
        configs if train.is_none() && configs.iter().all(DataConfig::is_held_out) => None,
        configs => context.look("validation", configs, LoaderOptions { shuffle: false, ..options }, report),
    };
    let questions = outline.exact_match.as_ref().and_then(|config| {
        let questions = report.take(ExactMatch::read(config, tokenizer))?;
        report.fact("questions", format!("{} in {}", questions.len(), config.data_file.display()));
        Some(questions)
    });
    let evaluation = report.take(outline.evaluation(tokenizer, max_positions.unwrap_or(usize::MAX)));
    for (i, line) in evaluation.iter().flat_map(Evaluation::describe).enumerate() {
        report.fact(if i == 0 { "evaluation" } else { "" }, line);
    }
    let asked = outline.asked(evaluation.as_ref(), questions.as_ref());
    if let Some(batches) = train.as_ref().and_then(Loader::known_len) {
        report.fact("steps", outline.plan().describe(Some(batches)));
    }
    Data { train, validation, asked }
}

/// What is the same for training and validation data.
struct Context<'a> {
    outline: &'a Outline,
    tokenizer: &'a Tokenizer,
    max_positions: Option<usize>,
}

impl Context<'_> {
    fn look(
        &self,
        name: &str,
        configs: &[DataConfig],
        options: LoaderOptions,
        report: &mut Report<'_>,
    ) -> Option<Loader> {
        let loader = self.outline.loader(configs, self.tokenizer, options);
        // All of it, where training waits for a part.
        let loader = loader.and_then(|loader| loader.reports().map(drop).map(|()| loader));
        let loader = match loader {
            Ok(loader) => loader,
            Err(first) => {
                let faults = data::faults(configs, Some(self.tokenizer), self.outline.data.tokenizer.max_seq_len);
                if faults.is_empty() {
                    report.error(first);
                }
                report_faults(faults, report);
                return None;
            }
        };
        let reports = loader.reports().unwrap_or_default();
        let all = reports.iter().map(|dataset| dataset.tokens).sum();
        for dataset in reports {
            report.fact(name, describe(dataset, all));
            self.judge(dataset, report);
        }
        if let Some(rows) = loader.padding().ok().flatten().and_then(describe_rows) {
            report.fact("", rows);
        }
        Some(loader)
    }

    fn judge(&self, dataset: &DatasetReport, report: &mut Report<'_>) {
        dataset.unused.iter().for_each(|unused| report.warning(unused));
        dataset.warnings.iter().for_each(|warning| report.warning(warning));
        let stops = dataset.never_stops.is_none();
        if let Some(why) = &dataset.never_stops {
            report.error(why);
        }
        if let (cut @ 1.., Some(max)) = (dataset.truncated, self.outline.data.tokenizer.max_seq_len) {
            let of_all = percent(dataset.cut_tokens, dataset.tokens + dataset.cut_tokens);
            let unended = Some(dataset.unended).filter(|&n| n > 0 && stops && dataset.stopping.is_some());
            let longer = self.max_positions.filter(|&n| n > max);
            report.warning(format!(
                "{}: {} {} more than `tokenizer.max_seq_len` = {max} tokens and {} cut; {} {} lost, {of_all} of all{}{}",
                dataset.name,
                count(cut, "sample"),
                for_number(cut, "has", "have"),
                for_number(cut, "is", "are"),
                lost(dataset),
                for_number(dataset.cut_tokens, "is", "are"),
                unended.map_or_else(String::new, |n| format!("; the last answers of {n} have lost their stop token")),
                longer.map_or_else(String::new, |n| format!(". The model is made for up to {n}")),
            ));
        }
        if let Some(warning) = self.max_positions.and_then(|max| dataset.too_long(max)) {
            report.warning(warning);
        }
    }
}

/// A dataset of several that have this many tokens together.
fn describe(dataset: &DatasetReport, all: usize) -> String {
    let mut text = format!(
        "{}\n{}, {}, {} of them trained; the longest has {}",
        dataset.name,
        dataset.count(),
        count(dataset.tokens, "token"),
        percent(dataset.trained_tokens, dataset.tokens),
        dataset.longest
    );
    if let Some(mixed) = dataset.mixed {
        text += &format!("\nan epoch takes {mixed}; {} of all tokens", percent(dataset.tokens, all));
    }
    if dataset.filtered > 0 {
        text += &format!("\n{} filtered out", count(dataset.filtered, "record"));
    }
    let left_out = |n: usize| match dataset.pairs {
        Some(_) => format!("{} with an answer", count(n, "pair")),
        None => count(n, "sample"),
    };
    for (n, than) in
        [(dataset.too_short, "fewer tokens than `min_tokens`"), (dataset.too_long, "more tokens than `max_tokens`")]
    {
        if n > 0 {
            text += &format!("\n{} of {than} left out", left_out(n));
        }
    }
    if dataset.truncated > 0 {
        text += &format!("\n{} cut, {} lost", count(dataset.truncated, "sample"), lost(dataset));
    }
    if dataset.dropped > 0 {
        text += &format!("\n{} without a trained token left out", left_out(dataset.dropped));
    }
    if dataset.argument_texts > 0 {
        let messages = count(dataset.argument_texts, "message");
        text += &format!("\nin {messages} the arguments of calls are JSON text, and reach the chat template as text");
    }
    text
}

/// How full rows are, where there is a choice.
fn describe_rows(padding: Padding) -> Option<String> {
    let Padding { rows, row_len, tokens, positions } = padding;
    match row_len {
        Some(len) => {
            let filled = percent(tokens, rows * len);
            let fill = for_number(rows, "fills", "fill");
            Some(format!("{} of up to {len} tokens, which {fill} {filled} of them", count(rows, "row")))
        }
        None if positions > tokens => Some(format!(
            "{} of the positions in batches are padding, which is not computed",
            percent(positions - tokens, positions)
        )),
        None => None,
    }
}

/// The number of tokens that are cut off.
fn lost(dataset: &DatasetReport) -> String {
    format!("{}{}", if dataset.more_cut { "more than " } else { "" }, count(dataset.cut_tokens, "token"))
}

fn report_faults(faults: Vec<Faults>, report: &mut Report<'_>) {
    for dataset in faults {
        match dataset.broken {
            0 => dataset.first.into_iter().for_each(|error| report.error(error)),
            _ => report.error(dataset),
        }
    }
}
