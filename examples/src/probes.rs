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
use qi_core::health::Health;
use qi_core::{Error, ErrorKind, Result, telemetry};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How many connections may be open at once.
const CONNECTIONS: usize = 64;
/// How long a client may take to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last. One that never reads its answer would keep its place for ever, and so many of them
/// the probes out. Who is cut off in the middle of more requests opens another one.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How often histograms are emptied into their buckets, even if nobody reads them.
const UPKEEP: Duration = Duration::from_secs(5);

/// Bounds of the buckets of `.._seconds`, in seconds: from the memory store's calls to the longest attempt.
const SECONDS: &[f64] = &[
    0.000_01, 0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0,
];
/// Bounds of the buckets of `.._records`.
const RECORDS: &[f64] = &[1.0, 10.0, 100.0, 1_000.0, 10_000.0, 100_000.0, 1_000_000.0];

/// Makes the Prometheus exporter the one that all metrics of this process go to. Before any backend is opened, since
/// layers keep the metrics that they registered.
///
/// # Errors
/// `Config` if the process has another exporter already.
pub fn install_metrics() -> Result<PrometheusHandle> {
    let refuse =
        |error| Error::new(ErrorKind::Config, "pipeline.metrics", "install_metrics").with_source(error);
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_records".to_owned()), RECORDS))
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(refuse)?;
    telemetry::describe();
    Ok(handle)
}

/// What is served.
#[derive(Debug)]
struct Probes {
    health: Arc<Health>,
    metrics: PrometheusHandle,
}

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, health: Arc<Health>, metrics: PrometheusHandle) {
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
                // Out of descriptors, most likely: others may close theirs meanwhile.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // More than that at once is none of Kubernetes' or Prometheus' doing.
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
                Ok(Err(error)) => tracing::debug!(%error, "a connection ended early"),
                Err(_) => tracing::debug!("a connection was cut off: it took too long"),
            }
        });
    }
}

impl Probes {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        // Hyper leaves out the body of an answer to HEAD.
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
            refused.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match request.uri().path() {
            // From memory alone: it must be answered while every backend is away.
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
