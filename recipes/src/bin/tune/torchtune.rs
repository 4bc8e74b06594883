//! What people type who come from torchtune and its `tune run`.

use std::ffi::OsString;

use tune_core::config::cli::torchrun_takes_value;

use crate::shipped;

/// A recipe of torchtune's, and the one that it is here, or what it is for.
const RECIPES: &[(&str, Result<&str, &str>)] = &[
    ("lora_finetune_single_device", Ok("lora")),
    ("lora_finetune_distributed", Ok("lora")),
    ("full_finetune_single_device", Ok("full")),
    ("full_finetune_distributed", Ok("full")),
    ("lora_finetune_distributed_multi_dataset", Ok("lora")),
    ("early_exit_finetune_distributed", Err("models that answer from a lower layer")),
    ("generate_v2", Ok("generate")),
    ("generate_v2_distributed", Ok("generate")),
    ("eleuther_eval", Ok("eleuther_eval")),
    ("lora_dpo_single_device", Ok("dpo")),
    ("lora_dpo_distributed", Ok("dpo")),
    ("full_dpo_distributed", Ok("dpo")),
    ("ppo_full_finetune_single_device", Ok("ppo")),
    ("knowledge_distillation_single_device", Ok("distill")),
    ("knowledge_distillation_distributed", Ok("distill")),
    ("qat_single_device", Ok("qat")),
    ("qat_distributed", Ok("qat")),
    ("qat_lora_finetune_distributed", Ok("qat")),
    ("quantize", Ok("quantize")),
];

/// The hint for a name that is torchtune's recipe; `args` are what the recipe would be told, and `options` what `tune run` is.
pub(crate) fn hint(name: &str, options: &str, args: &[OsString]) -> Option<String> {
    let plain = name.rsplit('/').next().unwrap_or(name);
    let plain = plain.strip_suffix(".py").unwrap_or(plain);
    // One that is called the same here needs no hint.
    let (_, here) = RECIPES.iter().find(|(theirs, here)| *theirs == plain && *here != Ok(name))?;
    Some(match here {
        Ok(ours) => {
            format!("torchtune's `{plain}` is `{ours}` here: `tune run{options} {ours}{}`", shown(args))
        }
        Err(purpose) => format!("torchtune's `{plain}` is for {purpose}; there is no recipe for it here"),
    })
}

/// What starts several processes.
pub(crate) const NPROC: &str = "--nproc-per-node";
/// What says how often a run is started again.
pub(crate) const RESTARTS: &str = "--max-restarts";

/// What is wrong with an option where the recipe's name is expected, behind such `options` as are known here.
pub(crate) fn option_first(options: &str, args: &[OsString]) -> Option<String> {
    let first = args.first()?.to_string_lossy().into_owned();
    let option = first.split('=').next().unwrap_or_default();
    if !option.starts_with('-') {
        return None;
    }
    let (mut rest, mut at, mut on) = (Vec::new(), 0, options.to_owned());
    while let Some(arg) = args.get(at) {
        let text = arg.to_string_lossy();
        let (name, value) = text.split_once('=').map_or((&*text, None), |(name, value)| (name, Some(value.to_owned())));
        let name = name.replace('_', "-");
        if [NPROC, RESTARTS].contains(&&*name) {
            let value = value.or_else(|| Some(args.get(at + 1)?.to_string_lossy().into_owned()));
            on.extend(value.map(|value| format!(" {name} {value}")));
        }
        match torchrun_takes_value(text.split('=').next().unwrap_or_default()) {
            Some(takes_value) => at += if takes_value && !text.contains('=') { 2 } else { 1 },
            None => {
                rest.push(arg.clone());
                at += 1;
            }
        }
    }
    let is_torchrun = torchrun_takes_value(option).is_some();
    let recipe = |name: &str| {
        let theirs = RECIPES.iter().find(|(theirs, _)| *theirs == name).and_then(|(_, ours)| ours.ok());
        theirs.or_else(|| shipped::RECIPES.iter().map(|recipe| recipe.name).find(|ours| *ours == name))
    };
    let named = rest.iter().position(|arg| recipe(&arg.to_string_lossy()).is_some());
    let name = named.map(|at| rest.remove(at)).map(|name| name.to_string_lossy().into_owned());
    let name = name.as_deref().and_then(recipe).unwrap_or("RECIPE");
    let command = format!("`tune run{on} {name}{}`", shown(&rest));
    Some(match is_torchrun {
        true => format!("`{option}` is for torchrun, and not needed here: {command}"),
        false => format!("`{option}` stands where the recipe is expected, which comes first: {command}"),
    })
}

/// Arguments as they would be typed.
pub(crate) fn shown(args: &[OsString]) -> String {
    let quoted = args.iter().map(|arg| {
        let text = arg.to_string_lossy();
        match text.is_empty() || text.contains(|c: char| c.is_whitespace() || "[]{}~*?$&|;<>()\"'\\`#!".contains(c)) {
            true => format!(" '{}'", text.replace('\'', "'\\''")),
            false => format!(" {text}"),
        }
    });
    quoted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn what_is_typed_for_torchtune_leads_to_what_is_typed_here() {
        for (line, command) in [
            (
                "--nproc_per_node 4 lora_finetune_distributed --config a.yaml",
                "`tune run --nproc-per-node 4 lora --config a.yaml`",
            ),
            (
                "--nproc-per-node=4 --standalone full --config a.yaml epochs=2",
                "`tune run --nproc-per-node 4 full --config a.yaml epochs=2`",
            ),
            (
                "--nnodes 1 --nproc_per_node 2 my_recipe --config a",
                "`tune run --nproc-per-node 2 RECIPE my_recipe --config a`",
            ),
            (
                "--standalone --nproc-per-node=2 --max_restarts 3 full --config a",
                "`tune run --nproc-per-node 2 --max-restarts 3 full --config a`",
            ),
            ("--config a.yaml lora", "`tune run lora --config a.yaml`"),
        ] {
            let said = option_first("", &args(line)).unwrap_or_default();
            assert!(said.ends_with(command), "{said}");
        }
        assert_eq!(option_first("", &args("lora --config a")), None);
        let said = hint("recipes/lora_finetune_single_device.py", "", &args("--config a ~b")).unwrap_or_default();
        assert!(said.ends_with("is `lora` here: `tune run lora --config a '~b'`"), "{said}");
        let said = hint("lora_finetune_distributed", " --nproc-per-node 2", &args("--config a")).unwrap_or_default();
        assert!(said.ends_with("is `lora` here: `tune run --nproc-per-node 2 lora --config a`"), "{said}");
        assert!(hint("lora_dpo_distributed", "", &[]).is_some_and(|said| said.contains("is `dpo` here")));
        assert_eq!(hint("lora_finetune", "", &[]), None);
        assert_eq!(hint("eleuther_eval", "", &args("--config a")), None);
        let said = hint("recipes/eleuther_eval.py", "", &args("--config a")).unwrap_or_default();
        assert!(said.ends_with("`tune run eleuther_eval --config a`"), "{said}");
    }
}
