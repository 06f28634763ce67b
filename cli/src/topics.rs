//! `qi topics` and `qi lag`: the topics of a bus and their partitions, and the lag of groups.

use qi_core::bus::{
    GroupId, GroupInfo, GroupQuery, GroupState, MessageBus, PartitionInfo, TopicInfo, TopicName,
};
use qi_core::{Error, ErrorKind, Result, Selection};
use serde_json::Value;

use crate::output::{Listing, maybe, text};

/// Returns every topic with its partitions, replicas, messages and two of its settings. Settings that the principal
/// may not read are `hidden`.
///
/// # Errors
/// Errors of the bus.
pub async fn topics(bus: &dyn MessageBus) -> Result<Listing> {
    Ok(topic_rows(&bus.topics().await?))
}

/// Returns a topic by name.
///
/// # Errors
/// `NotFound` for an unknown topic; errors of the bus.
pub async fn find(bus: &dyn MessageBus, name: &TopicName) -> Result<TopicInfo> {
    bus.topics().await?.into_iter().find(|info| info.name == *name).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "topics.topic", "topics")
            .with_message("no topic has this name")
            .with_context("topic", name)
    })
}

/// Returns a row for each partition of a topic.
pub fn partitions(topic: &TopicInfo) -> Listing {
    let ids = |ids: &[i32]| text(ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let mut listing =
        Listing::new(["topic", "partition", "leader", "replicas", "in sync", "low", "high", "messages"]);
    for partition in &topic.partitions {
        listing.push([
            text(&topic.name),
            partition.id.into(),
            partition.leader.map_or(Value::Null, Into::into),
            ids(&partition.replicas),
            ids(&partition.in_sync),
            partition.low.into(),
            partition.high.into(),
            partition.offsets().into(),
        ]);
    }
    listing
}

/// Returns a row for each setting of a topic. Settings that the principal may not read are one row, `hidden`.
pub fn settings(topic: &TopicInfo) -> Listing {
    let mut listing = Listing::new(["topic", "setting", "value"]);
    match &topic.settings {
        Some(settings) => {
            for (name, value) in settings {
                listing.push([text(&topic.name), text(name), text(value)]);
            }
        }
        None => listing.push([text(&topic.name), text("all"), text("hidden")]),
    }
    listing
}

fn topic_rows(topics: &[TopicInfo]) -> Listing {
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
    for topic in topics {
        let partitions = &topic.partitions;
        let replicas = partitions.iter().map(|p| p.replicas.len()).max().unwrap_or(0);
        let out_of_sync: usize =
            partitions.iter().map(|p| p.replicas.len().saturating_sub(p.in_sync.len())).sum();
        let leaderless = partitions.iter().filter(|p| p.leader.is_none()).count();
        // An upper bound, because offsets may have gaps.
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
            out_of_sync.into(),
            leaderless.into(),
            messages.into(),
            low.into(),
            high.into(),
            setting("cleanup.policy"),
            setting("retention.ms"),
        ]);
    }
    listing
}

/// Returns the lag of groups: a row for each partition, or the sum for each group and topic. See [`lag_rows`].
///
/// # Errors
/// Errors of the bus.
pub async fn lag(bus: &dyn MessageBus, groups: Vec<GroupId>, each_partition: bool) -> Result<Listing> {
    Ok(lag_rows(&self::groups(bus, groups).await?, each_partition))
}

/// Returns these groups, or all if none are named.
///
/// # Errors
/// Errors of the bus.
pub async fn groups(bus: &dyn MessageBus, groups: Vec<GroupId>) -> Result<Vec<GroupInfo>> {
    let selection = if groups.is_empty() { Selection::All } else { Selection::only(groups)? };
    bus.groups(&GroupQuery::new(selection)).await
}

/// Returns a line for each topic of a group whose lag is above `max` or unknown, and for each wanted group that was not
/// found. A partition without a commit has an unknown lag, unless it is empty.
pub fn above(groups: &[GroupInfo], wanted: &[GroupId], max: u64) -> Vec<String> {
    let missing = wanted.iter().filter(|id| !groups.iter().any(|group| group.id == **id));
    let mut problems: Vec<_> = missing.map(|id| format!("group {id} does not exist")).collect();
    for group in groups {
        if !group.is_described() && group.partitions.is_empty() {
            problems.push(format!("the lag of group {} is unknown", group.id));
        }
        for part in group.partitions.chunk_by(|one, other| one.partition.topic == other.partition.topic) {
            let topic = &part[0].partition.topic;
            let lag = part.iter().try_fold(0_u64, |sum, at| match (at.lag, at.end) {
                (Some(lag), _) => Some(sum.saturating_add(lag)),
                (None, Some(0)) => Some(sum),
                (None, _) => None,
            });
            match lag {
                Some(lag) if lag <= max => {}
                Some(lag) => {
                    problems.push(format!("group {} has a lag of {lag} on {topic}, above {max}", group.id));
                }
                None => problems.push(format!("the lag of group {} on {topic} is unknown", group.id)),
            }
        }
    }
    problems
}

/// Returns a row for each partition, or the sum for each group and topic. A partition without a commit, or with an
/// unknown end because it has no leader, has no lag. A group that is hidden or cannot be described has a row without
/// members.
pub fn lag_rows(groups: &[GroupInfo], each_partition: bool) -> Listing {
    let mut listing = if each_partition {
        Listing::new(["group", "state", "members", "topic", "partition", "committed", "end", "lag"])
    } else {
        Listing::new(["group", "state", "members", "topic", "partitions", "without commit", "lag"])
    };
    for group in groups {
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
                    or_null(p.end),
                    or_null(p.lag),
                ]);
            }
            continue;
        }
        for part in group.partitions.chunk_by(|one, other| one.partition.topic == other.partition.topic) {
            let [id, state, members] = of_group();
            let without = part.iter().filter(|p| p.committed.is_none()).count();
            let known = part.iter().all(|p| p.end.is_some());
            let lag = or_null(known.then(|| total(part.iter().filter_map(|p| p.lag))));
            let topic = text(&part[0].partition.topic);
            listing.push([id, state, members, topic, part.len().into(), without.into(), lag]);
        }
    }
    listing
}

/// Adds offsets without overflow, because another tenant can set an offset to any number.
fn total(offsets: impl Iterator<Item = u64>) -> u64 {
    offsets.fold(0, u64::saturating_add)
}

fn or_null(number: Option<u64>) -> Value {
    number.map_or(Value::Null, Into::into)
}

#[cfg(test)]
mod tests {
    use qi_core::bus::{GroupPartition, TopicName, TopicPartition};

    use super::*;

    fn topic() -> TopicName {
        TopicName::new("t").unwrap()
    }

    #[test]
    fn offset_differences_saturate() {
        let partitions = vec![PartitionInfo::new(0, 9, 4), PartitionInfo::new(1, 2, 5)];
        let listing = topic_rows(&[TopicInfo::new(topic(), partitions)]);
        let row = &listing.rows()[0];
        assert_eq!((&row[5], &row[6], &row[7]), (&3.into(), &11.into(), &9.into()));
        let partitions = vec![PartitionInfo::new(0, 0, u64::MAX); 2];
        let listing = topic_rows(&[TopicInfo::new(topic(), partitions)]);
        assert_eq!(listing.rows()[0][5], u64::MAX);
    }

    #[test]
    fn settings_are_shown_or_hidden() {
        let info = TopicInfo::new(topic(), Vec::new());
        let settings = [("cleanup.policy".to_owned(), "compact".to_owned())].into();
        let listing = topic_rows(&[info.clone(), info.with_settings(settings)]);
        assert_eq!(listing.rows()[0][8..], ["hidden", "hidden"]);
        assert_eq!(listing.rows()[1][8..], [text("compact"), Value::Null]);
    }

    #[test]
    fn lag_is_empty_while_an_end_is_unknown() {
        let row = |number, end| GroupPartition::new(TopicPartition::new(topic(), number), Some(4), end);
        let rows = vec![row(0, Some(9)), row(1, None)];
        let groups = [GroupInfo::new("a".parse().unwrap(), GroupState::Empty, Vec::new(), rows)];
        assert_eq!(lag_rows(&groups, false).rows()[0].last(), Some(&Value::Null));
        let each = lag_rows(&groups, true);
        assert_eq!(each.rows()[0].last(), Some(&5.into()));
        assert_eq!(each.rows()[1][6..], [Value::Null, Value::Null]);
    }

    #[test]
    fn a_lag_above_the_maximum_or_unknown_is_a_problem() {
        let row = |number, committed, end| {
            GroupPartition::new(TopicPartition::new(topic(), number), committed, end)
        };
        let group = |rows| [GroupInfo::new("a".parse().unwrap(), GroupState::Stable, Vec::new(), rows)];
        let problems = |rows, max| above(&group(rows), &["a".parse().unwrap()], max);
        let two = || vec![row(0, Some(4), Some(9)), row(1, Some(2), Some(4))];
        assert_eq!(problems(two(), 7), [""; 0]);
        assert_eq!(problems(two(), 6), ["group a has a lag of 7 on t, above 6"]);
        assert_eq!(problems(vec![row(0, None, Some(0))], 0), [""; 0]);
        for unknown in [row(0, None, Some(1)), row(0, Some(1), None)] {
            assert_eq!(problems(vec![unknown], 9), ["the lag of group a on t is unknown"]);
        }
        let hidden = [GroupInfo::new("h".parse().unwrap(), GroupState::Hidden, Vec::new(), Vec::new())];
        let wanted = ["h".parse().unwrap(), "b".parse().unwrap()];
        assert_eq!(above(&hidden, &wanted, 9), ["group b does not exist", "the lag of group h is unknown"]);
    }

    #[test]
    fn groups_that_are_not_described_have_a_row() {
        let row = GroupPartition::new(TopicPartition::new(topic(), 0), Some(4), 9);
        let group = |id: &str, state, rows| GroupInfo::new(id.parse().unwrap(), state, Vec::new(), rows);
        let groups = [
            group("a", GroupState::Hidden, vec![]),
            group("b", GroupState::NotDescribed, vec![row]),
            group("c", GroupState::Empty, vec![]),
        ];
        for each_partition in [false, true] {
            let listing = lag_rows(&groups, each_partition);
            let rows = listing.rows();
            assert_eq!(rows.len(), 2, "{rows:?}");
            assert_eq!(rows[0][..4], [text("a"), text("hidden"), Value::Null, Value::Null]);
            assert_eq!(rows[1][..4], [text("b"), text("not described"), Value::Null, text("t")]);
            assert_eq!(rows[1].last(), Some(&5.into()));
        }
    }
}
