//! What is wrong with a request, as OpenAI's clients expect to hear it.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ombra_ir::{Diagnostic, Kind};
use serde_json::{Value, json};

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    message: String,
    param: Option<String>,
    retry_after: Option<u32>,
}

impl Refusal {
    /// A request that is wrong, by a code of OpenAI's or a diagnostic's.
    pub fn request(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        Refusal { status, kind, code, message: message.into(), param: None, retry_after: None }
    }

    /// A field of a request that is wrong.
    pub fn field(name: &str, message: impl Into<String>) -> Refusal {
        Refusal::request(StatusCode::BAD_REQUEST, "invalid_value", message).of(name)
    }

    /// A field of a request that asks for what is not built.
    pub fn unsupported(name: &str, message: impl Into<String>) -> Refusal {
        Refusal::request(StatusCode::BAD_REQUEST, "unsupported_value", message).of(name)
    }

    /// A text that is longer than the plan takes.
    pub fn too_long(name: &str, error: &Diagnostic) -> Refusal {
        Refusal::request(StatusCode::BAD_REQUEST, "context_length_exceeded", sentence(error)).of(name)
    }

    /// More requests than are queued.
    pub fn busy() -> Refusal {
        let message = "all sessions are busy and the queue is full: try again later";
        let refusal = Refusal::request(StatusCode::TOO_MANY_REQUESTS, "queue_full", message);
        Refusal { kind: "rate_limit_error", retry_after: Some(2), ..refusal }
    }

    /// The same with the name of the field that it is about.
    pub fn of(mut self, name: &str) -> Refusal {
        self.param = Some(name.to_owned());
        self
    }

    /// What a run failed with: the caller's fault, that of another party, or one of this program.
    pub fn of_run(error: &Diagnostic) -> Refusal {
        let status = match (error.kind, error.code) {
            // The server has no room, or nobody is there: the same may succeed later.
            (Kind::Peer, "E0707" | "E0708") => StatusCode::SERVICE_UNAVAILABLE,
            (Kind::Peer, _) => StatusCode::BAD_GATEWAY,
            (Kind::Input, "E0415" | "E0417" | "E1006" | "E1007" | "E1018" | "E1021" | "E1022") => {
                StatusCode::BAD_REQUEST
            }
            (Kind::Unsupported, _) => StatusCode::BAD_REQUEST,
            (Kind::Input | Kind::Internal, _) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        // The notes of what is not the caller's fault are for whoever runs the gateway: addresses, files, settings.
        let told = if status == StatusCode::BAD_REQUEST { sentence(error) } else { error.message.clone() };
        Refusal::request(status, error.code, told)
    }

    /// Whether the caller can mend it.
    pub fn is_callers_fault(&self) -> bool {
        self.status == StatusCode::BAD_REQUEST
    }

    /// The error as it stands in an answer, or in a stream that has begun.
    pub fn json(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        } })
    }
}

/// A diagnostic with its notes in one line.
fn sentence(error: &Diagnostic) -> String {
    let notes = error.notes.iter().map(|note| note.split_whitespace().collect::<Vec<_>>().join(" "));
    [error.message.clone()].into_iter().chain(notes).collect::<Vec<_>>().join("; ")
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = self.json().to_string();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
