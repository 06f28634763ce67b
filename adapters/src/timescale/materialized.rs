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
use super::policy;

/// The name of the table of the watermarks. The schema has materialized bars if and only if it exists.
pub(super) const STATE_TABLE: &str = "qi_bars_state";

/// Returns the statements that switch materialized bars on or off, with a label. Returns None if the schema already has
/// the configured state and the current objects.
pub(super) async fn step(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
    extension: Option<&str>,
) -> Result<Option<(String, Vec<String>)>, Cause> {
    let ticks = config.datasets.iter().any(|dataset| dataset == PriceTick::DATASET);
    let Some(wanted) = config.materialized_bars.filter(|_| ticks) else { return Ok(None) };
    let exists = exist(connection, config).await?;
    Ok(match (exists, wanted) {
        (false, true) => Some(("materialized bars on".to_owned(), create(config, extension))),
        (true, false) => Some(("materialized bars off".to_owned(), remove(config))),
        (true, true) if !has_current_objects(connection, config).await? => {
            Some(("objects of materialized bars".to_owned(), stale_objects(config)))
        }
        _ => None,
    })
}

/// Returns whether the schema has materialized bars.
pub(super) async fn exist(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
) -> Result<bool, Cause> {
    let exists = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(config.relation(STATE_TABLE));
    Ok(exists.fetch_one(connection).await?)
}

/// Rejects a retention of ticks, because a job of the server adds no stale marks and checks no stored bars. The job
/// outlives its key in the configuration.
pub(super) async fn check_retention(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
) -> Result<(), Cause> {
    let ticks = PriceTick::DATASET.name();
    let has_bars = match config.materialized_bars {
        Some(wanted) => wanted,
        None => exist(connection, config).await?,
    };
    let feature = match (has_bars, config.purge_requires_bars) {
        (true, _) => "materialized bars need",
        (false, true) => "`purge_requires_bars` needs",
        (false, false) => return Ok(()),
    };
    if config.retention.get(ticks).is_some() {
        return Err(Cause::Schema { rule: format!("{feature} a configuration without `retention.{ticks}`") });
    }
    if !policy::has_retention_job(connection, &config.schema, ticks).await? {
        return Ok(());
    }
    let mut rule = format!(
        "{feature} a table {ticks} without a retention policy; remove the policy with \
         SELECT remove_retention_policy('{}')",
        config.relation(ticks)
    );
    if has_bars {
        rule += ", and mark the hours whose ticks it has removed with qi_mark_stale";
    }
    Err(Cause::Schema { rule })
}

async fn has_current_objects(
    connection: &mut PgConnection<'_>,
    config: &TimescaleConfig,
) -> Result<bool, Cause> {
    // One transaction creates all of `stale_objects`.
    let sql = "SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'qi_mark_stale' \
               AND pronamespace = to_regnamespace($1) AND prosrc = $2)";
    let found = sqlx::query_scalar(sql).bind(&config.schema).bind(mark_stale_body(&config.schema));
    Ok(found.fetch_one(connection).await?)
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
        // A mark of one instrument is one full hour. instrument_id 0 marks any hours of all instruments. The index
        // serves the reads of one instrument.
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
    statements.extend(stale_objects(config));
    statements.push(format!(
        "CREATE FUNCTION {schema}.qi_reject_unmarked() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         RAISE EXCEPTION 'the schema has materialized bars: this statement does not mark the hours that it changes' \
         USING ERRCODE = '{UNMARKED}', HINT = 'Call qi_mark_stale(first, until) for these hours in the same transaction.'; \
         END $$"
    ));
    statements.push(format!(
        "CREATE TRIGGER qi_reject_unmarked BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {ticks} \
         FOR EACH STATEMENT WHEN (((current_query() LIKE '{MARKER}{}%' AND pg_trigger_depth() = 0) \
         OR current_setting('qi.bars_marked', true) = 'on') IS NOT TRUE) \
         EXECUTE FUNCTION {schema}.qi_reject_unmarked()",
        MARKED.trim_end(),
    ));
    statements
}

/// Returns the statements that create or replace the objects around the marks, also in an existing schema: the index of
/// maintenance, the constraint, and the function for manual SQL.
fn stale_objects(config: &TimescaleConfig) -> Vec<String> {
    let schema = format!("\"{}\"", config.schema);
    let marks = format!("{schema}.qi_bars_stale");
    let (min, max) = (Timestamp::MIN, Timestamp::MAX);
    // A range outside the domain would make every read fail. The subtraction is exact, unlike an addition.
    let valid = format!(
        "first < until AND first >= timestamptz '{min}' AND until <= timestamptz '{max}' \
         AND (instrument_id = 0 OR until - first = interval '1 hour')"
    );
    vec![
        // First, because it takes the strongest lock. A stronger lock in the end could cause a deadlock with maintenance.
        format!("ALTER TABLE {marks} DROP CONSTRAINT IF EXISTS qi_bars_stale_range"),
        format!("CREATE INDEX IF NOT EXISTS qi_bars_stale_oldest ON {marks} (first, instrument_id)"),
        // A mark for all hours replaces invalid marks of earlier schemas.
        format!(
            "WITH invalid AS (DELETE FROM {marks} WHERE (isfinite(first) AND isfinite(until) AND {valid}) IS NOT TRUE \
             RETURNING 1) INSERT INTO {marks} SELECT DISTINCT 0, timestamptz '{min}', timestamptz '{max}' FROM invalid"
        ),
        format!("ALTER TABLE {marks} ADD CONSTRAINT qi_bars_stale_range CHECK ({valid})"),
        format!(
            "CREATE OR REPLACE FUNCTION {schema}.qi_mark_stale(first timestamptz, until timestamptz) RETURNS void \
             LANGUAGE plpgsql AS $${}$$",
            mark_stale_body(&config.schema)
        ),
    ]
}

fn mark_stale_body(schema: &str) -> String {
    let (min, max) = (Timestamp::MIN, Timestamp::MAX);
    format!(
        " BEGIN \
         IF (first < until AND first >= timestamptz '{min}' AND until <= timestamptz '{max}') IS NOT TRUE THEN \
         RAISE EXCEPTION 'qi_mark_stale: the range from % to % is empty, or not within {min} and {max}', first, until \
         USING ERRCODE = '22023'; \
         END IF; \
         INSERT INTO \"{schema}\".qi_bars_stale (instrument_id, first, until) VALUES (0, \
         date_bin('1 hour', first, TIMESTAMPTZ '1970-01-05 00:00:00+00'), \
         date_bin('1 hour', until + interval '1 hour' - interval '1 microsecond', \
         TIMESTAMPTZ '1970-01-05 00:00:00+00')); \
         PERFORM set_config('qi.bars_marked', 'on', true); END "
    )
}

fn remove(config: &TimescaleConfig) -> Vec<String> {
    let (schema, ticks) = (format!("\"{}\"", config.schema), config.relation(PriceTick::DATASET.name()));
    let mut statements = vec![
        format!("DROP TRIGGER qi_reject_unmarked ON {ticks}"),
        format!(
            "DROP FUNCTION {schema}.qi_reject_unmarked(), {schema}.qi_mark_stale(timestamptz, timestamptz)"
        ),
        format!("DROP TABLE {schema}.qi_bars_state, {schema}.qi_bars_stale"),
    ];
    statements.extend(LEVELS.map(|level| format!("DROP TABLE {schema}.{}", level_table(level))));
    statements
}
