//! Where a trace leaves the process, and where it comes in again.

use std::fmt::Debug;

use tracing::Span;

use crate::bus::{HeaderName, Headers};

/// Carries the context of a trace in the headers of messages. Core knows no tracing system; one for OpenTelemetry
/// stands in `qi-adapters` behind the feature `opentelemetry`.
///
/// Headers of the names in [`Propagator::headers`] belong to it: [`super::Traced`] removes them from what is
/// received, so that a consumer sees the headers that the producer wrote.
pub trait Propagator: Debug + Send + Sync + 'static {
    /// The names of the headers that it writes: `traceparent`, `tracestate`. None, and nothing is touched.
    fn headers(&self) -> &[HeaderName];

    /// Adds the context of `span` to `headers`, or nothing if it has none.
    fn inject(&self, span: &Span, headers: &mut Headers);

    /// Makes `span` go on from where the messages come from. `contexts` are the different headers of this
    /// propagator that the batch held, at least one: one is the parent, several are links. `span` has not been
    /// entered yet.
    fn extract(&self, span: &Span, contexts: &[Headers]);
}

/// Carries nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPropagator;

impl Propagator for NoPropagator {
    fn headers(&self) -> &[HeaderName] {
        &[]
    }

    fn inject(&self, _span: &Span, _headers: &mut Headers) {}

    fn extract(&self, _span: &Span, _contexts: &[Headers]) {}
}
