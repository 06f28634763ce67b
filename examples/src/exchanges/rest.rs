//! Requests to REST interfaces, within their limits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{HeaderMap, RETRY_AFTER};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use qi_core::domain::MAX_COUNTER;
use qi_core::{Error, ErrorKind, Result, RetryAdvice};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep_until, timeout};

use super::protocol::{HistoryPage, Position, Protocol, corrupt, temporary};

/// The longest response in bytes. A page of 1,000 trades has about 150,000 bytes.
const MAX_RESPONSE: usize = 4 * 1_024 * 1_024;
/// The time limit until the head of a response. A gap must be filled within 10 s of a reconnect, even if one request is
/// not answered.
const TIMEOUT: Duration = Duration::from_secs(4);
/// The time limit of the body of a response, for slow connections.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause after HTTP status 429, 418 or 403 without the header `Retry-After`.
const DEFAULT_PAUSE: Duration = Duration::from_mins(1);
/// The longest pause. A ban can last three days.
const MAX_PAUSE: Duration = Duration::from_hours(24 * 3);

/// Returns the TLS settings of all connections to exchanges.
///
/// # Errors
/// None in practice.
pub(super) fn tls() -> Result<ClientConfig> {
    let roots: RootCertStore = webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Internal, "live.tls", "open").with_source(error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The REST interface of one exchange, and the pace of requests and connections. All agents of a program that read from
/// the exchange share one value, because the exchange counts the requests of an address.
pub struct RestClient {
    protocol: Arc<dyn Protocol>,
    base: String,
    interval: Duration,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    /// Held during a request, so that requests are sequential.
    turn: AsyncMutex<()>,
    /// The time of the next request or connection.
    next: Mutex<Instant>,
}

impl RestClient {
    /// Creates a client. Opens no connection.
    ///
    /// # Errors
    /// None in practice.
    pub fn new(protocol: Arc<dyn Protocol>, base: &str, interval: Duration) -> Result<Self> {
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls()?).https_or_http().enable_http1().build();
        // The failure that ends a stream can also leave an idle connection dead, so each request opens its own. The
        // pace of requests is therefore also that of connections.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        let base = base.trim_end_matches('/').to_owned();
        Ok(Self {
            protocol,
            base,
            interval,
            client,
            turn: AsyncMutex::default(),
            next: Mutex::new(Instant::now()),
        })
    }

    /// Returns a page of the history from a position on, or a page with the latest trade.
    ///
    /// # Errors
    /// `InvalidInput` with the symbol if the exchange rejects the request; else a retryable error.
    pub async fn history(&self, symbol: &str, from: Option<Position>) -> Result<HistoryPage> {
        let _turn = self.turn.lock().await;
        self.wait_for_slot().await;
        let address = format!("{}{}", self.base, self.protocol.history_path(symbol, from));
        let (status, headers, body) = self.get(&address).await?;
        let exchange = self.protocol.exchange();
        let page = match limit_pause(status, &headers) {
            Some(pause) => Err(temporary(exchange, format_args!("HTTP status {status}"), Some(pause))),
            None => self.protocol.history(symbol, from, status, &body).and_then(|page| {
                let is_valid = page.trades.iter().all(|trade| trade.id <= MAX_COUNTER);
                if is_valid {
                    Ok(page)
                } else {
                    Err(corrupt(exchange, "an id is above the bound of records"))
                }
            }),
        };
        if let Err(error) = &page
            && let RetryAdvice::After(pause) = error.retry()
        {
            self.pause(pause);
        }
        page.map_err(|error| error.with_context("address", address))
    }

    /// Waits until the exchange's limits allow a request or a connection.
    pub(super) async fn wait_for_slot(&self) {
        loop {
            let next = {
                let mut next = self.next();
                if *next <= Instant::now() {
                    *next = Instant::now() + self.interval;
                    return;
                }
                *next
            };
            sleep_until(next).await;
        }
    }

    /// Delays the next request or connection.
    pub(super) fn pause(&self, pause: Duration) {
        let mut next = self.next();
        *next = (*next).max(Instant::now() + pause);
        tracing::warn!(exchange = self.protocol.exchange(), ?pause, "the exchange limits requests");
    }

    fn next(&self) -> MutexGuard<'_, Instant> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get(&self, address: &str) -> Result<(StatusCode, HeaderMap, String)> {
        let exchange = self.protocol.exchange();
        let request = Request::get(address)
            .header("user-agent", concat!("qi/", env!("CARGO_PKG_VERSION")))
            // Only Binance knows this header.
            .header("x-mbx-time-unit", "MICROSECOND")
            .body(Empty::new())
            .map_err(|error| Error::invalid("live.address", "address", address, error))?;
        let response = timeout(TIMEOUT, self.client.request(request))
            .await
            .map_err(|_| temporary(exchange, "the request took too long", None))?
            .map_err(|error| temporary(exchange, "the request failed", None).with_source(error))?;
        let (parts, body) = response.into_parts();
        let body = timeout(BODY_TIMEOUT, Limited::new(body, MAX_RESPONSE).collect())
            .await
            .map_err(|_| temporary(exchange, "the response took too long", None))?
            .map_err(|error| temporary(exchange, format_args!("the response ended early: {error}"), None))?;
        Ok((parts.status, parts.headers, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    }
}

/// Returns the pause that a response requires, if its status is the one of a limit.
pub(super) fn limit_pause(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    matches!(status.as_u16(), 403 | 418 | 429).then(|| retry_after(headers).unwrap_or(DEFAULT_PAUSE))
}

/// Returns the pause that a server requires, in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_PAUSE))
}
