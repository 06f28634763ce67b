//! The names of the headers that typed messages carry.

/// The media type of [`super::Codec::content_type`]: `application/json`.
pub const CONTENT_TYPE: &str = "content-type";
/// The record's [`crate::Dataset::message`]: `tick`.
pub const TYPE: &str = "qi-type";
/// The record's [`crate::Dataset::version`], as decimal digits.
pub const VERSION: &str = "qi-version";
/// A dead letter's origin: the topic.
pub const ORIGIN_TOPIC: &str = "qi-origin-topic";
/// A dead letter's origin: the partition.
pub const ORIGIN_PARTITION: &str = "qi-origin-partition";
/// A dead letter's origin: the offset.
pub const ORIGIN_OFFSET: &str = "qi-origin-offset";
/// A dead letter's origin: the message's timestamp in microseconds since the Unix epoch, as decimal digits.
/// Absent if the message has none.
pub const ORIGIN_TIMESTAMP: &str = "qi-origin-timestamp";
/// A dead letter's error: its stable code.
pub const ERROR_CODE: &str = "qi-error-code";
/// A dead letter's error: its report, of at most 1,024 bytes. Absent from a letter whose limit is below
/// 2,048 bytes.
pub const ERROR: &str = "qi-error";
/// A truncated dead letter: the size of the original message in bytes, as decimal digits.
pub const TRUNCATED: &str = "qi-truncated";
/// A truncated dead letter: the number of dropped headers, as decimal digits. Absent if there are none.
pub const TRUNCATED_HEADERS: &str = "qi-truncated-headers";
/// A truncated dead letter: `sha256:` and the digest of the original payload, in lower-case hexadecimal digits.
/// Absent if the original has no payload.
pub const DIGEST: &str = "qi-digest";
/// The number of times that `qi dlq redrive` has published the message, as decimal digits. A dead letter of a
/// redriven message keeps it.
pub const REDRIVES: &str = "qi-redrives";
/// A message that stands for offsets which the bus could not read: the first of them, as decimal digits. The offset of
/// the message is the last of them.
pub const UNREADABLE_FROM: &str = "qi-unreadable-from";
/// The same: the stable code of the reason.
pub const UNREADABLE_CODE: &str = "qi-unreadable-code";
/// Every header that a dead letter sets. It keeps no such header of its message, and a redriven message has none of
/// the letter's.
pub const OF_DEAD_LETTERS: [&str; 10] = [
    ORIGIN_TOPIC,
    ORIGIN_PARTITION,
    ORIGIN_OFFSET,
    ORIGIN_TIMESTAMP,
    ERROR_CODE,
    ERROR,
    TRUNCATED,
    TRUNCATED_HEADERS,
    DIGEST,
    REDRIVES,
];
