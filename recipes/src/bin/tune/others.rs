//! Configs of Axolotl, LLaMA-Factory, TRL and Unsloth: `convert` and `lint`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tune_core::config::cli::{complain, show, stderr_color, stdout_color, warnings};
use tune_core::config::{Report, convert_other, lint_other, other_tool, output};

use crate::{Result, validate};

/// A config of another tool's.
#[derive(clap::Args)]
pub(crate) struct Lint {
    /// The file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Shows a config of another tool's in our names; `None` where it is no such config. What is not taken over is said on the
/// standard error.
pub(crate) fn convert(command: &[OsString]) -> Option<Result<ExitCode>> {
    let (file, more) = command.split_first()?;
    let text = text_of(Path::new(file)).filter(|text| other_tool(text).is_some())?;
    let name = file.to_string_lossy();
    if !more.is_empty() {
        return Some(Err(format!(
            "`{name}` is another tool's, and overrides have our names: `tune convert {name} > FILE`, then put them behind \
             `--config FILE`"
        )
        .into()));
    }
    Some(Ok(match convert_other(&name, &text) {
        Ok(made) => {
            let code = show(&made.yaml);
            complain(&warnings(&made.warnings, stderr_color()));
            code
        }
        Err(report) => refused(&report),
    }))
}

/// Shows what another tool does with its config.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn lint(args: &Lint) -> Result<ExitCode> {
    let name = args.file.to_string_lossy();
    // A file that is not there says so itself.
    std::fs::File::open(&args.file).map_err(|error| format!("cannot read {name}: {error}"))?;
    let text = text_of(&args.file).ok_or_else(|| format!("cannot read {name} as text"))?;
    let report = match lint_other(&name, &text) {
        Ok(report) => report,
        Err(report) => return Ok(refused(&report)),
    };
    if report.is_empty() {
        let tool = other_tool(&text).unwrap_or_default();
        return Ok(show(&format!("{name}: nothing to say; {tool} does what the file says\n")));
    }
    output::show(&report.render(stdout_color()))?;
    Ok(ExitCode::FAILURE)
}

/// What to do with a file that is a config of another tool's.
pub(crate) fn hint(config: &Path) -> Option<String> {
    let is_file = config.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    let tool = other_tool(&text_of(config).filter(|_| is_file)?)?;
    let name = config.display();
    Some(format!("{name} is a config of {tool}'s: `tune convert {name} > FILE` writes it in our names"))
}

/// The text of a file; a pipe can be read only once, by whom it is meant for.
fn text_of(file: &Path) -> Option<String> {
    file.is_file().then(|| validate::text_of(file)).flatten()
}

fn refused(report: &Report) -> ExitCode {
    complain(&report.render(stderr_color()));
    ExitCode::FAILURE
}
