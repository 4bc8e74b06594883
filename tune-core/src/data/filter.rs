//! Records that an expression over their columns lets through.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use tune_jinja::{Names, Template, Value as Given};

use super::conversation::missing_column;
use super::records::{Record, Records};
use super::stand_in;
use crate::config::{Config, Mismatch, Schema, Value};
use crate::tokenizer::{json_size, listed};
use crate::words::count;
use crate::{Error, Result};

/// An expression in Jinja: the records of which it is true are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    expression: String,
    /// The names in it, which are those of columns.
    columns: Vec<String>,
}

impl Config for Filter {
    const SCHEMA: Schema = Schema::Text;

    fn from_value(value: &Value) -> std::result::Result<Self, Mismatch> {
        Self::new(value.text()?).map_err(|message| value.refuse(message))
    }

    fn to_value(&self) -> Value {
        Value::from_text(&self.expression)
    }
}

impl Filter {
    /// The filter of an expression such as `score > 0.5`.
    ///
    /// # Errors
    /// What is no expression.
    pub fn new(expression: &str) -> std::result::Result<Self, String> {
        let template = compiled(expression)
            .map_err(|error| format!("not an expression in Jinja, such as `score > 0.5`: {}", error.message()))?;
        let mut columns: Vec<String> = template.names().map(str::to_owned).collect();
        columns.sort();
        Ok(Self { expression: expression.to_owned(), columns })
    }

    /// The columns that it reads.
    pub(super) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The records that are taken. A record that cannot be read is one of them, so that it is told of with the others.
    ///
    /// # Errors
    /// The first record for which the expression has no value, a name that is no column, and where nothing is taken.
    pub(super) fn apply(&self, records: Records) -> Result<Records> {
        let Self { expression, columns } = self;
        let template = compiled(expression).map_err(|error| Error::setup(self.wrong(error.message())))?;
        let seen: Vec<AtomicBool> = columns.iter().map(|_| AtomicBool::new(false)).collect();
        let look = |mut found: Found, i| {
            let Ok(record) = records.read(i) else {
                found.taken.push(i);
                return found;
            };
            let there = columns.iter().zip(&seen).filter(|(column, _)| record.columns.contains_key(*column));
            there.for_each(|(_, seen)| seen.store(true, Ordering::Relaxed));
            match self.takes(&record, &template) {
                Ok(true) => found.taken.push(i),
                Ok(false) => {}
                Err(error) => found.fault(i, error),
            }
            found
        };
        let all = (0..records.len()).into_par_iter();
        let Found { taken, fault } = all.fold(Found::default, look).reduce(Found::default, Found::and);
        if let Some((_, error)) = fault {
            return Err(error);
        }
        let unseen = columns.iter().zip(&seen).find(|(_, seen)| !seen.load(Ordering::Relaxed));
        if let (Some((name, _)), Some(first)) = (unseen, (0..records.len()).find_map(|i| records.read(i).ok())) {
            let advice = format!(". `filter: {expression}` reads it, and no other record has one either");
            return Err(missing_column(&first, name, &advice));
        }
        if taken.is_empty() {
            let n = records.len();
            return Err(Error::setup(self.wrong(&format!("it is true of none of {}", count(n, "record")))));
        }
        Ok(records.only(&taken))
    }

    /// Whether the expression is true of a record.
    fn takes(&self, record: &Record, template: &Template) -> Result<bool> {
        let mut values = Vec::with_capacity(self.columns.len());
        let mut size = 0;
        for column in &self.columns {
            let Some(value) = record.columns.get(column) else { continue };
            if let Some(what) = stand_in::within(value) {
                let what = format!("column `{column}` is or holds {what}, which no expression can be given");
                return Err(record.origin.error(self.wrong(&what)));
            }
            size += json_size(value);
            values.push((column.as_str(), Given::try_from(value).map_err(|e| self.fails(record, &e))?));
        }
        let names = Names { size, ..Names::new(&values) };
        let rendered = template.render(&names).map_err(|e| self.fails(record, &e))?;
        Ok(!rendered.text.is_empty())
    }

    fn fails(&self, record: &Record, error: &tune_jinja::Error) -> Error {
        let missing: Vec<&String> =
            self.columns.iter().filter(|column| !record.columns.contains_key(*column)).collect();
        let what = match missing.is_empty() {
            true => error.message().to_owned(),
            false => format!("{}; the record has no column {}", error.message(), listed(missing)),
        };
        record.origin.error(self.wrong(&what))
    }

    fn wrong(&self, what: &str) -> String {
        format!("`filter: {}`: {what}", self.expression)
    }
}

/// A template that is empty where the expression is false, as Python has it.
fn compiled(expression: &str) -> std::result::Result<Template, tune_jinja::Error> {
    Template::new(&format!("{{% if ({expression}) %}}true{{% endif %}}"))
}

/// What one look at each record tells.
#[derive(Default)]
struct Found {
    taken: Vec<usize>,
    /// The first record for which the expression has no value.
    fault: Option<(usize, Error)>,
}

impl Found {
    fn fault(&mut self, record: usize, error: Error) {
        if self.fault.as_ref().is_none_or(|(first, _)| record < *first) {
            self.fault = Some((record, error));
        }
    }

    /// What both have seen, the other one behind this one.
    fn and(mut self, other: Self) -> Self {
        self.taken.extend(other.taken);
        other.fault.into_iter().for_each(|(record, error)| self.fault(record, error));
        self
    }
}
