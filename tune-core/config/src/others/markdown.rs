//! The tables as a page.

use std::fmt::Write;

use super::TOOLS;
use super::rules::{Row, Rule};

/// What becomes of each key of each tool, as tables in Markdown.
pub fn other_tools_in_markdown() -> String {
    let mut out = String::new();
    for tool in TOOLS {
        let _ = writeln!(out, "## {} {}\n\n| keys | here |\n|---|---|", tool.name, tool.version);
        tool.rows.iter().for_each(|table| rows(table, "", &mut out));
        out.push('\n');
    }
    out
}

fn rows(all: &[Row], section: &str, out: &mut String) {
    for row in all {
        let keys: Vec<_> = row.keys.iter().map(|key| format!("`{section}{key}`")).collect();
        let becomes = match &row.rule {
            Rule::Ours(path, _) => format!("`{path}`"),
            Rule::Read(becomes) => (*becomes).to_owned(),
            Rule::Meaningless(why) => format!("no meaning: {why}"),
            Rule::Missing(missing) => format!("not supported: {}. Instead: {}", missing.missing, missing.instead),
            Rule::Removed(instead) => format!("refused by the tool itself: {instead}"),
            Rule::Inside(inside) => {
                for key in row.keys {
                    inside.iter().for_each(|table| rows(table, &format!("{section}{key}."), out));
                }
                continue;
            }
        };
        let _ = writeln!(out, "| {} | {} |", keys.join(", "), becomes.replace('|', "\\|"));
    }
}
