//! The settings of the memory bus.

use std::time::Duration;

use qi_core::bus::Encoding;
use qi_core::{Error, ErrorKind, Result};
use serde::Deserialize;

use super::topic::RECORD_COST;

/// The settings of a [`super::MemoryBus`]. The defaults are those of a broker, made small enough for a laptop.
///
/// ```
/// use qi_testkit::bus::MemoryBusConfig;
/// let config = MemoryBusConfig { max_bytes: 64 << 20, ..MemoryBusConfig::default() };
/// assert_eq!(config.delivery_timeout_ms, 120_000);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryBusConfig {
    /// How many bytes all topics may hold together: keys, payloads, headers (128 bytes more for each header),
    /// and about 100 bytes for each message's place in the log. Defaults to 256 MiB.
    pub max_bytes: usize,
    /// The largest message that the client takes, in bytes. By default 4 MiB.
    pub max_message_bytes: usize,
    /// The largest message of a topic that does not say so itself, in bytes. By default 1,048,588, as Kafka has
    /// it.
    pub topic_max_message_bytes: usize,
    /// How long `publish` waits for space, in milliseconds. By default 2 minutes.
    pub delivery_timeout_ms: u64,
    /// How long `close` waits for a `publish` that waits for space, in milliseconds. By default 30 seconds.
    pub close_timeout_ms: u64,
    /// How long messages stay in a topic that does not say so itself, in milliseconds. By default 7 days, as
    /// Kafka has it.
    pub retention_ms: u64,
    /// How long the commits of a group stay that has no members, or none on the topic any more, in milliseconds. By
    /// default 7 days, as Kafka has it.
    pub group_retention_ms: u64,
    /// How long messages without a key go to one partition before the next takes its turn, in milliseconds. By
    /// default 10.
    pub sticky_ms: u64,
    /// The format of published records. `bus.codec` sets it. Defaults to JSON.
    #[serde(skip)]
    pub codec: Encoding,
}

impl Default for MemoryBusConfig {
    fn default() -> Self {
        const WEEK_MS: u64 = 7 * 24 * 3_600 * 1_000;
        Self {
            max_bytes: 256 << 20,
            max_message_bytes: 4 << 20,
            topic_max_message_bytes: 1_048_588,
            delivery_timeout_ms: 120_000,
            close_timeout_ms: 30_000,
            retention_ms: WEEK_MS,
            group_retention_ms: WEEK_MS,
            sticky_ms: 10,
            codec: Encoding::default(),
        }
    }
}

impl MemoryBusConfig {
    /// Checks that at least one message of the largest size fits.
    pub(super) fn validate(&self) -> Result<()> {
        let wrong = |field: &'static str, value: u64, rule: &str| {
            Err(Error::new(ErrorKind::Config, "bus.memory.config", "validate")
                .with_backend("memory")
                .with_message(format_args!("{field} {rule}"))
                .with_context("field", field)
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
        if self.delivery_timeout_ms == 0 {
            return wrong("delivery_timeout_ms", 0, "must be above 0");
        }
        Ok(())
    }

    pub(super) fn delivery_timeout(&self) -> Duration {
        Duration::from_millis(self.delivery_timeout_ms)
    }
}
