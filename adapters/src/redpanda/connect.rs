//! The reports of all librdkafka clients: their logs through `tracing`, their statistics as metrics, and the
//! state of their connections.
//!
//! `docs/observability.md` lists the metrics `qi_redpanda_..`.
//!
//! `client` is `producer` or `consumer`. `group` is empty for all clients except group members. The values of several
//! clients of one kind in a process are added.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use qi_core::{Error, ErrorKind, Result};
use rdkafka::ClientContext;
use rdkafka::client::Client;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataBroker};
use rdkafka::statistics::Statistics;

use super::error;
use crate::password_warning::PasswordWarning;

/// The context of a client, which receives its reports.
#[derive(Debug)]
pub(super) struct KafkaContext {
    role: &'static str,
    /// The group of a member. Empty for other clients.
    group: String,
    connected: AtomicBool,
    /// The authentication error, as long as the brokers reject this client.
    auth_error: Mutex<Option<(RDKafkaErrorCode, String)>>,
    reported: Mutex<ReportedStatistics>,
    auth_errors: Option<AuthErrors>,
    password_warning: Option<Arc<PasswordWarning>>,
}

/// The source of authentication errors for a client whose own events are not served.
struct AuthErrors(Arc<QueryClient>);

impl fmt::Debug for AuthErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuthErrors").field(self.0.context()).finish()
    }
}

/// The values of this client that are included in the metrics.
#[derive(Debug, Default)]
struct ReportedStatistics {
    sent: u64,
    received: u64,
    retries: u64,
    errors: u64,
    queued: u64,
    queued_bytes: u64,
    lagging: BTreeSet<(String, i32)>,
}

impl KafkaContext {
    pub(super) fn new(role: &'static str, group: &str) -> Self {
        // A new client counts as connected until its first report.
        let connected = AtomicBool::new(true);
        let (auth_error, reported) = (Mutex::default(), Mutex::default());
        let group = group.to_owned();
        Self { role, group, connected, auth_error, reported, auth_errors: None, password_warning: None }
    }

    /// Sets the warning for the hosts that the brokers advertise.
    pub(super) fn with_password_warning(mut self, warning: Arc<PasswordWarning>) -> Self {
        self.password_warning = Some(warning);
        self
    }

    /// Sets the source of authentication errors. The driver does not serve the events of an administration client.
    pub(super) fn with_auth_errors_of(mut self, auth_errors: Arc<QueryClient>) -> Self {
        self.auth_errors = Some(AuthErrors(auth_errors));
        self
    }

    /// Returns whether any broker was connected at the time of the last statistics.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Returns the authentication error, or the given error if there is no authentication error. `error` is the error
    /// of a call without a response; its reason may be a rejected login or an untrusted certificate.
    pub(super) fn auth_error_or(&self, error: Error) -> Error {
        if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) {
            return error;
        }
        if let Some(AuthErrors(auth_errors)) = &self.auth_errors {
            return auth_error_or(auth_errors, error);
        }
        let auth_error = self.auth_error.lock().unwrap_or_else(PoisonError::into_inner);
        match &*auth_error {
            Some((code, reason)) => error::from_code(*code, "connect")
                .with_message(reason)
                .with_operation(error.operation().to_owned()),
            None => error,
        }
    }

    fn record_metrics(&self, now: &Statistics) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = [("client", self.role.to_owned()), ("group", self.group.clone())];
        let (mut retries, mut errors) = (0, 0);
        for broker in now.brokers.values() {
            retries += broker.txretries;
            errors += broker.txerrs;
            if let Some(trip) = broker.rtt.as_ref().filter(|trip| trip.cnt > 0) {
                histogram!("qi_redpanda_round_trip_seconds", &labels)
                    .record(as_f64(trip.avg.unsigned_abs()) / 1e6);
            }
        }
        let add = |name: &'static str, before: &mut u64, now: u64| {
            counter!(name, &labels).increment(now.saturating_sub(*before));
            *before = now;
        };
        add("qi_redpanda_sent_messages_total", &mut reported.sent, now.txmsgs.unsigned_abs());
        add("qi_redpanda_received_messages_total", &mut reported.received, now.rxmsgs.unsigned_abs());
        add("qi_redpanda_request_retries_total", &mut reported.retries, retries);
        add("qi_redpanda_request_errors_total", &mut reported.errors, errors);
        let fetched = now.topics.values().flat_map(|topic| topic.partitions.values());
        let fetched: u64 = fetched.map(|partition| partition.fetchq_cnt.unsigned_abs()).sum();
        self.record_queue(&mut reported, now.msg_cnt + fetched, now.msg_size);
        self.record_lag(&mut reported, now);
    }

    fn record_queue(&self, reported: &mut ReportedStatistics, messages: u64, bytes: u64) {
        let labels = [("client", self.role.to_owned()), ("group", self.group.clone())];
        gauge!("qi_redpanda_queued_messages", &labels).increment(as_f64(messages) - as_f64(reported.queued));
        gauge!("qi_redpanda_queued_bytes", &labels).increment(as_f64(bytes) - as_f64(reported.queued_bytes));
        (reported.queued, reported.queued_bytes) = (messages, bytes);
    }

    fn record_lag(&self, reported: &mut ReportedStatistics, now: &Statistics) {
        if self.group.is_empty() {
            return;
        }
        let mut lagging = BTreeSet::new();
        for topic in now.topics.values() {
            for partition in topic.partitions.values().filter(|partition| partition.consumer_lag >= 0) {
                let lag = partition.consumer_lag.unsigned_abs();
                self.set_lag(&topic.topic, partition.partition, lag);
                lagging.insert((topic.topic.clone(), partition.partition));
            }
        }
        // A partition that moved to another member has no lag in this client.
        for (topic, partition) in reported.lagging.difference(&lagging) {
            self.set_lag(topic, *partition, 0);
        }
        reported.lagging = lagging;
    }

    fn set_lag(&self, topic: &str, partition: i32, lag: u64) {
        let labels = [
            ("group", self.group.clone()),
            ("topic", topic.to_owned()),
            ("partition", partition.to_string()),
        ];
        gauge!("qi_redpanda_consumer_lag", &labels).set(as_f64(lag));
    }
}

impl Drop for KafkaContext {
    fn drop(&mut self) {
        let mut reported = std::mem::take(self.reported.get_mut().unwrap_or_else(PoisonError::into_inner));
        self.record_queue(&mut reported, 0, 0);
        self.record_lag(&mut reported, &Statistics::default());
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a metric")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

impl ClientContext for KafkaContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let (client, group) = (self.role, self.group.as_str());
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                tracing::error!(target: "librdkafka", client, group, facility, "{message}");
            }
            RDKafkaLogLevel::Warning => {
                tracing::warn!(target: "librdkafka", client, group, facility, "{message}");
            }
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", client, group, facility, "{message}");
            }
            RDKafkaLogLevel::Debug => {
                tracing::debug!(target: "librdkafka", client, group, facility, "{message}");
            }
        }
    }

    fn stats(&self, statistics: Statistics) {
        let up = statistics.brokers.values().any(|broker| broker.state == "UP");
        self.connected.store(up, Ordering::Relaxed);
        if up {
            *self.auth_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.record_metrics(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => self.connected.store(false, Ordering::Relaxed),
            Some(code @ (RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL)) => {
                *self.auth_error.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some((code, reason.to_owned()));
            }
            _ => {}
        }
        // librdkafka retries. A permanent failure is also the result of a call.
        tracing::debug!(target: "librdkafka", client = self.role, group = self.group, %error, "{reason}");
    }
}

/// Requests the metadata of one topic or of all topics. Checks the returned hosts, because they
/// also receive the password.
pub(super) fn fetch_metadata(
    client: &Client<KafkaContext>,
    topic: Option<&str>,
    limit: Duration,
) -> KafkaResult<Metadata> {
    let metadata = client.fetch_metadata(topic, limit)?;
    if let Some(warning) = &client.context().password_warning {
        warning.check(metadata.brokers().iter().map(MetadataBroker::host));
    }
    Ok(metadata)
}

/// Runs a blocking call outside the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(error::internal(operation, error)),
    }
}

/// The context of a client that only sends queries.
impl ConsumerContext for KafkaContext {}

/// A consumer that queries groups and offsets, and reads no messages.
pub(super) type QueryClient = BaseConsumer<KafkaContext>;

/// Serves the pending events of the client, and then calls [`KafkaContext::auth_error_or`].
pub(super) fn auth_error_or(client: &QueryClient, error: Error) -> Error {
    drop(drain_events(client));
    client.context().auth_error_or(error)
}

/// Serves the pending events, and returns the codes of error events.
pub(super) fn drain_events(client: &QueryClient) -> Vec<RDKafkaErrorCode> {
    // A poll without a result may have served an event, such as a log line.
    const MAX_EMPTY_POLLS: usize = 100;
    let (mut empty, mut codes) = (0, Vec::new());
    while empty < MAX_EMPTY_POLLS {
        match client.poll(Duration::ZERO) {
            Some(event) => {
                empty = 0;
                codes.extend(event.err().as_ref().and_then(error::code_of));
            }
            None => empty += 1,
        }
    }
    codes
}

/// Starts a thread that serves the events of a query client until the client is dropped. Unserved events would
/// accumulate while the brokers are unreachable.
pub(super) fn spawn_event_loop(client: &Arc<QueryClient>) -> std::io::Result<()> {
    const POLL_INTERVAL: Duration = Duration::from_secs(1);
    let client = Arc::downgrade(client);
    let thread = std::thread::Builder::new().name("qi-redpanda-req".to_owned());
    let serving = move || {
        while let Some(client) = client.upgrade() {
            drop(drain_events(&client));
            drop(client);
            std::thread::sleep(POLL_INTERVAL);
        }
    };
    thread.spawn(serving).map(drop)
}
