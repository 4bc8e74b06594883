//! Which modules look at which: what is below does not know what is made of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Modules, each with those that it may look at besides itself. Modules that are above all of these are not listed.
const BELOW: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("environment", &[]),
    ("words", &[]),
    ("files", &[]),
    ("panics", &[]),
    ("memory", &["environment"]),
    ("metrics", &["environment", "files", "hub", "memory", "words"]),
    // What a GGUF file does to numbers is a part of files.
    ("kernels", &["checkpoint", "environment", "memory"]),
    ("models", &["checkpoint", "device", "distributed", "engine", "kernels", "offload", "tokenizer"]),
    // A card rounds weights as a GGUF file does.
    ("engine", &["checkpoint", "data", "distributed", "kernels", "models", "offload", "optim"]),
    ("optim", &["distributed", "engine", "kernels", "models", "offload"]),
    ("peft", &["checkpoint", "hub", "models", "tokenizer"]),
    ("tokenizer", &["checkpoint", "files"]),
    ("data", &["checkpoint", "files", "hub", "kernels", "memory", "panics", "positions", "tokenizer", "words"]),
    ("generate", &["engine", "kernels", "models"]),
];

#[test]
fn modules_look_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let modules: BTreeSet<String> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let mut wrong = Vec::new();
    for (module, below) in BELOW {
        assert!(modules.contains(*module), "there is no module `{module}`");
        let mut seen = BTreeSet::new();
        for path in [root.join(module), root.join(module).with_extension("rs")] {
            look(&path, &modules, &mut seen);
        }
        seen.remove(*module);
        let above = seen.iter().filter(|name| !below.contains(&name.as_str()));
        wrong.extend(above.map(|name| format!("{module} looks at {name}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Adds the modules that the code of a file, or of all files in a folder, names; tests may name all.
fn look(path: &Path, modules: &BTreeSet<String>, seen: &mut BTreeSet<String>) {
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| look(&entry.unwrap().path(), modules, seen));
        return;
    }
    let is_test = path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
    if is_test || !path.is_file() {
        return;
    }
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    for after in lines.flat_map(|line| line.split("crate::").skip(1)) {
        let names: Vec<&str> = match after.strip_prefix('{') {
            Some(several) => {
                several.split(['}', ',']).map(|name| name.trim().split("::").next().unwrap_or(name)).collect()
            }
            None => vec![after.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(after)],
        };
        seen.extend(names.into_iter().filter(|name| modules.contains(*name)).map(str::to_owned));
    }
}
