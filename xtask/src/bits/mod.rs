//! Checksums of what training computes, to hold two builds together on one machine: whoever moves the engine's code
//! about wants to see that not a bit has changed. They are not kept in the repository, for sums of another processor may
//! round otherwise.

mod cases;
mod models;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tune_core::config::{complain, say};
use tune_core::device::DeviceConfig;

use crate::Result;

/// The kernels that there are, by their names in `TUNE_ISA`.
const ISAS: [&str; 6] = ["portable", "avx2", "avx512", "avx512bf16", "amx", "amx-plain"];
/// As many differences are named.
const NAMED: usize = 20;

/// What `bits` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the checksums to this file.
    #[arg(long, value_name = "FILE", conflicts_with = "against")]
    save: Option<PathBuf>,
    /// Compare with the checksums that another build saved to this file, on this machine; fails where one differs.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Compute with the kernels of this process, for the process that asked for them.
    #[arg(long, hide = true)]
    here: bool,
}

/// Checksums by what was computed: `<kernels> <model> .. : <value>`.
type Checksums = BTreeMap<String, String>;

pub(crate) fn run(root: &Path, args: &Args) -> Result<()> {
    if args.here {
        return cases::compute(root, &mut |case, value, checksum| say!("{case}: {value}\t{checksum:08x}"));
    }
    // A mistake in a file's name is found before minutes are spent.
    let before = args.against.as_deref().map(read).transpose()?;
    let now = all_kernels()?;
    if let Some(path) = &args.save {
        fs::write(path, text(&now)).map_err(|e| format!("{}: {e}", path.display()))?;
        say!("{} checksums saved to {}", now.len(), path.display());
    } else if let (Some(before), Some(path)) = (before, &args.against) {
        let differences = differences(&before, &now);
        if !differences.is_empty() {
            let named: String = differences.iter().take(NAMED).map(|d| format!("\n  {d}")).collect();
            let others = differences.len().saturating_sub(NAMED);
            let others = if others > 0 { format!("\n  and {others} more") } else { String::new() };
            let count = differences.len();
            return Err(
                format!("{count} of {} checksums of {} differ:{named}{others}", before.len(), path.display()).into()
            );
        }
        say!("{} checksums are those of {}; {} are new", before.len(), path.display(), now.len() - before.len());
    } else {
        table(&now);
    }
    Ok(())
}

/// The checksums of a process for each of the kernels that this processor runs: which ones, is decided once in a process.
fn all_kernels() -> Result<Checksums> {
    let mut all = Checksums::new();
    for isa in ISAS {
        complain!("{isa} ..");
        let output = Command::new(std::env::current_exe()?)
            .args(["bits", "--here"])
            .env("TUNE_ISA", isa)
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("the process with TUNE_ISA={isa} failed, see above").into());
        }
        let found = parse(&String::from_utf8(output.stdout)?)?;
        if found.is_empty() {
            complain!("{isa}: this processor does not have it");
        }
        all.extend(found.into_iter().map(|(what, checksum)| (format!("{isa} {what}"), checksum)));
    }
    Ok(all)
}

/// Whether this process can compute with the kernels that it was asked for.
fn kernels_are_here() -> bool {
    DeviceConfig::Cpu.open().is_ok()
}

fn text(checksums: &Checksums) -> String {
    checksums.iter().map(|(what, checksum)| format!("{what}\t{checksum}\n")).collect()
}

fn parse(text: &str) -> Result<Checksums> {
    let line = |(number, line): (usize, &str)| match line.split_once('\t') {
        Some((what, checksum)) => Ok((what.to_owned(), checksum.to_owned())),
        None => Err(format!("line {}: `{line}` is not a name and a checksum", number + 1).into()),
    };
    text.lines().enumerate().map(line).collect()
}

fn read(path: &Path) -> Result<Checksums> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let checksums = parse(&text).map_err(|e| format!("{}, {e}", path.display()))?;
    if checksums.is_empty() {
        return Err(format!("{} has no checksums", path.display()).into());
    }
    Ok(checksums)
}

/// What is otherwise now, or no longer there. What is new is no difference.
fn differences(before: &Checksums, now: &Checksums) -> Vec<String> {
    let one = |(what, old): (&String, &String)| match now.get(what) {
        Some(new) if new == old => None,
        Some(new) => Some(format!("{what}: {old} before, {new} now")),
        None => Some(format!("{what}: {old} before, not there now")),
    };
    before.iter().filter_map(one).collect()
}

/// Prints a line a case: its loss, and the checksum of everything else.
fn table(checksums: &Checksums) {
    let mut cases: BTreeMap<&str, (&str, u32, usize)> = BTreeMap::new();
    for (what, checksum) in checksums {
        let (case, value) = what.split_once(": ").unwrap_or((what, ""));
        let (loss, rest, count) = cases.entry(case).or_insert(("", 0, 0));
        match value {
            "loss" => *loss = checksum,
            _ => (*rest, *count) = (crc32c::crc32c_append(*rest, checksum.as_bytes()), *count + 1),
        }
    }
    let width = cases.keys().map(|case| case.len()).max().unwrap_or_default();
    say!("{:width$}  {:8}  values  of values", "case", "loss");
    for (case, (loss, rest, count)) in cases {
        say!("{case:width$}  {loss:8}  {count:6}  {rest:08x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksums(lines: &[(&str, &str)]) -> Checksums {
        lines.iter().map(|(what, checksum)| ((*what).to_owned(), (*checksum).to_owned())).collect()
    }

    #[test]
    fn what_was_saved_is_read() {
        let saved = checksums(&[("avx512 tiny f32: loss", "00000001"), ("avx512 tiny f32: w", "0badcafe")]);
        assert_eq!(parse(&text(&saved)).unwrap(), saved);
        assert!(parse("tiny\n").unwrap_err().to_string().contains("line 1: `tiny`"));
    }

    #[test]
    fn what_differs_and_what_is_gone_is_named() {
        let before = checksums(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let now = checksums(&[("a", "1"), ("b", "7"), ("d", "4")]);
        assert_eq!(differences(&before, &now), ["b: 2 before, 7 now", "c: 3 before, not there now"]);
        assert!(differences(&before, &before).is_empty());
    }
}
