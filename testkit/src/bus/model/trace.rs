//! The results on which two buses must agree.

use std::cell::Cell;
use std::collections::BTreeMap;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::join;
use qi_core::bus::{GroupQuery, Headers, MessageBusExt, Offsets, ReceivedMessage, TopicPartition};
use qi_core::{Error, ErrorKind, Timestamp};
use tokio::time::Instant;

use super::Step;
use super::history::{GROUPS, TOPICS, partitions};
use super::run::{Actor, Stage};
use crate::bus::contract::{BusEnv, CheckResult, Failure};

/// The content of a message from its sender: key, payload, headers and timestamp.
pub type Content = (Option<Bytes>, Option<Bytes>, Headers, Option<Timestamp>);

/// The results of a history. Batches, owners, offsets and arrival times are not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trace {
    /// By group and partition: the messages that the group received, each once and in the order of the log.
    pub received: BTreeMap<(usize, TopicPartition), Vec<Content>>,
    /// By group and partition: the number of messages before the final commit.
    pub committed: BTreeMap<(usize, TopicPartition), usize>,
    /// By step: the kind of the error, and its code without the backend's name.
    pub errors: Vec<(usize, ErrorKind, String)>,
}

/// Runs a history without regard for owners and times. Every message has the time `stamp`. Every read continues until
/// the group has all messages, and a commit covers all messages read. Steps that depend on a bus's timing are skipped:
/// silence, seeks, pauses, trims and deletions under a reader, and starts at the end.
///
/// # Errors
/// A rejection by the bus that the contract does not allow.
pub async fn trace(env: &dyn BusEnv, history: &[Step], stamp: Timestamp) -> CheckResult<Trace> {
    let mut stage = Stage::open(env).await?;
    let mut trace = Trace::default();
    let mut seen = Seen::new();
    let mut total: usize = 0;
    for (n, step) in history.iter().enumerate() {
        match *step {
            Step::Publish { topic, partition, count } => {
                let mut batch = stage.messages(topic, partition, count)?;
                for message in &mut batch {
                    message.timestamp = Some(stamp);
                }
                total += stage.bus.send(&batch).await?.len();
            }
            Step::Join { group, .. } => join(&mut stage, group, &mut seen).await?,
            Step::Recv { group, .. } => gather(&mut stage, group, total, &mut seen).await?,
            Step::Commit { group, .. } => commit(&mut stage, group, &seen).await?,
            Step::CommitTooFar { group, member } => {
                gather(&mut stage, group, total, &mut seen).await?;
                if let Some((_, actor)) = stage.actor(group, member) {
                    let assignment = actor.sub.assignment().await?;
                    let beyond: Offsets = assignment
                        .partitions
                        .into_iter()
                        .take(1)
                        .map(|p| (p.partition, p.position + 1))
                        .collect();
                    if let Err(error) = actor.sub.commit(&beyond).await {
                        trace.errors.push((n, error.kind(), code(&error)));
                    }
                }
            }
            Step::Leave { group, member } => {
                if let Some((at, actor)) = stage.actor(group, member) {
                    actor.sub.close().await?;
                    stage.actors[group].remove(&at);
                }
            }
            Step::Kill { group, member } => {
                if let Some((at, actor)) = stage.actor(group, member) {
                    actor.client.connection.interrupt().await;
                    stage.actors[group].remove(&at);
                }
            }
            _ => {}
        }
    }
    // By then, the sessions of killed members have passed.
    tokio::time::sleep(env.timing().session_timeout + env.timing().receive_timeout).await;
    for group in 0..GROUPS {
        join(&mut stage, group, &mut seen).await?;
        read_to_the_end(&mut stage, group, &mut seen).await?;
        commit(&mut stage, group, &seen).await?;
        let known = stage.bus.groups(&GroupQuery::one(stage.groups[group].clone())).await?;
        for row in known.into_iter().flat_map(|info| info.partitions) {
            let place = (group, row.partition);
            let (messages, next) = (seen.get(&place), row.committed.unwrap_or(0));
            let count = messages.map_or(0, |all| all.range(..next).count());
            trace.committed.insert(place, count);
        }
    }
    let contents = seen.into_iter().map(|(place, all)| (place, all.into_values().collect()));
    trace.received = contents.collect();
    Ok(trace)
}

/// Returns the code without the backend's name, which differs between two backends.
fn code(error: &Error) -> String {
    error.code().split('.').skip(2).collect::<Vec<_>>().join(".")
}

fn content(message: &ReceivedMessage) -> Content {
    (message.key.clone(), message.payload.clone(), message.headers.clone(), message.timestamp)
}

type Seen = BTreeMap<(usize, TopicPartition), BTreeMap<u64, Content>>;

/// Adds a member while the others read. Brokers wait for members that do not read.
async fn join(stage: &mut Stage<'_>, group: usize, seen: &mut Seen) -> CheckResult {
    let Some((client, request)) = stage.invite(group, false).await? else { return Ok(()) };
    let bus = client.bus.clone();
    let joined = Cell::new(false);
    let joining = async {
        let sub = bus.subscribe(request).await;
        joined.set(true);
        sub
    };
    let reading = async {
        while !joined.get() && !stage.actors[group].is_empty() {
            read_once(stage, group, seen).await?;
        }
        Ok(())
    };
    let (sub, read): (_, CheckResult) = join!(joining, reading);
    read?;
    stage.take_in(group, Actor { client, sub: sub? });
    Ok(())
}

/// Receives once with every member, all at the same time.
async fn read_once(stage: &mut Stage<'_>, group: usize, seen: &mut Seen) -> CheckResult {
    let short = stage.env.timing().receive_timeout;
    let members = stage.actors[group].values_mut();
    let batches = try_join_all(members.map(|actor| actor.sub.recv(500, short))).await?;
    for batch in batches {
        for message in batch.messages() {
            let place = (group, TopicPartition::new(message.topic.clone(), message.partition));
            let before = seen.entry(place).or_default().insert(message.offset, content(message));
            if before.is_some_and(|before| before != content(message)) {
                return Err(Failure::new(format_args!("another message at offset {}", message.offset)));
            }
        }
    }
    Ok(())
}

/// Reads until every partition has an owner at its end.
async fn read_to_the_end(stage: &mut Stage<'_>, group: usize, seen: &mut Seen) -> CheckResult {
    let all: u32 = (0..TOPICS).map(partitions).sum();
    let deadline = Instant::now() + stage.env.timing().effect_timeout;
    loop {
        read_once(stage, group, seen).await?;
        let (mut owned, mut lag) = (0, 0);
        for actor in stage.actors[group].values_mut() {
            let assignment = actor.sub.assignment().await?;
            owned += assignment.partitions.len();
            lag += assignment.lag();
        }
        if (owned, lag) == (all as usize, 0) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(format_args!("{owned} of {all} partitions, {lag} messages behind")));
        }
    }
}

/// Reads with every member until the group has received `total` messages.
async fn gather(stage: &mut Stage<'_>, group: usize, total: usize, seen: &mut Seen) -> CheckResult {
    if stage.actors[group].is_empty() {
        return Ok(());
    }
    let timing = stage.env.timing();
    let deadline = Instant::now() + timing.effect_timeout;
    loop {
        read_once(stage, group, seen).await?;
        let count: usize = seen.iter().filter(|((g, _), _)| *g == group).map(|(_, all)| all.len()).sum();
        if count >= total {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(format_args!("group {group} has {count} of {total} messages")));
        }
    }
}

/// Commits the received messages of the group through the owners of the partitions.
async fn commit(stage: &mut Stage<'_>, group: usize, seen: &Seen) -> CheckResult {
    for actor in stage.actors[group].values_mut() {
        let mut upto = Offsets::new();
        for assigned in actor.sub.assignment().await?.partitions {
            let last =
                seen.get(&(group, assigned.partition.clone())).and_then(|all| all.keys().last().copied());
            if let Some(last) = last {
                upto.set(assigned.partition, assigned.position.min(last + 1));
            }
        }
        actor.sub.commit(&upto).await?;
    }
    Ok(())
}
