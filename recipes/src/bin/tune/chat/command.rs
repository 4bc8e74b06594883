//! What is typed in a conversation: something to say, or a command.

use std::path::PathBuf;

/// What commands there are.
pub(super) const HELP: &str = "\
/regenerate    another answer to what you said last
/system TEXT   what stands before the conversation; without TEXT nothing does
/reset         begin anew
/save FILE     write the conversation as a line of training data
/load FILE     go on with a conversation that was saved
/help          this
/quit          end; so does Ctrl-D
A line that ends with \\ goes on in the next. Ctrl-C ends an answer.";

/// Something that is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Say(String),
    Regenerate,
    System(Option<String>),
    Reset,
    Save(PathBuf),
    Load(PathBuf),
    Help,
    Quit,
}

const NAMES: [&str; 7] = ["regenerate", "system", "reset", "save", "load", "help", "quit"];

/// Understands what was typed. What begins with `//` is said, with one slash.
///
/// # Errors
/// There is no such command, or it needs a file.
pub(super) fn parse(text: &str) -> Result<Command, String> {
    let Some(command) = text.strip_prefix('/') else { return Ok(Command::Say(text.to_owned())) };
    if command.starts_with('/') {
        return Ok(Command::Say(command.to_owned()));
    }
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    let file = || match rest.is_empty() {
        true => Err(format!("/{name} needs a file: /{name} chat.jsonl")),
        false => Ok(PathBuf::from(rest)),
    };
    match name {
        "regenerate" => Ok(Command::Regenerate),
        "system" => Ok(Command::System((!rest.is_empty()).then(|| rest.to_owned()))),
        "reset" => Ok(Command::Reset),
        "save" => file().map(Command::Save),
        "load" => file().map(Command::Load),
        "help" | "?" => Ok(Command::Help),
        "quit" | "exit" | "bye" => Ok(Command::Quit),
        other => {
            let near = NAMES.iter().map(|name| (strsim::damerau_levenshtein(name, other), name)).min();
            let hint = near.filter(|(distance, _)| *distance < 4).map(|(_, name)| format!(", but /{name}"));
            Err(format!(
                "there is no /{other}{}; /help lists commands, and //{other} says it",
                hint.unwrap_or_default()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_understood() {
        assert_eq!(parse("hello /save me"), Ok(Command::Say("hello /save me".into())));
        assert_eq!(parse("//save"), Ok(Command::Say("/save".into())));
        assert_eq!(parse("/save my chat.jsonl "), Ok(Command::Save("my chat.jsonl".into())));
        assert_eq!(parse("/system Be brief."), Ok(Command::System(Some("Be brief.".into()))));
        assert_eq!(parse("/system"), Ok(Command::System(None)));
        assert!(parse("/save").is_err_and(|said| said.contains("needs a file")));
        assert!(parse("/regenrate").is_err_and(|said| said.contains("but /regenerate")), "{:?}", parse("/regenrate"));
    }
}
