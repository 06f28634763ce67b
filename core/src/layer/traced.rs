//! `Traced`: opens a span for every call and propagates traces through messages.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::{Call, Layer, NoPropagator, Propagator};
use crate::bus::{
    Batch, Headers, Message, MessageBus, PublishOptions, PublishReport, Subscription, TopicName,
};
use crate::record::Dataset;
use crate::{Error, Operation, Port, Result};

/// The maximum number of distinct contexts to which the span of one batch links.
const MAX_CONTEXTS: usize = 64;

/// A layer that opens a span for every call. Spans have the level info, the target `qi_core::layer`, and the field
/// names of OpenTelemetry's conventions for databases and messaging.
///
/// For a publish, the [`Propagator`] adds the span's context to every message through [`PublishOptions`]. A `recv` that
/// returns messages removes these headers and opens a span `process`. A single context of the messages becomes its
/// parent; several contexts become links. [`Batch::span`] returns this span to the consumer, and the span ends with the
/// batch. An idle `recv` opens no span.
#[derive(Debug)]
pub struct Traced {
    backend: &'static str,
    propagator: Arc<dyn Propagator>,
}

impl Traced {
    /// Creates the layer with the backend's name for the spans. Traces end at the bus unless a propagator is set.
    pub fn new(backend: &'static str) -> Self {
        Self { backend, propagator: Arc::new(NoPropagator) }
    }

    /// Sets the propagator that carries traces through messages.
    #[must_use]
    pub fn with_propagator(mut self, propagator: Arc<dyn Propagator>) -> Self {
        self.propagator = propagator;
        self
    }

    fn span(&self, operation: Operation, dataset: Option<Dataset>) -> Span {
        match operation.port() {
            Port::Store => tracing::info_span!(
                target: "qi_core::layer",
                "store",
                otel.name = operation.as_str(),
                otel.kind = "client",
                otel.status_code = Empty,
                db.system.name = system(self.backend),
                db.operation.name = operation.as_str(),
                db.collection.name = dataset.map(Dataset::name),
                "error.type" = Empty,
            ),
            Port::Bus | Port::Subscription => tracing::info_span!(
                target: "qi_core::layer",
                "bus",
                otel.name = operation.as_str(),
                otel.kind = "client",
                otel.status_code = Empty,
                messaging.system = system(self.backend),
                messaging.operation.name = operation.as_str(),
                "messaging.operation.type" = operation_type(operation),
                "error.type" = Empty,
            ),
        }
    }

    fn publish_span(&self, batch: &[Message]) -> Span {
        let topics = Topics::of(batch.iter().map(|message| &message.topic));
        tracing::info_span!(
            target: "qi_core::layer",
            "bus",
            otel.name = %Named("publish", &topics),
            otel.kind = "producer",
            otel.status_code = Empty,
            messaging.system = system(self.backend),
            messaging.operation.name = "publish",
            "messaging.operation.type" = "send",
            messaging.destination.name = topics.only().map(display),
            messaging.batch.message_count = batch.len(),
            "error.type" = Empty,
        )
    }

    /// Opens the span of the consumer's work on a batch. The span is a root span unless the messages carry a context.
    fn process_span(&self, batch: &Batch) -> Span {
        let topics = Topics::of(batch.iter().map(|message| &message.topic));
        tracing::info_span!(
            target: "qi_core::layer",
            parent: None,
            "bus",
            otel.name = %Named("process", &topics),
            otel.kind = "consumer",
            otel.status_code = Empty,
            messaging.system = system(self.backend),
            messaging.operation.name = "process",
            "messaging.operation.type" = "process",
            messaging.destination.name = topics.only().map(display),
            messaging.batch.message_count = batch.len(),
            "error.type" = Empty,
        )
    }

    /// Removes the propagator's headers from the messages. Returns the distinct contexts, at most [`MAX_CONTEXTS`].
    fn take_contexts(&self, batch: &mut Batch) -> Vec<Headers> {
        let names = self.propagator.headers();
        let mut contexts: Vec<Headers> = Vec::new();
        if names.is_empty() {
            return contexts;
        }
        for message in batch.messages_mut() {
            let context = message.headers.split_off(names);
            // Messages of one publish are adjacent, so the search starts at the newest context.
            let known = context.is_empty() || contexts.iter().rev().any(|known| *known == context);
            if !known && contexts.len() < MAX_CONTEXTS {
                contexts.push(context);
            }
        }
        contexts
    }
}

/// Returns the name that OpenTelemetry's conventions have for the backend, or the backend's own name.
fn system(backend: &'static str) -> &'static str {
    match backend {
        "timescale" => "postgresql",
        "redpanda" => "kafka",
        other => other,
    }
}

/// Returns `messaging.operation.type`, if the conventions define it for the operation.
fn operation_type(operation: Operation) -> Option<&'static str> {
    match operation {
        Operation::Publish => Some("send"),
        Operation::Recv => Some("receive"),
        Operation::Commit => Some("settle"),
        _ => None,
    }
}

/// The topics of a batch.
enum Topics<'a> {
    None,
    One(&'a TopicName),
    Several,
}

impl<'a> Topics<'a> {
    fn of(mut topics: impl Iterator<Item = &'a TopicName>) -> Self {
        // The check compares every message, so it runs only if a subscriber records the span.
        if !tracing::span_enabled!(target: "qi_core::layer", tracing::Level::INFO) {
            return Self::None;
        }
        let Some(first) = topics.next() else { return Self::None };
        // Names are usually clones, so comparing the pointers is usually enough.
        let same = |topic: &TopicName| std::ptr::eq(topic.as_str(), first.as_str()) || topic == first;
        if topics.all(same) { Self::One(first) } else { Self::Several }
    }

    fn only(&self) -> Option<&'a TopicName> {
        match self {
            Self::One(topic) => Some(topic),
            Self::None | Self::Several => None,
        }
    }
}

/// The name of a span, for example `publish crypto-prices`.
struct Named<'a>(&'static str, &'a Topics<'a>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1.only() {
            Some(topic) => write!(f, "{} {topic}", self.0),
            None => f.write_str(self.0),
        }
    }
}

fn failed(span: &Span, error: &Error) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", error.code());
}

impl Layer for Traced {
    fn name(&self) -> &'static str {
        "Traced"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        let span = self.span(call.operation, call.dataset);
        if span.is_disabled() {
            return future;
        }
        Box::pin(async move {
            let result = future.instrument(span.clone()).await;
            if let Err(error) = &result {
                failed(&span, error);
            }
            result
        })
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        let span = self.publish_span(batch);
        if span.is_disabled() && self.propagator.headers().is_empty() {
            return bus.publish(batch, options);
        }
        Box::pin(async move {
            let mut options = options.clone();
            self.propagator.inject(&span, &mut options.headers);
            let result = bus.publish(batch, &options).instrument(span.clone()).await;
            match &result {
                Err(error) => failed(&span, error),
                Ok(report) => {
                    let first = report.outcomes().iter().find_map(|outcome| outcome.as_ref().err());
                    if let Some(failure) = first {
                        failed(&span, &failure.error);
                    }
                }
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
            let mut batch = match subscription.recv(max, wait).await {
                Ok(batch) if batch.is_empty() => return Ok(batch),
                Ok(batch) => batch,
                Err(error) => {
                    failed(&self.span(Operation::Recv, None), &error);
                    return Err(error);
                }
            };
            let contexts = self.take_contexts(&mut batch);
            let span = self.process_span(&batch);
            if span.is_disabled() {
                return Ok(batch);
            }
            if !contexts.is_empty() {
                self.propagator.extract(&span, &contexts);
            }
            Ok(batch.with_span(span))
        })
    }
}
