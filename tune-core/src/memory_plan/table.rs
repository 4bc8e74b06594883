//! The plan in words.

use std::fmt;

use super::advice::largest;
use super::{Advice, Change, MemoryPlan};
use crate::memory::{Available, size};
use crate::words::count;

impl MemoryPlan {
    /// The parts that are there while the run trains, by name, in bytes.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, u64); 12] {
        let program = if self.setting.card.is_some() { "kernels and workspace" } else { "program, tokenizer, data" };
        [
            (program, self.program),
            ("weights", self.weights),
            ("quantized weights", self.quantized),
            ("reference model", self.reference),
            ("value and reward models", self.scoring),
            ("adapters", self.adapters),
            ("gradients", self.gradients),
            ("optimizer state", self.optimizer),
            ("gathered weights", self.gathered),
            ("activations", self.activations),
            ("output layer and loss", self.output),
            ("gaps between buffers", self.gaps),
        ]
    }

    /// Why the run is not begun, and what would let it.
    pub(super) fn does_not_fit(&self, available: &Available) -> String {
        let mut parts = self.parts();
        parts.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
        let largest: Vec<String> =
            parts.iter().take(3).map(|(name, bytes)| format!("{name} ({})", size(*bytes))).collect();
        let Advice { each_is_enough, changes } =
            self.advice().unwrap_or(Advice { each_is_enough: false, changes: Vec::new() });
        let (machine, variable) = match self.setting.card {
            Some(_) => ("card", "TUNE_CUDA_MEMORY"),
            None => ("machine", "TUNE_MEMORY"),
        };
        let of_card = if self.setting.card.is_some() { " of the card" } else { "" };
        let each = if self.processes() > 1 { "each process of " } else { "" };
        let mut message = format!(
            "{each}this run needs {} of memory{of_card}, and there are {available}; most of it is for {}",
            size(self.peak()),
            largest.join(", ")
        );
        match changes.iter().any(|change| change.fits) {
            true => message.push_str("; it fits with"),
            false if changes.is_empty() => {
                message.push_str(&format!(
                    "; no setting makes it smaller: use a smaller model or a {machine} with more memory"
                ));
            }
            false => message.push_str("; it does not fit even with"),
        }
        for (i, change) in changes.iter().enumerate() {
            let and = match i {
                0 => "",
                _ if each_is_enough => ", or with",
                _ => ", and",
            };
            message.push_str(&format!("{and} {} ({})", change.overrides.join(" "), size(change.peak)));
        }
        message.push_str(&format!(". {variable}=SIZE in the environment overrules what is available"));
        message
    }
}

impl fmt::Display for MemoryPlan {
    /// A table of the parts, and below it the settings that would make the run fit.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = &self.setting;
        writeln!(f, "Memory on {}", setting.card.as_ref().map_or_else(processor, |card| card.name.clone()))?;
        if self.processes() > 1 {
            writeln!(f, "What each of {} processes takes, that of the largest batch", self.processes())?;
            if setting.processes.layout.is_said() {
                writeln!(f, "Processes: {}", setting.processes.layout)?;
            }
        }
        if let Some(batch) = largest(setting) {
            let (tokens, rows) = (count(batch.tokens(), "token"), count(batch.rows, "row"));
            let trained = batch.trained_tokens();
            writeln!(f, "The largest batch has {tokens}, {trained} of them trained, in {rows}\n")?;
        }
        for (name, bytes) in self.parts().iter().filter(|(_, bytes)| *bytes > 0) {
            writeln!(f, "  {name:<26}{:>12}", size(*bytes))?;
        }
        let beyond = self.peak().saturating_sub(self.training());
        let when = if beyond == self.saving { "more while it is saved" } else { "more while it is loaded" };
        if beyond > 0 {
            writeln!(f, "  {when:<26}{:>12}", size(beyond))?;
        }
        write!(f, "  {:<26}{:>12}", "peak", size(self.peak()))?;
        match &self.available {
            Some(available) => writeln!(f, "  of {available}")?,
            None => writeln!(f)?,
        }
        if let Some(dir) = setting.optimizer.offload_dir() {
            writeln!(f, "  {:<26}{:>12}  in {}", "on disk, optimizer state", size(self.offloaded), dir.display())?;
        }
        if let Some(dir) = &setting.activation_offload_dir {
            writeln!(f, "  {:<26}{:>12}  in {}", "on disk, activations", size(self.offloaded_inputs), dir.display())?;
        }
        if self.fits() {
            return Ok(());
        }
        let Advice { each_is_enough, changes } = self.advice().map_err(|_| fmt::Error)?;
        match each_is_enough {
            true => writeln!(f, "\nIt does not fit. Each of these changes is enough:")?,
            false => writeln!(f, "\nIt does not fit. Settings to change, each with those before it:")?,
        }
        let longest = changes.iter().map(|change| change.overrides.join(" ").len()).max().unwrap_or(0);
        for Change { overrides, peak, fits } in &changes {
            let fits = if *fits { "  fits" } else { "" };
            writeln!(f, "  {:<longest$}{:>12}{fits}", overrides.join(" "), size(*peak))?;
        }
        if !changes.iter().any(|change| change.fits) {
            let machine = if setting.card.is_some() { "card" } else { "machine" };
            writeln!(f, "  That is not enough: use a smaller model or a {machine} with more memory.")?;
        }
        Ok(())
    }
}

/// The processor's name, and the threads that compute.
pub(crate) fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = name.map_or("the processor", |(_, name)| name.trim());
    match rayon::current_num_threads() {
        1 => format!("{name}, 1 thread"),
        threads => format!("{name}, {threads} threads"),
    }
}
