//! The section `[store.timescale]`, for TimescaleDB and plain PostgreSQL.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qi_core::Datasets;
use qi_core::Result;
use qi_core::domain::duration;
use qi_core::record::{Dataset, SeriesType};
use qi_core::store::StoreInfo;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::durations::DatasetDurations;
use crate::validation::Rules;

#[cfg(feature = "timescale")]
const MICROS_PER_HOUR: i64 = 3_600_000_000;

/// The address and the settings of a TimescaleDB store. Compiled even without the feature `timescale`, because a file
/// may contain the section of every backend.
///
/// The server is given as a URL, as separate fields, or as both. A field overrides the corresponding part of the URL,
/// for example a password from the environment with a URL from a file.
///
/// ```
/// use qi_adapters::config::TimescaleConfig;
/// let config = TimescaleConfig::from_url("postgres://qi:secret@localhost/market");
/// assert_eq!(config.schema, "qi");
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TimescaleConfig {
    /// The URL of the server: `postgres://user:password@host:port/database`. Hidden in `Debug` output.
    #[serde(serialize_with = "crate::scalars::hidden")]
    pub url: Option<SecretString>,
    /// The host name, or the folder of a Unix socket.
    pub host: Option<String>,
    /// The port number of the server.
    pub port: Option<u16>,
    /// The name of the user.
    pub user: Option<String>,
    /// The user's password. Hidden in `Debug` output.
    #[serde(serialize_with = "crate::scalars::hidden")]
    pub password: Option<SecretString>,
    /// The file that contains the password, instead of `password`.
    pub password_file: Option<PathBuf>,
    /// The name of the database.
    pub database: Option<String>,
    /// The database schema (namespace) of the tables: lower-case letters, digits and underscores. Several stores can
    /// share one database. Defaults to `qi`.
    pub schema: String,
    /// The name of the connections in `pg_stat_activity`. Defaults to the name in the URL, then to `qi`.
    pub application_name: Option<String>,
    /// The kind of the tables: hypertables of TimescaleDB, or ordinary tables. Defaults to hypertables.
    pub hypertables: Hypertables,
    /// The pool mode of a pooler, such as PgBouncer, between the store and the server. Defaults to `session`, which also
    /// suits a connection without a pooler.
    pub pooler: Pooler,
    /// The maximum number of records in one insert. Defaults to 1,000,000, which is also the upper bound.
    pub max_batch: usize,
    /// The settings of the connection pool.
    pub pool: PoolSection,
    /// The settings of encryption.
    pub tls: TlsSection,
    /// The server-side limits of one statement.
    pub server_limits: ServerLimitsSection,
    /// The settings of inserts.
    pub write: WriteSection,
    /// The chunk interval of each hypertable, in full hours. A change applies to chunks that are created later.
    /// Defaults to 7 days for a dataset with sequence numbers, and to 365 days for other datasets.
    pub chunks: DatasetDurations,
    /// The age at which chunks are converted to the columnstore, in full hours. Needs the Community edition. A dataset
    /// without an entry has no policy.
    pub columnstore: DatasetDurations,
    /// The age at which chunks are dropped, in full hours. Needs the Community edition. A dataset without an
    /// entry has no policy.
    pub retention: DatasetDurations,
    /// The layout of the columnstore of each dataset. A change applies to chunks that are converted later.
    pub columnstore_layout: BTreeMap<String, ColumnstoreLayout>,
    /// The datasets with a BRIN index on time. It serves deletions, and custom SQL, over all instruments of a range.
    /// Defaults to none with hypertables, whose chunks serve the same purpose, and to the datasets with sequence numbers
    /// otherwise.
    pub time_index: Option<Vec<String>>,
    /// True to add materialized bars, from which `derived_bars` reads. `qi migrate` changes an existing schema.
    /// Without this key, the schema stays as it is.
    pub materialized_bars: Option<bool>,
    /// The datasets of the store. Defaults to [`Datasets::standard`]; see [`Self::with_datasets`].
    #[serde(skip)]
    pub datasets: Datasets,
    /// The path of the section in errors: `store.timescale` or `store.postgres`.
    #[serde(skip)]
    pub(crate) section: &'static str,
    /// Whether a purge of ticks requires stored bars, so that no job of the server may remove ticks.
    #[serde(skip)]
    pub(crate) purge_requires_bars: bool,
}

impl Default for TimescaleConfig {
    fn default() -> Self {
        Self {
            url: None,
            host: None,
            port: None,
            user: None,
            password: None,
            password_file: None,
            database: None,
            schema: "qi".to_owned(),
            application_name: None,
            hypertables: Hypertables::On,
            pooler: Pooler::Session,
            max_batch: StoreInfo::MAX_BATCH,
            pool: PoolSection::default(),
            tls: TlsSection::default(),
            server_limits: ServerLimitsSection::default(),
            write: WriteSection::default(),
            chunks: DatasetDurations::default(),
            columnstore: DatasetDurations::default(),
            retention: DatasetDurations::default(),
            columnstore_layout: BTreeMap::new(),
            time_index: None,
            materialized_bars: None,
            datasets: Datasets::standard(),
            section: "store.timescale",
            purge_requires_bars: false,
        }
    }
}

/// The kind of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Hypertables {
    /// Hypertables of TimescaleDB. The extension is created if it is absent.
    On,
    /// Ordinary tables of plain PostgreSQL.
    Off,
}

/// The pool mode of a pooler between the store and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Pooler {
    /// No pooler, or a pooler that keeps a session of the server for each connection.
    Session,
    /// A pooler that chooses a session of the server for each transaction. Every statement runs in a transaction that
    /// begins with the settings of the store. Statements have no names.
    Transaction,
    /// The same with named prepared statements. Needs a pooler that tracks prepared statements: PgBouncer 1.21 or newer
    /// with `max_prepared_statements` above 0. With any other pooler, statements fail or read the wrong table.
    TransactionPrepared,
}

/// `[store.timescale.columnstore_layout.<dataset>]`: the layout of the columnstore of one dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ColumnstoreLayout {
    /// The columns whose values select a segment. Defaults to the columns of the series. With few rows of each series in
    /// a chunk, an empty list makes larger segments.
    pub segment_by: Option<Vec<String>>,
    /// The columns by which the rows of a segment are ordered, each optionally followed by ` ASC` or ` DESC`. Defaults to
    /// the time and the sequence number, newest first.
    pub order_by: Option<Vec<String>>,
}

/// `[store.timescale.pool]`: the settings of the connection pool.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PoolSection {
    /// The maximum number of connections. Every call uses one connection; a large write may use more if the pool has
    /// room. Defaults to 8.
    pub max_connections: u32,
    /// The minimum number of connections that are kept open. Defaults to 0.
    pub min_connections: u32,
    /// The maximum time that a call waits for a connection. Defaults to 5 s.
    #[serde(with = "duration")]
    pub acquire_timeout: Duration,
    /// The time after which an idle connection is closed. Defaults to 10 minutes.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
    /// The maximum age of a connection. Defaults to 30 minutes.
    #[serde(with = "duration")]
    pub max_lifetime: Duration,
}

impl Default for PoolSection {
    fn default() -> Self {
        Self {
            max_connections: 8,
            min_connections: 0,
            acquire_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_mins(10),
            max_lifetime: Duration::from_mins(30),
        }
    }
}

/// `[store.timescale.tls]`: the settings of encryption.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsSection {
    /// The mode of encryption. Defaults to the `sslmode` of the URL, then to `prefer`.
    pub mode: Option<TlsMode>,
    /// The PEM file of the only trusted certificate authorities. Defaults to the public certificate authorities. Needs
    /// the mode `require`, `verify-ca` or `verify-full`.
    pub root_cert: Option<String>,
    /// The PEM file of the client's certificate.
    pub client_cert: Option<String>,
    /// The PEM file of the client's key.
    pub client_key: Option<String>,
}

/// The mode of encryption, with the meaning of libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TlsMode {
    /// Connections without encryption only.
    Disable,
    /// Encryption if the server supports it. The certificate is not verified.
    Prefer,
    /// Encryption only. The certificate is not verified, except with `root_cert`, which implies [`Self::VerifyCa`].
    Require,
    /// Encryption with a certificate of a trusted certificate authority.
    VerifyCa,
    /// Encryption with a certificate of a trusted certificate authority for the server's host name.
    VerifyFull,
}

/// `[store.timescale.server_limits]`: server-side limits. The limits are slightly below the timeouts of the layer
/// `Timeout` (30 s and 10 minutes), so that the server stops a call that its caller abandoned.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ServerLimitsSection {
    /// The time limit of one statement. Defaults to 25 s.
    #[serde(with = "duration")]
    pub statement_timeout: Duration,
    /// The time limit of one statement of `ensure_schema`, `delete_range` and `purge_before`, of each step of `maintain`,
    /// and of its wait for the step of another maintainer. Defaults to 570 s.
    #[serde(with = "duration")]
    pub bulk_timeout: Duration,
    /// The time limit of the wait for a lock. Defaults to 20 s.
    #[serde(with = "duration")]
    pub lock_timeout: Duration,
    /// The time limit of the wait for a lock in `ensure_schema`, and for the lock with which `convert_to_columnstore`
    /// enables the columnstore, while further sessions queue behind the change. A wait is repeated up to 10 times, with
    /// pauses of 1 s. Defaults to 3 s.
    #[serde(with = "duration")]
    pub schema_lock_timeout: Duration,
}

impl Default for ServerLimitsSection {
    fn default() -> Self {
        Self {
            statement_timeout: Duration::from_secs(25),
            bulk_timeout: Duration::from_secs(570),
            lock_timeout: Duration::from_secs(20),
            schema_lock_timeout: Duration::from_secs(3),
        }
    }
}

/// `[store.timescale.write]`: the settings of inserts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct WriteSection {
    /// The minimum number of records of a statement for COPY. Statements with fewer records merge. Defaults to 1,000.
    pub copy_from: usize,
    /// The maximum number of records in one statement. Defaults to 50,000.
    pub max_statement_records: usize,
    /// The maximum number of connections for one batch. A batch uses further connections only if the pool has idle
    /// connections or room. Defaults to 2.
    pub connections: usize,
}

impl Default for WriteSection {
    fn default() -> Self {
        Self { copy_from: 1_000, max_statement_records: 50_000, connections: 2 }
    }
}

impl TimescaleConfig {
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

    /// Returns the chunk interval of a dataset, in microseconds.
    #[cfg(feature = "timescale")]
    pub(super) fn chunk_micros(&self, dataset: Dataset) -> i64 {
        let hours = self.chunks.hours(dataset.name());
        hours.map_or_else(|| Self::default_chunk_micros(dataset), |hours| i64::from(hours) * MICROS_PER_HOUR)
    }

    /// Returns the default chunk interval of a dataset, in microseconds.
    #[cfg(feature = "timescale")]
    pub(super) fn default_chunk_micros(dataset: Dataset) -> i64 {
        let days = if dataset.seq().is_some() { 7 } else { 365 };
        days * 24 * MICROS_PER_HOUR
    }

    /// Returns whether the table of a dataset has an index on time.
    #[cfg(feature = "timescale")]
    pub(super) fn has_time_index(&self, dataset: Dataset) -> bool {
        match &self.time_index {
            Some(names) => names.iter().any(|name| name == dataset.name()),
            None => self.hypertables == Hypertables::Off && dataset.seq().is_some(),
        }
    }

    /// Returns the quoted name of a table with its schema.
    #[cfg(feature = "timescale")]
    pub(super) fn relation(&self, table: &str) -> String {
        format!("\"{}\".\"{table}\"", self.schema)
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules { section: self.section, code: "store.timescale.config", backend: "timescale" }
    }

    /// Validates all settings of the section.
    ///
    /// # Errors
    /// `Config` with the key and its value.
    pub fn validate(&self) -> Result<()> {
        if self.url.is_none() && self.host.is_none() {
            return Err(self.rules().reject("url", "none", "`url` or `host` is required"));
        }
        self.check_bounds()
    }

    /// Reads the password of the file.
    ///
    /// # Errors
    /// `Config` for a file that cannot be read.
    #[cfg(feature = "timescale")]
    pub(super) fn with_password(mut self) -> Result<Self> {
        if let Some(file) = &self.password_file {
            self.password = Some(self.rules().secret("password_file", file)?);
        }
        Ok(self)
    }

    /// Validates the settings of a section that may lack the address.
    pub(crate) fn check_bounds(&self) -> Result<()> {
        let rules = self.rules();
        let Self { url, schema, max_batch, pool, server_limits, write, columnstore, retention, .. } = self;
        rules.one_of("password", self.password.is_some(), self.password_file.is_some())?;
        if let Some(url) = url {
            check_url(&rules, url.expose_secret())?;
        }
        let first = schema.bytes().next().unwrap_or(b'0');
        let has_valid_characters = schema.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        let is_system_schema =
            ["pg_", "timescaledb_", "_timescaledb_"].iter().any(|name| schema.starts_with(name))
                || schema == "information_schema";
        if !has_valid_characters || first.is_ascii_digit() || schema.len() > 63 || is_system_schema {
            let rule = "must be lower-case letters, digits and underscores, at most 63 characters, must not begin with a digit, \
                        and must not be a system schema (information_schema, pg_.., timescaledb_..)";
            return Err(rules.reject("schema", schema, rule));
        }
        if self.tls.client_cert.is_some() != self.tls.client_key.is_some() {
            return Err(rules.reject(
                "tls",
                "one of two",
                "`client_cert` and `client_key` must be set together",
            ));
        }
        rules.within("max_batch", *max_batch as u64, 1, StoreInfo::MAX_BATCH as u64)?;
        rules.within("pool.max_connections", pool.max_connections.into(), 1, 10_000)?;
        rules.within("pool.min_connections", pool.min_connections.into(), 0, pool.max_connections.into())?;
        rules.duration_within("pool.acquire_timeout", pool.acquire_timeout, MIN_DURATION, MAX_DURATION)?;
        rules.duration_within("pool.idle_timeout", pool.idle_timeout, MIN_DURATION, MAX_DURATION)?;
        rules.duration_within("pool.max_lifetime", pool.max_lifetime, MIN_DURATION, MAX_DURATION)?;
        rules.duration_within(
            "server_limits.statement_timeout",
            server_limits.statement_timeout,
            MIN_DURATION,
            MAX_DURATION,
        )?;
        rules.duration_within(
            "server_limits.bulk_timeout",
            server_limits.bulk_timeout,
            MIN_DURATION,
            MAX_DURATION,
        )?;
        rules.duration_within(
            "server_limits.lock_timeout",
            server_limits.lock_timeout,
            MIN_DURATION,
            MAX_DURATION,
        )?;
        rules.duration_within(
            "server_limits.schema_lock_timeout",
            server_limits.schema_lock_timeout,
            MIN_DURATION,
            MAX_DURATION,
        )?;
        rules.within("write.copy_from", write.copy_from as u64, 1, u64::MAX)?;
        rules.within("write.max_statement_records", write.max_statement_records as u64, 1, 100_000)?;
        rules.within("write.connections", write.connections as u64, 1, 64)?;
        for (section, ages) in [("columnstore", columnstore), ("retention", retention)] {
            if !ages.is_empty() && self.hypertables == Hypertables::Off {
                return Err(rules.reject(section, "", "needs hypertables = \"on\""));
            }
        }
        if !self.columnstore_layout.is_empty() && self.hypertables == Hypertables::Off {
            return Err(rules.reject("columnstore_layout", "", "needs hypertables = \"on\""));
        }
        if self.materialized_bars == Some(true) && retention.get("ticks").is_some() {
            let rule = "must have no entry for ticks with `materialized_bars`, because a job of the server marks no bars \
                        as stale; use `purge_before`";
            return Err(rules.reject("retention", "ticks", rule));
        }
        self.check_datasets()
    }

    /// Validates the keys that name datasets.
    pub(crate) fn check_datasets(&self) -> Result<()> {
        let rules = self.rules();
        let Self { chunks, columnstore, retention, columnstore_layout, time_index, datasets, .. } = self;
        for (section, ages) in [("chunks", chunks), ("columnstore", columnstore), ("retention", retention)] {
            ages.check(&rules, section, datasets)?;
        }
        let named = columnstore_layout.keys().map(|name| ("columnstore_layout", name));
        for (section, name) in named.chain(time_index.iter().flatten().map(|name| ("time_index", name))) {
            let Some(dataset) = datasets.get(name) else {
                let known: Vec<_> = datasets.iter().map(qi_core::Dataset::name).collect();
                let rule = format!("must name a dataset of the program: {}", known.join(", "));
                return Err(rules.reject(section, name, rule));
            };
            let Some(layout) = columnstore_layout.get(name) else { continue };
            let known = layout_columns(dataset);
            for entry in layout.segment_by.iter().chain(&layout.order_by).flatten() {
                let column = entry.strip_suffix(" ASC").or(entry.strip_suffix(" DESC")).unwrap_or(entry);
                let is_ordered = column.len() < entry.len();
                let is_segment = layout.segment_by.iter().flatten().any(|column| column == entry);
                if !known.contains(&column) || (is_ordered && is_segment) {
                    let rule = format!("must name columns of the table: {}", known.join(", "));
                    return Err(rules.reject(&format!("columnstore_layout.{name}"), entry, rule));
                }
            }
        }
        Ok(())
    }
}

/// Returns the columns of a dataset's table.
fn layout_columns(dataset: Dataset) -> Vec<&'static str> {
    let series = match dataset.series() {
        SeriesType::Instrument => "instrument_id",
        SeriesType::Name { column, .. } => column,
    };
    let key = [Some(series), dataset.interval(), Some(dataset.time()), dataset.seq()];
    key.into_iter().flatten().chain(dataset.values().iter().map(|column| column.name)).collect()
}

/// The URL parameters that the driver understands. The driver would ignore any other parameter and write it to its
/// log, including the value.
const URL_PARAMETERS: &[&str] = &[
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// The URL parameters that are paths of files, or PEM texts.
const URL_PATHS: &[&str] = &["sslcert", "sslkey", "sslrootcert"];

/// Returns true for an absolute path, whose first character may be percent-encoded.
fn is_absolute(path: &str) -> bool {
    Path::new(path).is_absolute() || path.starts_with("%2F") || path.starts_with("%2f")
}

/// Rejects other schemes, unknown parameters and relative paths, which would begin at the current folder and not at the
/// folder of the configuration file. An error shows the name of a parameter only if it is similar to a
/// known name. Any other name may be a part of a password that contains `?` or `&`.
fn check_url(rules: &Rules, url: &str) -> Result<()> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(rules.reject("url", "not shown", "must begin with postgres:// or postgresql://"));
    }
    let parameters = url.split_once('?').map_or("", |(_, rest)| rest);
    let parameters = parameters.split_once('#').map_or(parameters, |(parameters, _)| parameters);
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if !URL_PARAMETERS.contains(&name) && !name.starts_with("options[") {
            let known = URL_PARAMETERS.join(", ");
            let rule = format!(
                "unknown URL parameter; known: {known}, options[..]. Escape `?`, `&` and `#` in a password as %3F, %26 \
                 and %23"
            );
            let is_similar = |known: &&str| strsim::damerau_levenshtein(known, name) <= 2;
            let shown = if URL_PARAMETERS.iter().any(is_similar) { name } else { "not shown" };
            return Err(rules.reject("url", shown, rule));
        }
        if URL_PATHS.contains(&name) && !is_absolute(value) && !value.starts_with("-----BEGIN") {
            let rule = "must be an absolute path; `tls.root_cert`, `tls.client_cert` and `tls.client_key` may be relative \
                        to the configuration file";
            return Err(rules.reject("url", name, rule));
        }
    }
    Ok(())
}

/// PostgreSQL's limit for its timeouts: an i32 of milliseconds.
const MAX_DURATION: Duration = Duration::from_millis(i32::MAX as u64);
/// The minimum of all timeouts.
const MIN_DURATION: Duration = Duration::from_millis(1);
