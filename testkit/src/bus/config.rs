//! The settings of the memory bus.

use std::time::Duration;

use qi_core::bus::Encoding;
use qi_core::domain::duration;
use qi_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use super::topic::RECORD_COST;

/// The settings of a [`super::MemoryBus`]. The defaults follow those of a broker, with memory limits for a laptop.
///
/// ```
/// use qi_testkit::bus::MemoryBusConfig;
/// let mut config = MemoryBusConfig::default();
/// config.max_bytes = 64 << 20;
/// assert_eq!(config.delivery_timeout, std::time::Duration::from_mins(2));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct MemoryBusConfig {
    /// The capacity of all topics together, in bytes. It counts keys, payloads, headers (128 bytes more for each
    /// header), and about 100 bytes for each message. Defaults to 256 MiB.
    pub max_bytes: usize,
    /// The largest message that the client accepts, in bytes. Defaults to 4 MiB.
    pub max_message_bytes: usize,
    /// The largest message of a topic without its own limit, in bytes. Defaults to 1,048,588 bytes, like Kafka.
    pub topic_max_message_bytes: usize,
    /// The longest wait of `publish` for space. Defaults to 2 minutes.
    #[serde(with = "duration")]
    pub delivery_timeout: Duration,
    /// The longest wait of `close` for a `publish` that waits for space. Defaults to 30 s.
    #[serde(with = "duration")]
    pub close_timeout: Duration,
    /// The retention of a topic without its own retention. Defaults to 7 days, like Kafka.
    #[serde(with = "duration")]
    pub retention: Duration,
    /// The retention of commits after the group has lost its last member or the topic its last
    /// subscribed member. Defaults to 7 days, like Kafka.
    #[serde(with = "duration")]
    pub group_retention: Duration,
    /// The time for which messages without a key go to one partition before the next partition is chosen.
    /// Defaults to 10 ms.
    #[serde(with = "duration")]
    pub sticky_linger: Duration,
    /// The format of published records. `bus.codec` sets it. Defaults to JSON.
    #[serde(skip)]
    pub codec: Encoding,
}

impl Default for MemoryBusConfig {
    fn default() -> Self {
        const WEEK: Duration = Duration::from_hours(7 * 24);
        Self {
            max_bytes: 256 << 20,
            max_message_bytes: 4 << 20,
            topic_max_message_bytes: 1_048_588,
            delivery_timeout: Duration::from_mins(2),
            close_timeout: Duration::from_secs(30),
            retention: WEEK,
            group_retention: WEEK,
            sticky_linger: Duration::from_millis(10),
            codec: Encoding::default(),
        }
    }
}

impl MemoryBusConfig {
    /// Checks that required limits are above 0 and that `max_bytes` has room for a message of the largest size.
    ///
    /// # Errors
    /// `Config` with the key and its value.
    pub fn validate(&self) -> Result<()> {
        let wrong = |key: &str, value: u64, rule: &str| {
            Err(Error::new(ErrorKind::Config, "bus.memory.config", "validate")
                .with_backend("memory")
                .with_message(format_args!("{key} {rule}"))
                .with_context("key", format_args!("bus.memory.{key}"))
                .with_context("value", value))
        };
        if self.max_message_bytes == 0 {
            return wrong("max_message_bytes", 0, "must be above 0");
        }
        if self.topic_max_message_bytes == 0 {
            return wrong("topic_max_message_bytes", 0, "must be above 0");
        }
        if self.max_bytes < self.max_message_bytes.saturating_add(RECORD_COST) {
            return wrong("max_bytes", self.max_bytes as u64, "must have room for max_message_bytes");
        }
        if self.delivery_timeout.is_zero() {
            return wrong("delivery_timeout", 0, "must be above 0");
        }
        Ok(())
    }
}
