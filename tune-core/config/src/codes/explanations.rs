//! The table of explanations.

use super::*;

const fn yaml(
    code: Code,
    title: &'static str,
    text: &'static str,
    wrong: &'static str,
    right: &'static str,
) -> Explanation {
    Explanation { code, title, text, wrong: Example::Yaml(wrong), right: Example::Yaml(right) }
}

const fn overrides(
    code: Code,
    title: &'static str,
    text: &'static str,
    wrong: &'static [&'static str],
    right: &'static [&'static str],
) -> Explanation {
    Explanation { code, title, text, wrong: Example::Overrides(wrong), right: Example::Overrides(right) }
}

/// All of them, by number. The examples are parts of a config and are tested.
pub const EXPLANATIONS: &[Explanation] = &[
    yaml(
        Code::SYNTAX,
        "this is not YAML",
        "The text cannot be read as YAML 1.2. Mostly a bracket or a quote is not closed, a space is missing after a \
         `:` or a `-`, or a key is not in the column of its neighbours. Text with `: `, ` #` or one of \
         `[]{}&*!|>%@` at its beginning needs quotes.",
        "model: {lora_rank: 8\nname: test",
        "model: {lora_rank: 8}\nname: test",
    ),
    yaml(
        Code::TAB,
        "a tab cannot indent YAML",
        "YAML counts blanks to see what belongs to what, and allows no tabs there.",
        "model:\n\tlora_rank: 8",
        "model:\n  lora_rank: 8",
    ),
    yaml(
        Code::DUPLICATE_KEY,
        "a key is written twice",
        "The same key stands twice in one mapping. Most tools take the last one without a word; here it is a mistake, \
         because one of the two has no effect.",
        "epochs: 1\nepochs: 2",
        "epochs: 2",
    ),
    yaml(
        Code::SECOND_DOCUMENT,
        "a second document",
        "A line `---` begins another document. A config is one document.",
        "epochs: 1\n---\nname: test",
        "epochs: 1\nname: test",
    ),
    yaml(
        Code::TAG,
        "a tag without a meaning",
        "Tags such as `!python/object` ask the reader to build something. Here only YAML's own are known: `!!str`, \
         `!!int`, `!!float`, `!!bool`, `!!null`, `!!seq` and `!!map`.",
        "name: !name test",
        "name: !!str test",
    ),
    yaml(
        Code::ALIAS,
        "an alias of nothing, or of itself",
        "`*name` stands for the value that is marked with `&name`. That value must be complete before it is used: a \
         value cannot contain itself.",
        "model: &model\n  lora_attn_modules: [*model]",
        "model:\n  lora_attn_modules: &some [q_proj]",
    ),
    yaml(
        Code::KEY,
        "a key must be a name",
        "YAML allows lists and mappings as keys; a config has names only.",
        "? [name]\n: test",
        "name: test",
    ),
    yaml(
        Code::MERGE,
        "`<<` merges mappings only",
        "`<<: *name` puts the keys of a mapping among those around it. What is written there wins over what is merged. \
         Several mappings are merged with `<<: [*a, *b]`.",
        "model:\n  <<: 3",
        "model:\n  <<: {lora_rank: 8}",
    ),
    yaml(
        Code::TOO_LARGE,
        "more than a config has",
        "A config has at most 1 MiB of text, 64 levels of nesting, 2000 references and, with all aliases and references \
         written out, 16 MiB of values. A few lines of aliases can describe more than any memory holds, and a config \
         may come from a stranger.",
        "name: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[x]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
        "name: x",
    ),
    yaml(
        Code::REFERENCE,
        "a reference that is not written as one",
        "`${a.b}` stands for what is written at `a.b`, counted from the root. There are no other forms: no references \
         within references, and none of OmegaConf's resolvers such as `${oc.env:HOME}`. `\\${` is a `${` that means \
         itself.",
        "name: run-${epochs",
        "epochs: 1\nname: run-${epochs}",
    ),
    yaml(
        Code::UNKNOWN_REFERENCE,
        "a reference to a key that is not there",
        "A `${a.b}` names a key that is written in the config or on the command line, from the root. Defaults cannot be \
         referred to: write the value out.",
        "name: run-${model.rank}\nmodel: {lora_rank: 8}",
        "name: run-${model.lora_rank}\nmodel: {lora_rank: 8}",
    ),
    yaml(
        Code::CYCLE,
        "references in a cycle",
        "Each of these values is said to be that of the next. One of them must be a value.",
        "epochs: ${batch_size}\nbatch_size: ${epochs}",
        "epochs: 2\nbatch_size: ${epochs}",
    ),
    yaml(
        Code::REFERENCE_IN_TEXT,
        "a list or mapping within text",
        "Where a reference is the whole value, it may stand for anything. Within other text it stands for text, so it \
         must refer to a single value.",
        "name: run-${model}\nmodel: {lora_rank: 8}",
        "name: run-${model.lora_rank}\nmodel: {lora_rank: 8}",
    ),
    yaml(
        UNKNOWN_KEY,
        "unknown key",
        "The recipe, or the component, has no key of this name. Nothing is ignored in silence: a key with a slip in it \
         would leave the default in force. An outermost key of your own is right where a `${}` \
         or an alias in one of the recipe's refers to it. The note lists the keys that there are; `--help` says what they mean, and with `optimizer=sgd --help` it lists the keys \
         of that component.",
        "batchsize: 4",
        "batch_size: 4",
    ),
    yaml(
        MISSING_KEY,
        "missing key",
        "The key has no default and must be written, in the config or as an override.",
        "output_dir: out",
        "output_dir: out\ndatasets: {_component_: instruct, path: a.json}",
    ),
    yaml(
        WRONG_TYPE,
        "wrong type",
        "The value is of another type than the key. Numbers in quotes are text, and so are `yes` and `no`; `1e3` and \
         `1.0` are no whole numbers; text that looks like a number or a truth value needs quotes in a file (on the \
         command line it needs none).",
        "epochs: 1.0\nname: 12",
        "epochs: 1\nname: '12'",
    ),
    yaml(
        OUT_OF_RANGE,
        "out of range",
        "The number is beyond what the key allows, or what its type holds. `1..` is 1 or more, `0.0..1.0` is less than \
         1, `0.0..=1.0` is 1 at most. Infinity and `.nan` are never allowed.",
        "batch_size: 0",
        "batch_size: 1",
    ),
    yaml(
        NOT_ALLOWED,
        "not allowed",
        "The key takes one of some values, and this is none of them.",
        "dtype: fp64",
        "dtype: bf16",
    ),
    yaml(
        UNKNOWN_COMPONENT,
        "unknown component",
        "`_component_` names what is to be used for a key. torchtune's dotted paths are known where there is the same \
         thing here. The note lists the components; a recipe of your own can add one with an enum around ours.",
        "optimizer: {_component_: adam}",
        "optimizer: {_component_: adamw}",
    ),
    yaml(
        NO_COMPONENT,
        "no component is chosen",
        "The key has no default component, so a mapping must say which one it describes.",
        "datasets: {path: a.json}",
        "datasets: {_component_: instruct, path: a.json}",
    ),
    yaml(
        TWO_NAMES,
        "a key under two names",
        "A key may have another name, for instance that of another tool. Both are written here, and one of them would \
         have no effect.",
        "epochs: 1\nnum_epochs: 2",
        "epochs: 2",
    ),
    yaml(
        NO_CONFIG,
        "this is no config",
        "A config is a mapping of keys: lines of `key: value`. The file is empty, or something else.",
        "- epochs: 1",
        "output_dir: out\ndatasets: {_component_: instruct, path: a.json}",
    ),
    yaml(
        REFUSED,
        "a value that cannot be used",
        "The value is of the right type, but its text means nothing here: a size, a device or a split that is not \
         written as one. The message says what is expected.",
        "split: train[",
        "split: train[:10%]",
    ),
    yaml(
        NOT_HERE,
        "another tool has this, and this project does not",
        "Configs of torchtune are taken as they are: its components stand for ours, and keys that have no meaning here \
         are passed over with a warning. What would change the result if it were passed over is refused: other kinds of \
         training, models of other families, quantized base models, other optimizers. The help says what comes nearest. The same holds for what `tune convert` \
         finds in configs of Axolotl, LLaMA-Factory, TRL and Unsloth; `tune lint` says with this code what such a tool itself \
         refuses.",
        "optimizer:\n  _component_: torchao.optim.CPUOffloadOptimizer",
        "optimizer:\n  _component_: torch.optim.AdamW",
    ),
    overrides(
        NO_HOME,
        "a `~` that is no home folder",
        "A path that begins with `~` or `~user` begins with that home folder: `HOME` says which is yours. The variable is \
         not set, or there is no such user. What is called `~` itself is written `./~`.",
        &["output_dir=~no-such-user/out"],
        &["output_dir=./~no-such-user/out"],
    ),
    overrides(
        NO_OVERRIDE,
        "this is no override",
        "What follows the options sets or removes keys: `key=value`, `a.b.c=value`, `list.0.key=value`, `~key`. Text \
         and paths are taken as they are typed, `prompt=Say: yes # now` too; quotes around all of it are left out, and \
         `null` is no text where there may be none. Every other value is YAML. A shell needs quotes around `[`, `{`, \
         `~` and blanks. Keys are added without a `+`.",
        &["epochs", "2"],
        &["epochs=2"],
    ),
    overrides(
        NOTHING_INSIDE,
        "nothing can be set within a single value",
        "The path leads through a key that holds a single value, or a list where a mapping is meant.",
        &["epochs.x=1"],
        &["epochs=1"],
    ),
    overrides(
        NOTHING_TO_DELETE,
        "nothing to delete",
        "`~key` takes a key out of the config, and its default holds. Only what is written can be taken out.",
        &["~epochs"],
        &["epochs=1", "~epochs"],
    ),
    overrides(
        NO_ITEM,
        "no such item",
        "A number in a path is a position in a list, counted from 0. The position after the last one adds an item. A \
         key of an item needs its position before it, but in a list of one.",
        &["model.lora_attn_modules.7=k_proj"],
        &["model.lora_attn_modules.1=k_proj"],
    ),
];
