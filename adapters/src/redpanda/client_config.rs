//! The properties of librdkafka's clients. `docs/backends/redpanda.md` gives the reason for each property.

use std::time::Duration;

use qi_core::bus::SubscribeRequest;
use qi_core::{Error, ErrorKind, Result};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use secrecy::ExposeSecret;

use super::config::{MessageCompression, Profile, RedpandaConfig, SaslMechanism};
use super::error::{self, BACKEND};
use crate::password_warning::{PasswordWarning, host_of};

/// The maximum of librdkafka's integers, which are i32.
const MAX_INT: u64 = i32::MAX as u64;

/// Returns the properties of every client.
fn common(config: &RedpandaConfig) -> ClientConfig {
    let mut client_config = ClientConfig::new();
    client_config
        .set_log_level(RDKafkaLogLevel::Info)
        .set("bootstrap.servers", config.brokers.as_deref().unwrap_or_default())
        .set("client.id", &config.client_id)
        .set("client.software.name", "qi")
        .set("client.software.version", env!("CARGO_PKG_VERSION"))
        .set("allow.auto.create.topics", "false")
        .set("statistics.interval.ms", millis(config.statistics_interval).to_string())
        // librdkafka treats a later response as lost and opens a new connection.
        .set("socket.timeout.ms", millis(config.request_timeout).to_string())
        .set(
            "socket.connection.setup.timeout.ms",
            millis(config.request_timeout).clamp(1_000, 300_000).to_string(),
        )
        .set("api.version.request.timeout.ms", millis(config.request_timeout).clamp(10, 300_000).to_string())
        .set("socket.nagle.disable", "true")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("topic.metadata.propagation.max.ms", "5000");
    security(config, &mut client_config);
    client_config
}

fn security(config: &RedpandaConfig, client_config: &mut ClientConfig) {
    let (tls, sasl) = (&config.tls, &config.sasl);
    let protocol = match (tls.enabled, sasl.mechanism.is_some()) {
        (false, false) => "plaintext",
        (true, false) => "ssl",
        (false, true) => "sasl_plaintext",
        (true, true) => "sasl_ssl",
    };
    client_config.set("security.protocol", protocol);
    for (property, value) in [
        ("ssl.ca.location", &tls.root_cert),
        ("ssl.certificate.location", &tls.client_cert),
        ("ssl.key.location", &tls.client_key),
        ("sasl.username", &sasl.username),
    ] {
        if let Some(value) = value {
            client_config.set(property, value);
        }
    }
    if let Some(mechanism) = sasl.mechanism {
        client_config.set("sasl.mechanisms", mechanism.as_str());
    }
    for (property, secret) in
        [("ssl.key.password", &tls.client_key_password), ("sasl.password", &sasl.password)]
    {
        if let Some(secret) = secret {
            client_config.set(property, secret.expose_secret());
        }
    }
}

/// Adds the user's properties last. The validation has already rejected properties that the user must not change.
fn finish(config: &RedpandaConfig, mut client_config: ClientConfig) -> ClientConfig {
    for (property, value) in &config.properties {
        client_config.set(property, value.as_str());
    }
    client_config
}

/// Returns the properties of a producer with this maximum batch size.
pub(super) fn producer(config: &RedpandaConfig, batch_bytes: usize) -> ClientConfig {
    let mut client_config = common(config);
    let (linger_ms, compression) = match config.profile {
        Profile::Balanced => ("2", MessageCompression::Lz4),
        Profile::LowLatency => ("0", MessageCompression::None),
        Profile::HighThroughput => ("20", MessageCompression::Lz4),
    };
    client_config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", linger_ms)
        .set("compression.type", config.compression.unwrap_or(compression).as_str())
        .set("batch.size", batch_bytes.to_string())
        .set("batch.num.messages", "1000000")
        .set("message.max.bytes", (config.max_message_bytes + MESSAGE_OVERHEAD_BYTES).to_string())
        .set("message.timeout.ms", millis(config.delivery_timeout).to_string())
        // The adapter waits for space, whereas librdkafka would reject the message.
        .set("queue.buffering.max.messages", "0")
        .set("queue.buffering.max.kbytes", "2147483647")
        .set("partitioner", "murmur2_random")
        .set("sticky.partitioning.linger.ms", "10");
    finish(config, client_config)
}

/// The space for the protocol's overhead of a message, in bytes.
pub(super) const MESSAGE_OVERHEAD_BYTES: usize = 512;

/// The maximum size of a response, and of a zstd batch after decompression. For zstd, librdkafka triples its buffer
/// until the batch fits. Every zstd batch of up to a third of this size is therefore readable; a larger batch may be
/// rejected. Other codecs have no limit.
const MAX_RECEIVE_BYTES: u64 = 512 << 20;

/// Returns the properties shared by group members and by readers without a group.
fn consumer(config: &RedpandaConfig, max_buffered_bytes: usize) -> ClientConfig {
    let mut client_config = common(config);
    let (wait_ms, min_bytes) = match config.profile {
        Profile::Balanced => ("100", "1"),
        Profile::LowLatency => ("10", "1"),
        Profile::HighThroughput => ("100", "65536"),
    };
    // Half of `max_buffered_bytes` limits librdkafka's queue, the other half the adapter's fetch buffer. A fetch is
    // half of the queue, so that the next fetch arrives while the previous fetch is read.
    let queued = (max_buffered_bytes as u64 / 2).clamp(1_024, 1_000_000_000);
    let max_fetch_bytes = (queued / 2).clamp(1_024, 100_000_000);
    client_config
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // The end-of-partition event triggers the end probe, which skips transaction markers and compaction gaps.
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        // At most fetch.max.bytes; otherwise librdkafka raises fetch.max.bytes to this value. Larger messages are
        // fetched nevertheless.
        .set("message.max.bytes", max_fetch_bytes.min(config.max_message_bytes as u64).to_string())
        .set("fetch.max.bytes", max_fetch_bytes.to_string())
        .set("receive.message.max.bytes", MAX_RECEIVE_BYTES.to_string())
        .set("max.partition.fetch.bytes", max_fetch_bytes.min(1 << 20).to_string())
        .set("queued.max.messages.kbytes", (queued / 1_024).to_string())
        .set("queued.min.messages", "1000000")
        .set("fetch.wait.max.ms", wait_ms)
        .set("fetch.min.bytes", min_bytes)
        .set("fetch.queue.backoff.ms", "5")
        .set("fetch.error.backoff.ms", "100")
        // The refresh detects deleted topics and topics with additional partitions.
        .set("topic.metadata.refresh.interval.ms", "30000");
    client_config
}

/// Returns the properties of a group member.
pub(super) fn member(config: &RedpandaConfig, request: &SubscribeRequest) -> ClientConfig {
    let mut client_config = consumer(config, request.max_buffered_bytes);
    let session = millis(request.session_timeout).clamp(1, 3_600_000);
    // Members learn of a rebalance by heartbeats, and each heartbeat is a request to the coordinator. At most a third of
    // the session timeout, as Kafka's documentation recommends, so a lost heartbeat does not remove the member.
    let longest = match config.profile {
        Profile::Balanced | Profile::LowLatency => 500,
        Profile::HighThroughput => 3_000,
    };
    let heartbeat = (session / 3).clamp(1, longest);
    client_config
        .set("group.id", request.group.as_str())
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", session.to_string())
        .set("heartbeat.interval.ms", heartbeat.to_string())
        .set(
            "max.poll.interval.ms",
            millis(request.max_poll_interval).clamp(session, 86_400_000).to_string(),
        );
    if let Some(member) = &request.group_instance_id {
        client_config.set("group.instance.id", member.as_str());
    }
    finish(config, client_config)
}

/// Returns the properties of a reader without a group. librdkafka still requires the name of a group.
/// The reader never commits.
pub(super) fn reader(config: &RedpandaConfig, max_buffered_bytes: usize) -> ClientConfig {
    let mut client_config = consumer(config, max_buffered_bytes);
    client_config.set("group.id", format!("qi-reader-{:016x}", fastrand::u64(..)));
    finish(config, client_config)
}

/// Returns the properties of the client that queries end offsets, groups and committed offsets. It never joins a group.
pub(super) fn query_client(config: &RedpandaConfig, group: Option<&str>) -> ClientConfig {
    let mut client_config = request_client(config);
    client_config.set("enable.auto.commit", "false");
    if let Some(group) = group {
        client_config.set("group.id", group);
    }
    let mut client_config = finish(config, client_config);
    // The user's properties do not change this. The end of a partition is the high watermark, not the last stable
    // offset. With `read_committed`, the coordinator would also delay committed offsets that belong to an open
    // transaction.
    client_config.set("isolation.level", "read_uncommitted");
    client_config
}

/// Returns the properties of the client that requests last stable offsets.
pub(super) fn stable_client(config: &RedpandaConfig) -> ClientConfig {
    let mut client_config = query_client(config, None);
    client_config.set("isolation.level", "read_committed");
    client_config
}

/// Returns the properties of the client for administration.
pub(super) fn admin(config: &RedpandaConfig) -> ClientConfig {
    finish(config, request_client(config))
}

/// Returns the properties of a client that neither receives nor publishes messages. Its statistics are not used.
fn request_client(config: &RedpandaConfig) -> ClientConfig {
    let mut client_config = common(config);
    client_config.set("statistics.interval.ms", "0");
    client_config
}

/// Rejects unknown properties, invalid values, and TLS or SCRAM without the feature `redpanda-tls`. Performs no network
/// I/O.
pub(super) fn check(config: &RedpandaConfig) -> Result<()> {
    if config.tls.enabled && !cfg!(feature = "redpanda-tls") {
        return Err(needs_tls(config, "tls.enabled"));
    }
    let scram = config.sasl.mechanism.filter(|mechanism| *mechanism != SaslMechanism::Plain);
    if scram.is_some() && !cfg!(feature = "redpanda-tls") {
        return Err(needs_tls(config, "sasl.mechanism"));
    }
    let probe = finish(config, common(config));
    probe.create_native_config().map(drop).map_err(|e| {
        let error = error::from_kafka(e, "open");
        match error.context_value("property") {
            Some(property) if config.properties.contains_key(property) => {
                let key = format!("{}.properties.{property}", config.section);
                error.with_context("key", key)
            }
            _ => error,
        }
    })
}

/// Returns the warning about a password that is sent to brokers without encryption. Checks the configured brokers now.
/// The hosts that brokers advertise are checked when they are known.
pub(super) fn password_warning(config: &RedpandaConfig) -> PasswordWarning {
    let exposed = config.sasl.password.is_some() && !config.tls.enabled;
    let warning = PasswordWarning::new(BACKEND, exposed);
    warning.check(config.brokers.as_deref().unwrap_or_default().split(',').map(host_of));
    warning
}

/// Rejects a program that is built with `panic = "abort"`, unless `allow_panic_abort` is set. rdkafka
/// panics on a header name that is not UTF-8.
pub(super) fn check_panic_strategy(config: &RedpandaConfig, aborts_on_panic: bool) -> Result<()> {
    if !aborts_on_panic || config.allow_panic_abort {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Config, "bus.redpanda.config", "open")
        .with_message(
            "the program is built with panic = \"abort\": a message with a header name that is not UTF-8 would abort the \
             process; build with panic = \"unwind\", or set allow_panic_abort if all producers are trusted",
        )
        .with_backend(BACKEND)
        .with_context("key", format_args!("{}.allow_panic_abort", config.section)))
}

fn needs_tls(config: &RedpandaConfig, key: &str) -> Error {
    Error::new(ErrorKind::Config, "bus.redpanda.config", "open")
        .with_message("needs OpenSSL; enable the feature `redpanda-tls` of qi-adapters")
        .with_backend(BACKEND)
        .with_context("key", format_args!("{}.{key}", config.section))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(MAX_INT).min(MAX_INT)
}

/// Returns the timeout, at most librdkafka's maximum of 2^31-1 ms.
pub(super) fn clamp_timeout(duration: Duration) -> Duration {
    duration.min(Duration::from_millis(MAX_INT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_clients_ignore_the_configured_isolation_level() {
        let mut config = RedpandaConfig::from_brokers("127.0.0.1:1");
        config.properties.insert("isolation.level".to_owned(), "read_committed".into());
        for group in [None, Some("g")] {
            assert_eq!(query_client(&config, group).get("isolation.level"), Some("read_uncommitted"));
        }
    }

    #[test]
    fn panic_abort_is_rejected_without_allow_panic_abort() {
        let mut config = RedpandaConfig::from_brokers("127.0.0.1:1");
        assert!(check_panic_strategy(&config, false).is_ok());
        let rejected = check_panic_strategy(&config, true).unwrap_err();
        assert_eq!(rejected.kind(), ErrorKind::Config);
        assert_eq!(rejected.context_value("key"), Some("bus.redpanda.allow_panic_abort"));
        config.allow_panic_abort = true;
        assert!(check_panic_strategy(&config, true).is_ok());
    }
}
