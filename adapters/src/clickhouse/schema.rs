//! The schema. Its statements are safe to run from many processes at the same time.
//!
//! ClickHouse has no locks and no transactions for schema changes. Therefore a statement has no effect if its work is
//! already done, and declarations are recorded after all other changes. The schema is checked again until no change is
//! left, because another version of the program may have created a table in between.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use qi_core::PriceTick;
use qi_core::domain::duration;
use qi_core::store::SchemaReport;
use qi_core::store::kit::evolution;

use super::config::ClickHouseConfig;
use super::connect::{Connections, execute, rows};
use super::error::{ACCESS_DENIED, Cause, NO_TABLE};
use super::materialized;
use super::table::{FIRST_DATASETS, StoredColumn, Table, TableLocation, is_wider, literal};
use super::wire::Reader;
use crate::legacy_datasets;

/// The version of the schema: the step that created the tables of the first built-in datasets. Later changes of a
/// dataset are recorded by its columns.
const VERSION: u32 = 1;

/// The maximum number of rounds of checks and changes.
const ROUNDS: usize = 20;

/// A repeatable statement with its description in the report.
#[derive(Debug)]
pub(super) struct Change {
    description: Option<String>,
    pub(super) sql: String,
    is_declaration: bool,
    /// True if only `migrate_schema` may run the statement, because it changes the retention or the materialized bars
    /// of an existing table.
    migrate_only: bool,
}

/// The changes that a call applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// All changes except those that only `migrate_schema` may apply.
    Missing,
    /// All changes.
    All,
}

impl Change {
    fn new(description: impl Into<Option<String>>, sql: String) -> Self {
        Self { description: description.into(), sql, is_declaration: false, migrate_only: false }
    }
}

/// Returns the statements that create a table. On a cluster these are a local table on every node, and a `Distributed`
/// table in front that shards the rows by owner.
///
/// The engine has no version column, so the order of insertion decides which row of a key is kept. With a timestamp of
/// the server as version, a write with a clock one second behind would be lost.
fn create(location: &TableLocation<'_>, table: &Table) -> Vec<String> {
    let columns: Vec<String> =
        table.columns.iter().map(|column| format!("    {}", column.definition())).collect();
    let engine = match location.cluster {
        None => "ReplacingMergeTree".to_owned(),
        // With the default path of the server, which contains `{uuid}`, a dropped table can be created again immediately.
        Some(_) => "ReplicatedReplacingMergeTree".to_owned(),
    };
    let (local, on) = (&table.local, location.on_cluster());
    let mut statements = vec![format!(
        "CREATE TABLE IF NOT EXISTS {local}{on} (\n{columns},\n    {projection}\n)\nENGINE = {engine}\n\
         PARTITION BY {partition}({time})\nORDER BY ({key})\n\
         SETTINGS {NEW_TABLE_SETTINGS}, {PROJECTION_SETTINGS}",
        columns = columns.join(",\n"),
        projection = projection(table),
        partition = table.partition_function(),
        time = table.time(),
        key = table.key_columns,
    )];
    if let Some(cluster) = location.cluster {
        // Shards by the owner columns, so that all rows of a series are on one shard.
        statements.push(format!(
            "CREATE TABLE IF NOT EXISTS {name}{on} AS {local}\n\
             ENGINE = Distributed('{cluster}', `{database}`, {local}, cityHash64({owner}))",
            name = table.name,
            database = location.database,
            owner = table.owner_columns,
        ));
    }
    statements
}

/// Returns the definition of the projection with the first and the last time of each series. The server maintains it in
/// every part, through merges and deletions, so discovery reads a row for each series and part instead of all rows.
fn projection(table: &Table) -> String {
    format!(
        "PROJECTION {SERIES_PROJECTION} (SELECT {series}, min({time}), max({time}) GROUP BY {series})",
        series = table.series_columns(),
        time = table.time()
    )
}

/// The name of the projection. Projections and columns have separate namespaces: a part stores the projection in the
/// folder `qi_series.proj`. The name therefore cannot collide with a column of a dataset.
const SERIES_PROJECTION: &str = "qi_series";

/// The settings of a table with a projection. Without them, the server rejects the projection or its deletions.
const PROJECTION_SETTINGS: &str =
    "deduplicate_merge_projection_mode = 'rebuild', lightweight_mutation_projection_mode = 'rebuild'";

/// The settings of a table with a TTL. The server drops a part when all its rows have expired; it does not rewrite a
/// part to remove only some rows. A change of the TTL computes the expiry of existing parts without writing their rows
/// again.
const TTL_SETTINGS: &str = "ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1";

/// The settings of new tables. Existing tables keep their settings. A lookup of one row reads all rows between two
/// marks of the primary index, and decompresses the complete blocks of these rows. The minimum size of a block, in
/// bytes before compression, is the size of 2,048 values of 8 bytes.
const NEW_TABLE_SETTINGS: &str = "index_granularity = 2048, min_compress_block_size = 16384";

/// The error code for a database that does not exist.
const NO_DATABASE: u16 = 81;

/// The table that records the migration steps.
const MIGRATIONS_TABLE: &str = "qi_migrations";

/// The table that records all declarations of datasets that migration step 1 does not cover.
const DATASETS_TABLE: &str = "qi_datasets";

/// Applies the missing changes of the scope, and reports the settings that differ.
pub(super) async fn ensure(
    connections: &Connections,
    config: &ClickHouseConfig,
    tables: &[Table],
    scope: Scope,
) -> Result<SchemaReport, Cause> {
    let mut applied = Vec::new();
    if scope == Scope::All && tables.iter().any(|table| table.dataset == PriceTick::DATASET) {
        materialized::check_retention(connections, config).await?;
    }
    for _ in 0..ROUNDS {
        let changes = plan(connections, config, tables).await?.into_iter();
        let (left, changes): (Vec<_>, Vec<_>) =
            changes.partition(|change| change.migrate_only && scope == Scope::Missing);
        if changes.is_empty() {
            let mut report = SchemaReport::new(VERSION, applied);
            report.differs = left.into_iter().filter_map(|change| change.description).collect();
            return Ok(report);
        }
        // A declaration is recorded only after a check confirms that the tables match it. Another program may have
        // added other columns at the same time.
        let has_other_changes = changes.iter().any(|change| !change.is_declaration);
        for Change { description, sql, .. } in
            changes.into_iter().filter(|change| change.is_declaration != has_other_changes)
        {
            // The server rejects a request with a database that does not exist.
            let client = if sql.starts_with("CREATE DATABASE") {
                &connections.server_client
            } else {
                &connections.bulk_client
            };
            execute(client, &sql).await?;
            applied.extend(description);
        }
    }
    Err(Cause::ConcurrentChange)
}

/// The current state of the schema in the database.
#[derive(Default)]
struct CurrentSchema {
    database: bool,
    steps: Vec<u64>,
    columns: HashMap<String, Vec<StoredColumn>>,
    /// The tables without the projection.
    without_projection: HashSet<String>,
    /// The tables that have parts without the projection and no recorded mutation that materializes it.
    with_old_parts: HashSet<String>,
    /// The recorded declarations of each dataset, as lines.
    recorded: HashMap<String, Vec<Vec<String>>>,
}

/// Returns the missing changes in the order of execution.
pub(super) async fn plan(
    connections: &Connections,
    config: &ClickHouseConfig,
    tables: &[Table],
) -> Result<Vec<Change>, Cause> {
    let location = TableLocation::of(config);
    let current = read_current_schema(connections, config, tables).await?;
    if let Some(newer) = current.steps.iter().find(|step| **step != u64::from(VERSION)) {
        let rule = format!(
            "schema step {newer} is unknown to this version of the library, expected at most {VERSION}"
        );
        return Err(Cause::Schema { rule });
    }
    let mut changes = Vec::new();
    if !current.database {
        let create = format!("CREATE DATABASE IF NOT EXISTS `{}`{}", config.database, location.on_cluster());
        changes.push(Change::new(format!("database {}", config.database), create));
    }
    let (first, others): (Vec<&Table>, Vec<&Table>) =
        tables.iter().partition(|table| FIRST_DATASETS.contains(&table.dataset));
    // Migration step 1 covers all four datasets. A program that omits one of them creates its tables without the step.
    let step = current.steps.is_empty() && first.len() == FIRST_DATASETS.len();
    if step {
        changes.push(Change::new(
            None,
            location.bookkeeping_table(MIGRATIONS_TABLE, "version UInt32, name String", "version"),
        ));
    }
    let mut declarations = Vec::new();
    for table in first {
        declarations.extend(declaration_change(&location, table, &current)?);
        changes.extend(table_changes(&location, table, &current, !step)?);
    }
    if step {
        let sql = format!(
            "INSERT INTO {} SELECT 1, 'tables', now64(6, 'UTC')",
            location.table_name(MIGRATIONS_TABLE)
        );
        changes.push(Change::new("migration step 1: tables".to_owned(), sql));
    }
    for table in others {
        declarations.extend(declaration_change(&location, table, &current)?);
        changes.extend(table_changes(&location, table, &current, true)?);
    }
    for table in tables {
        changes.extend(retention_change(connections, config, table, &current).await?);
    }
    changes.extend(bars_changes(connections, config, &current).await?);
    if !declarations.is_empty() {
        let columns = "dataset String, columns String, checksum UInt64";
        let create = location.bookkeeping_table(DATASETS_TABLE, columns, "(dataset, columns)");
        changes.push(Change { is_declaration: true, ..Change::new(None, create) });
        changes.extend(declarations);
    }
    Ok(changes)
}

async fn read_current_schema(
    connections: &Connections,
    config: &ClickHouseConfig,
    tables: &[Table],
) -> Result<CurrentSchema, Cause> {
    let (client, location) = (&connections.bulk_client, TableLocation::of(config));
    // Migration step 1 creates the tables of these datasets without a recorded declaration.
    let mut recorded: HashMap<_, Vec<_>> =
        legacy_datasets::lines().into_iter().map(|(dataset, lines)| (dataset, vec![lines])).collect();
    let sql = format!(
        "SELECT toUInt64(version) AS v FROM {} FINAL ORDER BY v",
        location.table_name(MIGRATIONS_TABLE)
    );
    let steps = match rows(client, &sql, |row: &mut Reader<'_>| Ok(row.u64()?)).await {
        Ok(steps) => steps,
        Err(cause) if cause.has_code(NO_DATABASE) => {
            return Ok(CurrentSchema { recorded, ..CurrentSchema::default() });
        }
        Err(cause) if cause.has_code(NO_TABLE) => Vec::new(),
        Err(cause) => return Err(cause),
    };
    let mut names: Vec<String> =
        tables.iter().map(|table| location.local_name(table.dataset.name())).collect();
    if location.cluster.is_some() {
        names.extend(tables.iter().map(|table| table.unquoted_name.clone()));
    }
    let mut columns = HashMap::<_, Vec<_>>::new();
    let with_state = [&names[..], &[location.table_name(materialized::STATE_TABLE)]].concat();
    for found in stored_columns(client, config, &with_state).await? {
        columns.entry(found.table.clone()).or_default().push(found);
    }
    let sql = format!(
        "SELECT dataset, columns, toInt8(checksum = sipHash64(dataset, columns)) FROM {} FINAL",
        location.table_name(DATASETS_TABLE)
    );
    let read = rows(client, &sql, |row| {
        let (dataset, columns) = (row.text()?.to_owned(), row.text()?.to_owned());
        if row.i8()? == 1 {
            return Ok((dataset, columns.lines().map(str::to_owned).collect::<Vec<_>>()));
        }
        let rule = format!("table {DATASETS_TABLE}: checksum mismatch for dataset {dataset}");
        Err(Cause::Schema { rule })
    });
    let read = match read.await {
        Err(cause) if cause.has_code(NO_TABLE) => Vec::new(),
        read => read?,
    };
    for (dataset, lines) in read {
        recorded.entry(dataset).or_default().push(lines);
    }
    let (without_projection, with_old_parts) = read_projections(client, &location, &names).await?;
    Ok(CurrentSchema { database: true, steps, columns, without_projection, with_old_parts, recorded })
}

/// Returns the tables without the projection, and the tables that have parts without it and no recorded mutation that
/// materializes it.
async fn read_projections(
    client: &clickhouse::Client,
    location: &TableLocation<'_>,
    names: &[String],
) -> Result<(HashSet<String>, HashSet<String>), Cause> {
    if names.is_empty() {
        return Ok(Default::default());
    }
    let database = literal(location.database);
    let names = names.iter().map(|name| literal(name)).collect::<Vec<_>>().join(", ");
    let tables = |sql: String| async move {
        let found = rows(client, &sql, |row| Ok(row.text()?.to_owned())).await?;
        Ok::<HashSet<String>, Cause>(found.into_iter().collect())
    };
    let without = tables(format!(
        "SELECT name FROM system.tables WHERE database = {database} AND name IN ({names}) \
         AND engine LIKE '%MergeTree' AND position(create_table_query, 'PROJECTION {SERIES_PROJECTION}') = 0"
    ));
    let with_old_parts = tables(format!(
        "SELECT DISTINCT table FROM {parts} WHERE active AND rows > 0 AND database = {database} \
         AND table IN ({names}) AND NOT has(projections, '{SERIES_PROJECTION}') AND table NOT IN (\
         SELECT table FROM system.mutations WHERE database = {database} \
         AND command LIKE '%MATERIALIZE PROJECTION {SERIES_PROJECTION}%')",
        parts = location.system_parts(),
    ));
    let without = without.await?;
    match with_old_parts.await {
        // A user who does not migrate need not have the privilege to read these tables of the server.
        Err(cause) if cause.has_code(ACCESS_DENIED) => Ok((without, HashSet::new())),
        found => Ok((without, found?)),
    }
}

/// Returns the columns of these tables, in order.
pub(super) async fn stored_columns(
    client: &clickhouse::Client,
    config: &ClickHouseConfig,
    names: &[String],
) -> Result<Vec<StoredColumn>, Cause> {
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
        Ok(StoredColumn { table, name, ty, key: row.i8()? != 0 })
    })
    .await
}

/// Returns the statements that create a table or adapt it to its declaration. Without `named`, they have no description
/// in the report, because migration step 1 describes them.
fn table_changes(
    location: &TableLocation<'_>,
    table: &Table,
    current: &CurrentSchema,
    named: bool,
) -> Result<Vec<Change>, Cause> {
    let dataset = table.dataset;
    let describe = |text: String| named.then_some(text);
    let (local, front) = (location.local_name(dataset.name()), &table.unquoted_name);
    let on = location.on_cluster();
    let mut changes = Vec::new();
    let of = |name: &str| current.columns.get(name).map_or(&[][..], Vec::as_slice);
    if of(&local).is_empty() || of(front).is_empty() {
        for (at, sql) in create(location, table).into_iter().enumerate() {
            changes.push(Change::new(describe(format!("table {dataset}")).filter(|_| at == 0), sql));
        }
    }
    let both = [(&local, &table.local, true), (front, &table.name, false)];
    for (name, sql, is_local) in both.into_iter().take(if location.cluster.is_some() { 2 } else { 1 }) {
        let found = of(name);
        if found.is_empty() {
            continue;
        }
        table.update_enum_types(found);
        if is_local {
            let mut projection_change = |description: Option<String>, change: &str| {
                changes.push(Change::new(description, format!("ALTER TABLE {sql}{on} {change}")));
            };
            let is_missing = current.without_projection.contains(name);
            if is_missing {
                projection_change(None, &format!("MODIFY SETTING {PROJECTION_SETTINGS}"));
                let description = describe(format!("projection of {dataset}"));
                projection_change(
                    description,
                    &format!(
                        "ADD {}",
                        projection(table).replacen("PROJECTION", "PROJECTION IF NOT EXISTS", 1)
                    ),
                );
            }
            // The mutation runs in the background. Until then, the server reads the rows of these parts.
            if is_missing || current.with_old_parts.contains(name) {
                projection_change(None, &format!("MATERIALIZE PROJECTION {SERIES_PROJECTION}"));
            }
        }
        let mut before = None;
        for (at, column) in table.columns.iter().enumerate() {
            let after = before.replace(column);
            let optional = at.checked_sub(table.key_len()).is_some_and(|at| dataset.values()[at].optional);
            let (label, change) = match (found.iter().find(|found| found.name == column.name), after) {
                (Some(StoredColumn { ty, key, .. }), _)
                    if (*ty == column.ty || is_wider(ty, &column.ty))
                        && *key == (is_local && at < table.key_len()) =>
                {
                    continue;
                }
                (Some(StoredColumn { ty, .. }), _) if is_wider(&column.ty, ty) => {
                    ("enumeration names of", format!("MODIFY COLUMN {} {}", column.sql, column.ty))
                }
                (None, Some(after)) if optional => {
                    // A `Distributed` table stores no rows, so its columns have no codec.
                    let definition =
                        if is_local { column.definition() } else { format!("{} {}", column.sql, column.ty) };
                    ("column", format!("ADD COLUMN IF NOT EXISTS {definition} AFTER {}", after.sql))
                }
                (found, _) => {
                    let ty = &column.ty;
                    let rule = match found {
                        None => format!("table {name}: column {} is missing, expected {ty}", column.name),
                        Some(found) => {
                            let in_key = if is_local && at < table.key_len() { " in the key" } else { "" };
                            format!(
                                "table {name}: column {} has type {found}, expected {ty}{in_key}",
                                column.name
                            )
                        }
                    };
                    return Err(Cause::Schema { rule });
                }
            };
            let label = format!("{label} {dataset}.{}", column.name);
            let text = format!("ALTER TABLE {sql}{on} {change}");
            changes.push(Change::new(describe(label).filter(|_| is_local), text));
        }
    }
    Ok(changes)
}

/// Compares a declaration with the recorded declarations. Returns the statement that records it, unless a
/// recorded declaration covers it.
fn declaration_change(
    location: &TableLocation<'_>,
    table: &Table,
    current: &CurrentSchema,
) -> Result<Option<Change>, Cause> {
    let dataset = table.dataset;
    let mut covered = false;
    for stored in current.recorded.get(dataset.name()).into_iter().flatten() {
        covered |= evolution::compare(dataset, stored)?.is_empty();
    }
    let sql = || {
        let (name, columns) = (literal(dataset.name()), literal(&evolution::lines(dataset).join("\n")));
        let table = location.table_name(DATASETS_TABLE);
        format!("INSERT INTO {table} SELECT {name}, {columns}, sipHash64({name}, {columns}), now64(6, 'UTC')")
    };
    Ok((!covered)
        .then(|| Change { is_declaration: true, ..Change::new(format!("declaration of {dataset}"), sql()) }))
}

/// Returns the TTL expression of a table. A TTL is a `DateTime`, which ends in 2106 and wraps to 1970. A later expiry is
/// capped at the last second of that range, because the server would otherwise remove rows of the far future immediately.
fn ttl_expression(table: &Table, age: Duration) -> String {
    let seconds = age.as_secs();
    format!(
        "toDateTime(least(intDiv(toUnixTimestamp64Micro({}), 1000000) + {seconds}, {}))",
        table.time(),
        u32::MAX
    )
}

/// Returns the statements that switch materialized bars on or off, if their state differs from the configuration, or that add objects of a later version of the library.
async fn bars_changes(
    connections: &Connections,
    config: &ClickHouseConfig,
    current: &CurrentSchema,
) -> Result<Vec<Change>, Cause> {
    let ticks = config.datasets.iter().any(|dataset| dataset == PriceTick::DATASET);
    let Some(wanted) = config.materialized_bars.filter(|_| ticks) else { return Ok(Vec::new()) };
    let location = TableLocation::of(config);
    let sql = format!(
        "SELECT count() FROM system.tables WHERE database = {} AND name = {}",
        literal(&config.database),
        // Switching on creates the state table last, and switching off drops the lease table last. An interrupted
        // switch is therefore repeated.
        literal(&location.table_name(if wanted {
            materialized::STATE_TABLE
        } else {
            materialized::LEASE_TABLE
        }))
    );
    let exists = current.database && rows(&connections.bulk_client, &sql, |row| Ok(row.u64()?)).await? != [0];
    let (mut statements, label) = match (exists, wanted) {
        (true, true) => {
            let state = current.columns.get(&location.table_name(materialized::STATE_TABLE));
            let has_settle =
                state.is_some_and(|columns| columns.iter().any(|c| c.name == materialized::SETTLE));
            if has_settle && materialized::has_tick_constraints(connections, config).await? {
                return Ok(Vec::new());
            }
            (materialized::update(config), "objects of materialized bars")
        }
        (false, true) => (materialized::switch(config, true), "materialized bars on"),
        (true, false) => (materialized::switch(config, false), "materialized bars off"),
        (false, false) => return Ok(Vec::new()),
    };
    let migrate_only = current.columns.contains_key(&location.local_name(PriceTick::DATASET.name()));
    let last = statements.pop();
    let mut changes: Vec<_> = statements.into_iter().map(|sql| Change::new(None, sql)).collect();
    changes.extend(last.map(|sql| Change::new(label.to_owned(), sql)));
    Ok(changes.into_iter().map(|change| Change { migrate_only, ..change }).collect())
}

/// Returns the statements that set the configured TTL of a table. Keeps a TTL that was set manually if the
/// configuration has no entry.
async fn retention_change(
    connections: &Connections,
    config: &ClickHouseConfig,
    table: &Table,
    current: &CurrentSchema,
) -> Result<Vec<Change>, Cause> {
    let dataset = table.dataset;
    let Some(age) = config.retention.get(dataset.name()) else { return Ok(Vec::new()) };
    let location = TableLocation::of(config);
    let (name, ttl) = (location.local_name(dataset.name()), ttl_expression(table, age));
    let migrate_only = current.columns.contains_key(&name);
    if migrate_only {
        // The server formats both expressions, so the comparison does not depend on its format.
        let sql = format!(
            "SELECT toInt8(position(formatQuerySingleLine(create_table_query), \
             substring(formatQuerySingleLine({wanted}) AS _wanted, position(_wanted, ' TTL '))) > 0) \
             FROM system.tables WHERE database = {database} AND name = {name}",
            wanted = literal(&format!("CREATE TABLE t (a Int8) ENGINE = MergeTree ORDER BY a TTL {ttl}")),
            database = literal(&config.database),
            name = literal(&name),
        );
        if rows(&connections.bulk_client, &sql, |row| Ok(row.i8()?)).await? == [1] {
            return Ok(Vec::new());
        }
    }
    let alter =
        |change: &str| format!("ALTER TABLE {}{} MODIFY {change}", table.local, location.on_cluster());
    let changes = [
        Change::new(None, alter(&format!("SETTING {TTL_SETTINGS}"))),
        Change::new(
            format!("retention of {dataset} after {}", duration::format(age)),
            alter(&format!("TTL {ttl}")),
        ),
    ];
    Ok(changes.into_iter().map(|change| Change { migrate_only, ..change }).collect())
}

#[cfg(test)]
mod tests {
    use qi_core::{MarketSnapshot, PriceTick};

    use super::*;

    fn lines(statements: &[String]) -> Vec<&str> {
        statements.iter().flat_map(|statement| statement.lines()).collect()
    }

    #[test]
    fn a_server_without_cluster_has_one_table() {
        let location = TableLocation { database: "qi", prefix: "x_", cluster: None };
        assert_eq!(
            lines(&create(&location, &Table::new(PriceTick::DATASET, &location))),
            [
                "CREATE TABLE IF NOT EXISTS x_ticks (",
                "    exchange LowCardinality(String),",
                "    symbol LowCardinality(String),",
                "    ts DateTime64(6, 'UTC') CODEC(DoubleDelta, ZSTD(1)),",
                "    seq UInt64 CODEC(Delta, ZSTD(1)),",
                "    price Decimal(38, 18) CODEC(ZSTD(1)),",
                "    quantity Nullable(Decimal(38, 18)) CODEC(ZSTD(1)),",
                "    side Nullable(Enum8('buy' = 1, 'sell' = 2)),",
                "    PROJECTION qi_series (SELECT exchange, symbol, min(ts), max(ts) GROUP BY exchange, symbol)",
                ")",
                "ENGINE = ReplacingMergeTree",
                "PARTITION BY toYYYYMM(ts)",
                "ORDER BY (exchange, symbol, ts, seq)",
                "SETTINGS index_granularity = 2048, min_compress_block_size = 16384, \
                 deduplicate_merge_projection_mode = 'rebuild', \
                 lightweight_mutation_projection_mode = 'rebuild'",
            ]
        );
        assert_eq!((location.local_name("ticks").as_str(), location.on_cluster().as_str()), ("x_ticks", ""));
        assert_eq!(location.system_parts(), "system.parts");
    }

    #[test]
    fn a_cluster_has_a_local_and_a_distributed_table() {
        let location = TableLocation { database: "qi", prefix: "", cluster: Some("main") };
        let statements = create(&location, &Table::new(PriceTick::DATASET, &location));
        let all = lines(&statements);
        assert_eq!(all[0], "CREATE TABLE IF NOT EXISTS ticks_local ON CLUSTER 'main' (");
        assert!(all.contains(&"ENGINE = ReplicatedReplacingMergeTree"));
        assert_eq!(
            all[all.len() - 2..],
            [
                "CREATE TABLE IF NOT EXISTS ticks ON CLUSTER 'main' AS ticks_local",
                "ENGINE = Distributed('main', `qi`, ticks_local, cityHash64(exchange, symbol))",
            ]
        );
        let snapshots = create(&location, &Table::new(MarketSnapshot::DATASET, &location));
        assert!(snapshots[1].ends_with("snapshots_local, cityHash64(scope))"), "{}", snapshots[1]);
        assert!(
            location
                .bookkeeping_table(MIGRATIONS_TABLE, "a", "b")
                .contains("'/clickhouse/tables/all/{database}/{table}', '{shard}-{replica}'")
        );
        assert_eq!(location.system_parts(), "clusterAllReplicas('main', system.parts)");
    }
}
