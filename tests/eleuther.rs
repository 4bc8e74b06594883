//! `eleuther_eval` with a stand-in for EleutherAI's program, which asks the server once. What the real one finds,
//! `tests/python/check_lm_eval.py` compares.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "common/runs.rs"]
mod runs;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use runs::{newest, recipe, succeed, text};
use serde_json::Value;
use tempfile::TempDir;

/// Nothing here takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// It knows two tasks. A run of `known` asks for two prompts' log-probabilities as the harness does, and leaves what it was told and
/// answered in its own folder; one of `waits` waits.
const STAND_IN: &str = r#"#!/usr/bin/env bash
set -euo pipefail
folder=$(dirname "$0")
if [ "$1" = validate ]; then
    case ",$3," in
        *,broken,*) echo "ModuleNotFoundError: No module named 'lm_eval'" >&2; exit 1 ;;
        *,other,*) echo "Tasks not found: other"; exit 1 ;;
        *) echo "All tasks found and valid"; exit 0 ;;
    esac
fi
printf '%s\n' "$@" >"$folder/told"
env | grep -i '^no_proxy=' >>"$folder/told"
tasks= arguments=
while [ $# -gt 0 ]; do
    case $1 in
        --tasks) tasks=$2; shift ;;
        --model_args) arguments=$2; shift ;;
    esac
    shift
done
value() { tr , '\n' <<<"$arguments" | sed -n "s/^$1=//p"; }
echo "running $tasks"
if [ "$tasks" = waits ]; then
    for _ in $(seq 600); do
        if [ -e "$folder/enough" ] || [ ! -d "$folder" ]; then break; fi
        sleep 0.1
    done
    exit 0
fi
[ "$tasks" = known ] || exit 3
tokenizer=$(value tokenizer)
ls "$tokenizer" >"$folder/tokenizer"
url=$(value base_url)
url=${url#http://}
host=${url%%/*}
body='{"model": "'$(value model)'", "prompt": [[5, 6, 7], [8, 9]], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true}'
exec 3<>"/dev/tcp/${host%:*}/${host#*:}"
printf 'POST /%s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %s\r\n\r\n%s' \
    "${url#*/}" "$host" "${#body}" "$body" >&3
cat <&3 >"$folder/answer"
echo '|Tasks|Version|Filter|n-shot|Metric|   |Value |   |Stderr|'
echo '|-----|------:|------|-----:|------|---|-----:|---|-----:|'
echo '|known|      1|none  |     0|acc   |↑  |0.5000|±  |0.5000|'
echo
"#;

/// A folder with the stand-in, called as the real one is.
fn stand_in() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lm_eval");
    fs::write(&path, STAND_IN).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let key = format!("lm_eval={}", path.display());
    (folder, key)
}

const MODEL: &str = "checkpoint_dir=recipes/tiny/model";

/// The recipe; the server is beside it where the whole workspace was built.
fn evaluation(args: &[&str]) -> Command {
    let server = Path::new(env!("CARGO_BIN_EXE_eleuther_eval")).with_file_name("tune-serve");
    assert!(server.is_file(), "{} is missing: cargo build -p tune-serve", server.display());
    recipe("eleuther_eval", args)
}

fn failed(args: &[&str]) -> String {
    let output = evaluation(args).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}{error}", text(&output.stdout));
    assert!(!error.contains("panicked"), "{error}");
    error
}

/// Where the server is, as it says itself.
fn address(said: &str) -> Option<String> {
    Some(said.split("http://").nth(1)?.split("/v1").next()?.to_owned())
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn has_gone(address: &str) -> bool {
    TcpStream::connect(address).is_err()
}

/// The folder with the tokenizer.
fn tokenizer_of(told: &str) -> PathBuf {
    told.split("tokenizer=").nth(1).unwrap().split(',').next().unwrap().into()
}

#[test]
fn the_harness_asks_the_model_and_its_table_is_saved() {
    let (folder, program) = stand_in();
    let out = folder.path().join("out");
    let output_dir = format!("output_dir={}", out.display());
    let more = [
        "limit=50",
        "num_fewshot=2",
        "seed=1234",
        "max_seq_length=100",
        "batch_size=2",
        "lm_eval_args=[--log_samples]",
    ];
    let args = [&[MODEL, "tasks=known", &program, &output_dir][..], &more].concat();
    let output = evaluation(&args).env("TUNE_API_KEY", "other").env("NO_PROXY", "example.org").output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));

    // It is shown as it comes, and saved.
    let row = "|known|      1|none  |     0|acc   |↑  |0.5000|±  |0.5000|\n";
    assert!(said.contains("serving `model`") && said.contains("running known\n") && said.contains(row), "{said}");
    let saved = fs::read_to_string(out.join("eleuther_eval.md")).unwrap();
    assert!(saved.starts_with("recipes/tiny/model\n\n|Tasks|") && saved.ends_with(row), "{saved}");
    assert!(said.ends_with(&format!("Results saved to {}\n", out.join("eleuther_eval.md").display())), "{said}");

    // What it was told: one option or value a line.
    let told = fs::read_to_string(folder.path().join("told")).unwrap();
    for expected in [
        "--model\nlocal-completions\n--tasks\nknown\n--model_args\nmodel=model,base_url=http://127.0.0.1:",
        "/v1/completions,tokenizer=",
        // Two more than are read, see the recipe.
        ",timeout=1000000,max_length=102,max_gen_toks=51,add_bos_token=false\n",
        "--batch_size\n2\n--limit\n50\n--num_fewshot\n2\n--seed\n1234\n--output_path\n",
        "\n--log_samples\n",
        "NO_PROXY=127.0.0.1,example.org\n",
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
    // The tokenizer as the model has it, gone by now, as the server is.
    let files = fs::read_to_string(folder.path().join("tokenizer")).unwrap();
    assert!(["config.json", "tokenizer.json"].iter().all(|name| files.lines().any(|file| file == *name)), "{files}");
    assert!(!tokenizer_of(&told).exists() && has_gone(&address(&said).unwrap()));

    // Log-probabilities of all tokens but the first, and one of the answer.
    let answer = fs::read_to_string(folder.path().join("answer")).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let json = &answer[answer.find('{').unwrap()..=answer.rfind('}').unwrap()];
    let answer: Value = serde_json::from_str(json).unwrap();
    for (i, len) in [3, 2].into_iter().enumerate() {
        let log_probs = answer["choices"][i]["logprobs"]["token_logprobs"].as_array().unwrap();
        assert!(log_probs.len() == len + 1 && log_probs[0].is_null(), "{log_probs:?}");
        assert!(log_probs[1..].iter().all(|log_prob| log_prob.as_f64().is_some_and(|it| it < 0.0)), "{log_probs:?}");
    }
}

/// A run's folder stands for its newest adapter on its base.
#[test]
fn an_adapter_is_measured_on_its_base() {
    let (folder, program) = stand_in();
    let run = folder.path().join("run");
    let output = format!("output_dir={}", run.display());
    let short = ["epochs=1", "max_steps_per_epoch=1", "~exact_match", "batch_size=2"];
    succeed("lora", &[&["--config", "configs/lora/tiny.yaml", &output][..], &short].concat());
    let scores = format!("output_dir={}", folder.path().join("scores").display());
    let of_run = format!("checkpoint_dir={}", run.display());
    let adapter = newest(&run);
    let of_adapter = format!("adapter_dir={}", adapter.display());
    for args in [&[of_run.as_str()][..], &[MODEL, &of_adapter]] {
        let said = evaluation(&[args, &["tasks=known", &program, &scores]].concat()).output().unwrap();
        assert!(said.status.success(), "{}", text(&said.stderr));
        let saved = fs::read_to_string(folder.path().join("scores/eleuther_eval.md")).unwrap();
        let first = saved.lines().next().unwrap();
        assert!(first.ends_with(&format!("recipes/tiny/model + {}", adapter.display())), "{saved}");
    }
}

#[test]
fn mistakes_are_told_before_a_weight_is_read() {
    let (folder, program) = stand_in();
    let output = evaluation(&[MODEL, "tasks=known"]).env("PATH", folder.path().join("empty")).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there is no lm_eval in PATH"), "{said}");
    assert!(said.contains("pip install 'lm_eval[api]' transformers") && said.contains("set lm_eval=FILE"), "{said}");
    let folders = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let found = evaluation(&[MODEL, "tasks=known"]).env("PATH", folders).output().unwrap();
    assert!(found.status.success(), "{}", text(&found.stderr));

    let mistakes: [(&[&str], &[&str]); 9] = [
        (&[MODEL, "tasks=known", "lm_eval=./no/such"], &["./no/such is no file", "set lm_eval=FILE"]),
        (&[MODEL, "tasks=[known,other]", &program], &["does not know other", "lm_eval ls tasks", "include_path"]),
        (&[MODEL, "tasks=broken", &program], &["No module named 'lm_eval'", "pip install"]),
        (&[MODEL, "tasks=[]", &program], &["tasks: there is none"]),
        (&[MODEL, "tasks=known", &program, "include_path=/no/such"], &["/no/such: include_path is a folder"]),
        (&["checkpoint_dir=/no/such", "tasks=known", &program], &["/no/such: does not exist"]),
        (
            &[MODEL, "tasks=known", &program, "max_seq_length=4096"],
            &["max_seq_length is 4096, and the model reads 256 tokens at most: set max_seq_length=256"],
        ),
        (&[MODEL, "tasks=known", &program, "dtype=fp16"], &["served in fp32 or bf16"]),
        (&[MODEL, "tasks=known", &program, "server=/no/such"], &["cannot start /no/such"]),
    ];
    for (args, expected) in mistakes {
        let said = failed(args);
        assert!(expected.iter().all(|part| said.contains(part)), "{args:?}: {said}");
    }
    // Patterns and files are the harness's own matter; here it fails, and says so.
    let said = failed(&[MODEL, "tasks=kno*", &program]);
    assert!(said.contains("lm_eval ended with exit status: 3"), "{said}");
}

/// A run that waits for the harness, and where its server is.
fn waiting(program: &str) -> (Child, BufReader<ChildStdout>, String) {
    let mut child = evaluation(&[MODEL, "tasks=waits", program]).stdout(Stdio::piped()).spawn().unwrap();
    let (mut said, mut line) = (BufReader::new(child.stdout.take().unwrap()), String::new());
    let mut server = None;
    while line != "running waits\n" {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended");
        server = server.or_else(|| address(&line));
    }
    let server = server.unwrap();
    assert!(!has_gone(&server));
    (child, said, server)
}

#[test]
fn the_server_ends_with_the_recipe() {
    let (folder, program) = stand_in();
    let told = || fs::read_to_string(folder.path().join("told")).unwrap();
    let send = |signal: &str, child: &Child| {
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    };
    // Asked to end, it ends the harness, too, and cleans up.
    let (mut child, _said, server) = waiting(&program);
    send("-TERM", &child);
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(has_gone(&server) && !tokenizer_of(&told()).exists());

    // Killed, it can do nothing more; the server ends by itself.
    let (mut child, _said, server) = waiting(&program);
    send("-KILL", &child);
    child.wait().unwrap();
    wait_until("the server is still there", || has_gone(&server));
    fs::write(folder.path().join("enough"), "").unwrap();
    fs::remove_dir_all(tokenizer_of(&told())).unwrap();
}
