//! From answers to a response: one JSON object, or a stream of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde_json::{Value, json};

use crate::answers::{Answers, Ask, Piece};
use crate::error::{Fault, answer};
use crate::server::Server;

/// How answers are written.
pub(crate) trait Format: Send + Unpin + 'static {
    /// The events of a stream that a part of an answer makes.
    fn events(&mut self, piece: Piece) -> Vec<Value>;

    /// The last event of a stream that is to end with the number of tokens.
    fn usage(&self, usage: Value) -> Value;

    /// All answers, each as one piece.
    fn whole(&mut self, answers: Vec<Piece>, usage: Value) -> Value;
}

/// Answers a request; `stream` says whether in a stream, and whether that ends with the number of tokens.
///
/// # Errors
/// It cannot be answered.
pub(crate) async fn respond(
    server: &Arc<Server>,
    ask: &Ask,
    mut format: impl Format,
    stream: Option<bool>,
    begun: Instant,
) -> Result<Response, Fault> {
    let mut answers = Answers::begin(server, ask, begun).await?;
    if let Some(wants_usage) = stream {
        let events = Events { answers, format, wants_usage, ready: VecDeque::new(), is_done: false };
        let kind = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        ];
        return Ok((StatusCode::OK, kind, Body::new(events)).into_response());
    }
    let mut whole: Vec<Piece> =
        (0..ask.prompts.len() * ask.n).map(|choice| Piece { choice, ..Piece::default() }).collect();
    while let Some(piece) = answers.next().await {
        let Piece { choice, text, tokens, of_prompt, stop, finish } = piece?;
        let answer = &mut whole[choice];
        answer.text += &text;
        answer.tokens.extend(tokens);
        answer.of_prompt += of_prompt;
        answer.stop = answer.stop.take().or(stop);
        answer.finish = answer.finish.or(finish);
    }
    let usage = usage(&answers);
    Ok(answer(StatusCode::OK, &format.whole(whole, usage)))
}

fn usage(answers: &Answers) -> Value {
    let (prompt, new) = (answers.prompt_tokens, answers.new_tokens);
    json!({"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new})
}

/// The body of a stream.
struct Events<F> {
    answers: Answers,
    format: F,
    wants_usage: bool,
    ready: VecDeque<String>,
    is_done: bool,
}

impl<F: Format> HttpBody for Events<F> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        loop {
            if let Some(event) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(format!("data: {event}\n\n").into()))));
            }
            if this.is_done {
                return Poll::Ready(None);
            }
            match this.answers.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(piece))) => {
                    this.ready.extend(this.format.events(piece).iter().map(Value::to_string));
                }
                // The status has been sent: clients find an error in an event.
                Poll::Ready(Some(Err(fault))) => {
                    this.ready.push_back(fault.json().to_string());
                    this.is_done = true;
                }
                Poll::Ready(None) => {
                    if this.wants_usage {
                        this.ready.push_back(this.format.usage(usage(&this.answers)).to_string());
                    }
                    this.ready.push_back("[DONE]".to_owned());
                    this.is_done = true;
                }
            }
        }
    }
}
