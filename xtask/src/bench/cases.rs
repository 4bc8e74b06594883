//! What is measured: a case is named by what it is, such as `lora_bf16_512_chat`.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

/// One setting in which all programs train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    pub recipe: &'static str,
    pub dtype: &'static str,
    /// Tokens in a row.
    pub seq: usize,
    /// Rows in a step.
    pub batch: usize,
    pub data: Data,
    /// Keep only each block's input for the backward pass.
    pub checkpointing: bool,
    pub model: Model,
    /// How the base model of adapters is held.
    pub base: Base,
}

/// What the rows hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Data {
    /// Texts that fill each row to its last token; every token is trained.
    Text,
    /// Conversations; the assistant's answers are trained.
    Chat,
}

/// Which model is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    /// SmolLM2-135M-Instruct.
    SmolLm2,
    /// Random weights, 1.5 billion of them. Only our recipes are run on it.
    Random1b5,
}

/// How a frozen base model is held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// In the case's precision.
    Plain,
    /// In NF4.
    Nf4,
    /// As a GGUF file has it in Q4_K and Q6_K, llama.cpp's mixture Q4_K_M.
    Q4KM,
}

/// The names of the cases with random weights.
const RANDOM_1B5: &str = "lora_bf16_1b5";
const RANDOM_1B5_NF4: &str = "lora_bf16_1b5_nf4";
const RANDOM_1B5_Q4_K_M: &str = "lora_bf16_1b5_q4_k_m";

impl Base {
    /// Of the cases with random weights, the one in which it is held so.
    fn case(self) -> &'static str {
        match self {
            Self::Plain => RANDOM_1B5,
            Self::Nf4 => RANDOM_1B5_NF4,
            Self::Q4KM => RANDOM_1B5_Q4_K_M,
        }
    }
}

/// Every case of a full run: the grid, then the ones that stand for a promise of their own.
pub(super) const ALL: &[&str] = &[
    "lora_fp32_128",
    "lora_fp32_512",
    "lora_fp32_2048",
    "lora_bf16_128",
    "lora_bf16_512",
    "lora_bf16_2048",
    "full_fp32_128",
    "full_fp32_512",
    "full_fp32_2048",
    "full_bf16_128",
    "full_bf16_512",
    "full_bf16_2048",
    "lora_fp32_512_chat",
    "lora_bf16_512_chat",
    "lora_fp32_2048_ckpt",
    RANDOM_1B5,
    RANDOM_1B5_NF4,
    RANDOM_1B5_Q4_K_M,
];

/// The cases of `--goals`: what is asked of each kind of processor.
pub(super) const GOALS: &[&str] =
    &["lora_bf16_512", "lora_bf16_512_chat", "full_bf16_512", "lora_fp32_512", "full_fp32_512"];

/// The cases of `--quick`.
pub(super) const QUICK: &[&str] = &["lora_fp32_512", "lora_bf16_512"];

impl FromStr for Case {
    type Err = String;

    /// Reads `{lora|full}_{fp32|bf16}_{tokens in a row}[_chat][_ckpt]`, any of them, or `lora_bf16_1b5[_nf4|_q4_k_m]`.
    fn from_str(name: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{name}` is no case: {{lora|full}}_{{fp32|bf16}}_{{tokens in a row}}[_chat][_ckpt] or \
                 {RANDOM_1B5}[_nf4|_q4_k_m], such as lora_fp32_512"
            )
        };
        if let Some(base) = [Base::Plain, Base::Nf4, Base::Q4KM].into_iter().find(|base| base.case() == name) {
            let (data, model) = (Data::Text, Model::Random1b5);
            let (recipe, dtype) = ("lora", "bf16");
            return Ok(Self { recipe, dtype, seq: 512, batch: 1, data, checkpointing: false, model, base });
        }
        let mut words = name.split('_');
        let mut one_of = |choices: &[&'static str]| {
            let word = words.next()?;
            choices.iter().find(|c| **c == word).copied()
        };
        let recipe = one_of(&["lora", "full"]).ok_or_else(wrong)?;
        let dtype = one_of(&["fp32", "bf16"]).ok_or_else(wrong)?;
        let seq = words.next().and_then(|w| w.parse().ok()).filter(|n| (32..=8192).contains(n)).ok_or_else(wrong)?;
        let mut rest: Vec<&str> = words.collect();
        let mut take = |word: &str| {
            let found = rest.first() == Some(&word);
            if found {
                rest.remove(0);
            }
            found
        };
        let data = if take("chat") { Data::Chat } else { Data::Text };
        let checkpointing = take("ckpt");
        if !rest.is_empty() {
            return Err(wrong());
        }
        Ok(Self { recipe, dtype, seq, batch: 2, data, checkpointing, model: Model::SmolLm2, base: Base::Plain })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.model == Model::Random1b5 {
            return f.write_str(self.base.case());
        }
        write!(f, "{}_{}_{}", self.recipe, self.dtype, self.seq)?;
        if self.data == Data::Chat {
            f.write_str("_chat")?;
        }
        if self.checkpointing {
            f.write_str("_ckpt")?;
        }
        Ok(())
    }
}

impl Case {
    /// The case in words, for the table.
    pub(super) fn words(&self) -> String {
        let recipe = if self.recipe == "lora" { "LoRA" } else { "full" };
        let data = match self.data {
            Data::Text => "packed text, every token trained",
            Data::Chat => "packed conversations, answers trained",
        };
        let model = match self.model {
            Model::SmolLm2 => "",
            Model::Random1b5 => ", 1.5B random weights",
        };
        let base = match self.base {
            Base::Plain => "",
            Base::Nf4 => " in NF4",
            Base::Q4KM => " in Q4_K_M",
        };
        let checkpointing = if self.checkpointing { ", activation checkpointing" } else { "" };
        format!("{recipe} {}, {} x {}, {data}{checkpointing}{model}{base}", self.dtype, self.batch, self.seq)
    }

    /// The case as results record it.
    pub(super) fn json(&self) -> Value {
        json!({
            "name": self.to_string(),
            "words": self.words(),
            "recipe": self.recipe,
            "dtype": self.dtype,
            "seq": self.seq,
            "batch": self.batch,
            "activation_checkpointing": self.checkpointing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for name in ALL.iter().chain(GOALS).chain(QUICK).chain(&["full_bf16_64_chat_ckpt"]) {
            assert_eq!(name.parse::<Case>().unwrap().to_string(), *name);
        }
        let chat: Case = "full_bf16_64_chat".parse().unwrap();
        assert_eq!((chat.recipe, chat.dtype, chat.seq, chat.data), ("full", "bf16", 64, Data::Chat));
    }

    #[test]
    fn what_is_no_case_is_said_so() {
        for name in ["", "lora", "lora_fp16_512", "lora_fp32_5", "lora_fp32_512_chta", "lora_fp32_512_ckpt_chat"] {
            assert!(name.parse::<Case>().unwrap_err().contains("such as"), "{name}");
        }
    }
}
