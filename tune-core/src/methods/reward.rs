//! What answers are worth.

use serde_json::json;
use tune_config::Config;

use super::Prompt;
use crate::Result;
use crate::eval::Program;

/// What an answer is worth.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub enum RewardConfig {
    /// 1 for the answer that is expected, but for white space around it; 0 for any other.
    #[config(name = "exact", default)]
    Exact(ExactReward),
    /// The share of characters that are those of the expected answer at the same place, of the longer of the two.
    #[config(name = "overlap")]
    Overlap(OverlapReward),
    /// What a program says.
    #[config(name = "program")]
    Program(ProgramReward),
}

/// See [`RewardConfig::Exact`].
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct ExactReward {}

/// See [`RewardConfig::Overlap`].
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct OverlapReward {}

/// A program that is started once. For each answer it reads a line of JSON, `{"record": {"answer": "what is expected",
/// "origin": "file.jsonl:17"}, "prompt": "...", "answer": "..."}`, and writes a line, `{"score": 0.5}`, with any number.
#[derive(Debug, Clone, PartialEq, Config)]
#[config(crate = tune_config)]
pub struct ProgramReward {
    /// How it is started, by the shell: `python3 reward.py`, say.
    pub command: String,
}

/// A [`RewardConfig`] at work.
pub enum Reward {
    /// See [`RewardConfig::Exact`].
    Exact,
    /// See [`RewardConfig::Overlap`].
    Overlap,
    /// See [`RewardConfig::Program`].
    Program(Program),
}

impl Reward {
    /// Starts the program, if it is one.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn new(config: &RewardConfig) -> Result<Self> {
        Ok(match config {
            RewardConfig::Exact(_) => Self::Exact,
            RewardConfig::Overlap(_) => Self::Overlap,
            RewardConfig::Program(ProgramReward { command }) => Self::Program(Program::start(command)?),
        })
    }

    /// What an answer to a prompt is worth.
    ///
    /// # Errors
    /// A program that ends, takes too long, or writes something else than a number.
    pub fn of(&mut self, prompt: &Prompt, answer: &str) -> Result<f64> {
        let (said, expected) = (answer.trim(), prompt.expected.trim());
        Ok(match self {
            Self::Exact => f64::from(u8::from(said == expected)),
            Self::Overlap => {
                let same = said.chars().zip(expected.chars()).filter(|(a, b)| a == b).count();
                same as f64 / said.chars().count().max(expected.chars().count()).max(1) as f64
            }
            Self::Program(program) => {
                let record = json!({ "answer": prompt.expected, "origin": prompt.origin });
                let question = json!({ "record": record, "prompt": prompt.text, "answer": answer });
                program.score(&prompt.origin, &question, &(f64::NEG_INFINITY..=f64::INFINITY))?.0
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt() -> Prompt {
        Prompt {
            ids: vec![1],
            text: "Write b-a backwards.".into(),
            expected: "a-b".into(),
            origin: "words.jsonl:3".into(),
        }
    }

    #[test]
    fn an_answer_is_worth_what_it_shares_with_the_expected_one() {
        let worth = |config: &RewardConfig, answer: &str| Reward::new(config).unwrap().of(&prompt(), answer).unwrap();
        let exact = RewardConfig::Exact(ExactReward {});
        assert_eq!(["a-b", " a-b\n", "a-c", ""].map(|answer| worth(&exact, answer)), [1.0, 1.0, 0.0, 0.0]);
        let overlap = RewardConfig::Overlap(OverlapReward {});
        let expected = [1.0, 2.0 / 3.0, 0.5, 0.0];
        assert_eq!(["a-b", "a-c", "a-bcde", ""].map(|answer| worth(&overlap, answer)), expected);
    }

    #[cfg(unix)]
    #[test]
    fn a_program_says_what_an_answer_is_worth() {
        let of =
            |command: &str| Reward::new(&RewardConfig::Program(ProgramReward { command: command.to_owned() })).unwrap();
        // A line an answer, and any number.
        let mut program = of(
            r#"while read -r line; do case "$line" in *'"answer":"right"'*) echo '{"score": -2.5}';; *) echo '{"score": 7}';; esac; done"#,
        );
        assert_eq!(program.of(&prompt(), "right").unwrap(), -2.5);
        assert_eq!(program.of(&prompt(), "wrong").unwrap(), 7.0);
        let error = of("echo hello; cat").of(&prompt(), "x").unwrap_err().to_string();
        assert!(error.contains("words.jsonl:3") && error.contains("wrote `hello`"), "{error}");
        let error = of("exit 3").of(&prompt(), "x").unwrap_err().to_string();
        assert!(error.contains("ended"), "{error}");
    }
}
