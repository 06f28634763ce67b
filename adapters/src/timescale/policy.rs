//! Settings of hypertables: the chunk interval, and the background policies of the Community edition.

use std::collections::HashMap;
use std::time::Duration;

use qi_core::domain::duration;

use super::config::TimescaleConfig;
use super::connect::PgConnection;
use super::error::Cause;
use super::table::Table;

/// Returns the steps that change the settings of some tables to the configured ones. Keeps the existing policies of
/// datasets without an entry.
pub(super) async fn steps(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    of: impl Fn(&str) -> bool,
) -> Result<Vec<(String, Vec<String>)>, Cause> {
    let installed = extension(connection).await?;
    let extension = installed.as_deref().unwrap_or("public");
    let intervals = match &installed {
        Some(_) => chunk_intervals(connection, config).await?,
        None => HashMap::new(),
    };
    let mut steps = Vec::new();
    for dataset in config.datasets.iter().filter(|dataset| of(dataset.name())) {
        let table = Table::of(dataset, &config.schema);
        let (name, relation, micros) = (table.name(), table.relation(), config.chunk_micros(dataset));
        if let Some(known) = intervals.get(name)
            && *known != Some(micros)
        {
            let sql = format!(
                "SELECT {extension}.set_chunk_time_interval('{relation}'::regclass, {micros}::bigint)"
            );
            steps.push((format!("chunk interval of {name}"), vec![sql]));
        }
        for (kind, ages) in [(&COLUMNSTORE, &config.columnstore), (&RETENTION, &config.retention)] {
            let Some(hours) = ages.hours(dataset.name()) else { continue };
            let mut statements = Vec::new();
            if installed.is_some() {
                community(connection, kind.name).await?;
            }
            if kind.columnstore {
                statements.extend(enable_columnstore(connection, config, &table).await?);
            }
            let known = match &installed {
                Some(_) => policy_hours(connection, config, &table, kind.procedure).await?,
                None => None,
            };
            if known != Some(hours.into()) {
                let Policy { call, name, age, .. } = kind;
                statements.push(format!(
                    "{call} {extension}.remove_{name}_policy('{relation}', if_exists => true)"
                ));
                statements.push(format!(
                    "{call} {extension}.add_{name}_policy('{relation}', {age} => INTERVAL '{hours} hours')"
                ));
            }
            if !statements.is_empty() {
                let age = duration::format(Duration::from_hours(hours.into()));
                steps.push((format!("{} policy of {} after {age}", kind.name, table.name()), statements));
            }
        }
    }
    Ok(steps)
}

/// Returns the chunk interval of each hypertable of the schema, in microseconds.
pub(super) async fn chunk_intervals(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
) -> Result<HashMap<String, Option<i64>>, Cause> {
    let rows: Vec<(String, Option<i64>)> = sqlx::query_as(
        "SELECT hypertable_name::text, (extract(epoch FROM time_interval) * 1000000)::bigint \
         FROM timescaledb_information.dimensions WHERE hypertable_schema = $1 AND dimension_number = 1",
    )
    .bind(&config.schema)
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// A kind of policy, with the extension's names for its parts.
struct Policy {
    name: &'static str,
    procedure: &'static str,
    call: &'static str,
    age: &'static str,
    columnstore: bool,
}

const COLUMNSTORE: Policy = Policy {
    name: "columnstore",
    procedure: "policy_compression",
    call: "CALL",
    age: "after",
    columnstore: true,
};
const RETENTION: Policy = Policy {
    name: "retention",
    procedure: "policy_retention",
    call: "SELECT",
    age: "drop_after",
    columnstore: false,
};

/// Returns the quoted schema of the extension's functions, or None if the extension is not installed.
pub(super) async fn extension(connection: &mut PgConnection<'_>) -> Result<Option<String>, Cause> {
    Ok(sqlx::query_scalar(
        "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
         WHERE e.extname = 'timescaledb'",
    )
    .fetch_optional(connection)
    .await?)
}

/// Returns the quoted schema of the extension's functions. Fails if the extension is not installed.
pub(super) async fn installed(connection: &mut PgConnection<'_>) -> Result<String, Cause> {
    Ok(extension(connection).await?.ok_or(sqlx::Error::RowNotFound)?)
}

/// Rejects any edition except the Community edition. Checks the license setting, because the names of
/// distributions are not reliable.
pub(super) async fn community(connection: &mut PgConnection<'_>, feature: &str) -> Result<(), Cause> {
    let license: Option<String> = sqlx::query_scalar("SELECT current_setting('timescaledb.license', true)")
        .fetch_one(connection)
        .await?;
    if license.as_deref() == Some("timescale") {
        return Ok(());
    }
    let license = license.unwrap_or_else(|| "none".to_owned());
    Err(Cause::Edition {
        rule: format!(
            "{feature} requires the Community edition of TimescaleDB; the server's license is `{license}`"
        ),
    })
}

/// The layout of a columnstore: the columns of a segment, and the order of its rows with true for descending columns.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    segment_by: Vec<String>,
    order_by: Vec<(String, bool)>,
}

impl Layout {
    /// Returns the configured layout. By default, each series is a separate segment, from the newest row to the oldest.
    fn of(config: &TimescaleConfig, table: &Table) -> Self {
        let configured = config.columnstore_layout.get(table.name());
        let series = || table.series().iter().map(|column| column.name.to_owned());
        let segment_by = configured.and_then(|layout| layout.segment_by.clone());
        let segment_by = segment_by.unwrap_or_else(|| series().collect());
        let order_by = if let Some(order) = configured.and_then(|layout| layout.order_by.as_ref()) {
            order.iter().map(|entry| ordered_column(entry)).collect()
        } else {
            let rest = series().filter(|column| !segment_by.contains(column)).map(|column| (column, false));
            rest.chain(table.sort_key().iter().map(|column| (column.name.to_owned(), true))).collect()
        };
        Self { segment_by, order_by }
    }

    /// Returns the statement that sets the layout.
    fn statement(&self, table: &Table) -> String {
        let segment_by: Vec<_> = self.segment_by.iter().map(|column| format!("\"{column}\"")).collect();
        let order_by = self.order_by.iter().map(|(column, descending)| {
            let direction = if *descending { "DESC" } else { "ASC" };
            format!("\"{column}\" {direction}")
        });
        format!(
            "ALTER TABLE {} SET (timescaledb.enable_columnstore = true, timescaledb.segmentby = '{}', \
             timescaledb.orderby = '{}')",
            table.relation(),
            segment_by.join(", "),
            order_by.collect::<Vec<_>>().join(", "),
        )
    }
}

fn ordered_column(entry: &str) -> (String, bool) {
    match entry.strip_suffix(" DESC") {
        Some(column) => (column.to_owned(), true),
        None => (entry.strip_suffix(" ASC").unwrap_or(entry).to_owned(), false),
    }
}

/// Returns the statement that enables the columnstore of a table with its layout, or None if it is already enabled and
/// the configuration names no other layout.
pub(super) async fn enable_columnstore(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    table: &Table,
) -> Result<Option<String>, Cause> {
    type Stored = (Option<Vec<String>>, Option<Vec<String>>, Option<Vec<bool>>);
    let stored: Option<Stored> = match extension(connection).await? {
        None => None,
        Some(_) => {
            sqlx::query_as(
                "SELECT s.segmentby::text[], s.orderby::text[], s.orderby_desc \
                 FROM timescaledb_information.hypertables h \
                 LEFT JOIN _timescaledb_catalog.compression_settings s ON s.relid = to_regclass($3) \
                 WHERE h.hypertable_schema = $1 AND h.hypertable_name = $2 AND h.compression_enabled",
            )
            .bind(&config.schema)
            .bind(table.name())
            .bind(table.relation())
            .fetch_optional(&mut *connection)
            .await?
        }
    };
    let wanted = Layout::of(config, table);
    let is_known = stored.is_some_and(|(segment_by, order_by, descending)| {
        let order_by = order_by.unwrap_or_default().into_iter().zip(descending.unwrap_or_default());
        let stored = Layout { segment_by: segment_by.unwrap_or_default(), order_by: order_by.collect() };
        !config.columnstore_layout.contains_key(table.name()) || stored == wanted
    });
    Ok((!is_known).then(|| wanted.statement(table)))
}

/// Returns whether a job of the server drops old chunks of a table.
pub(super) async fn has_retention_job(
    connection: &mut PgConnection<'_>,
    schema: &str,
    table: &str,
) -> Result<bool, Cause> {
    let has_jobs: bool = sqlx::query_scalar("SELECT to_regclass('timescaledb_information.jobs') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !has_jobs {
        return Ok(false);
    }
    let sql = "SELECT EXISTS (SELECT FROM timescaledb_information.jobs \
               WHERE hypertable_schema = $1 AND hypertable_name = $2 AND proc_name LIKE $3 || '%')";
    let found = sqlx::query_scalar(sql).bind(schema).bind(table).bind(RETENTION.procedure);
    Ok(found.fetch_one(connection).await?)
}

/// Returns the age of an existing policy, in hours.
async fn policy_hours(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    table: &Table,
    procedure: &str,
) -> Result<Option<i64>, Cause> {
    let hours: Option<Option<i64>> = sqlx::query_scalar(
        "SELECT (extract(epoch FROM coalesce(config->>'drop_after', config->>'compress_after')::interval) \
         / 3600)::bigint \
         FROM timescaledb_information.jobs \
         WHERE hypertable_schema = $1 AND hypertable_name = $2 AND proc_name LIKE $3 || '%'",
    )
    .bind(&config.schema)
    .bind(table.name())
    .bind(procedure)
    .fetch_optional(connection)
    .await?;
    Ok(hours.flatten())
}

#[cfg(test)]
mod tests {
    use qi_core::{Bar, PriceTick};

    use super::*;
    use crate::timescale::config::ColumnstoreLayout;

    #[test]
    fn the_layout_of_the_columnstore_is_configurable() {
        let mut config = TimescaleConfig::from_url("");
        let (ticks, bars) = (Table::of(PriceTick::DATASET, "s"), Table::of(Bar::DATASET, "s"));
        let statement = |config: &TimescaleConfig, table| Layout::of(config, table).statement(table);
        assert_eq!(
            statement(&config, &ticks),
            "ALTER TABLE \"s\".\"ticks\" SET (timescaledb.enable_columnstore = true, \
             timescaledb.segmentby = '\"instrument_id\"', timescaledb.orderby = '\"ts\" DESC, \"seq\" DESC')"
        );
        let one_segment = ColumnstoreLayout { segment_by: Some(Vec::new()), order_by: None };
        config.columnstore_layout.insert("ticks".to_owned(), one_segment);
        assert!(statement(&config, &ticks).ends_with(
            "timescaledb.segmentby = '', \
             timescaledb.orderby = '\"instrument_id\" ASC, \"ts\" DESC, \"seq\" DESC')"
        ));
        let layout = ColumnstoreLayout {
            segment_by: Some(vec!["interval".to_owned()]),
            order_by: Some(vec!["open_time DESC".to_owned(), "instrument_id".to_owned()]),
        };
        config.columnstore_layout.insert("bars".to_owned(), layout);
        assert!(statement(&config, &bars).ends_with(
            "timescaledb.segmentby = '\"interval\"', \
             timescaledb.orderby = '\"open_time\" DESC, \"instrument_id\" ASC')"
        ));
    }

    #[test]
    fn a_layout_names_columns_of_its_dataset() {
        let checked = |dataset: &str, segment: &str, order: &str| {
            let mut config = TimescaleConfig::from_url("postgres://h/d");
            let layout = ColumnstoreLayout {
                segment_by: Some(vec![segment.to_owned()]),
                order_by: Some(vec![order.to_owned()]),
            };
            config.columnstore_layout.insert(dataset.to_owned(), layout);
            config.validate().map_err(|error| error.context_value("key").unwrap_or_default().to_owned())
        };
        assert_eq!(checked("ticks", "instrument_id", "ts DESC"), Ok(()));
        let key = |name: &str| Err(format!("store.timescale.{name}"));
        assert_eq!(checked("ticks", "exchange", "ts"), key("columnstore_layout.ticks"));
        assert_eq!(checked("ticks", "side DESC", "ts"), key("columnstore_layout.ticks"));
        assert_eq!(checked("ticks", "side", "ts down"), key("columnstore_layout.ticks"));
        assert_eq!(checked("nothing", "side", "ts"), key("columnstore_layout"));
    }
}
