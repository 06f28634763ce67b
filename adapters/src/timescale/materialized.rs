//! The schema of materialized bars.
//!
//! Hours before the watermark are materialized. A trigger rejects statements without the marker of this version: earlier
//! versions of the library, and custom SQL that did not call `qi_mark_stale` in its transaction.

use qi_core::store::kit::{LEVELS, level_table};
use qi_core::{PriceTick, Timestamp};

use super::config::{Hypertables, TimescaleConfig};
use super::connect::PgConnection;
use super::error::{Cause, UNMARKED};
use super::marks::{MARKED, MARKER};

/// The name of the table of the watermarks. The schema has materialized bars if and only if it exists.
pub(super) const STATE_TABLE: &str = "qi_bars_state";

/// Returns the statements that switch materialized bars on or off, with a label. Returns None if the schema already has
/// the configured state.
pub(super) async fn step(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    extension: Option<&str>,
) -> Result<Option<(String, Vec<String>)>, Cause> {
    let ticks = config.datasets.iter().any(|dataset| dataset == PriceTick::DATASET);
    let Some(wanted) = config.materialized_bars.filter(|_| ticks) else { return Ok(None) };
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(config.relation(STATE_TABLE))
        .fetch_one(connection)
        .await?;
    if exists == wanted {
        return Ok(None);
    }
    let state = if wanted { "on" } else { "off" };
    let statements = if wanted { create(config, extension) } else { remove(config) };
    Ok(Some((format!("materialized bars {state}"), statements)))
}

fn create(config: &TimescaleConfig, extension: Option<&str>) -> Vec<String> {
    let (schema, ticks) = (format!("\"{}\"", config.schema), config.relation(PriceTick::DATASET.name()));
    let mut statements = vec![
        // announced: no running or later transaction changes ticks before this time without a mark, as soon as the
        // transactions that were running at its announcement have ended. watermark: hours before it are materialized.
        format!(
            "CREATE TABLE {schema}.qi_bars_state (only_row bool PRIMARY KEY DEFAULT true CHECK (only_row), \
             watermark timestamptz NOT NULL, announced timestamptz NOT NULL)"
        ),
        format!(
            "INSERT INTO {schema}.qi_bars_state (watermark, announced) VALUES ('{0}', '{0}')",
            Timestamp::MIN
        ),
        // A mark of one instrument is one full hour. instrument_id 0 marks any hours of all instruments.
        format!(
            "CREATE TABLE {schema}.qi_bars_stale (instrument_id int NOT NULL, first timestamptz NOT NULL, \
             until timestamptz NOT NULL)"
        ),
        format!("CREATE INDEX qi_bars_stale_first ON {schema}.qi_bars_stale (instrument_id, first)"),
    ];
    for level in LEVELS {
        let table = level_table(level);
        statements.push(format!(
            "CREATE TABLE {schema}.{table} (instrument_id int NOT NULL, bucket timestamptz NOT NULL, \
             open numeric(38,18) NOT NULL, high numeric(38,18) NOT NULL, low numeric(38,18) NOT NULL, \
             close numeric(38,18) NOT NULL, volume numeric, quote_volume numeric, count bigint NOT NULL, \
             PRIMARY KEY (instrument_id, bucket))"
        ));
    }
    if let (Hypertables::On, Some(extension)) = (config.hypertables, extension) {
        // The minutes of a year of chunks of ticks would be one large table.
        statements.push(format!(
            "SELECT {extension}.create_hypertable('{schema}.qi_bars_1m'::regclass, 'bucket'::name, \
             chunk_time_interval => interval '28 days', create_default_indexes => false)"
        ));
    }
    statements.push(format!(
        "CREATE FUNCTION {schema}.qi_mark_stale(first timestamptz, until timestamptz) RETURNS void \
         LANGUAGE plpgsql AS $$ BEGIN \
         INSERT INTO {schema}.qi_bars_stale (instrument_id, first, until) VALUES (0, \
         date_bin('1 hour', first, TIMESTAMPTZ '1970-01-05 00:00:00+00'), \
         date_bin('1 hour', until + interval '1 hour' - interval '1 microsecond', TIMESTAMPTZ '1970-01-05 00:00:00+00')); \
         PERFORM set_config('qi.bars_marked', 'on', true); END $$"
    ));
    statements.push(format!(
        "CREATE FUNCTION {schema}.qi_refuse_unmarked() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         RAISE EXCEPTION 'the schema has materialized bars: this statement does not mark the hours that it changes' \
         USING ERRCODE = '{UNMARKED}', HINT = 'Call qi_mark_stale(first, until) for these hours in the same transaction.'; \
         END $$"
    ));
    statements.push(format!(
        "CREATE TRIGGER qi_refuse_unmarked BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {ticks} \
         FOR EACH STATEMENT WHEN (((current_query() LIKE '{MARKER}{}%' AND pg_trigger_depth() = 0) \
         OR current_setting('qi.bars_marked', true) = 'on') IS NOT TRUE) \
         EXECUTE FUNCTION {schema}.qi_refuse_unmarked()",
        MARKED.trim_end(),
    ));
    statements
}

fn remove(config: &TimescaleConfig) -> Vec<String> {
    let (schema, ticks) = (format!("\"{}\"", config.schema), config.relation(PriceTick::DATASET.name()));
    let mut statements = vec![
        format!("DROP TRIGGER qi_refuse_unmarked ON {ticks}"),
        format!(
            "DROP FUNCTION {schema}.qi_refuse_unmarked(), {schema}.qi_mark_stale(timestamptz, timestamptz)"
        ),
        format!("DROP TABLE {schema}.qi_bars_state, {schema}.qi_bars_stale"),
    ];
    statements.extend(LEVELS.map(|level| format!("DROP TABLE {schema}.{}", level_table(level))));
    statements
}
