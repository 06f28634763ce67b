//! `Traced`: a span for every call, and traces that cross the bus.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::{Intercept, NoPropagator, Propagator};
use crate::bus::{
    Batch, Headers, Message, MessageBus, PublishOptions, PublishReport, Subscription, TopicName,
};
use crate::{Error, Operation, Port, Result};

/// How many different contexts of one batch are linked: a batch of a thousand traces is not one story.
const MAX_CONTEXTS: usize = 64;

/// Opens a span around every call, level info, target `qi_core::layer`, with the field names of OpenTelemetry's
/// conventions for databases and messaging.
///
/// A publish hands its context to the [`Propagator`], which adds it to every message through
/// [`PublishOptions`]. A `recv` that finds messages removes it and opens a span `process` that goes on with that
/// trace, or links to all of them if there are several: [`Batch::span`] gives it to the consumer, and it ends with
/// the batch. Waiting in `recv` opens none.
#[derive(Debug)]
pub struct Traced {
    backend: &'static str,
    propagator: Arc<dyn Propagator>,
}

impl Traced {
    /// Spans for the backend of this word; traces end at the bus.
    pub fn new(backend: &'static str) -> Self {
        Self { backend, propagator: Arc::new(NoPropagator) }
    }

    /// With traces that cross the bus.
    #[must_use]
    pub fn with_propagator(mut self, propagator: Arc<dyn Propagator>) -> Self {
        self.propagator = propagator;
        self
    }

    fn span(&self, operation: Operation) -> Span {
        match operation.port() {
            Port::Store => tracing::info_span!(
                target: "qi_core::layer",
                "store",
                otel.name = operation.as_str(),
                otel.kind = "client",
                otel.status_code = Empty,
                db.system.name = system(self.backend),
                db.operation.name = operation.as_str(),
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

    /// What the consumer does with a batch: a root of its own, unless the messages say where they come from.
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

    /// Takes the propagator's headers out of the messages, and gives the different ones, up to a bound.
    fn take_contexts(&self, batch: &mut Batch) -> Vec<Headers> {
        let names = self.propagator.headers();
        let mut contexts: Vec<Headers> = Vec::new();
        if names.is_empty() {
            return contexts;
        }
        for message in batch.messages_mut() {
            let context = message.headers.split_off(names);
            // Neighbours of one publish come one after the other.
            let known = context.is_empty() || contexts.iter().rev().any(|known| *known == context);
            if !known && contexts.len() < MAX_CONTEXTS {
                contexts.push(context);
            }
        }
        contexts
    }
}

/// The word of OpenTelemetry's conventions for a backend, where it has one.
fn system(backend: &'static str) -> &'static str {
    match backend {
        "timescale" => "postgresql",
        "redpanda" => "kafka",
        other => other,
    }
}

/// `messaging.operation.type`, where the conventions have one.
fn operation_type(operation: Operation) -> Option<&'static str> {
    match operation {
        Operation::Publish => Some("send"),
        Operation::Recv => Some("receive"),
        Operation::Commit => Some("settle"),
        _ => None,
    }
}

/// The topics of a batch: a name if it is one.
enum Topics<'a> {
    None,
    One(&'a TopicName),
    Several,
}

impl<'a> Topics<'a> {
    fn of(mut topics: impl Iterator<Item = &'a TopicName>) -> Self {
        // Looking at a thousand messages is worth it only where somebody takes the span.
        if !tracing::span_enabled!(target: "qi_core::layer", tracing::Level::INFO) {
            return Self::None;
        }
        let Some(first) = topics.next() else { return Self::None };
        // Mostly they are clones of one name.
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

/// `publish crypto-prices`
struct Named<'a>(&'static str, &'a Topics<'a>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1.only() {
            Some(topic) => write!(f, "{} {topic}", self.0),
            None => f.write_str(self.0),
        }
    }
}

fn note<T>(span: &Span, result: &Result<T>) {
    if let Err(error) = result {
        failed(span, error);
    }
}

fn failed(span: &Span, error: &Error) {
    span.record("otel.status_code", "ERROR");
    span.record("error.type", error.code());
}

impl Intercept for Traced {
    fn name(&self) -> &'static str {
        "Traced"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        attempt: impl Fn() -> BoxFuture<'a, Result<T>> + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        let span = self.span(operation);
        if span.is_disabled() {
            return attempt();
        }
        Box::pin(async move {
            let result = attempt().instrument(span.clone()).await;
            note(&span, &result);
            result
        })
    }

    fn call_mut<'a, A: Sync + ?Sized, T: Send + 'a>(
        &'a self,
        operation: Operation,
        subscription: &'a mut dyn Subscription,
        arguments: &'a A,
        attempt: for<'c> fn(&'c mut dyn Subscription, &'c A) -> BoxFuture<'c, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        let span = self.span(operation);
        if span.is_disabled() {
            return attempt(subscription, arguments);
        }
        Box::pin(async move {
            let result = attempt(subscription, arguments).instrument(span.clone()).await;
            note(&span, &result);
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
                    failed(&self.span(Operation::Recv), &error);
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
