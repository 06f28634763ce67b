//! The schema of materialized bars.
//!
//! Two constraints of the table of ticks check the comment of each insert. They reject inserts without marks, of earlier
//! versions of the library and of custom SQL, and inserts that begin after the deadline of their marks. They do not see
//! deletions.

use qi_core::store::kit::{LEVELS, level_table};
use qi_core::{Interval, PriceTick, Timestamp};

use super::config::ClickHouseConfig;
use super::connect::{Connections, rows};
use super::error::{ACCESS_DENIED, Cause};
use super::table::{TableLocation, literal};

/// The name of the table of the watermarks. The database has materialized bars if and only if it exists.
pub(super) const STATE_TABLE: &str = "qi_bars_state";

/// The name of the table of the stale marks.
pub(super) const STALE_TABLE: &str = "qi_bars_stale";

/// The name of the table of the leases.
pub(super) const LEASE_TABLE: &str = "qi_bars_lease";

/// The column of the state with the recorded `bars_settle`.
pub(super) const SETTLE: &str = "settle";

/// The beginning of the comment of inserts with marks. The deadline follows, in microseconds. The constraints of the ticks
/// require both.
pub(super) const MARKED_COMMENT: &str = "qi:bars:";

/// Returns the statements that switch materialized bars on or off. The table of the state is created last and dropped
/// first. While it does not exist, writers add no marks, and the constraints reject their ticks. The table of the leases
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
        let drop_constraint = |name: &str| format!("ALTER TABLE {ticks} DROP CONSTRAINT IF EXISTS {name}");
        statements.extend(["qi_bars", "qi_bars_marked", "qi_bars_deadline"].map(drop_constraint));
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
    statements.extend(tick_constraints(&ticks));
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

/// Returns the statements that add objects of a later version of the library to a database with materialized bars. The
/// column is added after the constraint on marks.
pub(super) fn update(config: &ClickHouseConfig) -> Vec<String> {
    let location = TableLocation::of(config);
    let (state, column) = (location.quoted_name(STATE_TABLE), settle_column(config));
    let mut statements =
        vec![range_constraint(config), format!("ALTER TABLE {state} ADD COLUMN IF NOT EXISTS {column}")];
    statements.extend(tick_constraints(&location.quoted_local_name(PriceTick::DATASET.name())));
    statements
}

/// Returns the statements that add the constraints of ticks. The constraint of earlier versions is dropped last, so that
/// the table always rejects inserts without marks.
fn tick_constraints(ticks: &str) -> [String; 3] {
    let comment = "getSetting('log_comment')";
    // The server evaluates its clock once for each insert, before the rows.
    [
        format!(
            "ADD CONSTRAINT IF NOT EXISTS qi_bars_marked CHECK startsWith({comment}, '{MARKED_COMMENT}')"
        ),
        format!(
            "ADD CONSTRAINT IF NOT EXISTS qi_bars_deadline CHECK \
             toUnixTimestamp64Micro(now64(6)) <= toInt64OrZero(substring({comment}, {}))",
            MARKED_COMMENT.len() + 1
        ),
        "DROP CONSTRAINT IF EXISTS qi_bars".to_owned(),
    ]
    .map(|change| format!("ALTER TABLE {ticks} {change}"))
}

/// Returns whether the ticks have the constraints of this version only.
pub(super) async fn has_tick_constraints(
    connections: &Connections,
    config: &ClickHouseConfig,
) -> Result<bool, Cause> {
    let definition = definition_of_ticks(connections, config).await?;
    Ok(definition.contains("CONSTRAINT qi_bars_deadline ") && !definition.contains("CONSTRAINT qi_bars "))
}

/// Returns whether the ticks need marks, as far as the user may see their table. A user who may change ticks sees it.
pub(super) async fn needs_marks(connections: &Connections, config: &ClickHouseConfig) -> Result<bool, Cause> {
    match definition_of_ticks(connections, config).await {
        Err(cause) if cause.has_code(ACCESS_DENIED) => Ok(true),
        definition => Ok(definition?.contains("CONSTRAINT qi_bars")),
    }
}

/// Returns the statement that creates the table of ticks. Empty if the user may not see the table.
async fn definition_of_ticks(connections: &Connections, config: &ClickHouseConfig) -> Result<String, Cause> {
    let location = TableLocation::of(config);
    let name = location.local_name(PriceTick::DATASET.name());
    Ok(table_info(connections, &location, "create_table_query", &name).await?.concat())
}

/// Returns the definition of the column with the recorded `bars_settle`.
fn settle_column(config: &ClickHouseConfig) -> String {
    format!("{SETTLE} SimpleAggregateFunction(max, Int64) DEFAULT {}", config.bars_settle.as_micros())
}

/// Returns the recorded `bars_settle` in microseconds from the definition of its column.
pub(super) async fn recorded_settle(
    connections: &Connections,
    config: &ClickHouseConfig,
) -> Result<i64, Cause> {
    let location = TableLocation::of(config);
    let sql = format!(
        "SELECT toInt64(default_expression) FROM system.columns WHERE database = {} AND table = {} AND name = {}",
        literal(location.database),
        literal(&location.table_name(STATE_TABLE)),
        literal(SETTLE)
    );
    let found = rows(&connections.server_client, &sql, |row| Ok(row.i64()?)).await?;
    found.first().copied().ok_or(Cause::ConcurrentChange)
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
    let has_bars = if let Some(wanted) = config.materialized_bars {
        wanted
    } else {
        let state = location.table_name(STATE_TABLE);
        !table_info(connections, &location, "name", &state).await?.is_empty()
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
    let engines = table_info(connections, &location, "engine_full", &name).await?;
    if !engines.iter().any(|engine| removes_rows(engine)) {
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

/// Returns a column of `system.tables` for a table. Returns nothing if the table does not exist, or if the user may not
/// see it.
async fn table_info(
    connections: &Connections,
    location: &TableLocation<'_>,
    column: &str,
    name: &str,
) -> Result<Vec<String>, Cause> {
    let sql = format!(
        "SELECT {column} FROM system.tables WHERE database = {} AND name = {}",
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
