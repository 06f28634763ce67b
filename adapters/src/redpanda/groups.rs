//! Consumer groups from the view of an operator: members with their partitions, commits and lag.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qi_core::bus::{
    GroupId, GroupInfo, GroupMember, GroupPartition, GroupQuery, GroupState, TopicName, TopicPartition,
};
use qi_core::{Result, Selection};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaResult, RDKafkaErrorCode as Code};

use super::connect::{KafkaContext, QueryClient};
use super::offsets::{self, OffsetSpec};
use super::{client_config, connect, error};
use crate::redpanda::config::RedpandaConfig;

/// The description of a group by its coordinator.
#[derive(Debug)]
struct ListedGroup {
    state: String,
    members: Vec<GroupMember>,
}

/// A cache of the query clients of recently described groups, because a caller that polls the lag repeats its query
/// soon. When the cache is full, the least recently used client is dropped.
#[derive(Default)]
pub(super) struct GroupClients(Mutex<Vec<(GroupId, Arc<QueryClient>)>>);

impl GroupClients {
    /// The maximum number of cached clients.
    const MAX_CLIENTS: usize = 4;

    /// Removes and returns the client of this group.
    fn take(&self, group: &GroupId) -> Option<Arc<QueryClient>> {
        let mut clients = self.lock();
        let at = clients.iter().position(|(of, _)| of == group)?;
        Some(clients.remove(at).1)
    }

    fn put(&self, group: &GroupId, client: Arc<QueryClient>) {
        let mut clients = self.lock();
        let replaced = clients
            .iter()
            .position(|(of, _)| of == group)
            .or((clients.len() >= Self::MAX_CLIENTS).then_some(0));
        let replaced = replaced.map(|at| clients.remove(at));
        clients.push((group.clone(), client));
        drop(clients);
        // Dropping a client joins its threads.
        drop(replaced);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(GroupId, Arc<QueryClient>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Describes the groups of a query. Blocks the thread. The second client queries the last stable offsets.
pub(super) fn describe(
    config: &RedpandaConfig,
    [query_client, stable_client]: [&QueryClient; 2],
    cache: &GroupClients,
    query: &GroupQuery,
    limit: Duration,
) -> Result<Vec<GroupInfo>> {
    let failed = |e| connect::auth_error_or(query_client, error::from_request(e, "groups"));
    let queried_partitions = partitions_of(query_client, &query.topics, limit)?;
    let group_ids: BTreeSet<GroupId> = match &query.groups {
        Selection::All => group_names(query_client, limit).map_err(failed)?,
        Selection::Only(ids) => ids.iter().cloned().collect(),
    };
    let group_ids: Vec<_> = group_ids.into_iter().collect();
    let cache = (group_ids.len() <= GroupClients::MAX_CLIENTS).then_some(cache);
    let request = DescribeRequest {
        config,
        query_client,
        stable_client,
        cache,
        topics: &query.topics,
        queried_partitions: &queried_partitions,
        limit,
    };
    // Each group needs a separate client, which mostly waits for brokers. The groups are therefore described
    // concurrently.
    let groups_per_thread = group_ids.len().div_ceil(MAX_CONCURRENT).max(1);
    let found: Vec<Result<Vec<GroupInfo>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = group_ids
            .chunks(groups_per_thread)
            .map(|groups| {
                scope.spawn(move || {
                    groups.iter().filter_map(|group| request.describe(group).transpose()).collect()
                })
            })
            .collect();
        let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined
            .map(|found| found.unwrap_or_else(|_| Err(error::internal("groups", "a request panicked"))))
            .collect()
    });
    Ok(found.into_iter().collect::<Result<Vec<_>>>()?.concat())
}

/// The maximum number of attempts to describe a group. Afterwards its state is `NotDescribed`.
const MAX_ATTEMPTS: usize = 3;

/// The maximum number of groups that are described concurrently.
const MAX_CONCURRENT: usize = 16;

/// The commits of a group. None if the principal may not describe the group.
type Commits = Option<BTreeMap<TopicPartition, u64>>;

/// The parameters that are the same for all groups of a query.
#[derive(Clone, Copy)]
struct DescribeRequest<'a> {
    config: &'a RedpandaConfig,
    query_client: &'a QueryClient,
    stable_client: &'a QueryClient,
    cache: Option<&'a GroupClients>,
    topics: &'a Selection<TopicName>,
    queried_partitions: &'a [TopicPartition],
    limit: Duration,
}

impl DescribeRequest<'_> {
    /// Describes one group. Returns None if the group does not exist, or has no members and no commits in the queried
    /// topics.
    fn describe(self, group: &GroupId) -> Result<Option<GroupInfo>> {
        let failed = |e| connect::auth_error_or(self.query_client, error::from_request(e, "groups"));
        for attempt in 1.. {
            // The commits are queried first, from the group's coordinator. The group list merges the responses of all
            // brokers, so it does not show that the coordinator did not respond.
            let Some(commits) = self.commits(group)? else {
                return Ok(Some(GroupInfo::new(group.clone(), GroupState::Hidden, Vec::new(), Vec::new())));
            };
            let listed = list_group(self.query_client, group, self.limit).map_err(failed)?;
            // The brokers list a group as dead if they cannot describe it in this protocol.
            if let Some(listed) = listed.filter(|listed| !matches!(listed.state.as_str(), "Dead" | "")) {
                let state = match listed.state.as_str() {
                    "Stable" => GroupState::Stable,
                    "Empty" => GroupState::Empty,
                    _ => GroupState::Rebalancing,
                };
                if listed.members.is_empty() && commits.is_empty() {
                    return Ok(None);
                }
                return self.info(group, state, listed.members, &commits).map(Some);
            }
            if commits.is_empty()
                && !group_names(self.query_client, self.limit).map_err(failed)?.contains(group)
            {
                return Ok(None);
            }
            // The group may have been deleted, or created again, between two requests.
            if attempt >= MAX_ATTEMPTS {
                return self.info(group, GroupState::NotDescribed, Vec::new(), &commits).map(Some);
            }
        }
        Ok(None)
    }

    /// Returns a group with the ends of its partitions.
    fn info(
        self,
        group: &GroupId,
        state: GroupState,
        members: Vec<GroupMember>,
        commits: &BTreeMap<TopicPartition, u64>,
    ) -> Result<GroupInfo> {
        let failed = |e| connect::auth_error_or(self.query_client, error::from_request(e, "groups"));
        let owned = members.iter().flat_map(|member| &member.partitions);
        let owned = owned.filter(|partition| self.topics.contains(&partition.topic));
        let queried: BTreeSet<_> = owned.chain(commits.keys()).cloned().collect();
        let mut partitions = Vec::with_capacity(queried.len());
        let ends = offsets::find_each(self.query_client, &queried, OffsetSpec::Latest, self.limit);
        for (partition, end) in ends.map_err(failed)? {
            let committed = commits.get(&partition).copied();
            match end {
                Ok(end) => partitions.push(GroupPartition::new(partition, committed, end)),
                // A partition without a leader does not fail the query.
                Err(error) if error::is_leaderless(&error) => {
                    partitions.push(GroupPartition::new(partition, committed, None));
                }
                // The topic was deleted after the first request, or the principal may not describe it.
                Err(error) if error::is_missing(&error) || error::is_unauthorized(&error) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        self.set_last_stable(&mut partitions);
        Ok(GroupInfo::new(group.clone(), state, members, partitions))
    }

    /// Adds the last stable offsets of partitions whose commit is not at the end. A commit at the end proves that no
    /// transaction is open.
    fn set_last_stable(self, partitions: &mut [GroupPartition]) {
        let lagging = partitions.iter().filter(|found| found.committed != found.end);
        let lagging: Vec<_> = lagging.map(|found| found.partition.clone()).collect();
        if lagging.is_empty() {
            return;
        }
        let stable = offsets::find_each(self.stable_client, &lagging, OffsetSpec::Latest, self.limit);
        let stable = stable.unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot query the last stable offsets");
            BTreeMap::new()
        });
        for found in partitions.iter_mut().filter(|found| found.committed != found.end) {
            let offset = stable.get(&found.partition).and_then(|offset| offset.as_ref().ok()).copied();
            found.last_stable = offset.zip(found.end).map(|(offset, end)| offset.min(end));
        }
    }

    fn commits(self, group: &GroupId) -> Result<Commits> {
        if let Some(client) = self.cache.and_then(|cache| cache.take(group))
            && let Ok(Some(commits)) = self.commits_with(&client)
        {
            if let Some(cache) = self.cache {
                cache.put(group, client);
            }
            return Ok(Some(commits));
        }
        let client = client_config::query_client(self.config, Some(group.as_str()));
        let client: QueryClient = client
            .create_with_context(KafkaContext::new("admin", ""))
            .map_err(|e| error::from_kafka(e, "groups"))?;
        let client = Arc::new(client);
        let commits = self.commits_with(&client)?;
        if let Some(cache) = self.cache.filter(|_| commits.is_some())
            && connect::spawn_event_loop(&client).is_ok()
        {
            cache.put(group, client);
        }
        Ok(commits)
    }

    /// Queries the commits with the client of the group. Without permission to look up the coordinator, librdkafka
    /// waits until the limit and reports the reason only as an event. Therefore the first attempts are short.
    fn commits_with(self, client: &QueryClient) -> Result<Commits> {
        let mut divisors = [40, 10].into_iter();
        loop {
            let divisor = divisors.next();
            let timeout = self.limit / divisor.unwrap_or(1);
            let error = match offsets::committed(client, self.queried_partitions, timeout) {
                Ok(commits) => return Ok(Some(commits)),
                Err(error) => error,
            };
            let code = error::code_of(&error);
            let mut codes = code.into_iter().chain(connect::drain_events(client));
            if codes.any(|code| code == Code::GroupAuthorizationFailed) {
                return Ok(None);
            }
            match code {
                // Groups of other kinds, such as share groups, have no commits.
                Some(Code::GroupIdNotFound) => return Ok(Some(BTreeMap::new())),
                Some(Code::OperationTimedOut) if divisor.is_some() => {}
                _ => return Err(connect::auth_error_or(client, error::from_request(error, "groups"))),
            }
        }
    }
}

/// Returns the partitions of these topics, because there is no query for all commits of a group. A topic that does not
/// exist has no partitions.
fn partitions_of(
    query_client: &QueryClient,
    topics: &Selection<TopicName>,
    limit: Duration,
) -> Result<Vec<TopicPartition>> {
    let names: Vec<Option<&TopicName>> = match topics {
        Selection::All => vec![None],
        Selection::Only(names) => names.iter().map(Some).collect(),
    };
    let mut all = Vec::new();
    for name in names {
        let metadata = connect::fetch_metadata(query_client.client(), name.map(TopicName::as_str), limit);
        let metadata =
            metadata.map_err(|e| connect::auth_error_or(query_client, error::from_request(e, "groups")))?;
        for topic in metadata.topics() {
            let Ok(found) = TopicName::new(topic.name()) else { continue };
            if let (Some(name), Some(Code::TopicAuthorizationFailed)) = (name, topic.error().map(Code::from))
            {
                let unauthorized = error::from_code(Code::TopicAuthorizationFailed, "groups");
                return Err(unauthorized.with_context("topic", name));
            }
            let numbers =
                topic.partitions().iter().filter_map(|partition| u32::try_from(partition.id()).ok());
            all.extend(numbers.map(|number| TopicPartition::new(found.clone(), number)));
        }
    }
    Ok(all)
}

/// Returns the names of all consumer groups.
fn group_names(query_client: &QueryClient, limit: Duration) -> KafkaResult<BTreeSet<GroupId>> {
    let list = query_client.fetch_group_list(None, limit)?;
    let consumers = list.groups().iter().filter(|group| matches!(group.protocol_type(), "consumer" | ""));
    Ok(consumers.filter_map(|group| GroupId::new(group.name()).ok()).collect())
}

fn list_group(
    query_client: &QueryClient,
    group: &GroupId,
    limit: Duration,
) -> KafkaResult<Option<ListedGroup>> {
    let list = query_client.fetch_group_list(Some(group.as_str()), limit)?;
    let found = list.groups().iter().find(|found| found.name() == group.as_str());
    Ok(found.map(|found| ListedGroup {
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

/// Decodes a member's assignment: the version of the consumer protocol, then topics with their partitions. All numbers
/// are big-endian (`ConsumerProtocolAssignment.json` of Kafka). Returns None for any other format.
fn assignment(mut bytes: &[u8]) -> Option<Vec<TopicPartition>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let bytes = &mut bytes;
    let _version = i16::from_be_bytes(take_bytes(bytes)?);
    let topics = i32::from_be_bytes(take_bytes(bytes)?);
    let mut found = Vec::new();
    for _ in 0..topics {
        let length = usize::try_from(i16::from_be_bytes(take_bytes(bytes)?)).ok()?;
        let (name, rest) = bytes.split_at_checked(length)?;
        *bytes = rest;
        let topic = TopicName::new(std::str::from_utf8(name).ok()?).ok()?;
        for _ in 0..i32::from_be_bytes(take_bytes(bytes)?) {
            let number = u32::try_from(i32::from_be_bytes(take_bytes(bytes)?)).ok()?;
            found.push(TopicPartition::new(topic.clone(), number));
        }
    }
    found.sort_unstable();
    Some(found)
}

fn take_bytes<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

/// Decodes arbitrary bytes as a member's assignment.
///
/// # Panics
/// Panics if the decoder finds more partitions than the bytes can contain.
#[cfg(feature = "fuzzing")]
pub fn fuzz_assignment(bytes: &[u8]) {
    // A partition takes four bytes.
    assert!(assignment(bytes).is_none_or(|found| found.len() <= bytes.len() / 4));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_decode_and_malformed_bytes_are_rejected() {
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
            assert_eq!(assignment(&bytes[..cut]), None, "truncated to {cut} bytes");
        }
        assert_eq!(assignment(&[0, 1, 127, 255, 255, 255]), None, "a count without entries");
    }
}
