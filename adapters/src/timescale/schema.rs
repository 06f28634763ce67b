//! The schema, created and migrated in steps. `qi_migrations` records the steps of the library with their checksums.
//! `qi_datasets` records the columns of further datasets, and later changes of any dataset.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use qi_core::record::{self, SeriesType};
use qi_core::store::SchemaReport;
use sqlx::migrate::{Migrate, Migration, MigrationType};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqlSafeStr};

use super::config::{Hypertables, TimescaleConfig};
use super::connect::{Connections, ServerInfo};
use super::error::Cause;
use super::policy;
use super::series;
use super::table::{Table, join, names};
use crate::legacy_datasets;
use qi_core::store::kit::evolution;

/// The table that records the steps.
const MIGRATIONS_TABLE: &str = "qi_migrations";

/// The table that records the columns of the datasets. Line 0 is the key.
const DATASETS_TABLE: &str = "qi_datasets";

/// The advisory lock for changes of the schema, which one process at a time holds. The number is arbitrary,
/// and the same in all versions. The lock covers the database instead of the schema, because CREATE
/// EXTENSION changes the database.
const SCHEMA_LOCK: i64 = 0x7169_5f73_6368_656d;

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
}

enum StepKind {
    Plain,
    Extension,
    Migration(Migration),
    Hypertable(&'static str),
}

impl Step {
    pub(super) fn new(label: String, statements: Vec<String>) -> Self {
        Self { label, statements, kind: StepKind::Plain }
    }

    /// Runs the step. Its statements contain only validated names and numbers.
    pub(super) async fn run(&self, connection: &mut PgConnection) -> Result<(), Cause> {
        if let StepKind::Migration(step) = &self.kind {
            connection.ensure_migrations_table(MIGRATIONS_TABLE).await?;
            connection.apply(MIGRATIONS_TABLE, step).await?;
            return Ok(());
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

/// Applies all missing changes, under a lock of the database.
pub(super) async fn ensure(
    connections: &Connections,
    config: &TimescaleConfig,
) -> Result<SchemaReport, Cause> {
    // A separate connection, because the lock ends with the connection, even if this future is dropped.
    let mut connection = connections.connect_unpooled().await?;
    let outcome = ensure_on(&mut connection, connections, config).await;
    let _ = connection.close().await;
    outcome
}

async fn ensure_on(
    connection: &mut PgConnection,
    connections: &Connections,
    config: &TimescaleConfig,
) -> Result<SchemaReport, Cause> {
    let version = migrations().iter().map(|step| step.version).max().unwrap_or(0);
    let version = u32::try_from(version).unwrap_or(u32::MAX);
    connections.set_session_bulk_timeout(connection).await?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(SCHEMA_LOCK).execute(&mut *connection).await?;
    // All steps run in one transaction, so that no client sees an incomplete table. A concurrent writer would leave
    // rows in a table that is about to become a hypertable. If no step is missing, nothing is written, so a role
    // without the right to create objects may also call `ensure_schema`.
    let mut transaction = connection.begin().await?;
    let mut applied = Vec::new();
    for step in steps(&mut transaction, config).await? {
        step.run(&mut transaction).await?;
        applied.push(step.label);
    }
    transaction.commit().await?;
    for step in policies(connection, config).await? {
        // All statements or none, so that an existing policy is never missing in between.
        let mut transaction = connection.begin().await?;
        step.run(&mut transaction).await?;
        transaction.commit().await?;
        applied.push(step.label);
    }
    Ok(SchemaReport::new(version, applied))
}

/// Returns the statements that [`ensure`] would run now.
pub(super) async fn plan(connections: &Connections, config: &TimescaleConfig) -> Result<Vec<String>, Cause> {
    let mut connection = connections.connect_unpooled().await?;
    let outcome = async {
        let mut all = steps(&mut connection, config).await?;
        all.extend(policies(&mut connection, config).await?);
        Ok(all.into_iter().flat_map(|step| step.statements).collect())
    }
    .await;
    let _ = connection.close().await;
    outcome
}

async fn policies(connection: &mut PgConnection, config: &TimescaleConfig) -> Result<Vec<Step>, Cause> {
    match config.hypertables {
        Hypertables::On => {
            let steps = policy::steps(connection, config).await?;
            Ok(steps.into_iter().map(|(label, statements)| Step::new(label, statements)).collect())
        }
        Hypertables::Off => Ok(Vec::new()),
    }
}

/// Returns the missing steps in order, except for the policies.
async fn steps(connection: &mut PgConnection, config: &TimescaleConfig) -> Result<Vec<Step>, Cause> {
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
        let label = format!("{} {}", step.version, step.description);
        let statements = vec![step.sql.as_str().to_owned()];
        steps.push(Step { kind: StepKind::Migration(step), ..Step::new(label, statements) });
    }
    let tables: Vec<Table> = config.datasets.iter().map(Table::of).collect();
    steps.extend(dataset_steps(connection, config, &tables, done.is_empty()).await?);
    if config.hypertables == Hypertables::On {
        steps.extend(hypertable_steps(connection, config, &tables, extension).await?);
    }
    let catalogs = series::steps(connection, config, &tables).await?;
    steps.extend(catalogs.into_iter().map(|(label, statements)| Step::new(label, statements)));
    Ok(steps)
}

/// Returns the recorded steps with their checksums.
async fn applied_steps(connection: &mut PgConnection, schema: &str) -> Result<Vec<(i64, Vec<u8>)>, Cause> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(format!("\"{schema}\".{MIGRATIONS_TABLE}"))
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    let sql = AssertSqlSafe(format!("SELECT version, checksum FROM {MIGRATIONS_TABLE} ORDER BY version"));
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
    connection: &mut PgConnection,
    config: &TimescaleConfig,
    tables: &[Table],
    is_new: bool,
) -> Result<Vec<Step>, Cause> {
    let stored = recorded_lines(connection, &config.schema).await?;
    let existing = stored_columns(connection, &config.schema, tables).await?;
    let mut steps = Vec::new();
    for table in tables {
        let name = table.name();
        let refuse = |problem: &str| Err(Cause::Schema { rule: format!("table {name}: {problem}") });
        let (lines, columns) = (stored.lines.get(name), existing.get(name));
        match (lines, columns) {
            (None, None) => steps.push(create_step(table)),
            (None, Some(_)) => {
                return refuse(
                    "exists, but no dataset of this library created it; use another schema or another name",
                );
            }
            (Some(lines), None) if !(is_new && stored.first.contains(name)) => {
                let rows = lines.len();
                return refuse(&format!(
                    "is missing; restore it, or delete its {rows} rows from {DATASETS_TABLE}"
                ));
            }
            (Some(lines), columns) => {
                let changes = evolution::compare(table.dataset, lines)?;
                if let Some(columns) = columns {
                    check_columns(table, lines.len(), columns)?;
                }
                steps.extend(column_steps(table, lines.len(), &changes));
            }
        }
    }
    if !steps.is_empty() && !stored.is_recorded {
        let create = format!(
            "CREATE TABLE {DATASETS_TABLE} (dataset text COLLATE \"C\" NOT NULL, line int NOT NULL, text text NOT NULL, \
             checksum bytea NOT NULL, applied timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (dataset, line))"
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

async fn recorded_lines(connection: &mut PgConnection, schema: &str) -> Result<RecordedLines, Cause> {
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
        "SELECT dataset, line, text, checksum = sha256(convert_to(text, 'UTF8')) FROM {DATASETS_TABLE} ORDER BY dataset, line"
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
    connection: &mut PgConnection,
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

fn create_step(table: &Table) -> Step {
    let name = table.name();
    let mut statements = vec![
        format!(
            "CREATE TABLE \"{name}\" ({}, PRIMARY KEY ({}))",
            join(table.columns(), super::table::Column::definition),
            names(table.key(), "")
        ),
        format!("CREATE VIEW \"{name}_view\" AS {}", view_query(table)),
    ];
    let lines = evolution::lines(table.dataset);
    statements.extend(lines.iter().enumerate().map(|(at, line)| insert_line(name, at, line)));
    Step::new(format!("dataset {name}"), statements)
}

/// Returns the steps for the new or changed lines of a declaration.
fn column_steps(table: &Table, stored: usize, changes: &[usize]) -> Vec<Step> {
    let (name, lines) = (table.name(), evolution::lines(table.dataset));
    let mut steps = Vec::new();
    for (column, at) in changes.iter().filter_map(|at| Some((table.values().get(at.checked_sub(1)?)?, *at))) {
        let mut statements = vec![insert_line(name, at, &lines[at])];
        let label = if at < stored {
            format!("names of {}.{}", name, column.name)
        } else {
            statements.insert(0, format!("ALTER TABLE \"{name}\" ADD COLUMN {}", column.definition()));
            format!("column {}.{}", name, column.name)
        };
        steps.push(Step::new(label, statements));
    }
    if let Some(last) = steps.last_mut() {
        last.statements.push(format!("CREATE OR REPLACE VIEW \"{name}_view\" AS {}", view_query(table)));
    }
    steps
}

fn insert_line(name: &str, at: usize, line: &str) -> String {
    format!(
        "INSERT INTO {DATASETS_TABLE} (dataset, line, text, checksum) \
         VALUES ('{name}', {at}, '{line}', sha256(convert_to('{line}', 'UTF8'))) \
         ON CONFLICT (dataset, line) DO UPDATE SET text = EXCLUDED.text, checksum = EXCLUDED.checksum, applied = now()"
    )
}

/// Returns the query of a dataset's view, with names instead of ids and codes.
fn view_query(table: &Table) -> String {
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
    let join = if instruments { " JOIN instruments i ON i.id = t.instrument_id" } else { "" };
    format!("SELECT {} FROM \"{}\" t{join}", columns.join(", "), table.name())
}

/// Returns the steps that convert the tables to hypertables and set the configured chunk intervals.
async fn hypertable_steps(
    connection: &mut PgConnection,
    config: &TimescaleConfig,
    tables: &[Table],
    extension: Option<String>,
) -> Result<Vec<Step>, Cause> {
    let mut intervals: HashMap<String, Option<i64>> = HashMap::new();
    if extension.is_some() {
        let rows: Vec<(String, Option<i64>)> = sqlx::query_as(
            "SELECT hypertable_name::text, (extract(epoch FROM time_interval) * 1000000)::bigint \
             FROM timescaledb_information.dimensions WHERE hypertable_schema = $1 AND dimension_number = 1",
        )
        .bind(&config.schema)
        .fetch_all(connection)
        .await?;
        intervals.extend(rows);
    }
    let extension = extension.as_deref().unwrap_or("public");
    let mut steps = Vec::new();
    for table in tables {
        let (name, micros) = (table.name(), config.chunk_micros(table.dataset));
        let relation = config.relation(name);
        let step = match intervals.get(name) {
            None => {
                let sql = format!(
                    "SELECT {extension}.create_hypertable('{relation}'::regclass, '{}'::name, \
                     chunk_time_interval => {micros}::bigint, create_default_indexes => false)",
                    table.time()
                );
                Step {
                    kind: StepKind::Hypertable(name),
                    ..Step::new(format!("hypertable {name}"), vec![sql])
                }
            }
            Some(known) if *known != Some(micros) => {
                let sql = format!(
                    "SELECT {extension}.set_chunk_time_interval('{relation}'::regclass, {micros}::bigint)"
                );
                Step::new(format!("chunk interval of {name}"), vec![sql])
            }
            Some(_) => continue,
        };
        steps.push(step);
    }
    Ok(steps)
}

/// Returns the columns of a table in the database, in order, with their types.
pub(super) async fn columns(
    connection: &mut PgConnection,
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
        let ticks = Table::of(Datasets::standard().get("ticks").unwrap());
        let step = create_step(&ticks);
        assert_eq!(
            step.statements[0],
            "CREATE TABLE \"ticks\" (\"instrument_id\" int NOT NULL, \"ts\" timestamptz NOT NULL, \
             \"seq\" bigint NOT NULL, \"price\" numeric(38,18) NOT NULL, \"quantity\" numeric(38,18), \
             \"side\" smallint, PRIMARY KEY (\"instrument_id\", \"ts\", \"seq\"))"
        );
        assert_eq!(
            view_query(&ticks),
            "SELECT i.exchange, i.symbol, t.\"ts\", t.\"seq\", t.\"price\", t.\"quantity\", \
             CASE t.\"side\" WHEN 1 THEN 'buy' WHEN 2 THEN 'sell' END AS \"side\" \
             FROM \"ticks\" t JOIN instruments i ON i.id = t.instrument_id"
        );
    }
}
