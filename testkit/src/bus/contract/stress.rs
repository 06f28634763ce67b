//! A stress test of a bus under the full stack: no message is lost, and every duplicate is accounted for.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use qi_core::bus::{
    DeliveryState, GroupId, Message, MessageBus, PublishOptions, SubscribeRequest, Subscription, TopicName,
};
use qi_core::layer::{CircuitBreakerConfig, LayerStack, RetryConfig, TimeoutConfig};
use qi_core::{Backoff, Operation};

use super::{CheckResult, ensure};
use crate::chaos::{Chaos, ChaosBus, Fault, Rule};

/// The number of messages in one publish.
const BATCH_SIZE: usize = 100;
/// The number of different keys.
const KEYS: usize = 50;
/// The longest wait of one `recv`.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(200);
/// The number of consecutive empty batches after which no more messages are expected.
const MAX_EMPTY_BATCHES: usize = 5;

/// The counters of a stress test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct StressReport {
    /// The number of injected faults.
    pub faults: u64,
    /// The number of outcomes with an unknown delivery state. The caller sent these messages again.
    pub unknown: u64,
    /// The number of copies in the log beyond the first of each message.
    pub duplicates: u64,
}

impl fmt::Display for StressReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { faults, unknown, duplicates } = self;
        write!(
            f,
            "{faults} faults, {unknown} unknown messages sent again, {duplicates} duplicates in the log"
        )
    }
}

/// Publishes `messages` to `topic` and reads them as a group, while a third of all calls fail, hang, or are executed
/// and lose their response. The stack tries each call up to 20 times, and its circuit breaker tolerates these failures.
/// This function sends messages in an unknown state again and counts them, as a caller must do.
///
/// A publish that hangs ends after twice the bus's delivery timeout plus `limit`. Any other call ends after `limit`. On
/// real time both should be short.
///
/// # Errors
/// A lost message, or a message with more copies than its sends with an unknown state permit.
pub async fn stress_test(
    bus: Arc<dyn MessageBus>,
    topic: &TopicName,
    group: GroupId,
    messages: usize,
    seed: u64,
    limit: Duration,
) -> CheckResult<StressReport> {
    let third = |faults: &[Fault]| Rule::new(1.0 / 3.0, faults.iter().copied());
    // A subscribe with a lost response would leave a member in the group until its session passes.
    let chaos = Chaos::seeded(seed)
        .everywhere(third(&[Fault::Error, Fault::Hang, Fault::LostResponse]))
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
    for part in all.chunks(BATCH_SIZE) {
        send_all(&*stack, topic, part.to_vec(), &mut unknown).await?;
    }
    let mut reader = stack.subscribe(SubscribeRequest::new(group, [topic.clone()])?).await?;
    let found = read_all(&mut *reader, messages).await?;
    reader.close().await?;

    let mut report =
        StressReport { faults: chaos.injected(), unknown: unknown.values().sum(), duplicates: 0 };
    for n in all {
        let copies = found.get(&n).map_or(0, BTreeSet::len) as u64;
        let most = 1 + unknown.get(&n).copied().unwrap_or(0);
        ensure!(copies > 0, "message {n} is lost");
        ensure!(
            copies <= most,
            "message {n} has {copies} copies, {} more than its unknown sends permit",
            copies - most
        );
        report.duplicates += copies - 1;
    }
    Ok(report)
}

/// Sends until every message is acknowledged. Counts the unknown delivery states of each message.
async fn send_all(
    bus: &dyn MessageBus,
    topic: &TopicName,
    mut left: Vec<usize>,
    unknown: &mut HashMap<usize, u64>,
) -> CheckResult {
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
            ensure!(
                failure.error.retry().is_retryable(),
                "message {n} failed permanently: {}",
                failure.error
            );
            if failure.state == DeliveryState::Unknown {
                *unknown.entry(n).or_default() += 1;
            }
            again.push(n);
        }
        left = again;
    }
    Ok(())
}

/// Returns the locations of each message in the log. A message that is delivered repeatedly from
/// one location counts once.
async fn read_all(
    reader: &mut dyn Subscription,
    messages: usize,
) -> CheckResult<HashMap<usize, BTreeSet<(u32, u64)>>> {
    let (mut found, mut quiet) = (HashMap::<_, BTreeSet<_>>::new(), 0);
    while quiet < MAX_EMPTY_BATCHES {
        let batch = match reader.recv(1_000, RECEIVE_TIMEOUT).await {
            Ok(batch) => batch,
            Err(error) if error.retry().is_retryable() => continue,
            Err(error) => return Err(error.into()),
        };
        quiet = if batch.is_empty() { quiet + 1 } else { 0 };
        for message in &batch {
            let text = String::from_utf8_lossy(message.payload.as_deref().unwrap_or_default()).into_owned();
            let n: usize = text.parse().unwrap_or(messages);
            ensure!(n < messages, "received a message that was not sent: {text:?}");
            found.entry(n).or_default().insert((message.partition, message.offset));
        }
        reader.commit(batch.offsets()).await?;
    }
    Ok(found)
}
