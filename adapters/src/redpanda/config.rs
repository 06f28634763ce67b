//! The sections `[bus.redpanda]` and `[bus.kafka]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qi_core::Result;
use qi_core::bus::Encoding;
use qi_core::domain::duration;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::scalars::Scalar;
use crate::validation::Rules;

/// The addresses and the settings of a bus over the Kafka protocol. Compiled even without the feature `redpanda`,
/// because a file may contain the section of every backend.
///
/// ```
/// use std::time::Duration;
/// use qi_adapters::config::{Profile, RedpandaConfig};
/// let config = RedpandaConfig::from_brokers("127.0.0.1:9092");
/// assert_eq!((config.profile, config.delivery_timeout), (Profile::Balanced, Duration::from_mins(2)));
/// ```
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RedpandaConfig {
    /// The bootstrap brokers, as `host:port`, separated by commas. The client discovers the other brokers through them.
    pub brokers: Option<String>,
    /// The name of this client in the logs and the quotas of the brokers. Defaults to `qi`.
    pub client_id: String,
    /// The tuning profile of the client. Defaults to balanced.
    pub profile: Profile,
    /// The format of published records, which `bus.codec` sets. Defaults to JSON.
    #[serde(skip)]
    pub codec: Encoding,
    /// The compression of message batches. Defaults to the compression of the profile.
    pub compression: Option<MessageCompression>,
    /// The maximum size of a message, in bytes: key, payload and headers. A topic may have a lower limit. Defaults to
    /// 4 MiB, which exceeds the 2 MiB plus 64 KiB of the largest dead letter topic in the catalogue.
    pub max_message_bytes: usize,
    /// The maximum number of unacknowledged bytes, above which `publish` waits for space. Defaults to 64 MiB.
    pub buffer_bytes: usize,
    /// The maximum time from the client's buffer to the acknowledgement of a message. It also limits
    /// the time that `publish` waits for space. Defaults to 120 s.
    #[serde(with = "duration")]
    pub delivery_timeout: Duration,
    /// The timeout of a request to the brokers: lookups, administration and `ping`. Defaults to 10 s.
    #[serde(with = "duration")]
    pub request_timeout: Duration,
    /// The timeout of a commit, including retries. Defaults to 10 s.
    #[serde(with = "duration")]
    pub commit_timeout: Duration,
    /// The maximum time that `close` waits for messages in flight. Defaults to 30 s.
    #[serde(with = "duration")]
    pub close_timeout: Duration,
    /// The interval at which the client's statistics update the metrics. The statistics also show
    /// whether a broker is connected. Defaults to 1 s.
    #[serde(with = "duration")]
    pub statistics_interval: Duration,
    /// Permission to open the bus in a program that is built with `panic = "abort"`. Defaults to false.
    ///
    /// The driver panics on a message whose header name is not UTF-8 text, and the adapter catches the
    /// panic. With `panic = "abort"`, such a message ends the process. Enable this only if every producer
    /// of the cluster is trusted.
    pub allow_panic_abort: bool,
    /// The settings of encryption.
    pub tls: RedpandaTlsSection,
    /// The settings of authentication.
    pub sasl: SaslSection,
    /// Further properties of librdkafka. The bus rejects unknown properties before it connects. It also rejects
    /// properties that a key of this section or the adapter controls.
    pub properties: BTreeMap<String, PropertyValue>,
    /// The path of the section in errors: `bus.redpanda` or `bus.kafka`.
    #[serde(skip)]
    pub(crate) section: &'static str,
}

impl Default for RedpandaConfig {
    fn default() -> Self {
        Self {
            brokers: None,
            client_id: "qi".to_owned(),
            profile: Profile::Balanced,
            codec: Encoding::default(),
            compression: None,
            max_message_bytes: 4 << 20,
            buffer_bytes: 64 << 20,
            delivery_timeout: Duration::from_mins(2),
            request_timeout: Duration::from_secs(10),
            commit_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(30),
            statistics_interval: Duration::from_secs(1),
            allow_panic_abort: false,
            tls: RedpandaTlsSection::default(),
            sasl: SaslSection::default(),
            properties: BTreeMap::new(),
            section: "bus.redpanda",
        }
    }
}

/// The tuning profile of the client. [The page on Redpanda and Kafka](qi_core::guide::redpanda) lists the settings of each profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Profile {
    /// Compressed batches with a linger of 2 ms.
    Balanced,
    /// Batches without linger and without compression.
    LowLatency,
    /// Compressed batches with a linger of 20 ms, and fetches that wait for a minimum amount of data.
    HighThroughput,
}

/// The compression of message batches in requests and in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MessageCompression {
    /// No compression of the batches.
    None,
    /// LZ4 compression, with low CPU usage.
    Lz4,
    /// Zstandard compression, with the smallest batches.
    Zstd,
    /// Snappy compression of the batches.
    Snappy,
    /// Gzip compression, for brokers and consumers that support no other codec.
    Gzip,
}

impl MessageCompression {
    /// Returns the broker's name of the codec.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Snappy => "snappy",
            Self::Gzip => "gzip",
        }
    }
}

/// `[bus.redpanda.tls]`: the settings of encryption. Needs the feature `redpanda-tls`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RedpandaTlsSection {
    /// Enables encrypted connections. Defaults to false.
    pub enabled: bool,
    /// The PEM file of the trusted certificate authorities. Defaults to the certificate authorities of the system.
    pub root_cert: Option<String>,
    /// The PEM file of the client's certificate.
    pub client_cert: Option<String>,
    /// The PEM file of the client's key.
    pub client_key: Option<String>,
    /// The password of the client's key. Hidden in `Debug` output.
    #[serde(serialize_with = "crate::scalars::hidden")]
    pub client_key_password: Option<SecretString>,
    /// The file that contains the password of the client's key, instead of `client_key_password`.
    pub client_key_password_file: Option<PathBuf>,
}

/// `[bus.redpanda.sasl]`: authentication with a user name and a password. SCRAM needs the feature `redpanda-tls`.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SaslSection {
    /// The SASL mechanism. Without a mechanism, the client does not authenticate.
    pub mechanism: Option<SaslMechanism>,
    /// The name of the user.
    pub username: Option<String>,
    /// The user's password. Hidden in `Debug` output.
    #[serde(serialize_with = "crate::scalars::hidden")]
    pub password: Option<SecretString>,
    /// The file that contains the password, instead of `password`.
    pub password_file: Option<PathBuf>,
}

/// The SASL mechanism, by which the client proves its password to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SaslMechanism {
    /// The password in plain text, for encrypted connections.
    Plain,
    /// A SCRAM challenge with SHA-256.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// A SCRAM challenge with SHA-512.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
}

impl SaslMechanism {
    /// Returns the broker's name of the mechanism.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// The value of a property: text, a number or a boolean. librdkafka receives it as text. Hidden in `Debug` output,
/// because it may be a secret.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Scalar")]
pub struct PropertyValue(String);

impl Serialize for PropertyValue {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(crate::scalars::HIDDEN)
    }
}

impl PropertyValue {
    /// Returns the value as text for librdkafka.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for PropertyValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(crate::scalars::HIDDEN)
    }
}

impl<T: Into<String>> From<T> for PropertyValue {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

/// The properties that a key of the section or the adapter controls, each with the reason.
const RESERVED_PROPERTIES: &[(&str, &str)] = &[
    ("bootstrap.servers", "is set by the key `brokers`"),
    ("metadata.broker.list", "is set by the key `brokers`"),
    ("client.id", "is set by the key `client_id`"),
    ("compression.codec", "is set by the key `compression`"),
    ("compression.type", "is set by the key `compression`"),
    ("message.max.bytes", "is set by the key `max_message_bytes`"),
    ("message.timeout.ms", "is set by the key `delivery_timeout`"),
    ("delivery.timeout.ms", "is set by the key `delivery_timeout`"),
    ("queue.buffering.max.kbytes", "is set by the key `buffer_bytes`"),
    ("queue.buffering.max.messages", "is set by the key `buffer_bytes`"),
    ("statistics.interval.ms", "is set by the key `statistics_interval`"),
    ("security.protocol", "is set by `tls` and `sasl`"),
    ("sasl.mechanism", "is set by `sasl.mechanism`"),
    ("sasl.mechanisms", "is set by `sasl.mechanism`"),
    ("sasl.username", "is set by `sasl.username`"),
    ("sasl.password", "is set by `sasl.password`"),
    ("ssl.ca.location", "is set by `tls.root_cert`"),
    ("ssl.certificate.location", "is set by `tls.client_cert`"),
    ("ssl.key.location", "is set by `tls.client_key`"),
    ("ssl.key.password", "is set by `tls.client_key_password`"),
    ("group.id", "is set by each subscription"),
    ("group.instance.id", "is set by each subscription"),
    ("group.protocol", "must be `classic`, which the adapter requires"),
    ("session.timeout.ms", "is set by each subscription"),
    ("max.poll.interval.ms", "is set by each subscription"),
    ("auto.offset.reset", "is set by each subscription"),
    ("enable.auto.commit", "must not be set, because commits are explicit"),
    ("auto.commit.enable", "must not be set, because commits are explicit"),
    ("auto.commit.interval.ms", "must not be set, because commits are explicit"),
    ("enable.auto.offset.store", "must not be set, because commits are explicit"),
    ("enable.partition.eof", "is set by the adapter"),
    ("enable.idempotence", "is always enabled by the adapter"),
    ("acks", "is always `all`, because publishing is idempotent"),
    ("request.required.acks", "is always `all`, because publishing is idempotent"),
    ("transactional.id", "is not supported, because the bus has no transactions"),
    ("partitioner", "is always `murmur2_random`, as in the Java client"),
    ("allow.auto.create.topics", "is always disabled by the adapter"),
    ("delivery.report.only.error", "is not supported, because publish reports every message"),
    ("produce.offset.report", "is not supported, because publish reports offsets"),
    ("partition.assignment.strategy", "is always `cooperative-sticky`"),
    ("max.in.flight", "is an alias of `max.in.flight.requests.per.connection`, which must be used instead"),
    ("message.send.max.retries", "is an alias of `retries`, which must be used instead"),
    ("queue.buffering.max.ms", "is an alias of `linger.ms`, which must be used instead"),
    ("fetch.message.max.bytes", "is an alias of `max.partition.fetch.bytes`, which must be used instead"),
    ("ssl.engine.location", "is not supported, because the configuration must not load libraries"),
    ("ssl.providers", "is not supported, because the configuration must not load libraries"),
    ("test.mock.num.brokers", "is not supported, because a mock would replace the brokers"),
    ("log.queue", "is set by the client library"),
    ("plugin.library.paths", "is not supported, because the configuration must not load libraries"),
];

/// The properties that control the verification of the brokers' certificates, each with the values that enable it.
const VERIFICATION_PROPERTIES: &[(&str, &[&str])] = &[
    ("enable.ssl.certificate.verification", &["true", "t", "1"]),
    ("ssl.endpoint.identification.algorithm", &["https"]),
];

impl RedpandaConfig {
    /// Creates a configuration for these brokers, with defaults for all other settings.
    pub fn from_brokers(brokers: impl Into<String>) -> Self {
        Self { brokers: Some(brokers.into()), ..Self::default() }
    }

    fn rules(&self) -> Rules {
        Rules { section: self.section, code: "bus.redpanda.config", backend: "redpanda" }
    }

    /// Validates all settings of the section.
    ///
    /// # Errors
    /// `Config` with the key and its value.
    pub fn validate(&self) -> Result<()> {
        if self.brokers.is_none() {
            let rule = "is required: a comma-separated list of `host:port`";
            return Err(self.rules().reject("brokers", "none", rule));
        }
        self.check_bounds()
    }

    /// Reads the passwords of the files.
    ///
    /// # Errors
    /// `Config` for a file that cannot be read.
    #[cfg(feature = "redpanda")]
    pub(super) fn with_passwords(mut self) -> Result<Self> {
        let rules = self.rules();
        if let Some(file) = &self.sasl.password_file {
            self.sasl.password = Some(rules.secret("sasl.password_file", file)?);
        }
        if let Some(file) = &self.tls.client_key_password_file {
            self.tls.client_key_password = Some(rules.secret("tls.client_key_password_file", file)?);
        }
        Ok(self)
    }

    /// Validates the settings of a section that may lack the brokers.
    pub(crate) fn check_bounds(&self) -> Result<()> {
        let rules = self.rules();
        check_brokers(&rules, self.brokers.as_deref())?;
        rules.one_of("sasl.password", self.sasl.password.is_some(), self.sasl.password_file.is_some())?;
        rules.one_of(
            "tls.client_key_password",
            self.tls.client_key_password.is_some(),
            self.tls.client_key_password_file.is_some(),
        )?;
        if self.client_id.is_empty()
            || self.client_id.len() > 249
            || self.client_id.chars().any(char::is_control)
        {
            return Err(rules.reject("client_id", &self.client_id, "must be 1 to 249 printable characters"));
        }
        rules.within("max_message_bytes", self.max_message_bytes as u64, 1_024, 1_000_000_000)?;
        let least = 2 * self.max_message_bytes as u64;
        rules.within("buffer_bytes", self.buffer_bytes as u64, least, 2_147_483_647)?;
        let (milli, tenth, second) =
            (Duration::from_millis(1), Duration::from_millis(100), Duration::from_secs(1));
        for (key, value, least, most) in [
            ("delivery_timeout", self.delivery_timeout, tenth, MAX_DURATION),
            ("request_timeout", self.request_timeout, tenth, Duration::from_mins(5)),
            ("commit_timeout", self.commit_timeout, tenth, MAX_DURATION),
            ("close_timeout", self.close_timeout, milli, MAX_DURATION),
            // librdkafka checks once a second whether the statistics are due.
            ("statistics_interval", self.statistics_interval, second, Duration::from_hours(24)),
        ] {
            rules.duration_within(key, value, least, most)?;
        }
        let tls = &self.tls;
        if tls.client_cert.is_some() != tls.client_key.is_some() {
            return Err(rules.reject(
                "tls",
                "one of two",
                "`client_cert` and `client_key` must be set together",
            ));
        }
        let files = tls.root_cert.is_some() || tls.client_cert.is_some();
        if files && !tls.enabled {
            return Err(rules.reject("tls.enabled", false, "must be true if a certificate file is set"));
        }
        let sasl = &self.sasl;
        let password = sasl.password.is_some() || sasl.password_file.is_some();
        let is_set = [sasl.mechanism.is_some(), sasl.username.is_some(), password];
        if is_set.contains(&true) && is_set.contains(&false) {
            let rule = "`mechanism`, `username` and `password` must be set together";
            return Err(rules.reject("sasl", "some of three", rule));
        }
        for (key, value) in &self.properties {
            // librdkafka also accepts this prefix before a property of topics.
            let name = key.strip_prefix("topic.").unwrap_or(key);
            if let Some((_, reason)) =
                RESERVED_PROPERTIES.iter().find(|(reserved, _)| *reserved == key || *reserved == name)
            {
                return Err(rules.reject("properties", key, reason));
            }
            if let Some((_, safe)) = VERIFICATION_PROPERTIES.iter().find(|(property, _)| property == key)
                && !safe.iter().any(|safe| safe.eq_ignore_ascii_case(value.as_str()))
            {
                let rule = "must not disable the verification of certificates and host names; `tls.root_cert` sets the \
                            certificate authority of the brokers";
                return Err(rules.reject("properties", key, rule));
            }
            // librdkafka would resolve a relative path from the current folder, not from the folder of the file.
            let is_resolved = Path::new(value.as_str()).is_absolute() || value.as_str() == "probe";
            let is_path = [".location", ".file", ".keytab"].into_iter().any(|end| key.ends_with(end));
            if is_path && !is_resolved {
                let rule =
                    "must be an absolute path; the paths of `tls` may be relative to the configuration file";
                return Err(rules.reject("properties", key, rule));
            }
            let own = key.starts_with("topic.metadata.") || key == "topic.blacklist";
            if name != key && !own {
                return Err(rules.reject("properties", key, "must be written without the prefix `topic.`"));
            }
        }
        Ok(())
    }
}

/// Checks for entries `host:port`, separated by commas. librdkafka would treat the scheme of a URL as a
/// part of the host.
fn check_brokers(rules: &Rules, brokers: Option<&str>) -> Result<()> {
    let Some(brokers) = brokers else { return Ok(()) };
    for broker in brokers.split(',').map(str::trim) {
        let (host, port) = broker.rsplit_once(':').unwrap_or((broker, ""));
        let has_valid_host = !host.is_empty() && !host.contains(['/', '@', ' ']);
        let has_valid_brackets = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
        if !has_valid_host || !has_valid_brackets || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(rules.reject("brokers", broker, "must be a comma-separated list of `host:port`"));
        }
    }
    Ok(())
}

/// librdkafka's limit for its timeouts: an i32 of milliseconds.
const MAX_DURATION: Duration = Duration::from_millis(i32::MAX as u64);
