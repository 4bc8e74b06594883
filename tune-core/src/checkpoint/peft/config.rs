//! `adapter_config.json`: what is read of it, and what would change the computation and is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::fused;
use super::layers::{self, Layers};
use crate::checkpoint::Below;
use crate::hub::Origin;
use crate::models::{HEAD, is_saved, module_of};

/// What an adapter is, apart from its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// The rank.
    pub r: usize,
    /// What the update is scaled by, before it is divided by the rank.
    pub alpha: f64,
    /// The share of inputs dropped in training.
    pub dropout: f64,
    /// Divide by the square root of the rank instead (rsLoRA).
    pub use_rslora: bool,
    /// Whether the lengths of rows are trained apart from their directions (DoRA).
    pub use_dora: bool,
    /// Which modules are adapted.
    pub target_modules: TargetModules,
    /// Which are adapted besides, as parameters: their names with `.weight` behind them.
    pub target_parameters: BTreeSet<String>,
    /// What is otherwise in single layers.
    pub layers: Layers,
    /// Modules whose weights the adapter brings along, which stand in for the base's, by the ends of their names.
    pub modules_to_save: Vec<String>,
    /// Tokens whose rows the adapter brings along, which stand in for the base's: the module that has the rows, by the end of its name,
    /// and their ids, in the order of the rows.
    pub tokens: BTreeMap<String, Vec<u32>>,
    /// The adapters that were merged into the base before this one was trained, in their order. peft does not know the key.
    pub base_adapters: Vec<Below>,
    /// Whether the output layer goes with a saved embedding table that it is tied to.
    pub ensure_weight_tying: bool,
    /// Whether its model scores sequences (peft's task `SEQ_CLS`), and does not predict tokens.
    pub scores: bool,
    /// The base model, as a path or as the hub knows it.
    pub base_model_name_or_path: Option<String>,
    /// The base model's branch, tag or commit on the hub; `main` where there is none.
    pub revision: Option<String>,
}

/// Which modules an adapter adapts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Those whose path is or ends in one of these names: `q_proj`, `mlp.down_proj` …
    Names(BTreeSet<String>),
    /// A regular expression over whole paths, or `all-linear`; carried along as it is: which modules
    /// it picked, the tensors say.
    Pattern(String),
}

impl TargetModules {
    /// Whether the module is one of those named; nothing is known about patterns here.
    #[must_use]
    pub fn names(&self, module: &str) -> Option<bool> {
        match self {
            Self::Names(names) => Some(names.iter().any(|n| is_named(module, n))),
            Self::Pattern(_) => None,
        }
    }
}

/// PEFT's rule: the whole path or its end, at a dot.
pub(crate) fn is_named(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl AdapterConfig {
    /// Whether the adapter brings along a weight of this name.
    pub(crate) fn saves(&self, weight: &str) -> bool {
        let module = module_of(weight);
        let is_tied = self.ensure_weight_tying && weight == HEAD && !self.modules_to_save.is_empty();
        module != weight && (is_tied || is_saved(module, &self.modules_to_save))
    }

    /// The module of which a tensor has rows of single tokens, and their ids.
    pub(crate) fn rows_of<'n>(&self, tensor: &'n str) -> Option<(&'n str, &[u32])> {
        let module = tensor.strip_suffix(ROWS)?;
        let (_, ids) = self.tokens.iter().find(|(name, _)| is_named(module, name))?;
        Some((module, ids))
    }

    /// What the product of the two matrices is multiplied by: alpha / r, or alpha / sqrt(r) for rsLoRA.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale_of(self.r, self.alpha)
    }

    fn scale_of(&self, rank: usize, alpha: f64) -> f64 {
        let r = rank as f64;
        alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    /// Whether the module is among those that are adapted; nothing is known about patterns here.
    pub(crate) fn names(&self, module: &str) -> Option<bool> {
        let parameter = format!("{module}.weight");
        match self.target_parameters.iter().any(|name| is_named(&parameter, name)) {
            true => Some(true),
            false => self.target_modules.names(module),
        }
    }

    /// The rank of the adapter on a module, and what its product is multiplied by.
    ///
    /// # Errors
    /// A pattern that is no regular expression.
    pub(crate) fn of_module(&self, module: &str) -> Result<(usize, f64), String> {
        let rank = self.layers.rank(module)?.unwrap_or(self.r);
        let alpha = self.layers.alpha(module)?.unwrap_or(self.alpha);
        Ok((rank, self.scale_of(rank, alpha)))
    }

    /// What the hub calls the base model, unless it is a folder of this machine.
    pub(crate) fn base_on_hub(&self) -> Option<Origin> {
        let name = self.base_model_name_or_path.as_deref()?;
        let is_name = crate::hub::Repo::new(crate::hub::Kind::Model, name).is_ok() && !Path::new(name).exists();
        let revision = self.revision.clone().filter(|revision| revision != "main");
        is_name.then(|| Origin { name: name.to_owned(), revision })
    }
}

pub(super) fn to_json(config: &AdapterConfig) -> Value {
    let targets = match &config.target_modules {
        TargetModules::Names(names) => json!(names),
        TargetModules::Pattern(pattern) => json!(pattern),
    };
    let parameters = match config.target_parameters.is_empty() {
        true => Value::Null,
        false => json!(config.target_parameters),
    };
    let mut written = json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": config.base_model_name_or_path,
        "bias": "none",
        "exclude_modules": null,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": number(config.alpha),
        "lora_dropout": config.dropout,
        "modules_to_save": null_or(&config.modules_to_save),
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": {},
        "revision": config.revision,
        "target_modules": targets,
        "target_parameters": parameters,
        "task_type": if config.scores { SCORES } else { "CAUSAL_LM" },
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    });
    if let Some(written) = written.as_object_mut() {
        // Versions of peft that do not know the key warn of it.
        if config.ensure_weight_tying {
            written.insert("ensure_weight_tying".to_owned(), true.into());
        }
        if !config.tokens.is_empty() {
            // As peft writes what it was given as a list.
            let of_table = config.tokens.get(EMBEDDING).filter(|_| config.tokens.len() == 1);
            written.insert(TOKENS.to_owned(), of_table.map_or_else(|| json!(config.tokens), |ids| json!(ids)));
        }
        if !config.base_adapters.is_empty() {
            let below: Vec<Value> = config.base_adapters.iter().map(Below::to_json).collect();
            written.insert(BASE_ADAPTERS.to_owned(), below.into());
        }
        config.layers.write(written, number);
    }
    written
}

/// peft's task of models that score sequences.
const SCORES: &str = "SEQ_CLS";

fn null_or(list: &[String]) -> Value {
    if list.is_empty() { Value::Null } else { json!(list) }
}

/// peft says an integer where a number is one, and so do we.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// Keys that are read.
const READ: &[&str] = &[
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "use_dora",
    "target_modules",
    "target_parameters",
    "bias",
    "init_lora_weights",
    "base_model_name_or_path",
    "revision",
    "modules_to_save",
    "ensure_weight_tying",
    TOKENS,
    BASE_ADAPTERS,
];

/// What peft calls the tokens whose rows an adapter brings along.
pub(super) const TOKENS: &str = "trainable_token_indices";

/// The module whose rows they are where none is named.
pub(crate) const EMBEDDING: &str = "embed_tokens";

/// The output layer, which may have such rows of its own.
pub(crate) const OUTPUT: &str = "lm_head";

/// How the names of these rows end, behind their module's.
const ROWS: &str = ".token_adapter.trainable_tokens_delta";

/// Our own key: what an adapter stands on.
const BASE_ADAPTERS: &str = "base_adapters";

/// Keys that change nothing of what a trained adapter computes.
const HARMLESS: &[&str] = &[
    // Where it comes from and what it is for.
    "task_type",
    "auto_mapping",
    "peft_version",
    "inference_mode",
    // How training began; `init_lora_weights` says whether that changed the base model.
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    // These are for settings that have to be off.
    "megatron_core",
    "qalora_group_size",
    // Where it is computed.
    "runtime_config",
    // Whether the first versions of peft merged it for evaluation.
    "merge_weights",
    // How ms-swift stored and trained it.
    "lora_dtype",
    "lorap_lr_ratio",
    "lorap_emb_lr",
];

/// What a key means that has to be off. Any other that is not known has to be off, too.
const MUST_BE_OFF: &[(&str, &str)] = &[
    ("fan_in_fan_out", "is for layers with transposed weights"),
    ("layer_replication", "replicates layers"),
    ("lora_bias", "has biases in its adapters"),
    ("alora_invocation_tokens", "is an activated LoRA"),
    ("use_qalora", "is a QA-LoRA adapter"),
    ("use_bdlora", "has block-diagonal matrices (BD-LoRA)"),
    ("arrow_config", "routes between adapters (Arrow)"),
    ("kasa_config", "is a KaSA adapter, which changes the base model"),
    ("velora_config", "is a VeLoRA adapter"),
    ("monteclora_config", "is a MonteCLoRA adapter"),
    ("megatron_config", "is for the layers of Megatron"),
    ("enable_lora", "adapts parts of a joined layer"),
];

/// The config, or what is wrong with it.
pub(super) fn parse(config: &Map<String, Value>) -> Result<AdapterConfig, String> {
    refuse(config)?;
    let file = File(config);
    let target_parameters = file.target_parameters()?;
    Ok(AdapterConfig {
        r: file.rank()?,
        // What a key is where it is not there is peft's default.
        alpha: file.number("lora_alpha", 8.0)?,
        dropout: file.dropout()?,
        use_rslora: file.flag("use_rslora")?,
        use_dora: file.flag("use_dora")?,
        target_modules: file.target_modules(!target_parameters.is_empty())?,
        target_parameters,
        layers: Layers::parse(config)?,
        modules_to_save: file.modules_to_save()?,
        tokens: file.tokens()?,
        base_adapters: file.base_adapters()?,
        ensure_weight_tying: file.flag("ensure_weight_tying")?,
        scores: file.get("task_type") == SCORES,
        base_model_name_or_path: file.text("base_model_name_or_path")?,
        revision: file.text("revision")?,
    })
}

/// Refuses adapters of other kinds, and keys that could change what an adapter computes and are not read.
fn refuse(config: &Map<String, Value>) -> Result<(), String> {
    let file = File(config);
    let kind = file.get("peft_type").as_str().unwrap_or("nothing");
    if kind != "LORA" {
        return Err(format!("the adapter is of the kind {kind}; only LORA is supported"));
    }
    if let Some((key, value)) = config.iter().find(|(key, value)| !is_known(key) && !is_off(value)) {
        return Err(match MUST_BE_OFF.iter().find(|(name, _)| name == key) {
            Some((_, what)) => format!("the adapter {what} ({key}), which is not supported"),
            None => format!(
                "`{key}` is {value}. This key is not known here, so the adapter may compute something else than is \
                 supported. If it does not change what the adapter computes, remove it from the file"
            ),
        });
    }
    check_initialization(file.get("init_lora_weights"))?;
    match file.get("bias") {
        Value::Null => Ok(()),
        Value::String(bias) if bias == "none" => Ok(()),
        other => Err(format!("the adapter trains biases (bias: {other}), which is not supported")),
    }
}

/// An `adapter_config.json`, key by key.
struct File<'a>(&'a Map<String, Value>);

impl<'a> File<'a> {
    /// The value of a key, null where it is not there.
    fn get(&self, key: &str) -> &'a Value {
        self.0.get(key).unwrap_or(&Value::Null)
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, String> {
        match self.0.get(key) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| format!("{key} is {value}; a number was expected")),
        }
    }

    fn flag(&self, key: &str) -> Result<bool, String> {
        match self.get(key) {
            Value::Null => Ok(false),
            Value::Bool(on) => Ok(*on),
            other => Err(format!("{key} is {other}; true or false was expected")),
        }
    }

    fn text(&self, key: &str) -> Result<Option<String>, String> {
        match self.get(key) {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
            other => Err(format!("{key} is {other}; text was expected")),
        }
    }

    fn rank(&self) -> Result<usize, String> {
        let rank = self.0.get("r").map_or(Some(8), Value::as_u64).filter(|rank| (1..=1 << 20).contains(rank));
        let rank = rank.ok_or_else(|| format!("r is {}; a rank of at least 1 was expected", self.get("r")))?;
        Ok(rank as usize)
    }

    fn dropout(&self) -> Result<f64, String> {
        let dropout = self.number("lora_dropout", 0.0)?;
        match (0.0..1.0).contains(&dropout) {
            true => Ok(dropout),
            false => Err(format!("lora_dropout is {dropout}; 0 or more and less than 1 was expected")),
        }
    }

    fn target_parameters(&self) -> Result<BTreeSet<String>, String> {
        let parameters = match self.get("target_parameters") {
            Value::Null => Some(BTreeSet::new()),
            Value::Array(names) => {
                let known = |name: &&str| name.ends_with(".weight") || fused::is_of_experts(name);
                names.iter().map(|name| name.as_str().filter(known).map(str::to_owned)).collect()
            }
            _ => None,
        };
        parameters.ok_or_else(|| {
            format!(
                "target_parameters is {}: the adapter adapts parameters that are not weights of linear layers, which is not \
                 supported",
                self.get("target_parameters")
            )
        })
    }

    /// There may be none where the adapter `has_parameters`.
    fn target_modules(&self, has_parameters: bool) -> Result<TargetModules, String> {
        match self.get("target_modules") {
            Value::String(pattern) => Ok(TargetModules::Pattern(pattern.clone())),
            Value::Array(names) if !names.is_empty() || has_parameters => {
                let names: Option<_> = names.iter().map(|name| name.as_str().map(ToString::to_string)).collect();
                names.map(TargetModules::Names).ok_or_else(|| "target_modules is not a list of names".to_owned())
            }
            other => Err(format!("target_modules is {other}; a list of module names was expected")),
        }
    }

    fn modules_to_save(&self) -> Result<Vec<String>, String> {
        let modules = match self.get("modules_to_save") {
            Value::Null => Some(Vec::new()),
            Value::Array(names) => names.iter().map(|name| Some(name.as_str()?.to_owned())).collect(),
            _ => None,
        };
        modules.ok_or_else(|| {
            format!("modules_to_save is {}; a list of module names was expected", self.get("modules_to_save"))
        })
    }

    fn tokens(&self) -> Result<BTreeMap<String, Vec<u32>>, String> {
        tokens(self.get(TOKENS)).ok_or_else(|| {
            format!("{TOKENS} is {}; ids of tokens were expected, or a list of these by modules", self.get(TOKENS))
        })
    }

    fn base_adapters(&self) -> Result<Vec<Below>, String> {
        let adapters = match self.get(BASE_ADAPTERS) {
            Value::Null => Some(Vec::new()),
            Value::Array(all) => all.iter().map(Below::parse).collect(),
            _ => None,
        };
        adapters.ok_or_else(|| {
            format!(
                "{BASE_ADAPTERS} is {}; a list of adapters with path and crc32c was expected",
                self.get(BASE_ADAPTERS)
            )
        })
    }
}

/// A list is of the embedding table, as in peft.
fn tokens(value: &Value) -> Option<BTreeMap<String, Vec<u32>>> {
    let ids = |value: &Value| -> Option<Vec<u32>> {
        value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    };
    match value {
        Value::Null => Some(BTreeMap::new()),
        Value::Array(list) if list.is_empty() => Some(BTreeMap::new()),
        Value::Array(_) => Some(BTreeMap::from([(EMBEDDING.to_owned(), ids(value)?)])),
        Value::Object(modules) => modules.iter().map(|(name, list)| Some((name.clone(), ids(list)?))).collect(),
        _ => None,
    }
}

fn is_known(key: &str) -> bool {
    READ.contains(&key) || layers::KEYS.contains(&key) || HARMLESS.contains(&key)
}

/// Whether a value stands for a setting that is not used.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// Refuses adapters whose training began with another base model than the one that they name: peft makes that
/// model again before it adds such an adapter.
fn check_initialization(value: &Value) -> Result<(), String> {
    /// Both matrices are in the file, and the base is what it was.
    const UNCHANGED_BASE: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];
    let name = match value {
        Value::Null | Value::Bool(_) => return Ok(()),
        Value::String(name) => name.to_lowercase(),
        other => return Err(format!("init_lora_weights is {other}; true, false or a name was expected")),
    };
    if UNCHANGED_BASE.contains(&name.as_str()) {
        return Ok(());
    }
    let merge = "merge it into its base in peft (merge_and_unload) and take the merged model";
    let convertible = name.starts_with("pissa") || ["olora", "corda", "lora_ga"].contains(&name.as_str());
    Err(match (convertible, name.as_str()) {
        (true, _) => format!(
            "the adapter began with init_lora_weights: {value}, which changes the base model, and is not an update of the \
             base as it is. Save it in peft with save_pretrained(..., path_initial_model_for_weight_conversion=FOLDER), \
             where FOLDER has the adapter as it was before training; or {merge}"
        ),
        (false, "loftq") => format!(
            "the adapter began with init_lora_weights: {value}, which quantizes the base model, and is not an update of \
             the base as it is: {merge}"
        ),
        _ => format!(
            "init_lora_weights is {value}, which is not known here; it may have changed the base model. If it has not, set \
             it to true in this file; else {merge}"
        ),
    })
}
