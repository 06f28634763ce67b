//! Faults on purpose: errors, delays, hangs and answers that get lost, by operation and seed.
//!
//! ```
//! use qi_core::Operation;
//! use qi_testkit::chaos::{Chaos, Fault, Rule};
//!
//! // A third of all calls goes wrong in one of three ways; the next `ensure_schema` fails for certain.
//! let chaos = Chaos::seeded(7).everywhere(Rule::new(1.0 / 3.0, [Fault::Error, Fault::Hang, Fault::Cut]));
//! chaos.next(Operation::EnsureSchema, Fault::Error);
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use futures::future::BoxFuture;
use qi_core::bus::{Batch, DeliveryError, Message, MessageBus, PublishOptions, PublishReport, Subscription};
use qi_core::layer::{Call, Layer, Layered};
use qi_core::{Error, ErrorKind, Operation, Result};

/// A store whose calls go wrong on purpose.
pub type ChaosStore<S> = Layered<S, Chaos>;
/// A bus whose calls go wrong on purpose, on its subscriptions too.
pub type ChaosBus<B> = Layered<B, Chaos>;

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// It fails with `Unavailable` and does nothing. Of a publish, a part at the beginning may have been sent; the
    /// rest is `NotSent`.
    Error,
    /// It takes longer, up to [`Chaos::with_delay`].
    Delay,
    /// It never answers and does nothing.
    Hang,
    /// It is done, and its answer gets lost: `Unavailable`, or `Unknown` for every message of a publish. A `recv`
    /// is never cut, because the messages would be lost with the answer; it fails before it has received.
    Cut,
}

/// How often which faults happen.
#[derive(Debug, Clone)]
pub struct Rule {
    rate: f64,
    faults: Vec<Fault>,
}

impl Rule {
    /// A share of calls, from 0 to 1, has one of these faults.
    pub fn new(rate: f64, faults: impl IntoIterator<Item = Fault>) -> Self {
        Self { rate: rate.clamp(0.0, 1.0), faults: faults.into_iter().collect() }
    }

    /// Nothing goes wrong.
    pub fn never() -> Self {
        Self::new(0.0, [])
    }
}

/// Decides which calls go wrong, reproducibly for a seed and an order of calls. A clone shares everything, so that
/// a test keeps one to plan faults and to count them.
#[derive(Debug, Clone)]
pub struct Chaos(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    rng: Rng,
    everywhere: Rule,
    on: HashMap<Operation, Rule>,
    planned: HashMap<Operation, VecDeque<Fault>>,
    delay: Duration,
    enabled: bool,
    injected: BTreeMap<(Operation, Fault), u64>,
    calls: u64,
}

impl Chaos {
    /// No faults yet.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: Rng::with_seed(seed),
            everywhere: Rule::never(),
            on: HashMap::new(),
            planned: HashMap::new(),
            delay: Duration::from_millis(100),
            enabled: true,
            injected: BTreeMap::new(),
            calls: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What a panicking test left behind is still a state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This rule for every operation without one of its own, except `close`.
    #[must_use]
    pub fn everywhere(self, rule: Rule) -> Self {
        self.state().everywhere = rule;
        self
    }

    /// This rule for one operation.
    #[must_use]
    pub fn on(self, operation: Operation, rule: Rule) -> Self {
        self.state().on.insert(operation, rule);
        self
    }

    /// The longest delay of [`Fault::Delay`]: 100 ms.
    #[must_use]
    pub fn with_delay(self, delay: Duration) -> Self {
        self.state().delay = delay;
        self
    }

    /// Plans a fault for the next call of an operation, behind those that are planned already.
    pub fn next(&self, operation: Operation, fault: Fault) {
        self.state().planned.entry(operation).or_default().push_back(fault);
    }

    /// Lets everything pass from now on, or stops doing so.
    pub fn enable(&self, enabled: bool) {
        self.state().enabled = enabled;
    }

    /// How many faults there were so far.
    pub fn injected(&self) -> u64 {
        self.state().injected.values().sum()
    }

    /// How many faults of this kind this operation had so far.
    pub fn injected_on(&self, operation: Operation, fault: Fault) -> u64 {
        self.state().injected.get(&(operation, fault)).copied().unwrap_or(0)
    }

    /// How many calls there were so far.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    fn draw(&self, operation: Operation) -> Option<(Fault, Duration)> {
        let state = &mut *self.state();
        state.calls += 1;
        if !state.enabled {
            return None;
        }
        let planned = state.planned.get_mut(&operation).and_then(VecDeque::pop_front);
        let fault = planned.or_else(|| {
            let closing = matches!(
                operation,
                Operation::StoreClose | Operation::BusClose | Operation::SubscriptionClose
            );
            let rule = match state.on.get(&operation) {
                Some(rule) => rule,
                None if closing => return None,
                None => &state.everywhere,
            };
            (state.rng.f64() < rule.rate).then(|| state.rng.choice(&rule.faults).copied())?
        })?;
        *state.injected.entry((operation, fault)).or_default() += 1;
        Some((fault, state.delay.mul_f64(state.rng.f64())))
    }

    /// How much of a batch that fails is sent: anything but all of it.
    fn beginning(&self, len: usize) -> usize {
        if len == 0 { 0 } else { self.state().rng.usize(..len) }
    }
}

fn failed(operation: Operation, fault: Fault) -> Error {
    let (code, message) = match fault {
        Fault::Cut => ("chaos.cut", "the answer got lost"),
        _ => ("chaos.error", "a fault on purpose"),
    };
    Error::new(ErrorKind::Unavailable, code, operation).with_message(message)
}

impl Layer for Chaos {
    fn name(&self) -> &'static str {
        "Chaos"
    }

    fn call<'a, T: Send + 'a>(
        &'a self,
        Call { operation, .. }: Call,
        future: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            match self.draw(operation) {
                None => future.await,
                Some((Fault::Error, _)) => Err(failed(operation, Fault::Error)),
                Some((Fault::Hang, _)) => std::future::pending().await,
                Some((Fault::Delay, delay)) => {
                    tokio::time::sleep(delay).await;
                    future.await
                }
                Some((Fault::Cut, _)) => match future.await {
                    Ok(_) => Err(failed(operation, Fault::Cut)),
                    Err(error) => Err(error),
                },
            }
        })
    }

    fn publish<'a>(
        &'a self,
        bus: &'a dyn MessageBus,
        batch: &'a [Message],
        options: &'a PublishOptions,
    ) -> BoxFuture<'a, Result<PublishReport>> {
        Box::pin(async move {
            match self.draw(Operation::Publish) {
                None => bus.publish(batch, options).await,
                Some((Fault::Hang, _)) => std::future::pending().await,
                Some((Fault::Delay, delay)) => {
                    tokio::time::sleep(delay).await;
                    bus.publish(batch, options).await
                }
                Some((Fault::Error, _)) => {
                    let sent = self.beginning(batch.len());
                    let mut outcomes = bus.publish(&batch[..sent], options).await?.into_outcomes();
                    let error = failed(Operation::Publish, Fault::Error);
                    outcomes.resize_with(batch.len(), || Err(DeliveryError::not_sent(error.clone())));
                    Ok(PublishReport::new(outcomes))
                }
                Some((Fault::Cut, _)) => {
                    let _lost = bus.publish(batch, options).await?;
                    let error = failed(Operation::Publish, Fault::Cut);
                    Ok(PublishReport::all_unknown(batch.len(), &error))
                }
            }
        })
    }

    fn recv<'a>(
        &'a self,
        subscription: &'a mut dyn Subscription,
        max: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Result<Batch>> {
        Box::pin(async move {
            match self.draw(Operation::Recv) {
                None => subscription.recv(max, wait).await,
                Some((Fault::Hang, _)) => std::future::pending().await,
                Some((Fault::Delay, delay)) => {
                    tokio::time::sleep(delay).await;
                    subscription.recv(max, wait).await
                }
                Some((fault @ (Fault::Error | Fault::Cut), _)) => Err(failed(Operation::Recv, fault)),
            }
        })
    }
}
