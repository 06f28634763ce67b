//! The schema: made by steps that are safe to run from many processes at once, recorded when they are done.

use qi_core::store::{Dataset, SchemaReport};

use super::client::{Connections, rows, run};
use super::error::Cause;
use super::rowbinary::Reader;
use super::table::{TABLES, Table};
use crate::config::clickhouse::{ClickHouseConfig, RetentionSection};

/// A step: statements that can be repeated.
struct Step {
    version: u32,
    name: &'static str,
    statements: Vec<String>,
}

/// The steps, oldest first. They are only ever added to. There are no locks for them in this database, so each
/// statement does nothing where its work is done.
fn steps(prefix: &str) -> Vec<Step> {
    vec![Step {
        version: 1,
        name: "tables",
        statements: TABLES.iter().map(|table| create(prefix, table)).collect(),
    }]
}

/// The statement that makes a table. Without a version column the order of insertion decides which of two rows of
/// one key stays; with a clock of the server, a write one second "earlier" would be lost.
pub(super) fn create(prefix: &str, table: &Table) -> String {
    let columns: Vec<String> = table
        .columns()
        .map(|column| format!("    {} {} {}", column.name, column.ty, column.codec).trim_end().to_owned())
        .collect();
    format!(
        "CREATE TABLE IF NOT EXISTS {prefix}{name} (\n{columns}\n)\nENGINE = ReplacingMergeTree\n\
         PARTITION BY {partition}({time})\nORDER BY ({key})",
        name = table.name,
        columns = columns.join(",\n"),
        partition = table.partition,
        time = table.time(),
        key = table.key_list(),
    )
}

/// Creates what is missing.
pub(super) async fn ensure(
    connections: &Connections,
    config: &ClickHouseConfig,
) -> Result<SchemaReport, Cause> {
    let (client, prefix) = (&connections.heavy, config.table_prefix.as_str());
    let steps = steps(prefix);
    let version = steps.iter().map(|step| step.version).max().unwrap_or(0);
    let mut applied = Vec::new();
    // The client names the database with every request, which a server refuses if there is none.
    let anywhere = client.clone().with_database("default");
    let there = rows(
        &anywhere,
        &format!("SELECT count() FROM system.databases WHERE name = '{}'", config.database),
        |row| Ok(row.u64()?),
    )
    .await?;
    if there != [1] {
        run(&anywhere, &format!("CREATE DATABASE IF NOT EXISTS {}", config.database)).await?;
        applied.push(format!("database {}", config.database));
    }
    let done = recorded(connections, config).await?;
    if let Some(newer) = done.iter().find(|done| steps.iter().all(|step| step.version != **done)) {
        let rule = format!("the database has step {newer}, which this version of the library does not know");
        return Err(Cause::Schema { rule });
    }
    for step in steps.iter().filter(|step| !done.contains(&step.version)) {
        run(
            client,
            &format!(
                "CREATE TABLE IF NOT EXISTS {prefix}qi_migrations (version UInt32, name String, applied_at DateTime64(6, 'UTC')) \
                 ENGINE = ReplacingMergeTree ORDER BY version"
            ),
        )
        .await?;
        for statement in &step.statements {
            run(client, statement).await?;
        }
        // Last, so that a step that was interrupted is done again.
        run(
            client,
            &format!(
                "INSERT INTO {prefix}qi_migrations SELECT {}, '{}', now64(6, 'UTC')",
                step.version, step.name
            ),
        )
        .await?;
        applied.push(format!("{} {}", step.version, step.name));
    }
    for table in TABLES {
        applied.extend(retention(connections, config, table).await?);
    }
    Ok(SchemaReport::new(version, applied))
}

/// The versions of the steps that are recorded.
async fn recorded(connections: &Connections, config: &ClickHouseConfig) -> Result<Vec<u32>, Cause> {
    let sql =
        format!("SELECT toUInt64(version) AS v FROM {}qi_migrations FINAL ORDER BY v", config.table_prefix);
    match rows(&connections.heavy, &sql, |row: &mut Reader<'_>| Ok(row.u64()?)).await {
        Ok(versions) => Ok(versions.into_iter().map(|v| u32::try_from(v).unwrap_or(u32::MAX)).collect()),
        Err(cause) if cause.has_code(60) => Ok(Vec::new()),
        Err(cause) => Err(cause),
    }
}

/// Gives a table the configured age. One that was set by hand stays where the configuration says nothing.
async fn retention(
    connections: &Connections,
    config: &ClickHouseConfig,
    table: &Table,
) -> Result<Option<String>, Cause> {
    let Some(hours) = age_of(&config.retention, table.dataset) else { return Ok(None) };
    let name = format!("{}{}", config.table_prefix, table.name);
    let ttl = format!("toDateTime({}) + toIntervalHour({hours})", table.time());
    let sql = format!(
        "SELECT toInt8(position(create_table_query, 'TTL {ttl}') > 0) FROM system.tables \
         WHERE database = '{}' AND name = '{name}'",
        config.database
    );
    if rows(&connections.heavy, &sql, |row| Ok(row.i8()?)).await? == [1] {
        return Ok(None);
    }
    run(&connections.heavy, &format!("ALTER TABLE {name} MODIFY TTL {ttl}")).await?;
    Ok(Some(format!("retention of {} after {hours} h", table.name)))
}

/// The age of a dataset in the section, in hours.
pub(super) fn age_of(section: &RetentionSection, dataset: Dataset) -> Option<u32> {
    match dataset {
        Dataset::Ticks => section.ticks_hours,
        Dataset::Quotes => section.quotes_hours,
        Dataset::Bars => section.bars_hours,
        Dataset::Snapshots => section.snapshots_hours,
    }
}
