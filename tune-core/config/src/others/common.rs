//! What several tools say alike, as they stand on the trainer of transformers.

use tune_yaml::{Entry, Node, Value};

use super::conversion::Conversion;
use super::draft::{self, Draft};
use super::given::number;
use crate::emit;

/// Their names of optimizers, and ours.
const OPTIMIZERS: [(&str, &str); 25] = [
    ("adamw_torch", "adamw"),
    ("adamw_torch_fused", "adamw"),
    ("adamw_torch_xla", "adamw"),
    ("adamw_hf", "adamw"),
    ("adamw_apex_fused", "adamw"),
    ("adamw_anyprecision", "adamw"),
    ("paged_adamw", "adamw"),
    ("paged_adamw_32bit", "adamw"),
    ("optimi_adamw", "adamw"),
    ("adamw_8bit", "adamw_8bit"),
    ("adamw_bnb_8bit", "adamw_8bit"),
    ("paged_adamw_8bit", "adamw_8bit"),
    ("adamw_torch_8bit", "adamw_8bit"),
    ("adamw_torch_4bit", "adamw_8bit"),
    ("ao_adamw_4bit", "adamw_8bit"),
    ("ao_adamw_8bit", "adamw_8bit"),
    ("ao_adamw_fp8", "adamw_8bit"),
    ("flash_adamw", "adamw_8bit"),
    ("sgd", "sgd"),
    ("lion_32bit", "lion"),
    ("paged_lion_32bit", "lion"),
    ("lion_8bit", "lion"),
    ("paged_lion_8bit", "lion"),
    ("adafactor", "adafactor"),
    ("schedule_free_adamw", "schedule_free_adamw"),
];

/// Our name of one of their optimizers, where there is one.
fn optimizer_of(name: &str) -> Option<&'static str> {
    OPTIMIZERS.iter().find(|(theirs, _)| *theirs == name).map(|(_, ours)| *ours)
}

/// Writes the optimizer that a name stands for, with the settings that it brings along; `from` is whose name it is. Where there is no
/// such optimizer, `entry` is said to be missing. Returns our name of what is written.
pub(super) fn named_optimizer(c: &mut Conversion<'_>, entry: Option<&Entry>, name: &str, from: &str) -> &'static str {
    let known = optimizer_of(name);
    let ours = known.unwrap_or("adamw");
    c.draft.set("optimizer._component_", ours, from);
    if ours == "adafactor" {
        // As the trainer makes it. The first `eps` is a mean square there, and here its root: each is as good as none.
        for (key, value) in [("scale_parameter", "false"), ("relative_step", "false"), ("eps", "[1.0e-30, 1.0e-3]")] {
            c.draft.set(&format!("optimizer.{key}"), value, "transformers' trainer");
        }
    }
    if let Some(entry) = entry.filter(|_| known.is_none()) {
        let (missing, instead) = match name {
            "muon" => (
                format!("{}'s Muon was not compared with the one here, and adamw is written in its place", c.tool.name),
                "set optimizer=muon, and look at its learning rates",
            ),
            name => (
                format!("there is no optimizer `{}` here, and adamw is written in its place", shown(name)),
                "look at the learning rate, too: optimizers differ in what suits them",
            ),
        };
        c.missing(entry, missing, instead);
    }
    ours
}

/// The keys of the optimizer.
pub(super) struct OptimizerKeys {
    pub(super) name: &'static str,
    pub(super) lr: &'static str,
    /// What the tool takes where no rate is written.
    pub(super) default_lr: Option<&'static str>,
    pub(super) default_weight_decay: &'static str,
}

/// The optimizer, from its name and its numbers.
pub(super) fn optimizer(c: &mut Conversion<'_>, keys: &OptimizerKeys) {
    let entry = c.given.entry(keys.name);
    let name = entry.and_then(|entry| entry.value.as_str()).unwrap_or("adamw_torch_fused");
    let from = match (entry, optimizer_of(name)) {
        (Some(entry), Some("adamw_8bit")) => format!("{}: {name}", entry.key),
        (Some(entry), _) => entry.key.clone(),
        (None, _) => format!("default of {}", c.tool.name),
    };
    let ours = named_optimizer(c, entry, name, &from);
    c.number_or("optimizer.lr", keys.lr, keys.default_lr);
    if !["adafactor", "sgd"].contains(&ours) {
        let betas = ["adam_beta1", "adam_beta2"].map(|key| c.given.number(key));
        if betas.iter().any(Option::is_some) {
            let [first, second] = [betas[0].unwrap_or(0.9), betas[1].unwrap_or(0.999)].map(draft::number);
            c.draft.set("optimizer.betas", format!("[{first}, {second}]"), "adam_beta1, adam_beta2");
        }
    }
    if ours.contains("adamw") {
        c.number_or("optimizer.eps", "adam_epsilon", None);
    }
    c.number_or("optimizer.weight_decay", "weight_decay", Some(keys.default_weight_decay));
    if c.given.number("weight_decay").unwrap_or(keys.default_weight_decay.parse().unwrap_or(0.0)) > 0.0 {
        c.draft.set("optimizer.decay_vectors", "false", "transformers leaves norms and biases alone");
    }
    match c.given.number("max_grad_norm") {
        Some(norm) if norm > 0.0 => c.draft.set("clip_grad_norm", draft::number(norm), "max_grad_norm"),
        Some(_) => {}
        None => c.draft.set("clip_grad_norm", "1.0", &format!("default of {}", c.tool.name)),
    }
}

/// Noise on the embeddings (NEFTune), which not all recipes add.
pub(super) fn noise(c: &mut Conversion<'_>, theirs: &'static str) {
    let Some(entry) = c.given.entry(theirs).filter(|_| c.given.is_on(theirs)) else { return };
    match c.recipe.name {
        "lora" | "full" => c.number_or("neftune_noise_alpha", theirs, None),
        name => c.missing(entry, format!("`{name}` adds no noise to embeddings (NEFTune)"), "remove the key"),
    }
}

/// Labels that are smoothed, which not all recipes do.
pub(super) fn smoothing(c: &mut Conversion<'_>, theirs: &'static str) {
    let Some(entry) = c.given.entry(theirs).filter(|_| c.given.is_on(theirs)) else { return };
    match c.recipe.name {
        "lora" | "full" | "qat" | "pretrain" => c.number_or("label_smoothing", theirs, None),
        name => c.missing(entry, format!("`{name}` does not smooth labels"), "remove the key"),
    }
}

/// The keys of the learning rate's schedule.
pub(super) struct ScheduleKeys {
    pub(super) name: &'static str,
    pub(super) default: &'static str,
    /// The share of the steps over which the tool warms up where nothing is written.
    pub(super) default_warmup: Option<&'static str>,
}

/// The learning rate over the run.
pub(super) fn schedule(c: &mut Conversion<'_>, keys: &ScheduleKeys) {
    let entry = c.given.entry(keys.name);
    let name = entry.and_then(|entry| entry.value.as_str()).unwrap_or(keys.default);
    let given = c.given;
    let of = |key: &str| given.number(&format!("lr_scheduler_kwargs.{key}"));
    let from = entry.map_or_else(|| format!("default of {}", c.tool.name), |entry| entry.key.clone());
    let ours = match name {
        "linear" | "cosine" | "cosine_with_restarts" | "polynomial" | "constant" | "inverse_sqrt" => name,
        "constant_with_warmup" => "constant",
        "warmup_stable_decay" if of("num_decay_steps").is_some() => "wsd",
        _ => "cosine",
    };
    c.draft.set("lr_scheduler._component_", ours, &from);
    let known = ours == name || matches!(name, "constant_with_warmup") || ours == "wsd";
    if let Some(entry) = entry.filter(|_| !known) {
        let missing = format!("there is no schedule `{}` here, and a cosine is written in its place", shown(name));
        c.missing(entry, missing, "choose among those of lr_scheduler: polynomial and wsd have a min_lr_ratio");
    }
    if let Some(entry) = c.given.entry("lr_scheduler_kwargs") {
        schedule_keys(c, entry, ours);
    }
    if name == "constant" {
        // It has no warm-up there, whatever is written.
        for entry in ["warmup_steps", "warmup_ratio"].iter().filter_map(|key| given.entry(key)) {
            c.meaningless(entry, "the schedule `constant` of transformers has no warm-up");
        }
        return;
    }
    warmup(c, keys);
}

fn schedule_keys(c: &mut Conversion<'_>, kwargs: &Entry, ours: &str) {
    let Value::Map(entries) = &kwargs.value.value else {
        return c.missing(kwargs, "it is no mapping", "write keys of the schedule under lr_scheduler");
    };
    for entry in entries.iter().filter(|entry| !entry.value.is_null()) {
        let key = match (ours, entry.key.as_str()) {
            ("cosine" | "cosine_with_restarts", "num_cycles") => "num_cycles",
            ("polynomial", "power") => "power",
            ("inverse_sqrt", "timescale") => "timescale",
            ("wsd", "num_decay_steps") => "num_decay_steps",
            ("wsd", "min_lr_ratio") => "min_lr_ratio",
            _ => {
                let instead = "polynomial and wsd have a min_lr_ratio, cosine and cosine_with_restarts num_cycles";
                c.missing(entry, format!("the schedule `{ours}` has no such key here"), instead);
                continue;
            }
        };
        let from = format!("lr_scheduler_kwargs.{key}");
        c.draft.set(&format!("lr_scheduler.{key}"), emit::inline_node(&entry.value), &from);
    }
}

/// The warm-up: a number of steps, or a share of them.
fn warmup(c: &mut Conversion<'_>, keys: &ScheduleKeys) {
    const STEPS: &str = "lr_scheduler.num_warmup_steps";
    let steps = c.given.entry("warmup_steps");
    let ratio = c.given.entry("warmup_ratio");
    let said = |entry: &Entry| number(&entry.value).unwrap_or(0.0);
    if let Some(entry) = steps.filter(|entry| said(entry) >= 1.0) {
        return c.draft.set(STEPS, draft::number(said(entry).floor()), "warmup_steps");
    }
    let Some(share) = [steps, ratio].into_iter().flatten().find(|entry| said(entry) > 0.0) else {
        if let Some(default) = keys.default_warmup.filter(|_| steps.is_none() && ratio.is_none()) {
            let (name, message) = (c.tool.name, "nothing says how the learning rate warms up");
            let instead = format!("{name} takes {default}: set {STEPS}=N for the same");
            c.remark(message, instead);
        }
        return;
    };
    match c.given.number("max_steps").filter(|steps| *steps > 0.0) {
        Some(steps) => {
            let from = format!("{} of max_steps", share.key);
            c.draft.set(STEPS, draft::number((said(share) * steps).ceil()), &from);
        }
        None => {
            let instead = format!("set {STEPS}=N, this share of the run's steps, which `tune check` tells");
            c.missing(share, "a warm-up is a number of steps here", instead);
        }
    }
}

/// How long is trained: `epochs`, or a number of steps where it is above zero.
pub(super) fn length(c: &mut Conversion<'_>, epochs: &'static str, max_steps: &'static str, default: &str) {
    if let Some(steps) = c.given.whole(max_steps).filter(|steps| *steps > 0) {
        let from = "max_steps, if the data is enough for so many";
        c.draft.set("epochs", "1", "max_steps ends the run");
        return c.draft.set("max_steps_per_epoch", steps.to_string(), from);
    }
    match c.given.entry(epochs) {
        None => c.draft.set("epochs", default, &format!("default of {}", c.tool.name)),
        Some(entry) => match number(&entry.value) {
            Some(number) if number > 0.0 => {
                c.draft.set("epochs", draft::number(number.ceil()), &entry.key);
                if number.fract() != 0.0 {
                    let instead = "set max_steps_per_epoch=N to end an epoch early";
                    c.missing(entry, "epochs are whole here, and it is rounded up", instead);
                }
            }
            _ => c.missing(entry, "it is no number of epochs", "set epochs=N"),
        },
    }
}

/// Names of the key of steps between validations, and of that between checkpoints, at the default names of transformers.
pub(super) fn every(c: &mut Conversion<'_>, theirs: &'static str, ours: &str, what: &str) {
    let Some(entry) = c.given.entry(theirs) else { return };
    match number(&entry.value) {
        Some(steps) if steps >= 1.0 => c.draft.set(ours, draft::number(steps.floor()), theirs),
        _ => c.missing(entry, format!("{what} is a number of steps here"), format!("set {ours}=N")),
    }
}

/// Where metrics go, besides the lines of JSON that are always written.
pub(super) fn loggers(c: &mut Conversion<'_>, others: Vec<Draft>) {
    if others.is_empty() {
        return;
    }
    let mut all = vec![Draft::default()];
    all[0].set("_component_", "jsonl", "");
    all.extend(others);
    c.draft.set_items("metric_logger", all);
}

/// The splits that leave the end of a dataset for validation, and take it: a share below 1, or a number of records.
pub(super) fn held_out(split: &str, part: f64) -> Option<[String; 2]> {
    if split.contains('[') || split.contains('+') || part <= 0.0 {
        return None;
    }
    let part = match part < 1.0 {
        true => format!("{}%", draft::number((part * 1e8).round() / 1e6)),
        false => draft::number(part.floor()),
    };
    Some([format!("{split}[:-{part}]"), format!("{split}[-{part}:]")])
}

/// A file, a folder or a dataset of the hub, at its revision, at the keys of a dataset of ours.
pub(super) fn source(item: &mut Draft, path: Option<&str>, revision: Option<&str>, files: &[&str], from: &str) {
    const READ: [&str; 7] = ["json", "jsonl", "csv", "tsv", "parquet", "arrow", "text"];
    if !files.is_empty() {
        let hub = path.filter(|path| !READ.contains(path)).map(|path| super::given::at_revision(path, revision));
        let within = |file: &&str| match &hub {
            Some(hub) if !file.contains("://") => format!("{hub}/{file}"),
            _ => (*file).to_owned(),
        };
        let files: Vec<String> = files.iter().map(within).collect();
        return item.set("data_files", draft::texts(files.iter().map(String::as_str)), from);
    }
    let Some(path) = path else { return };
    let extension = std::path::Path::new(path).extension().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
    match READ.contains(&extension) || matches!(extension, "txt" | "gz" | "zst") {
        true => item.set("data_files", draft::texts([path]), from),
        false => item.set_text("source", &super::given::at_revision(path, revision), from),
    }
}

/// A text of a user's as it stands in a message.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
    if text.chars().count() > 60 {
        shown += "...";
    }
    shown
}

/// Whether every item of a node is one of these texts.
pub(super) fn only(node: &Node, texts: &[&str]) -> bool {
    super::given::texts(node).iter().all(|text| texts.contains(text))
}
