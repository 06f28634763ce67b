//! The private description of a record: its table, columns and codec. The schema, writes, reads and the check of
//! the columns all stand on it, so nothing about a record is written twice.

use qi_core::domain::Source;
use qi_core::store::{Dataset, Record};
use qi_core::{
    BarValues, Decimal, Instrument, Interval, MarketSnapshot, Ohlcv, Percent, Price, PriceTick, Quantity,
    Quote, QuoteValues, Scope, Side, SnapshotValues, Timestamp,
};

use super::error::Cause;
use super::wire::{Malformed, Reader, Writer};

/// A column: its name, its type as the server writes it, and how it is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) ty: &'static str,
    pub(super) codec: &'static str,
}

/// A table: what its rows belong to, where in that they stand, and what they hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) dataset: Dataset,
    pub(super) name: &'static str,
    /// The columns of the series, the leading part of the key.
    pub(super) series: &'static [Column],
    /// The rest of the key; the time comes first.
    pub(super) place: &'static [Column],
    pub(super) values: &'static [Column],
    /// The function of the time that makes a partition.
    pub(super) partition: &'static str,
}

impl Table {
    /// The time column.
    pub(super) fn time(&self) -> &'static str {
        self.place[0].name
    }

    pub(super) fn columns(&self) -> impl Iterator<Item = Column> {
        self.series.iter().chain(self.place).chain(self.values).copied()
    }

    /// The columns of the key, joined by commas.
    pub(super) fn key_list(&self) -> String {
        names(self.series.iter().chain(self.place).copied())
    }

    /// What a read selects: all but the series, which it knows.
    pub(super) fn read_list(&self) -> String {
        names(self.place.iter().chain(self.values).copied())
    }

    pub(super) fn place_list(&self) -> String {
        names(self.place.iter().copied())
    }
}

pub(super) fn names(columns: impl Iterator<Item = Column>) -> String {
    columns.map(|column| column.name).collect::<Vec<_>>().join(", ")
}

const NAME: &str = "LowCardinality(String)";

const fn column(name: &'static str, ty: &'static str, codec: &'static str) -> Column {
    Column { name, ty, codec }
}

const fn name(name: &'static str) -> Column {
    column(name, NAME, "")
}

const fn time(name: &'static str) -> Column {
    column(name, "DateTime64(6, 'UTC')", "CODEC(DoubleDelta, ZSTD(1))")
}

// Delta, DoubleDelta, Gorilla and T64 take no values of 16 bytes.
const fn decimal(name: &'static str) -> Column {
    column(name, "Decimal(38, 18)", "CODEC(ZSTD(1))")
}

const fn nullable(name: &'static str) -> Column {
    column(name, "Nullable(Decimal(38, 18))", "CODEC(ZSTD(1))")
}

const fn counter(name: &'static str) -> Column {
    column(name, "Nullable(UInt64)", "CODEC(ZSTD(1))")
}

const EXCHANGE: Column = name("exchange");
const SYMBOL: Column = name("symbol");
const TS: Column = time("ts");
const SEQ: Column = column("seq", "UInt64", "CODEC(Delta, ZSTD(1))");

/// The tables, in the order of [`Dataset::ALL`].
pub(super) const TABLES: [&Table; 4] =
    [&PriceTick::TABLE, &Quote::TABLE, &Ohlcv::TABLE, &MarketSnapshot::TABLE];

/// The table of a dataset.
pub(super) fn table_of(dataset: Dataset) -> &'static Table {
    match dataset {
        Dataset::Ticks => &PriceTick::TABLE,
        Dataset::Quotes => &Quote::TABLE,
        Dataset::Bars => &Ohlcv::TABLE,
        Dataset::Snapshots => &MarketSnapshot::TABLE,
    }
}

/// A record that has a table.
pub(super) trait Stored: Record {
    const TABLE: Table;

    /// What makes its series: the instrument or the scope. Equal ones have equal ranks in a batch.
    type Owner: Ord + Eq + std::hash::Hash;
    fn owner(&self) -> &Self::Owner;
    /// The parts of its key behind the owner: interval, time, sequence.
    fn tail(&self) -> (i64, i64, u64);
    /// Writes all columns.
    fn encode(&self, out: &mut Writer);
    /// Reads what [`Table::read_list`] selects.
    fn decode(row: &mut Reader<'_>, series: &Self::Series) -> Result<Self, Cause>;
    /// What the WHERE clause says of a series.
    fn condition(series: &Self::Series) -> String;
}

/// A text of the domain as a literal.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// `exchange = 'kraken' AND symbol = 'BTC-EUR'`
pub(super) fn of_instrument(instrument: &Instrument) -> String {
    let (exchange, symbol) = (instrument.exchange().as_str(), instrument.symbol().as_str());
    format!("exchange = {} AND symbol = {}", literal(exchange), literal(symbol))
}

pub(super) fn read_time(row: &mut Reader<'_>) -> Result<Timestamp, Cause> {
    Timestamp::from_micros(row.i64()?).map_err(Cause::Corrupt)
}

pub(super) fn read_decimal(row: &mut Reader<'_>) -> Result<Decimal, Cause> {
    Decimal::from_units(row.i128()?).map_err(Cause::Corrupt)
}

pub(super) fn read_price(row: &mut Reader<'_>) -> Result<Price, Cause> {
    Price::new(read_decimal(row)?).map_err(Cause::Corrupt)
}

fn read_quantity(row: &mut Reader<'_>) -> Result<Quantity, Cause> {
    Quantity::new(read_decimal(row)?).map_err(Cause::Corrupt)
}

fn read_percent(row: &mut Reader<'_>) -> Result<Percent, Cause> {
    Percent::new(read_decimal(row)?).map_err(Cause::Corrupt)
}

fn read_counter(row: &mut Reader<'_>) -> Result<u64, Cause> {
    Ok(row.u64()?)
}

const BUY: i8 = 1;
const SELL: i8 = 2;

impl Stored for PriceTick {
    const TABLE: Table = Table {
        dataset: Dataset::Ticks,
        name: "ticks",
        series: &[EXCHANGE, SYMBOL],
        place: &[TS, SEQ],
        values: &[
            decimal("price"),
            nullable("quantity"),
            column("side", "Nullable(Enum8('buy' = 1, 'sell' = 2))", ""),
        ],
        partition: "toYYYYMM",
    };
    type Owner = Instrument;

    fn owner(&self) -> &Instrument {
        self.instrument()
    }
    fn tail(&self) -> (i64, i64, u64) {
        (0, self.ts().as_micros(), self.seq())
    }
    fn encode(&self, out: &mut Writer) {
        out.text(self.instrument().exchange().as_str());
        out.text(self.instrument().symbol().as_str());
        out.time(self.ts());
        out.u64(self.seq());
        out.decimal(self.price());
        out.option(self.quantity(), Writer::decimal);
        out.option(
            self.side().map(|side| match side {
                Side::Buy => BUY,
                Side::Sell => SELL,
            }),
            Writer::i8,
        );
    }
    fn decode(row: &mut Reader<'_>, instrument: &Instrument) -> Result<Self, Cause> {
        let (ts, seq, price) = (read_time(row)?, row.u64()?, read_price(row)?);
        let quantity = row.option(read_quantity)?;
        let side = match row.option(Reader::i8)? {
            None => None,
            Some(BUY) => Some(Side::Buy),
            Some(SELL) => Some(Side::Sell),
            Some(other) => return Err(Malformed(format!("side {other} is neither 1 nor 2")).into()),
        };
        let tick = Self::new(instrument.clone(), ts, seq, price).map_err(Cause::Corrupt)?;
        Ok(tick.with_quantity(quantity).with_side(side))
    }
    fn condition(instrument: &Instrument) -> String {
        of_instrument(instrument)
    }
}

impl Stored for Quote {
    const TABLE: Table = Table {
        dataset: Dataset::Quotes,
        name: "quotes",
        series: &[EXCHANGE, SYMBOL],
        place: &[TS, SEQ],
        values: &[nullable("bid_price"), nullable("bid_size"), nullable("ask_price"), nullable("ask_size")],
        partition: "toYYYYMM",
    };
    type Owner = Instrument;

    fn owner(&self) -> &Instrument {
        self.instrument()
    }
    fn tail(&self) -> (i64, i64, u64) {
        (0, self.ts().as_micros(), self.seq())
    }
    fn encode(&self, out: &mut Writer) {
        let QuoteValues { bid_price, bid_size, ask_price, ask_size } = *self.values();
        out.text(self.instrument().exchange().as_str());
        out.text(self.instrument().symbol().as_str());
        out.time(self.ts());
        out.u64(self.seq());
        out.option(bid_price, Writer::decimal);
        out.option(bid_size, Writer::decimal);
        out.option(ask_price, Writer::decimal);
        out.option(ask_size, Writer::decimal);
    }
    fn decode(row: &mut Reader<'_>, instrument: &Instrument) -> Result<Self, Cause> {
        let (ts, seq) = (read_time(row)?, row.u64()?);
        let values = QuoteValues {
            bid_price: row.option(read_price)?,
            bid_size: row.option(read_quantity)?,
            ask_price: row.option(read_price)?,
            ask_size: row.option(read_quantity)?,
        };
        Self::new(instrument.clone(), ts, seq, values).map_err(Cause::Corrupt)
    }
    fn condition(instrument: &Instrument) -> String {
        of_instrument(instrument)
    }
}

impl Stored for Ohlcv {
    const TABLE: Table = Table {
        dataset: Dataset::Bars,
        name: "bars",
        series: &[EXCHANGE, SYMBOL, name("interval")],
        place: &[time("open_time")],
        values: &[
            decimal("open"),
            decimal("high"),
            decimal("low"),
            decimal("close"),
            nullable("volume"),
            nullable("quote_volume"),
            counter("count"),
        ],
        partition: "toYear",
    };
    type Owner = Instrument;

    fn owner(&self) -> &Instrument {
        self.instrument()
    }
    fn tail(&self) -> (i64, i64, u64) {
        (self.interval().as_micros(), self.open_time().as_micros(), 0)
    }
    fn encode(&self, out: &mut Writer) {
        let BarValues { open, high, low, close, volume, quote_volume, count } = *self.values();
        out.text(self.instrument().exchange().as_str());
        out.text(self.instrument().symbol().as_str());
        out.text(self.interval().as_str());
        out.time(self.open_time());
        for price in [open, high, low, close] {
            out.decimal(price);
        }
        out.option(volume, Writer::decimal);
        out.option(quote_volume, Writer::decimal);
        out.option(count, Writer::u64);
    }
    fn decode(row: &mut Reader<'_>, series: &Self::Series) -> Result<Self, Cause> {
        let open_time = read_time(row)?;
        let values = BarValues {
            open: read_price(row)?,
            high: read_price(row)?,
            low: read_price(row)?,
            close: read_price(row)?,
            volume: row.option(read_quantity)?,
            quote_volume: row.option(read_quantity)?,
            count: row.option(read_counter)?,
        };
        Self::new(series.0.clone(), series.1, open_time, values).map_err(Cause::Corrupt)
    }
    fn condition(series: &(Instrument, Interval)) -> String {
        format!("{} AND interval = {}", of_instrument(&series.0), literal(series.1.as_str()))
    }
}

impl Stored for MarketSnapshot {
    const TABLE: Table = Table {
        dataset: Dataset::Snapshots,
        name: "snapshots",
        series: &[name("scope")],
        place: &[TS],
        values: &[
            nullable("market_cap_usd"),
            nullable("volume_24h_usd"),
            nullable("btc_dominance"),
            nullable("eth_dominance"),
            counter("active_currencies"),
            counter("markets"),
            nullable("change_24h"),
            nullable("change_7d"),
            column("source", "Nullable(String)", "CODEC(ZSTD(1))"),
        ],
        partition: "toYear",
    };
    type Owner = Scope;

    fn owner(&self) -> &Scope {
        self.scope()
    }
    fn tail(&self) -> (i64, i64, u64) {
        (0, self.ts().as_micros(), 0)
    }
    fn encode(&self, out: &mut Writer) {
        let SnapshotValues {
            market_cap_usd,
            volume_24h_usd,
            btc_dominance,
            eth_dominance,
            active_currencies,
            markets,
            change_24h,
            change_7d,
            source,
        } = self.values();
        out.text(&self.scope().storage_text());
        out.time(self.ts());
        out.option(market_cap_usd.map(Decimal::from), Writer::decimal);
        out.option(volume_24h_usd.map(Decimal::from), Writer::decimal);
        out.option(btc_dominance.map(Decimal::from), Writer::decimal);
        out.option(eth_dominance.map(Decimal::from), Writer::decimal);
        out.option(*active_currencies, Writer::u64);
        out.option(*markets, Writer::u64);
        out.option(change_24h.map(Decimal::from), Writer::decimal);
        out.option(change_7d.map(Decimal::from), Writer::decimal);
        out.option(source.as_ref().map(Source::as_str), Writer::text);
    }
    fn decode(row: &mut Reader<'_>, scope: &Scope) -> Result<Self, Cause> {
        let ts = read_time(row)?;
        let values = SnapshotValues {
            market_cap_usd: row.option(read_quantity)?,
            volume_24h_usd: row.option(read_quantity)?,
            btc_dominance: row.option(read_percent)?,
            eth_dominance: row.option(read_percent)?,
            active_currencies: row.option(read_counter)?,
            markets: row.option(read_counter)?,
            change_24h: row.option(read_percent)?,
            change_7d: row.option(read_percent)?,
            source: row.option(|row| Source::new(row.text()?).map_err(Cause::Corrupt))?,
        };
        Self::new(scope.clone(), ts, values).map_err(Cause::Corrupt)
    }
    fn condition(scope: &Scope) -> String {
        format!("scope = {}", literal(&scope.storage_text()))
    }
}

/// Decodes rows of each dataset from any bytes.
///
/// # Panics
/// If an accepted row differs after encoding and decoding.
#[cfg(feature = "fuzzing")]
pub fn fuzz_row_binary(bytes: &[u8]) {
    fn rows<R: Stored + PartialEq + std::fmt::Debug>(bytes: &[u8], series: &R::Series, names: usize) {
        let mut reader = Reader::new(bytes);
        while let Ok(record) = R::decode(&mut reader, series) {
            let mut out = Writer::default();
            record.encode(&mut out);
            let mut again = Reader::new(&out.0);
            for _ in 0..names {
                assert!(again.text().is_ok(), "the names of the series come first");
            }
            assert_eq!(R::decode(&mut again, series).ok().as_ref(), Some(&record));
            assert!(again.is_empty(), "{record:?}");
        }
    }
    let Ok(instrument) = "x:Y".parse::<Instrument>() else { return };
    rows::<PriceTick>(bytes, &instrument, 2);
    rows::<Quote>(bytes, &instrument, 2);
    rows::<Ohlcv>(bytes, &(instrument, Interval::M1), 3);
    rows::<MarketSnapshot>(bytes, &Scope::Global, 1);
}
