//! The schema, created and migrated in steps. `qi_migrations` records the steps of the library with their checksums.
//! `qi_datasets` records the columns of further datasets, and later changes of any dataset.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use qi_core::PriceTick;
use qi_core::record::{self, SeriesType};
use qi_core::store::SchemaReport;
use sqlx::migrate::{Migration, MigrationType};
use sqlx::{AssertSqlSafe, Row, SqlSafeStr};

use super::checks::{self, MissingObject};
use super::config::{Hypertables, TimescaleConfig};
use super::connect::{Connections, PgConnection, ServerInfo};
use super::error::{Cause, DEADLOCK, LOCK_NOT_AVAILABLE, has_state};
use super::materialized;
use super::policy;
use super::series;
use super::table::{Table, join, names};
use crate::legacy_datasets;
use qi_core::store::kit::evolution;

/// The table that records the steps.
const MIGRATIONS_TABLE: &str = "qi_migrations";

/// The table that records the columns of the datasets. Line 0 is the key.
const DATASETS_TABLE: &str = "qi_datasets";

/// The advisory lock for changes of the schema, which one transaction at a time holds. The number is arbitrary,
/// and the same in all versions. The lock covers the database instead of the schema, because CREATE
/// EXTENSION changes the database.
const SCHEMA_LOCK: i64 = 0x7169_5f73_6368_656d;

/// The advisory lock for steps outside a transaction. Such a step may take hours, and does not block `ensure_schema`.
const OUTSIDE_LOCK: i64 = 0x7169_5f69_6e64_6578;

/// The pause after a lock was not granted, so that the sessions that queued behind the request can run.
const LOCK_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The maximum number of attempts to get the locks of one step.
const MAX_LOCK_ATTEMPTS: u32 = 10;

/// Returns the migration steps of the library, oldest first. New steps are only appended. Each step is applied once.
fn migrations() -> Vec<Migration> {
    let step = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql.into_sql_str(), false)
    };
    vec![
        step(1, "tables", include_str!("migrations/0001_tables.sql")),
        step(2, "views", include_str!("migrations/0002_views.sql")),
        step(3, "series", include_str!("migrations/0003_series.sql")),
    ]
}

/// A missing change, with one or more statements.
pub(super) struct Step {
    /// The description of the step in [`SchemaReport::applied`].
    pub(super) label: String,
    pub(super) statements: Vec<String>,
    kind: StepKind,
    /// True if the step belongs to the transaction of the previous step.
    joins_previous: bool,
    /// True if the statements cannot run in a transaction, such as `CREATE INDEX CONCURRENTLY`. The created object is the
    /// only record of such a step, so an interrupted step is missing again.
    outside_transaction: bool,
    /// True if the schema can be used without the step.
    is_optional: bool,
}

enum StepKind {
    Plain,
    Extension,
    /// Creates this table.
    Table(&'static str),
    Migration(Migration),
    Hypertable(&'static str),
}

impl Step {
    pub(super) fn new(label: String, statements: Vec<String>) -> Self {
        Self {
            label,
            statements,
            kind: StepKind::Plain,
            joins_previous: false,
            outside_transaction: false,
            is_optional: false,
        }
    }

    /// Runs the step. Its statements contain only validated names and numbers.
    async fn run(&self, connection: &mut PgConnection<'_>, config: &TimescaleConfig) -> Result<(), Cause> {
        if let StepKind::Migration(step) = &self.kind {
            return run_migration(step, connection, config).await;
        }
        for sql in &self.statements {
            let done = sqlx::query(AssertSqlSafe(sql.clone())).execute(&mut *connection).await;
            done.map_err(|error| self.classify_error(error))?;
        }
        Ok(())
    }

    fn classify_error(&self, error: sqlx::Error) -> Cause {
        let state = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        match (&self.kind, state.as_deref()) {
            // "extension is not available" or "must be preloaded": a retry does not help.
            (StepKind::Extension, Some("0A000" | "58P01" | "55000" | "XX000")) => Cause::Edition {
                rule: format!(
                    "cannot create the extension TimescaleDB (not needed with `hypertables = \"off\"`): {error}"
                ),
            },
            (StepKind::Hypertable(table), Some("0A000")) => Cause::Schema {
                rule: format!(
                    "table {table}: an ordinary table with rows cannot become a hypertable automatically; \
                     docs/backends/timescale.md describes the conversion"
                ),
            },
            _ => Cause::Sql(error),
        }
    }
}

/// Runs a step of the library and records it in the format of the driver. The driver's own function uses named prepared
/// statements, which a pooler in transaction mode may reject.
async fn run_migration(
    step: &Migration,
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
) -> Result<(), Cause> {
    let (table, started) = (config.relation(MIGRATIONS_TABLE), Instant::now());
    // The recorded checksums forbid changes of the texts, which do not contain the schema.
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {table} (version bigint PRIMARY KEY, description text NOT NULL, \
         installed_on timestamptz NOT NULL DEFAULT now(), success boolean NOT NULL, checksum bytea NOT NULL, \
         execution_time bigint NOT NULL); SET LOCAL search_path = \"{}\"; {}",
        config.schema,
        step.sql.as_str()
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await?;
    let record = format!(
        "INSERT INTO {table} (version, description, success, checksum, execution_time) VALUES ($1, $2, true, $3, $4)"
    );
    sqlx::query(AssertSqlSafe(record))
        .bind(step.version)
        .bind(&*step.description)
        .bind(&*step.checksum)
        .bind(i64::try_from(started.elapsed().as_nanos()).unwrap_or(i64::MAX))
        .execute(connection)
        .await?;
    Ok(())
}

/// The changes that a call may apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Missing objects, and the settings of tables that the call creates.
    Missing,
    /// The settings of existing tables too.
    All,
}

/// Applies all changes of the scope. Each step is a transaction under a lock of the database, so a call that was killed
/// is continued by the next call.
pub(super) async fn ensure(
    connections: &Connections,
    config: &TimescaleConfig,
    scope: Scope,
) -> Result<SchemaReport, Cause> {
    let mut connection = connections.connect_unpooled().await?;
    let outcome = ensure_on(&mut connection, (connections, config), scope).await;
    connection.close().await;
    outcome
}

async fn ensure_on(
    connection: &mut PgConnection<'_>,
    (connections, config): (&Connections, &TimescaleConfig),
    scope: Scope,
) -> Result<SchemaReport, Cause> {
    const POLL_INTERVAL: Duration = Duration::from_millis(100);
    let version = migrations().iter().map(|step| step.version).max().unwrap_or(0);
    let version = u32::try_from(version).unwrap_or(u32::MAX);
    let (mut applied, mut skipped) = (Vec::new(), Vec::new());
    let mut attempts = 0;
    let mut busy_since = None;
    loop {
        let attempt = match apply_next(connection, config, scope, (&applied, &skipped)).await {
            Ok(Attempt::Outside(step)) => {
                run_outside_transaction(&step, connection, (connections, config)).await
            }
            other => other,
        };
        match attempt {
            Ok(Attempt::Complete { differs }) => {
                let mut report = SchemaReport::new(version, applied);
                report.differs = skipped;
                report.differs.extend(differs);
                return Ok(report);
            }
            Ok(Attempt::Skipped(label)) => skipped.push(label),
            Ok(Attempt::Applied(labels)) => {
                applied.extend(labels);
                (attempts, busy_since) = (0, None);
            }
            // A waiting statement would hold a snapshot, and `CREATE INDEX CONCURRENTLY` waits for all snapshots.
            // Therefore the lock is polled.
            Ok(Attempt::Busy | Attempt::Outside(_)) => {
                let since = *busy_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= config.server_limits.bulk_timeout {
                    return Err(Cause::SchemaLocked);
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(cause) => pause_after_lock_failure(cause, &mut attempts).await?,
        }
    }
}

/// Waits before the next attempt to get a lock. Returns other errors, and the error of the last attempt.
async fn pause_after_lock_failure(cause: Cause, attempts: &mut u32) -> Result<(), Cause> {
    let source = match cause {
        Cause::Sql(error) if has_state(&error, LOCK_NOT_AVAILABLE) || has_state(&error, DEADLOCK) => error,
        cause => return Err(cause),
    };
    *attempts += 1;
    if *attempts == MAX_LOCK_ATTEMPTS {
        return Err(Cause::TableLocked { attempts: *attempts, source });
    }
    tokio::time::sleep(LOCK_RETRY_PAUSE).await;
    Ok(())
}

/// Runs a statement that changes a table, outside `ensure_schema`. It waits for the lock of the table like a step.
pub(super) async fn change_table(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    sql: &str,
) -> Result<(), Cause> {
    let mut attempts = 0;
    loop {
        match try_change(connection, config, sql).await {
            Ok(()) => return Ok(()),
            Err(cause) => pause_after_lock_failure(cause, &mut attempts).await?,
        }
    }
}

async fn try_change(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    sql: &str,
) -> Result<(), Cause> {
    let mut transaction = connection.begin().await?;
    set_limits(&mut transaction, config).await?;
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *transaction).await?;
    Ok(transaction.commit().await?)
}

/// The result of one attempt to apply a step.
enum Attempt {
    /// The labels of the applied steps.
    Applied(Vec<String>),
    /// No step is missing. Settings may differ, which the scope excludes.
    Complete { differs: Vec<String> },
    /// The next step is optional, and this session cannot run it now.
    Skipped(String),
    /// The next step must run outside a transaction.
    Outside(Step),
    /// Another process changes the schema.
    Busy,
}

/// Applies the next missing step, together with the steps that belong to its transaction. If no step is missing, nothing
/// is written, so a role without the privilege to create objects may also call `ensure_schema`.
async fn apply_next(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    scope: Scope,
    (applied, skipped): (&[String], &[String]),
) -> Result<Attempt, Cause> {
    let mut transaction = connection.begin().await?;
    if !begin_change(&mut transaction, config, SCHEMA_LOCK).await? {
        transaction.rollback().await?;
        return Ok(Attempt::Busy);
    }
    let mut missing = steps(&mut transaction, config).await?;
    // A writer of an earlier version makes a completed series catalog incomplete again, as long as it runs.
    missing.retain(|step| !applied.contains(&step.label) && !skipped.contains(&step.label));
    if missing.is_empty() {
        if scope == Scope::All {
            materialized::check_retention(&mut transaction, config).await?;
        }
        missing = settings(&mut transaction, config, |_| true, false).await?;
        // The server may store a setting in another form, or another process may set it differently. It differs then,
        // and is not changed again.
        missing.sort_by_key(|step| applied.contains(&step.label));
        let is_done = missing.first().is_none_or(|step| applied.contains(&step.label));
        if scope == Scope::Missing || is_done {
            let differs = missing.into_iter().map(|step| step.label).collect();
            return Ok(Attempt::Complete { differs });
        }
        if missing[0].outside_transaction {
            transaction.rollback().await?;
            return Ok(Attempt::Outside(missing.swap_remove(0)));
        }
    }
    let count = missing.iter().skip(1).take_while(|step| step.joins_previous).count() + 1;
    missing.truncate(count);
    for step in &missing {
        match step.run(&mut transaction, config).await {
            Err(Cause::Sql(error)) if step.is_optional && is_refusal(&error) => {
                transaction.rollback().await?;
                return Ok(Attempt::Skipped(step.label.clone()));
            }
            outcome => outcome?,
        }
    }
    let created = created_tables(&missing);
    if !created.is_empty() {
        let more = settings(&mut transaction, config, |table| created.contains(table), true).await?;
        for step in &more {
            step.run(&mut transaction, config).await?;
        }
        missing.extend(more);
    }
    transaction.commit().await?;
    Ok(Attempt::Applied(missing.into_iter().map(|step| step.label).collect()))
}

/// Returns whether the session may not run a statement now: a lock is held, a privilege is missing, or the server is a
/// standby.
fn is_refusal(error: &sqlx::Error) -> bool {
    [LOCK_NOT_AVAILABLE, "42501", "25006"].iter().any(|state| has_state(error, state))
}

/// Returns the tables that some steps create or convert.
fn created_tables(steps: &[Step]) -> HashSet<String> {
    let mut tables = HashSet::new();
    for step in steps {
        match &step.kind {
            StepKind::Table(table) | StepKind::Hypertable(table) => tables.extend([(*table).to_owned()]),
            StepKind::Migration(step) if step.version == 1 => {
                tables.extend(legacy_datasets::lines().into_keys());
            }
            _ => {}
        }
    }
    tables
}

/// Runs the statements of a step outside a transaction. Meanwhile another connection holds the lock.
async fn run_outside_transaction(
    step: &Step,
    connection: &mut PgConnection<'_>,
    (connections, config): (&Connections, &TimescaleConfig),
) -> Result<Attempt, Cause> {
    let mut guard = connections.connect_unpooled().await?;
    let mut transaction = guard.begin().await?;
    if !begin_change(&mut transaction, config, OUTSIDE_LOCK).await? {
        transaction.rollback().await?;
        guard.close().await;
        return Ok(Attempt::Busy);
    }
    sqlx::raw_sql("SET LOCAL idle_in_transaction_session_timeout = 0").execute(&mut *transaction).await?;
    // The process that held the lock before may have run the step.
    let missing = settings(&mut transaction, config, |_| true, false).await?;
    let mut applied = Vec::new();
    if let Some(step) = missing.iter().find(|missing| missing.label == step.label) {
        let lock_timeout = match config.hypertables {
            Hypertables::On => config.server_limits.schema_lock_timeout.as_millis(),
            // The build waits for older transactions, and no other session queues behind this wait.
            Hypertables::Off => 0,
        };
        let limits = format!("SET statement_timeout = 0; SET lock_timeout = {lock_timeout}");
        connection.run_outside_transaction(&limits, true).await?;
        for sql in &step.statements {
            connection.run_outside_transaction(sql, false).await?;
        }
        applied.push(step.label.clone());
    }
    transaction.rollback().await?;
    guard.close().await;
    Ok(Attempt::Applied(applied))
}

/// Sets the limits of a transaction that changes the schema, and takes an advisory lock until its end. Returns false if
/// another transaction holds the lock.
async fn begin_change(
    transaction: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    lock: i64,
) -> Result<bool, Cause> {
    set_limits(transaction, config).await?;
    let lock = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(lock);
    Ok(lock.fetch_one(transaction).await?)
}

/// Sets the limits of a transaction that changes the schema.
async fn set_limits(transaction: &mut PgConnection<'_>, config: &TimescaleConfig) -> Result<(), Cause> {
    let limits = &config.server_limits;
    let sql = format!(
        "SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}",
        limits.bulk_timeout.as_millis(),
        limits.schema_lock_timeout.as_millis()
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(transaction).await?;
    Ok(())
}

/// Returns the statements that [`ensure`] would run now with [`Scope::All`].
pub(super) async fn plan(connections: &Connections, config: &TimescaleConfig) -> Result<Vec<String>, Cause> {
    let mut connection = connections.connect_unpooled().await?;
    let outcome = async {
        let mut all = steps(&mut connection, config).await?;
        let created = created_tables(&all);
        all.extend(settings(&mut connection, config, |table| created.contains(table), true).await?);
        all.extend(settings(&mut connection, config, |table| !created.contains(table), false).await?);
        Ok(all.into_iter().flat_map(|step| step.statements).collect())
    }
    .await;
    connection.close().await;
    outcome
}

/// Returns the steps that change the settings of tables to the configured ones, and create the objects that older
/// versions did not create.
async fn settings(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    of: impl Fn(&str) -> bool,
    are_new: bool,
) -> Result<Vec<Step>, Cause> {
    let mut steps: Vec<Step> = Vec::new();
    for MissingObject { label, statements, outside_transaction } in
        checks::missing(connection, config, &of, are_new).await?
    {
        steps.push(Step { outside_transaction, ..Step::new(label, statements) });
    }
    if of(PriceTick::DATASET.name()) {
        let extension = policy::extension(connection).await?;
        let switch = materialized::step(connection, config, extension.as_deref()).await?;
        steps.extend(switch.map(|(label, statements)| Step::new(label, statements)));
    }
    if config.hypertables == Hypertables::On {
        let policies = policy::steps(connection, config, &of).await?;
        steps.extend(policies.into_iter().map(|(label, statements)| Step::new(label, statements)));
    }
    // A long build must not delay the other settings.
    steps.sort_by_key(|step| step.outside_transaction);
    Ok(steps)
}

/// Returns the missing steps in order, except for the settings.
async fn steps(connection: &mut PgConnection<'_>, config: &TimescaleConfig) -> Result<Vec<Step>, Cause> {
    let mut steps = Vec::new();
    let extension = policy::extension(connection).await?;
    if config.hypertables == Hypertables::On && extension.is_none() {
        // The extension is created in the schema that PostgreSQL's documentation recommends for shared objects. The
        // configured schema comes first in the search_path and may be dropped. `CREATE EXTENSION IF NOT EXISTS` has a
        // race condition. The lock prevents the race between processes of this library.
        let create = "CREATE EXTENSION IF NOT EXISTS timescaledb SCHEMA public".to_owned();
        let step = Step::new("extension timescaledb".to_owned(), vec![create]);
        steps.push(Step { kind: StepKind::Extension, ..step });
    }
    let exists: bool = sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL")
        .bind(&config.schema)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        // The name was validated: letters, digits and underscores.
        let create = format!("CREATE SCHEMA \"{}\"", config.schema);
        steps.push(Step::new(format!("schema {}", config.schema), vec![create]));
    }
    let (done, all) = (applied_steps(connection, &config.schema).await?, migrations());
    check_applied_steps(&done, &all)?;
    for step in all.into_iter().filter(|step| !done.iter().any(|(version, _)| *version == step.version)) {
        let label = format!("migration step {}: {}", step.version, step.description);
        let statements = vec![step.sql.as_str().to_owned()];
        steps.push(Step { kind: StepKind::Migration(step), ..Step::new(label, statements) });
    }
    let is_new = done.is_empty();
    let tables: Vec<Table> =
        config.datasets.iter().map(|dataset| Table::of(dataset, &config.schema)).collect();
    steps.extend(dataset_steps(connection, config, &tables, is_new).await?);
    if config.hypertables == Hypertables::On {
        // Either all existing tables become hypertables, or none.
        let mut joins_previous = false;
        for (table, step) in hypertable_steps(connection, config, &tables, extension).await? {
            // A writer must not leave rows in a table that is about to become a hypertable.
            let created =
                steps.iter().position(|step| matches!(step.kind, StepKind::Table(name) if name == table));
            if let Some(at) = created {
                steps.insert(at + 1, Step { joins_previous: true, ..step });
            } else {
                steps.push(Step { joins_previous, ..step });
                joins_previous = true;
            }
        }
    }
    let catalogs = series::steps(connection, config, &tables).await?;
    steps.extend(catalogs.into_iter().map(|step| {
        let series::CatalogStep { label, statements, is_optional } = step;
        Step { is_optional, ..Step::new(label, statements) }
    }));
    if is_new {
        // No client sees an incomplete new schema.
        for step in &mut steps {
            step.joins_previous = true;
        }
    }
    Ok(steps)
}

/// Returns the recorded steps with their checksums.
async fn applied_steps(
    connection: &mut PgConnection<'_>,
    schema: &str,
) -> Result<Vec<(i64, Vec<u8>)>, Cause> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(format!("\"{schema}\".{MIGRATIONS_TABLE}"))
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    let sql = format!("SELECT version, checksum FROM \"{schema}\".{MIGRATIONS_TABLE} ORDER BY version");
    let sql = AssertSqlSafe(sql);
    Ok(sqlx::query_as(sql).fetch_all(connection).await?)
}

/// Rejects a database with recorded steps that differ from `steps`.
fn check_applied_steps(recorded: &[(i64, Vec<u8>)], steps: &[Migration]) -> Result<(), Cause> {
    for (version, checksum) in recorded {
        let rule = match steps.iter().find(|step| step.version == *version) {
            None => {
                format!("schema step {version} is unknown to this version of the library")
            }
            Some(step) if *step.checksum != **checksum => {
                format!("schema step {version}: checksum mismatch with this version of the library")
            }
            Some(_) => continue,
        };
        return Err(Cause::Schema { rule });
    }
    Ok(())
}

/// Returns the missing steps for the tables of the datasets. `fresh` states that no step of the library is applied yet.
async fn dataset_steps(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    tables: &[Table],
    is_new: bool,
) -> Result<Vec<Step>, Cause> {
    let stored = recorded_lines(connection, &config.schema).await?;
    let existing = stored_columns(connection, &config.schema, tables).await?;
    let mut steps = Vec::new();
    for table in tables {
        let name = table.name();
        let reject = |problem: &str| Err(Cause::Schema { rule: format!("table {name}: {problem}") });
        let (lines, columns) = (stored.lines.get(name), existing.get(name));
        match (lines, columns) {
            (None, None) => steps.push(create_step(config, table)),
            (None, Some(_)) => {
                return reject(
                    "exists, but no dataset of this library created it; use another schema or another name",
                );
            }
            (Some(lines), None) if !(is_new && stored.first.contains(name)) => {
                let rows = lines.len();
                return reject(&format!(
                    "is missing; restore it, or delete its {rows} rows from {DATASETS_TABLE}"
                ));
            }
            (Some(lines), columns) => {
                let changes = evolution::compare(table.dataset, lines)?;
                if let Some(columns) = columns {
                    check_columns(table, lines.len(), columns)?;
                }
                steps.extend(column_steps(config, table, lines.len(), &changes));
            }
        }
    }
    if !steps.is_empty() && !stored.is_recorded {
        let create = format!(
            "CREATE TABLE {} (dataset text COLLATE \"C\" NOT NULL, line int NOT NULL, text text NOT NULL, \
             checksum bytea NOT NULL, applied timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (dataset, line))",
            config.relation(DATASETS_TABLE)
        );
        steps.insert(0, Step::new(format!("table {DATASETS_TABLE}"), vec![create]));
    }
    Ok(steps)
}

/// The recorded declarations of datasets.
struct RecordedLines {
    lines: HashMap<String, Vec<String>>,
    /// The datasets of step 1.
    first: HashSet<String>,
    /// True if the table of records exists.
    is_recorded: bool,
}

async fn recorded_lines(connection: &mut PgConnection<'_>, schema: &str) -> Result<RecordedLines, Cause> {
    // Step 1 creates the tables of these datasets.
    let mut lines = legacy_datasets::lines();
    let first = lines.keys().cloned().collect();
    let is_recorded: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(format!("\"{schema}\".{DATASETS_TABLE}"))
        .fetch_one(&mut *connection)
        .await?;
    if !is_recorded {
        return Ok(RecordedLines { lines, first, is_recorded });
    }
    let sql = format!(
        "SELECT dataset, line, text, checksum = sha256(convert_to(text, 'UTF8')) FROM \"{schema}\".{DATASETS_TABLE} \
         ORDER BY dataset, line"
    );
    let rows: Vec<(String, i32, String, bool)> =
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(connection).await?;
    for (name, line, text, intact) in rows {
        let known = lines.entry(name.clone()).or_default();
        let at = usize::try_from(line).unwrap_or(usize::MAX);
        if !intact || at > known.len() {
            let rule = format!(
                "table {DATASETS_TABLE}: line {line} of dataset {name} was changed or does not follow the previous line"
            );
            return Err(Cause::Schema { rule });
        }
        match known.get_mut(at) {
            // A later version of a line of step 1.
            Some(first) => *first = text,
            None => known.push(text),
        }
    }
    Ok(RecordedLines { lines, first, is_recorded })
}

/// A column in the catalog: its name, its type, and true if it is NOT NULL.
type StoredColumn = (String, String, bool);

/// Returns the columns of those tables that exist.
async fn stored_columns(
    connection: &mut PgConnection<'_>,
    schema: &str,
    tables: &[Table],
) -> Result<HashMap<String, Vec<StoredColumn>>, Cause> {
    let rows: Vec<(String, String, String, bool)> = sqlx::query_as(
        "SELECT c.relname::text, a.attname::text, t.typname::text, a.attnotnull \
         FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_type t ON t.oid = a.atttypid \
         WHERE c.relnamespace = to_regnamespace($1) AND c.relname = ANY($2) \
         AND a.attnum > 0 AND NOT a.attisdropped ORDER BY c.relname, a.attnum",
    )
    .bind(schema)
    .bind(tables.iter().map(Table::name).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    let mut existing: HashMap<_, Vec<_>> = HashMap::new();
    for (table, column, ty, required) in rows {
        existing.entry(table).or_default().push((column, ty, required));
    }
    Ok(existing)
}

/// Rejects a table whose columns differ from the recorded columns. Ignores additional columns of other programs.
fn check_columns(table: &Table, lines: usize, existing: &[StoredColumn]) -> Result<(), Cause> {
    let count = table.key().len() + lines.saturating_sub(1);
    for column in table.columns().iter().take(count) {
        let found = existing.iter().find(|(name, ..)| name == column.name);
        let problem = match found {
            None => "is missing".to_owned(),
            Some((_, ty, _)) if ty != column.ty.name() => {
                format!("has type {ty}, expected {}", column.ty.name())
            }
            Some((.., true)) if column.optional => "is NOT NULL, expected nullable".to_owned(),
            Some(_) => continue,
        };
        let rule = format!("table {}: column {} {problem}", table.name(), column.name);
        return Err(Cause::Schema { rule });
    }
    Ok(())
}

fn create_step(config: &TimescaleConfig, table: &Table) -> Step {
    let name = table.name();
    let mut statements = vec![
        format!(
            "CREATE TABLE {} ({}, PRIMARY KEY ({}))",
            table.relation(),
            join(table.columns(), super::table::Column::definition),
            names(table.key(), "")
        ),
        format!("CREATE VIEW {} AS {}", view(config, table), view_query(config, table)),
    ];
    let lines = evolution::lines(table.dataset);
    statements.extend(lines.iter().enumerate().map(|(at, line)| insert_line(config, name, at, line)));
    Step { kind: StepKind::Table(name), ..Step::new(format!("dataset {name}"), statements) }
}

/// Returns the steps for the new or changed lines of a declaration.
fn column_steps(config: &TimescaleConfig, table: &Table, stored: usize, changes: &[usize]) -> Vec<Step> {
    let (name, lines) = (table.name(), evolution::lines(table.dataset));
    let mut steps = Vec::new();
    for (column, at) in changes.iter().filter_map(|at| Some((table.values().get(at.checked_sub(1)?)?, *at))) {
        let mut statements = vec![insert_line(config, name, at, &lines[at])];
        let label = if at < stored {
            format!("enumeration names of {}.{}", name, column.name)
        } else {
            statements
                .insert(0, format!("ALTER TABLE {} ADD COLUMN {}", table.relation(), column.definition()));
            format!("column {}.{}", name, column.name)
        };
        steps.push(Step::new(label, statements));
    }
    if let Some(last) = steps.last_mut() {
        last.statements.push(format!(
            "CREATE OR REPLACE VIEW {} AS {}",
            view(config, table),
            view_query(config, table)
        ));
    }
    steps
}

fn insert_line(config: &TimescaleConfig, name: &str, at: usize, line: &str) -> String {
    format!(
        "INSERT INTO {} (dataset, line, text, checksum) \
         VALUES ('{name}', {at}, '{line}', sha256(convert_to('{line}', 'UTF8'))) \
         ON CONFLICT (dataset, line) DO UPDATE SET text = EXCLUDED.text, checksum = EXCLUDED.checksum, applied = now()",
        config.relation(DATASETS_TABLE)
    )
}

fn view(config: &TimescaleConfig, table: &Table) -> String {
    config.relation(&format!("{}_view", table.name()))
}

/// Returns the query of a dataset's view, with names instead of ids and codes.
fn view_query(config: &TimescaleConfig, table: &Table) -> String {
    let instruments = table.dataset.series() == SeriesType::Instrument;
    let mut columns: Vec<String> = Vec::new();
    if instruments {
        columns.extend(["i.exchange", "i.symbol"].map(str::to_owned));
    }
    let key = table.key().iter().skip(usize::from(instruments));
    columns.extend(key.map(|column| format!("t.\"{}\"", column.name)));
    columns.extend(table.dataset.values().iter().map(|column| {
        let record::ColumnType::Enumeration(names) = column.ty else {
            return format!("t.\"{}\"", column.name);
        };
        let cases: Vec<_> =
            (1..).zip(names).map(|(code, name)| format!("WHEN {code} THEN '{name}'")).collect();
        format!("CASE t.\"{0}\" {1} END AS \"{0}\"", column.name, cases.join(" "))
    }));
    let join = if instruments {
        format!(" JOIN {} i ON i.id = t.instrument_id", config.relation("instruments"))
    } else {
        String::new()
    };
    format!("SELECT {} FROM {} t{join}", columns.join(", "), table.relation())
}

/// Returns the steps that convert the tables to hypertables.
async fn hypertable_steps(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    tables: &[Table],
    extension: Option<String>,
) -> Result<Vec<(&'static str, Step)>, Cause> {
    let existing = match &extension {
        Some(_) => policy::chunk_intervals(connection, config).await?,
        None => HashMap::new(),
    };
    let extension = extension.as_deref().unwrap_or("public");
    let missing = tables.iter().filter(|table| !existing.contains_key(table.name()));
    let step = |table: &Table| {
        let sql = format!(
            "SELECT {extension}.create_hypertable('{}'::regclass, '{}'::name, \
             chunk_time_interval => {}::bigint, create_default_indexes => false)",
            table.relation(),
            table.time(),
            config.chunk_micros(table.dataset)
        );
        let name = table.name();
        let kind = StepKind::Hypertable(name);
        (name, Step { kind, ..Step::new(format!("hypertable {name}"), vec![sql]) })
    };
    Ok(missing.map(step).collect())
}

/// Returns the columns of a table in the database, in order, with their types.
pub(super) async fn columns(
    connection: &mut PgConnection<'_>,
    schema: &str,
    table: &str,
) -> Result<Vec<(String, String)>, Cause> {
    let rows = sqlx::query(
        "SELECT column_name::text, udt_name::text FROM information_schema.columns \
         WHERE table_schema = $1 AND table_name = $2 ORDER BY ordinal_position",
    )
    .bind(schema)
    .bind(table)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Returns the server's edition, for example `timescaledb community`.
pub(super) fn edition(info: &ServerInfo) -> Option<String> {
    match (&info.extension, info.license.as_deref()) {
        (None, _) if info.server.is_empty() => None,
        (None, _) => Some("postgresql".to_owned()),
        (Some(_), Some("timescale")) => Some("timescaledb community".to_owned()),
        (Some(_), _) => Some("timescaledb apache".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use qi_core::Datasets;

    use super::*;

    #[test]
    fn a_dataset_has_a_table_and_a_view() {
        let mut config = TimescaleConfig::from_url("");
        config.schema = "s".to_owned();
        let ticks = Table::of(Datasets::standard().get("ticks").unwrap(), "s");
        let step = create_step(&config, &ticks);
        assert_eq!(
            step.statements[0],
            "CREATE TABLE \"s\".\"ticks\" (\"instrument_id\" int NOT NULL, \"ts\" timestamptz NOT NULL, \
             \"seq\" bigint NOT NULL, \"price\" numeric(38,18) NOT NULL, \"quantity\" numeric(38,18), \
             \"side\" smallint, PRIMARY KEY (\"instrument_id\", \"ts\", \"seq\"))"
        );
        assert_eq!(
            view_query(&config, &ticks),
            "SELECT i.exchange, i.symbol, t.\"ts\", t.\"seq\", t.\"price\", t.\"quantity\", \
             CASE t.\"side\" WHEN 1 THEN 'buy' WHEN 2 THEN 'sell' END AS \"side\" \
             FROM \"s\".\"ticks\" t JOIN \"s\".\"instruments\" i ON i.id = t.instrument_id"
        );
    }
}
