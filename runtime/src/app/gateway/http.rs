//! Routes of the gateway.
//!
//! What a request may take is bounded: the time for its body and the size of it here, connections by the server's own limits.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ombra_ir::Diagnostic;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::{task, time};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};

use super::openai::{Ask, Form, Given, Head, parse};
use super::pool::{Answer, Reply, Work};
use super::refusal::Refusal;
use super::{Shared, seconds_since_1970};
use crate::app::client::{check_generation, tokens_left};
use crate::transport::SessionId;

/// Largest body of a request, in bytes.
const MAX_BODY: usize = 4 << 20;
/// How long the body of a request may take.
const READ_TIME: Duration = Duration::from_secs(30);
/// Time between two looks at the sessions.
const STATUS_TIME: Duration = Duration::from_millis(100);
/// Time between two signs of life in a stream.
const ALIVE_TIME: Duration = Duration::from_secs(10);
/// What the page may do: load what belongs to it, ask this gateway, nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";
/// Headers of every answer.
const HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// What every path is answered with.
pub(super) fn routes(shared: Arc<Shared>) -> Router {
    let file =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], text) });
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("page.html")))
        .route("/page.js", file("text/javascript; charset=utf-8", include_str!("page.js")))
        .route("/page.css", file("text/css; charset=utf-8", include_str!("page.css")))
        .route("/favicon.ico", get(|| async { StatusCode::NO_CONTENT }))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .route("/v1/ombra/status", get(status))
        .fallback(|| async { Refusal::request(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Refusal::request(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path takes another method")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), check))
        .with_state(shared)
}

/// Checks a request before anything else sees it, and says in every answer what a browser may do with it.
async fn check(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let checked = shared.guard.check(request.method(), request.uri().path(), request.headers());
    let mut response = match checked {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn answer(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn described(shared: &Shared) -> Value {
    json!({ "id": shared.name, "object": "model", "created": shared.created, "owned_by": "ombra" })
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    answer(&json!({ "object": "list", "data": [described(&shared)] }))
}

async fn model(State(shared): State<Arc<Shared>>, Path(name): Path<String>) -> Response {
    check_model(&shared, &name).map_or_else(Refusal::into_response, |()| answer(&described(&shared)))
}

fn check_model(shared: &Shared, name: &str) -> Result<(), Refusal> {
    if name == shared.name {
        return Ok(());
    }
    let message = format!("there is no such model here: use `{}`", shared.name);
    Err(Refusal::request(StatusCode::NOT_FOUND, "model_not_found", message).of("model"))
}

async fn chat(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    text(shared, Form::Chat, request).await.unwrap_or_else(Refusal::into_response)
}

async fn completion(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    text(shared, Form::Completion, request).await.unwrap_or_else(Refusal::into_response)
}

/// Answers a request for text.
async fn text(shared: Arc<Shared>, form: Form, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    check_type(&parts.headers)?;
    let body = read(body).await?;
    let ask = parse(form, &body, shared.ignore_temperature)?;
    drop(body);
    check_model(&shared, &ask.model)?;
    let with = Arc::clone(&shared);
    let given = ask.given.clone();
    // The tokenizer may take its time.
    let prepared = task::spawn_blocking(move || prepare(&with, form, given, ask.count)).await;
    let (tokens, count) = prepared.map_err(|_| Refusal::of_run(&ended()))??;
    let Ask { model, stop, choosing, stream, include_usage, .. } = ask;
    let choice = choosing.choice();
    let field = match choosing.penalties {
        penalties if penalties.presence != 0.0 => "presence_penalty",
        penalties if penalties.frequency != 0.0 => "frequency_penalty",
        _ => "temperature",
    };
    let drawing = shared.with.opened.folder.plan.drawing(choice.way());
    drawing.map_err(|error| Refusal::of_run(&error).of(field))?;
    let id = SessionId::random().map_err(|error| Refusal::of_run(&error))?;
    let head = Head {
        form,
        id: format!("{}{id}", form.id()),
        created: seconds_since_1970(),
        model,
        fingerprint: shared.fingerprint.clone(),
        prompt_tokens: tokens.len() as u64,
    };
    let (replies, mut received) = mpsc::unbounded_channel();
    shared.pool.submit(Work { tokens, count, stop, choosing, replies }).map_err(|_| Refusal::busy())?;
    let mut whole = String::new();
    loop {
        match received.recv().await {
            // What fails before this has a status of its own.
            Some(Reply::Open) if stream => break,
            Some(Reply::Open) => {}
            Some(Reply::Text(text)) => whole.push_str(&text),
            Some(Reply::End(Ok(end))) => return Ok(answer(&head.whole(&whole, &end))),
            Some(Reply::End(Err(error))) => return Err(Refusal::of_run(&error)),
            None => return Err(Refusal::of_run(&ended())),
        }
    }
    let pieces = Pieces::new(head, include_usage, received);
    Ok(Sse::new(pieces).keep_alive(KeepAlive::new().interval(ALIVE_TIME)).into_response())
}

/// The error of a session that ended without a word.
fn ended() -> Diagnostic {
    Diagnostic::internal("E1014", "a fault of this program ended the session")
}

/// A body is JSON by its type too: a page of another site can send none of that type without asking first.
fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "expected the header Content-Type: application/json";
    Err(Refusal::request(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}

/// The whole body of a request.
async fn read(body: Body) -> Result<Vec<u8>, Refusal> {
    let reading = async {
        let mut whole = Vec::new();
        let mut pieces = body.into_data_stream();
        while let Some(piece) = pieces.next().await {
            let what = "the body ended early";
            let piece = piece.map_err(|_| Refusal::request(StatusCode::BAD_REQUEST, "invalid_body", what))?;
            if whole.len() + piece.len() > MAX_BODY {
                let what = format!("the body has more than {MAX_BODY} bytes");
                return Err(Refusal::request(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", what));
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    };
    let what = || Refusal::request(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not come in time");
    time::timeout(READ_TIME, reading).await.unwrap_or_else(|_| Err(what()))
}

/// The tokens of a text, and how many may follow; checked before anything is sent.
fn prepare(shared: &Shared, form: Form, given: Given, count: u64) -> Result<(Vec<i64>, u64), Refusal> {
    let (text, plan) = (&shared.with.text, &shared.with.opened.folder.plan);
    let tokens = match given {
        Given::Chat(messages) => text.chat_tokens(&shared.settings, &messages),
        Given::Text(prompt) => text.tokens(&prompt),
        Given::Tokens(tokens) => Ok(tokens),
    };
    let tokens = tokens.map_err(|error| Refusal::of_run(&error).of(form.field()))?;
    if tokens.is_empty() {
        return Err(Refusal::field(form.field(), "expected a text of one token or more"));
    }
    let counted = tokens_left(plan, tokens.len()).map(|left| left.min(count)).and_then(|count| {
        check_generation(plan, std::slice::from_ref(&tokens), count)?;
        Ok(count)
    });
    let counted = counted.map_err(|error| match error.code {
        "E1007" => Refusal::too_long(form.field(), &error),
        _ => Refusal::of_run(&error).of(form.field()),
    })?;
    Ok((tokens, counted))
}

/// An answer as it comes, one event a piece.
struct Pieces {
    head: Head,
    include_usage: bool,
    received: mpsc::UnboundedReceiver<Reply>,
    ready: VecDeque<String>,
    has_ended: bool,
}

impl Pieces {
    fn new(head: Head, include_usage: bool, received: mpsc::UnboundedReceiver<Reply>) -> Pieces {
        let mut pieces = Pieces { head, include_usage, received, ready: VecDeque::new(), has_ended: false };
        if pieces.head.form == Form::Chat {
            pieces.push(pieces.head.piece(Some(""), None));
        }
        pieces
    }

    fn push(&mut self, mut piece: Value) {
        // With usage asked for, every piece has the field.
        if self.include_usage && piece.get("usage").is_none() {
            piece["usage"] = Value::Null;
        }
        self.ready.push_back(piece.to_string());
    }

    fn take_in(&mut self, reply: Option<Reply>) {
        match reply {
            // A session that was opened anew.
            Some(Reply::Open) => {}
            Some(Reply::Text(text)) => self.push(self.head.piece(Some(&text), None)),
            Some(Reply::End(Ok(end))) => self.end(&end),
            Some(Reply::End(Err(error))) => self.fail(&error),
            None => self.fail(&ended()),
        }
    }

    fn end(&mut self, end: &Answer) {
        self.push(self.head.piece(None, Some(end)));
        if self.include_usage {
            self.push(self.head.usage_piece(end));
        }
        self.ready.push_back("[DONE]".to_owned());
        self.has_ended = true;
    }

    fn fail(&mut self, error: &Diagnostic) {
        self.ready.push_back(Refusal::of_run(error).json().to_string());
        self.has_ended = true;
    }
}

impl Stream for Pieces {
    type Item = Result<Event, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let pieces = self.get_mut();
        loop {
            if let Some(piece) = pieces.ready.pop_front() {
                return Poll::Ready(Some(Ok(Event::default().data(piece))));
            }
            if pieces.has_ended {
                return Poll::Ready(None);
            }
            match pieces.received.poll_recv(context) {
                Poll::Ready(reply) => pieces.take_in(reply),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// What the sessions are doing, an event whenever that changes. No text is in it.
async fn status(State(shared): State<Arc<Shared>>) -> Response {
    let (send, received) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut last = String::new();
        while !shared.asked.load(Ordering::Relaxed) {
            let mut now = shared.pool.status();
            now["model"] = json!(shared.name);
            now["chat"] = json!(shared.has_chat);
            let now = now.to_string();
            if now != last {
                if send.send(Event::default().data(&now)).await.is_err() {
                    return;
                }
                last = now;
            }
            if time::timeout(STATUS_TIME, send.closed()).await.is_ok() {
                return;
            }
        }
    });
    let events = ReceiverStream::new(received).map(Ok::<_, Infallible>);
    Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE_TIME)).into_response()
}
