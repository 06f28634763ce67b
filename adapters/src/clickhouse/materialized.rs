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

/// The comment of inserts that add marks. The constraint of the ticks requires it.
pub(super) const MARKED_COMMENT: &str = "qi:bars";

/// Returns the statements that switch materialized bars on or off. The table of the state is created last and dropped
/// first. While it does not exist, writers add no marks, and the constraint rejects their ticks.
pub(super) fn switch(config: &ClickHouseConfig, on: bool) -> Vec<String> {
    let location = TableLocation::of(config);
    let table = |name: &str| location.quoted_name(name);
    let ticks = location.quoted_local_name(PriceTick::DATASET.name());
    let (state, marks) = (table(STATE_TABLE), table(STALE_TABLE));
    if !on {
        let levels = LEVELS.map(|level| table(level_table(level)));
        let dropped = [state].into_iter().chain(levels).chain([marks]);
        let mut statements: Vec<_> =
            dropped.map(|name| format!("DROP TABLE IF EXISTS {name} SYNC")).collect();
        statements.push(format!("ALTER TABLE {ticks} DROP CONSTRAINT IF EXISTS qi_bars"));
        return statements;
    }
    let level = |level: Interval| {
        format!(
            "CREATE TABLE IF NOT EXISTS {} (exchange LowCardinality(String), symbol LowCardinality(String), \
             bucket DateTime64(6, 'UTC'), open Decimal(38, 18), high Decimal(38, 18), low Decimal(38, 18), \
             close Decimal(38, 18), count UInt64, quantities UInt64, volume Decimal(76, 18), \
             quote_volume Decimal(76, 36), volume_f Float64, quote_volume_f Float64, built DateTime64(9, 'UTC')) \
             ENGINE = ReplacingMergeTree(built) PARTITION BY toYYYYMM(bucket) ORDER BY (exchange, symbol, bucket)",
            table(level_table(level))
        )
    };
    let mut statements = Vec::from(LEVELS.map(level));
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
