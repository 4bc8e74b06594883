//! Completion of options and keys in a shell. `clap_complete` knows options
//! only, and nearly all that is typed here is `key=value`.

use std::fmt::Write;

use crate::cli::Recipe;
use crate::schema::{Const, Schema, Struct};

/// The shells there are completions for.
pub(crate) const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

const OPTIONS: [&str; 9] = [
    "--config",
    "--help",
    "--version",
    "--validate",
    "--print-config",
    "--print-schema",
    "--print-reference",
    "--explain",
    "--completions",
];

/// Those of a recipe with a preflight, besides.
const PREFLIGHT: [&str; 3] = ["--check", "--plan", "--world-size"];

/// The script for one of [`SHELLS`].
pub(crate) fn script(shell: &str, recipe: &Recipe, schema: &Schema) -> String {
    let mut words = Words { keys: Vec::new() };
    words.inner(schema, "");
    let keys = words.keys;
    let preflight = if recipe.preflight { &PREFLIGHT[..] } else { &[] };
    let options = [&OPTIONS[..], preflight].concat();
    match shell {
        "bash" => bash(recipe.name, &options, &keys),
        "zsh" => zsh(recipe.name, &options, &keys),
        _ => fish(recipe.name, &options, &keys),
    }
}

/// The first words of what can be written: `batch_size=`, `dtype=bf16`.
struct Words {
    keys: Vec<String>,
}

impl Words {
    fn fields(&mut self, fields: &Struct, path: &str) {
        for key in fields.all_keys() {
            let path = format!("{path}{}", key.name);
            let mut values = values(&key.schema, key.one_of);
            // What a shell takes for something else is for people to write.
            values.retain(|value| value.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c)));
            match values.is_empty() {
                true => self.keys.push(format!("{path}=")),
                false => self.keys.extend(values.iter().map(|value| format!("{path}={value}"))),
            }
            self.inner(&key.schema, &format!("{path}."));
        }
    }

    fn inner(&mut self, schema: &Schema, path: &str) {
        match schema {
            Schema::Optional(inner) => self.inner(inner, path),
            Schema::List(inner) => self.inner(inner, &format!("{path}0.")),
            Schema::Struct(fields) => self.fields(fields, path),
            Schema::Component(component) => {
                component
                    .variants
                    .iter()
                    .filter_map(|variant| variant.fields())
                    .for_each(|fields| self.fields(fields, path));
                // Keys of several components are one to a shell.
                let mut seen = std::collections::HashSet::new();
                self.keys.retain(|key| seen.insert(key.clone()));
            }
            _ => {}
        }
    }
}

/// The values of a key, where there are a few.
fn values(schema: &Schema, one_of: &[Const]) -> Vec<String> {
    match schema {
        Schema::Optional(inner) => values(inner, one_of),
        Schema::List(_) | Schema::Array(..) | Schema::Map(_) => Vec::new(),
        _ if !one_of.is_empty() => one_of.iter().map(Const::to_string).collect(),
        Schema::Bool => vec!["true".to_owned(), "false".to_owned()],
        Schema::Choice(choices) => choices.choices.iter().map(|choice| choice.name.to_owned()).collect(),
        Schema::Component(component) => component.variants.iter().map(|variant| variant.name.to_owned()).collect(),
        _ => Vec::new(),
    }
}

fn bash(recipe: &str, options: &[&str], keys: &[String]) -> String {
    let (function, words) = (function(recipe), format!("{} {}", options.join(" "), keys.join(" ")));
    // `=` breaks words in bash: what stands before it is put together again.
    format!(
        "{function}() {{\n\
        \x20   local word=${{COMP_LINE:0:COMP_POINT}} words='{words}'\n\
        \x20   word=${{word##* }}\n\
        \x20   case ${{COMP_WORDS[COMP_CWORD-1]}} in\n\
        \x20       --config|-c) COMPREPLY=($(compgen -f -- \"$word\")); return ;;\n\
        \x20       --completions) COMPREPLY=($(compgen -W '{shells}' -- \"$word\")); return ;;\n\
        \x20   esac\n\
        \x20   COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n\
        \x20   [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace\n\
        \x20   [[ $word == *=* ]] && COMPREPLY=(\"${{COMPREPLY[@]#*=}}\")\n\
        \x20   return 0\n\
        }}\n\
        complete -F {function} {recipe}\n",
        shells = SHELLS.join(" "),
    )
}

fn zsh(recipe: &str, options: &[&str], keys: &[String]) -> String {
    let (with_value, open): (Vec<_>, Vec<_>) = keys.iter().partition(|key| !key.ends_with('='));
    let join = |words: &[&String]| words.iter().map(|word| word.as_str()).collect::<Vec<_>>().join(" ");
    format!(
        "#compdef {recipe}\n\
        {function}() {{\n\
        \x20   case ${{words[CURRENT-1]}} in\n\
        \x20       --config|-c) _files; return ;;\n\
        \x20       --completions) compadd {shells}; return ;;\n\
        \x20   esac\n\
        \x20   compadd -- {options}\n\
        \x20   compadd -- {with_value}\n\
        \x20   compadd -S '' -- {open}\n\
        }}\n\
        compdef {function} {recipe}\n",
        function = function(recipe),
        shells = SHELLS.join(" "),
        options = options.join(" "),
        with_value = join(&with_value),
        open = join(&open),
    )
}

fn fish(recipe: &str, options: &[&str], keys: &[String]) -> String {
    let mut text = format!("complete -c {recipe} -f\ncomplete -c {recipe} -s c -l config -r -F\n");
    let _ = writeln!(text, "complete -c {recipe} -l completions -x -a '{}'", SHELLS.join(" "));
    let _ = writeln!(text, "complete -c {recipe} -l explain -x");
    for option in options.iter().filter(|option| !matches!(**option, "--config" | "--explain" | "--completions")) {
        let _ = writeln!(text, "complete -c {recipe} -l {}", option.trim_start_matches('-'));
    }
    let _ = writeln!(text, "complete -c {recipe} -a '{}'", keys.join(" "));
    text
}

fn function(recipe: &str) -> String {
    format!("_{}", recipe.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
}
