//! Groups as an operator sees them: members and their partitions, commits and lag.

use std::collections::BTreeSet;
use std::time::Duration;

use qi_core::bus::{GroupId, GroupInfo, GroupMember, GroupPartition, GroupState, TopicName, TopicPartition};
use qi_core::{Result, Selection};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;

use super::link::{Inspector, Link};
use super::offsets::{self, Place};
use super::{error, link, settings};
use crate::config::RedpandaConfig;

/// What the brokers say of a group.
#[derive(Debug)]
struct Listed {
    state: String,
    members: Vec<GroupMember>,
}

/// Describes groups. Everything in here blocks.
pub(super) fn describe(
    config: &RedpandaConfig,
    inspector: &Inspector,
    groups: &Selection<GroupId>,
    limit: Duration,
) -> Result<Vec<GroupInfo>> {
    let failed = |e| link::explain(inspector, error::asked(e, "groups"));
    let all = all_partitions(inspector, limit).map_err(failed)?;
    let wanted: BTreeSet<GroupId> = match groups {
        Selection::All => names(inspector, limit).map_err(failed)?,
        Selection::These(these) => these.iter().cloned().collect(),
    };
    let wanted: Vec<_> = wanted.into_iter().collect();
    let look = Look { config, inspector, all: &all, limit };
    // Each group is asked by a client of its own, most of whose time is waiting.
    let share = wanted.len().div_ceil(AT_ONCE).max(1);
    let found: Vec<Result<Vec<GroupInfo>>> = std::thread::scope(|scope| {
        let shares: Vec<_> = wanted
            .chunks(share)
            .map(|groups| {
                scope.spawn(move || groups.iter().filter_map(|group| look.at(group).transpose()).collect())
            })
            .collect();
        let ended = shares.into_iter().map(std::thread::ScopedJoinHandle::join);
        ended
            .map(|found| found.unwrap_or_else(|_| Err(error::internal("groups", "a look-up panicked"))))
            .collect()
    });
    Ok(found.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

/// So often a group is looked at before it is said that it cannot be described.
const ROUNDS: usize = 3;

/// What one look at a group found.
enum Seen {
    Is(GroupInfo),
    Nowhere,
    /// It is there, and the brokers do not describe it.
    Undescribed,
}

/// So many groups are asked for at once.
const AT_ONCE: usize = 16;

/// What every group is asked with.
#[derive(Clone, Copy)]
struct Look<'a> {
    config: &'a RedpandaConfig,
    inspector: &'a Inspector,
    all: &'a [TopicPartition],
    limit: Duration,
}

impl Look<'_> {
    /// One group, if there is such a group.
    fn at(self, group: &GroupId) -> Result<Option<GroupInfo>> {
        for _ in 0..ROUNDS {
            match self.look(group)? {
                Seen::Is(info) => return Ok(Some(info)),
                Seen::Nowhere => return Ok(None),
                // It may have been deleted between two questions, or made again.
                Seen::Undescribed => {}
            }
        }
        Err(error::consumer_protocol(group.as_str()))
    }

    fn look(self, group: &GroupId) -> Result<Seen> {
        let Self { config, inspector, all, limit } = self;
        let failed = |e| link::explain(inspector, error::asked(e, "groups"));
        // The group's own coordinator is asked first: the list of groups hides a broker that does not answer behind
        // another's answer.
        let asking: BaseConsumer<Link> = settings::inspector(config, Some(group.as_str()))
            .create_with_context(Link::new("admin", ""))
            .map_err(|e| error::of(e, "groups"))?;
        let commits = offsets::committed(&asking, all, limit);
        let commits = commits.map_err(|e| link::explain(&asking, error::asked(e, "groups")))?;
        drop(asking);
        let listed = list(inspector, group, limit).map_err(failed)?;
        let Some(listed) = listed.filter(|listed| listed.state != "Dead") else {
            // The brokers call a group that they cannot describe in this protocol dead, and list it all the same.
            let there = !commits.is_empty() || names(inspector, limit).map_err(failed)?.contains(group);
            return Ok(if there { Seen::Undescribed } else { Seen::Nowhere });
        };
        if listed.members.is_empty() && commits.is_empty() {
            return Ok(Seen::Nowhere);
        }
        let state = match listed.state.as_str() {
            "Stable" => GroupState::Stable,
            "Empty" => GroupState::Empty,
            _ => GroupState::Rebalancing,
        };
        let owned = listed.members.iter().flat_map(|member| &member.partitions).cloned();
        let places: BTreeSet<_> = owned.chain(commits.keys().cloned()).collect();
        let mut partitions = Vec::with_capacity(places.len());
        for (place, end) in offsets::find_each(inspector, &places, Place::End, limit).map_err(failed)? {
            match end {
                Ok(end) => {
                    let committed = commits.get(&place).copied();
                    partitions.push(GroupPartition::new(place, committed, end));
                }
                // The topic was deleted meanwhile.
                Err(error) if error::is_gone(&error) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(Seen::Is(GroupInfo::new(group.clone(), state, listed.members, partitions)))
    }
}

/// Every partition of every topic: there is no question for "all commits of this group".
fn all_partitions(inspector: &Inspector, limit: Duration) -> KafkaResult<Vec<TopicPartition>> {
    let metadata = inspector.fetch_metadata(None, limit)?;
    let mut all = Vec::new();
    for topic in metadata.topics() {
        let Ok(name) = TopicName::new(topic.name()) else { continue };
        let numbers = topic.partitions().iter().filter_map(|partition| u32::try_from(partition.id()).ok());
        all.extend(numbers.map(|number| TopicPartition::new(name.clone(), number)));
    }
    Ok(all)
}

/// The names of all groups of consumers.
fn names(inspector: &Inspector, limit: Duration) -> KafkaResult<BTreeSet<GroupId>> {
    let list = inspector.fetch_group_list(None, limit)?;
    let consumers = list.groups().iter().filter(|group| matches!(group.protocol_type(), "consumer" | ""));
    Ok(consumers.filter_map(|group| GroupId::new(group.name()).ok()).collect())
}

fn list(inspector: &Inspector, group: &GroupId, limit: Duration) -> KafkaResult<Option<Listed>> {
    let list = inspector.fetch_group_list(Some(group.as_str()), limit)?;
    let found = list.groups().iter().find(|found| found.name() == group.as_str());
    Ok(found.map(|found| Listed {
        state: found.state().to_owned(),
        members: found
            .members()
            .iter()
            .map(|member| {
                let partitions = member.assignment().and_then(assignment).unwrap_or_default();
                GroupMember::new(member.id().to_owned(), member.client_id().to_owned(), partitions)
            })
            .collect(),
    }))
}

/// Reads a member's assignment: the consumer protocol's version, then topics with their partitions, all numbers
/// big-endian (`ConsumerProtocolAssignment.json` of Kafka). None if it is something else.
fn assignment(mut bytes: &[u8]) -> Option<Vec<TopicPartition>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let bytes = &mut bytes;
    let _version = i16::from_be_bytes(take(bytes)?);
    let topics = i32::from_be_bytes(take(bytes)?);
    let mut found = Vec::new();
    for _ in 0..topics {
        let length = usize::try_from(i16::from_be_bytes(take(bytes)?)).ok()?;
        let (name, rest) = bytes.split_at_checked(length)?;
        *bytes = rest;
        let topic = TopicName::new(std::str::from_utf8(name).ok()?).ok()?;
        for _ in 0..i32::from_be_bytes(take(bytes)?) {
            let number = u32::try_from(i32::from_be_bytes(take(bytes)?)).ok()?;
            found.push(TopicPartition::new(topic.clone(), number));
        }
    }
    found.sort_unstable();
    Some(found)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

/// Decodes any bytes as a member's assignment.
#[cfg(feature = "fuzzing")]
pub fn fuzz_assignment(bytes: &[u8]) {
    // A partition takes four bytes.
    assert!(assignment(bytes).is_none_or(|found| found.len() <= bytes.len() / 4));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read_and_garbage_is_not() {
        let bytes = [
            &[0, 1, 0, 0, 0, 2][..],
            &[0, 1, b'b', 0, 0, 0, 1, 0, 0, 0, 7],
            &[0, 1, b'a', 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 1],
            &[255, 255, 255, 255],
        ]
        .concat();
        let found = assignment(&bytes).unwrap();
        let shown: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a/1", "a/3", "b/7"]);
        assert_eq!(assignment(&[]), Some(vec![]));
        for cut in 1..bytes.len() - 4 {
            assert_eq!(assignment(&bytes[..cut]), None, "cut to {cut} bytes");
        }
        assert_eq!(assignment(&[0, 1, 127, 255, 255, 255]), None, "a count that nothing follows");
    }
}
