//! What can happen.

use proptest::collection::vec;
use proptest::prelude::*;

/// How many topics a history has; topic `n` has `n + 2` partitions.
pub(super) const TOPICS: usize = 2;
/// How many groups.
pub(super) const GROUPS: usize = 2;
/// How many members a group has at most over the whole history.
pub(super) const MEMBERS: usize = 4;

/// How many partitions a topic has.
pub(super) fn partitions(topic: usize) -> u32 {
    if topic == 0 { 2 } else { 3 }
}

/// One thing that happens. Members are meant by their place among those that are there, so that every history can
/// be run; what finds nobody does nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// So many messages to a topic, the first to this partition, the others round about.
    Publish {
        /// Which topic.
        topic: usize,
        /// Where the first one goes.
        partition: u32,
        /// How many.
        count: usize,
    },
    /// Somebody joins a group that reads both topics.
    Join {
        /// Which group.
        group: usize,
        /// Whether a fresh partition starts at its end.
        latest: bool,
    },
    /// A member reads.
    Recv {
        /// Which group.
        group: usize,
        /// Which member.
        member: usize,
        /// How much at most.
        max: usize,
    },
    /// A member commits all that it has read, except the last few of each partition.
    Commit {
        /// Which group.
        group: usize,
        /// Which member.
        member: usize,
        /// How many it leaves out.
        short_of: u64,
    },
    /// A member commits more than it has read, which is refused.
    CommitTooFar {
        /// Which group.
        group: usize,
        /// Which member.
        member: usize,
    },
    /// A member goes to an offset of its first partition, which there need not be.
    Seek {
        /// Which group.
        group: usize,
        /// Which member.
        member: usize,
        /// Where to; 0 is the oldest, 1 the end, others this minus 2.
        to: u64,
    },
    /// A member pauses its first partition, or lets all go on.
    Pause {
        /// Which group.
        group: usize,
        /// Which member.
        member: usize,
        /// Whether it pauses.
        pause: bool,
    },
    /// A member leaves.
    Leave {
        /// Which group.
        group: usize,
        /// Which member.
        member: usize,
    },
    /// A member dies without a word.
    Kill {
        /// Which group.
        group: usize,
        /// Which member.
        member: usize,
    },
    /// A part of a partition goes, in percent of what there is.
    Trim {
        /// Which topic.
        topic: usize,
        /// Which partition.
        partition: u32,
        /// How much of it.
        percent: u64,
    },
    /// A topic is deleted, and created anew at once if `again`.
    Delete {
        /// Which topic.
        topic: usize,
        /// Whether it comes back.
        again: bool,
    },
    /// More time passes than a session and a poll limit last.
    Silence,
}

fn step() -> impl Strategy<Value = Step> {
    let (topic, group, member) = (0..TOPICS, 0..GROUPS, 0..MEMBERS);
    let who = (group.clone(), member);
    prop_oneof![
        6 => (topic.clone(), 0..3_u32, 1..8_usize).prop_map(|(topic, partition, count)| Step::Publish { topic, partition, count }),
        3 => (group, any::<bool>()).prop_map(|(group, latest)| Step::Join { group, latest }),
        12 => (who.clone(), 1..12_usize).prop_map(|((group, member), max)| Step::Recv { group, member, max }),
        5 => (who.clone(), 0..3_u64).prop_map(|((group, member), short_of)| Step::Commit { group, member, short_of }),
        1 => who.clone().prop_map(|(group, member)| Step::CommitTooFar { group, member }),
        2 => (who.clone(), 0..14_u64).prop_map(|((group, member), to)| Step::Seek { group, member, to }),
        2 => (who.clone(), any::<bool>()).prop_map(|((group, member), pause)| Step::Pause { group, member, pause }),
        1 => who.clone().prop_map(|(group, member)| Step::Leave { group, member }),
        1 => who.prop_map(|(group, member)| Step::Kill { group, member }),
        1 => (topic.clone(), 0..3_u32, 0..=100_u64).prop_map(|(topic, partition, percent)| Step::Trim { topic, partition, percent }),
        1 => (topic, prop::bool::weighted(0.8)).prop_map(|(topic, again)| Step::Delete { topic, again }),
        1 => Just(Step::Silence),
    ]
}

/// Histories of up to `length` steps.
pub fn histories(length: usize) -> impl Strategy<Value = Vec<Step>> {
    vec(step(), 1..=length)
}
