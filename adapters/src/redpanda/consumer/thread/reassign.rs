//! Changes of the assignment. They are carried out only inside `recv`, or while the caller waits for the first
//! assignment.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use qi_core::bus::{OffsetReset, SeekTo, SubscriptionEvent, TopicPartition};
use rdkafka::Offset;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;

use super::{Check, Client, ConsumerThread, Membership, RETRY_BACKOFF, Rebalance, error, offsets, resolve};
use crate::redpanda::consumer::rebalance::{acknowledge, dismiss};
use crate::redpanda::offsets::OffsetSpec;

/// The rebalance events that are not carried out yet.
#[derive(Default)]
pub(super) struct Rebalancing {
    events: VecDeque<Rebalance>,
    /// The attempt to carry out the first event.
    pub(super) attempt: Check,
    /// The start offsets of the first event's partitions.
    starts: Option<Vec<StartOffset>>,
    /// True if the revocation of the first event was announced.
    pub(super) announced: bool,
    /// The number of events removed from the queue. It identifies the first event.
    done: u64,
}

/// The start offset of a partition that is about to be assigned.
pub(super) struct StartOffset {
    pub(super) partition: TopicPartition,
    pub(super) offset: u64,
    /// The committed offset. If it is None, the start offset is committed, unless `fails` is true.
    pub(super) committed: Option<u64>,
    /// True if there is no commit and the reset policy is an error.
    pub(super) fails: bool,
}

impl Rebalancing {
    pub(super) fn is_pending(&self) -> bool {
        !self.events.is_empty()
    }

    pub(super) fn is_revoking(&self) -> bool {
        self.events.iter().any(|event| !event.assigns)
    }

    pub(super) fn add(&mut self, event: Rebalance) {
        self.events.push_back(event);
    }

    fn pop(&mut self) -> Option<Rebalance> {
        (self.attempt, self.starts, self.announced) = (Check::default(), None, false);
        self.done += 1;
        self.events.pop_front()
    }
}

/// Returns the start offsets of partitions: their commits, or the offsets of the reset policy.
fn start_offsets(
    client: &Client,
    partitions: &[TopicPartition],
    offset_reset: OffsetReset,
    limit: Duration,
) -> KafkaResult<Vec<StartOffset>> {
    let committed = offsets::committed(client, partitions, limit)?;
    let without: Vec<_> = partitions.iter().filter(|p| !committed.contains_key(*p)).collect();
    let spec = offsets::reset_spec(offset_reset);
    let found = offsets::find_each(client, without, spec.unwrap_or(OffsetSpec::Latest), limit)?;
    let mut starts = BTreeMap::new();
    for (partition, start) in found {
        match start {
            Ok(start) => drop(starts.insert(partition, (start, None))),
            // librdkafka expects an assignment of every partition, even of a deleted topic. `Some(0)` prevents a commit
            // of this start offset.
            Err(error) if error::is_missing(&error) => drop(starts.insert(partition, (0, Some(0)))),
            Err(error) => return Err(error),
        }
    }
    starts.extend(committed.into_iter().map(|(partition, offset)| (partition, (offset, Some(offset)))));
    let starts = starts.into_iter().map(|(partition, (offset, committed))| {
        let fails = spec.is_none() && committed.is_none();
        StartOffset { partition, offset, committed, fails }
    });
    Ok(starts.collect())
}

impl ConsumerThread {
    /// Subscribes to the topics of the group.
    pub(super) fn subscribe(&mut self) -> KafkaResult<()> {
        let names: Vec<_> = self.settings.topics.iter().map(qi_core::bus::TopicName::as_str).collect();
        self.client.subscribe(&names)
    }

    /// Assigns the partitions of a reader without a group.
    pub(super) fn assign(&mut self, from: Vec<(TopicPartition, SeekTo)>) {
        let limit = self.settings.request_timeout;
        let starts = move |client: &Client| resolve(client, &from, limit, "open_reader");
        self.request(starts, |thread, starts| {
            let assigned = starts.and_then(|starts| {
                let list = offsets::list(starts.iter().map(|(p, start)| (p, offsets::offset(*start))));
                let assigned = list.and_then(|list| thread.client.assign(&list));
                assigned.map_err(|e| error::from_kafka(e, "open_reader"))?;
                Ok(starts)
            });
            match assigned {
                Ok(starts) => {
                    for (partition, start) in starts {
                        thread.assignment.gain(partition, start, None);
                    }
                    thread.record_assignment();
                }
                Err(error) => thread.failure = Some(error),
            }
        });
    }

    /// Records that partitions were assigned. The first assignment is the result of `subscribe` or `open_reader`, so it
    /// causes no event.
    fn record_assignment(&mut self) {
        self.assignment.epoch += 1;
        self.commits.starts_tried = false;
        if self.membership == Membership::Joining {
            self.membership = Membership::Active;
            self.assignment.forget_gained();
        }
    }

    /// Moves librdkafka's events into the queue. Returns whether there were any.
    pub(super) fn take_rebalances(&mut self) -> bool {
        let mut any = false;
        while let Ok(event) = self.rebalances.try_recv() {
            self.rebalancing.add(event);
            any = true;
        }
        any
    }

    /// Acknowledges all events to librdkafka. The adapter's own assignment is unchanged.
    pub(super) fn dismiss_rebalances(&mut self) {
        while let Some(event) = self.rebalancing.pop() {
            dismiss(&self.client, &event);
        }
    }

    /// Applies the queued events. Returns early if a request is in flight, a revocation was just announced, or a retry
    /// is not yet due.
    pub(super) fn rebalance(&mut self) {
        while let Some(event) = self.rebalancing.events.front().cloned() {
            // A commit in flight completes before other members own its partitions.
            if !event.assigns && (self.commits.in_flight || self.announce_revocation()) {
                return;
            }
            self.rebalancing.attempt.request(Duration::ZERO);
            if !self.rebalancing.attempt.start() {
                return;
            }
            let done = match self.rebalancing.starts.take() {
                _ if !event.assigns => self.revoke(&event.partitions),
                None => return self.resolve_starts(event.partitions),
                Some(starts) => self.apply_assignment(&starts),
            };
            if let Err(error) = done {
                self.retry_rebalance(error);
                return;
            }
            self.rebalancing.pop();
        }
    }

    /// Announces a revocation to the waiting `recv`. Returns whether the revocation must wait for the next `recv`.
    fn announce_revocation(&mut self) -> bool {
        if !self.settings.announce_revocations || self.rebalancing.announced {
            return false;
        }
        // Without a `recv`, the caller still waits in `subscribe` and has received nothing.
        let Some(recv) = self.end_recv() else { return false };
        self.rebalancing.announced = true;
        let mut polled = self.buffer.take_none(&mut self.assignment);
        polled.events.push(SubscriptionEvent::RevocationPending);
        if let Err(result) = recv.reply.send(Ok(polled)) {
            self.put_back(result);
        }
        true
    }

    fn retry_rebalance(&mut self, error: rdkafka::error::KafkaError) {
        self.request_failed(error);
        self.rebalancing.attempt.finish();
        self.rebalancing.attempt.request(RETRY_BACKOFF);
    }

    fn revoke(&mut self, partitions: &[TopicPartition]) -> KafkaResult<()> {
        self.assignment.lose(partitions);
        self.assignment.epoch += 1;
        self.buffer.drop_lost(&self.assignment);
        let list = offsets::list(partitions.iter().map(|partition| (partition, Offset::Invalid)))?;
        acknowledge(&self.client, &list, false)
    }

    fn resolve_starts(&mut self, partitions: Vec<TopicPartition>) {
        let (number, limit) = (self.rebalancing.done, self.settings.request_timeout);
        let offset_reset = self.settings.offset_reset;
        let find = move |client: &Client| start_offsets(client, &partitions, offset_reset, limit);
        self.request(find, move |thread, starts| {
            // If this event was dismissed, another event is first.
            if thread.rebalancing.done != number {
                return;
            }
            match starts {
                Ok(starts) => {
                    thread.rebalancing.attempt.finish();
                    thread.rebalancing.starts = Some(starts);
                }
                Err(error) => thread.retry_rebalance(error),
            }
        });
    }

    /// Adds partitions to the assignment after librdkafka has accepted them.
    pub(super) fn apply_assignment(&mut self, starts: &[StartOffset]) -> KafkaResult<()> {
        // librdkafka keeps the paused state of a partition beyond the loss of the partition.
        let list = offsets::list(starts.iter().map(|start| (&start.partition, Offset::Invalid)))?;
        self.client.resume(&list)?;
        let list = starts.iter().map(|start| (&start.partition, offsets::offset(start.offset)));
        acknowledge(&self.client, &offsets::list(list)?, true)?;
        for StartOffset { partition, offset, committed, fails } in starts {
            self.assignment.gain(partition.clone(), *offset, *committed);
            if let Some(state) = self.assignment.partitions.get_mut(partition) {
                state.pending_commit = (committed.is_none() && !fails).then_some(*offset);
                state.failed = fails.then(|| error::no_valid_offset(partition, "recv"));
            }
        }
        self.record_assignment();
        Ok(())
    }

    /// Retries failed seeks. If a seek fails again, unassigns and reassigns the partition. librdkafka would treat this
    /// change as the acknowledgement of a pending rebalance. Therefore it happens only inside `recv`, and only if no
    /// rebalance is pending.
    pub(super) fn reassign(&mut self) {
        let states = self.assignment.partitions.iter();
        let pending: Vec<_> = states
            .filter(|(_, state)| state.needs_reassign && state.failed.is_none())
            .map(|(partition, state)| (partition.clone(), state.fetch_offset))
            .collect();
        for (partition, offset) in pending {
            if self.rebalancing.is_pending() {
                return;
            }
            self.seek_client(&partition, offset);
            if self.assignment.partitions.get(&partition).is_none_or(|state| !state.needs_reassign) {
                continue;
            }
            let assigned = offsets::list([(&partition, offsets::offset(offset))]).and_then(|list| {
                // The partition is already unassigned if the last attempt to assign it failed.
                let _ = self.client.incremental_unassign(&list);
                self.client.incremental_assign(&list)
            });
            match assigned {
                Ok(()) => self.assignment.finish_seek(&partition, true),
                Err(error) => self.request_failed(error),
            }
        }
    }
}
