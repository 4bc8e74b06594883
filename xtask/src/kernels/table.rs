//! What each kernel takes of a multiprocessor, as the assembler says it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::Target;

/// What one kernel takes on one generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resources {
    kernel: String,
    /// Registers of a thread.
    registers: u32,
    /// Bytes of a thread that did not fit into registers: stores and loads.
    spilled: u32,
    /// Bytes of a thread's stack.
    stack: u32,
    /// Bytes of shared memory of a block, beside what the launch asks for.
    shared: u32,
}

/// Reads what `ptxas -v` says.
pub(super) fn parse(said: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in said.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            found.push(Resources { kernel, registers: 0, spilled: 0, stack: 0, shared: 0 });
        }
        let Some(last) = found.last_mut() else { continue };
        if line.contains("bytes stack frame") && last.registers == 0 {
            last.stack = before(line, "bytes stack frame");
            last.spilled = before(line, "bytes spill stores") + before(line, "bytes spill loads");
        }
        if line.contains("registers") {
            last.registers = before(line, "registers");
            last.shared = before(line, "bytes smem");
        }
    }
    found
}

/// The number before some words; zero where they are not.
fn before(line: &str, words: &str) -> u32 {
    let number = line.split(words).next().filter(|before| before.len() < line.len());
    number.and_then(|before| before.split_whitespace().last()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// A line for each kernel, a column for each generation.
pub(super) fn render<'a>(compiled: impl Iterator<Item = (Target, &'a str, &'a [Resources])>) -> String {
    let (mut cells, mut targets) = (BTreeMap::new(), BTreeSet::new());
    for (target, file, resources) in compiled.filter(|(target, ..)| *target != Target::Ptx) {
        targets.insert(target);
        for r in resources {
            let mut cell = r.registers.to_string();
            for (mark, bytes) in [("!", r.spilled), ("s", r.stack), ("m", r.shared)] {
                if bytes > 0 {
                    _ = write!(cell, " {mark}{bytes}");
                }
            }
            cells.insert((file, r.kernel.as_str(), target), cell);
        }
    }
    let mut targets: Vec<Target> = targets.into_iter().collect();
    targets.sort_by_key(|target| target.name().trim_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0));
    let kernels: BTreeSet<(&str, &str)> = cells.keys().map(|(file, kernel, _)| (*file, *kernel)).collect();
    let width = kernels.iter().map(|(file, kernel)| file.len() + kernel.len() + 2).max().unwrap_or(0);
    let mut text = String::from(
        "Registers of a thread; !N bytes of spilled registers stored and loaded, sN bytes of stack, mN bytes of static shared memory.\n",
    );
    _ = write!(text, "{:width$}", "");
    targets.iter().for_each(|target| _ = write!(text, "  {:>14}", target.name()));
    for (file, kernel) in kernels {
        _ = write!(text, "\n{:width$}", format!("{file}: {kernel}"));
        for &target in &targets {
            let cell = cells.get(&(file, kernel, target)).map_or("-", String::as_str);
            _ = write!(text, "  {cell:>14}");
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_assembler_says_is_understood() {
        let said = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'norm_f32' for 'sm_90a'
ptxas info    : Function properties for norm_f32
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function 'gate' for 'sm_90a'
ptxas info    : Function properties for gate
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
";
        let found = parse(said);
        let norm = Resources { kernel: "norm_f32".into(), registers: 40, spilled: 12, stack: 16, shared: 1024 };
        let gate = Resources { kernel: "gate".into(), registers: 32, spilled: 0, stack: 0, shared: 0 };
        assert_eq!(found, [norm, gate]);
        let table =
            render([(Target::Machine("90a"), "a", &found[..]), (Target::Machine("80"), "a", &found[1..])].into_iter());
        let lines: Vec<&str> = table.lines().skip(1).map(str::trim_end).collect();
        assert!(lines[0].trim_start().starts_with("sm_80"), "{table}");
        assert!(lines[1].ends_with("32              32"), "{table}");
        assert!(lines[2].ends_with("-  40 !12 s16 m1024"), "{table}");
    }
}
