//! Publishing: messages that fit are appended under one lock; the others wait for space.

use std::time::Duration;

use qi_core::bus::{
    Delivery, DeliveryError, Message, PublishOptions, PublishReport, TopicName, partition_for_key,
};
use qi_core::{Error, Timestamp};
use tokio::time::{Instant, timeout_at};

use super::MemoryBusConfig;
use super::error;
use super::memory::Client;
use super::state::{Log, State};
use super::topic::{RECORD_COST, Topic};

/// The longest time between two attempts of a blocked publish. Commits and other calls wake it earlier. No call
/// announces space that retention can free, because retention follows the injected clock.
const SPACE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

type Outcome = Result<Delivery, DeliveryError>;

/// A batch under way. The number of outcomes is the progress.
#[derive(Debug)]
pub(super) struct PendingPublish<'a> {
    batch: &'a [Message],
    options: &'a PublishOptions,
    outcomes: Vec<Outcome>,
}

impl<'a> PendingPublish<'a> {
    pub(super) fn new(batch: &'a [Message], options: &'a PublishOptions) -> Self {
        Self { batch, options, outcomes: Vec::with_capacity(batch.len()) }
    }

    /// Appends the batch and waits for space up to the delivery timeout.
    pub(super) async fn run(mut self, log: &Log, client: &Client) -> PublishReport {
        let deadline = Instant::now() + log.config.delivery_timeout;
        loop {
            let space = log.space.notified();
            tokio::pin!(space);
            // The notification is enabled before the lock, so a wake-up between the lock and the wait is not missed.
            space.as_mut().enable();
            let now = Instant::now();
            {
                let mut state = log.lock();
                let (disconnected, closed) = (client.is_disconnected(), client.is_closed());
                // `close` ends a client under this lock, so nothing is appended after `close` has returned.
                if !disconnected && !closed && self.append(&mut state, log, now) {
                    break;
                }
                let reason = if closed {
                    Some(error::closed("publish"))
                } else if now < deadline {
                    None
                } else if disconnected {
                    Some(error::delivery_timeout_while_disconnected())
                } else {
                    state.expire(&log.config, log.clock.now(), now);
                    Some(error::full(log.config.max_bytes, state.largest_lag()))
                };
                if let Some(reason) = reason {
                    self.fail_rest(&mut state, log, &reason);
                    break;
                }
            }
            let _ = timeout_at(deadline.min(now + SPACE_CHECK_INTERVAL), space).await;
        }
        PublishReport::new(self.outcomes)
    }

    /// Appends messages as long as they fit. Returns false if the bus is full.
    fn append(&mut self, state: &mut State, log: &Log, now: Instant) -> bool {
        let time = log.clock.now();
        while let Some(need) = self.append_until_full(state, &log.config, time, now) {
            state.expire(&log.config, time, now);
            if state.used + need > log.config.max_bytes {
                state.free_space(need, log.config.max_bytes);
            }
            if state.used + need > log.config.max_bytes {
                return false;
            }
        }
        true
    }

    /// Appends messages until the batch ends (None) or a message does not fit (its cost in bytes).
    fn append_until_full(
        &mut self,
        state: &mut State,
        config: &MemoryBusConfig,
        time: Timestamp,
        now: Instant,
    ) -> Option<usize> {
        while let Some(first) = self.batch.get(self.outcomes.len()) {
            let name = &first.topic;
            let Some(topic) = state.topics.get_mut(name) else {
                self.outcomes.push(not_sent(error::unknown_topic(name, "publish")));
                continue;
            };
            state.used -= topic.expire(time);
            let full = self.append_topic(topic, name, &mut state.used, config, time, now);
            topic.wake();
            if full.is_some() {
                return full;
            }
        }
        None
    }

    /// Appends the consecutive messages for one topic.
    fn append_topic(
        &mut self,
        topic: &mut Topic,
        name: &TopicName,
        used: &mut usize,
        config: &MemoryBusConfig,
        time: Timestamp,
        now: Instant,
    ) -> Option<usize> {
        let stamp = time.floor_to_millis();
        while let Some(message) = self.batch.get(self.outcomes.len())
            && message.topic == *name
        {
            let partition = match choose_partition(topic, message, self.options, config, now) {
                Ok(partition) => partition,
                Err(error) => {
                    self.outcomes.push(not_sent(error));
                    continue;
                }
            };
            let cost = cost(message, self.options);
            if *used + cost > config.max_bytes {
                return Some(cost);
            }
            *used += cost;
            let at = message.timestamp.map_or(stamp, Timestamp::floor_to_millis);
            let mut headers = message.headers.clone();
            headers.extend(&self.options.headers);
            let log = &mut topic.partitions[partition as usize];
            let offset = log.append(at, message.key.clone(), message.payload.clone(), headers);
            self.outcomes.push(Ok(Delivery::new(partition, offset, Some(at))));
        }
        None
    }

    /// Fails the remaining messages, each with its own error if it has one, otherwise with `reason`.
    fn fail_rest(&mut self, state: &mut State, log: &Log, reason: &Error) {
        let now = Instant::now();
        for message in &self.batch[self.outcomes.len()..] {
            let own = match state.topics.get_mut(&message.topic) {
                None => Some(error::unknown_topic(&message.topic, "publish")),
                Some(topic) => choose_partition(topic, message, self.options, &log.config, now).err(),
            };
            self.outcomes.push(not_sent(own.unwrap_or_else(|| reason.clone())));
        }
    }
}

fn not_sent(error: Error) -> Outcome {
    Err(DeliveryError::not_sent(error))
}

/// Returns the memory of a message in the log, in bytes.
fn cost(message: &Message, options: &PublishOptions) -> usize {
    message.weight() + options.headers.weight() + RECORD_COST
}

/// Returns the partition of a message, or the error of a message that no partition can accept.
fn choose_partition(
    topic: &mut Topic,
    message: &Message,
    options: &PublishOptions,
    config: &MemoryBusConfig,
    now: Instant,
) -> qi_core::Result<u32> {
    let limit = topic.max_message_bytes.min(config.max_message_bytes);
    let size = message.size() + options.headers.size();
    if size > limit {
        return Err(error::too_large(size, limit));
    }
    // The size does not include the overhead of headers. A message that exceeds `max_bytes` with it would wait in vain.
    let cost = cost(message, options);
    if cost > config.max_bytes {
        return Err(error::too_large(cost, config.max_bytes));
    }
    match (message.partition, &message.key) {
        (Some(partition), _) if partition < topic.count().get() => Ok(partition),
        (Some(partition), _) => Err(error::unknown_partition(&message.topic, partition, "publish")),
        (None, Some(key)) => Ok(partition_for_key(key, topic.count())),
        (None, None) => Ok(topic.keyless(now)),
    }
}
