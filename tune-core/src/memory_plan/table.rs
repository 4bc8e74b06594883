//! The plan in words.

use std::fmt;

use super::{Available, Change, MemoryPlan};
use crate::metrics::bytes;

impl MemoryPlan {
    /// The parts that are there while the run trains, by name, in bytes.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("program, tokenizer, data", self.program),
            ("weights", self.weights),
            ("adapters", self.adapters),
            ("gradients", self.gradients),
            ("optimizer state", self.optimizer),
            ("activations", self.activations),
            ("output layer and loss", self.output),
            ("gaps between buffers", self.gaps),
        ]
    }

    /// Why the run is not begun, and what would let it.
    pub(super) fn does_not_fit(&self, available: &Available) -> String {
        let mut parts = self.parts();
        parts.sort_by_key(|&(_, size)| std::cmp::Reverse(size));
        let largest: Vec<String> =
            parts.iter().take(3).map(|(name, size)| format!("{name} {}", bytes(*size))).collect();
        let changes = self.changes().unwrap_or_default();
        let mut message = format!(
            "this run needs {} of memory, and there are {available}; most are {}",
            bytes(self.peak()),
            largest.join(", ")
        );
        match changes.iter().any(|change| change.fits) {
            true => message.push_str("; it fits with"),
            false if changes.is_empty() => {
                message.push_str("; no setting makes it smaller: use a smaller model or a machine with more memory");
            }
            false => message.push_str("; it does not fit even with"),
        }
        for (i, change) in changes.iter().enumerate() {
            let and = if i == 0 { "" } else { ", and" };
            message.push_str(&format!("{and} {} ({})", change.overrides.join(" "), bytes(change.peak)));
        }
        message.push_str(". TUNE_MEMORY=SIZE in the environment overrules what is available");
        message
    }
}

impl fmt::Display for MemoryPlan {
    /// A table of the parts, and below it the settings that would make the run fit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = &self.setting;
        let rows = setting.batch.spans.iter().map(|span| span.row + 1).max().unwrap_or(0);
        writeln!(f, "Memory on {}", processor())?;
        writeln!(
            f,
            "The largest batch has {} tokens in {rows} rows, {} of them trained; {:?}, checkpointing {}.\n",
            setting.batch.tokens(),
            setting.batch.trained_tokens(),
            setting.dtype,
            if setting.activation_checkpointing { "on" } else { "off" }
        )?;
        for (name, size) in self.parts().iter().filter(|(_, size)| *size > 0) {
            writeln!(f, "  {name:<26}{:>12}", bytes(*size))?;
        }
        let beyond = self.peak().saturating_sub(self.training());
        if beyond > 0 {
            writeln!(f, "  {:<26}{:>12}", "more while it is loaded", bytes(beyond))?;
        }
        write!(f, "  {:<26}{:>12}", "peak", bytes(self.peak()))?;
        match &self.available {
            Some(available) => writeln!(f, "  of {available}")?,
            None => writeln!(f)?,
        }
        if self.fits() {
            return Ok(());
        }
        let changes = self.changes().map_err(|_| fmt::Error)?;
        writeln!(f, "\nIt does not fit. Settings to change, each with those before it:")?;
        for Change { overrides, peak, fits } in &changes {
            let fits = if *fits { "fits" } else { "" };
            writeln!(f, "  {:<52}{:>12}  {fits}", overrides.join(" "), bytes(*peak))?;
        }
        if !changes.iter().any(|change| change.fits) {
            writeln!(f, "  That is not enough: use a smaller model or a machine with more memory.")?;
        }
        Ok(())
    }
}

/// The processor's name, and the threads that compute.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map_or("the processor", |(_, name)| name.trim());
    match rayon::current_num_threads() {
        1 => format!("{name}, 1 thread"),
        threads => format!("{name}, {threads} threads"),
    }
}
