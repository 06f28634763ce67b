//! The schema: made and brought forward by steps that are recorded with their checksums.

use std::borrow::Cow;

use qi_core::store::SchemaReport;
use sqlx::migrate::{Migrate, Migration, MigrationType};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqlSafeStr};

use super::config::{Hypertables, TimescaleConfig};
use super::connect::{Connections, ServerInfo};
use super::error::Cause;
use super::policy;
use super::table::{TABLES, Table};

/// The table that records the steps.
const RECORD: &str = "qi_migrations";

/// The lock under which one process at a time changes the schema of a database: an arbitrary number, the same in
/// all versions. It is the database's and not the schema's, because CREATE EXTENSION is.
const LOCK: i64 = 0x7169_5f73_6368_656d;

/// The steps, oldest first. They are only ever added to; each is applied once, in a transaction of its own.
fn steps() -> Vec<Migration> {
    let step = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql.into_sql_str(), false)
    };
    vec![
        step(1, "tables", include_str!("migrations/0001_tables.sql")),
        step(2, "views", include_str!("migrations/0002_views.sql")),
    ]
}

/// Creates what is missing, under a lock of the database.
pub(super) async fn ensure(
    connections: &Connections,
    config: &TimescaleConfig,
) -> Result<SchemaReport, Cause> {
    // A connection of its own: its lock ends with it, whatever becomes of this future.
    let mut connection = connections.direct().await?;
    let outcome = ensure_on(&mut connection, connections, config).await;
    let _ = connection.close().await;
    outcome
}

async fn ensure_on(
    connection: &mut PgConnection,
    connections: &Connections,
    config: &TimescaleConfig,
) -> Result<SchemaReport, Cause> {
    let steps = steps();
    let version = steps.iter().map(|step| step.version).max().unwrap_or(0);
    let version = u32::try_from(version).unwrap_or(u32::MAX);
    connections.allow_heavy_session(connection).await?;
    sqlx::query("SELECT pg_advisory_lock($1)").bind(LOCK).execute(&mut *connection).await?;
    // One transaction: nobody meets the tables before they are all that they should be. A writer that came between
    // would leave rows in a table that is to become a hypertable.
    let mut transaction = connection.begin().await?;
    let mut applied = Vec::new();
    if config.hypertables == Hypertables::On {
        applied.extend(create_extension(&mut transaction).await?);
    }
    let there: bool = sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL")
        .bind(&config.schema)
        .fetch_one(&mut *transaction)
        .await?;
    if !there {
        // The name was checked: letters, digits and underscores.
        let create = AssertSqlSafe(format!("CREATE SCHEMA \"{}\"", config.schema));
        sqlx::query(create).execute(&mut *transaction).await?;
        applied.push(format!("schema {}", config.schema));
    }
    let done = recorded(&mut transaction, &config.schema).await?;
    check(&done, &steps)?;
    // A database in order is not written to, so that a role without the right to create anything may call
    // `ensure_schema` too.
    for step in steps.iter().filter(|step| !done.iter().any(|(version, _)| *version == step.version)) {
        transaction.ensure_migrations_table(RECORD).await?;
        transaction.apply(RECORD, step).await?;
        applied.push(format!("{} {}", step.version, step.description));
    }
    if config.hypertables == Hypertables::On {
        applied.extend(hypertables(&mut transaction, config).await?);
    }
    transaction.commit().await?;
    if config.hypertables == Hypertables::On {
        applied.extend(policy::apply(connection, config).await?);
    }
    Ok(SchemaReport::new(version, applied))
}

/// The steps that are recorded, with their checksums.
async fn recorded(connection: &mut PgConnection, schema: &str) -> Result<Vec<(i64, Vec<u8>)>, Cause> {
    let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(format!("\"{schema}\".{RECORD}"))
        .fetch_one(&mut *connection)
        .await?;
    if !there {
        return Ok(Vec::new());
    }
    let sql = AssertSqlSafe(format!("SELECT version, checksum FROM {RECORD} ORDER BY version"));
    Ok(sqlx::query_as(sql).fetch_all(connection).await?)
}

/// Refuses a database that has other steps than these.
fn check(recorded: &[(i64, Vec<u8>)], steps: &[Migration]) -> Result<(), Cause> {
    for (version, checksum) in recorded {
        let rule = match steps.iter().find(|step| step.version == *version) {
            None => {
                format!("the database has step {version}, which this version of the library does not know")
            }
            Some(step) if *step.checksum != **checksum => {
                format!("step {version} was applied with another text than this version of the library has")
            }
            Some(_) => continue,
        };
        return Err(Cause::Schema { rule });
    }
    Ok(())
}

/// Creates the extension where it is absent. `CREATE EXTENSION IF NOT EXISTS` alone races with itself; the lock
/// keeps our own kind out.
async fn create_extension(connection: &mut PgConnection) -> Result<Option<String>, Cause> {
    let there: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')")
            .fetch_one(&mut *connection)
            .await?;
    if there {
        return Ok(None);
    }
    // Into the schema that PostgreSQL's documentation recommends for what everybody uses, not into ours, which
    // comes first in the search_path and may be dropped.
    sqlx::query("CREATE EXTENSION IF NOT EXISTS timescaledb SCHEMA public")
        .execute(connection)
        .await
        .map_err(|error| {
            match error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() {
                // "extension is not available", "must be preloaded": nothing that waiting mends.
                Some("0A000" | "58P01" | "55000" | "XX000") => Cause::Edition {
                    rule: format!(
                        "TimescaleDB cannot be created here; `hypertables = \"off\"` does without: {error}"
                    ),
                },
                _ => Cause::Sql(error),
            }
        })?;
    Ok(Some("extension timescaledb".to_owned()))
}

/// Makes the tables hypertables, and gives them the configured chunk intervals.
async fn hypertables(connection: &mut PgConnection, config: &TimescaleConfig) -> Result<Vec<String>, Cause> {
    let extension = policy::extension(connection).await?;
    let mut applied = Vec::new();
    for table in TABLES {
        let micros = config.chunks.micros(table.dataset);
        let current: Option<Option<i64>> = sqlx::query_scalar(
            "SELECT (extract(epoch FROM time_interval) * 1000000)::bigint \
             FROM timescaledb_information.dimensions \
             WHERE hypertable_schema = $1 AND hypertable_name = $2 AND dimension_number = 1",
        )
        .bind(&config.schema)
        .bind(table.name)
        .fetch_optional(&mut *connection)
        .await?;
        let relation = format!("\"{}\".{}", config.schema, table.name);
        if current.is_none() {
            let sql = format!(
                "SELECT {extension}.create_hypertable($1::regclass, $2::name, \
                 chunk_time_interval => $3::bigint, create_default_indexes => false)"
            );
            sqlx::query(AssertSqlSafe(sql))
                .bind(&relation)
                .bind(table.time())
                .bind(micros)
                .execute(&mut *connection)
                .await
                .map_err(|error| match error.as_database_error().and_then(sqlx::error::DatabaseError::code).as_deref() {
                    Some("0A000") => Cause::Schema {
                        rule: format!(
                            "the table {} is no hypertable and holds data, from a time with hypertables = \
                             \"off\"; docs/backends/timescale.md says how to convert it",
                            table.name
                        ),
                    },
                    _ => Cause::Sql(error),
                })?;
            applied.push(format!("hypertable {}", table.name));
        } else if current != Some(Some(micros)) {
            let sql = format!("SELECT {extension}.set_chunk_time_interval($1::regclass, $2::bigint)");
            sqlx::query(AssertSqlSafe(sql)).bind(&relation).bind(micros).execute(&mut *connection).await?;
            applied.push(format!("chunk interval of {}", table.name));
        }
    }
    Ok(applied)
}

/// The columns of a table as the database has them, in order, with their types.
pub(super) async fn columns(
    connection: &mut PgConnection,
    schema: &str,
    table: &Table,
) -> Result<Vec<(String, String)>, Cause> {
    let rows = sqlx::query(
        "SELECT column_name::text, udt_name::text FROM information_schema.columns \
         WHERE table_schema = $1 AND table_name = $2 ORDER BY ordinal_position",
    )
    .bind(schema)
    .bind(table.name)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The server's edition in a word.
pub(super) fn edition(facts: &ServerInfo) -> Option<String> {
    match (&facts.extension, facts.license.as_deref()) {
        (None, _) if facts.server.is_empty() => None,
        (None, _) => Some("postgresql".to_owned()),
        (Some(_), Some("timescale")) => Some("timescaledb community".to_owned()),
        (Some(_), _) => Some("timescaledb apache".to_owned()),
    }
}
