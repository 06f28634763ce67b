//! Random sequences of bus operations (histories) for the model test.

use proptest::collection::vec;
use proptest::prelude::*;

/// The number of topics in a history. Topic `n` has `n + 2` partitions.
pub(super) const TOPICS: usize = 2;
/// The number of groups in a history.
pub(super) const GROUPS: usize = 2;
/// The largest number of members that a group has at a time.
pub(super) const MEMBERS: usize = 4;

/// Returns the number of partitions of a topic.
pub(super) fn partitions(topic: usize) -> u32 {
    if topic == 0 { 2 } else { 3 }
}

/// A step of a history. A step selects a member by its index, so every history can run. The index is taken modulo the
/// number of present members. In an empty group, the step does nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Publishes messages to a topic, the first one to the given partition and the others to the
    /// next partitions in turn.
    Publish {
        /// The index of the topic.
        topic: usize,
        /// The partition of the first message.
        partition: u32,
        /// The number of messages.
        count: usize,
    },
    /// Adds a member to a group that reads both topics.
    Join {
        /// The index of the group.
        group: usize,
        /// True to start at the end of a partition without a commit.
        latest: bool,
    },
    /// Receives messages with a member.
    Recv {
        /// The index of the group.
        group: usize,
        /// The index of the member.
        member: usize,
        /// The largest number of messages.
        max: usize,
    },
    /// Commits the positions of a member, minus some messages of each partition.
    Commit {
        /// The index of the group.
        group: usize,
        /// The index of the member.
        member: usize,
        /// Offsets subtracted from each position.
        uncommitted: u64,
    },
    /// Commits an offset above the position of a member. The bus rejects this commit.
    CommitAbovePosition {
        /// The index of the group.
        group: usize,
        /// The index of the member.
        member: usize,
    },
    /// Seeks the first partition of a member. The offset need not exist.
    Seek {
        /// The index of the group.
        group: usize,
        /// The index of the member.
        member: usize,
        /// The target: 0 is the oldest message, 1 the end, and any other value the offset `to - 2`.
        to: u64,
    },
    /// Pauses the first partition of a member, or resumes all its partitions.
    Pause {
        /// The index of the group.
        group: usize,
        /// The index of the member.
        member: usize,
        /// True to pause, false to resume.
        pause: bool,
    },
    /// Closes the subscription of a member.
    Leave {
        /// The index of the group.
        group: usize,
        /// The index of the member.
        member: usize,
    },
    /// Disconnects a member, which does not leave its group.
    Disconnect {
        /// The index of the group.
        group: usize,
        /// The index of the member.
        member: usize,
    },
    /// Removes the oldest part of a partition.
    DeleteRecords {
        /// The index of the topic.
        topic: usize,
        /// The index of the partition.
        partition: u32,
        /// The removed part in percent of the present messages.
        percent: u64,
    },
    /// Deletes a topic and, if `recreate`, creates the topic again immediately.
    Delete {
        /// The index of the topic.
        topic: usize,
        /// True to create the topic again.
        recreate: bool,
    },
    /// Waits for the sum of the session timeout and the maximum poll interval.
    WaitForExpiry,
}

fn step() -> impl Strategy<Value = Step> {
    let (topic, group, member) = (0..TOPICS, 0..GROUPS, 0..MEMBERS);
    let who = (group.clone(), member);
    prop_oneof![
        6 => (topic.clone(), 0..3_u32, 1..8_usize).prop_map(|(topic, partition, count)| Step::Publish { topic, partition, count }),
        3 => (group, any::<bool>()).prop_map(|(group, latest)| Step::Join { group, latest }),
        12 => (who.clone(), 1..12_usize).prop_map(|((group, member), max)| Step::Recv { group, member, max }),
        5 => (who.clone(), 0..3_u64).prop_map(|((group, member), uncommitted)| Step::Commit { group, member, uncommitted }),
        1 => who.clone().prop_map(|(group, member)| Step::CommitAbovePosition { group, member }),
        2 => (who.clone(), 0..14_u64).prop_map(|((group, member), to)| Step::Seek { group, member, to }),
        2 => (who.clone(), any::<bool>()).prop_map(|((group, member), pause)| Step::Pause { group, member, pause }),
        1 => who.clone().prop_map(|(group, member)| Step::Leave { group, member }),
        1 => who.prop_map(|(group, member)| Step::Disconnect { group, member }),
        1 => (topic.clone(), 0..3_u32, 0..=100_u64).prop_map(|(topic, partition, percent)| Step::DeleteRecords { topic, partition, percent }),
        1 => (topic, prop::bool::weighted(0.8)).prop_map(|(topic, recreate)| Step::Delete { topic, recreate }),
        1 => Just(Step::WaitForExpiry),
    ]
}

/// Returns a strategy for histories of up to `length` steps.
pub fn histories(length: usize) -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..=length)
}
