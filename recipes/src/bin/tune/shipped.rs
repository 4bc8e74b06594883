//! The recipes and configs that `tune` brings along: it finds them away from the checkout, too.

use std::fmt::Write;

use crate::Result;

/// A recipe of this project.
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    /// The file's text.
    pub(crate) source: &'static str,
    /// Its keys as JSON Schema.
    pub(crate) schema: &'static str,
    pub(crate) configs: &'static [Config],
}

/// A config that a recipe ships with.
pub(crate) struct Config {
    /// The file's name without `.yaml`.
    pub(crate) name: &'static str,
    /// The file's text.
    pub(crate) yaml: &'static str,
}

macro_rules! shipped {
    ($($recipe:ident: $($config:ident),*;)*) => {
        &[$(Recipe {
            name: stringify!($recipe),
            source: include_str!(concat!("../", stringify!($recipe), ".rs")),
            schema: include_str!(concat!("../../../../configs/", stringify!($recipe), "/schema.json")),
            configs: &[$(Config {
                name: stringify!($config),
                yaml: include_str!(concat!(
                    "../../../../configs/", stringify!($recipe), "/", stringify!($config), ".yaml"
                )),
            }),*],
        }),*]
    };
}

/// All of them, by name. `tests/tune.rs` compares it with the folders.
pub(crate) const RECIPES: &[Recipe] = shipped! {
    distill: smollm2_135m, tiny;
    dpo: full_smollm2_135m, smollm2_135m, tiny;
    eleuther_eval: eleuther_evaluation, tiny;
    full: smollm2_135m, tiny;
    generate: smollm2_135m, tiny;
    grpo: smollm2_135m, tiny;
    kto: full_smollm2_135m, smollm2_135m, tiny;
    lora: smollm2_135m, tiny;
    ppo: smollm2_135m, tiny;
    pretrain: make_tiny, smollm2_135m, tiny;
    qat: lora_smollm2_135m, smollm2_135m, tiny;
    quantize: quantization, tiny;
    reward: classifier_smollm2_135m, smollm2_135m, tiny, tiny_classifier;
};

/// What a name stands for.
pub(crate) enum Named {
    Recipe(&'static Recipe),
    Config(&'static Recipe, &'static Config),
}

/// A recipe (`lora`) or a config (`lora/tiny`).
///
/// # Errors
/// There is none; the message has the nearest name.
pub(crate) fn named(name: &str) -> Result<Named> {
    let recipes = RECIPES.iter().map(|recipe| recipe.name.to_owned());
    if let Some(recipe) = RECIPES.iter().find(|recipe| recipe.name == name) {
        return Ok(Named::Recipe(recipe));
    }
    if let Some((recipe, config)) = config(name) {
        return Ok(Named::Config(recipe, config));
    }
    Err(format!("there is no recipe or config `{name}`{}", nearest(name, recipes.chain(config_names()))).into())
}

/// A recipe by its name.
///
/// # Errors
/// There is none; the message has the nearest name.
pub(crate) fn recipe(name: &str) -> Result<&'static Recipe> {
    RECIPES.iter().find(|recipe| recipe.name == name).ok_or_else(|| {
        let hint = nearest(name, RECIPES.iter().map(|recipe| recipe.name.to_owned()));
        format!("there is no recipe `{name}`{hint}\nA file of your own is named by its path: `./{name}.rs`").into()
    })
}

/// A config by a name such as `lora/tiny`; `.yaml` and `configs/` may stand around it.
pub(crate) fn config(name: &str) -> Option<(&'static Recipe, &'static Config)> {
    let name = name.strip_prefix("configs/").unwrap_or(name);
    let (recipe, config) = name.strip_suffix(".yaml").unwrap_or(name).split_once('/')?;
    let recipe = RECIPES.iter().find(|candidate| candidate.name == recipe)?;
    Some((recipe, recipe.configs.iter().find(|candidate| candidate.name == config)?))
}

/// A config by its own name alone, as torchtune's users type it: one of the recipe's that no other recipe has.
pub(crate) fn config_alone(recipe: &str, name: &str) -> Option<(&'static Recipe, &'static Config)> {
    let of = |recipe: &'static Recipe| Some((recipe, recipe.configs.iter().find(|config| config.name == name)?));
    let mut found = RECIPES.iter().filter_map(of);
    found.next().filter(|(of, _)| of.name == recipe && found.next().is_none())
}

/// `lora/tiny` and all others.
pub(crate) fn config_names() -> impl Iterator<Item = String> {
    RECIPES.iter().flat_map(|recipe| recipe.configs.iter().map(|config| format!("{}/{}", recipe.name, config.name)))
}

/// `; did you mean ...?`, the last of those that are equally near, or what there is where nothing is near.
pub(crate) fn nearest(name: &str, candidates: impl Iterator<Item = String>) -> String {
    let candidates: Vec<String> = candidates.collect();
    // `tiny` is as near to `lora/tiny` as can be.
    let score = |candidate: &String| {
        let last = candidate.rsplit('/').next().unwrap_or(candidate);
        strsim::jaro_winkler(candidate, name).max(strsim::jaro_winkler(last, name))
    };
    match candidates.iter().max_by(|a, b| score(a).total_cmp(&score(b))) {
        Some(best) if score(best) > 0.75 => format!("; did you mean `{best}`?"),
        _ => format!("; there are {}", candidates.join(", ")),
    }
}

/// What `ls` shows: each recipe with a line about it, its configs below.
pub(crate) fn list() -> String {
    let width = config_names().map(|name| name.len() + 2).max().unwrap_or_default();
    let mut text = String::new();
    for recipe in RECIPES {
        let _ = writeln!(text, "{:width$}  {}", recipe.name, recipe.about());
        for config in recipe.configs {
            let name = format!("  {}/{}", recipe.name, config.name);
            let _ = writeln!(text, "{name:width$}  {}", config.about());
        }
    }
    text + "\nStart one with `tune run lora --config lora/tiny`, copy one with `tune cp lora my/lora.rs`.\n\
            `tune convert FILE` makes one of a config of torchtune's, Axolotl's, LLaMA-Factory's, TRL's or Unsloth's.\n"
}

impl Recipe {
    /// The first sentence of the file's documentation.
    fn about(&self) -> String {
        sentence(self.source.lines().map_while(|line| line.strip_prefix("//!")))
    }

    /// Whether its program answers `--check` and `--plan`: `#[recipe(preflight = ...)]`.
    pub(crate) fn has_preflight(&self) -> bool {
        self.source.contains("preflight = ")
    }

    /// Whether its program starts the server.
    pub(crate) fn serves(&self) -> bool {
        self.source.contains("tune-serve")
    }

    /// Which configs there are, for messages.
    pub(crate) fn configs_listed(&self) -> String {
        let rows = self.configs.iter().map(|config| format!("  {}/{}  {}\n", self.name, config.name, config.about()));
        rows.collect()
    }
}

impl Config {
    /// The first sentence of the comment on top, below the line for editors.
    fn about(&self) -> String {
        let comments = self.yaml.lines().map_while(|line| line.strip_prefix('#'));
        sentence(comments.skip_while(|line| line.contains("yaml-language-server:")))
    }
}

/// The longest line about something.
const SHOWN: usize = 90;

fn sentence<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let paragraph: Vec<&str> = lines.map(str::trim).take_while(|line| !line.is_empty()).collect();
    let paragraph = paragraph.join(" ");
    let first = paragraph.split_once(". ").map_or(&*paragraph, |(first, _)| first).trim_end_matches('.');
    if first.chars().count() <= SHOWN {
        return format!("{first}.");
    }
    // The end of a clause, else of a word.
    let head: String = first.chars().take(SHOWN).collect();
    match head.rfind([',', ';']).or_else(|| head.rfind(' ')) {
        Some(end) => format!("{} …", &head[..end]),
        None => head,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_is_one_that_no_other_recipe_has() {
        let found = |recipe: &str, name: &str| config_alone(recipe, name).map(|(of, config)| (of.name, config.name));
        assert_eq!(found("eleuther_eval", "eleuther_evaluation"), Some(("eleuther_eval", "eleuther_evaluation")));
        assert_eq!(found("qat", "lora_smollm2_135m"), Some(("qat", "lora_smollm2_135m")));
        for (recipe, name) in
            [("lora", "tiny"), ("lora", "lora_smollm2_135m"), ("eleuther_eval", "eleuther_evaluation.yaml")]
        {
            assert_eq!(found(recipe, name), None);
        }
    }
}
