//! The schema: made by statements that are safe to run from many processes at once.
//!
//! There are no locks and no transactions for them in this database. So each statement does nothing where its work is
//! done, a record is written when all else is, and the schema is looked at again until nothing is left to do: another
//! version of the program may have made a table in between.

use std::collections::HashMap;

use qi_core::store::SchemaReport;
use qi_core::{Error, ErrorKind};

use super::config::ClickHouseConfig;
use super::connect::{Connections, rows, run};
use super::error::Cause;
use super::table::{Column, Found, OF_STEP_1, Place, Table, is_nullable, is_wider, literal};
use super::wire::Reader;

/// The version of the schema: the step that made the tables of the library's own datasets. Later changes of a dataset
/// are recorded by its columns.
const VERSION: u32 = 1;

/// How often the schema is looked at.
const ROUNDS: usize = 20;

/// A statement that can be repeated, and what it is in the report.
#[derive(Debug)]
pub(super) struct Change {
    what: Option<String>,
    pub(super) sql: String,
}

impl Change {
    fn new(what: impl Into<Option<String>>, sql: String) -> Self {
        Self { what: what.into(), sql }
    }
}

/// The statements that make a table; on a cluster a table on every node, and one in front of them that spreads the
/// rows by what they belong to.
///
/// Without a version column the order of insertion decides which of two rows of one key stays; with a clock of the
/// server, a write one second "earlier" would be lost.
fn create(place: &Place<'_>, table: &Table) -> Vec<String> {
    let columns: Vec<String> =
        table.columns.iter().map(|column| format!("    {}", column.definition())).collect();
    let engine = match place.cluster {
        None => "ReplacingMergeTree".to_owned(),
        Some(_) => {
            "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')"
                .to_owned()
        }
    };
    let (local, on) = (&table.local, place.on_cluster());
    let mut statements = vec![format!(
        "CREATE TABLE IF NOT EXISTS {local}{on} (\n{columns}\n)\nENGINE = {engine}\n\
         PARTITION BY {partition}({time})\nORDER BY ({key})",
        columns = columns.join(",\n"),
        partition = table.partition(),
        time = table.time(),
        key = table.keys,
    )];
    if let Some(cluster) = place.cluster {
        // By the first part of the key, so that a series lies on one shard.
        statements.push(format!(
            "CREATE TABLE IF NOT EXISTS {name}{on} AS {local}\n\
             ENGINE = Distributed('{cluster}', `{database}`, {local}, cityHash64({owner}))",
            name = table.name,
            database = place.database,
            owner = table.owners,
        ));
    }
    statements
}

/// The codes of a server that has no such database or table.
const NO_DATABASE: u16 = 81;
const NO_TABLE: u16 = 60;

/// The table that records the steps.
const STEPS: &str = "qi_migrations";

/// The table that records the columns of datasets beside the first step.
const DATASETS: &str = "qi_datasets";

/// Creates what is missing.
pub(super) async fn ensure(
    connections: &Connections,
    config: &ClickHouseConfig,
    tables: &[Table],
) -> Result<SchemaReport, Cause> {
    let mut applied = Vec::new();
    for _ in 0..ROUNDS {
        let changes = plan(connections, config, tables).await?;
        if changes.is_empty() {
            return Ok(SchemaReport::new(VERSION, applied));
        }
        for Change { what, sql } in changes {
            // The server refuses a request that names a database which does not exist.
            let client =
                if sql.starts_with("CREATE DATABASE") { &connections.server } else { &connections.heavy };
            run(client, &sql).await?;
            applied.extend(what);
        }
    }
    Err(Cause::Changing)
}

/// What is there.
#[derive(Default)]
struct Present {
    database: bool,
    steps: Vec<u64>,
    columns: HashMap<String, Vec<Found>>,
    /// The datasets and columns that are recorded.
    recorded: Vec<(String, String)>,
}

/// What is missing, in the order in which it is to be made.
pub(super) async fn plan(
    connections: &Connections,
    config: &ClickHouseConfig,
    tables: &[Table],
) -> Result<Vec<Change>, Cause> {
    let place = Place::of(config);
    let (first, others): (Vec<&Table>, Vec<&Table>) =
        tables.iter().partition(|table| OF_STEP_1.contains(&table.dataset));
    let present = present(connections, config, tables, !others.is_empty()).await?;
    if let Some(newer) = present.steps.iter().find(|step| **step != u64::from(VERSION)) {
        let rule = format!("the database has step {newer}, which this version of the library does not know");
        return Err(Cause::Schema { rule });
    }
    let mut changes = Vec::new();
    if !present.database {
        let create = format!("CREATE DATABASE IF NOT EXISTS `{}`{}", config.database, place.on_cluster());
        changes.push(Change::new(format!("database {}", config.database), create));
    }
    // The step is the one of all four: a program that leaves one out makes its tables without it.
    let step = present.steps.is_empty() && first.len() == OF_STEP_1.len();
    if step {
        changes.push(Change::new(None, place.record(STEPS, "version UInt32, name String", "version")));
    }
    for table in first {
        changes.extend(missing(&place, table, &present, !step)?);
    }
    if step {
        let sql = format!("INSERT INTO {} SELECT 1, 'tables', now64(6, 'UTC')", place.table(STEPS));
        changes.push(Change::new("1 tables".to_owned(), sql));
    }
    let mut records = Vec::new();
    for table in others {
        changes.extend(missing(&place, table, &present, true)?);
        records.extend(record(&place, table, &present));
    }
    if !records.is_empty() {
        let columns = "dataset String, columns String, checksum UInt64";
        changes.push(Change::new(None, place.record(DATASETS, columns, "(dataset, columns)")));
        // Last, so that what was interrupted is done again.
        changes.extend(records);
    }
    for table in tables {
        changes.extend(retention(connections, config, table, &present).await?);
    }
    Ok(changes)
}

async fn present(
    connections: &Connections,
    config: &ClickHouseConfig,
    tables: &[Table],
    others: bool,
) -> Result<Present, Cause> {
    let (client, place) = (&connections.heavy, Place::of(config));
    let sql = format!("SELECT toUInt64(version) AS v FROM {} FINAL ORDER BY v", place.table(STEPS));
    let steps = match rows(client, &sql, |row: &mut Reader<'_>| Ok(row.u64()?)).await {
        Ok(steps) => steps,
        Err(cause) if cause.has_code(NO_DATABASE) => return Ok(Present::default()),
        Err(cause) if cause.has_code(NO_TABLE) => Vec::new(),
        Err(cause) => return Err(cause),
    };
    let mut names: Vec<String> = tables.iter().map(|table| place.local(table.dataset.name())).collect();
    if place.cluster.is_some() {
        names.extend(tables.iter().map(|table| table.raw.clone()));
    }
    let mut columns = HashMap::<_, Vec<_>>::new();
    for found in found(client, config, &names).await? {
        columns.entry(found.table.clone()).or_default().push(found);
    }
    let mut recorded = Vec::new();
    if others {
        let sql = format!(
            "SELECT dataset, columns, toInt8(checksum = sipHash64(dataset, columns)) FROM {} FINAL",
            place.table(DATASETS)
        );
        let read = rows(client, &sql, |row| {
            let of = (row.text()?.to_owned(), row.text()?.to_owned());
            if row.i8()? == 1 {
                return Ok(of);
            }
            let rule = format!("the record of the dataset {} in {DATASETS} was changed by hand", of.0);
            Err(Cause::Schema { rule })
        });
        recorded = match read.await {
            Err(cause) if cause.has_code(NO_TABLE) => Vec::new(),
            read => read?,
        };
    }
    Ok(Present { database: true, steps, columns, recorded })
}

/// The columns of these tables, in order.
pub(super) async fn found(
    client: &clickhouse::Client,
    config: &ClickHouseConfig,
    names: &[String],
) -> Result<Vec<Found>, Cause> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT table, name, type, toInt8(is_in_sorting_key) FROM system.columns \
         WHERE database = {} AND table IN ({}) ORDER BY table, position",
        literal(&config.database),
        names.iter().map(|name| literal(name)).collect::<Vec<_>>().join(", "),
    );
    rows(client, &sql, |row| {
        let (table, name, ty) = (row.text()?.to_owned(), row.text()?.to_owned(), row.text()?.to_owned());
        Ok(Found { table, name, ty, key: row.i8()? != 0 })
    })
    .await
}

/// The statements that make a table what the declaration says.
fn missing(place: &Place<'_>, table: &Table, present: &Present, named: bool) -> Result<Vec<Change>, Cause> {
    let dataset = table.dataset;
    let what = |text: String| named.then_some(text);
    let (local, front) = (place.local(dataset.name()), &table.raw);
    let on = place.on_cluster();
    let mut changes = Vec::new();
    let of = |name: &str| present.columns.get(name).map_or(&[][..], Vec::as_slice);
    if of(&local).is_empty() || of(front).is_empty() {
        for (at, sql) in create(place, table).into_iter().enumerate() {
            changes.push(Change::new(what(format!("table {dataset}")).filter(|_| at == 0), sql));
        }
    }
    let both = [(&local, &table.local, true), (front, &table.name, false)];
    for (raw, sql, is_local) in both.into_iter().take(if place.cluster.is_some() { 2 } else { 1 }) {
        let found = of(raw);
        if found.is_empty() {
            continue;
        }
        table.learn(found);
        let (wider, added) = compare(table, found, is_local)?;
        for column in wider {
            let text = format!("ALTER TABLE {sql}{on} MODIFY COLUMN {} {}", column.sql, column.ty);
            changes.push(Change::new(
                what(format!("names of {dataset}.{}", column.name)).filter(|_| is_local),
                text,
            ));
        }
        for (after, column) in added {
            // A table without rows of its own compresses nothing.
            let definition =
                if is_local { column.definition() } else { format!("{} {}", column.sql, column.ty) };
            let text =
                format!("ALTER TABLE {sql}{on} ADD COLUMN IF NOT EXISTS {definition} AFTER {}", after.sql);
            changes.push(Change::new(
                what(format!("column {dataset}.{}", column.name)).filter(|_| is_local),
                text,
            ));
        }
    }
    Ok(changes)
}

/// The enumerations that have new names, and the new columns with the ones before them.
type Differences<'a> = (Vec<&'a Column>, Vec<(&'a Column, &'a Column)>);

/// Compares a table with its declaration.
fn compare<'a>(table: &'a Table, found: &[Found], is_local: bool) -> Result<Differences<'a>, Cause> {
    let declare = |(at, column): (usize, &Column)| Found {
        table: String::new(),
        name: column.name.to_owned(),
        ty: column.ty.clone(),
        key: at < table.key() && is_local,
    };
    let declared: Vec<Found> = table.columns.iter().enumerate().map(declare).collect();
    let refuse = |at: usize, advice: &str| {
        let [database, program] = [found, &declared].map(|columns| {
            let column = columns.get(at);
            column.map_or_else(|| "none".to_owned(), Found::to_string)
        });
        Err(Error::new(ErrorKind::SchemaMismatch, "store.clickhouse.schema", "ensure_schema")
            .with_message(format_args!(
                "the table of {} differs in column {}: {advice}",
                table.dataset,
                at + 1
            ))
            .with_context("database", database)
            .with_context("program", program)
            .into())
    };
    let mut wider = Vec::new();
    for (at, (found, declared)) in found.iter().zip(&declared).enumerate() {
        if found.name != declared.name {
            return refuse(
                at,
                "columns cannot be renamed, moved or removed; declare it as it is, and new ones as optional at the end",
            );
        }
        if found.key != declared.key || !(found.ty == declared.ty || is_wider(&declared.ty, &found.ty)) {
            return refuse(
                at,
                "its type, its key and its names cannot change; declare it as it is, or a new dataset",
            );
        }
        if is_wider(&declared.ty, &found.ty) {
            wider.push(&table.columns[at]);
        }
    }
    // More columns in the database are those of a later version of the program.
    let both = found.len().min(declared.len());
    for (at, extra) in found.iter().enumerate().skip(both) {
        if extra.key || !is_nullable(&extra.ty) {
            return refuse(at, "a column that is not optional cannot be left out; declare it");
        }
    }
    for (at, column) in table.columns.iter().enumerate().skip(both) {
        if !is_nullable(&column.ty) {
            return refuse(
                at,
                "a new column must be optional, because the rows that are there have no value for it",
            );
        }
    }
    let added = table.columns.windows(2).skip(both - 1).map(|pair| (&pair[0], &pair[1]));
    Ok((wider, added.collect()))
}

/// The statement that records the columns of a table, unless they are recorded, or the table is of a later version.
fn record(place: &Place<'_>, table: &Table, present: &Present) -> Option<Change> {
    let dataset = table.dataset;
    let columns: Vec<String> =
        table.columns.iter().map(|column| format!("{} {}", column.name, column.ty)).collect();
    let columns = format!("{}; key {}", columns.join(", "), table.key());
    let found = present.columns.get(&place.local(dataset.name())).map_or(&[][..], Vec::as_slice);
    let later = found.len() > table.columns.len();
    let known = present.recorded.iter().any(|(name, known)| name == dataset.name() && *known == columns);
    (!later && !known).then(|| {
        let (name, columns) = (literal(dataset.name()), literal(&columns));
        let table = place.table(DATASETS);
        let sql = format!(
            "INSERT INTO {table} SELECT {name}, {columns}, sipHash64({name}, {columns}), now64(6, 'UTC')"
        );
        Change::new(format!("record of {dataset}"), sql)
    })
}

/// When a row expires, as the server writes it. A TTL is a `DateTime`, which ends in 2106 and begins again in 1970: a
/// later end is that last second, or rows of a far future would be gone at once.
fn expiry(table: &Table, hours: u32) -> String {
    let seconds = u64::from(hours) * 3600;
    format!(
        "toDateTime(least(intDiv(toUnixTimestamp64Micro({}), 1000000) + {seconds}, {}))",
        table.time(),
        u32::MAX
    )
}

/// The statement that gives a table the configured age. One that was set by hand stays where the configuration says
/// nothing.
async fn retention(
    connections: &Connections,
    config: &ClickHouseConfig,
    table: &Table,
    present: &Present,
) -> Result<Option<Change>, Cause> {
    let dataset = table.dataset;
    let Some(hours) = config.retention.get(dataset.name()) else { return Ok(None) };
    let place = Place::of(config);
    let (name, ttl) = (place.local(dataset.name()), expiry(table, hours));
    if present.columns.contains_key(&name) {
        let sql = format!(
            "SELECT toInt8(position(create_table_query, {}) > 0) FROM system.tables WHERE database = {} AND name = {}",
            literal(&format!("TTL {ttl}")),
            literal(&config.database),
            literal(&name),
        );
        if rows(&connections.heavy, &sql, |row| Ok(row.i8()?)).await? == [1] {
            return Ok(None);
        }
    }
    let sql = format!("ALTER TABLE {}{} MODIFY TTL {ttl}", table.local, place.on_cluster());
    Ok(Some(Change::new(format!("retention of {dataset} after {hours} h"), sql)))
}

#[cfg(test)]
mod tests {
    use qi_core::{MarketSnapshot, PriceTick};

    use super::*;

    fn lines(statements: &[String]) -> Vec<&str> {
        statements.iter().flat_map(|statement| statement.lines()).collect()
    }

    #[test]
    fn the_table_of_one_server() {
        let place = Place { database: "qi", prefix: "x_", cluster: None };
        assert_eq!(
            lines(&create(&place, &Table::new(PriceTick::DATASET, &place))),
            [
                "CREATE TABLE IF NOT EXISTS x_ticks (",
                "    exchange LowCardinality(String),",
                "    symbol LowCardinality(String),",
                "    ts DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),",
                "    seq UInt64 CODEC(Delta, ZSTD(1)),",
                "    price Decimal(38, 18) CODEC(ZSTD(1)),",
                "    quantity Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),",
                "    side Nullable(Enum8('buy' = 1, 'sell' = 2))",
                ")",
                "ENGINE = ReplacingMergeTree",
                "PARTITION BY toYYYYMM(ts)",
                "ORDER BY (exchange, symbol, ts, seq)",
            ]
        );
        assert_eq!((place.local("ticks").as_str(), place.on_cluster().as_str()), ("x_ticks", ""));
        assert_eq!(place.parts(), "system.parts");
    }

    #[test]
    fn the_tables_of_a_cluster() {
        let place = Place { database: "qi", prefix: "", cluster: Some("main") };
        let statements = create(&place, &Table::new(PriceTick::DATASET, &place));
        let all = lines(&statements);
        assert_eq!(all[0], "CREATE TABLE IF NOT EXISTS ticks_local ON CLUSTER 'main' (");
        assert!(all.contains(
            &"ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')"
        ));
        assert_eq!(
            all[all.len() - 2..],
            [
                "CREATE TABLE IF NOT EXISTS ticks ON CLUSTER 'main' AS ticks_local",
                "ENGINE = Distributed('main', `qi`, ticks_local, cityHash64(exchange, symbol))",
            ]
        );
        let snapshots = create(&place, &Table::new(MarketSnapshot::DATASET, &place));
        assert!(snapshots[1].ends_with("snapshots_local, cityHash64(scope))"), "{}", snapshots[1]);
        assert!(
            place
                .record(STEPS, "a", "b")
                .contains("'/clickhouse/tables/all/{database}/{table}', '{shard}-{replica}'")
        );
        assert_eq!(place.parts(), "clusterAllReplicas('main', system.parts)");
    }
}
