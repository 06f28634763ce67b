//! `Metered`: counts calls and measures their duration.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use futures::future::BoxFuture;
use metrics::{Counter, Gauge, Histogram};
use tokio::time::Instant;

use super::{Call, Layer};
use crate::bus::{Batch, DeliveryState, Message, MessageBus, PublishOptions, PublishReport, Subscription};
use crate::record::Dataset;
use crate::telemetry::{
    BATCH_RECORDS, CALL_DURATION, CALL_ERRORS, CALLS, CALLS_DROPPED, CALLS_IN_FLIGHT, MESSAGES_DELIVERED,
    MESSAGES_FAILED, MESSAGES_RECEIVED,
};
use crate::{Error, ErrorKind, Operation, Result};

/// A layer that counts calls and measures their duration through the `metrics`
/// facade. [`crate::telemetry`] lists the names.
///
/// The first call of an operation registers its metrics. Install the exporter before the first call, because a later
/// exporter does not see metrics that are already registered.
pub struct Metered {
    backend: &'static str,
    /// The metrics of calls without a dataset, by operation.
    operations: Vec<OnceLock<Arc<Handles>>>,
    /// The metrics of calls with a dataset. The list is short, so a linear search is fast.
    datasets: RwLock<Vec<(Operation, &'static str, Arc<Handles>)>>,
}

/// The registered metrics of one operation.
struct Handles {
    /// The dataset's name. Empty for calls without a dataset.
    dataset: &'static str,
    calls: Counter,
    duration: Histogram,
    records: Histogram,
    in_flight: Gauge,
}

impl std::fmt::Debug for Metered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metered").field("backend", &self.backend).finish_non_exhaustive()
    }
}

impl Metered {
    /// Creates the layer with the backend's name for the metrics.
    pub fn new(backend: &'static str) -> Self {
        let operations = Operation::ALL.iter().map(|_| OnceLock::new()).collect();
        Self { backend, operations, datasets: RwLock::default() }
    }

    fn handles(&self, operation: Operation, dataset: Option<Dataset>) -> Arc<Handles> {
        let Some(dataset) = dataset.map(Dataset::name) else {
            return Arc::clone(self.operations[operation.index()].get_or_init(|| {
                if operation == Operation::Publish {
                    self.register_failure_counters();
                }
                Arc::new(self.register(operation, ""))
            }));
        };
        let find = |known: &[(Operation, &'static str, Arc<Handles>)]| {
            let mut found = known.iter().filter(|(of, name, _)| *of == operation && *name == dataset);
            found.next().map(|(.., handles)| Arc::clone(handles))
        };
        if let Some(handles) = find(&self.datasets.read().unwrap_or_else(PoisonError::into_inner)) {
            return handles;
        }
        let mut known = self.datasets.write().unwrap_or_else(PoisonError::into_inner);
        find(&known).unwrap_or_else(|| {
            let handles = Arc::new(self.register(operation, dataset));
            known.push((operation, dataset, Arc::clone(&handles)));
            handles
        })
    }

    fn register(&self, operation: Operation, dataset: &'static str) -> Handles {
        let labels = self.labels(operation, dataset);
        Handles {
            dataset,
            calls: metrics::counter!(CALLS.name, &labels),
            duration: metrics::histogram!(CALL_DURATION.name, &labels),
            records: metrics::histogram!(BATCH_RECORDS.name, &labels),
            in_flight: metrics::gauge!(CALLS_IN_FLIGHT.name, &labels[..2]),
        }
    }

    fn labels(&self, operation: Operation, dataset: &'static str) -> [(&'static str, &'static str); 4] {
        let port = operation.port().as_str();
        [("port", port), ("backend", self.backend), ("operation", operation.as_str()), ("dataset", dataset)]
    }

    /// Starts the counters of failed messages at zero. Prometheus computes no increase for a series whose first value
    /// is 1, so it would miss the first failed message.
    fn register_failure_counters(&self) {
        for state in [DeliveryState::NotSent, DeliveryState::Unknown] {
            for kind in ErrorKind::ALL {
                self.failed_messages(state, kind, 0);
            }
        }
    }

    fn failed_messages(&self, state: DeliveryState, kind: ErrorKind, messages: usize) {
        let labels = [("backend", self.backend), ("state", state.as_str()), ("kind", kind.as_str())];
        metrics::counter!(MESSAGES_FAILED.name, &labels).increment(messages as u64);
    }

    fn begin(&self, call: Call) -> Running<'_> {
        let operation = call.operation;
        let handles = self.handles(operation, call.dataset);
        if let Some(records) = call.records {
            handles.records.record(as_f64(records));
        }
        handles.in_flight.increment(1.0);
        Running { metered: self, operation, handles, since: Instant::now(), ended: false }
    }

    fn note_report(&self, report: &PublishReport) {
        let (mut delivered, mut failed) = (0, Vec::new());
        for outcome in report.outcomes() {
            match outcome {
                Ok(_) => delivered += 1,
                Err(failure) => failed.push((failure.state, failure.error.kind())),
            }
        }
        if delivered > 0 {
            metrics::counter!(MESSAGES_DELIVERED.name, "backend" => self.backend).increment(delivered);
        }
        failed.sort_unstable_by_key(|(state, kind)| (*state == DeliveryState::Unknown, *kind));
        for alike in failed.chunk_by(|one, other| one == other) {
            let (state, kind) = alike[0];
            self.failed_messages(state, kind, alike.len());
        }
    }
}

/// A call in progress. If its future is dropped, the call is counted as dropped.
struct Running<'a> {
    metered: &'a Metered,
    operation: Operation,
    handles: Arc<Handles>,
    since: Instant,
    ended: bool,
}

impl Running<'_> {
    fn end<T>(mut self, result: &Result<T>) {
        self.ended = true;
        self.handles.calls.increment(1);
        self.handles.duration.record(self.since.elapsed());
        if let Err(error) = result {
            self.failed(error);
        }
    }

    fn labels(&self) -> [(&'static str, &'static str); 4] {
        self.metered.labels(self.operation, self.handles.dataset)
    }

    #[cold]
    fn failed(&self, error: &Error) {
        let [port, backend, operation, dataset] = self.labels();
        let labels = [port, backend, operation, dataset, ("kind", error.kind().as_str())];
        metrics::counter!(CALL_ERRORS.name, &labels).increment(1);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.handles.in_flight.decrement(1.0);
        if !self.ended {
            metrics::counter!(CALLS_DROPPED.name, &self.labels()).increment(1);
        }
    }
}

impl Layer for Metered {
    fn name(&self) -> &'static str {
        "Metered"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            let running = self.begin(call);
            let result = future.await;
            running.end(&result);
            result
        })
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        Box::pin(async move {
            let running = self.begin(Call::new(Operation::Publish).with_records(batch.len()));
            let result = bus.publish(batch, options).await;
            running.end(&result);
            if let Ok(report) = &result {
                self.note_report(report);
            }
            result
        })
    }

    fn recv<'a>(
        &'a self,
        subscription: &'a mut dyn Subscription,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(async move {
            let running = self.begin(Call::new(Operation::Recv));
            let result = subscription.recv(max, wait).await;
            running.end(&result);
            if let Ok(batch) = &result
                && !batch.is_empty()
            {
                self.handles(Operation::Recv, None).records.record(as_f64(batch.len()));
                metrics::counter!(MESSAGES_RECEIVED.name, "backend" => self.backend)
                    .increment(batch.len() as u64);
            }
            result
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a batch has far fewer than 2^52 records")]
fn as_f64(records: usize) -> f64 {
    records as f64
}
