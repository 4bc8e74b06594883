//! Requests to the tracking server.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ureq::Agent;

use super::super::config::MlflowLog;
use super::{Entry, milliseconds};

/// No request takes longer.
const LONGEST: Duration = Duration::from_secs(10);
/// Of an answer, that is read at most.
const ANSWER: u64 = 1 << 20;
/// Limits of the interface: parameters in a request, characters of a parameter's value and of a tag's.
const PARAMETERS: usize = 100;
const CHARACTERS: usize = 500;
const TAG: usize = 5000;

/// Why something was not sent, and whether another attempt is of no use.
pub(super) struct Refusal {
    pub(super) why: String,
    pub(super) is_final: bool,
}

/// Which run it is, as a resumed run finds it.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Remembered {
    tracking_uri: String,
    run_id: String,
}

impl Remembered {
    /// The run of this server.
    pub(super) fn read(memory: &Path, address: &str) -> Option<Self> {
        let run: Self = serde_json::from_slice(&fs::read(memory).ok()?).ok()?;
        (run.tracking_uri == address).then_some(run)
    }
}

pub(super) struct Client {
    agent: Agent,
    address: String,
    /// The header that says who asks. From the environment, and shown nowhere.
    authorization: Option<String>,
    experiment: String,
    run_name: Option<String>,
    parameters: Vec<(String, String)>,
    memory: PathBuf,
    run: Option<Remembered>,
    /// Whether the run was begun by another process.
    is_resumed: bool,
    is_begun: bool,
}

impl Client {
    pub(super) fn new(
        address: &str,
        config: &MlflowLog,
        memory: &Path,
        settings: &BTreeMap<String, Value>,
        run: Option<Remembered>,
    ) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let token = variable("MLFLOW_TRACKING_TOKEN").map(|token| format!("Bearer {token}"));
        let password = || {
            let name = variable("MLFLOW_TRACKING_USERNAME")?;
            let password = variable("MLFLOW_TRACKING_PASSWORD").unwrap_or_default();
            Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}"))))
        };
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let agent = Agent::config_builder()
            .timeout_global(Some(LONGEST))
            .http_status_as_error(false)
            .user_agent(concat!("tune/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: agent.into(),
            address: address.to_owned(),
            authorization: token.or_else(password),
            experiment: config.experiment_name.clone(),
            run_name: config.run_name.clone(),
            parameters: settings.iter().map(|(key, value)| (allowed(key), short(&text(value), CHARACTERS))).collect(),
            memory: memory.to_path_buf(),
            is_resumed: run.is_some(),
            run,
            is_begun: false,
        }
    }

    /// Begins the run, or goes on with it. Where it did already, does nothing.
    pub(super) fn begin(&mut self) -> Result<(), Refusal> {
        if self.is_begun {
            return Ok(());
        }
        let known = self.run.clone().filter(|_| self.is_resumed);
        if let Some(run) = known {
            match self.post("runs/update", &json!({ "run_id": run.run_id, "status": "RUNNING" })) {
                // It was deleted there: another one begins.
                Err(refusal) if refusal.is_final => (self.run, self.is_resumed) = (None, false),
                result => drop(result?),
            }
        }
        if self.run.is_none() {
            let experiment = self.experiment()?;
            let request = json!({
                "experiment_id": experiment, "start_time": milliseconds(), "run_name": self.run_name.clone().unwrap_or_default(),
                "tags": [{ "key": "mlflow.source.name", "value": "tune" }],
            });
            let answer = self.post("runs/create", &request)?;
            let run = Remembered { tracking_uri: self.address.clone(), run_id: text_at(&answer, "/run/info/run_id")? };
            self.remember(&run);
            self.run = Some(run);
        }
        let run_id = self.run.as_ref().map(|run| run.run_id.clone());
        while !self.is_resumed && !self.parameters.is_empty() {
            let some = &self.parameters[..self.parameters.len().min(PARAMETERS)];
            let params: Vec<Value> = some.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
            self.post("runs/log-batch", &json!({ "run_id": run_id, "params": params }))?;
            self.parameters.drain(..params.len());
        }
        self.is_begun = true;
        Ok(())
    }

    /// Sends records in one request.
    pub(super) fn log(&mut self, entries: &[Entry]) -> Result<(), Refusal> {
        self.begin()?;
        let (mut metrics, mut tags) = (Vec::new(), Vec::new());
        for entry in entries {
            match entry {
                Entry::Numbers { step, time, values } => {
                    for (name, value) in values.iter().filter(|(name, value)| *name != "step" && value.is_number()) {
                        let name = allowed(name);
                        metrics.push(json!({ "key": name, "value": value, "timestamp": time, "step": step }));
                    }
                }
                Entry::Text { name, step, text } => {
                    tags.push(json!({ "key": format!("{name}.{step}"), "value": short(text, TAG) }));
                }
            }
        }
        let run_id = self.run.as_ref().map(|run| &run.run_id);
        let request = json!({ "run_id": run_id, "metrics": metrics, "tags": tags });
        self.post("runs/log-batch", &request).map(drop)
    }

    /// Says how the run ended.
    pub(super) fn end(&mut self, status: &str, time: u64) -> Result<(), Refusal> {
        self.begin()?;
        let run_id = self.run.as_ref().map(|run| &run.run_id);
        self.post("runs/update", &json!({ "run_id": run_id, "status": status, "end_time": time })).map(drop)
    }

    /// The experiment's number; it is made where there is none of that name.
    fn experiment(&self) -> Result<String, Refusal> {
        let address = self.url("experiments/get-by-name");
        let request = self.agent.get(&address).query("experiment_name", &self.experiment);
        let answer = match &self.authorization {
            Some(authorization) => request.header("Authorization", authorization),
            None => request,
        }
        .call();
        match self.read(answer)? {
            (404, _) => {
                let answer = self.post("experiments/create", &json!({ "name": self.experiment }))?;
                text_at(&answer, "/experiment_id")
            }
            (status, answer) => text_at(&accepted(status, answer)?, "/experiment/experiment_id"),
        }
    }

    fn post(&self, method: &str, body: &Value) -> Result<Value, Refusal> {
        let mut request = self.agent.post(self.url(method)).header("Content-Type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        let (status, answer) = self.read(request.send(body.to_string()))?;
        accepted(status, answer)
    }

    fn url(&self, method: &str) -> String {
        format!("{}/api/2.0/mlflow/{method}", self.address)
    }

    /// Status and content of an answer.
    fn read(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(u16, Value), Refusal> {
        let again = |error: ureq::Error| Refusal { why: error.to_string(), is_final: false };
        let mut answer = answer.map_err(again)?;
        let status = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(ANSWER).read_to_string().map_err(again)?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// A run that cannot be remembered cannot be resumed; it goes on nevertheless.
    fn remember(&self, run: &Remembered) {
        if let (Some(folder), Ok(text)) = (self.memory.parent(), serde_json::to_string(run)) {
            let _ = fs::create_dir_all(folder).and_then(|()| fs::write(&self.memory, text + "\n"));
        }
    }
}

/// What the server says of a status that is no success; it may be asked again where it is at its limits.
fn accepted(status: u16, answer: Value) -> Result<Value, Refusal> {
    if (200..300).contains(&status) {
        return Ok(answer);
    }
    let said = answer.get("message").and_then(Value::as_str).unwrap_or("no reason is given");
    let advice = match status {
        401 | 403 => " (set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)",
        _ => "",
    };
    let is_final = (400..500).contains(&status) && status != 429 && status != 408;
    Err(Refusal { why: format!("the server answers with status {status}: {}{advice}", short(said, 300)), is_final })
}

fn text_at(answer: &Value, place: &str) -> Result<String, Refusal> {
    let wrong = || Refusal { why: format!("the answer has no `{place}`: is it an MLflow server?"), is_final: true };
    answer.pointer(place).and_then(Value::as_str).map(str::to_owned).ok_or_else(wrong)
}

/// Names have letters, digits, and some signs.
fn allowed(name: &str) -> String {
    let is_allowed = |c: char| c.is_alphanumeric() || "_-. /".contains(c);
    short(&name.chars().map(|c| if is_allowed(c) { c } else { '_' }).collect::<String>(), 250)
}

fn short(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}
