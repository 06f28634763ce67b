//! Administration: the list of series, deletions and purges.

use std::fmt::Write as _;

use qi_core::record::{Owner, SeriesType};
use qi_core::store::{Anchor, DeleteQuery, Page, Paged, SeriesRequest, SeriesSummary};
use qi_core::{PriceTick, Selection, TimeRange, Timestamp};

use super::connect::{execute, rows};
use super::error::Cause;
use super::marks::StaleRange;
use super::read::{range_condition, time_literal};
use super::store::ClickHouseStore;
use super::table::{Table, TableLocation, literal, read_time};

/// Completes a deletion on every replica before the call returns. Rows inserted later are not affected.
const SYNC_SETTINGS: &str = "SETTINGS lightweight_deletes_sync = 2, mutations_sync = 2";

/// The maximum number of owners in one deletion.
const MAX_OWNERS_PER_STATEMENT: usize = 500;

impl ClickHouseStore {
    pub(super) async fn series_page(
        &self,
        table: &Table,
        request: &SeriesRequest,
    ) -> Result<Page<SeriesSummary>, Cause> {
        let mut condition = "1".to_owned();
        if let Some(exchange) = &request.exchange {
            let exchange_condition = format!("exchange = {}", literal(exchange.as_str()));
            // A dataset whose series are names has no exchange.
            let has_exchange = table.dataset.series() == SeriesType::Instrument;
            let _ = write!(condition, " AND {}", if has_exchange { &exchange_condition } else { "0" });
        }
        if let Anchor::Owner(after) = request.anchor()? {
            let _ = write!(condition, " AND {} > {}", table.owner_tuple(), table.owner_value(&after));
        }
        // Reads the projection. In parts without it, the server aggregates in key order and can stop after one page.
        let sql = format!(
            "SELECT {columns}, min({time}), max({time}) FROM {name} WHERE {condition} \
             GROUP BY {columns} ORDER BY {columns} LIMIT {limit} SETTINGS optimize_aggregation_in_order = 1",
            columns = table.owner_columns,
            time = table.time(),
            name = table.name,
            limit = request.page.limit() + 1,
        );
        let found = rows(&self.inner.connections.read_client, &sql, |row| {
            let owner = table.read_owner(row)?;
            Ok(SeriesSummary::new(owner, read_time(row)?, read_time(row)?))
        })
        .await?;
        Ok(request.page_of(found)?)
    }

    pub(super) async fn delete(&self, table: &Table, query: &DeleteQuery) -> Result<(), Cause> {
        let condition = format!(
            "{}{}",
            range_condition(table.time(), query.range),
            table.interval_condition(query.interval)
        );
        let Selection::Only(keys) = &query.selection else {
            return self.marked(table, None, query.range, self.delete_where(table, &condition)).await;
        };
        // The first marks settle after the time limit of one statement, so each statement has its own marks.
        for part in keys.chunks(MAX_OWNERS_PER_STATEMENT) {
            let owners: Vec<String> = part.iter().map(|key| table.owner_value(key)).collect();
            let condition = format!("{} IN ({}) AND {condition}", table.owner_tuple(), owners.join(", "));
            let deletion = self.delete_where(table, &condition);
            self.marked(table, Some(part), query.range, deletion).await?;
        }
        Ok(())
    }

    /// Runs a deletion. If it can make materialized bars stale, marks their hours before and after it: the marks of the
    /// first kind cover a deletion that continues on the server.
    async fn marked(
        &self,
        table: &Table,
        owners: Option<&[Owner]>,
        range: TimeRange,
        deletion: impl Future<Output = Result<(), Cause>>,
    ) -> Result<(), Cause> {
        if table.dataset != PriceTick::DATASET || range.is_empty() {
            return deletion.await;
        }
        let ranges: Vec<StaleRange> = match owners {
            None => vec![(None, range)],
            Some(owners) => owners.iter().map(|owner| (owner.instrument().cloned(), range)).collect(),
        };
        let bulk_timeout = self.inner.config.server_limits.bulk_timeout;
        let state = self.bars_state_of_change().await?;
        if state.announced.is_none() {
            let outcome = deletion.await;
            // Materialized bars may have been switched on meanwhile. A failed deletion may continue on the server.
            let state = self.bars_state(true).await?;
            if state.announced.is_some() {
                let wait = if outcome.is_ok() { state.wait } else { bulk_timeout + state.wait };
                self.add_marks(&ranges, wait).await?;
            }
            return outcome;
        }
        let outcome = async {
            let first = self.add_marks(&ranges, bulk_timeout + state.wait).await?;
            deletion.await?;
            // The first announcement may have recorded a larger value during the deletion.
            let wait = self.bars_state(false).await?.wait;
            self.add_marks(&ranges, wait).await?;
            self.remove_marks(&first, None).await
        };
        self.check_bars_state(outcome.await, true).await
    }

    async fn delete_where(&self, table: &Table, condition: &str) -> Result<(), Cause> {
        let on_cluster = TableLocation::of(&self.inner.config).on_cluster();
        let sql = format!("DELETE FROM {}{on_cluster} WHERE {condition} {SYNC_SETTINGS}", table.local);
        execute(&self.inner.connections.bulk_client, &sql).await
    }

    /// Drops the partitions that lie entirely before the cutoff. Then deletes the remaining rows before the cutoff.
    pub(super) async fn purge(&self, table: &Table, cutoff: Timestamp) -> Result<(), Cause> {
        let location = TableLocation::of(&self.inner.config);
        // Selects entire partitions. The server computes the partition number of the cutoff.
        let condition = format!(
            "toUInt64OrZero(partition_id) < toUInt64({}({})) AND partition_id != '0'",
            table.partition_function(),
            time_literal(cutoff),
        );
        let of = format!("{}{}", table.local, location.on_cluster());
        for partition in self.partitions(&location.local_name(table.dataset.name()), &condition).await? {
            // From the oldest month on, so that the range contains no ticks of another month. Maintenance then drops
            // the bars of the range instead of building them.
            let range = TimeRange::before(end_of_month(&partition).unwrap_or(cutoff));
            self.marked(table, None, range, self.drop_partition(&of, &partition)).await?;
        }
        let range = TimeRange::before(cutoff);
        let condition = range_condition(table.time(), range);
        self.marked(table, None, range, self.delete_where(table, &condition)).await
    }

    /// Returns the ids of the partitions of a table that meet a condition, in order.
    async fn partitions(&self, table: &str, condition: &str) -> Result<Vec<String>, Cause> {
        let location = TableLocation::of(&self.inner.config);
        let sql = format!(
            "SELECT DISTINCT partition_id FROM {} WHERE active AND database = {} AND table = {} \
             AND {condition} ORDER BY partition_id",
            location.system_parts(),
            literal(location.database),
            literal(table),
        );
        rows(&self.inner.connections.bulk_client, &sql, |row| Ok(row.text()?.to_owned())).await
    }

    /// `table` is the quoted name, with the cluster if there is one.
    async fn drop_partition(&self, table: &str, partition: &str) -> Result<(), Cause> {
        let sql = format!("ALTER TABLE {table} DROP PARTITION ID {}", literal(partition));
        execute(&self.inner.connections.bulk_client, &sql).await
    }
}

/// Returns the end of the month of a partition. None for the partition of a year.
fn end_of_month(partition: &str) -> Option<Timestamp> {
    let month: u32 = partition.parse().ok()?;
    // 202312 precedes 202401.
    let next = if month % 100 == 12 { month.checked_add(89)? } else { month.checked_add(1)? };
    format!("{:04}-{:02}-01T00:00:00Z", next / 100, next % 100).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_ends_at_the_next_one() {
        for (partition, end) in [
            ("197001", Some("1970-02-01T00:00:00Z")),
            ("202311", Some("2023-12-01T00:00:00Z")),
            ("202312", Some("2024-01-01T00:00:00Z")),
            ("2023", None),
            ("all", None),
        ] {
            let end = end.map(|end| end.parse::<Timestamp>().unwrap());
            assert_eq!(end_of_month(partition), end, "{partition}");
        }
    }
}
