//! Errors of the driver and of SQLite, and their mapping to the library's errors in one table.

use std::path::Path;

use qi_core::{Error, ErrorKind, Operation, RetryAdvice};
use sqlx::error::DatabaseError;

use super::BACKEND;

/// The cause of a failed call, before the operation is known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    /// An error of the driver or of SQLite.
    #[error(transparent)]
    Sql(#[from] sqlx::Error),
    /// The file does not exist, although its folder exists.
    #[error("the file does not exist; ensure_schema creates it")]
    NoFile,
    /// A folder has the path of the file.
    #[error("the path is a folder, not a file")]
    Folder,
    /// A schema that does not match this program.
    #[error("{rule}")]
    Schema { rule: String },
    /// A stored value that is no valid record.
    #[error(transparent)]
    Corrupt(Error),
    /// An error of the core library about a value.
    #[error(transparent)]
    Core(#[from] Error),
}

/// The codes of a full disk. Not retried, because waiting frees no space.
const DISK_FULL: &str = "store.sqlite.disk_full";

/// The result codes of SQLite, from "Result and Error Codes" (sqlite.org/rescode.html). An extended code contains the
/// primary code in its lowest 8 bits. The first matching row applies.
const CODES: &[(i32, ErrorKind, &str)] = &[
    (3, ErrorKind::Unauthorized, "store.sqlite.permission"),
    // The transaction began on a snapshot that another process has changed.
    (517, ErrorKind::Conflict, "store.sqlite.snapshot"),
    (5, ErrorKind::Timeout, "store.sqlite.busy"),
    (6, ErrorKind::Conflict, "store.sqlite.locked"),
    (7, ErrorKind::Internal, "store.sqlite.memory"),
    (8, ErrorKind::Unauthorized, "store.sqlite.read_only"),
    (9, ErrorKind::Timeout, "store.sqlite.interrupt"),
    (10, ErrorKind::Unavailable, "store.sqlite.io"),
    (11, ErrorKind::CorruptData, "store.sqlite.corrupt"),
    (13, ErrorKind::Unavailable, DISK_FULL),
    (14, ErrorKind::Unavailable, "store.sqlite.cannot_open"),
    (15, ErrorKind::Conflict, "store.sqlite.lock_protocol"),
    (17, ErrorKind::Conflict, "store.sqlite.schema_changed"),
    (19, ErrorKind::SchemaMismatch, "store.sqlite.constraint"),
    (22, ErrorKind::Unsupported, "store.sqlite.large_files"),
    (23, ErrorKind::Unauthorized, "store.sqlite.denied"),
    (26, ErrorKind::CorruptData, "store.sqlite.not_a_database"),
];

/// The beginnings of messages with the general code 1 about a schema that is absent or has changed.
const SCHEMA_MESSAGES: &[&str] = &["no such table", "no such column", "table "];

fn code(error: &dyn DatabaseError) -> i32 {
    error.code().and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// Returns true if the permissions of the folder or a read-only file system reject the file. A retry does not help.
fn is_denied(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem)
}

fn classify(error: &sqlx::Error) -> (ErrorKind, &'static str) {
    match error {
        sqlx::Error::Database(error) => {
            let code = code(&**error);
            let known = CODES.iter().find(|(known, ..)| *known == code || *known == code & 0xff);
            match known {
                Some((_, kind, name)) => (*kind, name),
                None if SCHEMA_MESSAGES.iter().any(|message| error.message().starts_with(message)) => {
                    (ErrorKind::SchemaMismatch, "store.sqlite.no_table")
                }
                None => (ErrorKind::Internal, "store.sqlite.statement"),
            }
        }
        sqlx::Error::Io(error) if is_denied(error) => (ErrorKind::Unauthorized, "store.sqlite.permission"),
        sqlx::Error::Io(_) => (ErrorKind::Unavailable, "store.sqlite.io"),
        sqlx::Error::WorkerCrashed => (ErrorKind::Unavailable, "store.sqlite.worker"),
        sqlx::Error::PoolTimedOut => (ErrorKind::Overloaded, "store.sqlite.pool"),
        sqlx::Error::PoolClosed => (ErrorKind::Closed, "store.sqlite.closed"),
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
            (ErrorKind::CorruptData, "store.sqlite.value")
        }
        _ => (ErrorKind::Internal, "store.sqlite.driver"),
    }
}

impl Cause {
    /// Returns the cause of a failed attempt to open the file.
    pub(super) fn of_open(error: sqlx::Error, path: &Path) -> Self {
        let cannot_open = matches!(&error, sqlx::Error::Database(error) if code(&**error) & 0xff == 14);
        if !cannot_open {
            return error.into();
        }
        let folder = path.parent().is_some_and(Path::is_dir);
        // Only a file is opened, because opening a pipe waits for its writer.
        let found = match path.symlink_metadata() {
            Ok(_) if path.is_file() => std::fs::File::open(path).map(drop),
            found => found.map(drop),
        };
        match found {
            Ok(()) if path.is_dir() => Self::Folder,
            Err(missing) if folder && missing.kind() == std::io::ErrorKind::NotFound => Self::NoFile,
            Err(denied) if is_denied(&denied) => sqlx::Error::Io(denied).into(),
            _ => error.into(),
        }
    }

    /// Returns whether another connection held the lock for too long.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Sql(sqlx::Error::Database(error)) if code(&**error) & 0xff == 5)
    }

    /// Returns the public error of `operation`, with the original error as its source.
    pub(super) fn into_error(self, operation: Operation) -> Error {
        let new = |kind, code: &'static str| Error::new(kind, code, operation).with_backend(BACKEND);
        match self {
            Self::Core(error) => error.with_operation(operation).with_backend(BACKEND),
            Self::Corrupt(source) => {
                new(ErrorKind::CorruptData, "store.sqlite.value").with_message(&source).with_source(source)
            }
            Self::NoFile => new(ErrorKind::SchemaMismatch, "store.sqlite.no_file").with_message(self),
            Self::Folder => new(ErrorKind::Config, "store.sqlite.folder").with_message(self),
            Self::Schema { .. } => new(ErrorKind::SchemaMismatch, "store.sqlite.schema").with_message(self),
            Self::Sql(sqlx::Error::PoolClosed) => {
                Error::closed("store.sqlite.closed", operation).with_backend(BACKEND)
            }
            Self::Sql(source) => {
                let (kind, name) = classify(&source);
                let mut error = new(kind, name);
                if let sqlx::Error::Database(source) = &source {
                    error = error.with_context("sqlite_code", code(&**source));
                }
                if matches!(name, "store.sqlite.permission" | "store.sqlite.read_only") {
                    let rule = "the process must be able to write the file and its folder, even for reads";
                    error = error.with_message(rule);
                }
                if name == DISK_FULL {
                    error = error.with_retry(RetryAdvice::Never);
                }
                error.with_source(source)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{1}")]
    struct SqliteError(i32, &'static str);

    impl DatabaseError for SqliteError {
        fn message(&self) -> &str {
            self.1
        }
        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.to_string().into())
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

    fn error(code: i32, message: &'static str) -> Error {
        Cause::Sql(sqlx::Error::Database(Box::new(SqliteError(code, message)))).into_error(Operation::Insert)
    }

    /// Checks primary and extended codes of SQLite's list.
    #[test]
    fn every_result_code_has_a_kind() {
        use ErrorKind::{
            Conflict, CorruptData, Internal, SchemaMismatch, Timeout, Unauthorized, Unavailable, Unsupported,
        };
        for (codes, kind, retried) in [
            // BUSY, BUSY_RECOVERY, BUSY_TIMEOUT; INTERRUPT.
            (&[5, 261, 773, 9][..], Timeout, true),
            // BUSY_SNAPSHOT, LOCKED, LOCKED_SHAREDCACHE, PROTOCOL, SCHEMA.
            (&[517, 6, 262, 15, 17], Conflict, true),
            // IOERR_READ, IOERR_FSYNC, CANTOPEN, CANTOPEN_ISDIR.
            (&[266, 1_034, 14, 526], Unavailable, true),
            (&[13], Unavailable, false),
            // CORRUPT, CORRUPT_INDEX, NOTADB.
            (&[11, 779, 26], CorruptData, false),
            // PERM, READONLY, READONLY_DBMOVED, AUTH.
            (&[3, 8, 1_032, 23], Unauthorized, false),
            // CONSTRAINT_NOTNULL, CONSTRAINT_DATATYPE.
            (&[1_299, 3_091], SchemaMismatch, false),
            (&[22], Unsupported, false),
            // ERROR, NOMEM, MISUSE, RANGE.
            (&[1, 7, 21, 25], Internal, false),
        ] {
            for code in codes {
                let error = error(*code, "message");
                assert_eq!((error.kind(), error.retry().is_retryable()), (kind, retried), "{code}");
                assert_eq!((error.operation(), error.backend()), ("insert", Some(BACKEND)));
                assert_eq!(error.context_value("sqlite_code"), Some(&*code.to_string()));
                assert!(error.find_source::<sqlx::Error>().is_some(), "the original is the source");
            }
        }
        for message in ["no such table: ticks", "no such column: fee", "table ticks has no column named fee"]
        {
            assert_eq!(error(1, message).kind(), SchemaMismatch, "{message}");
        }
        assert_eq!(error(1, "near \"x\": syntax error").kind(), Internal);
    }

    #[test]
    fn a_folder_that_rejects_the_file_is_unauthorized_with_the_rule() {
        for kind in [std::io::ErrorKind::PermissionDenied, std::io::ErrorKind::ReadOnlyFilesystem] {
            let error = Cause::Sql(sqlx::Error::Io(kind.into())).into_error(Operation::EnsureSchema);
            assert_eq!((error.kind(), error.code()), (ErrorKind::Unauthorized, "store.sqlite.permission"));
            assert!(!error.retry().is_retryable(), "{error}");
            assert!(error.message().unwrap().contains("write the file and its folder"), "{error}");
        }
        let error = error(1_544, "attempt to write a readonly database");
        assert!(error.message().unwrap().contains("write the file and its folder"), "{error}");
    }

    #[test]
    fn codes_are_unique() {
        let names: std::collections::BTreeSet<_> = CODES.iter().map(|(.., name)| name).collect();
        assert_eq!(names.len(), CODES.len());
    }
}
