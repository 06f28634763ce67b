//! Fault injection: errors, delays, hangs and lost responses, by operation and seed.
//!
//! ```
//! use qi_core::Operation;
//! use qi_testkit::chaos::{Chaos, Fault, Rule};
//!
//! // A third of all calls has one of three faults. The next `ensure_schema` fails.
//! let chaos = Chaos::seeded(7).everywhere(Rule::new(1.0 / 3.0, [Fault::Error, Fault::Hang, Fault::LostResponse]));
//! chaos.inject_next(Operation::EnsureSchema, Fault::Error);
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use futures::future::BoxFuture;
use qi_core::bus::{Batch, DeliveryError, Message, MessageBus, PublishOptions, PublishReport, Subscription};
use qi_core::layer::{Call, Layer, Layered};
use qi_core::{Error, ErrorKind, Operation, Result};

/// A store with injected faults.
pub type ChaosStore<S> = Layered<S, Chaos>;
/// A bus with injected faults in its calls and in those of its subscriptions.
pub type ChaosBus<B> = Layered<B, Chaos>;

/// The fault of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fault {
    /// The call fails with `Unavailable` and is not executed. A publish may send some messages at the beginning of the
    /// batch. The other messages are `NotSent`.
    Error,
    /// The call starts later, by up to [`Chaos::with_delay`].
    Delay,
    /// The call never returns and is not executed.
    Hang,
    /// The call is executed and its response is lost. The call fails with `Unavailable`; a publish reports `Unknown`
    /// for every message. A `recv` fails before it receives, because a lost response would lose its messages.
    LostResponse,
}

/// The rate of faults and their kinds.
#[derive(Debug, Clone)]
pub struct Rule {
    rate: f64,
    faults: Vec<Fault>,
}

impl Rule {
    /// Creates a rule: a share of calls, from 0 to 1, has one of these faults.
    pub fn new(rate: f64, faults: impl IntoIterator<Item = Fault>) -> Self {
        Self { rate: rate.clamp(0.0, 1.0), faults: faults.into_iter().collect() }
    }

    /// Returns a rule without faults.
    pub fn never() -> Self {
        Self::new(0.0, [])
    }
}

/// A layer that injects faults. The same seed and the same order of calls give the same faults. A clone shares its
/// state, so a test keeps a clone to plan faults and to count them.
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
    /// Creates a layer without faults.
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
        // A panic inside the lock leaves a valid state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the rule of every operation that has no rule by [`Chaos::on`], except `close`.
    #[must_use]
    pub fn everywhere(self, rule: Rule) -> Self {
        self.state().everywhere = rule;
        self
    }

    /// Sets the rule of one operation.
    #[must_use]
    pub fn on(self, operation: Operation, rule: Rule) -> Self {
        self.state().on.insert(operation, rule);
        self
    }

    /// Sets the longest delay of [`Fault::Delay`]. Defaults to 100 ms.
    #[must_use]
    pub fn with_delay(self, delay: Duration) -> Self {
        self.state().delay = delay;
        self
    }

    /// Plans a fault for the next call of an operation. Faults that are already planned come first.
    pub fn inject_next(&self, operation: Operation, fault: Fault) {
        self.state().planned.entry(operation).or_default().push_back(fault);
    }

    /// Enables or disables all faults.
    pub fn set_enabled(&self, enabled: bool) {
        self.state().enabled = enabled;
    }

    /// Returns the number of injected faults.
    pub fn injected(&self) -> u64 {
        self.state().injected.values().sum()
    }

    /// Returns the number of injected faults of one kind in one operation.
    pub fn injected_on(&self, operation: Operation, fault: Fault) -> u64 {
        self.state().injected.get(&(operation, fault)).copied().unwrap_or(0)
    }

    /// Returns the number of calls.
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

    /// Returns the number of messages that a failed publish sends, always less than `len` unless the batch is empty.
    fn sent_prefix(&self, len: usize) -> usize {
        if len == 0 { 0 } else { self.state().rng.usize(..len) }
    }
}

fn failed(operation: Operation, fault: Fault) -> Error {
    let (code, message) = match fault {
        Fault::LostResponse => ("chaos.cut", "injected fault: response lost"),
        _ => ("chaos.error", "injected fault"),
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
                Some((Fault::LostResponse, _)) => match future.await {
                    Ok(_) => Err(failed(operation, Fault::LostResponse)),
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
                    let sent = self.sent_prefix(batch.len());
                    let mut outcomes = bus.publish(&batch[..sent], options).await?.into_outcomes();
                    let error = failed(Operation::Publish, Fault::Error);
                    outcomes.resize_with(batch.len(), || Err(DeliveryError::not_sent(error.clone())));
                    Ok(PublishReport::new(outcomes))
                }
                Some((Fault::LostResponse, _)) => {
                    let _lost = bus.publish(batch, options).await?;
                    let error = failed(Operation::Publish, Fault::LostResponse);
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
                Some((fault @ (Fault::Error | Fault::LostResponse), _)) => {
                    Err(failed(Operation::Recv, fault))
                }
            }
        })
    }
}
