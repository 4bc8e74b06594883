//! What became of the data on its way to the model.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::batch::{IGNORE, Sample};
use super::files::Files;
use super::format::Formatted;
use super::kind::DataConfig;
use super::pack::Joins;
use super::pieces::{Closing, Ends};
use crate::tokenizer::{ChatTemplate, Tokenizer, listed};
use crate::words::{count, for_number};
use crate::{Error, Result};

/// How many origins of dropped samples are kept, for the message.
const SHOWN: usize = 3;

/// One dataset's account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatasetReport {
    /// The dataset's kind and its first file.
    pub name: String,
    /// Samples that will be trained on.
    pub samples: usize,
    /// The pairs of answers that they are, in a dataset of these.
    pub pairs: Option<usize>,
    /// The samples whose answer is good, in a dataset of answers with labels.
    pub good: Option<usize>,
    /// Tokens in them, after cutting.
    pub tokens: usize,
    /// Tokens that are trained.
    pub trained_tokens: usize,
    /// Samples that were cut to the longest allowed length.
    pub truncated: usize,
    /// Tokens that were cut off: all of them with [`LoaderOptions::count_cut`](super::LoaderOptions::count_cut), else
    /// at least so many.
    pub cut_tokens: usize,
    /// Whether some samples were so long that what was cut off was not counted to the end.
    pub more_cut: bool,
    /// Samples in which a stop token ends an answer that is trained; `None` where texts are not meant to end.
    pub stopping: Option<usize>,
    /// Samples whose last answer would end with one, had it not been cut off.
    pub unended: usize,
    /// Samples left out because none of their tokens is trained.
    pub dropped: usize,
    /// The first of those.
    pub dropped_origins: Vec<String>,
    /// Records that the dataset's filter does not let through; they are no samples.
    pub filtered: usize,
    /// Samples (pairs, in a dataset of these) left out because they have fewer tokens than `min_tokens`.
    pub too_short: usize,
    /// Samples (pairs, in a dataset of these) left out because they have more tokens than `max_tokens`.
    pub too_long: usize,
    /// How many records an epoch takes, where datasets have weights.
    pub mixed: Option<Mixed>,
    /// The longest sample's tokens, after cutting.
    pub longest: usize,
    /// Messages with calls of tools whose arguments are JSON text. The chat template takes it as text.
    pub argument_texts: usize,
    /// What its records hold and nobody reads.
    pub unused: Vec<String>,
    /// What else deserves attention.
    pub warnings: Vec<String>,
    /// Why the model would not learn to end its answers, where none of the samples teaches it.
    pub never_stops: Option<String>,
}

/// What an epoch takes of a dataset with a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mixed {
    /// Records that an epoch takes.
    pub taken: usize,
    /// Records that the dataset has.
    pub of: usize,
}

impl fmt::Display for Mixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { taken, of } = *self;
        match taken {
            all if all == of => write!(f, "all of its {}", count(of, "record")),
            part if part < of => write!(f, "{part} of its {}, the same in each epoch", count(of, "record")),
            more => {
                write!(f, "its {} {:.2} times in each epoch: {more}", count(of, "record"), more as f64 / of as f64)
            }
        }
    }
}

/// One dataset's account while its records are tokenized, in whatever order.
pub(super) struct Tally {
    report: DatasetReport,
    /// The first records that are left out.
    dropped: BTreeSet<usize>,
    why_dropped: Reasons,
    stopping: usize,
    never_closed: usize,
    closed_by: BTreeMap<u32, usize>,
    /// Samples in which an answer before the last is not closed.
    open_before: usize,
    text_beside_calls: usize,
    /// Pairs whose answers are the same, and pairs that answer different prompts.
    same: usize,
    other_prompt: usize,
    /// Whether samples are to end with a stop token that is trained.
    ends: bool,
    /// What becomes of a sample that does not fit into its row.
    joins: Joins,
    /// The fewest and the most tokens of a sample.
    tokens: (usize, usize),
}

impl Tally {
    pub(super) fn new(config: &DataConfig) -> Self {
        let Files { min_tokens, max_tokens, .. } = config.files();
        let pairs = config.is_of_pairs().then_some(0);
        let good = config.is_labelled().then_some(0);
        Self {
            report: DatasetReport { name: config.name(), pairs, good, ..DatasetReport::default() },
            ends: config.ends_samples(),
            joins: config.joins,
            dropped: BTreeSet::new(),
            why_dropped: Reasons::default(),
            stopping: 0,
            never_closed: 0,
            closed_by: BTreeMap::new(),
            open_before: 0,
            text_beside_calls: 0,
            same: 0,
            other_prompt: 0,
            tokens: (min_tokens.unwrap_or(0), max_tokens.unwrap_or(usize::MAX)),
        }
    }

    /// Whether none of the samples that were counted ends as it should.
    pub(super) fn never_stops(&self) -> bool {
        self.ends && self.stopping == 0 && self.report.samples > 0
    }

    /// Counts a record's samples. Returns whether each has a length that is wanted and a trained token, and so they are kept.
    pub(super) fn count(&mut self, record: usize, made: &[Formatted]) -> bool {
        let report = &mut self.report;
        let (fewest, most) = self.tokens;
        let len = |made: &Formatted| made.encoded.sample.input_ids.len() + made.encoded.cut;
        let is_too_long = |made: &Formatted| len(made) > most || made.encoded.more_cut && most < usize::MAX;
        if made.iter().any(|made| len(made) < fewest) {
            report.too_short += 1;
            return false;
        }
        if made.iter().any(is_too_long) {
            report.too_long += 1;
            return false;
        }
        for Formatted { encoded, .. } in made {
            report.truncated += usize::from(encoded.cut > 0);
            report.cut_tokens += encoded.cut;
            report.more_cut |= encoded.more_cut;
        }
        if let Some(Formatted { encoded, left_out, .. }) = made.iter().find(|made| trained(&made.encoded.sample) == 0) {
            report.dropped += 1;
            self.why_dropped.count(encoded.cut > 0, *left_out);
            self.dropped.insert(record);
            if self.dropped.len() > SHOWN {
                self.dropped.pop_last();
            }
            return false;
        }
        made.iter().for_each(|made| self.count_kept(made));
        if let ([chosen, rejected], Some(pairs)) = (made, &mut self.report.pairs) {
            let [chosen, rejected] = [chosen, rejected].map(|made| &made.encoded.sample);
            *pairs += 1;
            self.same += usize::from(chosen.input_ids == rejected.input_ids);
            self.other_prompt += usize::from(prompt(chosen) != prompt(rejected));
        }
        true
    }

    /// Counts a sample that has a trained token.
    fn count_kept(&mut self, made: &Formatted) {
        let Formatted { encoded, ends: Ends { last, open_before }, text_beside_calls, .. } = made;
        match last {
            Closing::Stop => {}
            Closing::Other(id) => *self.closed_by.entry(*id).or_default() += 1,
            Closing::Nothing => self.never_closed += 1,
        }
        let (report, sample) = (&mut self.report, &encoded.sample);
        let is_closed = *last == Closing::Stop;
        self.stopping += usize::from(is_closed && encoded.stops);
        report.unended += usize::from(is_closed && !encoded.ends && encoded.cut > 0);
        self.open_before += usize::from(is_closed && *open_before);
        self.text_beside_calls += text_beside_calls;
        report.samples += 1;
        report.good = report.good.map(|good| good + usize::from(sample.label == Some(true)));
        report.tokens += sample.input_ids.len();
        report.trained_tokens += trained(sample);
        report.longest = report.longest.max(sample.input_ids.len());
    }

    /// Counts the last token of a sample that is trained to predict the first of the next.
    pub(super) fn count_border(&mut self) {
        self.report.trained_tokens += 1;
    }

    /// The report. `origin` says where a record stands.
    ///
    /// # Errors
    /// No sample is left.
    pub(super) fn report(
        mut self,
        max_seq_len: Option<usize>,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        origin: impl Fn(usize) -> String,
    ) -> Result<DatasetReport> {
        self.report.stopping = self.ends.then_some(self.stopping);
        if let (Joins::Split | Joins::Across, Some(row)) = (self.joins, max_seq_len) {
            self.report.longest = self.report.longest.min(row);
        }
        self.report.dropped_origins = self.dropped.iter().copied().map(origin).collect();
        if self.report.samples == 0 {
            return Err(self.nothing_left(max_seq_len));
        }
        let mut warnings = self.left_out(max_seq_len);
        warnings.extend(self.alike());
        let endings = self.endings(tokenizer);
        let never_stops = self.never_stops().then(|| not_learnt(&self.report.name, &endings, tokenizer));
        if never_stops.is_none() {
            warnings.extend(endings);
        }
        if self.open_before > 0 {
            warnings.push(format!(
                "in {} an answer before the last has no stop token that is trained, so the model learns to go on there: \
                 set `masking_strategy: last`, or use a chat template that ends each answer with one",
                count(self.open_before, "sample")
            ));
        }
        if self.text_beside_calls > 0 {
            warnings.push(format!(
                "in {} with calls of tools the chat template leaves out the text beside the calls",
                count(self.text_beside_calls, "message")
            ));
        }
        if template.is_some_and(ChatTemplate::uses_date) {
            warnings.push("the chat template writes the day's date into the conversation".to_owned());
        }
        let name = &self.report.name;
        let warnings = warnings.iter().map(|warning| format!("{name}: {warning}")).collect();
        Ok(DatasetReport { warnings, never_stops, ..self.report })
    }

    /// Why there is nothing to train on.
    fn nothing_left(&self, max_seq_len: Option<usize>) -> Error {
        let Self { report, .. } = self;
        let (what, each) = match report.pairs {
            Some(_) => ("pair", " in both answers"),
            None => ("sample", ""),
        };
        let by_length = report.left_out_by_length(self.tokens);
        Error::setup(match (report.dropped, by_length.is_empty()) {
            (0, false) => format!("{}: no {what} is left: {by_length}", report.name),
            (dropped, none_by_length) => format!(
                "{}: none of {} has a trained token{each}: {}{}",
                report.name,
                count(dropped, what),
                self.why_dropped.in_words(max_seq_len),
                if none_by_length { by_length } else { format!("; {by_length}") }
            ),
        })
    }

    /// What there is to say of samples without a trained token.
    fn left_out(&self, max_seq_len: Option<usize>) -> Vec<String> {
        let DatasetReport { dropped, dropped_origins, pairs, .. } = &self.report;
        if *dropped == 0 {
            return Vec::new();
        }
        let have = for_number(*dropped, "has", "have");
        let what = match pairs {
            Some(_) => format!("{} {have} an answer without a trained token", count(*dropped, "pair")),
            None => format!("{} {have} no trained token", count(*dropped, "sample")),
        };
        let are = for_number(*dropped, "is", "are");
        let more = if *dropped > dropped_origins.len() { " …" } else { "" };
        let why = self.why_dropped.in_words(max_seq_len);
        vec![format!("{what} and {are} left out ({why}): {}{more}", dropped_origins.join(", "))]
    }

    /// What there is to say of answers that are to be told apart and do not differ as they should.
    fn alike(&self) -> Vec<String> {
        let Self { report, same, other_prompt, .. } = self;
        let mut said = Vec::new();
        if *same > 0 {
            said.push(format!(
                "in {} both answers are the same, and nothing is learnt from {}",
                count(*same, "pair"),
                for_number(*same, "it", "these")
            ));
        }
        if *other_prompt > 0 {
            said.push(format!(
                "in {} the two answers follow different prompts, so comparing them says little",
                count(*other_prompt, "pair")
            ));
        }
        if let Some(good) = report.good.filter(|&good| good == 0 || good == report.samples) {
            let label = if good == 0 { "bad" } else { "good" };
            said.push(format!(
                "all {} answers are labelled {label}, and the model is to learn what good answers have that bad ones have not: \
                 add answers of the other label, here or in another dataset",
                report.samples
            ));
        }
        said
    }

    /// How answers end that do not end with a stop token.
    fn endings(&self, tokenizer: &Tokenizer) -> Vec<String> {
        let mut endings = Vec::new();
        if self.never_closed > 0 {
            endings.push(format!(
                "in {} no stop token follows the answer, so the model does not learn where to stop",
                count(self.never_closed, "sample")
            ));
        }
        for (&id, &samples) in &self.closed_by {
            endings.push(format!(
                "in {} the answer is closed by `{}`, which is not among the model's stop tokens: \
                 add its id {id} to `eos_token_id` in generation_config.json",
                count(samples, "sample"),
                tokenizer.token(id).unwrap_or_default()
            ));
        }
        endings
    }
}

/// Why the model would not learn to end its answers, of which `endings` says how they do.
fn not_learnt(name: &str, endings: &[String], tokenizer: &Tokenizer) -> String {
    let stop = tokenizer.stop_tokens().iter().filter_map(|&id| tokenizer.token(id));
    let why = match endings {
        [] => "every sample is cut off before it: raise `tokenizer.max_seq_len`".to_owned(),
        endings => {
            let marks = tokenizer.chat_template().is_some_and(ChatTemplate::marks_generation);
            let hint = match marks {
                true => "; the template's `{% generation %}` blocks must hold the token that ends a turn",
                false => "",
            };
            endings.join("; ") + hint
        }
    };
    format!(
        "{name}: no stop token ({}) ends an answer that is trained, and the model would not learn to end its answers: {why}",
        listed(stop)
    )
}

/// Why samples have no trained token.
#[derive(Default)]
struct Reasons {
    cut: usize,
    left_out: usize,
    empty: usize,
}

impl Reasons {
    fn count(&mut self, cut: bool, left_out: bool) {
        *match (left_out, cut) {
            (true, _) => &mut self.left_out,
            (false, true) => &mut self.cut,
            (false, false) => &mut self.empty,
        } += 1;
    }

    fn in_words(&self, max_seq_len: Option<usize>) -> String {
        let Self { cut, left_out, empty } = self;
        let limit = max_seq_len.unwrap_or_default();
        let ends = for_number(*cut, "ends before its answer begins", "end before their answers begin");
        let all = [
            (cut, format!("{cut} {ends}: raise `tokenizer.max_seq_len`, which is {limit}")),
            (left_out, format!("{left_out} {} marked as not to be trained", for_number(*left_out, "is", "are"))),
            (empty, format!("the answers of {empty} are empty")),
        ];
        let there = all.into_iter().filter(|(count, _)| **count > 0).map(|(_, words)| words);
        there.collect::<Vec<_>>().join("; ")
    }
}

/// The number of a sample's trained tokens.
fn trained(sample: &Sample) -> usize {
    sample.targets.iter().filter(|&&target| target != IGNORE).count()
}

/// What stands before a sample's first trained token.
fn prompt(sample: &Sample) -> &[u32] {
    let first = sample.targets.iter().position(|&target| target != IGNORE);
    &sample.input_ids[..first.map_or(0, |first| first + 1)]
}

impl DatasetReport {
    /// How many samples there are, in words.
    pub(crate) fn count(&self) -> String {
        match (self.pairs, self.good) {
            (Some(pairs), _) => format!("{} of answers", count(pairs, "pair")),
            (None, Some(good)) => {
                format!("{} ({good} good, {} bad)", count(self.samples, "answer"), self.samples - good)
            }
            (None, None) => count(self.samples, "sample"),
        }
    }

    /// How many samples have a length that is not wanted, where the fewest and the most tokens are these.
    fn left_out_by_length(&self, (fewest, most): (usize, usize)) -> String {
        let Self { too_short, too_long, .. } = self;
        let have = |n| for_number(n, "has", "have");
        let all = [
            (too_short, format!("{too_short} {} fewer than `min_tokens` = {fewest} tokens", have(*too_short))),
            (too_long, format!("{too_long} {} more than `max_tokens` = {most} tokens", have(*too_long))),
        ];
        all.into_iter().filter(|(count, _)| **count > 0).map(|(_, words)| words).collect::<Vec<_>>().join("; ")
    }

    /// What there is to say where the model is made for shorter sequences than the longest sample.
    pub(crate) fn too_long(&self, max_positions: usize) -> Option<String> {
        (self.longest > max_positions).then(|| {
            format!(
                "{}: the longest sample has {} tokens, and the model is made for at most {max_positions}: \
                 set `tokenizer.max_seq_len`",
                self.name, self.longest
            )
        })
    }
}

/// What deserves attention, of all datasets; the model is made for sequences of `max_positions` tokens.
pub(super) fn warnings(reports: &[DatasetReport], max_positions: usize) -> Vec<String> {
    let of = |r: &DatasetReport| [r.never_stops.clone(), r.too_long(max_positions)].into_iter().flatten();
    reports.iter().flat_map(|r| r.warnings.iter().cloned().chain(of(r))).collect()
}

impl fmt::Display for DatasetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}, {} of which {} are trained, the longest sample has {}",
            self.name,
            self.count(),
            count(self.tokens, "token"),
            self.trained_tokens,
            self.longest
        )?;
        if self.truncated > 0 {
            write!(f, "; {} cut", self.truncated)?;
        }
        if self.dropped > 0 {
            write!(f, "; {} dropped", self.dropped)?;
        }
        let Self { filtered, too_short, too_long, .. } = self;
        for (count, why) in [(filtered, "filtered out"), (too_short, "too short"), (too_long, "too long")] {
            if *count > 0 {
                write!(f, "; {count} {why}")?;
            }
        }
        Ok(())
    }
}
