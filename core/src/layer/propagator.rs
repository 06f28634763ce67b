//! The interface to a tracing system.

use std::fmt::Debug;

use tracing::Span;

use crate::bus::{HeaderName, Headers};

/// A propagator that carries the context of a trace in message headers. `qi-core` depends on no tracing system.
/// `qi-adapters` has a propagator for OpenTelemetry behind the feature `opentelemetry`.
///
/// The headers named by [`Propagator::headers`] belong to the propagator. [`super::Traced`] removes them from received
/// messages, so the consumer sees only the producer's headers.
pub trait Propagator: Debug + Send + Sync + 'static {
    /// Returns the names of the headers that the propagator writes, for example `traceparent`. If the list is empty,
    /// received messages are not searched.
    fn headers(&self) -> &[HeaderName];

    /// Adds the context of `span` to `headers`, if the span has a context.
    fn inject(&self, span: &Span, headers: &mut Headers);

    /// Connects `span` to the traces of received messages. A single context becomes the span's parent; several contexts become links. `contexts`
    /// has the distinct headers of this propagator in the batch, at least one. The span has not been entered yet.
    fn extract(&self, span: &Span, contexts: &[Headers]);
}

/// A propagator that writes and reads no headers.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPropagator;

impl Propagator for NoPropagator {
    fn headers(&self) -> &[HeaderName] {
        &[]
    }

    fn inject(&self, _span: &Span, _headers: &mut Headers) {}

    fn extract(&self, _span: &Span, _contexts: &[Headers]) {}
}
