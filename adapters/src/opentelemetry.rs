//! OpenTelemetry context in message headers. It lets a trace cross the bus.
//!
//! The program installs `tracing-opentelemetry` itself and passes the propagator to the configuration:
//!
//! ```
//! use std::sync::Arc;
//! use opentelemetry_sdk::propagation::TraceContextPropagator;
//! use qi_adapters::{Config, opentelemetry::OpenTelemetryPropagator};
//!
//! let w3c = OpenTelemetryPropagator::new(TraceContextPropagator::new())?;
//! let config = Config::builder().environment().propagator(Arc::new(w3c)).build()?;
//! # drop(config);
//! # Ok::<(), qi_core::Error>(())
//! ```

/// The crate of the trait `TextMapPropagator`, which [`OpenTelemetryPropagator`] requires.
pub use ::opentelemetry as driver;
use bytes::Bytes;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use qi_core::Result;
use qi_core::bus::{HeaderName, Headers};
use qi_core::layer::Propagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Propagates the context of `tracing-opentelemetry` spans with any OpenTelemetry propagator. `TraceContextPropagator`
/// uses the headers `traceparent` and `tracestate`.
///
/// A batch with a single remote context continues its trace. A batch with several remote contexts is linked
/// to each of them.
#[derive(Debug)]
pub struct OpenTelemetryPropagator<P> {
    inner: P,
    headers: Vec<HeaderName>,
}

impl<P: TextMapPropagator> OpenTelemetryPropagator<P> {
    /// Creates a propagator that uses the header names of `inner`.
    ///
    /// # Errors
    /// `InvalidInput` if one of the names is not a valid header name.
    pub fn new(inner: P) -> Result<Self> {
        let headers = inner.fields().map(HeaderName::new).collect::<Result<_>>()?;
        Ok(Self { inner, headers })
    }
}

impl<P: TextMapPropagator + Send + Sync + 'static> Propagator for OpenTelemetryPropagator<P> {
    fn headers(&self) -> &[HeaderName] {
        &self.headers
    }

    fn inject(&self, span: &Span, headers: &mut Headers) {
        let mut carrier = Writer { known: &self.headers, headers };
        self.inner.inject_context(&span.context(), &mut carrier);
    }

    fn extract(&self, span: &Span, contexts: &[Headers]) {
        let remote =
            contexts.iter().map(|headers| self.inner.extract(&Reader { known: &self.headers, headers }));
        let mut remote = remote.filter(|context| context.span().span_context().is_valid());
        match (remote.next(), remote.next()) {
            (None, _) => {}
            (Some(only), None) => {
                // `set_parent` fails for a span that no subscriber collects. Such a span needs no parent.
                let _not_collected = span.set_parent(only);
            }
            (Some(first), Some(second)) => {
                for context in [first, second].into_iter().chain(remote) {
                    span.add_link(context.span().span_context().clone());
                }
            }
        }
    }
}

struct Writer<'a> {
    known: &'a [HeaderName],
    headers: &'a mut Headers,
}

impl Injector for Writer<'_> {
    fn set(&mut self, key: &str, value: String) {
        // An empty `tracestate` carries no information.
        if let Some(name) = self.known.iter().find(|name| name.as_str() == key && !value.is_empty()) {
            self.headers.push(name.clone(), Bytes::from(value));
        }
    }
}

struct Reader<'a> {
    known: &'a [HeaderName],
    headers: &'a Headers,
}

impl Extractor for Reader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.headers.get(key).and_then(|value| std::str::from_utf8(value).ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.known.iter().map(HeaderName::as_str).collect()
    }
}
