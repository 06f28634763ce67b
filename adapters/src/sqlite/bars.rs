//! Bars and statistics derived from ticks. SQLite has no exact decimals, so the ticks are summed here, in 256 bits.

use futures::TryStreamExt as _;
use qi_core::domain::{Sum18, Sum36};
use qi_core::record::{FieldReader as _, Owner};
use qi_core::store::kit::BucketPlanner;
use qi_core::store::{BarQuery, Order, Page, PricePoint, RangeStats, StatsQuery};
use qi_core::{Bar, BarValues, Instrument, Price, Quantity, Result, TimeRange, Timestamp};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row as _};

use super::error::Cause;
use super::read::direction;
use super::table::{OWNER_ID, Table, add_owner};
use super::values::{RowReader, Values};

/// The figures of ticks that arrive in one of the two orders.
#[derive(Clone, Copy)]
struct Figures {
    /// The first and the last tick that the query returned.
    ends: (PricePoint, PricePoint),
    prices: (Price, Price),
    sums: Option<(Sum18, Sum36)>,
    count: u64,
}

impl Figures {
    fn new(point: PricePoint) -> Self {
        Self { ends: (point, point), prices: (point.price, point.price), sums: None, count: 0 }
    }

    fn add(&mut self, (point, quantity): (PricePoint, Option<Quantity>)) -> Result<()> {
        self.ends.1 = point;
        self.prices = (self.prices.0.min(point.price), self.prices.1.max(point.price));
        self.count += 1;
        if let Some(quantity) = quantity {
            let (volume, turnover) = self.sums.unwrap_or_default();
            self.sums = Some((volume.plus(quantity)?, turnover.plus_product(point.price, quantity)?));
        }
        Ok(())
    }

    /// Returns the values of a bar, without the volumes if they are not needed.
    fn bar_values(&self, order: Order, with_volumes: bool) -> Result<BarValues> {
        let (first, last) = match order {
            Order::Ascending => self.ends,
            Order::Descending => (self.ends.1, self.ends.0),
        };
        let mut values = BarValues {
            open: first.price,
            high: self.prices.1,
            low: self.prices.0,
            close: last.price,
            volume: None,
            quote_volume: None,
            count: Some(self.count),
        };
        if let (Some((volume, turnover)), true) = (self.sums, with_volumes) {
            values.volume = Some(Quantity::new(volume.total()?)?);
            values.quote_volume = Some(Quantity::new(turnover.total()?)?);
        }
        Ok(values)
    }
}

/// Returns the statement over the ticks of an instrument in a range, and its arguments.
fn ticks(
    table: &Table,
    columns: &str,
    order: &str,
    instrument: &Instrument,
    range: TimeRange,
) -> (AssertSqlSafe<String>, Values) {
    let mut values = Values::with_capacity(4);
    add_owner(&mut values, &Owner::Instrument(instrument.clone()).as_ref());
    values.add(range.start().as_micros());
    values.add(range.end().as_micros());
    let name = &table.name;
    let sql = format!(
        "SELECT {columns} FROM {name} WHERE _owner = {OWNER_ID} AND ts >= ? AND ts < ? ORDER BY {order}"
    );
    (AssertSqlSafe(sql), values)
}

/// Reads the columns `ts, seq, price, quantity`.
fn read_tick(row: &SqliteRow) -> Result<(PricePoint, Option<Quantity>), Cause> {
    let mut row = RowReader::new(row);
    let mut read = || -> Result<_> {
        let point = PricePoint { ts: row.time()?, seq: row.counter()?, price: row.price()? };
        let quantity = if row.presence()? { Some(Quantity::new(row.decimal()?)?) } else { None };
        Ok((point, quantity))
    };
    read().map_err(Cause::Corrupt)
}

/// Returns a page of derived bars, computed window by window. Skips a gap with a query for the next tick.
pub(super) async fn page(
    connection: &mut SqliteConnection,
    table: &Table,
    query: &BarQuery,
) -> Result<Page<Bar>, Cause> {
    let mut planner = BucketPlanner::new(query)?;
    if planner.is_done() {
        // An empty range also reads the file, because only the file knows whether the schema exists.
        let range = TimeRange::new(query.range.start(), query.range.start())?;
        next_tick(connection, table, query, range).await?;
    }
    while let Some(window) = planner.window()? {
        buckets(connection, table, query, window, &mut planner).await?;
        if let Some(rest) = planner.advance(window)? {
            planner.skip_to(next_tick(connection, table, query, rest).await?)?;
        }
    }
    Ok(planner.page()?)
}

/// Adds the bars of a window to `planner`.
async fn buckets(
    connection: &mut SqliteConnection,
    table: &Table,
    query: &BarQuery,
    window: TimeRange,
    planner: &mut BucketPlanner<'_>,
) -> Result<(), Cause> {
    let BarQuery { instrument, interval, order, .. } = query;
    let by_key = table.order_by(direction(*order));
    let (sql, values) = ticks(table, "ts, seq, price, quantity", &by_key, instrument, window);
    let push = |(open, figures): (Timestamp, Figures), planner: &mut BucketPlanner<'_>| -> Result<()> {
        let values = figures.bar_values(*order, planner.is_on_page())?;
        planner.push(Bar::new(instrument.clone(), *interval, open, values)?);
        Ok(())
    };
    let mut rows = sqlx::query_with(sql, values.finish()?).fetch(connection);
    let mut bucket: Option<(Timestamp, Figures)> = None;
    while let Some(row) = rows.try_next().await? {
        let (point, quantity) = read_tick(&row)?;
        let open = interval.floor(point.ts);
        if let Some(full) = bucket.take_if(|(at, _)| *at != open) {
            push(full, planner)?;
            if planner.wanted() == 0 {
                return Ok(());
            }
        }
        // The additional bar has no volumes, so that its sum cannot fail this page.
        let quantity = quantity.filter(|_| planner.is_on_page());
        bucket.get_or_insert_with(|| (open, Figures::new(point))).1.add((point, quantity))?;
    }
    if let Some(last) = bucket {
        push(last, planner)?;
    }
    Ok(())
}

/// Returns the time of the first tick in a range, in the order of the query.
async fn next_tick(
    connection: &mut SqliteConnection,
    table: &Table,
    query: &BarQuery,
    range: TimeRange,
) -> Result<Option<Timestamp>, Cause> {
    let first = format!("ts {} LIMIT 1", direction(query.order));
    let (sql, values) = ticks(table, "ts", &first, &query.instrument, range);
    let row = sqlx::query_with(sql, values.finish()?).fetch_optional(connection).await?;
    row.map(|row| Timestamp::from_micros(row.try_get(0)?).map_err(Cause::Corrupt)).transpose()
}

/// Returns the statistics over a range.
pub(super) async fn stats(
    connection: &mut SqliteConnection,
    table: &Table,
    query: &StatsQuery,
) -> Result<Option<RangeStats>, Cause> {
    let by_key = table.order_by("ASC");
    let (sql, values) = ticks(table, "ts, seq, price, quantity", &by_key, &query.instrument, query.range);
    let mut rows = sqlx::query_with(sql, values.finish()?).fetch(connection);
    let mut figures: Option<Figures> = None;
    while let Some(row) = rows.try_next().await? {
        let tick = read_tick(&row)?;
        figures.get_or_insert_with(|| Figures::new(tick.0)).add(tick)?;
    }
    let Some(Figures { ends: (first, last), prices, sums, count }) = figures else { return Ok(None) };
    Ok(Some(RangeStats::new(first, last, prices, sums, count)?))
}
