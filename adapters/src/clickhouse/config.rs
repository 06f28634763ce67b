//! The section `[store.clickhouse]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use qi_core::Datasets;
use qi_core::Result;
use qi_core::domain::duration;
use qi_core::store::StoreInfo;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::durations::DatasetDurations;
use crate::validation::Rules;

const RULES: Rules =
    Rules { section: "store.clickhouse", code: "store.clickhouse.config", backend: "clickhouse" };

/// The address and the settings of a ClickHouse store. Compiled even without the feature `clickhouse`, because a file
/// may contain the section of every backend.
///
/// ```
/// use qi_adapters::config::ClickHouseConfig;
/// let config = ClickHouseConfig::from_url("http://qi:secret@127.0.0.1:8123");
/// assert_eq!((config.database.as_str(), config.table_prefix.as_str()), ("qi", ""));
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ClickHouseConfig {
    /// The URL of the server: `http://user:password@host:port` or `https://..`. Hidden in `Debug` output.
    #[serde(serialize_with = "crate::scalars::hidden")]
    pub url: Option<SecretString>,
    /// The user name. Defaults to the user of the URL, then to `default`.
    pub user: Option<String>,
    /// The user's password. Defaults to the password of the URL. Hidden in `Debug` output.
    #[serde(serialize_with = "crate::scalars::hidden")]
    pub password: Option<SecretString>,
    /// The file that contains the password, instead of `password`.
    pub password_file: Option<PathBuf>,
    /// The database that contains the tables. Defaults to `qi`.
    pub database: String,
    /// The prefix of all table names: lower-case letters, digits and underscores. Stores with different prefixes can
    /// share one database. Defaults to no prefix.
    pub table_prefix: String,
    /// The name of a cluster in the server's configuration. The tables are sharded and replicated over the cluster.
    /// Without a cluster, the tables exist only on this server.
    pub cluster: Option<String>,
    /// The maximum number of records in one insert. Defaults to 1,000,000, which is also the upper bound.
    pub max_batch: usize,
    /// The compression of requests and responses. Defaults to LZ4.
    pub compression: Compression,
    /// The PEM file of the trusted certificate authorities for `https`. Defaults to the public certificate authorities.
    pub root_cert: Option<String>,
    /// The limits on concurrent requests.
    pub pool: PoolSection,
    /// The server-side limits of one request.
    pub server_limits: ServerLimitsSection,
    /// The settings of inserts.
    pub write: WriteSection,
    /// `[store.clickhouse.retention]`: the age at which the server removes the rows of a dataset, as a table TTL.
    /// Without an entry, no rows of the dataset are removed.
    pub retention: DatasetDurations,
    /// True to add materialized bars, from which `derived_bars` reads. `qi migrate` changes existing tables.
    /// Without this key, the tables stay as they are. Not supported with `cluster`.
    pub materialized_bars: Option<bool>,
    /// The time after which stale hours are built again. The server rejects an insert that begins so late that it could
    /// end after this time, and the writer adds its marks again. With `materialized_bars`, at least twice
    /// `server_limits.statement_timeout`, or 0: each write then adds its marks twice, and stale hours are built at once,
    /// which is for tests. `qi migrate` records the value when it switches materialized bars on. Stale marks settle after
    /// the larger of this and the recorded value. The deadline of an insert uses the smaller value. Defaults to 2 minutes.
    #[serde(with = "duration")]
    pub bars_settle: Duration,
    /// Server settings for every request, as in the `SET` statement.
    #[serde(deserialize_with = "crate::scalars::texts")]
    pub settings: BTreeMap<String, String>,
    /// The datasets of the store. Defaults to [`Datasets::standard`]; see [`Self::with_datasets`].
    #[serde(skip)]
    pub datasets: Datasets,
    /// Whether a purge of ticks requires stored bars, so that no TTL may remove ticks.
    #[serde(skip)]
    pub(crate) purge_requires_bars: bool,
}

impl Default for ClickHouseConfig {
    fn default() -> Self {
        Self {
            url: None,
            user: None,
            password: None,
            password_file: None,
            database: "qi".to_owned(),
            table_prefix: String::new(),
            cluster: None,
            max_batch: StoreInfo::MAX_BATCH,
            compression: Compression::Lz4,
            root_cert: None,
            pool: PoolSection::default(),
            server_limits: ServerLimitsSection::default(),
            write: WriteSection::default(),
            retention: DatasetDurations::default(),
            materialized_bars: None,
            bars_settle: Duration::from_mins(2),
            settings: BTreeMap::new(),
            datasets: Datasets::standard(),
            purge_requires_bars: false,
        }
    }
}

/// The compression of requests and responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Compression {
    /// LZ4 compression: less network traffic for slightly more CPU time.
    Lz4,
    /// No compression, for a server on the same machine.
    None,
}

/// `[store.clickhouse.pool]`: the limits on concurrent requests.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PoolSection {
    /// The maximum number of calls in progress. Defaults to 16.
    pub max_connections: usize,
    /// The maximum time that a call waits for a permit. Defaults to 5 s.
    #[serde(with = "duration")]
    pub acquire_timeout: Duration,
}

impl Default for PoolSection {
    fn default() -> Self {
        Self { max_connections: 16, acquire_timeout: Duration::from_secs(5) }
    }
}

/// `[store.clickhouse.server_limits]`: server-side limits. The time limits are slightly below the timeouts of the layer
/// `Timeout` (30 s and 10 minutes), so that the server stops a call that its caller abandoned.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ServerLimitsSection {
    /// The time limit of one request. Defaults to 25 s.
    #[serde(with = "duration")]
    pub statement_timeout: Duration,
    /// The time limit of one request of `ensure_schema`, `delete_range` and `purge_before`, and of each step of
    /// `maintain`. Defaults to 570 s.
    #[serde(with = "duration")]
    pub bulk_timeout: Duration,
    /// The memory limit of one request on the server, in bytes. Defaults to 0, which applies the server's own limit.
    pub memory_bytes: u64,
}

impl Default for ServerLimitsSection {
    fn default() -> Self {
        Self {
            statement_timeout: Duration::from_secs(25),
            bulk_timeout: Duration::from_secs(570),
            memory_bytes: 0,
        }
    }
}

/// `[store.clickhouse.write]`: the settings of inserts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct WriteSection {
    /// The maximum number of records in one request. The server creates one part per partition and request. Defaults to
    /// 250,000.
    pub max_request_records: usize,
}

impl Default for WriteSection {
    fn default() -> Self {
        Self { max_request_records: 250_000 }
    }
}

impl ClickHouseConfig {
    /// Creates a configuration for the server at `url`, with defaults for all other settings.
    pub fn from_url(url: impl Into<String>) -> Self {
        Self { url: Some(SecretString::from(url.into())), ..Self::default() }
    }

    /// Replaces the default datasets with these datasets.
    #[must_use]
    pub fn with_datasets(mut self, datasets: Datasets) -> Self {
        self.datasets = datasets;
        self
    }

    /// Validates all settings of the section.
    ///
    /// # Errors
    /// `Config` with the key and its value.
    pub fn validate(&self) -> Result<()> {
        if self.url.is_none() {
            return Err(RULES.reject("url", "none", "is required"));
        }
        self.check_bounds()
    }

    /// Reads the password of the file.
    ///
    /// # Errors
    /// `Config` for a file that cannot be read.
    #[cfg(feature = "clickhouse")]
    pub(super) fn with_password(mut self) -> Result<Self> {
        if let Some(file) = &self.password_file {
            self.password = Some(RULES.secret("password_file", file)?);
        }
        Ok(self)
    }

    /// Validates the settings of a section that may lack the address.
    pub(crate) fn check_bounds(&self) -> Result<()> {
        let Self { url, database, table_prefix, max_batch, pool, server_limits, write, settings, .. } = self;
        RULES.one_of("password", self.password.is_some(), self.password_file.is_some())?;
        let url = url.as_ref().map(ExposeSecret::expose_secret);
        if url.is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
            return Err(RULES.reject("url", "not shown", "must begin with http:// or https://"));
        }
        let is_plain = |text: &str| text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if !is_plain(database) || database.is_empty() || database.len() > 63 {
            let rule = "must be lower-case letters, digits and underscores, 1 to 63 characters";
            return Err(RULES.reject("database", database, rule));
        }
        let begins_with_digit = table_prefix.bytes().next().is_some_and(|b| b.is_ascii_digit());
        if !is_plain(table_prefix) || begins_with_digit || table_prefix.len() > 63 {
            let rule = "must be lower-case letters, digits and underscores, at most 63 characters, and must not begin with a digit";
            return Err(RULES.reject("table_prefix", table_prefix, rule));
        }
        if let Some(cluster) = &self.cluster {
            let valid = cluster.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
            if cluster.is_empty() || !valid {
                return Err(RULES.reject("cluster", cluster, "must be letters, digits, and `_`, `-` or `.`"));
            }
        }
        RULES.within("max_batch", *max_batch as u64, 1, StoreInfo::MAX_BATCH as u64)?;
        RULES.within("pool.max_connections", pool.max_connections as u64, 1, 10_000)?;
        RULES.duration_within("pool.acquire_timeout", pool.acquire_timeout, MIN_DURATION, MAX_DURATION)?;
        RULES.duration_within(
            "server_limits.statement_timeout",
            server_limits.statement_timeout,
            MIN_DURATION,
            MAX_DURATION,
        )?;
        RULES.duration_within(
            "server_limits.bulk_timeout",
            server_limits.bulk_timeout,
            MIN_DURATION,
            MAX_DURATION,
        )?;
        RULES.within(
            "write.max_request_records",
            write.max_request_records as u64,
            1,
            StoreInfo::MAX_BATCH as u64,
        )?;
        self.retention.check(&RULES, "retention", &self.datasets)?;
        if self.materialized_bars == Some(true) {
            if self.cluster.is_some() {
                return Err(RULES.reject("materialized_bars", true, "is not supported with `cluster`"));
            }
            if self.retention.get("ticks").is_some() {
                let rule = "must have no entry for ticks with `materialized_bars`, because a TTL marks no bars as stale; \
                            use `purge_before`";
                return Err(RULES.reject("retention", "ticks", rule));
            }
            // A killed writer adds no further marks, and its statement may continue on the server.
            if !self.bars_settle.is_zero() && self.bars_settle < server_limits.statement_timeout * 2 {
                let rule = "must be at least twice `server_limits.statement_timeout`, or 0";
                return Err(RULES.reject("bars_settle", duration::format(self.bars_settle), rule));
            }
        }
        for name in settings.keys() {
            let valid = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !valid {
                return Err(RULES.reject("settings", name, "must be the name of a setting"));
            }
            if self.cluster.is_some() && CLUSTER_SETTINGS.contains(&name.as_str()) {
                let rule = "is set by the adapter with `cluster` and cannot be changed";
                return Err(RULES.reject("settings", name, rule));
            }
            if name == "max_memory_usage" {
                let rule = "is set by the key `server_limits.memory_bytes`";
                return Err(RULES.reject("settings", name, rule));
            }
            if RESERVED_SETTINGS.contains(&name.as_str()) {
                return Err(RULES.reject("settings", name, "is set by the adapter and cannot be changed"));
            }
        }
        Ok(())
    }
}

/// The settings that a configuration must not change. The adapter sets some of these itself. Others would
/// change the responses that the adapter reads, or hide rows. The remaining names are parameters of the HTTP
/// request, not settings.
const RESERVED_SETTINGS: &[&str] = &[
    "aggregate_functions_null_for_empty",
    "apply_deleted_mask",
    "async_insert",
    "compress",
    "data_type_default_nullable",
    "database",
    "decompress",
    "deduplicate_insert",
    "default_format",
    "distinct_overflow_mode",
    "distributed_foreground_insert",
    "extremes",
    "group_by_overflow_mode",
    "insert_deduplicate",
    "insert_deduplication_token",
    "limit",
    "max_execution_time",
    "max_partitions_per_insert_block",
    "offset",
    "output_format_binary_encode_types_in_binary_format",
    "password",
    "query",
    "query_id",
    "read_overflow_mode",
    "result_overflow_mode",
    "session_id",
    "set_overflow_mode",
    "sort_overflow_mode",
    "timeout_overflow_mode",
    "use_query_cache",
    "user",
    "wait_end_of_query",
];

/// The settings that the adapter sets with `cluster`. Without `cluster` the user may set them. ClickHouse Cloud needs
/// them to read its own writes, and so do replicas that were created without `ON CLUSTER`.
const CLUSTER_SETTINGS: &[&str] =
    &["insert_quorum", "insert_quorum_parallel", "insert_quorum_timeout", "select_sequential_consistency"];

/// The maximum of all times, about 24.8 days.
const MAX_DURATION: Duration = Duration::from_millis(i32::MAX as u64);
/// The minimum of all timeouts.
const MIN_DURATION: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use qi_core::ErrorKind;

    use super::*;

    fn rejected_value(change: impl FnOnce(&mut ClickHouseConfig)) -> String {
        let mut config = ClickHouseConfig::from_url("http://127.0.0.1:8123");
        change(&mut config);
        let error = config.validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.context_value("value").unwrap_or_default().to_owned()
    }

    #[test]
    fn reserved_settings_are_rejected() {
        for name in RESERVED_SETTINGS.iter().copied().chain(["", "a b", "a=b&query"]) {
            let value =
                rejected_value(|config| drop(config.settings.insert(name.to_owned(), "1".to_owned())));
            assert_eq!(value, name);
        }
        let mut config = ClickHouseConfig::from_url("http://127.0.0.1:8123");
        config.settings.insert("max_threads".to_owned(), "1".to_owned());
        for name in CLUSTER_SETTINGS {
            config.settings.insert((*name).to_owned(), "1".to_owned());
            let value = rejected_value(|config| {
                config.cluster = Some("main".to_owned());
                config.settings.insert((*name).to_owned(), "1".to_owned());
            });
            assert_eq!(value, *name);
        }
        config.validate().unwrap();
        assert!(RESERVED_SETTINGS.is_sorted());
    }

    #[test]
    fn materialized_bars_need_a_time_in_which_statements_end() {
        let settle = |materialized_bars, settle: u64, statement_timeout: u64| {
            let mut config = ClickHouseConfig::from_url("http://127.0.0.1:8123");
            config.materialized_bars = materialized_bars;
            config.bars_settle = Duration::from_secs(settle);
            config.server_limits.statement_timeout = Duration::from_secs(statement_timeout);
            config.validate().is_ok()
        };
        assert_eq!((settle(Some(true), 50, 25), settle(Some(true), 49, 25)), (true, false));
        assert_eq!((settle(Some(true), 0, 25), settle(None, 49, 25)), (true, true));
    }

    #[test]
    fn invalid_names_are_rejected() {
        for name in ["", "Qi", "a-b", "a`b", "a'b", "a b", &"x".repeat(64)] {
            assert_eq!(rejected_value(|config| name.clone_into(&mut config.database)), name);
        }
        for prefix in ["1_", "Qi", "a-b", "a`b", "a'b", "a b", &"x".repeat(64)] {
            assert_eq!(rejected_value(|config| prefix.clone_into(&mut config.table_prefix)), prefix);
        }
        for cluster in ["", "a'b", "a\\b", "a b", "{cluster}"] {
            assert_eq!(rejected_value(|config| config.cluster = Some(cluster.to_owned())), cluster);
        }
    }
}
