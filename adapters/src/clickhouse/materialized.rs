//! The schema of materialized bars.
//!
//! A constraint of the table of ticks rejects inserts without the comment of this version: earlier versions of the
//! library, and custom SQL. It does not see deletions.

use qi_core::store::kit::{LEVELS, level_table};
use qi_core::{Interval, PriceTick};

use super::config::ClickHouseConfig;
use super::table::TableLocation;

/// The name of the table of the watermarks. The database has materialized bars if and only if it exists.
pub(super) const STATE_TABLE: &str = "qi_bars_state";

/// The name of the table of the stale marks.
pub(super) const STALE_TABLE: &str = "qi_bars_stale";

/// The name of the table of the leases.
pub(super) const LEASE_TABLE: &str = "qi_bars_lease";

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
    statements.push(format!(
        "CREATE TABLE IF NOT EXISTS {marks} (id UInt64, exchange String, symbol String, first Int64, until Int64, \
         wait Int64, marked DateTime64(6, 'UTC') DEFAULT now64(6, 'UTC'), sign Int8 DEFAULT 1) \
         ENGINE = CollapsingMergeTree(sign) ORDER BY id"
    ));
    statements.push(format!(
        "ALTER TABLE {ticks} ADD CONSTRAINT IF NOT EXISTS qi_bars \
         CHECK getSetting('log_comment') = '{MARKED_COMMENT}'"
    ));
    // One row for each announced time: the time of its announcement, and the latest watermark that belongs to it.
    statements.push(format!(
        "CREATE TABLE IF NOT EXISTS {state} (announced Int64, \
         announced_at SimpleAggregateFunction(min, DateTime64(6, 'UTC')), \
         watermark SimpleAggregateFunction(max, Int64)) ENGINE = AggregatingMergeTree ORDER BY announced"
    ));
    statements
}
