//! Requests: their concurrency, their limits, and the decoding of their responses.

mod bounded;
mod http;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use clickhouse::{Client, Compression as WireCompression};
use qi_core::{Error, ErrorKind, Result};
use secrecy::ExposeSecret;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::config::{ClickHouseConfig, Compression};
use super::error::Cause;
use super::wire::{Malformed, Reader};
use crate::password_warning::{host_of, warn_of_password};

/// The clients of a store, with its permits and its knowledge of the server.
pub(super) struct Connections {
    /// The client for reads and small statements.
    pub(super) read_client: Client,
    /// The client for `ensure_schema`, deletions and purges.
    pub(super) bulk_client: Client,
    /// The bulk client without a database, for the creation of the database.
    pub(super) server_client: Client,
    insert_client: Client,
    /// The number of connections opened so far.
    opened: Arc<AtomicU64>,
    /// The cached result of [`Connections::knows_deduplicate_insert`].
    knows_deduplicate_insert: Mutex<Option<DeduplicateSupport>>,
    permits: Semaphore,
    max_permits: usize,
    acquire_timeout: Duration,
    address: String,
    version: RwLock<Option<String>>,
}

/// The cached result of the query whether the server knows `deduplicate_insert`.
struct DeduplicateSupport {
    /// The value of `opened` before the query.
    opened: u64,
    at: Instant,
    knows_deduplicate_insert: bool,
}

impl Connections {
    /// Creates the clients. Performs no network I/O.
    pub(super) fn open(config: &ClickHouseConfig) -> Result<Self> {
        let text = config.url.as_ref().map_or("", ExposeSecret::expose_secret);
        let Address { base, user, password } = Address::parse(text)?;
        let opened = Arc::<AtomicU64>::default();
        let mut client = http::client(config.root_cert.as_deref(), opened.clone())?
            .with_url(base.clone())
            .with_product_info("qi", env!("CARGO_PKG_VERSION"))
            .with_compression(match config.compression {
                Compression::Lz4 => WireCompression::Lz4,
                Compression::None => WireCompression::None,
            });
        if let Some(user) = config.user.clone().or(user) {
            client = client.with_user(user);
        }
        if let Some(password) = config.password.as_ref().map(|p| p.expose_secret().to_owned()).or(password) {
            if let Some(host) = base.strip_prefix("http://") {
                warn_of_password(super::BACKEND, std::iter::once(host_of(host)));
            }
            client = client.with_password(password);
        }
        // Exceeding a limit must be an error. A profile of the server may set `break`, which silently
        // returns a partial result.
        for mode in ["timeout", "read", "result", "sort", "group_by", "distinct", "set"] {
            client = client.with_setting(format!("{mode}_overflow_mode"), "throw");
        }
        for (name, value) in &config.settings {
            client = client.with_setting(name, value);
        }
        // An acknowledged insert is visible, whatever the profile of the user says.
        client = client.with_setting("async_insert", "0");
        if config.server_limits.memory_bytes > 0 {
            client = client.with_setting("max_memory_usage", config.server_limits.memory_bytes.to_string());
        }
        let limited = |client: Client, timeout: Duration| {
            // In seconds with a fraction. 0 would disable the limit.
            let (seconds, millis) = (timeout.as_secs(), timeout.subsec_millis());
            client.with_setting("max_execution_time", format!("{seconds}.{millis:03}"))
        };
        let server_client =
            limited(client.clone(), config.server_limits.bulk_timeout).with_setting("wait_end_of_query", "1");
        let client = client.with_database(&config.database);
        // The server responds only when the result is complete. A late error is then an error instead of a short page.
        let mut read_client = limited(client.clone(), config.server_limits.statement_timeout)
            .with_setting("wait_end_of_query", "1")
            // A cached result could miss acknowledged writes.
            .with_setting("use_query_cache", "0");
        let bulk_client = server_client.clone().with_database(&config.database);
        let mut insert_client = limited(client, config.server_limits.statement_timeout)
            // With deduplication, the server would drop a block that is sent again after its rows were deleted. Since
            // version 26.2 this setting is not sufficient: `Connections::insert_client` adds another setting.
            .with_setting("insert_deduplicate", "0")
            .with_setting("max_partitions_per_insert_block", "0");
        if config.cluster.is_some() {
            // A majority of the replicas acknowledges an insert, and a read uses a replica that has all
            // acknowledged inserts. Together these settings make a write visible to later reads, provided that
            // inserts run one at a time.
            read_client = read_client
                .with_setting("select_sequential_consistency", "1")
                .with_setting("optimize_skip_unused_shards", "1");
            // In milliseconds. By default the server waits for 10 minutes, longer than the caller. The rows of the request
            // have the other half of the time limit.
            let quorum_timeout = (config.server_limits.statement_timeout.as_millis() / 2).max(1);
            insert_client = insert_client
                .with_setting("distributed_foreground_insert", "1")
                .with_setting("insert_quorum", "auto")
                .with_setting("insert_quorum_parallel", "0")
                .with_setting("insert_quorum_timeout", quorum_timeout.to_string());
        }
        Ok(Self {
            read_client,
            bulk_client,
            server_client,
            insert_client,
            opened,
            knows_deduplicate_insert: Mutex::default(),
            permits: Semaphore::new(config.pool.max_connections),
            max_permits: config.pool.max_connections,
            acquire_timeout: config.pool.acquire_timeout,
            address: base,
            version: RwLock::default(),
        })
    }

    /// Returns whether the server knows the setting `deduplicate_insert`.
    ///
    /// Since version 26.2, `deduplicate_insert` overrides `insert_deduplicate` and is enabled by default. An older
    /// server rejects the name. The query before the first insert also confirms that the server is a ClickHouse
    /// server, because any HTTP server may respond "200 OK" to an insert. A new connection may lead to another
    /// server or version, so the result is valid only until a new connection is opened. A proxy may change the
    /// server behind an open connection, so the result also expires after one minute.
    /// [`Connections::forget_deduplicate_insert`] drops the result.
    pub(super) async fn knows_deduplicate_insert(&self) -> Result<bool, Cause> {
        const CACHE_TTL: Duration = Duration::from_mins(1);
        let mut answer = self.knows_deduplicate_insert.lock().await;
        let opened = self.opened.load(Ordering::SeqCst);
        if let Some(answer) = &*answer
            && answer.opened == opened
            && answer.at.elapsed() < CACHE_TTL
        {
            return Ok(answer.knows_deduplicate_insert);
        }
        let sql = "SELECT count() FROM system.settings WHERE name = 'deduplicate_insert'";
        let known = rows(&self.read_client, sql, |row| Ok(row.u64()?)).await?;
        let knows_deduplicate_insert = match known[..] {
            [0] => false,
            [1] => true,
            _ => return Err(Malformed(format!("count of settings is {known:?}, expected 0 or 1")).into()),
        };
        *answer = Some(DeduplicateSupport { opened, at: Instant::now(), knows_deduplicate_insert });
        Ok(knows_deduplicate_insert)
    }

    /// Drops the cached result after the server rejected a setting. The next insert queries the server again.
    pub(super) async fn forget_deduplicate_insert(&self) {
        *self.knows_deduplicate_insert.lock().await = None;
    }

    /// Returns the client for inserts. `knows_deduplicate_insert` states whether the server knows `deduplicate_insert`.
    pub(super) fn insert_client(&self, knows_deduplicate_insert: bool) -> Client {
        let client = self.insert_client.clone();
        if knows_deduplicate_insert { client.with_setting("deduplicate_insert", "disable") } else { client }
    }

    /// Returns the server's address, without credentials.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn version(&self) -> Option<String> {
        self.version.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_version(&self, version: String) {
        *self.version.write().unwrap_or_else(PoisonError::into_inner) = Some(version);
    }

    /// Waits for a permit, up to the acquire timeout.
    pub(super) async fn acquire(&self) -> Result<SemaphorePermit<'_>, Cause> {
        match tokio::time::timeout(self.acquire_timeout, self.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Cause::Closed),
            Err(_) => Err(Cause::Busy { max_connections: self.max_permits }),
        }
    }

    /// Waits for the calls in progress and admits no further calls.
    pub(super) async fn close(&self) {
        let all = u32::try_from(self.max_permits).unwrap_or(u32::MAX);
        // An error means that the store is already closed.
        let _all = self.permits.acquire_many(all).await;
        self.permits.close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.permits.is_closed()
    }
}

/// The maximum size of one response, in bytes. The largest page has 50,000 records of less than 5 KiB.
pub(super) const MAX_RESPONSE_BYTES: usize = 256 * 1024 * 1024;

/// Runs a query and returns the encoded rows.
pub(super) async fn fetch(client: &Client, sql: &str) -> Result<Vec<u8>, Cause> {
    fetch_as(client, sql, "RowBinary").await
}

/// Runs a query and returns the rows in a format of the server.
pub(super) async fn fetch_as(client: &Client, sql: &str, format: &str) -> Result<Vec<u8>, Cause> {
    let mut cursor = client.query_raw(sql).fetch_bytes(format)?;
    let mut rows = Vec::new();
    while let Some(part) = cursor.next().await? {
        if rows.len() + part.len() > MAX_RESPONSE_BYTES {
            return Err(Cause::TooLarge { limit: MAX_RESPONSE_BYTES });
        }
        rows.extend_from_slice(&part);
    }
    Ok(rows)
}

/// Runs a query and decodes every row.
pub(super) async fn rows<T>(
    client: &Client,
    sql: &str,
    mut read: impl FnMut(&mut Reader<'_>) -> Result<T, Cause>,
) -> Result<Vec<T>, Cause> {
    let bytes = fetch(client, sql).await?;
    let mut reader = Reader::new(&bytes);
    let mut rows = Vec::new();
    while !reader.is_empty() {
        rows.push(read(&mut reader)?);
    }
    Ok(rows)
}

/// Runs a statement that returns no rows.
pub(super) async fn execute(client: &Client, sql: &str) -> Result<(), Cause> {
    fetch(client, sql).await.map(drop)
}

/// A parsed URL. The credentials are sent in headers, because addresses appear in logs.
struct Address {
    base: String,
    user: Option<String>,
    password: Option<String>,
}

impl Address {
    fn parse(text: &str) -> Result<Self> {
        let invalid = |rule: &str| {
            Error::new(ErrorKind::Config, "store.clickhouse.url", "open")
                .with_backend(super::BACKEND)
                .with_message(rule)
                .with_context("key", "store.clickhouse.url")
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("the URL has no scheme"))?;
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if !matches!(path, "" | "/") {
            return Err(invalid(
                "the URL must end with the port; the database and the settings have separate keys",
            ));
        }
        let (credentials, host) = match authority.rsplit_once('@') {
            Some((credentials, host)) => (Some(credentials), host),
            None => (None, authority),
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(invalid("the URL has no host, or an invalid host"));
        }
        let decode =
            |text: &str| percent_decode(text).ok_or_else(|| invalid("the URL has an invalid % escape"));
        let (mut user, mut password) = (None, None);
        if let Some(credentials) = credentials {
            let (name, secret) = credentials.split_once(':').unwrap_or((credentials, ""));
            user = Some(decode(name)?).filter(|name| !name.is_empty());
            password = Some(decode(secret)?).filter(|secret| !secret.is_empty());
        }
        Ok(Self { base: format!("{scheme}://{host}"), user, password })
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let hex = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_base_url_and_credentials() {
        let Address { base, user, password } = Address::parse("http://me:p%40ss%3Aword@host:8123/").unwrap();
        assert_eq!(
            (base.as_str(), user.as_deref(), password.as_deref()),
            ("http://host:8123", Some("me"), Some("p@ss:word"))
        );
        let Address { base, user, password } = Address::parse("https://host").unwrap();
        assert_eq!((base.as_str(), user, password), ("https://host", None, None));
        for wrong in
            ["host:8123", "http://", "http://a b", "http://h/?database=x", "http://u:%zz@h", "http://h/path"]
        {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }
}
