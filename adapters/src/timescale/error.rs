//! Errors of the driver and the server, and their mapping to the library's errors in one table.

use std::time::Duration;

use qi_core::{Error, ErrorKind, Operation, RetryAdvice};

use super::BACKEND;

/// The cause of a failed call, before the operation is known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    /// An error of the driver or the server.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// The pool was exhausted, so no connection was free within the acquire timeout.
    #[error("all {in_use} connections of the pool are in use")]
    PoolExhausted { in_use: u32 },
    /// No connection was opened within the acquire timeout, although the pool was not exhausted.
    #[error("no connection within {timeout:?}")]
    AcquireTimeout { timeout: Duration },
    /// A schema that does not match this program.
    #[error("{rule}")]
    Schema { rule: String },
    /// A lock of a table was not granted in any attempt.
    #[error(
        "a schema change did not get the lock of its table in {attempts} attempts; end the sessions with long \
         transactions on the table (pg_stat_activity.xact_start), or raise `server_limits.schema_lock_timeout`"
    )]
    TableLocked { attempts: u32, source: sqlx::Error },
    /// Another process held the lock of the schema for the entire bulk timeout.
    #[error("another process changes the schema; repeat the call when that process has finished")]
    SchemaLocked,
    /// Transactions that began before the announcement of a watermark did not end within the bulk timeout.
    #[error(
        "{count} transactions that may change ticks did not end; end the sessions with long transactions on the table \
         qi_bars_stale (pg_stat_activity.xact_start)"
    )]
    WritersRunning { count: usize },
    /// A chunk was dropped or converted after the snapshot of a call, so the snapshot lacks its ticks.
    #[error("a chunk was dropped or converted during the call")]
    ChunkDropped,
    /// The ticks of a materialized bar were removed without a stale mark.
    #[error("a materialized bar has no ticks; mark its hours with qi_mark_stale")]
    BarWithoutTicks,
    /// A setting that needs another edition of the server.
    #[error("{rule}")]
    Edition { rule: String },
    /// An error of the core library about a value.
    #[error(transparent)]
    Core(#[from] Error),
}

/// The server's error codes, from "PostgreSQL Error Codes" (Appendix A of the documentation). A row contains a full
/// code or a class of two characters. The first matching row applies.
const SQLSTATES: &[(&str, ErrorKind, &str)] = &[
    ("22003", ErrorKind::InvalidInput, "store.timescale.numeric_range"),
    ("22P02", ErrorKind::InvalidInput, "store.timescale.syntax"),
    ("3D000", ErrorKind::Config, "store.timescale.no_database"),
    ("28", ErrorKind::Unauthorized, "store.timescale.login"),
    ("42501", ErrorKind::Unauthorized, "store.timescale.permission"),
    ("42P01", ErrorKind::SchemaMismatch, "store.timescale.no_table"),
    // PostgreSQL reserves the names of its system columns, such as `xmin`.
    ("42701", ErrorKind::SchemaMismatch, "store.timescale.column_name"),
    ("42703", ErrorKind::SchemaMismatch, "store.timescale.no_column"),
    ("3F000", ErrorKind::SchemaMismatch, "store.timescale.no_schema"),
    ("42883", ErrorKind::SchemaMismatch, "store.timescale.no_function"),
    ("0A000", ErrorKind::Unsupported, "store.timescale.unsupported"),
    ("08", ErrorKind::Unavailable, "store.timescale.connection"),
    ("57P01", ErrorKind::Unavailable, "store.timescale.shutdown"),
    ("57P02", ErrorKind::Unavailable, "store.timescale.crash"),
    ("57P03", ErrorKind::Unavailable, "store.timescale.starting"),
    ("57P05", ErrorKind::Unavailable, "store.timescale.idle_session"),
    ("25006", ErrorKind::Unavailable, "store.timescale.read_only"),
    ("53100", ErrorKind::Unavailable, DISK_FULL),
    ("57014", ErrorKind::Timeout, "store.timescale.statement_timeout"),
    ("55P03", ErrorKind::Timeout, "store.timescale.lock_timeout"),
    ("25P03", ErrorKind::Timeout, "store.timescale.idle_transaction"),
    ("25P04", ErrorKind::Timeout, "store.timescale.transaction_timeout"),
    ("53300", ErrorKind::Overloaded, "store.timescale.connections"),
    ("40001", ErrorKind::Conflict, "store.timescale.serialization"),
    ("40P01", ErrorKind::Conflict, "store.timescale.deadlock"),
    ("23505", ErrorKind::Conflict, "store.timescale.unique"),
    ("23514", ErrorKind::InvalidInput, "store.timescale.check"),
    // Two transactions of one connection ran on two sessions of the server.
    ("26000", ErrorKind::Config, "store.timescale.pooler_statement_missing"),
    ("42P05", ErrorKind::Config, "store.timescale.pooler_statement_exists"),
    ("42P07", ErrorKind::SchemaMismatch, "store.timescale.table_exists"),
    ("XX001", ErrorKind::CorruptData, "store.timescale.data_corrupted"),
    ("XX002", ErrorKind::CorruptData, "store.timescale.index_corrupted"),
    // Other sessions hold the server's memory or its lock table, and release them when their transactions end.
    ("53200", ErrorKind::Overloaded, "store.timescale.server_memory"),
    ("53400", ErrorKind::Internal, "store.timescale.server_limit"),
];

/// The prefix of the codes of a prepared statement that belongs to another session.
const POOLER: &str = "store.timescale.pooler";

/// The code of a full disk. Never retried, unlike other unavailability, because waiting frees no space.
const DISK_FULL: &str = "store.timescale.disk_full";

/// The code of a chunk that was dropped or converted during a call.
const DROPPED_CHUNK: &str = "store.timescale.dropped_chunk";

/// The code of a unique violation. COPY fails with this code if a record already exists.
pub(super) const UNIQUE_VIOLATION: &str = "23505";

/// PostgreSQL's message for a table that was dropped during a statement.
const MISSING_RELATION_MESSAGE: &str = "could not open relation with OID";

/// PgBouncer's message for a startup parameter that it does not support, for example `options` of the URL.
const STARTUP_PARAMETER_MESSAGE: &str = "unsupported startup parameter";

/// The code of a lock that was not granted within the lock timeout.
pub(super) const LOCK_NOT_AVAILABLE: &str = "55P03";

/// The SQLSTATE of a transaction that the server ended because of a deadlock.
pub(super) const DEADLOCK: &str = "40P01";

/// The code of a statement on ticks that adds no stale marks although the schema has materialized bars.
pub(super) const UNMARKED: &str = "QI001";

/// The beginning of the names of the tables of materialized bars.
const BARS_TABLES: &str = "qi_bars_";

/// The code of an object that already exists.
pub(super) const DUPLICATE_OBJECT: &str = "42710";

/// Returns whether the server responded with this SQLSTATE.
pub(super) fn has_state(error: &sqlx::Error, state: &str) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == state)
}

fn classify_state(state: &str) -> (ErrorKind, &'static str) {
    SQLSTATES
        .iter()
        .find(|(known, ..)| state.starts_with(known))
        .map_or((ErrorKind::Internal, "store.timescale.server"), |(_, kind, code)| (*kind, *code))
}

fn classify(error: &sqlx::Error) -> (ErrorKind, &'static str) {
    match error {
        // A chunk was dropped between the planning and the execution of a statement. PostgreSQL has no code for that.
        sqlx::Error::Database(e)
            if has_state(error, "XX000") && e.message().contains(MISSING_RELATION_MESSAGE) =>
        {
            (ErrorKind::Conflict, DROPPED_CHUNK)
        }
        // Materialized bars were switched on or off after the connection was borrowed. A retry sees the new state.
        sqlx::Error::Database(e)
            if has_state(error, UNMARKED)
                || (has_state(error, "42P01") && e.message().contains(BARS_TABLES)) =>
        {
            (ErrorKind::Conflict, "store.timescale.bars_switched")
        }
        // PgBouncer's error for a startup parameter, which a retry would send again.
        sqlx::Error::Database(e)
            if has_state(error, "08P01") && e.message().contains(STARTUP_PARAMETER_MESSAGE) =>
        {
            (ErrorKind::Config, "store.timescale.startup_parameter")
        }
        sqlx::Error::Database(e) => classify_state(&e.code().unwrap_or_default()),
        // The driver's error for a failed TLS handshake, for example because of an untrusted certificate.
        sqlx::Error::Io(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            (ErrorKind::Unavailable, "store.timescale.tls")
        }
        sqlx::Error::Io(_) => (ErrorKind::Unavailable, "store.timescale.io"),
        sqlx::Error::Tls(_) => (ErrorKind::Unavailable, "store.timescale.tls"),
        // The driver cannot interpret the server's messages. A new connection may work.
        sqlx::Error::Protocol(_) => (ErrorKind::Unavailable, "store.timescale.protocol"),
        sqlx::Error::PoolTimedOut => (ErrorKind::Overloaded, "store.timescale.pool"),
        sqlx::Error::PoolClosed => (ErrorKind::Closed, "store.timescale.closed"),
        sqlx::Error::Configuration(_) => (ErrorKind::Config, "store.timescale.config"),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (ErrorKind::CorruptData, "store.timescale.value")
        }
        sqlx::Error::TypeNotFound { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. } => {
            (ErrorKind::SchemaMismatch, "store.timescale.no_column")
        }
        _ => (ErrorKind::Internal, "store.timescale.driver"),
    }
}

/// The SQLSTATEs, or their prefixes, that make a connection unusable. The connection is broken, or its server is
/// shutting down or read-only.
const CONNECTION_ENDING_STATES: &[&str] = &["08", "25006", "25P03", "25P04", "57P"];

impl Cause {
    /// Returns whether the connection that returned this error must not be used again.
    pub(super) fn ends_connection(&self) -> bool {
        let Self::Sql(error) = self else { return false };
        match error {
            sqlx::Error::Database(error) => error
                .code()
                .is_some_and(|state| CONNECTION_ENDING_STATES.iter().any(|end| state.starts_with(end))),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed => true,
            _ => false,
        }
    }

    /// Returns the public error of `operation`, with the original error as its source.
    pub(super) fn into_error(self, operation: Operation) -> Error {
        let new = |kind, code: &'static str| Error::new(kind, code, operation).with_backend(BACKEND);
        match self {
            Self::Core(error) => error.with_operation(operation).with_backend(BACKEND),
            Self::PoolExhausted { in_use } => new(ErrorKind::Overloaded, "store.timescale.pool")
                .with_message(self)
                .with_context("in_use", in_use),
            Self::AcquireTimeout { .. } => {
                new(ErrorKind::Unavailable, "store.timescale.no_response").with_message(self)
            }
            Self::Schema { .. } => {
                new(ErrorKind::SchemaMismatch, "store.timescale.schema").with_message(self)
            }
            Self::TableLocked { .. } => {
                let error = new(ErrorKind::Timeout, "store.timescale.lock_timeout").with_message(self);
                error.with_context("sqlstate", LOCK_NOT_AVAILABLE)
            }
            Self::SchemaLocked => new(ErrorKind::Timeout, "store.timescale.schema_locked").with_message(self),
            Self::WritersRunning { .. } => {
                new(ErrorKind::Timeout, "store.timescale.writers_running").with_message(self)
            }
            Self::ChunkDropped => new(ErrorKind::Conflict, DROPPED_CHUNK).with_message(self),
            Self::BarWithoutTicks => {
                new(ErrorKind::CorruptData, "store.timescale.bar_without_ticks").with_message(self)
            }
            Self::Edition { .. } => new(ErrorKind::Unsupported, "store.timescale.edition").with_message(self),
            Self::Sql(sqlx::Error::PoolClosed) => {
                Error::closed("store.timescale.closed", operation).with_backend(BACKEND)
            }
            Self::Sql(source) => {
                let (kind, code) = classify(&source);
                let mut error = new(kind, code);
                if let Some(state) = source.as_database_error().and_then(sqlx::error::DatabaseError::code) {
                    error = error.with_context("sqlstate", state);
                }
                if code == DISK_FULL {
                    error = error.with_retry(RetryAdvice::Never);
                }
                if code.starts_with(POOLER) {
                    error =
                        error.with_message("a pooler in transaction mode needs `pooler = \"transaction\"`");
                }
                error.with_source(source)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::io;

    use super::*;

    /// An error of the server.
    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct ServerError {
        state: &'static str,
        message: &'static str,
    }

    impl ServerError {
        fn sql(state: &'static str, message: &'static str) -> sqlx::Error {
            sqlx::Error::Database(Box::new(Self { state, message }))
        }
    }

    impl sqlx::error::DatabaseError for ServerError {
        fn message(&self) -> &str {
            self.message
        }
        fn code(&self) -> Option<Cow<'_, str>> {
            Some(Cow::Borrowed(self.state))
        }
        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }
    }

    fn error_of_state(state: &'static str) -> Error {
        Cause::Sql(ServerError::sql(state, "")).into_error(Operation::Insert)
    }

    /// Checks every row of the table of error codes, with the codes of PostgreSQL's list.
    #[test]
    fn every_sqlstate_has_a_kind() {
        use ErrorKind::{
            Config, Conflict, CorruptData, Internal, InvalidInput, Overloaded, SchemaMismatch, Timeout,
            Unauthorized, Unavailable, Unsupported,
        };
        for (states, kind, retried) in [
            (&["22003", "22P02", "23514"][..], InvalidInput, false),
            (&["3D000", "26000", "42P05"], Config, false),
            (&["28000", "28P01", "42501"], Unauthorized, false),
            (&["42P01", "42701", "42703", "3F000", "42883", "42P07"], SchemaMismatch, false),
            (&["0A000"], Unsupported, false),
            (&["08000", "08001", "08003", "08004", "08006", "08007", "08P01"], Unavailable, true),
            (&["57P01", "57P02", "57P03", "57P05", "25006"], Unavailable, true),
            (&["53100"], Unavailable, false),
            (&["57014", "55P03", "25P03", "25P04"], Timeout, true),
            (&["53200", "53300"], Overloaded, true),
            (&["40001", "40P01", "23505"], Conflict, true),
            (&["XX001", "XX002"], CorruptData, false),
            (&["53400"], Internal, false),
            // A code outside the table needs investigation, so it is not retried.
            (&["XX000", "42601", "P0001", "54000", ""], Internal, false),
        ] {
            for state in states {
                let error = error_of_state(state);
                assert_eq!((error.kind(), error.retry().is_retryable()), (kind, retried), "{state}");
                assert_eq!((error.operation(), error.backend()), ("insert", Some(BACKEND)));
                assert_eq!(error.context_value("sqlstate"), Some(*state));
                assert!(error.code().starts_with("store.timescale."), "{}", error.code());
                assert!(error.find_source::<sqlx::Error>().is_some(), "the original is the source");
            }
        }
    }

    #[test]
    fn errors_page_lists_every_sqlstate_under_its_kind() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        let page = std::fs::read_to_string(page).unwrap();
        for (state, kind, _) in SQLSTATES {
            let row = format!("| `{kind:?}` |");
            let shown = if state.len() == 2 { format!("{state}*") } else { (*state).to_owned() };
            let mut cells = page.lines().filter(|l| l.starts_with(&row)).filter_map(|l| l.split('|').nth(4));
            let listed = cells.any(|cell| cell.split([' ', ',', '.', ';']).any(|code| code == shown));
            assert!(listed, "docs/errors.md does not list {shown} as {kind:?}");
        }
    }

    #[test]
    fn every_driver_error_has_a_kind() {
        use sqlx::Error as Sql;
        let of = |error: Sql| {
            let error = Cause::from(error).into_error(Operation::Range);
            (error.kind(), error.retry().is_retryable())
        };
        let text = || Box::<dyn std::error::Error + Send + Sync>::from("no");
        for error in
            [Sql::Io(io::ErrorKind::ConnectionReset.into()), Sql::Tls(text()), Sql::Protocol("?".into())]
        {
            assert_eq!(of(error), (ErrorKind::Unavailable, true));
        }
        let handshake = Sql::Io(io::Error::new(io::ErrorKind::InvalidData, "certificate"));
        assert_eq!(Cause::from(handshake).into_error(Operation::Range).code(), "store.timescale.tls");
        assert_eq!(of(Sql::PoolTimedOut), (ErrorKind::Overloaded, true));
        assert_eq!(of(Sql::PoolClosed), (ErrorKind::Closed, false));
        assert_eq!(of(Sql::Configuration(text())), (ErrorKind::Config, false));
        assert_eq!(of(Sql::Decode(text())), (ErrorKind::CorruptData, false));
        let column = Sql::ColumnDecode { index: "price".into(), source: text() };
        assert_eq!(of(column), (ErrorKind::CorruptData, false));
        assert_eq!(of(Sql::ColumnNotFound("x".into())), (ErrorKind::SchemaMismatch, false));
        assert_eq!(of(Sql::TypeNotFound { type_name: "x".into() }), (ErrorKind::SchemaMismatch, false));
        assert_eq!(of(Sql::Encode(text())), (ErrorKind::Internal, false));
    }

    #[test]
    fn a_chunk_dropped_during_a_statement_is_a_conflict() {
        let dropped = ServerError::sql("XX000", "could not open relation with OID 4711");
        let error = Cause::Sql(dropped).into_error(Operation::Insert);
        assert_eq!((error.kind(), error.retry().is_retryable()), (ErrorKind::Conflict, true));
    }

    #[test]
    fn unsupported_startup_parameter_is_a_configuration_error() {
        for parameter in ["extra_float_digits", "options", "in options: jit"] {
            let message: &'static str = format!("unsupported startup parameter: {parameter}").leak();
            let error = Cause::Sql(ServerError::sql("08P01", message)).into_error(Operation::Range);
            assert_eq!((error.kind(), error.retry().is_retryable()), (ErrorKind::Config, false));
            assert_eq!(error.code(), "store.timescale.startup_parameter");
        }
    }

    #[test]
    fn connection_errors_and_read_only_close_the_connection() {
        let state = |state| Cause::Sql(ServerError::sql(state, ""));
        for ended in ["08006", "08P01", "25006", "25P03", "57P01", "57P02", "57P03", "57P05"] {
            assert!(state(ended).ends_connection(), "{ended}");
        }
        for kept in ["23505", "40P01", "42P01", "53300", "57014", "55P03", "25P02"] {
            assert!(!state(kept).ends_connection(), "{kept}");
        }
        assert!(Cause::Sql(sqlx::Error::Io(io::ErrorKind::BrokenPipe.into())).ends_connection());
        assert!(Cause::Sql(sqlx::Error::Protocol("unexpected message".into())).ends_connection());
        assert!(!Cause::Sql(sqlx::Error::RowNotFound).ends_connection());
        assert!(!Cause::AcquireTimeout { timeout: Duration::ZERO }.ends_connection());
    }

    #[test]
    fn every_adapter_error_has_a_kind() {
        let of = |cause: Cause| {
            let error = cause.into_error(Operation::Range);
            (error.kind(), error.retry().is_retryable())
        };
        assert_eq!(of(Cause::PoolExhausted { in_use: 8 }), (ErrorKind::Overloaded, true));
        assert_eq!(of(Cause::AcquireTimeout { timeout: Duration::ZERO }), (ErrorKind::Unavailable, true));
        assert_eq!(of(Cause::Schema { rule: String::new() }), (ErrorKind::SchemaMismatch, false));
        assert_eq!(of(Cause::Edition { rule: String::new() }), (ErrorKind::Unsupported, false));
        assert_eq!(of(Cause::SchemaLocked), (ErrorKind::Timeout, true));
        assert_eq!(of(Cause::ChunkDropped), (ErrorKind::Conflict, true));
        assert_eq!(of(Cause::BarWithoutTicks), (ErrorKind::CorruptData, false));
        let source = ServerError::sql(LOCK_NOT_AVAILABLE, "");
        assert_eq!(of(Cause::TableLocked { attempts: 3, source }), (ErrorKind::Timeout, true));
    }

    #[test]
    fn codes_are_unique() {
        let codes: std::collections::BTreeSet<_> = SQLSTATES.iter().map(|(.., code)| code).collect();
        assert_eq!(codes.len(), SQLSTATES.len());
    }
}
