//! Background policies of the Community edition: columnstore and retention, if they are configured.

use sqlx::PgConnection;

use super::config::TimescaleConfig;
use super::error::Cause;
use super::sql;
use super::table::{Table, names};

/// Returns the steps that create the configured policies. Keeps the existing policies of datasets without an entry.
pub(super) async fn steps(
    connection: &mut PgConnection,
    config: &TimescaleConfig,
) -> Result<Vec<(String, Vec<String>)>, Cause> {
    let installed = extension(connection).await?;
    let mut steps = Vec::new();
    for dataset in config.datasets.iter() {
        let table = Table::of(dataset);
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
                let extension = installed.as_deref().unwrap_or("public");
                let relation = config.relation(table.name());
                let Policy { call, name, age, .. } = kind;
                statements.push(format!(
                    "{call} {extension}.remove_{name}_policy('{relation}', if_exists => true)"
                ));
                statements.push(format!(
                    "{call} {extension}.add_{name}_policy('{relation}', {age} => INTERVAL '{hours} hours')"
                ));
            }
            if !statements.is_empty() {
                steps.push((format!("{} policy of {} after {hours} h", kind.name, table.name()), statements));
            }
        }
    }
    Ok(steps)
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
pub(super) async fn extension(connection: &mut PgConnection) -> Result<Option<String>, Cause> {
    Ok(sqlx::query_scalar(
        "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
         WHERE e.extname = 'timescaledb'",
    )
    .fetch_optional(connection)
    .await?)
}

/// Returns the quoted schema of the extension's functions. Fails if the extension is not installed.
pub(super) async fn installed(connection: &mut PgConnection) -> Result<String, Cause> {
    Ok(extension(connection).await?.ok_or(sqlx::Error::RowNotFound)?)
}

/// Rejects any edition except the Community edition. Checks the license setting, because the names of
/// distributions are not reliable.
pub(super) async fn community(connection: &mut PgConnection, feature: &str) -> Result<(), Cause> {
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

/// Returns the statement that enables the columnstore of a table, or None if it is already enabled. Each series is a
/// separate segment, ordered from the newest row to the oldest.
pub(super) async fn enable_columnstore(
    connection: &mut PgConnection,
    config: &TimescaleConfig,
    table: &Table,
) -> Result<Option<String>, Cause> {
    let enabled = match extension(connection).await? {
        None => None,
        Some(_) => {
            sqlx::query_scalar(
                "SELECT compression_enabled FROM timescaledb_information.hypertables \
                 WHERE hypertable_schema = $1 AND hypertable_name = $2",
            )
            .bind(&config.schema)
            .bind(table.name())
            .fetch_optional(&mut *connection)
            .await?
        }
    };
    if enabled == Some(true) {
        return Ok(None);
    }
    Ok(Some(format!(
        "ALTER TABLE {} SET (timescaledb.enable_columnstore = true, timescaledb.segmentby = '{}', \
         timescaledb.orderby = '{}')",
        config.relation(table.name()),
        names(table.series(), ""),
        sql::order_by(table, "DESC"),
    )))
}

/// Returns the age of an existing policy, in hours.
async fn policy_hours(
    connection: &mut PgConnection,
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
