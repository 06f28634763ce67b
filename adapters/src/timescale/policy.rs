//! Background policies of the Community edition: columnstore and retention, if the configuration asks for them.

use qi_core::store::Dataset;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::config::TimescaleConfig;
use super::error::Cause;
use super::table::{Table, names, table_of};

/// Gives every dataset the policies of the configuration. What was set by hand elsewhere stays.
pub(super) async fn apply(
    connection: &mut PgConnection,
    config: &TimescaleConfig,
) -> Result<Vec<String>, Cause> {
    let extension = extension(connection).await?;
    let mut applied = Vec::new();
    for dataset in Dataset::ALL {
        let table = table_of(dataset);
        if let Some(hours) = config.columnstore.hours(dataset) {
            community(connection, "columnstore").await?;
            enable_columnstore(connection, config, table).await?;
            if policy_hours(connection, config, table, "policy_compression").await? != Some(hours.into()) {
                let relation = relation(config, table);
                // Both or none: never a moment without the age that was there.
                let mut change = connection.begin().await?;
                run(
                    &mut change,
                    format!("CALL {extension}.remove_columnstore_policy('{relation}', if_exists => true)"),
                )
                .await?;
                run(
                    &mut change,
                    format!(
                        "CALL {extension}.add_columnstore_policy('{relation}', after => INTERVAL '{hours} hours')"
                    ),
                )
                .await?;
                change.commit().await?;
                applied.push(format!("columnstore policy of {} after {hours} h", table.name));
            }
        }
        if let Some(hours) = config.retention.hours(dataset) {
            community(connection, "retention").await?;
            if policy_hours(connection, config, table, "policy_retention").await? != Some(hours.into()) {
                let relation = relation(config, table);
                let mut change = connection.begin().await?;
                run(
                    &mut change,
                    format!("SELECT {extension}.remove_retention_policy('{relation}', if_exists => true)"),
                )
                .await?;
                run(
                    &mut change,
                    format!(
                        "SELECT {extension}.add_retention_policy('{relation}', drop_after => INTERVAL '{hours} hours')"
                    ),
                )
                .await?;
                change.commit().await?;
                applied.push(format!("retention policy of {} after {hours} h", table.name));
            }
        }
    }
    Ok(applied)
}

/// The schema of the extension's functions, quoted.
pub(super) async fn extension(connection: &mut PgConnection) -> Result<String, Cause> {
    Ok(sqlx::query_scalar(
        "SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
         WHERE e.extname = 'timescaledb'",
    )
    .fetch_one(connection)
    .await?)
}

/// Refuses an edition that has no policies. The license setting decides; distributions' names do not tell.
pub(super) async fn community(connection: &mut PgConnection, what: &str) -> Result<(), Cause> {
    let license: Option<String> = sqlx::query_scalar("SELECT current_setting('timescaledb.license', true)")
        .fetch_one(connection)
        .await?;
    if license.as_deref() == Some("timescale") {
        return Ok(());
    }
    let license = license.unwrap_or_else(|| "none".to_owned());
    Err(Cause::Edition {
        rule: format!("{what} needs TimescaleDB's Community edition; this server's license is `{license}`"),
    })
}

/// Lets chunks of the table be converted: one segment for each series, newest first. It repeats without harm.
pub(super) async fn enable_columnstore(
    connection: &mut PgConnection,
    config: &TimescaleConfig,
    table: &Table,
) -> Result<(), Cause> {
    let enabled: bool = sqlx::query_scalar(
        "SELECT compression_enabled FROM timescaledb_information.hypertables \
         WHERE hypertable_schema = $1 AND hypertable_name = $2",
    )
    .bind(&config.schema)
    .bind(table.name)
    .fetch_one(&mut *connection)
    .await?;
    if enabled {
        return Ok(());
    }
    let order: Vec<String> = table.place.iter().map(|column| format!("{} DESC", column.name)).collect();
    run(
        connection,
        format!(
            "ALTER TABLE {} SET (timescaledb.enable_columnstore = true, timescaledb.segmentby = '{}', \
             timescaledb.orderby = '{}')",
            relation(config, table),
            names(table.series.iter().copied(), ""),
            order.join(", "),
        ),
    )
    .await
}

/// The age of a policy that is there, in hours.
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
    .bind(table.name)
    .bind(procedure)
    .fetch_optional(connection)
    .await?;
    Ok(hours.flatten())
}

fn relation(config: &TimescaleConfig, table: &Table) -> String {
    format!("\"{}\".{}", config.schema, table.name)
}

/// Runs a statement that is made of checked names and numbers only.
async fn run(connection: &mut PgConnection, sql: String) -> Result<(), Cause> {
    sqlx::query(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}
