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
use super::run::{HistoryState, MemberClient};
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
/// waits, seeks, pauses, and deletions of records and topics. Every member starts at the earliest offset.
///
/// # Errors
/// A rejection by the bus that the contract does not allow, a missing message, or different messages at one offset.
pub async fn trace(env: &dyn BusEnv, history: &[Step], stamp: Timestamp) -> CheckResult<Trace> {
    let mut state = HistoryState::open(env).await?;
    let mut trace = Trace::default();
    let mut received = ReceivedByOffset::new();
    let mut total: usize = 0;
    for (n, step) in history.iter().enumerate() {
        match *step {
            Step::Publish { topic, partition, count } => {
                let mut batch = state.messages(topic, partition, count)?;
                for message in &mut batch {
                    message.timestamp = Some(stamp);
                }
                total += state.bus.send(&batch).await?.len();
            }
            Step::Join { group, .. } => join(&mut state, group, &mut received).await?,
            Step::Recv { group, .. } => receive_until(&mut state, group, total, &mut received).await?,
            Step::Commit { group, .. } => commit(&mut state, group, &received).await?,
            Step::CommitAbovePosition { group, member } => {
                receive_until(&mut state, group, total, &mut received).await?;
                if let Some((_, client)) = state.client(group, member) {
                    let assignment = client.sub.assignment().await?;
                    let beyond: Offsets = assignment
                        .partitions
                        .into_iter()
                        .take(1)
                        .map(|p| (p.partition, p.position + 1))
                        .collect();
                    if let Err(error) = client.sub.commit(&beyond).await {
                        trace.errors.push((n, error.kind(), code(&error)));
                    }
                }
            }
            Step::Leave { group, member } => {
                if let Some((at, client)) = state.client(group, member) {
                    client.sub.close().await?;
                    state.clients[group].remove(&at);
                }
            }
            Step::Disconnect { group, member } => {
                if let Some((at, client)) = state.client(group, member) {
                    client.client.connection.interrupt().await;
                    state.clients[group].remove(&at);
                }
            }
            _ => {}
        }
    }
    // By then, the sessions of disconnected members have expired.
    tokio::time::sleep(env.timing().session_timeout + env.timing().receive_timeout).await;
    for group in 0..GROUPS {
        join(&mut state, group, &mut received).await?;
        read_to_the_end(&mut state, group, &mut received).await?;
        commit(&mut state, group, &received).await?;
        let known = state.bus.groups(&GroupQuery::one(state.groups[group].clone())).await?;
        for row in known.into_iter().flat_map(|info| info.partitions) {
            let key = (group, row.partition);
            let (messages, next) = (received.get(&key), row.committed.unwrap_or(0));
            let count = messages.map_or(0, |all| all.range(..next).count());
            trace.committed.insert(key, count);
        }
    }
    let contents = received.into_iter().map(|(key, all)| (key, all.into_values().collect()));
    trace.received = contents.collect();
    Ok(trace)
}

/// Returns the code without its port and the backend's name, which differs between two backends.
fn code(error: &Error) -> String {
    error.code().split('.').skip(2).collect::<Vec<_>>().join(".")
}

fn content(message: &ReceivedMessage) -> Content {
    (message.key.clone(), message.payload.clone(), message.headers.clone(), message.timestamp)
}

type ReceivedByOffset = BTreeMap<(usize, TopicPartition), BTreeMap<u64, Content>>;

/// Adds a member while the others read. Brokers wait for members that do not read.
async fn join(state: &mut HistoryState<'_>, group: usize, received: &mut ReceivedByOffset) -> CheckResult {
    let Some((client, request)) = state.new_member(group, false).await? else { return Ok(()) };
    let bus = client.bus.clone();
    let joined = Cell::new(false);
    let joining = async {
        let sub = bus.subscribe(request).await;
        joined.set(true);
        sub
    };
    let reading = async {
        while !joined.get() && !state.clients[group].is_empty() {
            read_once(state, group, received).await?;
        }
        Ok(())
    };
    let (sub, read): (_, CheckResult) = join!(joining, reading);
    read?;
    state.add_member(group, MemberClient { client, sub: sub? });
    Ok(())
}

/// Receives once with every member, all at the same time.
async fn read_once(
    state: &mut HistoryState<'_>,
    group: usize,
    received: &mut ReceivedByOffset,
) -> CheckResult {
    let short = state.env.timing().receive_timeout;
    let members = state.clients[group].values_mut();
    let batches = try_join_all(members.map(|client| client.sub.recv(500, short))).await?;
    for batch in batches {
        for message in batch.messages() {
            let key = (group, TopicPartition::new(message.topic.clone(), message.partition));
            let before = received.entry(key).or_default().insert(message.offset, content(message));
            if before.is_some_and(|before| before != content(message)) {
                return Err(Failure::new(format_args!("another message at offset {}", message.offset)));
            }
        }
    }
    Ok(())
}

/// Reads until every partition is assigned and its lag is 0.
async fn read_to_the_end(
    state: &mut HistoryState<'_>,
    group: usize,
    received: &mut ReceivedByOffset,
) -> CheckResult {
    let all: u32 = (0..TOPICS).map(partitions).sum();
    let deadline = Instant::now() + state.env.timing().effect_timeout;
    loop {
        read_once(state, group, received).await?;
        let (mut owned, mut lag) = (0, 0);
        for client in state.clients[group].values_mut() {
            let assignment = client.sub.assignment().await?;
            owned += assignment.partitions.len();
            lag += assignment.lag();
        }
        if (owned, lag) == (all as usize, 0) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(format_args!(
                "{owned} of {all} partitions have an owner, the lag is {lag}"
            )));
        }
    }
}

/// Reads with every member until the group has received `total` messages.
async fn receive_until(
    state: &mut HistoryState<'_>,
    group: usize,
    total: usize,
    received: &mut ReceivedByOffset,
) -> CheckResult {
    if state.clients[group].is_empty() {
        return Ok(());
    }
    let timing = state.env.timing();
    let deadline = Instant::now() + timing.effect_timeout;
    loop {
        read_once(state, group, received).await?;
        let count: usize = received.iter().filter(|((g, _), _)| *g == group).map(|(_, all)| all.len()).sum();
        if count >= total {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(format_args!("group {group} received {count} of {total} messages")));
        }
    }
}

/// Commits the received messages of the group through the owners of the partitions.
async fn commit(state: &mut HistoryState<'_>, group: usize, received: &ReceivedByOffset) -> CheckResult {
    for client in state.clients[group].values_mut() {
        let mut upto = Offsets::new();
        for assigned in client.sub.assignment().await?.partitions {
            let last =
                received.get(&(group, assigned.partition.clone())).and_then(|all| all.keys().last().copied());
            if let Some(last) = last {
                upto.set(assigned.partition, assigned.position.min(last + 1));
            }
        }
        client.sub.commit(&upto).await?;
    }
    Ok(())
}
