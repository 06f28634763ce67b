//! Wrappers over any store and any bus: each is one policy, in one file, over one forwarding layer.
//!
//! [`Layered`] forwards every method of a port once and hands the call to an [`Intercept`] with its
//! [`Operation`]. A wrapper is an ordinary implementation of the port, and runs the same contract suite as what
//! it wraps. [`Wrappers`] composes them in the one order that is right: a time limit for every attempt, the
//! attempts around it, and around those what looks on.
//!
//! ```
//! use qi_core::layer::{Layered, Retry, RetryPolicy, Timeout, TimeoutPolicy};
//! # fn wrap(store: std::sync::Arc<dyn qi_core::PriceStore>) -> qi_core::Result<()> {
//! let timed = Layered::new(store, Timeout::new(TimeoutPolicy::default())?);
//! let store = Layered::new(timed, Retry::new(RetryPolicy::default())?);
//! assert!(store.to_string().starts_with("Retry(Timeout("));
//! # Ok(())
//! # }
//! ```

mod bus;
mod circuit_breaker;
mod limit;
mod metered;
mod propagator;
mod retry;
mod stack;
mod store;
mod subscription;
mod timeout;
mod traced;

use std::fmt::{self, Debug, Display};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::bus::{Batch, BusInfo, Message, MessageBus, PublishOptions, PublishReport, Subscription};
use crate::{Operation, Result};

pub use circuit_breaker::{CircuitBreaker, CircuitBreakerPolicy, CircuitState};
pub use limit::{Limit, LimitPolicy};
pub use metered::Metered;
pub use propagator::{NoPropagator, Propagator};
pub use retry::{Retry, RetryPolicy};
pub use stack::Wrappers;
pub use subscription::LayeredSubscription;
pub use timeout::{Timeout, TimeoutPolicy};
pub use traced::Traced;

/// What stands for the backend in metrics where a policy was not told its word.
const UNKNOWN: &str = "unknown";

/// A policy around the calls of a port.
///
/// `call` sees every call that borrows the port, `call_mut` those of a subscription. What differs by nature has a
/// method of its own: `publish` answers for every message, and waiting in `recv` is no fault. A method that is
/// not overridden hands on the call as it is.
pub trait Intercept: Debug + Send + Sync + 'static {
    /// The name that Display shows: `Retry`.
    fn name(&self) -> &'static str;

    /// Checks the policy against the bus that it is to wrap.
    ///
    /// # Errors
    /// `Config` if they do not fit.
    fn check_bus(&self, info: &BusInfo) -> Result<()> {
        let _ = info;
        Ok(())
    }

    /// Told how many records a write is about to carry, before its `call`. For those who count.
    fn records(&self, operation: Operation, records: usize) {
        let _ = (operation, records);
    }

    /// A call that can be made any number of times.
    fn call<'a, T: Send + 'a>(
        &'a self,
        operation: Operation,
        attempt: impl Fn() -> BoxFuture<'a, Result<T>> + Send + Sync + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        let _ = operation;
        attempt()
    }

    /// A call of a subscription. The arguments come beside the function, because a closure that captured them
    /// could not be called again for another borrow of the subscription.
    fn call_mut<'a, A: Sync + ?Sized, T: Send + 'a>(
        &'a self,
        operation: Operation,
        subscription: &'a mut dyn Subscription,
        arguments: &'a A,
        attempt: for<'c> fn(&'c mut dyn Subscription, &'c A) -> BoxFuture<'c, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        let _ = operation;
        attempt(subscription, arguments)
    }

    /// A publish: a report for every message, of which only some may be sent again.
    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        bus.publish(batch, options)
    }

    /// A receive: the loop around it is its retry, and an empty batch after `wait` is no fault.
    fn recv<'a>(
        &'a self,
        subscription: &'a mut dyn Subscription,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        subscription.recv(max, wait)
    }
}

/// A port with a policy around every call. It implements `PriceStore` where `P` does, and `MessageBus` where `P`
/// does; the subscriptions of a wrapped bus are wrapped too.
#[derive(Debug)]
pub struct Layered<P, X> {
    inner: P,
    layer: Arc<X>,
}

impl<P, X: Intercept> Layered<P, X> {
    /// Wraps a port. A bus is better wrapped by [`Layered::around_bus`], which checks that the policy fits it.
    pub fn new(inner: P, layer: X) -> Self {
        Self { inner, layer: Arc::new(layer) }
    }

    /// Wraps a bus.
    ///
    /// # Errors
    /// `Config` if the policy does not fit the bus: a time limit that is shorter than a delivery may take.
    pub fn around_bus(inner: P, layer: X) -> Result<Self>
    where
        P: MessageBus,
    {
        layer.check_bus(&inner.info())?;
        Ok(Self::new(inner, layer))
    }

    /// What is wrapped.
    pub fn inner(&self) -> &P {
        &self.inner
    }

    /// The policy.
    pub fn layer(&self) -> &X {
        &self.layer
    }
}

impl<P: Display, X: Intercept> Display for Layered<P, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.layer.name(), self.inner)
    }
}

/// The methods of a port that borrow it and at most one argument, each handed to the policy with its operation. One
/// that is marked `records` tells the policy how many it carries.
macro_rules! through {
    ($($method:ident($($argument:ident: $type:ty $(, $records:ident)?)?) -> $output:ty = $operation:ident;)*) => {$(
        through! {@ $method($($argument: $type $(, $records)?)?) -> $output = $operation }
    )*};
    (@ $method:ident() -> $output:ty = $operation:ident) => {
        fn $method<'a, 'f>(&'a self) -> BoxFuture<'f, Result<$output>>
        where
            'a: 'f,
            Self: 'f,
        {
            self.layer.call(Operation::$operation, || self.inner.$method())
        }
    };
    (@ $method:ident($argument:ident: $type:ty $(, $records:ident)?) -> $output:ty = $operation:ident) => {
        fn $method<'a, 'b, 'f>(&'a self, $argument: &'b $type) -> BoxFuture<'f, Result<$output>>
        where
            'a: 'f,
            'b: 'f,
            Self: 'f,
        {
            $(self.layer.$records(Operation::$operation, $argument.len());)?
            self.layer.call(Operation::$operation, || self.inner.$method($argument))
        }
    };
}
use through;
