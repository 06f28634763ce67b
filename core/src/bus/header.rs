//! The names of the headers of typed messages and dead letters.

/// The media type of [`super::Codec::content_type`]: `application/json`.
pub const CONTENT_TYPE: &str = "content-type";
/// The record's [`crate::Dataset::message`]: `tick`.
pub const TYPE: &str = "qi-type";
/// The record's [`crate::Dataset::version`], as decimal digits.
pub const VERSION: &str = "qi-version";
/// The topic of a dead letter's original message.
pub const ORIGIN_TOPIC: &str = "qi-origin-topic";
/// The partition of a dead letter's original message.
pub const ORIGIN_PARTITION: &str = "qi-origin-partition";
/// The offset of a dead letter's original message.
pub const ORIGIN_OFFSET: &str = "qi-origin-offset";
/// The timestamp of a dead letter's original message, in microseconds since the Unix epoch, as decimal digits. Absent
/// if the message has none.
pub const ORIGIN_TIMESTAMP: &str = "qi-origin-timestamp";
/// The stable code of a dead letter's error.
pub const ERROR_CODE: &str = "qi-error-code";
/// The report of a dead letter's error, of at most 1,024 bytes. Absent if the limit of the dead
/// letter is below 2,048 bytes.
pub const ERROR: &str = "qi-error";
/// The size of a truncated dead letter's original message in bytes, as decimal digits.
pub const TRUNCATED: &str = "qi-truncated";
/// The number of headers dropped from a truncated dead letter, as decimal digits. Absent if none were dropped.
pub const TRUNCATED_HEADERS: &str = "qi-truncated-headers";
/// The digest of a truncated dead letter's original payload: `sha256:` and lower-case hexadecimal digits. Absent if the
/// original has no payload.
pub const DIGEST: &str = "qi-digest";
/// The number of times that `qi dlq redrive` has published the message, as decimal digits. A dead letter of a redriven
/// message keeps the header.
pub const REDRIVES: &str = "qi-redrives";
/// The first offset that the bus could not read, as decimal digits, in a message that represents unreadable offsets.
/// The offset of the message is the last of them.
pub const UNREADABLE_FROM: &str = "qi-unreadable-from";
/// The stable code of the reason in a message that represents unreadable offsets.
pub const UNREADABLE_CODE: &str = "qi-unreadable-code";
/// Every header that a dead letter sets. A dead letter does not copy these headers from its
/// message, and redriving removes them.
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
