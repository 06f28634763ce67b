//! The port over a feed: members of groups, and readers without one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use qi_core::bus::{
    AssignedPartition, Assignment, Batch, Committed, Positions, SeekTo, Subscription, TopicPartition,
};
use qi_core::{Error, Result};
use rdkafka::Offset;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::time::{Instant, timeout, timeout_at};

use super::feed::Feed;
use super::inbox::Client;
use super::offsets::{self, Place};
use super::{blocking, error};

/// A wait that ends some day, even for `Duration::MAX`.
const VERY_LONG: Duration = Duration::from_hours(24 * 365);
/// A change of the assignment is waited for at least so long, whatever `wait` says.
const CHANGE: Duration = Duration::from_millis(500);
/// What a rebalance refused is committed again after this.
const AGAIN: Duration = Duration::from_millis(50);
/// Leaving takes no longer for the caller; the thread goes on.
const LEAVE: Duration = Duration::from_secs(10);

/// A member of a group, or a reader without one.
#[derive(Debug)]
pub(super) struct RedpandaSubscription {
    feed: Arc<Feed>,
}

impl RedpandaSubscription {
    pub(super) fn new(feed: Arc<Feed>) -> Self {
        Self { feed }
    }

    async fn set_paused(
        &self,
        partitions: &[TopicPartition],
        paused: bool,
        operation: &'static str,
    ) -> Result<()> {
        owned(&self.feed, partitions, operation)?;
        let (feed, partitions) = (self.feed.clone(), partitions.to_vec());
        blocking(operation, move || {
            let client = feed.client(operation)?;
            let _gate = feed.gate();
            // Nothing is lost or gained while the gate is held, but until then it may have been.
            owned(&feed, &partitions, operation)?;
            let list = offsets::list(partitions.iter().map(|p| (p, Offset::Invalid)));
            let done = list.and_then(|list| if paused { client.pause(&list) } else { client.resume(&list) });
            done.map_err(|e| error::of(e, operation))?;
            let mut state = feed.state();
            for partition in &partitions {
                if let Some(owned) = state.shelf.get_mut(partition) {
                    owned.paused = paused;
                }
            }
            drop(state);
            feed.bell.ring();
            Ok(())
        })
        .await
    }
}

/// The partitions of a call, each of which must be owned.
fn owned<'a>(
    feed: &Feed,
    partitions: impl IntoIterator<Item = &'a TopicPartition>,
    operation: &'static str,
) -> Result<()> {
    let state = feed.state();
    for partition in partitions {
        if !state.shelf.owned().contains_key(partition) || feed.is_overdue(&state) {
            return Err(error::not_owned(partition, operation));
        }
    }
    Ok(())
}

/// What a commit is to store, under which ownership.
type Wanted = BTreeMap<TopicPartition, (u64, u64)>;

/// Sorts what is to be committed: what is still owned, and what is lost.
fn sort(feed: &Feed, upto: &Positions) -> Result<(Wanted, Vec<TopicPartition>)> {
    let state = feed.state();
    let overdue = feed.is_overdue(&state);
    let (mut wanted, mut lost) = (Wanted::new(), Vec::new());
    for (partition, next) in upto.iter() {
        match state.shelf.owned().get(partition).filter(|_| !overdue) {
            Some(owned) if owned.is_beyond(next) => {
                return Err(error::beyond_position(partition, next, owned.position));
            }
            Some(owned) => drop(wanted.insert(partition.clone(), (owned.key, next))),
            None => lost.push(partition.clone()),
        }
    }
    Ok((wanted, lost))
}

/// Stores what is owned, again and again while a rebalance is in the way.
fn keep(
    feed: &Feed,
    client: &Client,
    mut wanted: Wanted,
    mut lost: Vec<TopicPartition>,
) -> Result<Committed> {
    let deadline = std::time::Instant::now() + feed.plan.commit_limit;
    loop {
        {
            let state = feed.state();
            let overdue = feed.is_overdue(&state);
            wanted.retain(|partition, (key, next)| {
                // A seek makes a new key and leaves the partition where it is.
                let here = state.shelf.owned().get(partition);
                let kept = !overdue && here.is_some();
                if let Some(owned) = here {
                    (*key, *next) = (owned.key, owned.upto(*next));
                }
                if !kept {
                    lost.push(partition.clone());
                }
                kept
            });
        }
        if wanted.is_empty() {
            return Ok(Committed::new(Positions::new(), lost));
        }
        let places = offsets::list(wanted.iter().map(|(p, (_, next))| (p, offsets::offset(*next))));
        let Err(refused) = places.and_then(|places| client.commit(&places, CommitMode::Sync)) else { break };
        match error::code_of(&refused) {
            // The broker does not know this member any more: others have its partitions.
            Some(Code::UnknownMemberId | Code::AssignmentLost) => {
                lost.extend(wanted.into_keys());
                return Ok(Committed::new(Positions::new(), lost));
            }
            Some(
                Code::RebalanceInProgress
                | Code::IllegalGeneration
                | Code::CoordinatorLoadInProgress
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::WaitingForCoordinator,
            ) if std::time::Instant::now() < deadline => std::thread::sleep(AGAIN),
            // Nothing can be stored for partitions of a topic that was deleted.
            _ if error::is_gone(&refused) => {
                let ends = offsets::find_each(client, wanted.keys(), Place::End, feed.plan.limit);
                let ends = ends.unwrap_or_default();
                let gone = |p: &TopicPartition| {
                    ends.get(p).is_some_and(|end| matches!(end, Err(e) if error::is_gone(e)))
                };
                let deleted: Vec<_> = wanted.keys().filter(|p| gone(p)).cloned().collect();
                if deleted.is_empty() {
                    return Err(error::of(refused, "commit"));
                }
                wanted.retain(|partition, _| !deleted.contains(partition));
                lost.extend(deleted);
            }
            _ => return Err(feed.inbox().link.explain(error::of(refused, "commit"))),
        }
    }
    let mut state = feed.state();
    let mut stored = Positions::new();
    for (partition, (_, next)) in wanted {
        if let Some(owned) = state.shelf.get_mut(&partition) {
            owned.stored(next);
        }
        stored.set(partition, next);
    }
    Ok(Committed::new(stored, lost))
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Subscription for RedpandaSubscription {
    async fn recv(&mut self, max: usize, wait: Duration) -> Result<Batch> {
        tokio::task::coop::consume_budget().await;
        self.feed.check("recv")?;
        if max == 0 {
            return Err(error::no_messages());
        }
        let began = Instant::now();
        let deadline = began + wait.min(VERY_LONG);
        let _inside = self.feed.enter();
        loop {
            let changed = self.feed.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let until = if self.feed.is_changing() { deadline.max(began + CHANGE) } else { deadline };
            let last = Instant::now() >= until;
            if let Some(batch) = self.feed.look(max, last)? {
                return Ok(batch);
            }
            let _ = timeout_at(until, changed).await;
        }
    }

    async fn commit(&mut self, upto: &Positions) -> Result<Committed> {
        self.feed.check("commit")?;
        if !self.feed.plan.has_group() {
            return Err(error::no_group());
        }
        let (wanted, lost) = sort(&self.feed, upto)?;
        if wanted.is_empty() {
            return Ok(Committed::new(Positions::new(), lost));
        }
        let late = || error::late("commit", "the brokers did not answer within the commit timeout");
        let deadline = Instant::now() + self.feed.plan.commit_limit;
        // One that was given up goes on; another one waits for it, so that none overtakes another.
        let turn = timeout_at(deadline, self.feed.commits.clone().lock_owned()).await.map_err(|_| late())?;
        let feed = self.feed.clone();
        let storing = blocking("commit", move || {
            let _turn = turn;
            let client = feed.client("commit")?;
            keep(&feed, &client, wanted, lost)
        });
        timeout(deadline.saturating_duration_since(Instant::now()), storing).await.map_err(|_| late())?
    }

    async fn seek(&mut self, to: &[(TopicPartition, SeekTo)]) -> Result<()> {
        self.feed.check("seek")?;
        owned(&self.feed, to.iter().map(|(partition, _)| partition), "seek")?;
        let (feed, to) = (self.feed.clone(), to.to_vec());
        blocking("seek", move || {
            let client = feed.client("seek")?;
            let found = resolve(&client, &to, feed.plan.limit)?;
            let _gate = feed.gate();
            owned(&feed, found.iter().map(|(partition, _)| partition), "seek")?;
            for (partition, offset) in found {
                let sent = feed.send_to(&client, &partition, offset);
                let mut state = feed.state();
                state.shelf.jump(&partition, offset);
                state.shelf.send(&partition, sent);
            }
            feed.bell.ring();
            Ok(())
        })
        .await
    }

    async fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.feed.check("pause")?;
        self.set_paused(partitions, true, "pause").await
    }

    async fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        self.feed.check("resume")?;
        self.set_paused(partitions, false, "resume").await
    }

    async fn assignment(&mut self) -> Result<Assignment> {
        self.feed.check("assignment")?;
        let feed = self.feed.clone();
        blocking("assignment", move || {
            let client = feed.client("assignment")?;
            let partitions: Vec<_> = feed.state().shelf.owned().keys().cloned().collect();
            let failed = |e| feed.inbox().link.explain(error::asked(e, "assignment"));
            let found = offsets::find_each(&*client, &partitions, Place::End, feed.plan.limit);
            let mut ends = BTreeMap::new();
            for (partition, end) in found.map_err(failed)? {
                match end {
                    Ok(end) => drop(ends.insert(partition, end)),
                    // Nothing is left to read of a topic that was deleted.
                    Err(error) if error::is_gone(&error) => {}
                    Err(error) => return Err(failed(error)),
                }
            }
            let state = feed.state();
            let owned = state.shelf.owned().iter().map(|(partition, owned)| {
                let end = ends.get(partition).copied().unwrap_or(owned.position);
                let lag = end.saturating_sub(owned.position);
                AssignedPartition::new(partition.clone(), owned.position, owned.committed, lag, owned.paused)
            });
            Ok(Assignment::new(state.shelf.epoch(), owned.collect()))
        })
        .await
    }

    async fn close(&mut self) -> Result<()> {
        self.feed.begin_end();
        if !self.feed.ended(LEAVE).await {
            tracing::warn!("leaving the group goes on behind the close of the subscription");
        }
        Ok(())
    }
}

impl Drop for RedpandaSubscription {
    fn drop(&mut self) {
        self.feed.begin_end();
    }
}

/// Offsets of the places that a caller names.
pub(super) fn resolve(
    client: &Client,
    to: &[(TopicPartition, SeekTo)],
    limit: Duration,
) -> Result<Vec<(TopicPartition, u64)>> {
    let failed = |e| -> Error { client.context().link.explain(error::asked(e, "seek")) };
    let mut found = Vec::with_capacity(to.len());
    for (partition, place) in to {
        let place = match place {
            SeekTo::Offset(offset) => {
                found.push((partition.clone(), *offset));
                continue;
            }
            SeekTo::At(time) => Place::At(*time),
            SeekTo::Earliest => Place::Beginning,
            SeekTo::Latest => Place::End,
        };
        let offsets = offsets::find(client, [partition], place, limit).map_err(failed)?;
        found.extend(offsets);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use qi_core::ErrorKind;

    use super::*;
    use crate::redpanda::feed::{Standing, nowhere};

    #[tokio::test]
    async fn who_never_waits_waits_for_a_reader_that_wakes() {
        // Nothing is carried out here, because the thread was not started.
        let feed = nowhere();
        feed.state().standing = Standing::Resting;
        let mut subscription = RedpandaSubscription::new(feed.clone());
        assert!(timeout(CHANGE / 5, subscription.recv(1, Duration::ZERO)).await.is_err());
        let turn = feed.turn().unwrap();
        assert!(turn.resting && turn.active && !turn.open, "it is wanted, though no call is under way");
        let began = Instant::now();
        assert!(subscription.recv(1, Duration::ZERO).await.unwrap().is_empty());
        assert!(began.elapsed() >= CHANGE);
        feed.wake();
        assert!(!feed.is_changing(), "nothing is waited for any more");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pause_or_a_seek_that_crosses_a_loss_is_refused() {
        for seek in [false, true] {
            let feed = nowhere();
            let partition = TopicPartition::new(feed.plan.topics[0].clone(), 0);
            feed.state().shelf.gain(partition.clone(), 0, None);
            let mut subscription = RedpandaSubscription::new(feed.clone());
            // The thread is about to give the partition away when the call comes.
            let gate = feed.gate();
            let one = partition.clone();
            let call = tokio::spawn(async move {
                if seek {
                    subscription.seek(&[(one, SeekTo::Offset(1))]).await
                } else {
                    subscription.pause(&[one]).await
                }
            });
            std::thread::sleep(Duration::from_millis(200));
            feed.state().shelf.lose(std::slice::from_ref(&partition));
            drop(gate);
            let refused = call.await.unwrap().unwrap_err();
            assert_eq!((refused.kind(), refused.code()), (ErrorKind::InvalidInput, "bus.redpanda.not_owned"));
        }
    }
}
