//! Single dead letters.

use std::collections::BTreeMap;

use qi_core::bus::{MessageBus, TopicName, header};
use qi_core::{Result, Timestamp};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::scan::Partitions;
use super::{DeadLetter, Selection, UnreadPartition, escaped};
use crate::output::{Format, Listing, maybe, text};

/// The number of bytes that are shown of a key, a payload, an error and the headers.
const SHOWN_BYTES: usize = 1_024;

const COLUMNS: [&str; 15] = [
    "partition",
    "offset",
    "time",
    "origin topic",
    "origin partition",
    "origin offset",
    "origin time",
    "code",
    "error",
    "size",
    "truncated",
    "redrives",
    "headers",
    "key",
    "payload",
];

/// The headers with their own columns.
const IN_COLUMNS: [&str; 8] = [
    header::ORIGIN_TOPIC,
    header::ORIGIN_PARTITION,
    header::ORIGIN_OFFSET,
    header::ORIGIN_TIMESTAMP,
    header::ERROR_CODE,
    header::ERROR,
    header::TRUNCATED,
    header::REDRIVES,
];

/// The dead letters to show, and the size of their fields.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// The largest number of dead letters.
    pub limit: usize,
    /// True to show the newest dead letters first, instead of the oldest.
    pub newest: bool,
    /// True to show key, payload, error and headers completely, instead of 1,024 bytes of each.
    pub full: bool,
}

/// The result of [`show()`].
#[derive(Debug)]
pub struct DeadLetterRows {
    rows: Vec<Vec<Value>>,
    /// The partitions that were not read up to their end.
    pub unread: Vec<UnreadPartition>,
    /// True if the command was stopped before the end.
    pub interrupted: bool,
}

impl DeadLetterRows {
    /// Returns one row for each dead letter. A table has one row for each field, because rows would be too long.
    pub fn listing(&self, format: Format) -> Listing {
        if format != Format::Table {
            let mut listing = Listing::new(COLUMNS);
            self.rows.iter().for_each(|row| listing.push(row.clone()));
            return listing;
        }
        let mut listing = Listing::new(["field", "value"]);
        for (at, row) in self.rows.iter().enumerate() {
            if at > 0 {
                listing.push([text(""), text("")]);
            }
            for (column, value) in COLUMNS.iter().zip(row) {
                // Numbers become text, so that all values are aligned to the left.
                let value = if value.is_number() { text(value) } else { value.clone() };
                listing.push([text(column), value]);
            }
        }
        listing
    }
}

/// Returns the oldest or the newest dead letters of a topic, in the order of time, partition and offset. Text is
/// escaped, so that it is safe on a terminal in every format. Commits nothing.
///
/// # Errors
/// As [`super::list()`].
pub async fn show(
    bus: &dyn MessageBus,
    topic: &TopicName,
    selection: &Selection,
    view: View,
    stop: &CancellationToken,
) -> Result<DeadLetterRows> {
    selection.check()?;
    let partitions = Partitions::of(bus, stop, topic).await?;
    let mut rows: BTreeMap<(Option<Timestamp>, u32, u64), Vec<Value>> = BTreeMap::new();
    let mut scan = partitions.read(bus, stop, selection.start()).await?;
    let outcome = loop {
        let messages = match scan.next().await {
            Ok(Some(messages)) => messages,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        for message in &messages {
            let key = (message.timestamp, message.partition, message.offset);
            let full = rows.len() >= view.limit;
            let worse = if view.newest {
                rows.keys().next() > Some(&key)
            } else {
                rows.keys().next_back() < Some(&key)
            };
            if !selection.holds(DeadLetter(message)) || (full && worse) {
                continue;
            }
            rows.insert(key, row(DeadLetter(message), if view.full { usize::MAX } else { SHOWN_BYTES }));
            if rows.len() > view.limit {
                let _worst = if view.newest { rows.pop_first() } else { rows.pop_last() };
            }
        }
    };
    let interrupted = scan.interrupted || stop.is_cancelled();
    let unread = [partitions.unread, std::mem::take(&mut scan.unread)].concat();
    outcome.and(scan.close().await)?;
    let mut rows: Vec<_> = rows.into_values().collect();
    if view.newest {
        rows.reverse();
    }
    Ok(DeadLetterRows { rows, unread, interrupted })
}

fn row(dead_letter: DeadLetter<'_>, limit: usize) -> Vec<Value> {
    let (message, origin) = (dead_letter.0, dead_letter.origin());
    let shown = |bytes: Option<&[u8]>| maybe(bytes.map(|bytes| escaped(bytes, limit)));
    let of_header = |name: &str| shown(message.headers.get(name).map(|value| &value[..]));
    let mut headers = Vec::new();
    for (name, value) in message.headers.iter() {
        if !IN_COLUMNS.contains(&name.as_str()) {
            let separator = if headers.is_empty() { "" } else { ", " };
            headers.extend([separator, name.as_str(), "="].concat().bytes());
            headers.extend_from_slice(value.map_or(b"null", |value| value));
        }
    }
    vec![
        message.partition.into(),
        message.offset.into(),
        maybe(message.timestamp),
        maybe(origin.as_ref().map(|origin| &origin.topic)),
        origin.as_ref().map_or(Value::Null, |origin| origin.partition.into()),
        origin.as_ref().map_or(Value::Null, |origin| origin.offset.into()),
        maybe(origin.as_ref().and_then(|origin| origin.timestamp)),
        of_header(header::ERROR_CODE),
        of_header(header::ERROR),
        message.size().into(),
        of_header(header::TRUNCATED),
        of_header(header::REDRIVES),
        shown(Some(&headers[..]).filter(|headers| !headers.is_empty())),
        shown(message.key.as_deref()),
        shown(message.payload.as_deref()),
    ]
}
