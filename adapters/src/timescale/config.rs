//! `[store.timescale]`: TimescaleDB, or plain PostgreSQL.

use qi_core::Datasets;
use qi_core::Result;
#[cfg(feature = "timescale")]
use qi_core::record::Dataset;
use qi_core::store::StoreInfo;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::hours::DatasetHours;
use crate::rules::Rules;

/// Where the server is, and how it is used. Compiled always, so that one file can hold every backend.
///
/// The connection is a URL, or fields, or a URL of which fields replace parts: a password from the environment
/// beside a URL in a file.
///
/// ```
/// use qi_adapters::config::TimescaleConfig;
/// let config = TimescaleConfig::from_url("postgres://qi:secret@localhost/market");
/// assert_eq!(config.schema, "qi");
/// assert!(!format!("{config:?}").contains("secret"));
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TimescaleConfig {
    /// `postgres://user:password@host:port/database`; never shown.
    pub url: Option<SecretString>,
    /// The host, or the folder of a Unix socket.
    pub host: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// Who connects.
    pub user: Option<String>,
    /// Their password; never shown.
    pub password: Option<SecretString>,
    /// The database.
    pub database: Option<String>,
    /// The schema (namespace) that holds the tables: lower-case letters, digits, underscores. Several can share
    /// one database.
    pub schema: String,
    /// How the connections name themselves in `pg_stat_activity`; without it what the URL says, else `qi`.
    pub application_name: Option<String>,
    /// Whether the tables are hypertables of TimescaleDB.
    pub hypertables: Hypertables,
    /// The largest batch that one insert takes; at most 1,000,000.
    pub max_batch: usize,
    /// The connections.
    pub pool: PoolSection,
    /// Encryption.
    pub tls: TlsSection,
    /// What the server may spend on one statement.
    pub limits: LimitsSection,
    /// Ways of writing.
    pub write: WriteSection,
    /// How much time one chunk of a hypertable covers, for chunks that are created from now on. Without an entry: 7
    /// days for a dataset with sequence numbers, else 365 days.
    pub chunks: DatasetHours,
    /// After what time chunks go to the columnstore; Community edition. A dataset without an entry has no policy.
    pub columnstore: DatasetHours,
    /// After what time chunks are dropped; Community edition. A dataset without an entry has no policy.
    pub retention: DatasetHours,
    /// The datasets of the store; the library's own unless [`Self::with_datasets`] gives others.
    #[serde(skip)]
    pub datasets: Datasets,
    /// The section of the configuration, for errors: `store.timescale` or `store.postgres`.
    #[serde(skip)]
    pub(crate) section: &'static str,
}

impl Default for TimescaleConfig {
    fn default() -> Self {
        Self {
            url: None,
            host: None,
            port: None,
            user: None,
            password: None,
            database: None,
            schema: "qi".to_owned(),
            application_name: None,
            hypertables: Hypertables::On,
            max_batch: StoreInfo::MAX_BATCH,
            pool: PoolSection::default(),
            tls: TlsSection::default(),
            limits: LimitsSection::default(),
            write: WriteSection::default(),
            chunks: DatasetHours::default(),
            columnstore: DatasetHours::default(),
            retention: DatasetHours::default(),
            datasets: Datasets::standard(),
            section: "store.timescale",
        }
    }
}

/// Whether the tables are hypertables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hypertables {
    /// TimescaleDB: the extension is created where it is absent.
    On,
    /// Plain PostgreSQL: ordinary tables.
    Off,
}

/// `[store.timescale.pool]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolSection {
    /// How many connections at most. Every call uses one; a large write two, if another one is idle.
    pub max_connections: u32,
    /// How many are kept open without work.
    pub min_connections: u32,
    /// How long a call waits for a connection, in milliseconds.
    pub acquire_timeout_ms: u64,
    /// After how long without work a connection is closed, in milliseconds.
    pub idle_timeout_ms: u64,
    /// How old a connection may become, in milliseconds.
    pub max_lifetime_ms: u64,
}

impl Default for PoolSection {
    fn default() -> Self {
        Self {
            max_connections: 8,
            min_connections: 0,
            acquire_timeout_ms: 5_000,
            idle_timeout_ms: 600_000,
            max_lifetime_ms: 1_800_000,
        }
    }
}

/// `[store.timescale.tls]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSection {
    /// What is demanded; without it, what the URL's `sslmode` says, else `prefer`.
    pub mode: Option<TlsMode>,
    /// The file of the only certificate authorities that are trusted, PEM; else the public authorities are. Needs
    /// `require`, `verify-ca` or `verify-full`.
    pub root_cert: Option<String>,
    /// The file of the client's certificate, PEM.
    pub client_cert: Option<String>,
    /// The file of the client's key, PEM.
    pub client_key: Option<String>,
}

/// As `sslmode` of libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// Never.
    Disable,
    /// If the server can; nothing is verified.
    Prefer,
    /// Always; nothing is verified, unless `root_cert` is given: then as [`Self::VerifyCa`].
    Require,
    /// Always, and the certificate comes from a known authority.
    VerifyCa,
    /// Always, and the certificate is the host's own.
    VerifyFull,
}

/// `[store.timescale.limits]`: server-side limits, a little below the limits of the layer `Timeout` (30 s and
/// 10 minutes), so that a call that was given up does not go on.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// For one statement, in milliseconds.
    pub statement_ms: u64,
    /// For one statement of `ensure_schema`, `delete_range` and `purge_before`, in milliseconds.
    pub heavy_ms: u64,
    /// For waiting for a lock, in milliseconds.
    pub lock_ms: u64,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self { statement_ms: 25_000, heavy_ms: 570_000, lock_ms: 20_000 }
    }
}

/// `[store.timescale.write]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WriteSection {
    /// From how many records on a batch is sent by COPY.
    pub copy_from: usize,
    /// How many records one statement carries at most.
    pub piece: usize,
    /// How many connections one batch uses at most; more than one only while others are idle.
    pub connections: usize,
}

impl Default for WriteSection {
    fn default() -> Self {
        Self { copy_from: 1_000, piece: 50_000, connections: 2 }
    }
}

impl TimescaleConfig {
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

    /// Returns the length of a dataset's chunk, in microseconds.
    #[cfg(feature = "timescale")]
    pub(super) fn chunk_micros(&self, dataset: Dataset) -> i64 {
        let days = if dataset.seq().is_some() { 7 } else { 365 };
        i64::from(self.chunks.get(dataset.name()).unwrap_or(days * 24)) * 3_600_000_000
    }

    /// Returns the name of a table with its schema.
    #[cfg(feature = "timescale")]
    pub(super) fn relation(&self, table: &str) -> String {
        format!("\"{}\".\"{table}\"", self.schema)
    }

    pub(crate) fn rules(&self) -> Rules {
        Rules { section: self.section, code: "store.timescale.config", backend: "timescale" }
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// `Config` with the key and its value.
    pub fn validate(&self) -> Result<()> {
        let rules = self.rules();
        let Self { url, host, schema, max_batch, pool, limits, write, columnstore, retention, .. } = self;
        if url.is_none() && host.is_none() {
            return Err(rules.refuse("url", "none", "the server's `url` or its `host` must be given"));
        }
        if let Some(url) = url {
            check_url(&rules, url.expose_secret())?;
        }
        let first = schema.bytes().next().unwrap_or(b'0');
        let fits = schema.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        let of_the_server =
            ["pg_", "timescaledb_", "_timescaledb_"].iter().any(|name| schema.starts_with(name))
                || schema == "information_schema";
        if !fits || first.is_ascii_digit() || schema.len() > 63 || of_the_server {
            let rule = "must be lower-case letters, digits and underscores, begin with no digit, be none of the \
                        server's own (information_schema, pg_.., timescaledb_..), and have at most 63 characters";
            return Err(rules.refuse("schema", schema, rule));
        }
        if self.tls.client_cert.is_some() != self.tls.client_key.is_some() {
            return Err(rules.refuse(
                "tls",
                "one of two",
                "`client_cert` and `client_key` are given together",
            ));
        }
        rules.within("max_batch", *max_batch as u64, 1, StoreInfo::MAX_BATCH as u64)?;
        rules.within("pool.max_connections", pool.max_connections.into(), 1, 10_000)?;
        rules.within("pool.min_connections", pool.min_connections.into(), 0, pool.max_connections.into())?;
        rules.within("pool.acquire_timeout_ms", pool.acquire_timeout_ms, 1, MAX_MS)?;
        rules.within("pool.idle_timeout_ms", pool.idle_timeout_ms, 1, MAX_MS)?;
        rules.within("pool.max_lifetime_ms", pool.max_lifetime_ms, 1, MAX_MS)?;
        rules.within("limits.statement_ms", limits.statement_ms, 1, MAX_MS)?;
        rules.within("limits.heavy_ms", limits.heavy_ms, 1, MAX_MS)?;
        rules.within("limits.lock_ms", limits.lock_ms, 1, MAX_MS)?;
        rules.within("write.copy_from", write.copy_from as u64, 1, u64::MAX)?;
        rules.within("write.piece", write.piece as u64, 1, 100_000)?;
        rules.within("write.connections", write.connections as u64, 1, 64)?;
        for (section, hours) in [("columnstore", columnstore), ("retention", retention)] {
            if !hours.is_empty() && self.hypertables == Hypertables::Off {
                return Err(rules.refuse(section, "", "needs hypertables = \"on\""));
            }
        }
        self.check_datasets()
    }

    /// Checks that the keys of datasets name datasets of the program.
    pub(crate) fn check_datasets(&self) -> Result<()> {
        let rules = self.rules();
        let Self { chunks, columnstore, retention, datasets, .. } = self;
        for (section, hours) in [("chunks", chunks), ("columnstore", columnstore), ("retention", retention)] {
            hours.check(&rules, section, datasets, MAX_HOURS)?;
        }
        Ok(())
    }
}

/// What the driver understands behind the `?` of a URL. Anything else it would ignore, and write to its log with
/// the value.
const URL_PARAMETERS: &[&str] = &[
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Refuses another scheme and unknown parameters. A name is shown if it is nearly a known one; anything else may be
/// a part of a password with a `?` or `&` in it, and is not shown.
fn check_url(rules: &Rules, url: &str) -> Result<()> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(rules.refuse("url", "not shown", "must begin with postgres:// or postgresql://"));
    }
    let parameters = url.split_once('?').map_or("", |(_, rest)| rest);
    let parameters = parameters.split_once('#').map_or(parameters, |(parameters, _)| parameters);
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
        if !URL_PARAMETERS.contains(&name) && !name.starts_with("options[") {
            let known = URL_PARAMETERS.join(", ");
            let rule = format!(
                "the URL has a parameter that nothing reads; known are {known}, options[..]. A `?`, `&` or `#` in a \
                 password is written %3F, %26 or %23"
            );
            let near = |known: &&str| strsim::damerau_levenshtein(known, name) <= 2;
            let shown = if URL_PARAMETERS.iter().any(near) { name } else { "not shown" };
            return Err(rules.refuse("url", shown, rule));
        }
    }
    Ok(())
}

/// PostgreSQL's own limit for its timeouts: an i32 of milliseconds.
const MAX_MS: u64 = i32::MAX as u64;
/// A hundred years.
const MAX_HOURS: u64 = 100 * 366 * 24;
