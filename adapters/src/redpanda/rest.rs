//! How a reader that nobody reads stops taking part, and how it comes back.
//!
//! A member leaves its group: its poll limit has passed, and others are to have its partitions. A reader without a
//! group keeps its place, and librdkafka fetches nothing for it meanwhile.

use qi_core::bus::TopicName;
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
}

/// Whether it has done so: in the middle of a rebalance it waits for the end of that, and forgets what it was asked if
/// it is asked to subscribe before.
pub(super) fn has_begun(feed: &Feed, client: &Client) -> bool {
    !feed.plan.has_group() || client.subscription().is_ok_and(|topics| topics.count() == 0)
}

/// Takes part again.
pub(super) fn end(feed: &Feed, client: &Client) -> KafkaResult<()> {
    if feed.plan.has_group() {
        feed.inbox().rest(false);
        let names: Vec<_> = feed.plan.topics.iter().map(TopicName::as_str).collect();
        client.subscribe(&names)?;
    } else {
        let _gate = feed.gate();
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
