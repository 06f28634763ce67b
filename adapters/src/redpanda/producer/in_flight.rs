//! One call of `publish` while its messages are on their way: a place for every answer, one completion for all.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use qi_core::bus::{Delivery, DeliveryError, PublishReport};
use slab::Slab;
use tokio::sync::{Notify, Semaphore};

pub(super) type Outcome = Result<Delivery, DeliveryError>;

/// The answers of one call.
#[derive(Debug)]
pub(super) struct PendingPublish {
    outcomes: Mutex<Vec<Option<Outcome>>>,
    /// What each message takes of the buffer.
    weights: Vec<usize>,
    /// Messages without an answer.
    open: AtomicUsize,
    done: Notify,
}

impl PendingPublish {
    fn new(weights: Vec<usize>) -> Self {
        Self {
            outcomes: Mutex::new(weights.iter().map(|_| None).collect()),
            open: AtomicUsize::new(weights.len()),
            weights,
            done: Notify::new(),
        }
    }

    /// Answers for one message, and says whether all are answered now.
    fn answer(&self, index: usize, outcome: Outcome) -> bool {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        match outcomes.get_mut(index) {
            Some(place @ None) => *place = Some(outcome),
            _ => return false,
        }
        drop(outcomes);
        let last = self.open.fetch_sub(1, Ordering::AcqRel) == 1;
        if last {
            self.done.notify_one();
        }
        last
    }

    /// What a message takes of the buffer.
    pub(super) fn weight(&self, index: usize) -> usize {
        self.weights.get(index).copied().unwrap_or_default()
    }

    /// What at most `count` messages from `index` on take of the buffer.
    pub(super) fn weights(&self, index: usize, count: usize) -> &[usize] {
        let rest = self.weights.get(index..).unwrap_or_default();
        &rest[..count.min(rest.len())]
    }

    pub(super) async fn done(&self) {
        while self.open.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
    }

    /// The answers; `missing` for the messages that have none.
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

/// Every call that is under way, and the space that its messages take. Producers come and go; this stays.
#[derive(Debug)]
pub(super) struct InFlightTable {
    calls: Mutex<Slab<Arc<PendingPublish>>>,
    space: Semaphore,
    /// Messages that were handed to librdkafka and have no answer.
    in_flight: AtomicUsize,
    quiet: Notify,
}

/// What names a message to librdkafka: the slot of its pending and its index in it.
const INDEX_BITS: u32 = usize::BITS / 2;

impl InFlightTable {
    pub(super) fn new(buffer_bytes: usize) -> Self {
        Self {
            calls: Mutex::default(),
            space: Semaphore::new(buffer_bytes.min(Semaphore::MAX_PERMITS)),
            in_flight: AtomicUsize::new(0),
            quiet: Notify::new(),
        }
    }

    pub(super) fn space(&self) -> &Semaphore {
        &self.space
    }

    /// Opens a pending for messages that take so much.
    pub(super) fn open(&self, weights: Vec<usize>) -> (usize, Arc<PendingPublish>) {
        let pending = Arc::new(PendingPublish::new(weights));
        let slot = self.calls.lock().unwrap_or_else(PoisonError::into_inner).insert(pending.clone());
        (slot, pending)
    }

    /// A number that names message `index` of the pending in `slot`.
    pub(super) fn name(slot: usize, index: usize) -> usize {
        (slot << INDEX_BITS) | index
    }

    /// Counts a message that is about to be handed to librdkafka; its space was acquired before.
    pub(super) fn hand_over(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// The answer for a message that was handed over, and its space back.
    pub(super) fn answered(&self, name: usize, outcome: Outcome) {
        let weight = self.answer(name >> INDEX_BITS, name & ((1 << INDEX_BITS) - 1), outcome);
        self.space.add_permits(weight);
        self.take_back();
    }

    /// A message that was counted is not, or no more, in flight.
    pub(super) fn take_back(&self) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.quiet.notify_waiters();
        }
    }

    /// The answer for a message that was not handed over, or for one that was. With the last one the slot is free.
    pub(super) fn answer(&self, slot: usize, index: usize, outcome: Outcome) -> usize {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pending) = calls.get(slot) else { return 0 };
        let weight = pending.weight(index);
        if pending.answer(index, outcome) {
            calls.remove(slot);
        }
        weight
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Waits until nothing is in flight.
    pub(super) async fn drained(&self) {
        loop {
            let quiet = self.quiet.notified();
            tokio::pin!(quiet);
            quiet.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            quiet.await;
        }
    }
}

/// What a message takes of the buffer: itself, and what librdkafka keeps about it.
pub(super) fn weight(size: usize) -> usize {
    const EACH: usize = 256;
    size + EACH
}

#[cfg(test)]
mod tests {
    use qi_core::{Error, ErrorKind};

    use super::*;

    fn delivery(offset: u64) -> Delivery {
        Delivery { partition: 0, offset, timestamp: None }
    }

    #[tokio::test]
    async fn a_ticket_is_done_with_its_last_answer_and_its_slot_is_free() {
        let in_flight_table = InFlightTable::new(1_000);
        let (slot, pending) = in_flight_table.open(vec![1; 2]);
        in_flight_table.answer(slot, 1, Ok(delivery(1)));
        assert!(futures::FutureExt::now_or_never(pending.done()).is_none());
        in_flight_table.answer(slot, 1, Ok(delivery(7)));
        assert!(
            futures::FutureExt::now_or_never(pending.done()).is_none(),
            "the same message twice is one answer"
        );
        in_flight_table.answer(slot, 0, Ok(delivery(0)));
        pending.done().await;
        let missing = DeliveryError::unknown(Error::new(ErrorKind::Timeout, "c", "publish"));
        let offsets: Vec<_> =
            pending.report(&missing).into_outcomes().into_iter().map(|o| o.map(|d| d.offset).ok()).collect();
        assert_eq!(offsets, [Some(0), Some(1)]);
        assert_eq!(in_flight_table.open(vec![1]).0, slot);
    }

    #[tokio::test]
    async fn names_hold_slot_and_index_and_give_the_space_back() {
        let in_flight_table = InFlightTable::new(1_000);
        in_flight_table.open(vec![1]);
        let (slot, pending) = in_flight_table.open(vec![200; 3]);
        in_flight_table.space().try_acquire_many(600).unwrap().forget();
        for index in 0..3 {
            in_flight_table.hand_over();
            in_flight_table.answered(InFlightTable::name(slot, index), Ok(delivery(index as u64)));
        }
        pending.done().await;
        assert_eq!((in_flight_table.space().available_permits(), in_flight_table.in_flight()), (1_000, 0));
        in_flight_table.drained().await;
    }
}
