//! A storm over a bus under the full stack: nothing is lost, and what is there twice was counted.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use qi_core::bus::{
    DeliveryState, GroupId, Message, MessageBus, PublishOptions, Subscribe, Subscription, TopicName,
};
use qi_core::layer::{CircuitBreakerConfig, LayerStack, RetryConfig, TimeoutConfig};
use qi_core::{Backoff, Operation};

use super::{Verdict, ensure};
use crate::chaos::{Chaos, ChaosBus, Fault, Rule};

/// How many messages one publish carries.
const BATCH: usize = 100;
/// How many keys there are.
const KEYS: usize = 50;
/// How long one receive waits.
const WAIT: Duration = Duration::from_millis(200);
/// So many receives in a row without a message, and no more come.
const QUIET: usize = 5;

/// What a storm did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Storm {
    /// Faults that were injected.
    pub faults: u64,
    /// Answers that said of a message that it may be in the log; the caller sent it again.
    pub unknown: u64,
    /// Copies in the log beyond the first of each message.
    pub doubled: u64,
}

impl fmt::Display for Storm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, unknown, doubled } = self;
        write!(
            f,
            "{faults} faults, {unknown} unknown messages sent again, {doubled} copies of them in the log"
        )
    }
}

/// Publishes `messages` to `topic` and reads them as a group, while a third of all calls fails, hangs, or is done and
/// loses its answer. The stack tries 20 times and its circuit tolerates it; what it cannot know, this sends again and
/// counts, as a caller must.
///
/// A publish that hangs is cut off after twice the bus's delivery timeout and `limit`, any other call after `limit`:
/// on real time both should be short.
///
/// # Errors
/// A message that is lost, or that is there more often than it was sent again because its fate was unknown.
pub async fn storm(
    bus: Arc<dyn MessageBus>,
    topic: &TopicName,
    group: GroupId,
    messages: usize,
    seed: u64,
    limit: Duration,
) -> Verdict<Storm> {
    let third = |faults: &[Fault]| Rule::new(1.0 / 3.0, faults.iter().copied());
    // A subscribe whose answer gets lost leaves a member behind until its session passes.
    let chaos = Chaos::seeded(seed)
        .everywhere(third(&[Fault::Error, Fault::Hang, Fault::Cut]))
        .on(Operation::Subscribe, third(&[Fault::Error]));
    let retry = RetryConfig::default()
        .with_max_attempts(20)
        .with_backoff(Backoff::new(Duration::ZERO, Duration::ZERO));
    let stack = LayerStack::default()
        .with_retry(retry.with_max_elapsed(Duration::from_hours(1)).with_seed(seed))
        .with_circuit_breaker(CircuitBreakerConfig::default().with_failure_threshold(100))
        .with_timeout(TimeoutConfig::default().with_call(limit))
        .wrap_bus(ChaosBus::new(bus, chaos.clone()));

    let mut unknown: HashMap<usize, u64> = HashMap::new();
    let all: Vec<usize> = (0..messages).collect();
    for part in all.chunks(BATCH) {
        send_all(&*stack, topic, part.to_vec(), &mut unknown).await?;
    }
    let mut reader = stack.subscribe(Subscribe::new(group, [topic.clone()])?).await?;
    let found = read_all(&mut *reader, messages).await?;
    reader.close().await?;

    let mut storm = Storm { faults: chaos.injected(), unknown: unknown.values().sum(), doubled: 0 };
    for n in all {
        let copies = found.get(&n).map_or(0, BTreeSet::len) as u64;
        let most = 1 + unknown.get(&n).copied().unwrap_or(0);
        ensure!(copies > 0, "message {n} is lost");
        ensure!(copies <= most, "message {n} is there {copies} times, {} of them unasked", copies - most);
        storm.doubled += copies - 1;
    }
    Ok(storm)
}

/// Sends until every message is acknowledged, and counts how often the fate of each was unknown.
async fn send_all(
    bus: &dyn MessageBus,
    topic: &TopicName,
    mut left: Vec<usize>,
    unknown: &mut HashMap<usize, u64>,
) -> Verdict {
    while !left.is_empty() {
        let message = |n: &usize| {
            Message::new(topic.clone(), n.to_string()).with_key(format!("key {}", n % KEYS).into_bytes())
        };
        let batch: Vec<_> = left.iter().map(message).collect();
        let outcomes = match bus.publish(&batch, PublishOptions::NONE).await {
            Ok(report) => report.into_outcomes(),
            Err(error) if error.retry().is_retryable() => continue,
            Err(error) => return Err(error.into()),
        };
        let mut again = Vec::new();
        for (n, outcome) in left.into_iter().zip(outcomes) {
            let Err(failure) = outcome else { continue };
            ensure!(failure.error.retry().is_retryable(), "message {n} for good: {}", failure.error);
            if failure.state == DeliveryState::Unknown {
                *unknown.entry(n).or_default() += 1;
            }
            again.push(n);
        }
        left = again;
    }
    Ok(())
}

/// Where each message was found: its places in the log, each once however often it was delivered.
async fn read_all(
    reader: &mut dyn Subscription,
    messages: usize,
) -> Verdict<HashMap<usize, BTreeSet<(u32, u64)>>> {
    let (mut found, mut quiet) = (HashMap::<_, BTreeSet<_>>::new(), 0);
    while quiet < QUIET {
        let batch = match reader.recv(1_000, WAIT).await {
            Ok(batch) => batch,
            Err(error) if error.retry().is_retryable() => continue,
            Err(error) => return Err(error.into()),
        };
        quiet = if batch.is_empty() { quiet + 1 } else { 0 };
        for message in &batch {
            let text = String::from_utf8_lossy(message.payload.as_deref().unwrap_or_default()).into_owned();
            let n: usize = text.parse().unwrap_or(messages);
            ensure!(n < messages, "a message that nobody sent: {text:?}");
            found.entry(n).or_default().insert((message.partition, message.offset));
        }
        reader.commit(batch.positions()).await?;
    }
    Ok(found)
}
