//! Objects that belong to a table but that older versions of this library did not create: CHECK constraints, and the
//! optional index on time.

use std::collections::{HashMap, HashSet};

use qi_core::record::Dataset;
use qi_core::{Bar, PriceTick, Quote};

use super::config::{Hypertables, TimescaleConfig};
use super::connect::PgConnection;
use super::error::Cause;
use super::table::Table;

/// The statements that create a missing object.
pub(super) struct MissingObject {
    pub(super) label: String,
    pub(super) statements: Vec<String>,
    /// True if the statements cannot run in a transaction.
    pub(super) outside_transaction: bool,
}

impl MissingObject {
    fn new(label: String, statement: String) -> Self {
        Self { label, statements: vec![statement], outside_transaction: false }
    }
}

/// The constraints of the built-in datasets: dataset, name and condition. The records of these datasets are validated,
/// so no valid record violates a constraint.
fn constraints() -> [(Dataset, &'static str, &'static str); 3] {
    [
        (PriceTick::DATASET, "ticks_side", "side IN (1, 2)"),
        (Quote::DATASET, "quotes_price", "bid_price IS NOT NULL OR ask_price IS NOT NULL"),
        (Bar::DATASET, "bars_prices", "high >= greatest(open, low, close) AND low <= least(open, close)"),
    ]
}

/// Returns the missing constraints and indexes of some tables. A table that the current transaction created needs no
/// second step for its existing rows.
pub(super) async fn missing(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    of: impl Fn(&str) -> bool,
    are_new: bool,
) -> Result<Vec<MissingObject>, Cause> {
    let mut missing = Vec::new();
    let known = stored_constraints(connection, config).await?;
    let columnar = columnstore_tables(connection, config).await?;
    for (dataset, name, condition) in constraints() {
        let table = Table::of(dataset, &config.schema);
        let registered = config.datasets.iter().any(|registered| registered == dataset);
        // TimescaleDB does not add constraints to a table with a columnstore.
        if !registered || !of(table.name()) || columnar.contains(table.name()) {
            continue;
        }
        let (relation, label) = (table.relation(), format!("constraint {name}"));
        let add = format!("ALTER TABLE {relation} ADD CONSTRAINT \"{name}\" CHECK ({condition})");
        let validate = format!("ALTER TABLE {relation} VALIDATE CONSTRAINT \"{name}\"");
        match known.get(name) {
            None if are_new => missing.push(MissingObject::new(label, add)),
            None => {
                // The first step locks the table, but only for a moment. The second reads all rows while writers run.
                missing.push(MissingObject::new(label.clone(), add + " NOT VALID"));
                missing.push(MissingObject::new(format!("validation of {label}"), validate));
            }
            Some(false) => missing.push(MissingObject::new(format!("validation of {label}"), validate)),
            Some(true) => {}
        }
    }
    let indexes = stored_indexes(connection, config).await?;
    for dataset in config.datasets.iter().filter(|dataset| of(dataset.name())) {
        if config.has_time_index(dataset) {
            missing.extend(missing_index(config, &Table::of(dataset, &config.schema), &indexes, are_new));
        }
    }
    Ok(missing)
}

/// Returns the statements that create the index on time, or builds it again if an interrupted build left it invalid.
fn missing_index(
    config: &TimescaleConfig,
    table: &Table,
    indexes: &HashMap<String, bool>,
    is_new: bool,
) -> Option<MissingObject> {
    let name = format!("{}_time", table.name());
    let found = indexes.get(&name);
    if found == Some(&true) {
        return None;
    }
    // Late records widen few entries of this operator class. Without `autosummarize`, new rows are indexed by a vacuum.
    let columns = format!("USING brin (\"{}\" timestamptz_minmax_multi_ops)", table.time());
    let options = "autosummarize = on";
    let (relation, label) = (table.relation(), format!("index {name}"));
    if is_new {
        let create = format!("CREATE INDEX \"{name}\" ON {relation} {columns} WITH ({options})");
        return Some(MissingObject::new(label, create));
    }
    let mut statements = Vec::new();
    let invalid = config.relation(&name);
    match config.hypertables {
        Hypertables::On => {
            statements.extend(found.map(|_| format!("DROP INDEX {invalid}")));
            let options = format!("{options}, timescaledb.transaction_per_chunk");
            statements.push(format!("CREATE INDEX \"{name}\" ON {relation} {columns} WITH ({options})"));
        }
        Hypertables::Off => {
            statements.extend(found.map(|_| format!("DROP INDEX CONCURRENTLY {invalid}")));
            let create = "CREATE INDEX CONCURRENTLY";
            statements.push(format!("{create} \"{name}\" ON {relation} {columns} WITH ({options})"));
        }
    }
    Some(MissingObject { label, statements, outside_transaction: true })
}

/// Returns the CHECK constraints of the schema's tables, with true for each constraint that all rows satisfy.
async fn stored_constraints(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
) -> Result<HashMap<String, bool>, Cause> {
    let rows: Vec<(String, bool)> = sqlx::query_as(
        "SELECT o.conname::text, o.convalidated FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid \
         WHERE c.relnamespace = to_regnamespace($1) AND o.contype = 'c'",
    )
    .bind(&config.schema)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Returns the indexes of the schema, with true for each valid index.
async fn stored_indexes(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
) -> Result<HashMap<String, bool>, Cause> {
    let rows: Vec<(String, bool)> = sqlx::query_as(
        "SELECT c.relname::text, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
         WHERE c.relnamespace = to_regnamespace($1)",
    )
    .bind(&config.schema)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Returns the hypertables whose columnstore is enabled.
async fn columnstore_tables(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
) -> Result<HashSet<String>, Cause> {
    if super::policy::extension(connection).await?.is_none() {
        return Ok(HashSet::new());
    }
    let rows: Vec<String> = sqlx::query_scalar(
        "SELECT hypertable_name::text FROM timescaledb_information.hypertables \
         WHERE hypertable_schema = $1 AND compression_enabled",
    )
    .bind(&config.schema)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}
