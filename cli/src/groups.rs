//! `qi groups reset`: commits new offsets for a consumer group.

use std::collections::BTreeMap;

use qi_core::bus::{
    GroupId, GroupQuery, GroupState, MessageBus, Offsets, ReaderRequest, SeekTo, SubscribeRequest,
    Subscription, TopicName, TopicPartition,
};
use qi_core::{Error, ErrorKind, Result, Selection};
use serde_json::Value;

use crate::output::{Listing, text};
use crate::topics;

/// Commits the position `to` in every partition of a topic for a group without members. Returns a row with the old and
/// the new offset of each partition. With `dry_run` commits nothing.
///
/// The command joins the group for the commit, so a member that starts at the same moment makes it fail. A position
/// beyond the messages of a partition becomes the nearest existing offset.
///
/// # Errors
/// `NotFound` for an unknown topic; `Conflict` if the group has members, cannot be described, or gets another member;
/// errors of the bus.
pub async fn reset(
    bus: &dyn MessageBus,
    group: &GroupId,
    topic: &TopicName,
    to: SeekTo,
    dry_run: bool,
) -> Result<Listing> {
    let info = topics::find(bus, topic).await?;
    let committed = committed(bus, group, topic).await?;
    let bounds = info
        .partitions
        .iter()
        .map(|found| (TopicPartition::new(topic.clone(), found.id), (found.low, found.high.max(found.low))));
    let bounds: BTreeMap<_, _> = bounds.collect();
    let targets = match to {
        SeekTo::Offset(offset) => bounds
            .iter()
            .map(|(partition, (low, high))| (partition.clone(), offset.clamp(*low, *high)))
            .collect(),
        _ => resolve(bus, bounds.keys(), to).await?,
    };
    if !dry_run {
        commit(bus, group, topic, &targets).await?;
    }
    let mut listing = Listing::new(["group", "topic", "partition", "committed", "new"]);
    for (partition, target) in targets.iter() {
        let old = committed.get(partition).map_or(Value::Null, Into::into);
        listing.push([text(group), text(topic), partition.partition.into(), old, target.into()]);
    }
    Ok(listing)
}

/// Returns the commits of a group that has no members.
async fn committed(bus: &dyn MessageBus, group: &GroupId, topic: &TopicName) -> Result<Offsets> {
    let query = GroupQuery::one(group.clone()).with_topics(Selection::one(topic.clone()));
    let Some(found) = bus.groups(&query).await?.pop() else { return Ok(Offsets::new()) };
    if !found.is_described() {
        let state = if found.state == GroupState::Hidden { "hidden" } else { "not described" };
        return Err(conflict(group, format_args!("the group is {state}, so its members are unknown")));
    }
    match found.members.len() {
        0 => {
            let commits = found.partitions.into_iter().filter_map(|at| Some((at.partition, at.committed?)));
            Ok(commits.collect())
        }
        members => Err(conflict(
            group,
            format_args!("the group has active members ({members}), which must stop first"),
        )),
    }
}

/// Returns the offsets of a position in partitions.
async fn resolve(
    bus: &dyn MessageBus,
    partitions: impl Iterator<Item = &TopicPartition>,
    to: SeekTo,
) -> Result<Offsets> {
    let request = ReaderRequest::new(partitions.map(|partition| (partition.clone(), to)))?;
    let mut reader = bus.open_reader(request).await?;
    let assignment = reader.assignment().await;
    let closed = reader.close().await;
    let positions = assignment?.partitions.into_iter().map(|at| (at.partition, at.position)).collect();
    closed.map(|()| positions)
}

/// Joins the group and commits the offsets.
async fn commit(bus: &dyn MessageBus, group: &GroupId, topic: &TopicName, to: &Offsets) -> Result<()> {
    let mut member = bus.subscribe(SubscribeRequest::new(group.clone(), [topic.clone()])?).await?;
    let outcome = commit_as(&mut *member, group, to).await;
    // `and` returns the first error, which is more useful than an error of `close`.
    let closed = member.close().await;
    outcome.and(closed)
}

async fn commit_as(member: &mut dyn Subscription, group: &GroupId, to: &Offsets) -> Result<()> {
    let assigned = member.assignment().await?.partitions;
    if to.iter().any(|(partition, _)| !assigned.iter().any(|own| own.partition == *partition)) {
        return Err(conflict(group, "another member joined the group"));
    }
    let positions: Vec<_> =
        to.iter().map(|(partition, at)| (partition.clone(), SeekTo::Offset(at))).collect();
    member.seek(&positions).await?;
    let committed = member.commit(to).await?;
    match committed.lost.first() {
        None => Ok(()),
        Some(partition) => {
            Err(conflict(group, "another member joined the group").with_context("partition", partition))
        }
    }
}

fn conflict(group: &GroupId, rule: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Conflict, "groups.reset", "reset").with_message(rule).with_context("group", group)
}
