//! Administration: what is there, and its removal.

use std::fmt::Write as _;

use qi_core::store::{Anchor, Dataset, DeleteQuery, InstrumentQuery, InstrumentSummary, Page, Paged};
use qi_core::{Instrument, Scope, Selection, TimeRange, Timestamp};

use super::connect::{rows, run};
use super::error::Cause;
use super::read::{Key, at, within};
use super::schema::Place;
use super::store::ClickHouseStore;
use super::table::{literal, read_time, table_of};

/// A deletion is done when it is done everywhere, and takes no row that comes after it.
const SYNC: &str = "SETTINGS lightweight_deletes_sync = 2, mutations_sync = 2";

/// How many keys one deletion names.
const KEYS_AT_ONCE: usize = 500;

impl ClickHouseStore {
    pub(super) async fn instrument_page(
        &self,
        query: &InstrumentQuery,
    ) -> Result<Page<InstrumentSummary>, Cause> {
        let table = table_of(query.dataset.into());
        let mut wanted = "1".to_owned();
        if let Some(exchange) = &query.exchange {
            let _ = write!(wanted, " AND exchange = {}", literal(exchange.as_str()));
        }
        if let Anchor::Instrument(after) = query.anchor()? {
            let _ = write!(wanted, " AND (exchange, symbol) > {}", after.tuple());
        }
        // In the order of the key, so that it stops after a page.
        let sql = format!(
            "SELECT exchange, symbol, min({time}), max({time}) FROM {name} WHERE {wanted} \
             GROUP BY exchange, symbol ORDER BY exchange, symbol LIMIT {most} \
             SETTINGS optimize_aggregation_in_order = 1",
            time = table.time(),
            name = self.table(table.name),
            most = query.page.limit() + 1,
        );
        let found = rows(&self.inner.connections.plain, &sql, |row| {
            let instrument = Instrument::read(row)?;
            Ok(InstrumentSummary { instrument, first: read_time(row)?, last: read_time(row)? })
        })
        .await?;
        Ok(query.page_of(found)?)
    }

    pub(super) async fn delete(&self, query: &DeleteQuery) -> Result<(), Cause> {
        let (dataset, keys, range, interval) = match query {
            DeleteQuery::Ticks(selection, range) => (Dataset::Ticks, instruments(selection), *range, None),
            DeleteQuery::Quotes(selection, range) => (Dataset::Quotes, instruments(selection), *range, None),
            DeleteQuery::Bars(interval, selection, range) => {
                (Dataset::Bars, instruments(selection), *range, Some(*interval))
            }
            DeleteQuery::Snapshots(selection, range) => (Dataset::Snapshots, scopes(selection), *range, None),
            _ => {
                let rule = "a kind of deletion that this version does not know".to_owned();
                return Err(Cause::Schema { rule });
            }
        };
        let table = table_of(dataset);
        let mut wanted = within(table.time(), range);
        if let Some(interval) = interval {
            let _ = write!(wanted, " AND interval = {}", literal(interval.as_str()));
        }
        match keys {
            None => self.delete_where(dataset, &wanted).await,
            Some((columns, keys)) => {
                for part in keys.chunks(KEYS_AT_ONCE) {
                    self.delete_where(dataset, &format!("{columns} IN ({}) AND {wanted}", part.join(", ")))
                        .await?;
                }
                Ok(())
            }
        }
    }

    async fn delete_where(&self, dataset: Dataset, wanted: &str) -> Result<(), Cause> {
        let place = Place::of(&self.inner.config);
        let (name, on) = (place.local(table_of(dataset).name), place.on_cluster());
        run(&self.inner.connections.heavy, &format!("DELETE FROM {name}{on} WHERE {wanted} {SYNC}")).await
    }

    /// Drops the partitions that lie before the cutoff, and deletes what the next one holds before it.
    pub(super) async fn purge(&self, dataset: Dataset, cutoff: Timestamp) -> Result<(), Cause> {
        let (table, client) = (table_of(dataset), &self.inner.connections.heavy);
        let place = Place::of(&self.inner.config);
        let name = place.local(table.name);
        // Whole partitions by the number that the server itself gives the cutoff.
        let sql = format!(
            "SELECT DISTINCT partition_id FROM {} WHERE active AND database = {} AND table = {} \
             AND toUInt64OrZero(partition_id) < toUInt64({}({})) AND partition_id != '0'",
            place.parts(),
            literal(place.database),
            literal(&name),
            table.partition,
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
        self.delete_where(dataset, &within(table.time(), TimeRange::before(cutoff))).await
    }
}

type Keys = Option<(&'static str, Vec<String>)>;

fn instruments(selection: &Selection<Instrument>) -> Keys {
    match selection {
        Selection::All => None,
        Selection::These(keys) => Some(("(exchange, symbol)", keys.iter().map(Key::tuple).collect())),
    }
}

fn scopes(selection: &Selection<Scope>) -> Keys {
    match selection {
        Selection::All => None,
        Selection::These(keys) => Some(("scope", keys.iter().map(Key::tuple).collect())),
    }
}
