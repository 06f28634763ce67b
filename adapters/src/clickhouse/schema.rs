//! The schema: made by steps that are safe to run from many processes at once, recorded when they are done.

use qi_core::store::SchemaReport;

use super::config::ClickHouseConfig;
use super::connect::{Connections, rows, run};
use super::error::Cause;
use super::table::{TABLES, Table};
use super::wire::Reader;

/// A step: statements that can be repeated.
struct Step {
    version: u32,
    name: &'static str,
    statements: Vec<String>,
}

/// The steps, oldest first. They are only ever added to. There are no locks for them in this database, so each
/// statement does nothing where its work is done.
fn steps(place: &Place<'_>) -> Vec<Step> {
    vec![Step {
        version: 1,
        name: "tables",
        statements: TABLES.iter().flat_map(|table| create(place, table)).collect(),
    }]
}

/// The statements that make a table; on a cluster a table on every node, and one in front of them that spreads the
/// rows by what they belong to.
///
/// Without a version column the order of insertion decides which of two rows of one key stays; with a clock of the
/// server, a write one second "earlier" would be lost.
fn create(place: &Place<'_>, table: &Table) -> Vec<String> {
    let columns: Vec<String> = table
        .columns()
        .map(|column| format!("    {} {} {}", column.name, column.ty, column.codec).trim_end().to_owned())
        .collect();
    let engine = match place.cluster {
        None => "ReplacingMergeTree".to_owned(),
        Some(_) => {
            "ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')"
                .to_owned()
        }
    };
    let local = place.local(table.name);
    let mut statements = vec![format!(
        "CREATE TABLE IF NOT EXISTS {local}{on} (\n{columns}\n)\nENGINE = {engine}\n\
         PARTITION BY {partition}({time})\nORDER BY ({key})",
        on = place.on_cluster(),
        columns = columns.join(",\n"),
        partition = table.partition,
        time = table.time(),
        key = table.key_list(),
    )];
    if let Some(cluster) = place.cluster {
        // By the first part of the key, so that a series lies on one shard.
        let owner = if table.series.len() == 1 { "scope" } else { "exchange, symbol" };
        statements.push(format!(
            "CREATE TABLE IF NOT EXISTS {name}{on} AS {local}\n\
             ENGINE = Distributed('{cluster}', `{database}`, {local}, cityHash64({owner}))",
            name = place.table(table.name),
            on = place.on_cluster(),
            database = place.database,
        ));
    }
    statements
}

/// Where the tables are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) database: &'a str,
    pub(super) prefix: &'a str,
    pub(super) cluster: Option<&'a str>,
}

impl<'a> Place<'a> {
    pub(super) fn of(config: &'a ClickHouseConfig) -> Self {
        Self { database: &config.database, prefix: &config.table_prefix, cluster: config.cluster.as_deref() }
    }

    /// The table that is read and written.
    pub(super) fn table(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The table that holds the rows of a node: what is deleted from.
    pub(super) fn local(&self, name: &str) -> String {
        if self.cluster.is_some() { format!("{}{name}_local", self.prefix) } else { self.table(name) }
    }

    /// ` ON CLUSTER 'name'`, or nothing.
    pub(super) fn on_cluster(&self) -> String {
        self.cluster.map_or_else(String::new, |cluster| format!(" ON CLUSTER '{cluster}'"))
    }

    /// The parts of all nodes.
    pub(super) fn parts(&self) -> String {
        self.cluster.map_or_else(
            || "system.parts".to_owned(),
            |cluster| format!("clusterAllReplicas('{cluster}', system.parts)"),
        )
    }

    /// The table that records the steps: on a cluster one that every node has in full.
    fn record(&self) -> String {
        let engine = match self.cluster {
            None => "ReplacingMergeTree",
            Some(_) => {
                "ReplicatedReplacingMergeTree('/clickhouse/tables/all/{database}/{table}', '{shard}-{replica}')"
            }
        };
        format!(
            "CREATE TABLE IF NOT EXISTS {}{} (version UInt32, name String, applied_at DateTime64(6, 'UTC')) \
             ENGINE = {engine} ORDER BY version",
            self.table(RECORD),
            self.on_cluster(),
        )
    }
}

/// The code of a server that has no such database.
const NO_DATABASE: u16 = 81;

/// The table that records the steps.
const RECORD: &str = "qi_migrations";

/// Creates what is missing.
pub(super) async fn ensure(
    connections: &Connections,
    config: &ClickHouseConfig,
) -> Result<SchemaReport, Cause> {
    let (client, place) = (&connections.heavy, Place::of(config));
    let steps = steps(&place);
    let version = steps.iter().map(|step| step.version).max().unwrap_or(0);
    let mut applied = Vec::new();
    let done = match recorded(connections, config).await {
        Err(cause) if cause.has_code(NO_DATABASE) => {
            let create = format!("CREATE DATABASE IF NOT EXISTS `{}`{}", config.database, place.on_cluster());
            // The server refuses a request that names a database which does not exist.
            run(&connections.server, &create).await?;
            applied.push(format!("database {}", config.database));
            recorded(connections, config).await?
        }
        other => other?,
    };
    if let Some(newer) = done.iter().find(|done| steps.iter().all(|step| step.version != **done)) {
        let rule = format!("the database has step {newer}, which this version of the library does not know");
        return Err(Cause::Schema { rule });
    }
    for step in steps.iter().filter(|step| !done.contains(&step.version)) {
        run(client, &place.record()).await?;
        for statement in &step.statements {
            run(client, statement).await?;
        }
        // Last, so that a step that was interrupted is done again.
        run(
            client,
            &format!(
                "INSERT INTO {} SELECT {}, '{}', now64(6, 'UTC')",
                place.table(RECORD),
                step.version,
                step.name
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

/// Gives a table the configured age. One that was set by hand stays where the configuration says nothing.
async fn retention(
    connections: &Connections,
    config: &ClickHouseConfig,
    table: &Table,
) -> Result<Option<String>, Cause> {
    let Some(hours) = config.retention.hours(table.dataset) else { return Ok(None) };
    let place = Place::of(config);
    let name = place.local(table.name);
    let ttl = expiry(table, hours);
    let sql = format!(
        "SELECT toInt8(position(create_table_query, 'TTL {ttl}') > 0) FROM system.tables \
         WHERE database = '{}' AND name = '{name}'",
        config.database
    );
    if rows(&connections.heavy, &sql, |row| Ok(row.i8()?)).await? == [1] {
        return Ok(None);
    }
    run(&connections.heavy, &format!("ALTER TABLE {name}{} MODIFY TTL {ttl}", place.on_cluster())).await?;
    Ok(Some(format!("retention of {} after {hours} h", table.name)))
}

#[cfg(test)]
mod tests {
    use qi_core::PriceTick;
    use qi_core::store::Dataset;

    use super::super::table::Stored as _;
    use super::*;

    fn lines(statements: &[String]) -> Vec<&str> {
        statements.iter().flat_map(|statement| statement.lines()).collect()
    }

    #[test]
    fn the_table_of_one_server() {
        let place = Place { database: "qi", prefix: "x_", cluster: None };
        assert_eq!(
            lines(&create(&place, &PriceTick::TABLE)),
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
        let statements = create(&place, &PriceTick::TABLE);
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
        let snapshots = create(&place, super::super::table::table_of(Dataset::Snapshots));
        assert!(snapshots[1].ends_with("snapshots_local, cityHash64(scope))"), "{}", snapshots[1]);
        assert!(place.record().contains("'/clickhouse/tables/all/{database}/{table}', '{shard}-{replica}'"));
        assert_eq!(place.parts(), "clusterAllReplicas('main', system.parts)");
    }
}
