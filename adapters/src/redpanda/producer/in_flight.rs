//! The messages of `publish` calls that have no outcome yet.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use qi_core::bus::{Delivery, DeliveryError, PublishReport};
use slab::Slab;
use tokio::sync::{Notify, Semaphore};

pub(super) type Outcome = Result<Delivery, DeliveryError>;

/// A call of `publish` that waits for the outcomes of its messages.
#[derive(Debug)]
pub(super) struct PendingPublish {
    outcomes: Mutex<Vec<Option<Outcome>>>,
    /// The bytes of the send buffer that each message takes.
    weights: Vec<usize>,
    /// The number of messages without an outcome.
    remaining: AtomicUsize,
    done: Notify,
}

impl PendingPublish {
    fn new(weights: Vec<usize>) -> Self {
        Self {
            outcomes: Mutex::new(weights.iter().map(|_| None).collect()),
            remaining: AtomicUsize::new(weights.len()),
            weights,
            done: Notify::new(),
        }
    }

    /// Sets the outcome of a message. Returns whether all messages now have an outcome.
    fn set_outcome(&self, index: usize, outcome: Outcome) -> bool {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        match outcomes.get_mut(index) {
            Some(slot @ None) => *slot = Some(outcome),
            _ => return false,
        }
        drop(outcomes);
        let last = self.remaining.fetch_sub(1, Ordering::AcqRel) == 1;
        if last {
            self.done.notify_one();
        }
        last
    }

    /// Returns the share of the buffer for a message.
    pub(super) fn weight(&self, index: usize) -> usize {
        self.weights.get(index).copied().unwrap_or_default()
    }

    /// Returns the shares of at most `count` messages from `index` on.
    pub(super) fn weights(&self, index: usize, count: usize) -> &[usize] {
        let rest = self.weights.get(index..).unwrap_or_default();
        &rest[..count.min(rest.len())]
    }

    pub(super) async fn done(&self) {
        while self.remaining.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
    }

    /// Returns the outcomes. `missing` replaces unknown outcomes.
    pub(super) fn report(&self, missing: &DeliveryError) -> PublishReport {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        PublishReport::new(
            outcomes
                .iter_mut()
                .map(|outcome| outcome.take().unwrap_or_else(|| Err(missing.clone())))
                .collect(),
        )
    }
}

/// The `publish` calls in flight, and the buffer space of their messages. The table outlives the producers.
#[derive(Debug)]
pub(super) struct InFlightTable {
    calls: Mutex<Slab<Arc<PendingPublish>>>,
    permits: Semaphore,
    /// The number of messages that librdkafka holds without an outcome.
    in_flight: AtomicUsize,
    idle: Notify,
}

/// The number of bits for the index of a message in its call. The other bits contain the slot of the call.
const INDEX_BITS: u32 = usize::BITS / 2;

impl InFlightTable {
    pub(super) fn new(buffer_bytes: usize) -> Self {
        Self {
            calls: Mutex::default(),
            permits: Semaphore::new(buffer_bytes.min(Semaphore::MAX_PERMITS)),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
        }
    }

    pub(super) fn permits(&self) -> &Semaphore {
        &self.permits
    }

    /// Adds a call whose messages have these shares of the buffer.
    pub(super) fn register(&self, weights: Vec<usize>) -> (usize, Arc<PendingPublish>) {
        let pending = Arc::new(PendingPublish::new(weights));
        let slot = self.calls.lock().unwrap_or_else(PoisonError::into_inner).insert(pending.clone());
        (slot, pending)
    }

    /// Returns the opaque value of a message.
    pub(super) fn opaque(slot: usize, index: usize) -> usize {
        (slot << INDEX_BITS) | index
    }

    /// Counts a message before it is passed to librdkafka. Its permits are already acquired.
    pub(super) fn add(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Sets the outcome of a message in flight, and releases its permits.
    pub(super) fn complete(&self, opaque: usize, outcome: Outcome) {
        let weight = self.set_outcome(opaque >> INDEX_BITS, opaque & ((1 << INDEX_BITS) - 1), outcome);
        self.permits.add_permits(weight);
        self.remove();
    }

    /// Removes a message from the number of messages in flight.
    pub(super) fn remove(&self) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.idle.notify_waiters();
        }
    }

    /// Sets the outcome of a message, and returns its weight, or 0 if its call has ended. The last outcome frees the slot of
    /// the call.
    pub(super) fn set_outcome(&self, slot: usize, index: usize, outcome: Outcome) -> usize {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pending) = calls.get(slot) else { return 0 };
        let weight = pending.weight(index);
        if pending.set_outcome(index, outcome) {
            calls.remove(slot);
        }
        weight
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Waits until no message is in flight.
    pub(super) async fn wait_until_drained(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            idle.await;
        }
    }
}

/// Returns the share of the buffer for a message of this size, including librdkafka's overhead.
pub(super) fn weight(size: usize) -> usize {
    const MESSAGE_OVERHEAD_BYTES: usize = 256;
    size + MESSAGE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use qi_core::{Error, ErrorKind};

    use super::*;

    fn delivery(offset: u64) -> Delivery {
        Delivery::new(0, offset, None)
    }

    #[tokio::test]
    async fn a_publish_completes_with_its_last_outcome_and_frees_its_slot() {
        let table = InFlightTable::new(1_000);
        let (slot, pending) = table.register(vec![1; 2]);
        table.set_outcome(slot, 1, Ok(delivery(1)));
        assert!(futures::FutureExt::now_or_never(pending.done()).is_none());
        table.set_outcome(slot, 1, Ok(delivery(7)));
        assert!(
            futures::FutureExt::now_or_never(pending.done()).is_none(),
            "two outcomes of one message count once"
        );
        table.set_outcome(slot, 0, Ok(delivery(0)));
        pending.done().await;
        let missing = DeliveryError::unknown(Error::new(ErrorKind::Timeout, "c", "publish"));
        let offsets: Vec<_> =
            pending.report(&missing).into_outcomes().into_iter().map(|o| o.map(|d| d.offset).ok()).collect();
        assert_eq!(offsets, [Some(0), Some(1)]);
        assert_eq!(table.register(vec![1]).0, slot);
    }

    #[tokio::test]
    async fn an_opaque_value_encodes_slot_and_index() {
        let table = InFlightTable::new(1_000);
        table.register(vec![1]);
        let (slot, pending) = table.register(vec![200; 3]);
        table.permits().try_acquire_many(600).unwrap().forget();
        for index in 0..3 {
            table.add();
            table.complete(InFlightTable::opaque(slot, index), Ok(delivery(index as u64)));
        }
        pending.done().await;
        assert_eq!((table.permits().available_permits(), table.in_flight()), (1_000, 0));
        table.wait_until_drained().await;
    }
}
