//! The connection pool, and connections outside the pool.

mod session;
#[cfg(unix)]
mod tunnel;

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use qi_core::{Error, ErrorKind, Result};
use secrecy::ExposeSecret;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, PgPool, Postgres, Row, SqlSafeStr as _, SqlStr};

use super::cache::{SchemaCache, SchemaIdentity};
use super::config::{TimescaleConfig, TlsMode};
use super::error::Cause;
use super::materialized::STATE_TABLE;
use crate::password_warning::warn_of_password;
use session::SessionSettings;
pub(super) use session::{PgConnection, Transaction};
#[cfg(unix)]
use tunnel::{Tunnel, TunnelConfig};

/// The properties of the server, queried on every new connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ServerInfo {
    /// The version of PostgreSQL, for example `17.5`.
    pub(super) server: String,
    /// The version of the extension if it is installed, for example `2.19.3`.
    pub(super) extension: Option<String>,
    /// The license, `apache` or `timescale`, if the extension's library is loaded.
    pub(super) license: Option<String>,
}

/// The connection pool, with the properties of its server.
pub(super) struct Connections {
    pool: PgPool,
    /// The configured address of the server.
    options: PgConnectOptions,
    /// The address that the driver connects to: `options`, or the tunnel.
    driver_options: PgConnectOptions,
    session: Arc<SessionSettings>,
    #[cfg(unix)]
    tunnel: Option<Tunnel>,
    server_info: Arc<RwLock<ServerInfo>>,
    stale: Arc<StaleConnections>,
    /// The share of this store in the process-wide gauge of the connection limit.
    _limit: GaugeShare,
    acquire_timeout: Duration,
    bulk_timeout: Duration,
}

impl Connections {
    /// Creates a pool without connections. Must be called inside a tokio runtime.
    ///
    /// Before a connection is borrowed, it queries the identity of its schema. This query replaces the ping of the
    /// pool, so it adds no round trip.
    pub(super) fn open(config: &TimescaleConfig, cache: Arc<SchemaCache>) -> Result<Self> {
        let options = connect_options(config)?;
        let settings = DriverSettings::of(&options);
        settings.check(&options, config.section)?;
        if settings.password && !is_local(&options) && !encrypts(options.get_ssl_mode()) {
            warn_of_password(super::BACKEND, std::iter::once(options.get_host()));
        }
        let mut driver_options = options.clone();
        let tunnel = settings.tunnel(&options, config.section)?;
        if let Some(tunnel) = &tunnel {
            driver_options = driver_options.socket(tunnel.folder()).ssl_mode(PgSslMode::Disable);
        }
        let pool = &config.pool;
        let acquire_timeout = pool.acquire_timeout;
        let server_info = Arc::new(RwLock::new(ServerInfo::default()));
        let session = Arc::new(SessionSettings::new(config));
        let (new_server_info, new_cache, new_session) = (server_info.clone(), cache.clone(), session.clone());
        let identity_sql = identity_sql(&config.schema);
        let new_identity_sql = identity_sql.clone();
        let stale = Arc::<StaleConnections>::default();
        let idle_stale = stale.clone();
        let pool = PgPoolOptions::new()
            .test_before_acquire(false)
            .max_connections(pool.max_connections)
            .min_connections(pool.min_connections)
            .acquire_timeout(acquire_timeout)
            .idle_timeout(pool.idle_timeout)
            .max_lifetime(pool.max_lifetime)
            .after_connect(move |connection, _| {
                let (server_info, cache) = (new_server_info.clone(), new_cache.clone());
                let (session, identity_sql) = (new_session.clone(), new_identity_sql.clone());
                Box::pin(async move {
                    session.apply(connection).await?;
                    let info = fetch_server_info(connection).await?;
                    *server_info.write().unwrap_or_else(PoisonError::into_inner) = info;
                    cache.set_identity(schema_identity(connection, identity_sql).await?);
                    Ok(())
                })
            })
            .before_acquire(move |connection, idle| {
                let (cache, identity_sql) = (cache.clone(), identity_sql.clone());
                let is_stale = idle_stale.contains(idle.age);
                Box::pin(async move {
                    if is_stale {
                        return Ok(false);
                    }
                    cache.set_identity(schema_identity(connection, identity_sql).await?);
                    Ok(true)
                })
            })
            .connect_lazy_with(driver_options.clone());
        Ok(Self {
            pool,
            options,
            driver_options,
            session,
            #[cfg(unix)]
            tunnel,
            server_info,
            stale,
            _limit: GaugeShare::of("qi_timescale_connections_limit", config.pool.max_connections),
            acquire_timeout,
            bulk_timeout: config.server_limits.bulk_timeout,
        })
    }

    pub(super) fn pool(&self) -> &PgPool {
        &self.pool
    }

    pub(super) fn server_info(&self) -> ServerInfo {
        self.server_info.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the address of the server as `host:port/database`, without credentials.
    pub(super) fn address(&self) -> String {
        let options = &self.options;
        let database = options.get_database().unwrap_or(options.get_username());
        match options.get_socket() {
            Some(socket) => format!("{}/{database}", socket.display()),
            None => format!("{}:{}/{database}", options.get_host(), options.get_port()),
        }
    }

    /// Borrows a connection, waiting up to the acquire timeout.
    pub(super) async fn acquire(&self) -> Result<PooledConnection, Cause> {
        match self.pool.acquire().await {
            Ok(connection) => Ok(self.pooled(connection)),
            Err(sqlx::Error::PoolTimedOut) => {
                if self.pool.num_idle() > 0 {
                    // An idle connection did not respond, and the other idle connections lead to the same server.
                    self.stale.mark_all();
                }
                Err(self.acquire_failure().await)
            }
            Err(error) => Err(self.connect_failure(error)),
        }
    }

    /// Returns the cause of a failed connection attempt. With a tunnel, the driver sees only that the socket closes.
    fn connect_failure(&self, error: sqlx::Error) -> Cause {
        #[cfg(unix)]
        if let (sqlx::Error::Io(_), Some(tunnel)) = (&error, &self.tunnel)
            && let Some(failure) = tunnel.failure()
        {
            return sqlx::Error::Io(failure).into();
        }
        error.into()
    }

    /// Runs work that uses no connection of the pool. `close` cancels the work.
    pub(super) async fn until_closed<T>(
        &self,
        work: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T, Cause> {
        self.pool.close_event().do_until(work).await?
    }

    /// Borrows a further connection for a caller that already holds a connection. Uses an idle connection, or opens a
    /// connection if the pool has room. Gives up after 2 s, because two such callers may wait for each other.
    pub(super) async fn acquire_spare(&self) -> Option<PooledConnection> {
        const SPARE_TIMEOUT: Duration = Duration::from_secs(2);
        // `try_acquire` would skip the check of the connection. The connection may belong to a dropped schema
        // or a lost server.
        if self.pool.num_idle() == 0 && self.pool.size() >= self.pool.options().get_max_connections() {
            return None;
        }
        let connection = tokio::time::timeout(SPARE_TIMEOUT, self.pool.acquire()).await.ok()?.ok()?;
        Some(self.pooled(connection))
    }

    fn pooled(&self, connection: PoolConnection<Postgres>) -> PooledConnection {
        metrics::gauge!("qi_timescale_connections_open").set(f64::from(self.pool.size()));
        PooledConnection {
            connection: Some(PgConnection::pooled(connection, self.session.clone())),
            stale: self.stale.clone(),
            _in_use: GaugeShare::of("qi_timescale_connections_in_use", 1),
        }
    }

    /// Returns the reason why no connection was available. The driver hides refused connections behind the timeout of
    /// the pool. If the pool has room, a direct connection reveals the reason.
    async fn acquire_failure(&self) -> Cause {
        // Includes the connections of custom SQL, which have no `PooledConnection`.
        let idle = u32::try_from(self.pool.num_idle()).unwrap_or(u32::MAX);
        let in_use = self.pool.size().saturating_sub(idle);
        if in_use >= self.pool.options().get_max_connections() {
            return Cause::PoolExhausted { in_use };
        }
        let timeout = self.acquire_timeout.clamp(Duration::from_millis(250), Duration::from_secs(3));
        match tokio::time::timeout(timeout, self.connect_unpooled()).await {
            Ok(Err(cause)) => cause,
            Ok(Ok(connection)) => {
                // The server responds again, but too late for this call.
                connection.close().await;
                Cause::AcquireTimeout { timeout: self.acquire_timeout }
            }
            Err(_) => Cause::AcquireTimeout { timeout: self.acquire_timeout },
        }
    }

    /// Opens a connection outside the pool, for work with session locks. The locks end with the connection.
    pub(super) async fn connect_unpooled(&self) -> Result<PgConnection<'static>, Cause> {
        let mut connection =
            self.driver_options.connect().await.map_err(|error| self.connect_failure(error))?;
        self.session.apply(&mut connection).await?;
        let info = fetch_server_info(&mut connection).await?;
        *self.server_info.write().unwrap_or_else(PoisonError::into_inner) = info;
        Ok(PgConnection::unpooled(connection, self.session.clone()))
    }

    /// Applies the bulk timeout to the rest of the current transaction.
    pub(super) async fn set_transaction_bulk_timeout(
        &self,
        connection: &mut PgConnection<'_>,
    ) -> Result<(), Cause> {
        sqlx::query("SELECT set_config('statement_timeout', $1, true)")
            .bind(self.bulk_timeout.as_millis().to_string())
            .execute(connection)
            .await?;
        Ok(())
    }

    /// Applies the bulk timeout to all further statements of a connection outside the pool. A pooler in transaction mode
    /// has no sessions, so the limits of the server apply there.
    pub(super) async fn set_session_bulk_timeout(
        &self,
        connection: &mut PgConnection<'_>,
    ) -> Result<(), Cause> {
        let limit = self.bulk_timeout.as_millis();
        let sql = format!("SET statement_timeout = {limit}; SET lock_timeout = {limit}");
        Ok(connection.run_outside_transaction(&sql, true).await?)
    }
}

async fn schema_identity(
    connection: &mut sqlx::PgConnection,
    sql: SqlStr,
) -> Result<SchemaIdentity, sqlx::Error> {
    let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
    Ok(SchemaIdentity {
        instruments_oid: row.try_get(0)?,
        server_start: row.try_get(1)?,
        has_materialized_bars: row.try_get(2)?,
    })
}

fn identity_sql(schema: &str) -> SqlStr {
    // The name was validated: letters, digits and underscores. The simple protocol needs no prepared statement, so the
    // query may run outside a transaction in every mode of a pooler.
    // `to_regclass` would reject a role without the privilege to use the schema.
    let sql = format!(
        "SELECT coalesce((SELECT c.oid::int8 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = '{schema}' AND c.relname = 'instruments'), 0), \
         (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8, \
         EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = '{schema}' AND c.relname = '{STATE_TABLE}')"
    );
    AssertSqlSafe(Arc::<str>::from(sql)).into_sql_str()
}

/// Queries the properties of the server.
async fn fetch_server_info(connection: &mut sqlx::PgConnection) -> Result<ServerInfo, sqlx::Error> {
    let row = sqlx::raw_sql(
        "SELECT current_setting('server_version'), \
                (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'), \
                current_setting('timescaledb.license', true)",
    )
    .fetch_one(connection)
    .await?;
    Ok(ServerInfo { server: row.try_get(0)?, extension: row.try_get(1)?, license: row.try_get(2)? })
}

fn connect_options(config: &TimescaleConfig) -> Result<PgConnectOptions> {
    let invalid = |source: sqlx::Error| {
        Error::new(ErrorKind::Config, "store.timescale.url", "open")
            .with_backend(super::BACKEND)
            .with_message("invalid server URL")
            .with_source(InvalidUrl(source.to_string()))
    };
    let mut options = match &config.url {
        Some(url) => url.expose_secret().parse().map_err(invalid)?,
        None => PgConnectOptions::new(),
    };
    if let Some(host) = &config.host {
        options = if host.starts_with('/') { options.socket(host) } else { options.host(host) };
    }
    if let Some(port) = config.port {
        options = options.port(port);
    }
    if let Some(user) = &config.user {
        options = options.username(user);
    }
    if let Some(password) = &config.password {
        options = options.password(password.expose_secret());
    }
    if let Some(database) = &config.database {
        options = options.database(database);
    }
    let tls = &config.tls;
    // The driver reads these files for every connection, so that they can be replaced. Without this check, a wrong path
    // would look like an unreachable server.
    for (key, file) in
        [("root_cert", &tls.root_cert), ("client_cert", &tls.client_cert), ("client_key", &tls.client_key)]
    {
        let Some(file) = file else { continue };
        std::fs::File::open(file).map_err(|source| {
            Error::new(ErrorKind::Config, "store.timescale.tls_file", "open")
                .with_backend(super::BACKEND)
                .with_message("cannot read a file of the TLS section")
                .with_context("key", format_args!("{}.tls.{key}", config.section))
                .with_context("value", file)
                .with_source(source)
        })?;
    }
    if let Some(mode) = tls.mode {
        options = options.ssl_mode(match mode {
            TlsMode::Disable => PgSslMode::Disable,
            TlsMode::Prefer => PgSslMode::Prefer,
            TlsMode::Require => PgSslMode::Require,
            TlsMode::VerifyCa => PgSslMode::VerifyCa,
            TlsMode::VerifyFull => PgSslMode::VerifyFull,
        });
    }
    if let Some(file) = &tls.root_cert {
        options = options.ssl_root_cert(file);
    }
    if let Some(file) = &tls.client_cert {
        options = options.ssl_client_cert(file);
    }
    if let Some(file) = &tls.client_key {
        options = options.ssl_client_key(file);
    }
    let name =
        config.application_name.as_deref().or(options.get_application_name()).unwrap_or("qi").to_owned();
    // PgBouncer rejects this startup parameter. The library uses no floating-point numbers.
    let options = options.extra_float_digits(None);
    Ok(options.application_name(&name).log_statements(log::LevelFilter::Trace))
}

/// Returns whether a mode rejects a connection without encryption.
fn encrypts(mode: PgSslMode) -> bool {
    matches!(mode, PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull)
}

/// Returns whether the server is reached through a Unix socket.
fn is_local(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some() || options.get_host().starts_with('/')
}

/// The effective settings of the driver, from the configuration, the URL, the environment or a password file.
struct DriverSettings {
    password: bool,
    root_cert: Option<String>,
    client: Option<(String, String)>,
}

impl DriverSettings {
    fn of(options: &PgConnectOptions) -> Self {
        // The user and the host are replaced by placeholders that a URL can represent.
        let url = options.clone().username("user").host("host").to_url_lossy();
        let parameter = |name: &str| {
            let value = url.query_pairs().find(|(key, _)| key == name)?.1;
            // The driver marks the path of a file, but not the text of a PEM.
            Some(value.strip_prefix("file: ").unwrap_or(&value).to_owned())
        };
        Self {
            password: url.password().is_some(),
            root_cert: parameter("sslrootcert"),
            client: parameter("sslcert").zip(parameter("sslkey")),
        }
    }

    /// Rejects certificate authorities in a mode that would not verify the certificate.
    fn check(&self, options: &PgConnectOptions, section: &str) -> Result<()> {
        if self.root_cert.is_none() || encrypts(options.get_ssl_mode()) || is_local(options) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Config, "store.timescale.config", "open")
            .with_backend(super::BACKEND)
            .with_message(
                "`root_cert` (`sslrootcert` in the URL, PGSSLROOTCERT in the environment) needs the mode `require`, \
                 `verify-ca` or `verify-full`, because this mode does not verify the certificate",
            )
            .with_context("key", format_args!("{section}.tls.mode"))
            .with_context("value", format!("{:?}", options.get_ssl_mode()).to_lowercase()))
    }

    /// Returns the tunnel that verifies the server with the certificate authorities of a file. As in libpq, `require`
    /// with such a file means `verify-ca`.
    #[cfg(unix)]
    fn tunnel(self, options: &PgConnectOptions, section: &str) -> Result<Option<Tunnel>> {
        let mode = options.get_ssl_mode();
        let Some(root_cert) = self.root_cert.filter(|_| encrypts(mode) && !is_local(options)) else {
            return Ok(None);
        };
        let config = TunnelConfig {
            host: options.get_host().to_owned(),
            port: options.get_port(),
            root_cert,
            client: self.client,
            verifies_host: matches!(mode, PgSslMode::VerifyFull),
        };
        let tunnel = Tunnel::open(config).map_err(|source| {
            Error::new(ErrorKind::Config, "store.timescale.tunnel", "open")
                .with_backend(super::BACKEND)
                .with_message("`root_cert` needs a writable folder for temporary files, set by TMPDIR")
                .with_context("key", format_args!("{section}.tls.root_cert"))
                .with_context("folder", std::env::temp_dir().display())
                .with_source(source)
        })?;
        Ok(Some(tunnel))
    }

    /// Rejects a file of certificate authorities, because the driver would also trust the public authorities.
    #[cfg(not(unix))]
    fn tunnel(self, options: &PgConnectOptions, section: &str) -> Result<Option<Never>> {
        if self.root_cert.is_none() || !encrypts(options.get_ssl_mode()) {
            return Ok(None);
        }
        Err(Error::new(ErrorKind::Config, "store.timescale.config", "open")
            .with_backend(super::BACKEND)
            .with_message("`root_cert` needs Unix sockets, because the driver also trusts the public certificate authorities")
            .with_context("key", format_args!("{section}.tls.root_cert")))
    }
}

/// The type of a tunnel on a system without Unix sockets.
#[cfg(not(unix))]
enum Never {}

#[cfg(not(unix))]
impl Never {
    fn folder(&self) -> &std::path::Path {
        match *self {}
    }
}

/// The driver's message about an invalid URL. The driver's own error may contain parts of the URL.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct InvalidUrl(String);

/// A contribution to a gauge that sums over all stores of the process. Dropping it removes the contribution.
struct GaugeShare {
    gauge: metrics::Gauge,
    value: f64,
}

impl GaugeShare {
    fn of(name: &'static str, value: u32) -> Self {
        let (gauge, value) = (metrics::gauge!(name), f64::from(value));
        gauge.increment(value);
        Self { gauge, value }
    }
}

impl Drop for GaugeShare {
    fn drop(&mut self) {
        self.gauge.decrement(self.value);
    }
}

/// The time of the last failover. Older connections are stale, so the pool closes them instead of reusing them.
#[derive(Default)]
struct StaleConnections(RwLock<Option<Instant>>);

impl StaleConnections {
    /// Marks all current connections as stale.
    fn mark_all(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Returns whether a connection of this age is stale.
    fn contains(&self, age: Duration) -> bool {
        let marked_at = *self.0.read().unwrap_or_else(PoisonError::into_inner);
        marked_at.is_some_and(|marked_at| age >= marked_at.elapsed())
    }
}

/// A borrowed connection. [`PooledConnection::release`] returns it to the pool. A connection dropped without that
/// call is closed, so that no incomplete statement or transaction returns to the pool.
pub(super) struct PooledConnection {
    connection: Option<PgConnection<'static>>,
    stale: Arc<StaleConnections>,
    _in_use: GaugeShare,
}

impl PooledConnection {
    /// Returns the connection to the pool. If the outcome shows that the connection is broken or that its server is not
    /// the primary, the connection is closed. Older connections lead to the same server, so they are closed as well.
    pub(super) fn release<T>(mut self, outcome: &Result<T, Cause>) {
        if outcome.as_ref().is_err_and(Cause::ends_connection) {
            self.stale.mark_all();
        } else {
            drop(self.connection.take());
        }
    }
}

impl Deref for PooledConnection {
    type Target = PgConnection<'static>;
    fn deref(&self) -> &PgConnection<'static> {
        self.connection.as_ref().expect(RELEASED)
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut PgConnection<'static> {
        self.connection.as_mut().expect(RELEASED)
    }
}

const RELEASED: &str = "the connection was released";

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.close_on_drop();
        }
    }
}
