//! `qi dlq`: lists, shows and redrives dead letters.
//!
//! - [`list()`]: the number of dead letters of each topic, origin and error code.
//! - [`show()`]: single dead letters, as text that is safe on a terminal.
//! - [`redrive()`]: publishes the messages again.
//!
//! Two dead letters of the same origin (topic, partition, offset, timestamp) are copies. The timestamp distinguishes a
//! topic from a later one with the same name. The commands recognise a copy among the last [`SEEN_ORIGINS`] origins;
//! this set takes about 50 MiB when it is full.

mod list;
mod redrive;
mod scan;
mod show;

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fmt::Write as _;
use std::hash::BuildHasher as _;
use std::str::FromStr;

use qi_core::bus::{ReceivedMessage, SeekTo, TopicName, header};
use qi_core::{Result, TimeRange, Timestamp};

pub use list::{DeadLetterCounts, list};
pub use redrive::{Counts, INVALID_TARGET, Plan, RedriveReport, redrive};
pub use scan::UnreadPartition;
pub use show::{DeadLetterRows, View, show};

/// The number of origins that a command keeps in memory to recognise copies.
pub const SEEN_ORIGINS: usize = 1_000_000;

/// Returns true for a name that ends with `.dlq`, as dead letter topics do by default.
#[expect(clippy::case_sensitive_file_extension_comparisons, reason = "topic names are case-sensitive")]
pub fn is_dead_letter_topic(topic: &TopicName) -> bool {
    topic.as_str().ends_with(".dlq")
}

/// The dead letters that a command selects.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// The start of the message times of dead letters, inclusive.
    pub since: Option<Timestamp>,
    /// The end of the message times of dead letters, exclusive.
    pub until: Option<Timestamp>,
    /// The error codes, compared exactly. An empty set selects every code.
    pub codes: BTreeSet<String>,
    /// The origin topics. An empty set selects every origin, and dead letters without one.
    pub origins: BTreeSet<TopicName>,
}

impl Selection {
    fn check(&self) -> Result<()> {
        TimeRange::new(self.since.unwrap_or(Timestamp::MIN), self.until.unwrap_or(Timestamp::MAX)).map(drop)
    }

    /// Returns the start position of a reader. Message times need not rise within a partition, so `holds` compares the
    /// time of every message.
    fn start(&self) -> SeekTo {
        self.since.map_or(SeekTo::Earliest, SeekTo::At)
    }

    fn holds(&self, dead_letter: DeadLetter<'_>) -> bool {
        let time = dead_letter.0.timestamp;
        self.since.is_none_or(|since| time.is_some_and(|time| time >= since))
            && self.until.is_none_or(|until| time.is_some_and(|time| time < until))
            && (self.codes.is_empty() || dead_letter.code().is_some_and(|code| self.codes.contains(&*code)))
            && (self.origins.is_empty()
                || dead_letter.origin().is_some_and(|origin| self.origins.contains(&origin.topic)))
    }
}

/// The position of a message that became a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    topic: TopicName,
    partition: u32,
    offset: u64,
    timestamp: Option<Timestamp>,
}

/// A message of a dead letter topic.
#[derive(Debug, Clone, Copy)]
struct DeadLetter<'a>(&'a ReceivedMessage);

impl<'a> DeadLetter<'a> {
    fn text(self, name: &str) -> Option<Cow<'a, str>> {
        self.0.headers.get(name).map(|value| String::from_utf8_lossy(value))
    }

    fn parse<T: FromStr>(self, name: &str) -> Option<T> {
        self.text(name)?.parse().ok()
    }

    /// Returns None for a foreign message: the header of its topic, partition or offset is missing or not valid.
    fn origin(self) -> Option<Origin> {
        Some(Origin {
            topic: self.parse(header::ORIGIN_TOPIC)?,
            partition: self.parse(header::ORIGIN_PARTITION)?,
            offset: self.parse(header::ORIGIN_OFFSET)?,
            timestamp: self
                .parse(header::ORIGIN_TIMESTAMP)
                .and_then(|micros| Timestamp::from_micros(micros).ok()),
        })
    }

    fn code(self) -> Option<Cow<'a, str>> {
        self.text(header::ERROR_CODE)
    }

    fn is_truncated(self) -> bool {
        self.0.headers.iter().any(|(name, _)| name.as_str() == header::TRUNCATED)
    }

    /// Returns the number of redrives. An invalid header counts as the largest number, so that it cannot hide a loop.
    fn redrives(self) -> u32 {
        self.text(header::REDRIVES).map_or(0, |text| text.parse().unwrap_or(u32::MAX))
    }
}

type OriginKey = (u64, u32, u64);

/// The origins that were read most recently.
#[derive(Debug)]
struct Seen {
    limit: usize,
    // The keys are hashes with a random key, because a producer can invent any number of topic names and timestamps.
    hasher: RandomState,
    keys: HashSet<OriginKey>,
    order: VecDeque<OriginKey>,
}

impl Seen {
    fn new(limit: usize) -> Self {
        Self { limit, hasher: RandomState::new(), keys: HashSet::new(), order: VecDeque::new() }
    }

    fn key(&self, origin: &Origin) -> OriginKey {
        (self.hasher.hash_one((&origin.topic, origin.timestamp)), origin.partition, origin.offset)
    }

    /// Returns false for an origin that is already in the set.
    fn insert(&mut self, origin: &Origin) -> bool {
        let key = self.key(origin);
        if !self.keys.insert(key) {
            return false;
        }
        if self.order.len() == self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        self.order.push_back(key);
        true
    }
}

/// Writes bytes as one line of text. Control characters, invisible characters, bytes that are not UTF-8 and
/// backslashes are escaped. Text beyond `limit` bytes of the input is replaced by its length.
pub(crate) fn escaped(bytes: &[u8], limit: usize) -> String {
    let (mut shown, mut used) = (String::new(), 0);
    'text: for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if used + c.len_utf8() > limit {
                break 'text;
            }
            used += c.len_utf8();
            match c {
                '"' | '\'' => shown.push(c),
                // Debug also escapes characters that change the direction of text or have no width.
                c => shown.extend(c.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            if used == limit {
                break 'text;
            }
            used += 1;
            // Writing into a String cannot fail.
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    if used < bytes.len() {
        let _ = write!(shown, "... ({} bytes more)", bytes.len() - used);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_text_has_no_control_characters_and_is_bounded() {
        let hostile = "a\u{1b}[31m\n\u{9b}\u{202e}\u{2028}\"\\é".as_bytes();
        let shown = escaped(&[hostile, b"\xff\0"].concat(), 100);
        assert_eq!(shown, r#"a\u{1b}[31m\n\u{9b}\u{202e}\u{2028}"\\é\xff\0"#);
        assert_eq!(escaped("ééé".as_bytes(), 3), "é... (4 bytes more)");
        assert_eq!(escaped(b"\xff\xff\xff", 1), "\\xff... (2 bytes more)");
    }

    #[test]
    fn the_oldest_origin_is_evicted_at_the_limit() {
        let origin = |offset| Origin { topic: "a".parse().unwrap(), partition: 0, offset, timestamp: None };
        let mut seen = Seen::new(2);
        assert!(seen.insert(&origin(1)) && seen.insert(&origin(2)) && !seen.insert(&origin(1)));
        assert!(seen.insert(&origin(3)) && seen.insert(&origin(1)), "1 was the oldest");
        assert!(!seen.insert(&origin(3)) && seen.keys.len() == 2 && seen.order.len() == 2);
    }
}
