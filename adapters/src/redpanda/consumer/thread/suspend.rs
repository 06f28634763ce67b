//! The suspension of consumers that are not read.
//!
//! A member leaves its group, because its maximum poll interval has passed and other members must get its partitions. A
//! reader without a group keeps its positions, and librdkafka fetches nothing for it. The thread still serves the
//! events of librdkafka, because unserved log and statistics events would fill the memory. A poll counts as
//! participation, so a member must leave its group before the thread polls.

use std::time::Duration;

use qi_core::bus::SubscriptionEvent;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;

use super::{
    ConsumerThread, IDLE_RECHECK_INTERVAL, MAX_EMPTY_POLLS_SUSPENDED, MAX_POLL_RECORDS, Membership,
    RETRY_BACKOFF, offsets,
};

impl ConsumerThread {
    /// Suspends the consumer, because no `recv` was called for too long.
    pub(super) fn suspend(&mut self) {
        if matches!(self.membership, Membership::Suspended { .. }) {
            return;
        }
        self.membership = Membership::Suspended { leave_requested: false };
        if let Some(limit) = self.settings.max_poll_interval {
            tracing::warn!(?limit, "recv was not called within the maximum poll interval");
            self.lose_by_poll_interval();
        }
    }

    /// Removes all partitions. Other members may own them, because the maximum poll interval has passed.
    pub(super) fn lose_by_poll_interval(&mut self) {
        self.assignment.lose_all();
        self.buffer.drop_lost(&self.assignment);
        self.assignment.events.push(SubscriptionEvent::MaxPollIntervalExceeded);
    }

    /// Serves a suspended consumer, and resumes it if a `recv` waits or the next `recv` is expected. Returns the
    /// maximum time that the thread may wait.
    pub(super) fn step_suspended(&mut self) -> Duration {
        if self.membership == (Membership::Suspended { leave_requested: false }) {
            // A commit in flight completes before other members own its partitions.
            if self.commits.in_flight {
                return RETRY_BACKOFF;
            }
            self.membership = Membership::Suspended { leave_requested: true };
            if self.settings.has_group() {
                self.client.unsubscribe();
            } else if let Err(error) = self.client.unassign() {
                tracing::warn!(%error, "cannot unassign the partitions of a suspended reader");
            }
        }
        self.serve_events();
        if !self.has_left() {
            return RETRY_BACKOFF;
        }
        if !self.should_fetch() {
            return IDLE_RECHECK_INTERVAL;
        }
        match self.resume() {
            Ok(()) => Duration::ZERO,
            Err(error) => {
                self.request_failed(error);
                RETRY_BACKOFF
            }
        }
    }

    /// Serves librdkafka's events. Acknowledges rebalance events immediately, and drops messages.
    fn serve_events(&mut self) {
        self.take_rebalances();
        self.dismiss_rebalances();
        let client = self.client.clone();
        let mut empty = 0;
        for _ in 0..MAX_POLL_RECORDS {
            match client.poll(Duration::ZERO) {
                Some(Ok(_)) => empty = 0,
                Some(Err(error)) => self.handle_error(&error),
                None => empty += 1,
            }
            if empty > MAX_EMPTY_POLLS_SUSPENDED {
                break;
            }
        }
        self.take_rebalances();
        self.dismiss_rebalances();
    }

    /// Returns whether librdkafka has left the group. `unsubscribe` empties the subscription immediately. During a
    /// rebalance, librdkafka keeps its partitions and leaves only after the rebalance. librdkafka discards a
    /// subscription made before the leave completes. Always true for a reader without a group.
    fn has_left(&self) -> bool {
        let none = |topics: KafkaResult<TopicPartitionList>| topics.is_ok_and(|topics| topics.count() == 0);
        !self.settings.has_group() || none(self.client.subscription()) && none(self.client.assignment())
    }

    fn resume(&mut self) -> KafkaResult<()> {
        if self.settings.has_group() {
            self.subscribe()?;
        } else {
            let partitions = self.assignment.partitions.iter();
            let list = partitions.map(|(partition, state)| (partition, offsets::offset(state.fetch_offset)));
            self.client.assign(&offsets::list(list)?)?;
            self.assignment.partitions.values_mut().for_each(|state| state.needs_reassign = false);
        }
        (self.membership, self.last_poll) = (Membership::Active, std::time::Instant::now());
        Ok(())
    }
}
