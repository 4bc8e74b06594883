//! One model's outcomes, or two models' side by side.

use std::fmt::Write as _;

use super::measure::{Outcome, Part};
use super::statistics::{Interval, bootstrap, exact, share, sign_test};

/// A metric's name, and how its number is made.
const METRICS: [(&str, Kind); 9] = [
    (super::EXACT_MATCH, Kind::Share),
    (super::REGEX, Kind::Share),
    (super::JSON_SCHEMA, Kind::Share),
    (super::PROGRAM, Kind::Share),
    (super::CHOICE, Kind::Share),
    (super::CHOICE_PER_TOKEN, Kind::Share),
    (super::CHOICE_PER_BYTE, Kind::Share),
    (super::ANSWER_PERPLEXITY, Kind::Perplexity),
    (super::PERPLEXITY, Kind::Perplexity),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A mean score: more is better.
    Share,
    /// The exponential of a mean loss: less is better.
    Perplexity,
    /// A loss in bits: less is better.
    Bits,
}

impl Kind {
    fn of(self, share: f64) -> f64 {
        match self {
            Self::Share => share,
            Self::Perplexity => share.exp(),
            Self::Bits => share / std::f64::consts::LN_2,
        }
    }
}

/// A number with its interval of 95 %.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// The interval.
    pub interval: Interval,
}

/// A metric of one model or two.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The metric.
    pub name: &'static str,
    /// Whether more is better.
    pub more_is_better: bool,
    /// The items that it is made of.
    pub items: usize,
    /// The model's.
    pub tuned: Estimate,
    /// The other's, with the difference (the model's less the other's) and the numbers of items that got better and worse.
    pub base: Option<(Estimate, Estimate, [u64; 2])>,
}

impl Row {
    /// The chance that so many items got better and worse for nothing: the exact sign test.
    pub fn chance(&self) -> Option<f64> {
        self.base.as_ref().map(|(_, _, [better, worse])| sign_test(*better, *worse))
    }
}

/// All metrics.
fn all() -> impl Iterator<Item = (&'static str, Kind)> {
    METRICS.into_iter().chain([(super::BITS_PER_BYTE, Kind::Bits)])
}

/// Whether more of a metric is better; `None` where there is no metric of this name.
pub fn more_is_better(name: &str) -> Option<bool> {
    all().find(|(known, _)| *known == name).map(|(_, kind)| kind == Kind::Share)
}

/// The names of all metrics.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    all().map(|(name, _)| name)
}

/// The numbers that these outcomes make, by the names of metrics, without intervals.
pub fn scores(outcomes: &[Outcome]) -> Vec<(&'static str, f64)> {
    let score = |(name, kind): (&'static str, Kind)| {
        let mut parts = outcomes.iter().filter_map(|outcome| outcome.parts.get(name).copied()).peekable();
        parts.peek()?;
        Some((name, kind.of(share(parts))))
    };
    all().filter_map(score).collect()
}

/// How intervals are made.
#[derive(Debug, Clone, Copy)]
pub struct Resampling {
    /// Draws of the bootstrap.
    pub resamples: usize,
    /// Where the drawing starts.
    pub seed: u64,
}

/// The metrics of these outcomes. Shares of items that are right or wrong have the exact interval of Clopper and Pearson; all
/// other numbers, and all differences, have that of the bootstrap over items, in pairs.
pub fn rows(tuned: &[Outcome], base: Option<&[Outcome]>, resampling: Resampling) -> Vec<Row> {
    all().filter_map(|(name, kind)| row(name, kind, tuned, base, resampling)).collect()
}

fn row(
    name: &'static str,
    kind: Kind,
    tuned: &[Outcome],
    base: Option<&[Outcome]>,
    Resampling { resamples, seed }: Resampling,
) -> Option<Row> {
    let parts =
        |outcomes: &[Outcome]| -> Vec<Part> { outcomes.iter().filter_map(|o| o.parts.get(name).copied()).collect() };
    let of = |parts: &[Part], drawn: &[usize]| kind.of(share(drawn.iter().map(|&item| parts[item])));
    let mine = parts(tuned);
    if mine.is_empty() {
        return None;
    }
    let each: Vec<usize> = (0..mine.len()).collect();
    let estimate = |parts: &[Part]| {
        let is_binary = kind == Kind::Share && parts.iter().all(|part| part.0 == 0.0 || part.0 == 1.0);
        let interval = match is_binary {
            true => exact(parts.iter().filter(|part| part.0 == 1.0).count() as u64, parts.len() as u64),
            false => bootstrap(parts.len(), resamples, seed, |drawn| of(parts, drawn)),
        };
        Estimate { value: of(parts, &each), interval }
    };
    let more_is_better = kind == Kind::Share;
    let compared = base.map(|base| {
        let theirs = parts(base);
        let difference = |drawn: &[usize]| of(&mine, drawn) - of(&theirs, drawn);
        let interval = bootstrap(mine.len(), resamples, seed, difference);
        let better = |item: usize| better(name, &tuned[item], &base[item]);
        let count = |wanted| (0..tuned.len()).filter(|&item| better(item) == Some(wanted)).count() as u64;
        let counts = [count(true), count(false)];
        (estimate(&theirs), Estimate { value: difference(&each), interval }, counts)
    });
    Some(Row { name, more_is_better, items: mine.len(), tuned: estimate(&mine), base: compared })
}

/// Whether an item got better (`true`) or worse by this metric; `None` where it is as it was.
fn better(name: &str, tuned: &Outcome, base: &Outcome) -> Option<bool> {
    let (mine, theirs) = (tuned.parts.get(name)?, base.parts.get(name)?);
    let sign = if METRICS.contains(&(name_of(name)?, Kind::Share)) { 1.0 } else { -1.0 };
    let difference = sign * (mine.0 / mine.1 - theirs.0 / theirs.1);
    (difference != 0.0).then_some(difference > 0.0)
}

fn name_of(name: &str) -> Option<&'static str> {
    METRICS.iter().map(|(known, _)| *known).chain([super::BITS_PER_BYTE]).find(|known| *known == name)
}

/// Whether an item as a whole got better or worse: by its first metric.
pub(super) fn item_is_better(tuned: &Outcome, base: &Outcome) -> Option<bool> {
    first(tuned).and_then(|name| better(name, tuned, base))
}

/// The metric that an item is judged by.
pub(super) fn first(outcome: &Outcome) -> Option<&'static str> {
    METRICS.iter().map(|(name, _)| *name).find(|name| outcome.parts.contains_key(name))
}

/// The metrics as lines for a terminal.
pub fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    let shown =
        |estimate: &Estimate| format!("{:.4} [{:.4}, {:.4}]", estimate.value, estimate.interval.0, estimate.interval.1);
    let mut text = String::new();
    for row in rows {
        let _ = write!(text, "  {:width$}  {}", row.name, shown(&row.tuned));
        if let Some((base, difference, [better, worse])) = &row.base {
            let Estimate { value, interval } = difference;
            let _ = write!(
                text,
                "  base {}  difference {value:+.4} [{:+.4}, {:+.4}]  {better} better, {worse} worse",
                shown(base),
                interval.0,
                interval.1
            );
        }
        let _ = writeln!(text, "  of {}", row.items);
    }
    text
}
