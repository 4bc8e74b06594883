//! Clients that hang up, flood, send what nobody can read, and take their time; and a server that is to end.

use std::io::Write as _;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Response, Server, events, program, wait_for};
use crate::{TINY, path};

/// For answers that take long.
const LONG: [&str; 4] = ["--max-answer", "40000", "--cache-memory", "64MiB"];

#[test]
fn who_hangs_up_frees_the_place() {
    let model = path("long");
    let args = [&model, "--name", "long", "--max-sequences", "1"];
    let server = Server::start(&[&args[..], &LONG].concat());
    let endless = json!({"model": "long", "prompt": "a", "max_tokens": 30_000, "ignore_eos": true, "stream": true});
    let stream = server.stream("/v1/completions", &endless);
    assert_eq!(server.metric("tune_sequences_running"), 1.0);
    drop(stream);
    server.until("tune_hung_up_total", 1.0);
    server.until("tune_sequences_running", 0.0);
    // Nor does who waits for a whole answer, or only waits.
    let mut whole = endless;
    whole["stream"] = false.into();
    let ask = || {
        let (mut stream, body) = (server.connect(), whole.to_string());
        let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
        stream
    };
    let running = ask();
    server.until("tune_sequences_running", 1.0);
    let waiting = ask();
    server.until("tune_sequences_waiting", 1.0);
    drop(waiting);
    server.until("tune_sequences_waiting", 0.0);
    assert_eq!(server.metric("tune_sequences_running"), 1.0);
    drop(running);
    server.until("tune_sequences_running", 0.0);
    let short = json!({"model": "long", "prompt": "a", "max_tokens": 2});
    server.post("/v1/completions", &short).ok();
}

#[test]
fn a_flood_is_told_to_come_back_and_others_are_served() {
    let model = path("long");
    let also = format!("adapted={}", path("adapter"));
    let args = [&model, "--name", "long", "--also", &also, "--max-sequences", "2", "--max-waiting", "6"];
    let server = Server::start(&[&args[..], &LONG].concat());
    let request = |model: &str, tokens: usize| json!({"model": model, "prompt": "flood", "max_tokens": tokens, "ignore_eos": true, "temperature": 0});
    let responses: Vec<Response> = std::thread::scope(|scope| {
        let ask = || server.post("/v1/completions", &request("long", 2000));
        let mut asking: Vec<_> = (0..2).map(|_| scope.spawn(ask)).collect();
        server.until("tune_sequences_running", 2.0);
        asking.extend((0..10).map(|_| scope.spawn(ask)));
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    // Two run, and six wait: the others are refused.
    let refused: Vec<_> = responses.iter().filter(|response| response.status == 429).collect();
    assert_eq!(refused.len(), 4);
    for response in refused {
        assert!(response.head.contains("retry-after: 1"), "{}", response.head);
        assert_eq!(response.fault(), (429, "queue_full".into(), None));
    }
    assert_eq!(responses.iter().filter(|response| response.status == 200).count(), 8);
    // Who asks another adapter does not wait for all who were there before.
    std::thread::scope(|scope| {
        let (server, request) = (&server, &request);
        let flood: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(move || {
                    server.post("/v1/completions", &request("long", 3000)).ok();
                    Instant::now()
                })
            })
            .collect();
        server.until("tune_sequences_waiting", 4.0);
        server.post("/v1/completions", &request("adapted", 10)).ok();
        let answered = Instant::now();
        let later = flood.into_iter().map(|asked| asked.join().unwrap()).filter(|&end| end > answered);
        assert!(later.count() >= 3, "the adapter's request was served after the flood");
    });
    // Whose memory never suffices is told so at once.
    let response = server.post("/v1/completions", &request("long", 33_000));
    assert_eq!(response.fault(), (400, "context_length_exceeded".into(), Some("prompt".into())));
}

#[test]
fn what_cannot_be_answered_is_refused_in_words() {
    let server = Server::start(&[
        TINY,
        "--name",
        "tiny",
        "--max-body",
        "20KiB",
        "--patience",
        "1",
        "--max-prompt",
        "100",
        "--max-answer",
        "50",
    ]);
    let complete = "/v1/completions";
    let chat = "/v1/chat/completions";
    let json_head = "Content-Type: application/json\r\n";
    let huge = vec![b' '; 1 << 20];
    let response = server.send("POST", complete, json_head, &huge);
    assert_eq!(response.fault(), (413, "body_too_large".into(), None));
    // Its length is not said before.
    let mut stream = server.connect();
    stream
        .write_all(
            format!("POST {complete} HTTP/1.1\r\nHost: localhost\r\n{json_head}Transfer-Encoding: chunked\r\n\r\n")
                .as_bytes(),
        )
        .unwrap();
    for _ in 0..30 {
        let _ = stream.write_all(format!("400\r\n{}\r\n", " ".repeat(1024)).as_bytes());
    }
    assert_eq!(Response::read(stream).status, 413);
    for (body, code) in
        [("", "invalid_json"), ("{\"model\":", "invalid_json"), ("[]", "invalid_json"), ("\u{0}", "invalid_json")]
    {
        assert_eq!(
            server.send("POST", complete, json_head, body.as_bytes()).fault(),
            (400, code.into(), None),
            "{body}"
        );
    }
    let deep = "[".repeat(10_000);
    assert_eq!(server.send("POST", complete, json_head, deep.as_bytes()).fault().0, 400);
    assert_eq!(server.send("POST", complete, "Content-Type: text/plain\r\n", b"{}").fault().0, 415);
    assert_eq!(server.send("GET", complete, "", b"").fault(), (405, "method_not_allowed".into(), None));
    assert_eq!(server.get("/v2").fault(), (404, "unknown_url".into(), None));
    assert_eq!(server.get("/v1/models/none").fault(), (404, "model_not_found".into(), Some("model".into())));
    assert_eq!(
        server.post("/v1/embeddings", &json!({"model": "tiny", "input": "a"})).fault().1,
        "unsupported_endpoint"
    );
    let refused = [
        (complete, json!({"prompt": "a"}), 400, "missing_parameter", "model"),
        (complete, json!({"model": "other", "prompt": "a"}), 404, "model_not_found", "model"),
        (complete, json!({"model": "tiny"}), 400, "missing_parameter", "prompt"),
        (complete, json!({"model": "tiny", "prompt": {"a": 1}}), 400, "invalid_value", "prompt"),
        (complete, json!({"model": "tiny", "prompt": []}), 400, "invalid_value", "prompt"),
        (complete, json!({"model": "tiny", "prompt": ""}), 400, "invalid_value", "prompt"),
        (complete, json!({"model": "tiny", "prompt": [5, 384]}), 400, "invalid_value", "prompt"),
        (complete, json!({"model": "tiny", "prompt": [5, -1]}), 400, "invalid_value", "prompt"),
        (complete, json!({"model": "tiny", "prompt": vec![5; 200]}), 400, "context_length_exceeded", "prompt"),
        (complete, json!({"model": "tiny", "prompt": "a", "max_tokens": 51}), 400, "invalid_value", "max_tokens"),
        (complete, json!({"model": "tiny", "prompt": "a", "temperature": 3}), 400, "invalid_value", "temperature"),
        (complete, json!({"model": "tiny", "prompt": "a", "n": 0}), 400, "invalid_value", "n"),
        (complete, json!({"model": "tiny", "prompt": "a", "n": 17}), 400, "invalid_value", "n"),
        (complete, json!({"model": "tiny", "prompt": "a", "best_of": 2}), 400, "unsupported_parameter", "best_of"),
        (complete, json!({"model": "tiny", "prompt": "a", "suffix": "b"}), 400, "unsupported_parameter", "suffix"),
        (complete, json!({"model": "tiny", "prompt": "a", "stop": ["", "a"]}), 400, "invalid_value", "stop"),
        (
            complete,
            json!({"model": "tiny", "prompt": "a", "logit_bias": {"5": 1}}),
            400,
            "unsupported_parameter",
            "logit_bias",
        ),
        (complete, json!({"model": "tiny", "prompt": "a", "tempreature": 1}), 400, "unknown_parameter", "tempreature"),
        (complete, json!({"model": "tiny", "prompt": "a", "stream": "yes"}), 400, "invalid_value", "stream"),
        (chat, json!({"model": "tiny"}), 400, "missing_parameter", "messages"),
        (chat, json!({"model": "tiny", "messages": [{"content": "a"}]}), 400, "invalid_value", "messages[0].role"),
        (
            chat,
            json!({"model": "tiny", "messages": [{"role": "king", "content": "a"}]}),
            400,
            "invalid_value",
            "messages[0].role",
        ),
        (
            chat,
            json!({"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
            "unsupported_parameter",
            "messages[0].content",
        ),
        (
            chat,
            json!({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}}),
            400,
            "unsupported_parameter",
            "response_format",
        ),
        (
            chat,
            json!({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}),
            400,
            "invalid_value",
            "tools[0]",
        ),
        (
            chat,
            json!({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}),
            400,
            "unsupported_parameter",
            "tool_choice",
        ),
        (
            chat,
            json!({"model": "tiny", "messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}),
            400,
            "invalid_value",
            "top_logprobs",
        ),
    ];
    for (path, body, status, code, param) in refused {
        assert_eq!(server.post(path, &body).fault(), (status, code.to_owned(), Some(param.to_owned())), "{body}");
    }
    // A page on the web that has its name point here.
    let mut stream = server.connect();
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n").unwrap();
    assert_eq!(Response::read(stream).fault().0, 403);
    // A byte at a time.
    let begun = Instant::now();
    let mut stream = server.connect();
    stream
        .write_all(
            format!("POST {complete} HTTP/1.1\r\nHost: localhost\r\n{json_head}Content-Length: 1000\r\n\r\n")
                .as_bytes(),
        )
        .unwrap();
    for _ in 0..15 {
        let _ = stream.write_all(b" ");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(Response::read(stream).fault(), (408, "slow_body".into(), None));
    // The same in the head, which has no answer.
    let mut stream = server.connect();
    for _ in 0..15 {
        let _ = stream.write_all(b"G");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut rest);
    assert!(begun.elapsed() < Duration::from_secs(20), "the connection was not given up");
    let good = json!({"model": "tiny", "prompt": "a", "max_tokens": 2, "frequency_penalty": 0, "user": "u", "logit_bias": null});
    server.post(complete, &good).ok();
}

#[test]
fn a_key_is_wanted_where_one_is_set() {
    let mut command = program(&[TINY, "--name", "tiny"]);
    command.env("TUNE_API_KEY", "open-sesame");
    let server = Server::start_with(command);
    assert_eq!(server.get("/v1/models").fault(), (401, "missing_api_key".into(), None));
    assert_eq!(server.get("/metrics").status, 401);
    assert_eq!(server.get("/health").ok(), json!({"status": "ok"}));
    for wrong in ["open", "open-sesame2", "Open-sesame", "Basic open-sesame"] {
        let response = server.send("GET", "/v1/models", &format!("Authorization: Bearer {wrong}\r\n"), b"");
        assert_eq!(response.fault(), (401, "invalid_api_key".into(), None), "{wrong:?}");
    }
    assert_eq!(server.send("GET", "/v1/models", "Authorization: Bearer open-sesame\r\n", b"").status, 200);
    // An address that others reach is not taken without one; nothing has listened by then.
    for (args, expected) in [
        (&["--host", "0.0.0.0"][..], "clients must have an API key"),
        (&["--host", "no.such.host.invalid"], "cannot listen at"),
        (&["--cache-memory", "1"], "no sequence has room"),
        (&["--cache-memory", "much"], "is no size"),
        (&["--also", "mine"], "a name and an adapter were expected"),
        (&["--timeout=-1"], "is no time"),
        (&["--max-sequences", "0"], "0 is not in 1..=1024"),
        (&["--api-key-file", "/nowhere"], "cannot read /nowhere"),
    ] {
        let output = program(&[&[TINY, "--port", "0"], args].concat()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(1 | 2)) && said.contains(expected), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[cfg(unix)]
#[test]
fn a_shutdown_in_the_middle_ends_answers_cleanly() {
    let model = path("long");
    let args = [&model, "--name", "long", "--max-sequences", "1", "--grace", "1.5"];
    let server = Server::start(&[&args[..], &LONG].concat());
    let endless = json!({"model": "long", "prompt": "a", "max_tokens": 30_000, "ignore_eos": true, "stream": true});
    let stream = server.stream("/v1/completions", &endless);
    let (status, body) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.post("/v1/completions", &json!({"model": "long", "prompt": "a"})));
        server.until("tune_sequences_waiting", 1.0);
        server.signal("-TERM");
        wait_for(|| !server.is_listening(), "no new connections");
        let mut rest = stream;
        // The end of the chunk whose first line has been read.
        let mut line = String::new();
        std::io::BufRead::read_line(&mut rest, &mut line).unwrap();
        std::io::BufRead::read_line(&mut rest, &mut line).unwrap();
        (waiting.join().unwrap().fault(), Response::chunks(rest))
    });
    assert_eq!(status, (503, "shutting_down".into(), None));
    let events = events(&body);
    assert!(events.len() > 10, "it went on for its grace");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert!(server.end().success());
}

#[test]
fn time_is_up_for_answers_that_take_long() {
    let model = path("long");
    let args = [&model, "--name", "long", "--max-sequences", "1", "--timeout", "1"];
    let server = Server::start(&[&args[..], &LONG].concat());
    let endless = json!({"model": "long", "prompt": "a", "max_tokens": 30_000, "ignore_eos": true});
    let answers: Vec<Response> = std::thread::scope(|scope| {
        let (server, endless) = (&server, &endless);
        let asking: Vec<_> = (0..3).map(|_| scope.spawn(move || server.post("/v1/completions", endless))).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let (cut, late): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(!cut.is_empty() && cut.iter().all(|answer| answer.json()["choices"][0]["finish_reason"] == "length"));
    // Who waited the whole time has none left to be answered in.
    for answer in late {
        assert!(answer.head.contains("retry-after: "), "{}", answer.head);
        assert_eq!(answer.fault(), (503, "timeout".into(), None));
    }
}
