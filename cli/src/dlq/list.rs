//! The number of dead letters of each topic, origin and error code.

use std::collections::BTreeMap;

use qi_core::bus::{MessageBus, TopicName};
use qi_core::{Result, Timestamp};
use tokio_util::sync::CancellationToken;

use super::scan::Partitions;
use super::{DeadLetter, SEEN_ORIGINS, Seen, Selection, UnreadPartition, escaped, is_dead_letter_topic};
use crate::output::{Listing, maybe, text};

/// The number of keys after which new keys of a topic share one row without origin and code, because a producer can
/// invent any number of codes.
const MAX_KEYS: usize = 10_000;
/// The longest error code that is shown, in bytes.
const CODE_BYTES: usize = 200;

/// The key of a count: the dead letter topic, the origin topic and the error code.
type CountKey = (TopicName, Option<TopicName>, Option<String>);

/// The dead letters of one key.
#[derive(Debug, Clone, Copy, Default)]
struct DeadLetterCount {
    dead_letters: u64,
    copies: u64,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
}

/// The result of [`list()`].
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct DeadLetterCounts {
    groups: BTreeMap<CountKey, DeadLetterCount>,
    /// The partitions that were not read up to their end.
    pub unread: Vec<UnreadPartition>,
    /// True if the command was stopped before the end.
    pub interrupted: bool,
}

impl DeadLetterCounts {
    /// Returns one row for each dead letter topic, origin topic and error code.
    pub fn listing(&self) -> Listing {
        let mut listing = Listing::new([
            "dead letter topic",
            "origin topic",
            "code",
            "dead letters",
            "copies",
            "first",
            "last",
        ]);
        for ((topic, origin, code), counts) in &self.groups {
            listing.push([
                text(topic),
                maybe(origin.as_ref()),
                maybe(code.as_ref()),
                counts.dead_letters.into(),
                counts.copies.into(),
                maybe(counts.first),
                maybe(counts.last),
            ]);
        }
        listing
    }
}

/// Counts the dead letters of one topic, or of every topic whose name ends with `.dlq`. Messages without an origin are
/// counted in a row without origin topic. After 10,000 rows, dead letters without a row are counted in the row of their
/// topic without origin topic and code. Commits nothing.
///
/// # Errors
/// `NotFound` for an unknown topic; `InvalidInput` for a selection whose end is before its start; errors of the bus.
/// Retryable errors are repeated for up to 1 minute.
pub async fn list(
    bus: &dyn MessageBus,
    topic: Option<&TopicName>,
    selection: &Selection,
    stop: &CancellationToken,
) -> Result<DeadLetterCounts> {
    selection.check()?;
    let partitions = match topic {
        Some(topic) => Partitions::of(bus, stop, topic).await?,
        None => Partitions::find(bus, stop, is_dead_letter_topic).await?,
    };
    let (mut listed, mut seen) = (DeadLetterCounts::default(), Seen::new(SEEN_ORIGINS));
    let mut scan = partitions.read(bus, stop, selection.start()).await?;
    let outcome = loop {
        match scan.next().await {
            Ok(Some(messages)) => {
                for message in &messages {
                    listed.add(DeadLetter(message), selection, &mut seen);
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    listed.interrupted = scan.interrupted || stop.is_cancelled();
    listed.unread = [partitions.unread, std::mem::take(&mut scan.unread)].concat();
    outcome.and(scan.close().await)?;
    Ok(listed)
}

impl DeadLetterCounts {
    fn add(&mut self, dead_letter: DeadLetter<'_>, selection: &Selection, seen: &mut Seen) {
        if !selection.holds(dead_letter) {
            return;
        }
        let origin = dead_letter.origin();
        let copy = origin.as_ref().is_some_and(|origin| !seen.insert(origin));
        let code = dead_letter.code().map(|code| escaped(code.as_bytes(), CODE_BYTES));
        let topic = dead_letter.0.topic.clone();
        let mut key = (topic, origin.map(|origin| origin.topic), code);
        if self.groups.len() >= MAX_KEYS && !self.groups.contains_key(&key) {
            key = (key.0, None, None);
        }
        let counts = self.groups.entry(key).or_default();
        if copy {
            counts.copies += 1;
        } else {
            counts.dead_letters += 1;
        }
        if let Some(time) = dead_letter.0.timestamp {
            counts.first = Some(counts.first.map_or(time, |first| first.min(time)));
            counts.last = counts.last.max(Some(time));
        }
    }
}
