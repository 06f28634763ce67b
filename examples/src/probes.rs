//! `/livez`, `/startupz`, `/readyz` and `/metrics` over HTTP, for Kubernetes and Prometheus.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use qi_core::health::HealthChecker;
use qi_core::{Error, ErrorKind, Result, telemetry};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The maximum number of open connections.
const CONNECTIONS: usize = 64;
/// The time limit for a client's request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit of a connection. Without it, clients that never read their responses could occupy all connections
/// and block the probes. A client that is disconnected between two requests opens another connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The interval at which histograms are moved into their buckets, even without a scrape.
const UPKEEP: Duration = Duration::from_secs(5);

/// The bucket bounds of `.._seconds`, in seconds: from a call of the memory store to the longest attempt.
const SECONDS: &[f64] = &[
    0.000_01, 0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
];
/// The bucket bounds of `.._records`.
const RECORDS: &[f64] = &[1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0];

/// Installs the Prometheus exporter for all metrics of this process. Call this before any backend is opened, because
/// layers keep the metrics that they registered.
///
/// # Errors
/// `Config` if the process already has an exporter.
pub fn install_metrics() -> Result<PrometheusHandle> {
    let reject =
        |error| Error::new(ErrorKind::Config, "pipeline.metrics", "install_metrics").with_source(error);
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_records".to_owned()), RECORDS))
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(reject)?;
    telemetry::describe();
    Ok(handle)
}

/// The sources of the responses.
#[derive(Debug)]
struct Probes {
    health: Arc<HealthChecker>,
    metrics: PrometheusHandle,
}

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, health: Arc<HealthChecker>, metrics: PrometheusHandle) {
    let probes = Arc::new(Probes { health, metrics });
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut upkeep = tokio::time::interval(UPKEEP);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = upkeep.tick() => {
                probes.metrics.run_upkeep();
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _peer)) => stream,
            Err(error) => {
                // Probably out of file descriptors: other connections may close theirs.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Kubernetes and Prometheus open fewer connections, so further ones are dropped.
        let Ok(permit) = free.clone().try_acquire_owned() else { continue };
        let probes = probes.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let probes = probes.clone();
                async move { Ok::<_, Infallible>(probes.answer(&request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            match timeout(CONNECTION_TIMEOUT, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "connection ended early"),
                Err(_) => tracing::debug!("connection closed: exceeded {CONNECTION_TIMEOUT:?}"),
            }
        });
    }
}

impl Probes {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        // Hyper omits the body of a response to HEAD.
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut rejected = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
            rejected.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return rejected;
        }
        match request.uri().path() {
            // Without I/O, because it must respond while every backend is unavailable.
            "/livez" => {
                let live = self.health.is_live();
                plain(status(live), if live { "live\n" } else { "an agent is stuck\n" })
            }
            "/startupz" => {
                let check = self.health.check().await;
                json(check.started, &check)
            }
            "/readyz" => {
                let check = self.health.check().await;
                json(check.ready, &check)
            }
            "/metrics" => {
                if let Some(runtime) = self.health.runtime() {
                    runtime.measure_heartbeats();
                }
                let text = self.metrics.render();
                respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
            }
            _ => plain(StatusCode::NOT_FOUND, "/livez /startupz /readyz /metrics\n"),
        }
    }
}

fn status(well: bool) -> StatusCode {
    if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn json(well: bool, body: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(body) {
        Ok(text) => respond(status(well), "application/json", text),
        Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string()),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", text.to_owned())
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}
