//! [`Maintenance`]: an agent that materializes bars.

use std::time::Duration;

use tokio::time::Instant;

use crate::agent::{Agent, AgentContext};
use crate::store::{MaintainRequest, MaintenanceReport};
use crate::telemetry::{
    MAINTENANCE_DURATION, MAINTENANCE_REBUILT, MAINTENANCE_STALE, MAINTENANCE_TICKS, MAINTENANCE_WATERMARK,
};
use crate::{Backoff, Error, PriceStore, Result, RetryAdvice, Timestamp, async_trait};

/// The minimum of the interval between calls.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// An agent that calls [`PriceStore::maintain`] on a schedule. One agent for each store is enough; further agents are
/// safe.
///
/// - While steps are left and the last call made progress, the next call follows at once. Otherwise, it follows after
///   the interval.
/// - A retryable error is retried with backoff, without a limit. Meanwhile the agent is degraded, and the log has one
///   warning for each outage. Another error ends the agent with this error.
/// - A stop drops the call in progress. [`PriceStore::maintain`] is safe to kill at any point.
/// - A store that materializes no bars is called too, because `qi migrate` may switch materialization on later.
///
/// The agent sends a heartbeat only after a call. A watchdog must therefore wait longer than the interval plus
/// `retry.max_elapsed` plus `timeout.bulk`: at least 12 minutes with the default limits.
/// [`guide::materialized_bars`](crate::guide::materialized_bars) describes the steps, and the metrics of the agent are
/// in [`guide::observability`](crate::guide::observability).
///
/// ```
/// use std::sync::Arc;
/// use qi_core::agent::{AgentRuntime, AgentSpec};
/// use qi_core::{Maintenance, PriceStore, Result};
///
/// async fn maintain(store: Arc<dyn PriceStore>) -> Result<()> {
///     let spec = AgentSpec::new("maintenance", move || Maintenance::new(store.clone()));
///     let runtime = AgentRuntime::builder().agent(spec).build()?;
///     runtime.run_until(async { drop(tokio::signal::ctrl_c().await) }).await.result()
/// }
/// ```
#[derive(Debug)]
pub struct Maintenance<S> {
    store: S,
    interval: Duration,
    request: MaintainRequest,
    backoff: Backoff,
    /// The watermark of the last report.
    watermark: Option<Timestamp>,
}

impl<S: PriceStore> Maintenance<S> {
    /// Creates an agent that maintains `store` every minute. The delays after retryable errors are 100 ms, doubling up
    /// to 10 s, with a jitter of 0.5.
    pub fn new(store: S) -> Self {
        Self {
            store,
            interval: Duration::from_mins(1),
            request: MaintainRequest::default(),
            backoff: Backoff::new(Duration::from_millis(100), Duration::from_secs(10)).with_jitter(0.5),
            watermark: None,
        }
    }

    /// Sets the delay before the next call if no step is left, or if the call made no progress. Defaults to 1 minute. A
    /// value below 1 second counts as 1 second.
    #[must_use]
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = interval.max(MIN_INTERVAL);
        self
    }

    /// Sets the time after which a call starts no further step; see [`MaintainRequest::budget`]. Defaults to one
    /// minute.
    #[must_use]
    pub fn with_budget(mut self, budget: Duration) -> Self {
        self.request = self.request.with_budget(budget);
        self
    }

    /// Sets the delays after retryable errors.
    #[must_use]
    pub fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Returns the delay before the next call if no step is left, or if the call made no progress.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Returns the time after which a call starts no further step.
    pub fn budget(&self) -> Duration {
        self.request.budget
    }

    /// Returns the delays after retryable errors.
    pub fn backoff(&self) -> Backoff {
        self.backoff
    }

    /// Records the metrics of a successful call.
    fn measure(backend: &'static str, report: &MaintenanceReport) {
        metrics::counter!(MAINTENANCE_TICKS.name, "backend" => backend).increment(report.ticks);
        metrics::counter!(MAINTENANCE_REBUILT.name, "backend" => backend).increment(report.rebuilt);
        let watermark = report.watermark.map_or(f64::NAN, unix_time);
        metrics::gauge!(MAINTENANCE_WATERMARK.name, "backend" => backend).set(watermark);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 marks")]
        metrics::gauge!(MAINTENANCE_STALE.name, "backend" => backend).set(report.stale as f64);
    }

    fn retry_delay(&self, failures: u32, error: &Error) -> Duration {
        let delay = self.backoff.delay(failures, fastrand::f64());
        if let RetryAdvice::After(min) = error.retry() { delay.max(min) } else { delay }
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds need no more than microseconds of this century")]
fn unix_time(ts: Timestamp) -> f64 {
    ts.as_micros() as f64 / 1e6
}

#[async_trait]
impl<S: PriceStore> Agent for Maintenance<S> {
    async fn run(&mut self, cx: &AgentContext) -> Result<()> {
        let backend = self.store.info().backend;
        let mut failures = 0;
        let mut has_report = false;
        let first_call = cx.now();
        loop {
            let began = Instant::now();
            let Some(result) = cx.until_cancelled(self.store.maintain(&self.request)).await else {
                return Ok(());
            };
            cx.heartbeat();
            metrics::histogram!(MAINTENANCE_DURATION.name, "backend" => backend)
                .record(began.elapsed().as_secs_f64());
            let delay = match result {
                Ok(report) => {
                    let made_progress = report.made_progress(self.watermark);
                    self.watermark = report.watermark;
                    Self::measure(backend, &report);
                    if report.watermark.is_none() && !has_report {
                        tracing::info!(backend, "the store materializes no bars");
                    }
                    has_report = true;
                    if std::mem::take(&mut failures) > 0 {
                        cx.healthy();
                    }
                    if made_progress && !report.is_complete() {
                        continue;
                    }
                    self.interval
                }
                Err(error) if error.retry().is_retryable() => {
                    if !has_report {
                        // The watermark is not known. It is earlier than this time, so its age grows.
                        metrics::gauge!(MAINTENANCE_WATERMARK.name, "backend" => backend)
                            .set(unix_time(first_call));
                    }
                    if failures == 0 {
                        tracing::warn!(backend, error = %error.report(), "maintenance failed and is retried");
                    }
                    failures += 1;
                    cx.degraded(format_args!("maintain: {}", error.code()));
                    self.retry_delay(failures, &error)
                }
                Err(error) => return Err(error),
            };
            if cx.sleep(delay).await.is_none() {
                return Ok(());
            }
        }
    }
}
