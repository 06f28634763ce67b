//! `qi topics` and `qi lag`: what is on the bus, and how far groups are behind.

use qi_core::bus::{GroupId, GroupQuery, GroupState, MessageBus, PartitionInfo};
use qi_core::{Result, Selection};
use serde_json::Value;

use crate::output::{Listing, maybe, text};

/// Returns every topic with its partitions, copies, messages and two of its settings. The settings of a topic that the
/// principal may not read are `hidden`.
///
/// # Errors
/// Of the bus.
pub async fn topics(bus: &dyn MessageBus) -> Result<Listing> {
    let mut listing = Listing::new([
        "topic",
        "partitions",
        "replicas",
        "out of sync",
        "no leader",
        "messages",
        "low",
        "high",
        "cleanup.policy",
        "retention.ms",
    ]);
    for topic in bus.topics().await? {
        let partitions = &topic.partitions;
        let replicas = partitions.iter().map(|p| p.replicas.len()).max().unwrap_or(0);
        let behind: usize = partitions.iter().map(|p| p.replicas.len().saturating_sub(p.in_sync.len())).sum();
        let leaderless = partitions.iter().filter(|p| p.leader.is_none()).count();
        // An upper bound: offsets need not be dense.
        let messages = total(partitions.iter().map(PartitionInfo::offsets));
        let low = total(partitions.iter().map(|p| p.low));
        let high = total(partitions.iter().map(|p| p.high));
        let setting = |name| match &topic.settings {
            Some(settings) => maybe(settings.get(name)),
            None => text("hidden"),
        };
        listing.push([
            text(&topic.name),
            partitions.len().into(),
            replicas.into(),
            behind.into(),
            leaderless.into(),
            messages.into(),
            low.into(),
            high.into(),
            setting("cleanup.policy"),
            setting("retention.ms"),
        ]);
    }
    Ok(listing)
}

/// Returns the lag of groups, a row for each partition, or one for each group and topic if they are added up. A
/// partition without a commit has no lag. A group that is hidden, or that cannot be described, has a row without members.
///
/// # Errors
/// Of the bus.
pub async fn lag(bus: &dyn MessageBus, groups: Vec<GroupId>, each_partition: bool) -> Result<Listing> {
    let selection = if groups.is_empty() { Selection::All } else { Selection::these(groups)? };
    let found = bus.groups(&GroupQuery::new(selection)).await?;
    let mut listing = if each_partition {
        Listing::new(["group", "state", "members", "topic", "partition", "committed", "end", "lag"])
    } else {
        Listing::new(["group", "state", "members", "topic", "partitions", "without commit", "lag"])
    };
    for group in &found {
        let state = match group.state {
            GroupState::Empty => "empty",
            GroupState::Rebalancing => "rebalancing",
            GroupState::Stable => "stable",
            GroupState::NotDescribed => "not described",
            GroupState::Hidden => "hidden",
            _ => "unknown",
        };
        let members = group.is_described().then_some(group.members.len());
        let of_group = || [text(&group.id), text(state), members.map_or(Value::Null, Into::into)];
        if !group.is_described() && group.partitions.is_empty() {
            listing.push(of_group());
        }
        if each_partition {
            for p in &group.partitions {
                let [id, state, members] = of_group();
                let (topic, number) = (text(&p.partition.topic), p.partition.partition.into());
                listing.push([
                    id,
                    state,
                    members,
                    topic,
                    number,
                    or_null(p.committed),
                    p.end.into(),
                    or_null(p.lag),
                ]);
            }
            continue;
        }
        for part in group.partitions.chunk_by(|one, other| one.partition.topic == other.partition.topic) {
            let [id, state, members] = of_group();
            let without = part.iter().filter(|p| p.committed.is_none()).count();
            let lag = total(part.iter().filter_map(|p| p.lag));
            let topic = text(&part[0].partition.topic);
            listing.push([id, state, members, topic, part.len().into(), without.into(), lag.into()]);
        }
    }
    Ok(listing)
}

/// The sum of offsets, which another tenant can set to any number.
fn total(offsets: impl Iterator<Item = u64>) -> u64 {
    offsets.fold(0, u64::saturating_add)
}

fn or_null(number: Option<u64>) -> Value {
    number.map_or(Value::Null, Into::into)
}
