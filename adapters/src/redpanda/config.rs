//! `[bus.redpanda]` and `[bus.kafka]`.

use std::collections::BTreeMap;

use qi_core::Result;
use qi_core::bus::Encoding;
use secrecy::SecretString;
use serde::Deserialize;

use crate::rules::Rules;

/// Where the brokers are, and how they are used. Compiled always, so that one file can hold every backend.
///
/// ```
/// use qi_adapters::config::{Profile, RedpandaConfig};
/// let config = RedpandaConfig::from_brokers("127.0.0.1:9092");
/// assert_eq!((config.profile, config.delivery_timeout_ms), (Profile::Balanced, 120_000));
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RedpandaConfig {
    /// The brokers to begin with, as `host:port`, separated by commas; they name the others.
    pub brokers: Option<String>,
    /// The name of this client in the brokers' logs and quotas.
    pub client_id: String,
    /// What the settings below are tuned for.
    pub profile: Profile,
    /// The format of published records. `bus.codec` sets it. Defaults to JSON.
    #[serde(skip)]
    pub codec: Encoding,
    /// How batches of messages are compressed; by default what the profile says.
    pub compression: Option<MessageCompression>,
    /// The largest message that is taken, in bytes: key, payload and headers. A topic may allow less. Defaults to
    /// 4 MiB: more than the 2 MiB and 64 KiB of the largest dead letter topic in the catalogue.
    pub max_message_bytes: usize,
    /// How many bytes may wait for their acknowledgement before `publish` waits for space.
    pub buffer_bytes: usize,
    /// How long a message may take from the client's buffer to its acknowledgement, in milliseconds; and how long
    /// `publish` waits for space.
    pub delivery_timeout_ms: u64,
    /// How long a question to the brokers may take, in milliseconds: look-ups, administration, `ping`.
    pub request_timeout_ms: u64,
    /// How long a commit may take, repetitions included, in milliseconds.
    pub commit_timeout_ms: u64,
    /// How long `close` drains, in milliseconds.
    pub close_timeout_ms: u64,
    /// How often the client's statistics become metrics, in milliseconds. They also say whether a broker is
    /// connected.
    pub statistics_ms: u64,
    /// Opens the bus in a program that is built with `panic = "abort"`. Defaults to false.
    ///
    /// The driver panics on a message whose header name is not UTF-8 text, and the adapter catches the panic. With
    /// `panic = "abort"` such a message ends the process. So set this only if every producer of the cluster is trusted.
    pub allow_panic_abort: bool,
    /// Encryption.
    pub tls: RedpandaTlsSection,
    /// Who asks.
    pub sasl: SaslSection,
    /// Any other property of librdkafka. An unknown one is refused before anything is connected, and so is one that
    /// a key of this section or the contract decides.
    pub properties: BTreeMap<String, PropertyValue>,
    /// The section of the configuration, for errors: `bus.redpanda` or `bus.kafka`.
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
            delivery_timeout_ms: 120_000,
            request_timeout_ms: 10_000,
            commit_timeout_ms: 10_000,
            close_timeout_ms: 30_000,
            statistics_ms: 1_000,
            allow_panic_abort: false,
            tls: RedpandaTlsSection::default(),
            sasl: SaslSection::default(),
            properties: BTreeMap::new(),
            section: "bus.redpanda",
        }
    }
}

/// What the client is tuned for. The settings of each stand in `docs/backends/redpanda.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Batches of 2 ms, compressed.
    Balanced,
    /// Nothing waits for company, and nothing is compressed.
    LowLatency,
    /// Batches of 20 ms, compressed, and fetches that wait for some data.
    HighThroughput,
}

/// How batches of messages are compressed on the wire and in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageCompression {
    /// Not at all.
    None,
    /// LZ4: little work.
    Lz4,
    /// Zstandard: the least bytes.
    Zstd,
    /// Snappy.
    Snappy,
    /// Gzip, for brokers and readers that know nothing else.
    Gzip,
}

impl MessageCompression {
    /// The broker's word.
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

/// `[bus.redpanda.tls]`: needs the feature `redpanda-tls`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedpandaTlsSection {
    /// Whether connections are encrypted.
    pub enabled: bool,
    /// The file of certificate authorities that are trusted, PEM; else those of the system.
    pub root_cert: Option<String>,
    /// The file of the client's certificate, PEM.
    pub client_cert: Option<String>,
    /// The file of the client's key, PEM.
    pub client_key: Option<String>,
    /// The password of that key; never shown.
    pub client_key_password: Option<SecretString>,
}

/// `[bus.redpanda.sasl]`: a user and a password. SCRAM needs the feature `redpanda-tls`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SaslSection {
    /// How the password is proven; without it nobody logs in.
    pub mechanism: Option<SaslMechanism>,
    /// The user.
    pub username: Option<String>,
    /// Their password; never shown.
    pub password: Option<SecretString>,
}

/// How a password is proven to a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SaslMechanism {
    /// It is sent as it is: for encrypted connections.
    Plain,
    /// A challenge with SHA-256.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// A challenge with SHA-512.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
}

impl SaslMechanism {
    /// The broker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// The value of a property: text, a number or a boolean, all of which librdkafka takes as text. It may be a secret
/// and is never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Scalar")]
pub struct PropertyValue(String);

impl PropertyValue {
    /// The value as librdkafka takes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for PropertyValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl<T: Into<String>> From<T> for PropertyValue {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Flag(bool),
    Number(i64),
    Real(f64),
}

impl From<Scalar> for PropertyValue {
    fn from(scalar: Scalar) -> Self {
        Self(match scalar {
            Scalar::Text(text) => text,
            Scalar::Flag(flag) => flag.to_string(),
            Scalar::Number(number) => number.to_string(),
            Scalar::Real(number) => number.to_string(),
        })
    }
}

/// Properties that a key of the section or the contract decides, and where.
const DECIDED: &[(&str, &str)] = &[
    ("bootstrap.servers", "the key `brokers` sets it"),
    ("metadata.broker.list", "the key `brokers` sets it"),
    ("client.id", "the key `client_id` sets it"),
    ("compression.codec", "the key `compression` sets it"),
    ("compression.type", "the key `compression` sets it"),
    ("message.max.bytes", "the key `max_message_bytes` sets it"),
    ("message.timeout.ms", "the key `delivery_timeout_ms` sets it"),
    ("delivery.timeout.ms", "the key `delivery_timeout_ms` sets it"),
    ("queue.buffering.max.kbytes", "the key `buffer_bytes` sets it"),
    ("queue.buffering.max.messages", "the key `buffer_bytes` sets it"),
    ("statistics.interval.ms", "the key `statistics_ms` sets it"),
    ("security.protocol", "`tls` and `sasl` set it"),
    ("sasl.mechanism", "`sasl.mechanism` sets it"),
    ("sasl.mechanisms", "`sasl.mechanism` sets it"),
    ("sasl.username", "`sasl.username` sets it"),
    ("sasl.password", "`sasl.password` sets it"),
    ("ssl.ca.location", "`tls.root_cert` sets it"),
    ("ssl.certificate.location", "`tls.client_cert` sets it"),
    ("ssl.key.location", "`tls.client_key` sets it"),
    ("ssl.key.password", "`tls.client_key_password` sets it"),
    ("group.id", "each subscription sets it"),
    ("group.instance.id", "each subscription sets it"),
    ("group.protocol", "the adapter needs the classic one"),
    ("session.timeout.ms", "each subscription sets it"),
    ("max.poll.interval.ms", "each subscription sets it"),
    ("auto.offset.reset", "each subscription sets it"),
    ("enable.auto.commit", "commits are explicit"),
    ("auto.commit.enable", "commits are explicit"),
    ("auto.commit.interval.ms", "commits are explicit"),
    ("enable.auto.offset.store", "commits are explicit"),
    ("enable.partition.eof", "the adapter needs it"),
    ("enable.idempotence", "publishing is idempotent"),
    ("acks", "publishing is idempotent, which needs all"),
    ("request.required.acks", "publishing is idempotent, which needs all"),
    ("transactional.id", "there are no transactions on the port"),
    ("partitioner", "keys map as in Java"),
    ("allow.auto.create.topics", "nothing is created by accident"),
    ("delivery.report.only.error", "a publish answers for every message"),
    ("produce.offset.report", "a publish answers with offsets"),
    ("partition.assignment.strategy", "the adapter needs cooperative-sticky"),
    ("queue.buffering.max.ms", "it is another name of `linger.ms`"),
    ("fetch.message.max.bytes", "it is another name of `max.partition.fetch.bytes`"),
    ("ssl.engine.location", "no library is loaded by configuration"),
    ("ssl.providers", "no library is loaded by configuration"),
    ("test.mock.num.brokers", "it would replace the brokers by a mock"),
    ("log.queue", "the driver sets it"),
    ("plugin.library.paths", "no library is loaded by configuration"),
];

/// Properties that verify the brokers' certificates, and the values that do.
const VERIFYING: &[(&str, &[&str])] = &[
    ("enable.ssl.certificate.verification", &["true", "t", "1"]),
    ("ssl.endpoint.identification.algorithm", &["https"]),
];

impl RedpandaConfig {
    /// These brokers, and the defaults for all else.
    pub fn from_brokers(brokers: impl Into<String>) -> Self {
        Self { brokers: Some(brokers.into()), ..Self::default() }
    }

    fn rules(&self) -> Rules {
        Rules { section: self.section, code: "bus.redpanda.config", backend: "redpanda" }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// `Config` with the key and its value.
    pub fn validate(&self) -> Result<()> {
        let rules = self.rules();
        check_brokers(&rules, self.brokers.as_deref())?;
        if self.client_id.is_empty()
            || self.client_id.len() > 249
            || self.client_id.chars().any(char::is_control)
        {
            return Err(rules.refuse("client_id", &self.client_id, "must be 1 to 249 printable characters"));
        }
        rules.within("max_message_bytes", self.max_message_bytes as u64, 1_024, 1_000_000_000)?;
        let least = 2 * self.max_message_bytes as u64;
        rules.within("buffer_bytes", self.buffer_bytes as u64, least, 2_147_483_647)?;
        rules.within("delivery_timeout_ms", self.delivery_timeout_ms, 100, MAX_MS)?;
        rules.within("request_timeout_ms", self.request_timeout_ms, 100, 300_000)?;
        rules.within("commit_timeout_ms", self.commit_timeout_ms, 100, MAX_MS)?;
        rules.within("close_timeout_ms", self.close_timeout_ms, 1, MAX_MS)?;
        // librdkafka looks once a second whether it is time.
        rules.within("statistics_ms", self.statistics_ms, 1_000, 86_400_000)?;
        let tls = &self.tls;
        if tls.client_cert.is_some() != tls.client_key.is_some() {
            return Err(rules.refuse(
                "tls",
                "one of two",
                "`client_cert` and `client_key` are given together",
            ));
        }
        let files = tls.root_cert.is_some() || tls.client_cert.is_some();
        if files && !tls.enabled {
            return Err(rules.refuse("tls.enabled", false, "files are named, and nothing is encrypted"));
        }
        let sasl = &self.sasl;
        let given = [sasl.mechanism.is_some(), sasl.username.is_some(), sasl.password.is_some()];
        if given.contains(&true) && given.contains(&false) {
            let rule = "`mechanism`, `username` and `password` are given together";
            return Err(rules.refuse("sasl", "some of three", rule));
        }
        for (key, value) in &self.properties {
            // librdkafka takes a property of topics with this prefix, too.
            let name = key.strip_prefix("topic.").unwrap_or(key);
            if let Some((_, reason)) = DECIDED.iter().find(|(decided, _)| *decided == key || *decided == name)
            {
                return Err(rules.refuse("properties", key, reason));
            }
            if let Some((_, safe)) = VERIFYING.iter().find(|(verifying, _)| verifying == key)
                && !safe.iter().any(|safe| safe.eq_ignore_ascii_case(value.as_str()))
            {
                let rule = "certificates and host names of brokers are always verified; `tls.root_cert` names \
                            the authority of the brokers";
                return Err(rules.refuse("properties", key, rule));
            }
            let own = key.starts_with("topic.metadata.") || key == "topic.blacklist";
            if name != key && !own {
                return Err(rules.refuse(
                    "properties",
                    key,
                    "a property of topics is written without `topic.`",
                ));
            }
        }
        Ok(())
    }
}

/// `host:port` with commas between; a scheme in front, as in a URL, would be taken for a part of the host.
fn check_brokers(rules: &Rules, brokers: Option<&str>) -> Result<()> {
    let Some(brokers) = brokers else {
        return Err(rules.refuse(
            "brokers",
            "none",
            "the brokers must be given, as `host:port` with commas between",
        ));
    };
    for broker in brokers.split(',').map(str::trim) {
        let (host, port) = broker.rsplit_once(':').unwrap_or((broker, ""));
        let names_host = !host.is_empty() && !host.contains(['/', '@', ' ']);
        let bracketed = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
        if !names_host || !bracketed || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return Err(rules.refuse("brokers", broker, "must be `host:port` with commas between"));
        }
    }
    Ok(())
}

/// librdkafka's own limit for its timeouts: an i32 of milliseconds.
const MAX_MS: u64 = i32::MAX as u64;
