//! The schema of materialized bars.
//!
//! A constraint of the table of ticks rejects inserts without the comment of this version: earlier versions of the
//! library, and custom SQL. It does not see deletions.

use qi_core::store::kit::{LEVELS, level_table};
use qi_core::{Interval, PriceTick, Timestamp};

use super::config::ClickHouseConfig;
use super::connect::{Connections, rows};
use super::error::Cause;
use super::table::{TableLocation, literal};

/// The name of the table of the watermarks. The database has materialized bars if and only if it exists.
pub(super) const STATE_TABLE: &str = "qi_bars_state";

/// The name of the table of the stale marks.
pub(super) const STALE_TABLE: &str = "qi_bars_stale";

/// The name of the table of the leases.
pub(super) const LEASE_TABLE: &str = "qi_bars_lease";

/// The column of the state with the recorded `bars_settle`.
pub(super) const SETTLE: &str = "settle";

/// The comment of inserts that add marks. The constraint of the ticks requires it.
pub(super) const MARKED_COMMENT: &str = "qi:bars";

/// Returns the statements that switch materialized bars on or off. The table of the state is created last and dropped
/// first. While it does not exist, writers add no marks, and the constraint rejects their ticks. The table of the leases
/// is created first and dropped last, so it exists if a switch was interrupted.
pub(super) fn switch(config: &ClickHouseConfig, on: bool) -> Vec<String> {
    let location = TableLocation::of(config);
    let table = |name: &str| location.quoted_name(name);
    let ticks = location.quoted_local_name(PriceTick::DATASET.name());
    let (state, marks, leases) = (table(STATE_TABLE), table(STALE_TABLE), table(LEASE_TABLE));
    if !on {
        let levels = LEVELS.map(|level| table(level_table(level)));
        let drop = |name: &String| format!("DROP TABLE IF EXISTS {name} SYNC");
        let mut statements: Vec<_> = [state].iter().chain(&levels).chain([&marks]).map(drop).collect();
        statements.push(format!("ALTER TABLE {ticks} DROP CONSTRAINT IF EXISTS qi_bars"));
        statements.push(drop(&leases));
        return statements;
    }
    let level = |level: Interval| {
        format!(
            "CREATE TABLE IF NOT EXISTS {} (exchange LowCardinality(String), symbol LowCardinality(String), \
             bucket DateTime64(6, 'UTC'), open Decimal(38, 18), high Decimal(38, 18), low Decimal(38, 18), \
             close Decimal(38, 18), count UInt64, quantities UInt64, volume Decimal(76, 18), \
             quote_volume Decimal(76, 36), volume_f Float64, quote_volume_f Float64, generation UInt64) \
             ENGINE = ReplacingMergeTree(generation) PARTITION BY toYYYYMM(bucket) ORDER BY (exchange, symbol, bucket)",
            table(level_table(level))
        )
    };
    let mut statements = vec![format!(
        "CREATE TABLE IF NOT EXISTS {leases} (id UInt64, generation UInt64, expires DateTime64(6, 'UTC')) \
         ENGINE = ReplacingMergeTree ORDER BY id TTL toDateTime(expires) + toIntervalDay(30)"
    )];
    statements.extend(LEVELS.map(level));
    // A read selects the marks of one instrument.
    statements.push(format!(
        "CREATE TABLE IF NOT EXISTS {marks} (id UInt64, exchange String, symbol String, first Int64, until Int64, \
         wait Int64, marked DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC'), sign Int8 DEFAULT 1) \
         ENGINE = CollapsingMergeTree(sign) ORDER BY (exchange, symbol, first, id)"
    ));
    statements.push(range_constraint(config));
    statements.push(format!(
        "ALTER TABLE {ticks} ADD CONSTRAINT IF NOT EXISTS qi_bars \
         CHECK getSetting('log_comment') = '{MARKED_COMMENT}'"
    ));
    // One row for each announced time: the time of its announcement, and the latest watermark that belongs to it. The
    // default of `settle` is the value that all programs know.
    statements.push(format!(
        "CREATE TABLE IF NOT EXISTS {state} (announced Int64, \
         announced_at SimpleAggregateFunction(min, DateTime64(6, 'UTC')), \
         watermark SimpleAggregateFunction(max, Int64), {}) ENGINE = AggregatingMergeTree ORDER BY announced",
        settle_column(config)
    ));
    statements
}

/// Returns the statements that add objects of a later version of the library to a database with materialized bars. The column is added last.
pub(super) fn update(config: &ClickHouseConfig) -> [String; 2] {
    let state = TableLocation::of(config).quoted_name(STATE_TABLE);
    let column = settle_column(config);
    [range_constraint(config), format!("ALTER TABLE {state} ADD COLUMN IF NOT EXISTS {column}")]
}

/// Returns the definition of the column with the recorded `bars_settle`.
fn settle_column(config: &ClickHouseConfig) -> String {
    format!("{SETTLE} SimpleAggregateFunction(max, Int64) DEFAULT {}", config.bars_settle.as_micros())
}

/// Returns the statement that rejects marks of manual SQL for which every read would fail.
fn range_constraint(config: &ClickHouseConfig) -> String {
    format!(
        "ALTER TABLE {} ADD CONSTRAINT IF NOT EXISTS qi_bars_range CHECK sign = -1 \
         OR (first < until AND first >= {} AND until <= {} AND empty(exchange) = empty(symbol))",
        TableLocation::of(config).quoted_name(STALE_TABLE),
        Timestamp::MIN.as_micros(),
        Timestamp::MAX.as_micros()
    )
}

/// Rejects a TTL that removes ticks, because it adds no stale marks and checks no stored bars. The TTL outlives its key
/// in the configuration.
pub(super) async fn check_retention(
    connections: &Connections,
    config: &ClickHouseConfig,
) -> Result<(), Cause> {
    let (location, ticks) = (TableLocation::of(config), PriceTick::DATASET.name());
    let has_bars = match config.materialized_bars {
        Some(wanted) => wanted,
        None => !engines(connections, &location, &location.table_name(STATE_TABLE)).await?.is_empty(),
    };
    let feature = match (has_bars, config.purge_requires_bars) {
        (true, _) => "materialized bars need",
        (false, true) => "`purge_requires_bars` needs",
        (false, false) => return Ok(()),
    };
    if config.retention.get(ticks).is_some() {
        return Err(Cause::Schema { rule: format!("{feature} a configuration without `retention.{ticks}`") });
    }
    let name = location.local_name(ticks);
    if !engines(connections, &location, &name).await?.iter().any(|engine| removes_rows(engine)) {
        return Ok(());
    }
    let mut rule = format!(
        "{feature} a table {name} without a TTL; remove the TTL with ALTER TABLE {}.{}{} REMOVE TTL",
        config.database,
        location.quoted_local_name(ticks),
        location.on_cluster()
    );
    if has_bars {
        rule += ", and add a stale mark for the hours whose ticks it has removed";
    }
    Err(Cause::Schema { rule })
}

/// Returns the engine of a table with all its clauses. Returns nothing if the table does not exist.
async fn engines(
    connections: &Connections,
    location: &TableLocation<'_>,
    name: &str,
) -> Result<Vec<String>, Cause> {
    let sql = format!(
        "SELECT engine_full FROM system.tables WHERE database = {} AND name = {}",
        literal(location.database),
        literal(name)
    );
    rows(&connections.server_client, &sql, |row| Ok(row.text()?.to_owned())).await
}

/// Returns whether the TTL of an engine has a rule that removes rows: a rule that neither moves nor recompresses parts.
fn removes_rows(engine: &str) -> bool {
    let Some((_, rules)) = engine.split_once(" TTL ") else { return false };
    let rules = rules.rsplit_once(" SETTINGS ").map_or(rules, |(rules, _)| rules);
    let mut depth = 0;
    let mut rules = rules.split(|c: char| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        c == ',' && depth == 0
    });
    let keeps =
        |rule: &str| [" TO DISK ", " TO VOLUME ", " RECOMPRESS "].iter().any(|end| rule.contains(end));
    rules.any(|rule| !keeps(rule))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_ttl_without_another_action_removes_rows() {
        let engine = |ttl: &str| {
            format!(
                "ReplacingMergeTree PARTITION BY toYYYYMM(ts) ORDER BY (a, b){ttl} SETTINGS index_granularity = 2048"
            )
        };
        for (ttl, removes) in [
            ("", false),
            (" TTL toDateTime(least(intDiv(toUnixTimestamp64Micro(ts), 1000000) + 3600, 4294967295))", true),
            (" TTL toDateTime(ts) + toIntervalDay(7) TO VOLUME 'cold'", false),
            (
                " TTL toDateTime(ts) TO DISK 'a', toDateTime(ts) + toIntervalDay(9) RECOMPRESS CODEC(ZSTD(17))",
                false,
            ),
            (" TTL toDateTime(ts) + toIntervalDay(7) TO DISK 'a', toDateTime(ts) + toIntervalDay(9)", true),
            (" TTL toDateTime(ts) + toIntervalDay(7) WHERE price > 5, toDateTime(ts) TO DISK 'a'", true),
        ] {
            assert_eq!(removes_rows(&engine(ttl)), removes, "{ttl}");
        }
    }
}
