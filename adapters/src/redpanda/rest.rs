//! How a reader that nobody reads stops taking part, and how it comes back.
//!
//! A member leaves its group: its poll limit has passed, and others are to have its partitions. A reader without a
//! group keeps its place, and librdkafka fetches nothing for it meanwhile.

use qi_core::bus::TopicName;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaResult;

use super::feed::Feed;
use super::inbox::Client;
use super::offsets;

/// Asks librdkafka to take part no more. What it wants to know about that is answered at once from now on.
pub(super) fn begin(feed: &Feed, client: &Client) {
    if !feed.plan.has_group() {
        let _gate = feed.gate();
        if let Err(error) = client.unassign() {
            tracing::warn!(%error, "a reader that nobody reads goes on fetching");
        }
        return;
    }
    // A commit that is under way ends before somebody else owns its partitions.
    let _commits = feed.commits.blocking_lock();
    feed.inbox().rest(true);
    client.unsubscribe();
    feed.inbox().dismiss(client);
    // A gain that was being carried out when the limit passed has come behind it.
    feed.state().shelf.lose_all();
}

/// Whether it has done so: in the middle of a rebalance it waits for the end of that, and forgets what it was asked if
/// it is asked to subscribe before. It says at once that it has no subscription; its partitions it has until then.
pub(super) fn has_begun(feed: &Feed, client: &Client) -> bool {
    let none = |topics: KafkaResult<TopicPartitionList>| topics.is_ok_and(|topics| topics.count() == 0);
    !feed.plan.has_group() || none(client.subscription()) && none(client.assignment())
}

/// Takes part again. Under the gate to its end: a seek comes before, and counts, or after, and is told to librdkafka.
pub(super) fn end(feed: &Feed, client: &Client) -> KafkaResult<()> {
    let _gate = feed.gate();
    if feed.plan.has_group() {
        feed.inbox().rest(false);
        let names: Vec<_> = feed.plan.topics.iter().map(TopicName::as_str).collect();
        client.subscribe(&names)?;
    } else {
        let list = {
            let state = feed.state();
            let owned = state.shelf.owned().iter();
            offsets::list(owned.map(|(partition, owned)| (partition, offsets::offset(owned.fetched))))?
        };
        client.assign(&list)?;
        feed.state().shelf.send_all();
    }
    feed.wake();
    Ok(())
}
