//! The routes, and what is asked of every request before it is read.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use crate::error::{Fault, answer};
use crate::respond::respond;
use crate::server::Server;
use crate::{chat, completions};

type Shared = State<Arc<Server>>;

/// All routes.
pub(crate) fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(converse))
        .route("/v1/embeddings", post(embed))
        .fallback(unknown)
        .method_not_allowed_fallback(other_method)
        .layer(from_fn_with_state(Arc::clone(&server), guard))
        .with_state(server)
}

/// What a route is called in metrics.
fn label(path: &str) -> &'static str {
    match path {
        "/health" => "/health",
        "/metrics" => "/metrics",
        "/v1/completions" => "/v1/completions",
        "/v1/chat/completions" => "/v1/chat/completions",
        "/v1/embeddings" => "/v1/embeddings",
        path if path == "/v1/models" || path.starts_with("/v1/models/") => "/v1/models",
        _ => "other",
    }
}

async fn guard(State(server): Shared, request: Request, next: Next) -> Response {
    let label = label(request.uri().path());
    let response = match allow(&server, label, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(fault) => fault.into_response(),
    };
    server.metrics.response(label, response.status().as_u16());
    response
}

/// Whether a request may be answered.
fn allow(server: &Server, label: &str, headers: &HeaderMap) -> Result<(), Fault> {
    let Some(key) = &server.key else {
        // Without a key the server is for this machine. A page on the web can have its name point here, and then a browser asks
        // in that name.
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        return match is_loopback(host) {
            true => Ok(()),
            false => Err(Fault::new(
                StatusCode::FORBIDDEN,
                "wrong_host",
                format!(
                    "the request is for the host {host:?}; without an API key only this machine is answered, by its own name"
                ),
            )),
        };
    };
    if label == "/health" {
        return Ok(());
    }
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
    match given {
        Some(given) if is_same(given.as_bytes(), key.as_bytes()) => Ok(()),
        Some(_) => Err(Fault::new(StatusCode::UNAUTHORIZED, "invalid_api_key", "this is not the API key")),
        None => Err(Fault::new(
            StatusCode::UNAUTHORIZED,
            "missing_api_key",
            "an API key is needed: `Authorization: Bearer KEY`",
        )),
    }
}

/// Whether the host of a request, perhaps with a port, is this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Compares in a time that does not depend on where they differ.
fn is_same(given: &[u8], key: &[u8]) -> bool {
    let mut differing = given.len() ^ key.len();
    for (i, byte) in given.iter().enumerate() {
        differing |= usize::from(byte ^ key.get(i % key.len().max(1)).unwrap_or(&0));
        differing = std::hint::black_box(differing);
    }
    differing == 0
}

/// Reads a request's body.
///
/// # Errors
/// It is too large, comes too slowly, or is no JSON.
async fn body(server: &Server, headers: &HeaderMap, mut body: Body) -> Result<Value, Fault> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    // Others a page on the web may send without asking.
    if !kind.trim_start().to_ascii_lowercase().starts_with("application/json") {
        let message = format!("the body is {kind:?}; application/json was expected as its Content-Type");
        return Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "wrong_content_type", message));
    }
    let most = server.limits.body;
    let large = || {
        let message = format!("the body has more than {most} bytes, which are taken at most");
        Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    if body.size_hint().lower() > most as u64 {
        return Err(large());
    }
    let read = async {
        let mut bytes = Vec::new();
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let broken =
                |error| Fault::new(StatusCode::BAD_REQUEST, "broken_body", format!("the body broke off: {error}"));
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            if bytes.len() + data.len() > most {
                return Err(large());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    let bytes = tokio::time::timeout(server.limits.patience, read).await.map_err(|_| {
        let message = format!("the body did not come within {:?}", server.limits.patience);
        Fault::new(StatusCode::REQUEST_TIMEOUT, "slow_body", message)
    })??;
    serde_json::from_slice(&bytes)
        .map_err(|error| Fault::new(StatusCode::BAD_REQUEST, "invalid_json", format!("the body is no JSON: {error}")))
}

/// Runs what takes long aside, so that other requests go on.
async fn aside<T: Send + 'static>(what: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    tokio::task::spawn_blocking(what).await.map_err(|error| Fault::internal(error.to_string()))?
}

async fn complete(State(server): Shared, request: Request) -> Result<Response, Fault> {
    let begun = Instant::now();
    let (head, content) = request.into_parts();
    let json = body(&server, &head.headers, content).await?;
    let shared = Arc::clone(&server);
    let (ask, format, stream) = aside(move || completions::read(&shared, &json)).await?;
    respond(&server, &ask, format, stream, begun).await
}

async fn converse(State(server): Shared, request: Request) -> Result<Response, Fault> {
    let begun = Instant::now();
    let (head, content) = request.into_parts();
    let json = body(&server, &head.headers, content).await?;
    let shared = Arc::clone(&server);
    let (ask, format, stream) = aside(move || chat::read(&shared, &json)).await?;
    respond(&server, &ask, format, stream, begun).await
}

async fn embed() -> Fault {
    let message = "this server makes no embeddings; it answers /v1/completions and /v1/chat/completions";
    Fault::new(StatusCode::BAD_REQUEST, "unsupported_endpoint", message)
}

async fn models(State(server): Shared) -> Response {
    let models: Vec<Value> = server.models.iter().map(|model| server.shown(model)).collect();
    answer(StatusCode::OK, &json!({"object": "list", "data": models}))
}

async fn model(State(server): Shared, Path(name): Path<String>) -> Result<Response, Fault> {
    let model = server.named(&name)?;
    Ok(answer(StatusCode::OK, &server.shown(&server.models[model])))
}

async fn health(State(server): Shared) -> Result<Response, Fault> {
    match server.queue.is_ending() {
        true => Err(Fault::ending()),
        false => Ok(answer(StatusCode::OK, &json!({"status": "ok"}))),
    }
}

async fn metrics(State(server): Shared) -> Response {
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], server.metrics.text()).into_response()
}

async fn unknown(request: Request) -> Fault {
    let message =
        format!("there is no {}; there is /v1/completions, /v1/chat/completions and /v1/models", request.uri().path());
    Fault::new(StatusCode::NOT_FOUND, "unknown_url", message)
}

async fn other_method(request: Request) -> Fault {
    let message = format!("{} does not take {}", request.uri().path(), request.method());
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared_whole() {
        assert!(is_same(b"secret", b"secret"));
        for other in ["", "secre", "secret2", "Secret", "secretsecret", "tecret"] {
            assert!(!is_same(other.as_bytes(), b"secret"), "{other}");
        }
    }

    #[test]
    fn this_machine_has_few_names() {
        for host in ["localhost", "localhost:8000", "127.0.0.1:1", "127.8.8.8", "[::1]:8000", "LOCALHOST:80"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com:8000", "10.0.0.1", "[::2]:1", "127.0.0.1.example.com"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
