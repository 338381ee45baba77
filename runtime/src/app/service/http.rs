//! `/healthz`, `/readyz` and `/metrics` over HTTP, at an address of their own.
//!
//! Nothing here changes anything or says anything of a client. The address is one of this machine alone unless the
//! configuration says otherwise, and requests must name it: a page of another site in a browser on this machine is refused.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::get;
use ombra_ir::{Diagnostic, Result};

use super::metrics::Now;
use super::{Service, spawn};
use crate::app::http::{Http, LIMITS};
use crate::app::session::rss;
use crate::hosts::Hosts;

/// Type of Prometheus' text.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers at `address` from a thread of its own.
///
/// # Errors
/// `E1032`.
pub(super) fn start(address: SocketAddr, names: &[String], service: Arc<Service>) -> Result<()> {
    let failed = move |error: std::io::Error| {
        Diagnostic::input("E1032", format!("no metrics at {address}: {error}"))
            .note("help      stop what uses the address, or change service.metrics")
    };
    let http = Http::bind(address).map_err(failed)?;
    let log = Arc::clone(&service.log);
    let hosts = Hosts::new(address, names);
    spawn("metrics", move || {
        // A party that ends says so until it has ended.
        if let Err(error) = http.serve(routes(service, hosts), LIMITS, &|| false) {
            log.complaint(&failed(error));
        }
    })
}

fn routes(service: Arc<Service>, hosts: Hosts) -> Router {
    let ready = Arc::clone(&service);
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || {
                let is_ready = ready.is_ready();
                let answer = if is_ready {
                    (StatusCode::OK, "ready\n")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
                };
                async move { answer }
            }),
        )
        .route(
            "/metrics",
            get(move || {
                let text = service.metrics.text(&now(&service));
                async move { ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response() }
            }),
        )
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let is_known = hosts.of(request.headers()).is_some();
            async move {
                if is_known {
                    next.run(request).await
                } else {
                    (StatusCode::FORBIDDEN, "the header Host names another machine\n").into_response()
                }
            }
        }))
}

fn now(service: &Service) -> Now {
    let used = service.budget.used();
    Now {
        open: used.sessions,
        waiting: service.acceptor.waiting(),
        reserved: used.bytes,
        budget: service.budget.total(),
        sharings: service.keep.held(),
        resident: rss(),
        ready: service.is_ready(),
    }
}
