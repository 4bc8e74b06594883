//! What the tests of data are put together from.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::tokenizer::testing::byte_level;

pub(super) const CHATML: &str = include_str!("../../../tests/chat_templates/chatml.jinja");
pub(super) const GOOD: &str =
    r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#;

pub(super) struct Folder(pub(super) tempfile::TempDir);

impl Folder {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

pub(super) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data").join(name)
}

pub(super) fn files(file: impl Into<PathBuf>) -> Files {
    file.into().into()
}

pub(super) fn chat(file: impl Into<PathBuf>) -> ChatDataset {
    ChatDataset::openai(files(file))
}

pub(super) fn instruct(file: impl Into<PathBuf>) -> InstructDataset {
    InstructDataset {
        files: files(file),
        column_map: InstructColumns { input: "input".into(), output: "output".into() },
        prompt_template: None,
        new_system_prompt: None,
        apply_chat_template: None,
        mask: Mask::default(),
        rows: Rows::default(),
    }
}

pub(super) fn alpaca(file: PathBuf) -> AlpacaDataset {
    AlpacaDataset {
        files: files(file),
        column_map: AlpacaColumns { instruction: "instruction".into(), input: "input".into(), output: "output".into() },
        apply_chat_template: None,
        mask: Mask { masking_strategy: Some(Masking::Assistant), train_on_input: None },
        rows: Rows::default(),
    }
}

pub(super) fn load_chat(config: ChatDataset) -> Result<Dataset> {
    load(&[DatasetConfig::Chat(config)], &byte_level(Some(CHATML)), None)
}

/// A sample as text, with what is trained in brackets.
pub(super) fn shown(tokenizer: &Tokenizer, sample: &Sample) -> String {
    let trained = |i: usize| i > 0 && sample.targets[i - 1] != IGNORE;
    let mut out = String::new();
    let mut start = 0;
    for end in 1..=sample.input_ids.len() {
        if end == sample.input_ids.len() || trained(end) != trained(start) {
            let text = tokenizer.decode(&sample.input_ids[start..end], false).unwrap();
            out += &if trained(start) { format!("[{text}]") } else { text };
            start = end;
        }
    }
    out
}

pub(super) fn texts(tokenizer: &Tokenizer, config: DatasetConfig) -> Vec<String> {
    let dataset = load(&[config], tokenizer, None).unwrap();
    dataset.samples.iter().map(|s| shown(tokenizer, s)).collect()
}

/// The sample of a conversation's record, as text with what is trained in brackets.
pub(super) fn chat_with(template: &str, record: &Value) -> Result<String, String> {
    let folder = Folder::new();
    let tokenizer = byte_level(Some(template));
    let configs = [DatasetConfig::Chat(chat(folder.file("d.jsonl", record.to_string())))];
    let dataset = load(&configs, &tokenizer, None).map_err(|e| e.to_string())?;
    Ok(shown(&tokenizer, &dataset.samples[0]))
}
