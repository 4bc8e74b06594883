//! `cp`: a copy that compiles and runs where it lands.

use std::fs;
use std::path::{Path, PathBuf};

use crate::shipped::{self, Config, Named, Recipe};
use crate::{Result, paths};

/// What is copied, and where to.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A recipe such as `lora`, which takes its configs along, or a config such as `lora/tiny`.
    name: String,
    /// The file to write, or a folder for it.
    to: PathBuf,
    /// Replace files that are there.
    #[arg(long, short)]
    force: bool,
}

/// Writes the files, and says which and what they are started with.
///
/// # Errors
/// There is nothing of that name, or a file is in the way: then none is written.
pub(crate) fn run(args: &Args) -> Result<String> {
    let named = shipped::named(&args.name)?;
    let (recipe, file) = match named {
        Named::Recipe(recipe) => (recipe, format!("{}.rs", recipe.name)),
        Named::Config(recipe, config) => (recipe, format!("{}.yaml", config.name)),
    };
    let to = target(&args.to, &file)?;
    let folder = to.parent().unwrap_or(Path::new("")).to_owned();
    let mut files = Vec::new();
    let start = match named {
        Named::Recipe(_) => {
            let copy = Copy { recipe, start: to.display().to_string(), folder: &folder, renamed: None };
            files.push((to.clone(), copy.source()));
            for config in recipe.configs {
                files.push((folder.join(format!("{}.yaml", config.name)), copy.config(config)));
            }
            let first = recipe.configs.last().map(|config| copy.shown(config));
            format!("tune run {} --config {}", to.display(), first.unwrap_or_default())
        }
        Named::Config(_, config) => {
            let copy = Copy { recipe, start: recipe.name.to_owned(), folder: &folder, renamed: Some(&to) };
            files.push((to.clone(), copy.config(config)));
            format!("tune run {} --config {}", recipe.name, to.display())
        }
    };
    // Editors find the keys there; the same whatever is copied, so it may be there.
    let schema = folder.join(format!("{}.schema.json", recipe.name));
    if fs::read_to_string(&schema).map_or(true, |found| found != recipe.schema) {
        files.push((schema, recipe.schema.to_owned()));
    }
    write(&files, args.force)?;
    let written: String = files.iter().map(|(path, _)| format!("  {}\n", path.display())).collect();
    let missing = match paths::workspace() {
        None if files.iter().any(|(_, text)| text.contains(REPOSITORY_FILES)) => {
            format!("note: files in {REPOSITORY_FILES}, which a config names, are in the project's repository\n")
        }
        _ => String::new(),
    };
    Ok(format!("wrote\n{written}{missing}start it with\n  {start}\n"))
}

/// The file to write: a folder takes one of the same name.
fn target(to: &Path, file: &str) -> Result<PathBuf> {
    let ends = |c| to.to_string_lossy().ends_with(c);
    if to.is_dir() || ends('/') || ends(std::path::MAIN_SEPARATOR) {
        return Ok(to.join(file));
    }
    let wanted = Path::new(file).extension();
    match to.extension() == wanted {
        true => Ok(to.to_owned()),
        false => {
            let (shown, wanted) = (to.display(), wanted.unwrap_or_default().display());
            Err(format!("{shown} is no .{wanted} file; a folder for the copy ends with a slash: {shown}/").into())
        }
    }
}

/// Writes all files, or none if one is in the way.
fn write(files: &[(PathBuf, String)], force: bool) -> Result<()> {
    let there: Vec<String> =
        files.iter().filter(|(path, _)| path.exists()).map(|(path, _)| path.display().to_string()).collect();
    if !force && !there.is_empty() {
        let verb = if there.len() == 1 { "exists" } else { "exist" };
        return Err(format!(
            "{} {verb}; nothing was written. `--force` replaces, or name another folder",
            there.join(", ")
        )
        .into());
    }
    for (path, text) in files {
        let failed = |error| format!("cannot write {}: {error}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        fs::write(path, text).map_err(failed)?;
    }
    Ok(())
}

/// Relative paths in shipped configs hold in the checkout.
const REPOSITORY_FILES: &str = "recipes/tiny/";

/// What changes in the files of a recipe when they are copied.
struct Copy<'a> {
    recipe: &'a Recipe,
    /// What `tune run` is to start: the file, or the name.
    start: String,
    folder: &'a Path,
    /// The file that a config becomes, if it is the only one.
    renamed: Option<&'a Path>,
}

impl Copy<'_> {
    /// The path of a config's copy.
    fn shown(&self, config: &Config) -> String {
        let beside = || self.folder.join(format!("{}.yaml", config.name));
        self.renamed.map_or_else(beside, Path::to_owned).display().to_string()
    }

    fn source(&self) -> String {
        let listed = format!("\"../configs/{}/", self.recipe.name);
        self.commands(&self.recipe.source.replace(&listed, "\""))
    }

    fn config(&self, config: &Config) -> String {
        let modeline = format!("$schema={}.schema.json\n", self.recipe.name);
        let yaml = config.yaml.replacen("$schema=schema.json\n", &modeline, 1);
        let here = std::env::current_dir().and_then(|here| here.canonicalize()).ok();
        let yaml = match paths::workspace().and_then(|root| root.canonicalize().ok()) {
            Some(root) if here.as_deref() != Some(&root) => absolute(&yaml, &root),
            _ => yaml,
        };
        self.commands(&yaml)
    }

    /// The command lines in comments.
    fn commands(&self, text: &str) -> String {
        let end = format!("--bin {} -- ", self.recipe.name);
        let mut text: String = text
            .split_inclusive('\n')
            .map(|line| match (line.find("cargo run "), line.find(&end)) {
                (Some(from), Some(to)) if from < to => {
                    format!("{}tune run {} {}", &line[..from], self.start, &line[to + end.len()..])
                }
                _ => line.to_owned(),
            })
            .collect();
        for config in self.recipe.configs {
            text = text.replace(&format!("configs/{}/{}.yaml", self.recipe.name, config.name), &self.shown(config));
        }
        text
    }
}

/// The files of the repository by their whole paths, quoted where YAML needs it.
fn absolute(yaml: &str, root: &Path) -> String {
    let mut result = String::new();
    let mut rest = yaml;
    while let Some(at) = rest.find(REPOSITORY_FILES) {
        let (before, from) = rest.split_at(at);
        let end = from.find([',', ']', '}', ' ', '\n', '\r']).unwrap_or(from.len());
        let path = root.join(&from[..end]).display().to_string();
        let plain = path.chars().all(|c| c.is_alphanumeric() || "/._-+@".contains(c));
        result += before;
        result += &if plain { path } else { format!("'{}'", path.replace('\'', "''")) };
        rest = &from[end..];
    }
    result + rest
}
