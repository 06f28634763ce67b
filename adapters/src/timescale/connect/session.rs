//! A connection of the driver, with the settings that its statements need.
//!
//! Without a pooler, or with a pooler in session mode, a connection keeps its settings: `SET` statements follow the
//! login. A startup parameter would be shorter, but PgBouncer rejects most of them.
//!
//! In transaction mode, any two transactions may run on two sessions of the server. Therefore every statement runs in a
//! transaction that begins with `SET LOCAL` statements.

use std::fmt::Write as _;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt as _, StreamExt as _, TryFutureExt as _, TryStreamExt as _};
use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{AssertSqlSafe, Connection as _, Either, Execute, Executor, Postgres, SqlSafeStr as _, SqlStr};

use crate::timescale::config::{Pooler, TimescaleConfig};

/// The settings of the connections of a store.
#[derive(Debug)]
pub(in crate::timescale) struct SessionSettings {
    /// The first statements of a new connection.
    on_connect: String,
    /// The `BEGIN` and the `SET LOCAL` statements of a transaction. None in session mode.
    begin: Option<SqlStr>,
    /// True if prepared statements have names. An unnamed statement exists only until the next one.
    named_statements: bool,
}

impl SessionSettings {
    pub(super) fn new(config: &TimescaleConfig) -> Self {
        let limits = &config.server_limits;
        let statement_timeout = limits.statement_timeout.as_millis();
        let numbers = [
            ("statement_timeout", statement_timeout),
            ("lock_timeout", limits.lock_timeout.as_millis()),
            ("idle_in_transaction_session_timeout", statement_timeout),
            // Ends a statement soon after its client has disconnected.
            ("client_connection_check_interval", 1000),
            // Batches are bounded, but the number of tuples that a write to converted chunks touches is not.
            ("timescaledb.max_tuples_decompressed_per_dml_transaction", 0),
        ];
        let modes = [
            // The bounds of a query determine its chunks, so a generic plan is never useful.
            ("plan_cache_mode", "force_custom_plan"),
            // Pages are short, so compiling a plan would take longer than running it.
            ("jit", "off"),
            // Statements open few chunks. Finding the possible chunks of a looked-up row takes longer than the
            // lookup in each chunk.
            ("timescaledb.enable_runtime_exclusion", "off"),
            // A default of the role would give a write one snapshot, from before its locks.
            ("default_transaction_isolation", "'read committed'"),
        ];
        let all = |scope: &str| {
            let mut sql = String::new();
            for (name, value) in numbers {
                let _ = write!(sql, "SET {scope} {name} = {value};");
            }
            for (name, value) in modes {
                let _ = write!(sql, "SET {scope} {name} = {value};");
            }
            sql
        };
        match config.pooler {
            Pooler::Session => {
                // For custom SQL. The statements of this library contain the schema.
                let search_path = format!("SET search_path = \"{}\";", config.schema);
                let on_connect = search_path + &all("SESSION");
                Self { on_connect, begin: None, named_statements: true }
            }
            Pooler::Transaction | Pooler::TransactionPrepared => {
                let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED;{}", all("LOCAL"));
                // The first transaction shows whether the server knows the settings.
                let on_connect = format!("{begin}ROLLBACK");
                let begin = AssertSqlSafe(Arc::<str>::from(begin)).into_sql_str();
                let named_statements = config.pooler == Pooler::TransactionPrepared;
                Self { on_connect, begin: Some(begin), named_statements }
            }
        }
    }

    /// Applies the settings to a new connection.
    pub(super) async fn apply(&self, connection: &mut sqlx::PgConnection) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(self.on_connect.clone())).execute(connection).await.map(drop)
    }
}

/// A connection that may lead through a pooler. It replaces the driver's type of the same name in this adapter.
#[derive(Debug)]
pub(in crate::timescale) struct PgConnection<'c> {
    driver: Driver<'c>,
    settings: Arc<SessionSettings>,
}

/// The driver's connection, by its owner.
#[derive(Debug)]
enum Driver<'c> {
    Pooled(PoolConnection<Postgres>),
    Unpooled(Box<sqlx::PgConnection>),
    Transaction(sqlx::Transaction<'c, Postgres>),
}

impl PgConnection<'static> {
    pub(super) fn pooled(connection: PoolConnection<Postgres>, settings: Arc<SessionSettings>) -> Self {
        Self { driver: Driver::Pooled(connection), settings }
    }

    pub(super) fn unpooled(connection: sqlx::PgConnection, settings: Arc<SessionSettings>) -> Self {
        Self { driver: Driver::Unpooled(Box::new(connection)), settings }
    }

    /// Closes the connection instead of returning it to the pool.
    pub(super) fn close_on_drop(&mut self) {
        if let Driver::Pooled(connection) = &mut self.driver {
            connection.close_on_drop();
        }
    }

    /// Closes a connection outside the pool.
    pub(in crate::timescale) async fn close(self) {
        if let Driver::Unpooled(connection) = self.driver {
            let _ = connection.close().await;
        }
    }
}

impl PgConnection<'_> {
    /// Returns whether a statement needs a transaction for its settings. COPY is not a statement of [`Executor`], so its
    /// caller begins the transaction.
    pub(in crate::timescale) fn needs_transaction(&self) -> bool {
        self.settings.begin.is_some() && !matches!(self.driver, Driver::Transaction(_))
    }

    /// Runs statements outside a transaction. Skips settings of the session if the connection has no separate session.
    pub(in crate::timescale) async fn run_outside_transaction(
        &mut self,
        sql: &str,
        are_settings: bool,
    ) -> Result<(), sqlx::Error> {
        if are_settings && self.needs_transaction() {
            return Ok(());
        }
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut **self).await.map(drop)
    }

    /// Begins a transaction, or a savepoint inside a transaction.
    pub(in crate::timescale) async fn begin(&mut self) -> Result<Transaction<'_>, sqlx::Error> {
        let settings = self.settings.clone();
        let begin = settings.begin.clone().filter(|_| self.needs_transaction());
        let transaction = match begin {
            Some(begin) => sqlx::Connection::begin_with(&mut **self, begin).await?,
            None => sqlx::Connection::begin(&mut **self).await?,
        };
        Ok(Transaction(PgConnection { driver: Driver::Transaction(transaction), settings }))
    }

    /// Begins a transaction that reads one snapshot.
    pub(in crate::timescale) async fn begin_snapshot(&mut self) -> Result<Transaction<'_>, sqlx::Error> {
        self.begin_as("ISOLATION LEVEL REPEATABLE READ, READ ONLY").await
    }

    /// Begins a transaction whose statements after the first `LOCK TABLE` share a snapshot.
    pub(in crate::timescale) async fn begin_repeatable_read(
        &mut self,
    ) -> Result<Transaction<'_>, sqlx::Error> {
        self.begin_as("ISOLATION LEVEL REPEATABLE READ").await
    }

    async fn begin_as(&mut self, mode: &str) -> Result<Transaction<'_>, sqlx::Error> {
        let settings = self.settings.clone();
        let begin = match &settings.begin {
            Some(begin) => format!("{};SET TRANSACTION {mode}", begin.as_str()),
            None => format!("BEGIN {mode}"),
        };
        let transaction = sqlx::Connection::begin_with(&mut **self, AssertSqlSafe(begin)).await?;
        Ok(Transaction(PgConnection { driver: Driver::Transaction(transaction), settings }))
    }
}

/// A transaction or a savepoint. Dropping it without [`Transaction::commit`] rolls it back.
#[derive(Debug)]
pub(in crate::timescale) struct Transaction<'c>(PgConnection<'c>);

impl Transaction<'_> {
    pub(in crate::timescale) async fn commit(self) -> Result<(), sqlx::Error> {
        match self.0.driver {
            Driver::Transaction(transaction) => transaction.commit().await,
            Driver::Pooled(_) | Driver::Unpooled(_) => Ok(()),
        }
    }

    pub(in crate::timescale) async fn rollback(self) -> Result<(), sqlx::Error> {
        match self.0.driver {
            Driver::Transaction(transaction) => transaction.rollback().await,
            Driver::Pooled(_) | Driver::Unpooled(_) => Ok(()),
        }
    }
}

impl<'c> Deref for Transaction<'c> {
    type Target = PgConnection<'c>;
    fn deref(&self) -> &PgConnection<'c> {
        &self.0
    }
}

impl<'c> DerefMut for Transaction<'c> {
    fn deref_mut(&mut self) -> &mut PgConnection<'c> {
        &mut self.0
    }
}

impl Deref for PgConnection<'_> {
    type Target = sqlx::PgConnection;
    fn deref(&self) -> &sqlx::PgConnection {
        match &self.driver {
            Driver::Pooled(connection) => connection,
            Driver::Unpooled(connection) => connection,
            Driver::Transaction(transaction) => transaction,
        }
    }
}

impl DerefMut for PgConnection<'_> {
    fn deref_mut(&mut self) -> &mut sqlx::PgConnection {
        match &mut self.driver {
            Driver::Pooled(connection) => connection,
            Driver::Unpooled(connection) => connection,
            Driver::Transaction(transaction) => transaction,
        }
    }
}

/// Statements outside a transaction get a separate transaction if their settings need one.
impl<'c, 't: 'c> Executor<'c> for &'c mut PgConnection<'t> {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if self.needs_transaction() {
            let rows = async move {
                let mut transaction = self.begin().await?;
                let rows: Vec<_> = (&mut *transaction).fetch_many(query).try_collect().await?;
                transaction.commit().await?;
                Ok(stream::iter(rows.into_iter().map(Ok)))
            };
            return rows.try_flatten_stream().boxed();
        }
        if self.settings.named_statements {
            (&mut **self).fetch_many(query)
        } else {
            (&mut **self).fetch_many(Unnamed(query))
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        if self.needs_transaction() {
            let row = async move {
                let mut transaction = self.begin().await?;
                let row = (&mut *transaction).fetch_optional(query).await?;
                transaction.commit().await?;
                Ok(row)
            };
            return row.boxed();
        }
        if self.settings.named_statements {
            (&mut **self).fetch_optional(query)
        } else {
            (&mut **self).fetch_optional(Unnamed(query))
        }
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        (&mut **self).prepare_with(sql, parameters)
    }
}

/// A statement without a name on the server.
struct Unnamed<E>(E);

impl<'q, E: Execute<'q, Postgres>> Execute<'q, Postgres> for Unnamed<E> {
    fn sql(self) -> SqlStr {
        self.0.sql()
    }
    fn statement(&self) -> Option<&PgStatement> {
        self.0.statement()
    }
    fn take_arguments(&mut self) -> Result<Option<PgArguments>, BoxDynError> {
        self.0.take_arguments()
    }
    fn persistent(&self) -> bool {
        false
    }
}
