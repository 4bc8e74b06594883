//! Every mistake has a number that stays what it is, and an explanation.

mod explanations;

pub use tune_yaml::Code;

pub use explanations::EXPLANATIONS;

/// A key that is not in the schema.
pub const UNKNOWN_KEY: Code = Code(20);
/// A key without a default that is not written.
pub const MISSING_KEY: Code = Code(21);
/// A value of another type.
pub const WRONG_TYPE: Code = Code(22);
/// A number that is too small or too large.
pub const OUT_OF_RANGE: Code = Code(23);
/// A value that is not among those that are allowed.
pub const NOT_ALLOWED: Code = Code(24);
/// A `_component_` that there is not.
pub const UNKNOWN_COMPONENT: Code = Code(25);
/// A mapping that does not say which component it is.
pub const NO_COMPONENT: Code = Code(26);
/// A key under two of its names.
pub const TWO_NAMES: Code = Code(27);
/// A text that holds no config.
pub const NO_CONFIG: Code = Code(28);
/// A value that its type refuses.
pub const REFUSED: Code = Code(29);
/// Something of another tool's that there is not here, or that the tool itself refuses.
pub const NOT_HERE: Code = Code(30);
/// A path with a `~` that is no home folder.
pub const NO_HOME: Code = Code(31);
/// An argument that is neither `key=value` nor `~key`.
pub const NO_OVERRIDE: Code = Code(40);
/// An override of something that has nothing in it.
pub const NOTHING_INSIDE: Code = Code(41);
/// `~key` of a key that is not written.
pub const NOTHING_TO_DELETE: Code = Code(42);
/// A position that a list does not have.
pub const NO_ITEM: Code = Code(43);

/// What a code means at length.
#[derive(Debug, Clone, Copy)]
pub struct Explanation {
    /// The code.
    pub code: Code,
    /// The mistake in a few words.
    pub title: &'static str,
    /// What it is and how it comes about.
    pub text: &'static str,
    /// A config with the mistake, or overrides.
    pub wrong: Example,
    /// The same without it.
    pub right: Example,
}

/// A part of a config, or of a command line.
#[derive(Debug, Clone, Copy)]
pub enum Example {
    /// Lines of YAML.
    Yaml(&'static str),
    /// Arguments.
    Overrides(&'static [&'static str]),
}

/// The explanation of a code such as `E0020`, in either case.
pub fn explain(code: &str) -> Option<&'static Explanation> {
    EXPLANATIONS.iter().find(|explanation| explanation.code.to_string().eq_ignore_ascii_case(code.trim()))
}

impl std::fmt::Display for Explanation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}: {}\n\n{}\n", self.code, self.title, self.text)?;
        write!(f, "Wrong:\n\n{}\nRight:\n\n{}", self.wrong, self.right)
    }
}

impl std::fmt::Display for Example {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Example::Yaml(yaml) => yaml.lines().try_for_each(|line| writeln!(f, "    {line}")),
            Example::Overrides(overrides) => {
                let quoted = overrides.iter().map(|with| match with.contains([' ', '[', '~', '*']) {
                    true => format!("'{with}'"),
                    false => (*with).to_owned(),
                });
                writeln!(f, "    {}", quoted.collect::<Vec<_>>().join(" "))
            }
        }
    }
}
