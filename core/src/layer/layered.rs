//! The `Layer` trait, and `Layered`, a port with a layer.

use std::fmt::{self, Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::bus::{Batch, Message, MessageBus, PublishOptions, PublishReport, Subscription};
use crate::record::Dataset;
use crate::{Operation, Result};

/// A call of a port, as a [`Layer`] sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// The method that was called.
    pub operation: Operation,
    /// The dataset of a store call. None for calls without a dataset.
    pub dataset: Option<Dataset>,
    /// The number of records in an insert. None for other calls.
    pub records: Option<usize>,
}

impl Call {
    /// Creates a call without records.
    pub fn new(operation: Operation) -> Self {
        Self { operation, dataset: None, records: None }
    }

    /// Sets the dataset.
    #[must_use]
    pub fn with_dataset(mut self, dataset: Dataset) -> Self {
        self.dataset = Some(dataset);
        self
    }

    /// Sets the number of records.
    #[must_use]
    pub fn with_records(mut self, records: usize) -> Self {
        self.records = Some(records);
        self
    }
}

/// Behaviour that is added to every call of a store or a bus.
///
/// A layer receives each call as a future. The future does nothing until it is polled, so the layer can delay the call,
/// reject it, limit its time or observe its result. Only [`name`](Layer::name) is required; the
/// other methods forward by default.
///
/// [`Layered`] applies a layer to a port. [`guide::layers`](crate::guide::layers) shows how to write a layer.
pub trait Layer: Debug + Send + Sync + 'static {
    /// Returns the name for `Display` output, for example `Timeout`.
    fn name(&self) -> &'static str;

    /// Handles any call except publish and receive.
    fn call<'a, T: Send + 'a>(
        &'a self,
        call: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        let _ = call;
        future
    }

    /// Handles a publish. The report has an outcome for each message, so a failed message is not an error of the call.
    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        bus.publish(batch, options)
    }

    /// Handles a receive. An empty batch after `wait` is a success, because the subscription was idle.
    fn recv<'a>(
        &'a self,
        subscription: &'a mut dyn Subscription,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        subscription.recv(max, wait)
    }
}

/// A port with a layer around every call.
///
/// `Layered` implements `PriceStore`, `MessageBus` and `Subscription` where `P` does. The subscriptions of a layered
/// bus have the same layer.
#[derive(Debug)]
pub struct Layered<P, L> {
    pub(super) inner: P,
    pub(super) layer: Arc<L>,
}

impl<P, L: Layer> Layered<P, L> {
    /// Applies a layer to a port.
    pub fn new(inner: P, layer: L) -> Self {
        Self { inner, layer: Arc::new(layer) }
    }

    /// Returns the wrapped port.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    /// Returns the layer.
    pub fn layer(&self) -> &L {
        &self.layer
    }

    pub(super) fn wrap(&self, subscription: Box<dyn Subscription>) -> Box<dyn Subscription> {
        Box::new(Layered { inner: subscription, layer: Arc::clone(&self.layer) })
    }
}

impl<P: Display, L: Layer> Display for Layered<P, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.layer.name(), self.inner)
    }
}
