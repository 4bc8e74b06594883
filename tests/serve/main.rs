//! The server as its clients meet it, the bad ones too, on the tiny model. It listens on this machine alone, at ports that the system
//! chooses.

#![allow(clippy::unwrap_used)]

mod client;
mod misuse;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use client::{Server, program, root, wait_for};
use serde_json::{Value, json};
use tune_core::artifact::Source;
use tune_core::checkpoint::{Checkpoint, peft};
use tune_core::data::{Batch, IGNORE, Span};
use tune_core::device::Compute;
use tune_core::engine;
use tune_core::generate::{Sampler, StopOptions, generate};
use tune_core::models::{Decoder, LoadOptions, ModelSpec};
use tune_core::peft::{LoraModule, LoraOptions, adapter_weights, set_trainable};
use tune_core::tokenizer::{Tokenizer, TokenizerConfig};

const TINY: &str = "recipes/tiny/model";

fn load_options(lora: Option<LoraOptions>) -> LoadOptions {
    LoadOptions { dtype: DType::F32, device: Compute::Processor, train_weights: false, lora }
}

/// The tiny model, with room for sequences that take long; and an adapter for it.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let long = folder.path().join("long");
        fs::create_dir(&long).unwrap();
        for entry in fs::read_dir(root().join(TINY)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), long.join(entry.file_name())).unwrap();
        }
        let config = fs::read_to_string(long.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config["max_position_embeddings"] = 1_000_000.into();
        fs::write(long.join("config.json"), config.to_string()).unwrap();

        let checkpoint = Checkpoint::open(root().join(TINY)).unwrap();
        let modules = vec![LoraModule::QProj, LoraModule::VProj, LoraModule::DownProj];
        let lora = LoraOptions { modules, rank: 4, alpha: 6.0, dropout: 0.0, seed: 1, ..Default::default() };
        let model =
            Decoder::load(ModelSpec::of(&checkpoint).unwrap(), &checkpoint, &load_options(Some(lora.clone()))).unwrap();
        let numbers = |i: usize, t: &Tensor| {
            let values: Vec<f32> = (0..t.elem_count()).map(|k| ((k * 31 + i * 17) % 29) as f32 / 145.0 - 0.1).collect();
            Tensor::from_vec(values, t.dims(), &Device::Cpu).unwrap()
        };
        let values = model.trainable().iter().enumerate().map(|(i, p)| (p.name().to_string(), numbers(i, p.var())));
        set_trainable(&model, &values.collect(), "the test").unwrap();
        let (_, files) = TokenizerConfig::default().open(&checkpoint).unwrap();
        let config = lora.adapter_config(&checkpoint).unwrap();
        peft::write(&folder.path().join("adapter"), &config, &adapter_weights(&model).unwrap(), &files).unwrap();
        folder
    });
    folder.path()
}

fn path(name: &str) -> String {
    folder().join(name).display().to_string()
}

/// What is asked beside the server.
struct Alone {
    model: Decoder,
    tokenizer: Tokenizer,
}

impl Alone {
    fn open(named: &str) -> Self {
        let source =
            Source::find(&root().join(named), Some(&root().join(TINY)).filter(|_| named != TINY).map(|p| &**p), &[]);
        let merged = source.unwrap().open().unwrap();
        Self { model: merged.trained(&load_options(None)).unwrap(), tokenizer: merged.tokenizer().clone() }
    }

    /// The likeliest tokens behind a prompt.
    fn greedy(&self, prompt: &[u32], max_new_tokens: usize) -> Vec<u32> {
        let stop_tokens = self.tokenizer.stop_tokens().iter().copied().collect();
        let stop = StopOptions { max_new_tokens, stop_tokens };
        generate(&self.model, prompt, &mut Sampler::greedy(), &stop, |_| Ok(())).unwrap()
    }

    fn answer(&self, prompt: &[u32], max_new_tokens: usize) -> String {
        self.tokenizer.decode(&self.greedy(prompt, max_new_tokens), true).unwrap()
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.prompt(text, None, Some(false)).unwrap()
    }
}

/// A conversation as text: what the tiny model has an answer to.
fn asked(question: &str) -> String {
    format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
}

#[test]
fn everyone_at_once_is_answered_as_alone() {
    let also = format!("adapted={}", path("adapter"));
    let server = Server::start(&[TINY, "--name", "tiny", "--also", &also, "--max-sequences", "7", "--prefill", "16"]);
    assert!(server.said.contains("`tiny`, `adapted`"), "{}", server.said);
    let models = [("tiny", Alone::open(TINY)), ("adapted", Alone::open(&path("adapter")))];
    let listed = server.get("/v1/models").ok();
    let names: Vec<&str> =
        listed["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["tiny", "adapted"]);
    assert_eq!(server.get("/v1/models/adapted").ok()["id"], "adapted");
    let words = [
        "maple",
        "dog",
        "a longer text that is read in several pieces, for it has many letters",
        "é½",
        "tree",
        "1, 2, 3",
    ];
    let ask = |i: usize| {
        let (name, alone) = &models[i % 2];
        let text = format!("Write {} backwards, {i}.", words[i % words.len()]);
        let max_tokens = 5 + i;
        // By turns in a chat and in a completion.
        if i % 4 < 2 {
            let text = asked(&text);
            let request = json!({"model": name, "prompt": text, "max_tokens": max_tokens, "temperature": 0});
            let answer = server.post("/v1/completions", &request).ok();
            (answer["choices"][0]["text"].clone(), answer["usage"].clone(), alone.ids(&text), max_tokens)
        } else {
            let messages = json!([{"role": "user", "content": text}]);
            let request = json!({"model": name, "messages": messages, "max_tokens": max_tokens, "temperature": 0});
            let answer = server.post("/v1/chat/completions", &request).ok();
            let ids = alone.tokenizer.prompt(&text, None, None).unwrap();
            (answer["choices"][0]["message"]["content"].clone(), answer["usage"].clone(), ids, max_tokens)
        }
    };
    let answers: Vec<_> = std::thread::scope(|scope| {
        let ask = &ask;
        let asking: Vec<_> = (0..24).map(|i| scope.spawn(move || ask(i))).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for (i, (text, usage, ids, max_tokens)) in answers.iter().enumerate() {
        assert_eq!(*text, models[i % 2].1.answer(ids, *max_tokens), "request {i}");
        assert_eq!(usage["prompt_tokens"], ids.len(), "request {i}");
    }
    assert!(answers.iter().filter(|(text, ..)| text.as_str().is_some_and(|text| text.len() > 3)).count() > 12);
    assert_ne!(models[0].1.answer(&answers[0].2, 20), models[1].1.answer(&answers[0].2, 20));
    assert_eq!(server.metric("tune_sequences_running"), 0.0);
    assert_eq!(server.metric("tune_responses_total{route=\"/v1/chat/completions\",status=\"200\"}"), 12.0);
}

#[test]
fn scores_are_those_of_the_model() {
    let server = Server::start(&[TINY, "--name", "tiny", "--prefill", "16"]);
    let alone = Alone::open(TINY);
    let text = &*asked("Write m-a-p-l-e backwards, and then forwards again.");
    let ids = alone.ids(text);
    let new = alone.greedy(&ids, 8);
    assert!(new.len() > 2, "{new:?}");
    let mut request =
        json!({"model": "tiny", "prompt": text, "max_tokens": 8, "temperature": 0, "logprobs": 3, "echo": true});
    let answer = server.post("/v1/completions", &request).ok();
    let choice = &answer["choices"][0];
    let whole = choice["text"].as_str().unwrap();
    assert!(whole.starts_with(text));
    let scores = &choice["logprobs"];
    let tokens: Vec<&str> = scores["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    // The stop token has its number, too, and is no part of the text.
    let has_stopped = choice["finish_reason"] == "stop";
    assert_eq!(tokens[..tokens.len() - usize::from(has_stopped)].concat(), whole);
    let stop: &[u32] = if has_stopped { &[alone.ids("<|im_end|>")[0]] } else { &[] };
    let all: Vec<u32> = [&ids, &*new, stop].concat();
    assert_eq!(all.len(), tokens.len());
    let ended =
        json!({"model": "tiny", "prompt": text, "max_tokens": 100, "temperature": 0, "logprobs": 1, "echo": true});
    let ended = &server.post("/v1/completions", &ended).ok()["choices"][0];
    assert_eq!(ended["finish_reason"], "stop");
    let listed = ended["logprobs"]["tokens"].as_array().unwrap();
    assert_eq!(listed.last().unwrap(), "<|im_end|>");
    let listed: String = listed[..listed.len() - 1].iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(ended["text"], listed);
    let batch = Batch {
        rows: 1,
        len: all.len(),
        targets: all[1..].iter().copied().chain([IGNORE]).collect(),
        positions: (0..all.len() as u32).collect(),
        spans: vec![Span { row: 0, start: 0, len: all.len() }],
        origins: vec![String::new()],
        labels: Vec::new(),
        input_ids: all,
    };
    let right = engine::log_probs(&alone.model, &batch).unwrap();
    let found = scores["token_logprobs"].as_array().unwrap();
    assert!(found[0].is_null() && scores["top_logprobs"][0].is_null());
    for (i, right) in right[..found.len() - 1].iter().enumerate() {
        // What is new is computed by kernels that round otherwise.
        let tolerance = if i + 1 < ids.len() { 0.0 } else { 1e-4 };
        assert!((found[i + 1].as_f64().unwrap() - right).abs() <= tolerance, "token {i}: {} {right}", found[i + 1]);
        let likeliest = scores["top_logprobs"][i + 1].as_object().unwrap();
        let most = likeliest.values().map(|value| value.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        assert!(likeliest.len() <= 3 && (i + 1 < ids.len() || (most - right).abs() < 1e-4));
    }
    let offsets: Vec<usize> =
        scores["text_offset"].as_array().unwrap().iter().map(|offset| offset.as_u64().unwrap() as usize).collect();
    let places = tokens.iter().scan(0, |at, token| {
        *at += token.chars().count();
        Some(*at - token.chars().count())
    });
    assert_eq!(offsets, places.collect::<Vec<_>>());
    // Only the prompt, as tokens, and several at a time.
    request["prompt"] = json!([ids, ids[..5]]);
    request["max_tokens"] = 0.into();
    let answer = server.post("/v1/completions", &request).ok();
    let first = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(first[..], found[..ids.len()]);
    assert_eq!(answer["choices"][1]["logprobs"]["token_logprobs"].as_array().unwrap()[..], found[..5]);
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": ids.len() + 5, "completion_tokens": 0, "total_tokens": ids.len() + 5})
    );
    // A stream gives the same, in parts.
    request["prompt"] = text.into();
    request["max_tokens"] = 8.into();
    request["stream"] = true.into();
    let mut streamed = (String::new(), Vec::new());
    for event in server.post("/v1/completions", &request).events() {
        streamed.0 += event["choices"][0]["text"].as_str().unwrap();
        streamed.1.extend(event["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone());
    }
    assert_eq!((streamed.0.as_str(), &streamed.1), (whole, found));
    let request = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 4,
        "logprobs": true, "top_logprobs": 2});
    let answer = server.post("/v1/chat/completions", &request).ok();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert!(!content.is_empty());
    for token in content {
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"], "greedy");
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn a_stream_says_what_a_whole_answer_says() {
    let server = Server::start(&[TINY, "--name", "tiny"]);
    let messages = json!([{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, {"role": "user", "content": "Write m-a-p-l-e backwards."}]);
    let mut request =
        json!({"model": "tiny", "messages": messages, "max_tokens": 20, "n": 3, "seed": 5, "temperature": 1.3});
    let whole = server.post("/v1/chat/completions", &request).ok();
    request["stream"] = true.into();
    request["stream_options"] = json!({"include_usage": true});
    let streamed = server.post("/v1/chat/completions", &request);
    assert!(streamed.head.contains("content-type: text/event-stream"), "{}", streamed.head);
    let mut events = streamed.events();
    let last = events.pop().unwrap();
    assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])));
    let mut texts = [const { String::new() }; 3];
    let mut ends = vec![Value::Null; 3];
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        let choice = &event["choices"][0];
        let i = choice["index"].as_u64().unwrap() as usize;
        texts[i] += choice["delta"]["content"].as_str().unwrap_or_default();
        if !choice["finish_reason"].is_null() {
            ends[i] = choice["finish_reason"].clone();
        }
    }
    for (i, text) in texts.iter().enumerate() {
        assert_eq!(*text, whole["choices"][i]["message"]["content"]);
        assert_eq!(ends[i], whole["choices"][i]["finish_reason"]);
    }
    assert!(texts[0] != texts[1] || texts[1] != texts[2], "each answer is drawn by itself: {texts:?}");
    // A stop sequence cuts the same answer.
    let request = json!({"model": "tiny", "prompt": asked("Write m-a-p-l-e backwards."), "max_tokens": 30, "temperature": 0, "logprobs": 0});
    let long = server.post("/v1/completions", &request).ok()["choices"][0].clone();
    let text = long["text"].as_str().unwrap();
    let (at, _) = text.char_indices().nth(text.chars().count() / 2).unwrap();
    let stop: String = text[at..].chars().take(2).collect();
    let mut request = request;
    request["stop"] = json!(["never there", stop]);
    let cut = server.post("/v1/completions", &request).ok()["choices"][0].clone();
    let expected = &text[..text.find(&stop).unwrap()];
    assert_eq!((cut["text"].as_str().unwrap(), cut["finish_reason"].as_str().unwrap()), (expected, "stop"));
    assert!(cut["logprobs"]["tokens"].as_array().unwrap().len() < long["logprobs"]["tokens"].as_array().unwrap().len());
}

/// Whoever started it holds its standard input, and may be killed.
#[test]
fn it_ends_with_its_standard_input_where_that_is_asked() {
    let mut command = program(&["recipes/tiny/model", "--port", "0", "--until-stdin-ends"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("http://127.0.0.1:") && child.try_wait().unwrap().is_none(), "{said}");
    drop(child.stdin.take());
    wait_for(|| child.try_wait().unwrap().is_some(), "its end");
}
