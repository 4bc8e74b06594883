//! What an editor shows: rust-analyzer completes within the body of a recipe that has mistakes, and the words of
//! `#[config(...)]` and `#[recipe(...)]`; yaml-language-server checks and completes the shipped configs.
//! `cargo test -p tune-macros --test editor -- --ignored`, with `rust-analyzer` (`rustup component add rust-analyzer`)
//! and `yaml-language-server` (from npm) on the path; the one that is not there is passed over.

#![allow(clippy::disallowed_methods)]

#[path = "common/package.rs"]
mod package;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use std::{fs, io};

use serde_json::{Value, json};

/// A language server that answers one question after the other.
struct Server {
    process: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    questions: u64,
    /// The last status that it told.
    status: Value,
    /// What it says about each file.
    diagnostics: BTreeMap<String, Vec<String>>,
}

/// Servers load a workspace before they answer, and others may need the processor.
const PATIENCE: Duration = Duration::from_secs(300);

impl Server {
    /// `None` where the program is not installed.
    fn start(program: &str, args: &[&str], root: &Path, options: &Value) -> io::Result<Option<Self>> {
        let works = Command::new(program).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
        if !works.is_ok_and(|status| status.success()) {
            // Not `eprintln`: the test runner would keep it to itself.
            writeln!(io::stderr(), "NOTICE: there is no {program}; what it shows is NOT tested here")?;
            return Ok(None);
        }
        let mut process = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::Error::other("no pipes"));
        };
        let (send, messages) = channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            while let Some(message) = message(&mut output) {
                if send.send(message).is_err() {
                    return;
                }
            }
        });
        let mut server =
            Self { process, input, messages, questions: 0, status: Value::Null, diagnostics: BTreeMap::new() };
        server.ask(
            "initialize",
            &json!({
                "processId": null, "rootUri": uri(root), "initializationOptions": options,
                "capabilities": {"experimental": {"serverStatusNotification": true}},
            }),
        )?;
        server.tell("initialized", &json!({}))?;
        Ok(Some(server))
    }

    fn send(&mut self, message: &Value) -> io::Result<()> {
        let text = message.to_string();
        write!(self.input, "Content-Length: {}\r\n\r\n{text}", text.len())?;
        self.input.flush()
    }

    fn tell(&mut self, method: &str, params: &Value) -> io::Result<()> {
        self.send(&json!({"jsonrpc": "2.0", "method": method, "params": params}))
    }

    fn ask(&mut self, method: &str, params: &Value) -> io::Result<Value> {
        self.questions += 1;
        let id = self.questions;
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))?;
        loop {
            let message = self.next()?;
            if message["id"] == id && message.get("method").is_none() {
                return Ok(message["result"].clone());
            }
        }
    }

    /// The next message; what is no answer is dealt with.
    fn next(&mut self) -> io::Result<Value> {
        let message = self.messages.recv_timeout(PATIENCE).map_err(io::Error::other)?;
        match message["method"].as_str() {
            Some("experimental/serverStatus") => self.status = message["params"].clone(),
            Some("textDocument/publishDiagnostics") => {
                let said = message["params"]["diagnostics"].as_array().into_iter().flatten();
                let said = said.filter_map(|diagnostic| diagnostic["message"].as_str().map(str::to_owned));
                let file = message["params"]["uri"].as_str().unwrap_or_default().to_owned();
                self.diagnostics.insert(file, said.collect());
            }
            Some(_) if message.get("id").is_some() => {
                self.send(&json!({"jsonrpc": "2.0", "id": message["id"], "result": null}))?;
            }
            _ => {}
        }
        Ok(message)
    }

    /// Handles what comes until it is as it should be.
    fn wait(&mut self, done: impl Fn(&Self) -> bool) -> io::Result<()> {
        let start = Instant::now();
        while !done(self) {
            if start.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.next()?;
        }
        Ok(())
    }

    fn open(&mut self, file: &Path, language: &str, text: &str) -> io::Result<()> {
        let document = json!({"uri": uri(file), "languageId": language, "version": 1, "text": text});
        self.tell("textDocument/didOpen", &json!({"textDocument": document}))
    }

    /// What could be written at a place, both from 0.
    fn completions(&mut self, file: &Path, line: usize, column: usize) -> io::Result<Vec<String>> {
        let place = json!({"textDocument": {"uri": uri(file)}, "position": {"line": line, "character": column}});
        let answer = self.ask("textDocument/completion", &place)?;
        let items = answer.as_array().or_else(|| answer["items"].as_array()).into_iter().flatten();
        Ok(items.filter_map(|item| item["label"].as_str().map(str::to_owned)).collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn message(output: &mut impl BufRead) -> Option<Value> {
    let (mut length, mut line) = (0, String::new());
    loop {
        line.clear();
        output.read_line(&mut line).ok().filter(|&read| read > 0)?;
        match line.trim().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().ok()?,
            None if line.trim().is_empty() => break,
            _ => {}
        }
    }
    let mut bytes = vec![0; length];
    output.read_exact(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn uri(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// A cursor `‸` in a line, and what is to be offered there.
const SOURCE: &str = r#"
use tune_config::{Config, recipe};

/// What moves the weights.
#[derive(Config)]
#[config(crate = tune_config, ign‸)] // ignored component
pub enum Optimizer {
    /// Gradient descent.
    #[config(name = "sgd", al‸)] // name alias default
    Sgd(Sgd),
}

/// Gradient descent.
#[derive(Config)]
#[config(crate = tune_config)]
pub struct Sgd {
    /// The learning rate.
    #[config(default = 1.0, o‸)] // range one_of required alias name one_or_many flatten may_change
    learning_rate: f64,
}

#[recipe(con‸, crate = tune_config)] // configs preflight name ignored
async fn lora(
    output_dir: String,
    /// What moves the weights.
    #[config(res‸)] // default range resolved
    sgd: Sgd,
) -> Result<(), String> {
    let of_a_local = sgd;
    of_a_local.‸ // learning_rate
}
"#;

#[test]
#[ignore = "needs rust-analyzer"]
fn rust_analyzer_completes_in_a_recipe_with_mistakes() -> io::Result<()> {
    let folder = package::create("editor")?;
    let file = folder.join("src/main.rs");
    let text = SOURCE.replace('‸', "");
    fs::write(&file, &text)?;

    let options =
        json!({"checkOnSave": false, "cargo": {"targetDir": folder.join("target"), "extraArgs": ["--offline"]}});
    let Some(mut server) = Server::start("rust-analyzer", &[], &folder, &options)? else { return Ok(()) };
    server.open(&file, "rust", &text)?;
    server.wait(|server| server.status["quiescent"] == true)?;
    let mut asked = 0;
    for (number, line) in SOURCE.lines().enumerate() {
        let Some((before, rest)) = line.split_once('‸') else { continue };
        let found = server.completions(&file, number, before.chars().count())?;
        let (_, expected) = rest.split_once("// ").unwrap_or_default();
        for name in expected.split(' ') {
            assert!(found.iter().any(|label| label == name), "{line}: no `{name}` among {found:?}");
        }
        asked += 1;
    }
    assert_eq!(asked, 6);
    Ok(())
}

#[test]
#[ignore = "needs yaml-language-server"]
fn the_schema_works_in_an_editor() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/lora").canonicalize()?;
    let file = folder.join("tiny.yaml");
    let good = fs::read_to_string(&file)?;
    let Some(mut server) = Server::start("yaml-language-server", &["--stdio"], &folder, &json!({}))? else {
        return Ok(());
    };
    let settings = json!({"yaml": {"validate": true, "completion": true, "schemaStore": {"enable": false}}});
    server.tell("workspace/didChangeConfiguration", &json!({"settings": settings}))?;
    server.open(&file, "yaml", &good)?;
    server.wait(|server| server.diagnostics.get(&uri(&file)).is_some_and(Vec::is_empty))?;

    let wrong = good.replace("\nepochs:", "\nepcohs:").replace("  lr:", "  lrr:");
    let document = json!({"uri": uri(&file), "version": 2});
    server.tell("textDocument/didChange", &json!({"textDocument": document, "contentChanges": [{"text": wrong}]}))?;
    server.wait(|server| server.diagnostics.get(&uri(&file)).is_some_and(|said| !said.is_empty()))?;
    let said = server.diagnostics.get(&uri(&file)).map(|said| said.join("\n")).unwrap_or_default();
    assert!(said.contains("No key of the recipe.") && said.contains("lrr"), "{said}");

    // The keys of the component that is chosen, and the outermost ones that are not written.
    for (line, column, name) in [("  lrr:", 3, "weight_decay"), ("epcohs:", 3, "gradient_accumulation_steps")] {
        let number = wrong.lines().position(|written| written.starts_with(line)).unwrap_or_default();
        let found = server.completions(&file, number, column)?;
        assert!(found.iter().any(|label| label == name), "{line}: {found:?}");
    }
    Ok(())
}
