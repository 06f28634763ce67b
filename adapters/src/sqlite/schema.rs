//! The schema. Every change runs in one transaction that holds the write lock, so several processes may call
//! `ensure_schema` at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind as IoKind;
use std::path::Path;
use std::time::{Duration, Instant};

use qi_core::store::SchemaReport;
use qi_core::store::kit::evolution;
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::error::Cause;
use super::table::{OWNERS_TABLE, Table, definition};

/// The version of the tables that all datasets share. The file stores it as its `user_version`.
const VERSION: u32 = 1;

/// The `application_id` of the file: the letters `qi_p`.
const APPLICATION: i64 = 0x7169_5f70;

/// The table of the lines that describe each dataset.
const DATASETS_TABLE: &str = "CREATE TABLE _datasets (dataset TEXT NOT NULL, position INTEGER NOT NULL, \
    line TEXT NOT NULL, PRIMARY KEY (dataset, position)) STRICT, WITHOUT ROWID";

/// Selects the write-ahead log, which the file records. Not possible in a transaction.
const JOURNAL_MODE: &str = "PRAGMA journal_mode = WAL";

/// The pause between two attempts to change the journal mode.
const JOURNAL_RETRY: Duration = Duration::from_millis(10);

/// A statement with its description in the report.
pub(super) struct Change {
    description: Option<String>,
    pub(super) sql: String,
}

/// The state of a file.
#[derive(Default)]
struct Current {
    version: i64,
    application: i64,
    tables: BTreeSet<String>,
    /// The lines of each dataset.
    datasets: BTreeMap<String, Vec<String>>,
}

/// Creates an empty file, which is an empty database, if the file is absent.
pub(super) fn create_file(path: &Path) -> Result<(), Cause> {
    match std::fs::OpenOptions::new().write(true).create_new(true).open(path) {
        Err(error) if error.kind() != IoKind::AlreadyExists => Err(sqlx::Error::Io(error).into()),
        _ => Ok(()),
    }
}

/// Applies all missing changes.
pub(super) async fn ensure(
    connection: &mut SqliteConnection,
    tables: &[Table],
    lock_timeout: Duration,
) -> Result<SchemaReport, Cause> {
    // Checks the file before the change of its journal mode.
    let planned = plan(connection, tables).await?;
    set_journal_mode(connection, lock_timeout).await?;
    if planned.is_empty() {
        return Ok(SchemaReport::new(VERSION, Vec::new()));
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut applied = Vec::new();
    let changes = plan(&mut transaction, tables).await?;
    for Change { description, sql } in changes.into_iter().filter(|change| change.sql != JOURNAL_MODE) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
        applied.extend(description);
    }
    transaction.commit().await?;
    Ok(SchemaReport::new(VERSION, applied))
}

/// Runs [`JOURNAL_MODE`]. SQLite does not wait for a lock in this statement.
async fn set_journal_mode(connection: &mut SqliteConnection, lock_timeout: Duration) -> Result<(), Cause> {
    let started = Instant::now();
    loop {
        match sqlx::query(JOURNAL_MODE).fetch_one(&mut *connection).await.map_err(Cause::from) {
            Err(cause) if cause.is_busy() && started.elapsed() < lock_timeout => {
                tokio::time::sleep(JOURNAL_RETRY).await;
            }
            result => {
                let mode: String = result?.try_get(0)?;
                if mode == "wal" {
                    return Ok(());
                }
                return Err(Cause::Schema {
                    rule: format!("the file system does not support WAL, only {mode}"),
                });
            }
        }
    }
}

/// Returns the missing changes of a file.
pub(super) async fn plan(connection: &mut SqliteConnection, tables: &[Table]) -> Result<Vec<Change>, Cause> {
    // One snapshot, because another process may create the schema at the same time.
    let mut snapshot = connection.begin().await?;
    let number = async |connection: &mut SqliteConnection, sql: &'static str| -> Result<i64, Cause> {
        Ok(sqlx::query(sql).fetch_one(connection).await?.try_get(0)?)
    };
    let mut current = Current {
        version: number(&mut snapshot, "PRAGMA user_version").await?,
        application: number(&mut snapshot, "PRAGMA application_id").await?,
        ..Current::default()
    };
    let found = sqlx::query("SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')");
    for row in found.fetch_all(&mut *snapshot).await? {
        current.tables.insert(row.try_get(0)?);
    }
    if current.tables.contains("_datasets") {
        let lines = sqlx::query("SELECT dataset, line FROM _datasets ORDER BY dataset, position");
        for row in lines.fetch_all(&mut *snapshot).await? {
            current.datasets.entry(row.try_get(0)?).or_default().push(row.try_get(1)?);
        }
    }
    snapshot.rollback().await?;
    changes(&current, tables)
}

/// Returns the changes of a file that does not exist yet.
pub(super) fn plan_of_new_file(tables: &[Table]) -> Result<Vec<Change>, Cause> {
    changes(&Current::default(), tables)
}

fn changes(current: &Current, tables: &[Table]) -> Result<Vec<Change>, Cause> {
    if current.version > i64::from(VERSION) && current.application == APPLICATION {
        let newer = current.version;
        let rule =
            format!("schema version {newer} is newer than this version of the library, which has {VERSION}");
        return Err(Cause::Schema { rule });
    }
    let is_new = current.application == 0 && current.tables.is_empty();
    if !is_new && current.application != APPLICATION {
        return Err(Cause::Schema { rule: "the file is a SQLite database of another program".to_owned() });
    }
    let mut changes = Vec::new();
    let mut change = |description: Option<String>, sql: String| changes.push(Change { description, sql });
    if is_new {
        change(None, JOURNAL_MODE.to_owned());
        change(None, OWNERS_TABLE.to_owned());
        change(None, DATASETS_TABLE.to_owned());
        change(None, format!("PRAGMA application_id = {APPLICATION}"));
        change(Some("migration step 1: tables".to_owned()), format!("PRAGMA user_version = {VERSION}"));
    }
    for table in tables {
        let dataset = table.dataset;
        let is_stored = current.tables.contains(dataset.name());
        let recorded = current.datasets.get(dataset.name()).map_or(&[][..], Vec::as_slice);
        if is_stored && recorded.is_empty() {
            let rule = format!("table {dataset} was not created by this library");
            return Err(Cause::Schema { rule });
        }
        if !is_stored {
            change(Some(format!("table {dataset}")), table.create());
        }
        let lines = evolution::lines(dataset);
        let to_record = match recorded {
            [] => (0..lines.len()).collect(),
            recorded => evolution::compare(dataset, recorded)?,
        };
        for at in to_record {
            let mut description = None;
            // The first line is the key. An enumeration with more names needs no other type.
            if is_stored && let Some(column) = at.checked_sub(1).and_then(|at| dataset.values().get(at)) {
                let is_new = at >= recorded.len();
                let what = if is_new { "column" } else { "enumeration names of" };
                description = Some(format!("{what} {dataset}.{}", column.name));
                if is_new {
                    let sql = format!("ALTER TABLE {} ADD COLUMN {}", table.name, definition(column));
                    change(description.take(), sql);
                }
            }
            // No line contains a quote.
            let sql = format!("INSERT OR REPLACE INTO _datasets VALUES ('{dataset}', {at}, '{}')", lines[at]);
            change(description, sql);
        }
    }
    Ok(changes)
}
