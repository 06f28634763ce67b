//! `qi topics` and `qi lag`: what is on the bus, and how far groups are behind.

use qi_core::bus::{GroupId, GroupQuery, GroupState, MessageBus};
use qi_core::{Result, Selection};
use serde_json::Value;

use crate::output::{Listing, text};

/// Every topic with its partitions, copies and messages.
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
    ]);
    for topic in bus.topics().await? {
        let partitions = &topic.partitions;
        let replicas = partitions.iter().map(|p| p.replicas.len()).max().unwrap_or(0);
        let behind: usize = partitions.iter().map(|p| p.replicas.len().saturating_sub(p.in_sync.len())).sum();
        let leaderless = partitions.iter().filter(|p| p.leader.is_none()).count();
        // An upper bound: offsets need not be dense.
        let messages: u64 = partitions.iter().map(|p| p.high - p.low).sum();
        let low: u64 = partitions.iter().map(|p| p.low).sum();
        let high: u64 = partitions.iter().map(|p| p.high).sum();
        listing.push([
            text(&topic.name),
            partitions.len().into(),
            replicas.into(),
            behind.into(),
            leaderless.into(),
            messages.into(),
            low.into(),
            high.into(),
        ]);
    }
    Ok(listing)
}

/// How far groups are behind, a row for each partition, or one for each group and topic if they are added up. A
/// partition without a commit has no lag.
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
            _ => "unknown",
        };
        let of_group = || [text(&group.id), text(state), group.members.len().into()];
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
            let lag: u64 = part.iter().filter_map(|p| p.lag).sum();
            let topic = text(&part[0].partition.topic);
            listing.push([id, state, members, topic, part.len().into(), without.into(), lag.into()]);
        }
    }
    Ok(listing)
}

fn or_null(number: Option<u64>) -> Value {
    number.map_or(Value::Null, Into::into)
}
