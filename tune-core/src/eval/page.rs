//! A page that says where a model got better and where worse: one HTML file that needs no other.

use std::fmt::Write as _;

use super::compare::{Estimate, Resampling, Row, first, item_is_better};
use super::{Item, Outcome};

/// Of each kind, this many examples are shown.
const EXAMPLES: usize = 200;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}\
table{border-collapse:collapse}td,th{padding:.3rem .8rem;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}\
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}pre{white-space:pre-wrap;margin:0;font:13px/1.4 ui-monospace,monospace}\
details{margin:.4rem 0}summary{cursor:pointer}.up{color:#176117}.down{color:#a11}small{color:#666}";

/// What was measured, with what came of it.
pub struct Task<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its items.
    pub items: &'a [Item],
    /// What the model made of them.
    pub tuned: &'a [Outcome],
    /// What the other made of them.
    pub base: Option<&'a [Outcome]>,
    /// The metrics.
    pub rows: &'a [Row],
}

/// The page. `models` are the names of the model and the other.
pub fn page(models: (&str, Option<&str>), tasks: &[Task<'_>], resampling: Resampling) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head>\
         <body>\n<h1>{title}</h1>\n",
        title = escaped(models.0)
    );
    if let Some(base) = models.1 {
        let _ = writeln!(page, "<p>compared with {}</p>", escaped(base));
    }
    let _ = writeln!(
        page,
        "<p><small>In brackets: intervals of 95 %. Shares of items that are right or wrong have the exact interval of Clopper and \
         Pearson; other numbers and all differences have that of the bootstrap over items ({} resamples, seed {}), in pairs. \
         The chance is that of so uneven a split into better and worse if nothing had changed (exact sign test). Items of a \
         perplexity are compared by their own loss.</small></p>",
        resampling.resamples, resampling.seed
    );
    for task in tasks {
        section(&mut page, task);
    }
    page + "</body></html>\n"
}

fn section(page: &mut String, task: &Task<'_>) {
    let _ = writeln!(page, "<h2>{}</h2>\n<table><tr><th>metric</th><th>items</th><th>model</th>", escaped(task.name));
    if task.base.is_some() {
        *page += "<th>base</th><th>difference</th><th>better</th><th>worse</th><th>chance</th>";
    }
    *page += "</tr>\n";
    for row in task.rows {
        let _ = write!(
            page,
            "<tr><td>{}<br><small>{} is better</small></td><td class=n>{}</td><td class=n>{}</td>",
            row.name,
            if row.more_is_better { "more" } else { "less" },
            row.items,
            number(&row.tuned)
        );
        if let Some((base, difference, [better, worse])) = &row.base {
            // Of which it is sure in which direction.
            let class = match (difference.interval.0 > 0.0, difference.interval.1 < 0.0) {
                (true, _) if row.more_is_better => "up",
                (_, true) if !row.more_is_better => "up",
                (false, false) => "",
                _ => "down",
            };
            let _ = write!(
                page,
                "<td class=n>{}</td><td class=\"n {class}\">{}</td><td class=n>{better}</td><td class=n>{worse}</td>\
                 <td class=n>{:.3}</td>",
                number(base),
                signed(difference),
                row.chance().unwrap_or(1.0)
            );
        }
        *page += "</tr>\n";
    }
    *page += "</table>\n";
    let of = |wanted: Option<bool>| -> Vec<usize> {
        let verdict = |i: usize| task.base.and_then(|base| item_is_better(&task.tuned[i], &base[i]));
        (0..task.items.len()).filter(|&i| verdict(i) == wanted).collect()
    };
    if task.base.is_some() {
        examples(page, task, "Worse", "down", &of(Some(false)), true);
        examples(page, task, "Better", "up", &of(Some(true)), true);
    }
    examples(page, task, if task.base.is_some() { "As before" } else { "All items" }, "", &of(None), false);
}

fn examples(page: &mut String, task: &Task<'_>, title: &str, class: &str, items: &[usize], open: bool) {
    if items.is_empty() {
        return;
    }
    let open = if open { " open" } else { "" };
    let _ = writeln!(page, "<details{open}><summary class=\"{class}\"><b>{title}: {}</b></summary>", items.len());
    *page += "<table><tr><th>item</th><th>asked</th><th>right</th><th>model</th>";
    *page += if task.base.is_some() { "<th>base</th></tr>\n" } else { "</tr>\n" };
    for &i in items.iter().take(EXAMPLES) {
        let item = &task.items[i];
        let _ = write!(page, "<tr><td><small>{}</small></td>", escaped(&item.origin));
        for text in [item.shown(), item.expected(), said(&task.tuned[i])] {
            let _ = write!(page, "<td><pre>{}</pre></td>", escaped(&text));
        }
        if let Some(base) = task.base {
            let _ = write!(page, "<td><pre>{}</pre></td>", escaped(&said(&base[i])));
        }
        *page += "</tr>\n";
    }
    *page += "</table>";
    if items.len() > EXAMPLES {
        let _ = write!(page, "<p><small>{} more are in the results file.</small></p>", items.len() - EXAMPLES);
    }
    *page += "</details>\n";
}

/// What a model said, and by which number it is judged.
fn said(outcome: &Outcome) -> String {
    let score = first(outcome).and_then(|name| Some((name, outcome.parts.get(name)?)));
    let score = score.map(|(name, (numerator, denominator))| format!("({name}: {:.4})", numerator / denominator));
    let parts = [outcome.said.clone(), score.unwrap_or_default(), outcome.why.clone()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

fn number(Estimate { value, interval }: &Estimate) -> String {
    format!("{value:.4} <small>[{:.4}, {:.4}]</small>", interval.0, interval.1)
}

fn signed(Estimate { value, interval }: &Estimate) -> String {
    format!("{value:+.4} <small>[{:+.4}, {:+.4}]</small>", interval.0, interval.1)
}

/// Text in HTML; what a model says is not to be trusted.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
