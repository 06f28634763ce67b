//! The model: lists and maps, without regard for speed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use qi_core::bus::{Batch, Message, OffsetReset, SubscriptionEvent, TopicName, TopicPartition};
use tokio::time::Instant;

use crate::bus::contract::{CheckResult, Failure, ensure, ensure_eq};

/// A partition: all messages that were ever published to it, and its low watermark.
#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) messages: Vec<Message>,
    pub(super) start: u64,
}

impl Log {
    pub(super) fn end(&self) -> u64 {
        self.messages.len() as u64
    }

    fn holds(&self, position: u64) -> bool {
        (self.start..=self.end()).contains(&position)
    }
}

/// The logs by partition. Logs of deleted topics are absent.
pub(super) type Logs = BTreeMap<TopicPartition, Log>;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) offset_reset: OffsetReset,
    /// The owned partitions with the next offset of each.
    pub(super) positions: BTreeMap<TopicPartition, u64>,
    pub(super) paused: BTreeSet<TopicPartition>,
    /// The partitions that the member owns according to its events.
    pub(super) reported: BTreeSet<TopicPartition>,
    /// The resets that the member has not yet been notified of.
    resets: BTreeMap<TopicPartition, (u64, u64)>,
    /// The low watermarks at the time of resets.
    floors: BTreeMap<TopicPartition, u64>,
    last_poll: Instant,
    pub(super) disconnected_since: Option<Instant>,
    max_poll_interval_exceeded: bool,
    expired: bool,
}

impl Member {
    pub(super) fn new(offset_reset: OffsetReset) -> Self {
        Self {
            offset_reset,
            positions: BTreeMap::new(),
            paused: BTreeSet::new(),
            reported: BTreeSet::new(),
            resets: BTreeMap::new(),
            floors: BTreeMap::new(),
            last_poll: Instant::now(),
            disconnected_since: None,
            max_poll_interval_exceeded: false,
            expired: false,
        }
    }

    /// Records a call of `recv`.
    pub(super) fn polled(&mut self) {
        self.last_poll = Instant::now();
        self.expired = false;
    }

    fn remove_partition(&mut self, partition: &TopicPartition) {
        self.positions.remove(partition);
        self.paused.remove(partition);
        self.resets.remove(partition);
        self.floors.remove(partition);
    }

    fn remove_all_partitions(&mut self) {
        self.positions.clear();
        self.paused.clear();
        self.resets.clear();
        self.floors.clear();
    }
}

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) commits: BTreeMap<TopicPartition, u64>,
    /// The present members by their number in the run.
    pub(super) members: BTreeMap<usize, Member>,
}

impl Group {
    /// Applies the session timeouts and maximum poll intervals.
    pub(super) fn expire(&mut self, session_timeout: Duration, max_poll_interval: Duration) {
        let now = Instant::now();
        self.members
            .retain(|_, member| member.disconnected_since.is_none_or(|since| since + session_timeout > now));
        for member in self.members.values_mut().filter(|member| !member.expired) {
            if member.last_poll + max_poll_interval <= now {
                member.remove_all_partitions();
                member.max_poll_interval_exceeded = true;
                member.expired = true;
            }
        }
    }

    /// Assigns a partition to a member. Fails if the partition has an owner.
    pub(super) fn take(&mut self, logs: &Logs, at: usize, partition: &TopicPartition) -> CheckResult {
        let owner = self.members.iter().find(|(_, member)| member.positions.contains_key(partition));
        ensure_eq!(
            owner.map(|(other, _)| *other),
            None,
            "the owner of {partition} before member {at} takes the partition"
        );
        let log =
            logs.get(partition).ok_or_else(|| Failure::new(format_args!("{partition} does not exist")))?;
        let member =
            self.members.get_mut(&at).ok_or_else(|| Failure::new("the member is unknown to the model"))?;
        let start = match member.offset_reset {
            OffsetReset::Latest => log.end(),
            _ => log.start,
        };
        let position = match self.commits.get(partition) {
            Some(commit) if log.holds(*commit) => *commit,
            Some(gone) => {
                member.resets.insert(partition.clone(), (*gone, start));
                member.floors.insert(partition.clone(), log.start);
                start
            }
            None => start,
        };
        self.commits.insert(partition.clone(), position);
        member.positions.insert(partition.clone(), position);
        Ok(())
    }

    /// Returns the offset that a commit of `next` stores.
    pub(super) fn stored(&self, at: usize, partition: &TopicPartition, next: u64) -> u64 {
        let floor = self.members.get(&at).and_then(|member| member.floors.get(partition)).copied();
        let valid = self.commits.get(partition).filter(|commit| floor.is_some_and(|floor| **commit >= floor));
        if floor.is_some_and(|floor| next < floor) { valid.copied().unwrap_or(next) } else { next }
    }

    /// Removes the state of a deleted topic.
    pub(super) fn forget(&mut self, topic: &TopicName) {
        self.commits.retain(|partition, _| partition.topic != *topic);
        for member in self.members.values_mut() {
            let gone: Vec<_> = member.positions.keys().filter(|p| p.topic == *topic).cloned().collect();
            for partition in &gone {
                member.remove_partition(partition);
            }
        }
    }

    /// Compares a batch with the model.
    pub(super) fn receive(&mut self, logs: &Logs, at: usize, batch: &Batch, max: usize) -> CheckResult {
        self.apply_events(logs, at, batch.events())?;
        let member =
            self.members.get_mut(&at).ok_or_else(|| Failure::new("the member is unknown to the model"))?;
        member.polled();
        ensure!(!member.max_poll_interval_exceeded, "the event MaxPollIntervalExceeded is missing");
        ensure_eq!(
            member.reported,
            member.positions.keys().cloned().collect(),
            "partitions according to the events"
        );
        ensure!(member.resets.is_empty(), "no event for the resets {:?}", member.resets);
        ensure!(batch.len() <= max, "recv returned {} messages, max is {max}", batch.len());
        let mut read = BTreeMap::new();
        for message in batch {
            let partition = TopicPartition::new(message.topic.clone(), message.partition);
            ensure!(
                !member.paused.contains(&partition),
                "received a message of the paused partition {partition}"
            );
            let position = member.positions.get_mut(&partition);
            let position = position.ok_or_else(|| {
                Failure::new(format_args!("received a message of {partition}, which is not owned"))
            })?;
            ensure_eq!(message.offset, *position, "the next offset of {partition}");
            let sent =
                logs.get(&partition).and_then(|log| log.messages.get(usize::try_from(*position).ok()?));
            let sent = sent.map(|sent| (&sent.key, &sent.payload, &sent.headers));
            ensure_eq!(
                Some((&message.key, &message.payload, &message.headers)),
                sent,
                "the message at offset {position} of {partition}"
            );
            *position += 1;
            read.insert(partition, *position);
        }
        ensure_eq!(
            batch.offsets().iter().map(|(p, n)| (p.clone(), n)).collect::<BTreeMap<_, _>>(),
            read,
            "positions"
        );
        if batch.is_empty() {
            let left = member.positions.iter().find(|(partition, position)| {
                !member.paused.contains(*partition)
                    && logs.get(*partition).is_some_and(|log| log.end() > **position)
            });
            ensure_eq!(left, None, "a partition with messages after an empty batch");
        }
        Ok(())
    }

    fn apply_events(&mut self, logs: &Logs, at: usize, events: &[SubscriptionEvent]) -> CheckResult {
        for event in events {
            let member = self
                .members
                .get_mut(&at)
                .ok_or_else(|| Failure::new("the member is unknown to the model"))?;
            match event {
                SubscriptionEvent::MaxPollIntervalExceeded => {
                    ensure!(
                        std::mem::take(&mut member.max_poll_interval_exceeded),
                        "the maximum poll interval is not exceeded"
                    );
                }
                SubscriptionEvent::AssignmentChanged { gained, lost } => {
                    for partition in lost {
                        ensure!(member.reported.remove(partition), "{partition} is lost but was not owned");
                        member.remove_partition(partition);
                    }
                    for partition in gained {
                        ensure!(member.reported.insert(partition.clone()), "{partition} is gained twice");
                    }
                    for partition in gained {
                        self.take(logs, at, partition)?;
                    }
                }
                SubscriptionEvent::Reset { partition, from, to } => {
                    let log = logs
                        .get(partition)
                        .ok_or_else(|| Failure::new("a reset of a partition that does not exist"))?;
                    let known = member.resets.remove(partition);
                    let position = member.positions.get_mut(partition);
                    let position =
                        position.ok_or_else(|| Failure::new("a reset of a partition that is not owned"))?;
                    if let Some(known) = known.filter(|_| log.holds(*position)) {
                        ensure_eq!((*from, *to), known, "the first reset of {partition}");
                        continue;
                    }
                    ensure!(
                        !log.holds(*position),
                        "a reset although offset {position} of {partition} exists"
                    );
                    let start =
                        if member.offset_reset == OffsetReset::Latest { log.end() } else { log.start };
                    // Two resets before the first event become one reset.
                    let origin = known.map_or(*position, |(from, _)| from);
                    ensure_eq!((*from, *to), (origin, start), "the reset of {partition}");
                    *position = start;
                    member.floors.insert(partition.clone(), log.start);
                    if self.commits.get(partition).is_none_or(|commit| !log.holds(*commit)) {
                        self.commits.insert(partition.clone(), start);
                    }
                }
                // The topic may exist again. Other steps compare its partitions.
                SubscriptionEvent::TopicDeleted { .. } => {}
                other => {
                    return Err(Failure::new(format_args!("an event unknown to the model: {other:?}")));
                }
            }
        }
        let member =
            self.members.get(&at).ok_or_else(|| Failure::new("the member is unknown to the model"))?;
        for (partition, position) in &member.positions {
            let there = logs.get(partition).is_some_and(|log| log.holds(*position));
            ensure!(there, "offset {position} of {partition} no longer exists and no event reports a reset");
        }
        Ok(())
    }
}
