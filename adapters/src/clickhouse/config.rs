//! `[store.clickhouse]`.

use std::collections::BTreeMap;

use qi_core::Datasets;
use qi_core::Result;
use qi_core::store::StoreInfo;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::hours::DatasetHours;
use crate::rules::Rules;

const RULES: Rules =
    Rules { section: "store.clickhouse", code: "store.clickhouse.config", backend: "clickhouse" };

/// Where the server is, and how it is used. Compiled always, so that one file can hold every backend.
///
/// ```
/// use qi_adapters::config::ClickHouseConfig;
/// let config = ClickHouseConfig::from_url("http://qi:secret@127.0.0.1:8123");
/// assert_eq!((config.database.as_str(), config.table_prefix.as_str()), ("qi", ""));
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ClickHouseConfig {
    /// `http://user:password@host:port` or `https://..`; never shown.
    pub url: Option<SecretString>,
    /// Who asks; else the URL's user, else `default`.
    pub user: Option<String>,
    /// Their password; never shown.
    pub password: Option<SecretString>,
    /// The database that holds the tables.
    pub database: String,
    /// What the names of the tables begin with: lower-case letters, digits, underscores. Several can share one
    /// database.
    pub table_prefix: String,
    /// The cluster of the server's configuration over which the tables are spread and copied; without it they are
    /// this server's own.
    pub cluster: Option<String>,
    /// The largest batch that one insert takes; at most 1,000,000.
    pub max_batch: usize,
    /// How requests and answers are compressed.
    pub compression: Compression,
    /// The file of certificate authorities that are trusted for `https`, PEM; else the public authorities are.
    pub root_cert: Option<String>,
    /// Requests at once.
    pub pool: PoolSection,
    /// What the server may spend on one request.
    pub limits: LimitsSection,
    /// Ways of writing.
    pub write: WriteSection,
    /// `[store.clickhouse.retention]`: the age at which rows of a dataset are removed by the server, a TTL. Without one
    /// nothing is removed.
    pub retention: DatasetHours,
    /// Settings of the server for every request, as `SET` takes them.
    pub settings: BTreeMap<String, String>,
    /// The datasets of the store; the library's own unless [`Self::with_datasets`] gives others.
    #[serde(skip)]
    pub datasets: Datasets,
}

impl Default for ClickHouseConfig {
    fn default() -> Self {
        Self {
            url: None,
            user: None,
            password: None,
            database: "qi".to_owned(),
            table_prefix: String::new(),
            cluster: None,
            max_batch: StoreInfo::MAX_BATCH,
            compression: Compression::Lz4,
            root_cert: None,
            pool: PoolSection::default(),
            limits: LimitsSection::default(),
            write: WriteSection::default(),
            retention: DatasetHours::default(),
            settings: BTreeMap::new(),
            datasets: Datasets::standard(),
        }
    }
}

/// How requests and answers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// LZ4: less on the wire, a little more work.
    Lz4,
    /// Not at all: for a server on the same machine.
    None,
}

/// `[store.clickhouse.pool]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSection {
    /// How many calls may be under way at once.
    pub max_connections: usize,
    /// How long a call waits for its turn, in milliseconds.
    pub acquire_timeout_ms: u64,
}

impl Default for PoolSection {
    fn default() -> Self {
        Self { max_connections: 16, acquire_timeout_ms: 5_000 }
    }
}

/// `[store.clickhouse.limits]`: server-side limits, a little below the limits of the layer `Timeout` (30 s and
/// 10 minutes), so that a call that was given up does not go on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// For one request, in milliseconds.
    pub statement_ms: u64,
    /// For one request of `ensure_schema`, `delete_range` and `purge_before`, in milliseconds.
    pub heavy_ms: u64,
    /// Memory of the server for one request, in bytes; 0 leaves it to the server.
    pub memory_bytes: u64,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self { statement_ms: 25_000, heavy_ms: 570_000, memory_bytes: 0 }
    }
}

/// `[store.clickhouse.write]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WriteSection {
    /// How many records one request carries at most. The server makes one part of it for each partition.
    pub piece: usize,
}

impl Default for WriteSection {
    fn default() -> Self {
        Self { piece: 250_000 }
    }
}

impl ClickHouseConfig {
    /// The server at `url`, and the defaults for all else.
    pub fn from_url(url: impl Into<String>) -> Self {
        Self { url: Some(SecretString::from(url.into())), ..Self::default() }
    }

    /// With these datasets in place of the library's own.
    #[must_use]
    pub fn with_datasets(mut self, datasets: Datasets) -> Self {
        self.datasets = datasets;
        self
    }

    /// Checks the keys that name datasets.
    pub(crate) fn check_datasets(&self) -> Result<()> {
        self.retention.check(&RULES, "retention", &self.datasets, 100 * 366 * 24)
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// `Config` with the key and its value.
    pub fn validate(&self) -> Result<()> {
        let Self { url, database, table_prefix, max_batch, pool, limits, write, settings, .. } = self;
        let Some(url) = url else {
            return Err(RULES.refuse("url", "none", "the server's `url` must be given"));
        };
        let url = url.expose_secret();
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(RULES.refuse("url", "not shown", "must begin with http:// or https://"));
        }
        let plain = |text: &str| text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if !plain(database) || database.is_empty() || database.len() > 63 {
            let rule = "must be lower-case letters, digits and underscores, at most 63 and at least one";
            return Err(RULES.refuse("database", database, rule));
        }
        let digit = table_prefix.bytes().next().is_some_and(|b| b.is_ascii_digit());
        if !plain(table_prefix) || digit || table_prefix.len() > 63 {
            let rule =
                "must be lower-case letters, digits and underscores, at most 63, and begin with no digit";
            return Err(RULES.refuse("table_prefix", table_prefix, rule));
        }
        if let Some(cluster) = &self.cluster {
            let word = cluster.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
            if cluster.is_empty() || !word {
                return Err(RULES.refuse("cluster", cluster, "must be letters, digits, and `_`, `-` or `.`"));
            }
        }
        RULES.within("max_batch", *max_batch as u64, 1, StoreInfo::MAX_BATCH as u64)?;
        RULES.within("pool.max_connections", pool.max_connections as u64, 1, 10_000)?;
        RULES.within("pool.acquire_timeout_ms", pool.acquire_timeout_ms, 1, MAX_MS)?;
        RULES.within("limits.statement_ms", limits.statement_ms, 1, MAX_MS)?;
        RULES.within("limits.heavy_ms", limits.heavy_ms, 1, MAX_MS)?;
        RULES.within("write.piece", write.piece as u64, 1, StoreInfo::MAX_BATCH as u64)?;
        self.check_datasets()?;
        for name in settings.keys() {
            let word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !word {
                return Err(RULES.refuse("settings", name, "must be the name of a setting"));
            }
            if self.cluster.is_some() && CLUSTER_SETTINGS.contains(&name.as_str()) {
                let rule = "is set by the adapter where `cluster` is given";
                return Err(RULES.refuse("settings", name, rule));
            }
            if OWN_SETTINGS.contains(&name.as_str()) {
                return Err(RULES.refuse(
                    "settings",
                    name,
                    "is set by the adapter itself; what it promises needs it so",
                ));
            }
        }
        Ok(())
    }
}

/// What the contract stands on: what the adapter sets itself, what would change the answers that it reads or hide
/// rows from it, and what is no setting but a part of the request.
const OWN_SETTINGS: &[&str] = &[
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

/// The settings that the adapter sets with `cluster`. Without `cluster` the user may set them: ClickHouse Cloud, and
/// replicas that are made without `ON CLUSTER`, need them for reads of own writes.
const CLUSTER_SETTINGS: &[&str] =
    &["insert_quorum", "insert_quorum_parallel", "select_sequential_consistency"];

/// Three weeks and a half.
const MAX_MS: u64 = i32::MAX as u64;

#[cfg(test)]
mod tests {
    use qi_core::ErrorKind;

    use super::*;

    fn refused(change: impl FnOnce(&mut ClickHouseConfig)) -> String {
        let mut config = ClickHouseConfig::from_url("http://127.0.0.1:8123");
        change(&mut config);
        let error = config.validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        error.context_value("value").unwrap_or_default().to_owned()
    }

    #[test]
    fn settings_that_the_contract_stands_on_are_refused() {
        for name in OWN_SETTINGS.iter().copied().chain(["", "a b", "a=b&query"]) {
            let value = refused(|config| drop(config.settings.insert(name.to_owned(), "1".to_owned())));
            assert_eq!(value, name);
        }
        let mut config = ClickHouseConfig::from_url("http://127.0.0.1:8123");
        config.settings.insert("max_threads".to_owned(), "1".to_owned());
        for name in CLUSTER_SETTINGS {
            config.settings.insert((*name).to_owned(), "1".to_owned());
            let value = refused(|config| {
                config.cluster = Some("main".to_owned());
                config.settings.insert((*name).to_owned(), "1".to_owned());
            });
            assert_eq!(value, *name);
        }
        config.validate().unwrap();
        assert!(OWN_SETTINGS.is_sorted(), "to be found by eye");
    }

    #[test]
    fn names_are_plain() {
        for name in ["", "Qi", "a-b", "a`b", "a'b", "a b", &"x".repeat(64)] {
            assert_eq!(refused(|config| name.clone_into(&mut config.database)), name);
        }
        for prefix in ["1_", "Qi", "a-b", "a`b", "a'b", "a b", &"x".repeat(64)] {
            assert_eq!(refused(|config| prefix.clone_into(&mut config.table_prefix)), prefix);
        }
        for cluster in ["", "a'b", "a\\b", "a b", "{cluster}"] {
            assert_eq!(refused(|config| config.cluster = Some(cluster.to_owned())), cluster);
        }
    }
}
