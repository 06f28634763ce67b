//! Administration: the list of series, deletions and purges.

use std::fmt::Write as _;

use qi_core::record::SeriesType;
use qi_core::store::{Anchor, DeleteQuery, Page, Paged, SeriesRequest, SeriesSummary};
use qi_core::{Selection, TimeRange, Timestamp};

use super::connect::{rows, run};
use super::error::Cause;
use super::read::{at, within};
use super::store::ClickHouseStore;
use super::table::Place;
use super::table::{Table, literal, read_time};

/// Completes a deletion on every replica before the call returns. Rows inserted later are not affected.
const SYNC: &str = "SETTINGS lightweight_deletes_sync = 2, mutations_sync = 2";

/// The maximum number of owners in one deletion.
const KEYS_AT_ONCE: usize = 500;

impl ClickHouseStore {
    pub(super) async fn series_page(
        &self,
        table: &Table,
        request: &SeriesRequest,
    ) -> Result<Page<SeriesSummary>, Cause> {
        let mut wanted = "1".to_owned();
        if let Some(exchange) = &request.exchange {
            let of_exchange = format!("exchange = {}", literal(exchange.as_str()));
            // A dataset whose series are names has no exchange.
            let known = table.dataset.series() == SeriesType::Instrument;
            let _ = write!(wanted, " AND {}", if known { &of_exchange } else { "0" });
        }
        if let Anchor::Owner(after) = request.anchor()? {
            let _ = write!(wanted, " AND {} > {}", table.owner_tuple(), table.tuple(&after));
        }
        // Aggregates in key order, so that the server can stop after one page.
        let sql = format!(
            "SELECT {columns}, min({time}), max({time}) FROM {name} WHERE {wanted} \
             GROUP BY {columns} ORDER BY {columns} LIMIT {most} SETTINGS optimize_aggregation_in_order = 1",
            columns = table.owners,
            time = table.time(),
            name = table.name,
            most = request.page.limit() + 1,
        );
        let found = rows(&self.inner.connections.plain, &sql, |row| {
            let owner = table.read_owner(row)?;
            Ok(SeriesSummary::new(owner, read_time(row)?, read_time(row)?))
        })
        .await?;
        Ok(request.page_of(found)?)
    }

    pub(super) async fn delete(&self, table: &Table, query: &DeleteQuery) -> Result<(), Cause> {
        let wanted = format!("{}{}", within(table.time(), query.range), table.of_interval(query.interval));
        match &query.selection {
            Selection::All => self.delete_where(table, &wanted).await,
            Selection::Only(keys) => {
                for part in keys.chunks(KEYS_AT_ONCE) {
                    let part: Vec<String> = part.iter().map(|key| table.tuple(key)).collect();
                    let wanted = format!("{} IN ({}) AND {wanted}", table.owner_tuple(), part.join(", "));
                    self.delete_where(table, &wanted).await?;
                }
                Ok(())
            }
        }
    }

    async fn delete_where(&self, table: &Table, wanted: &str) -> Result<(), Cause> {
        let on = Place::of(&self.inner.config).on_cluster();
        let sql = format!("DELETE FROM {}{on} WHERE {wanted} {SYNC}", table.local);
        run(&self.inner.connections.heavy, &sql).await
    }

    /// Drops the partitions that lie entirely before the cutoff. Then deletes the remaining rows before the cutoff.
    pub(super) async fn purge(&self, table: &Table, cutoff: Timestamp) -> Result<(), Cause> {
        let client = &self.inner.connections.heavy;
        let place = Place::of(&self.inner.config);
        let name = &table.local;
        // Selects entire partitions. The server computes the partition number of the cutoff.
        let sql = format!(
            "SELECT DISTINCT partition_id FROM {} WHERE active AND database = {} AND table = {} \
             AND toUInt64OrZero(partition_id) < toUInt64({}({})) AND partition_id != '0'",
            place.parts(),
            literal(place.database),
            literal(&place.local(table.dataset.name())),
            table.partition(),
            at(cutoff),
        );
        let whole = rows(client, &sql, |row| Ok(row.text()?.to_owned())).await?;
        for partition in whole {
            run(
                client,
                &format!(
                    "ALTER TABLE {name}{} DROP PARTITION ID {}",
                    place.on_cluster(),
                    literal(&partition)
                ),
            )
            .await?;
        }
        self.delete_where(table, &within(table.time(), TimeRange::before(cutoff))).await
    }
}
