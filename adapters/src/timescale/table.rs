//! The private description of a record: its table, columns and codec. COPY, UNNEST, reads and the check of the
//! migrated schema all stand on it, so nothing about a record is written twice.

use qi_core::store::{Dataset, Record};
use qi_core::{
    BarValues, Decimal, Instrument, Interval, MarketSnapshot, Ohlcv, PriceTick, Quote, QuoteValues, Scope,
    Side, SnapshotValues, Timestamp,
};
use sqlx::postgres::PgRow;
use sqlx::{Row, Type, ValueRef};

use super::types::Pg;
use super::wire::{self, PG_EPOCH_MICROS};

/// A column and its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) ty: ColumnType,
}

/// The types in use, with PostgreSQL's name and the fixed OIDs of the type and its array (`pg_type.dat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColumnType {
    SmallInt,
    Int,
    BigInt,
    Numeric,
    Timestamptz,
    Text,
}

impl ColumnType {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::SmallInt => "int2",
            Self::Int => "int4",
            Self::BigInt => "int8",
            Self::Numeric => "numeric",
            Self::Timestamptz => "timestamptz",
            Self::Text => "text",
        }
    }

    pub(super) const fn oid(self) -> u32 {
        match self {
            Self::BigInt => 20,
            Self::SmallInt => 21,
            Self::Int => 23,
            Self::Text => 25,
            Self::Timestamptz => 1184,
            Self::Numeric => 1700,
        }
    }

    pub(super) const fn array_oid(self) -> u32 {
        match self {
            Self::SmallInt => 1005,
            Self::Int => 1007,
            Self::Text => 1009,
            Self::BigInt => 1016,
            Self::Timestamptz => 1185,
            Self::Numeric => 1231,
        }
    }
}

/// A table: what its rows belong to, where in that they stand, and what they hold.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) dataset: Dataset,
    pub(super) name: &'static str,
    /// The columns of the series, the leading part of the primary key.
    pub(super) series: &'static [Column],
    /// The rest of the primary key; the time comes first.
    pub(super) place: &'static [Column],
    pub(super) values: &'static [Column],
}

impl Table {
    /// The time column.
    pub(super) fn time(&self) -> &'static str {
        self.place[0].name
    }

    pub(super) fn columns(&self) -> impl Iterator<Item = Column> {
        self.series.iter().chain(self.place).chain(self.values).copied()
    }

    pub(super) fn key(&self) -> impl Iterator<Item = Column> {
        self.series.iter().chain(self.place).copied()
    }

    /// What a read selects: all but the series, which it knows.
    pub(super) fn read_list(&self) -> String {
        names(self.place.iter().chain(self.values).copied(), "")
    }
}

/// The names, each with a prefix, joined by commas.
pub(super) fn names(columns: impl Iterator<Item = Column>, prefix: &str) -> String {
    columns.map(|column| format!("{prefix}{}", column.name)).collect::<Vec<_>>().join(", ")
}

const fn column(name: &'static str, ty: ColumnType) -> Column {
    Column { name, ty }
}

const fn numeric_column(name: &'static str) -> Column {
    column(name, ColumnType::Numeric)
}

const INSTRUMENT: Column = column("instrument_id", ColumnType::Int);
const TS: Column = column("ts", ColumnType::Timestamptz);
const SEQ: Column = column("seq", ColumnType::BigInt);

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

/// A series as the tables know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeriesKey<'a> {
    Instrument(i32),
    Bars(i32, Interval),
    Scope(&'a Scope),
}

/// The order in which rows are written: everywhere the same, so that two writers cannot lock each other out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WriteKey {
    /// The number of the chunk, so that pieces touch few chunks each.
    pub(super) chunk: i64,
    /// The instrument's id, or the scope's rank in the batch.
    pub(super) series: i32,
    /// The interval of a bar, in microseconds; else 0.
    pub(super) interval: i64,
    pub(super) ts: i64,
    pub(super) seq: i64,
}

/// Takes the fields of a row, one column after the other, each as its length and its bytes: the form that COPY
/// and the elements of an array share.
pub(super) trait Fields {
    /// The buffer of the next column.
    fn next(&mut self) -> &mut Vec<u8>;

    fn int2(&mut self, value: Option<i16>) {
        self.fixed(value.map(i16::to_be_bytes));
    }
    fn int4(&mut self, value: i32) {
        self.fixed(Some(value.to_be_bytes()));
    }
    fn int8(&mut self, value: Option<u64>) {
        // Core keeps every counter at or below i64::MAX.
        self.fixed(value.map(u64::to_be_bytes));
    }
    fn time(&mut self, value: Timestamp) {
        self.fixed(Some((value.as_micros() - PG_EPOCH_MICROS).to_be_bytes()));
    }
    fn text(&mut self, value: Option<&str>) {
        let out = self.next();
        match value {
            None => out.extend_from_slice(&NULL),
            Some(text) => {
                // A text of the domain has at most some hundred bytes.
                let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
    fn numeric(&mut self, value: Option<Decimal>) {
        let out = self.next();
        let Some(value) = value else { return out.extend_from_slice(&NULL) };
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        wire::encode(value.units(), out);
        let len = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    }
    fn fixed<const N: usize>(&mut self, value: Option<[u8; N]>) {
        let out = self.next();
        match value {
            None => out.extend_from_slice(&NULL),
            Some(bytes) => {
                // N is 2, 4 or 8.
                out.extend_from_slice(&u32::try_from(N).unwrap_or(u32::MAX).to_be_bytes());
                out.extend_from_slice(&bytes);
            }
        }
    }
}

/// The length that stands for NULL: -1.
const NULL: [u8; 4] = (-1_i32).to_be_bytes();

/// A record that has a table.
pub(super) trait Stored: Record {
    const TABLE: Table;

    /// Its instrument, if it belongs to one.
    fn instrument_of(&self) -> Option<&Instrument>;
    /// Its scope, if it belongs to one.
    fn scope_of(&self) -> Option<&Scope> {
        None
    }
    /// The parts of its key behind the series: interval, time, sequence.
    fn tail(&self) -> (i64, i64, i64);
    /// Writes all columns; `id` is the instrument's.
    fn encode(&self, id: i32, out: &mut impl Fields);
    /// Reads what [`Table::read_list`] selects, from column `at` on.
    fn decode(row: &PgRow, at: usize, series: &Self::Series) -> Result<Self, sqlx::Error>;
}

/// A value of the domain that the stored row does not make: the row is corrupt.
fn unfit(error: qi_core::Error) -> sqlx::Error {
    sqlx::Error::Decode(Box::new(error))
}

fn get<T>(row: &PgRow, index: usize) -> Result<T, sqlx::Error>
where
    Pg<T>: for<'r> sqlx::Decode<'r, sqlx::Postgres> + Type<sqlx::Postgres>,
{
    row.try_get::<Pg<T>, _>(index).map(|value| value.0)
}

fn get_option<T>(row: &PgRow, index: usize) -> Result<Option<T>, sqlx::Error>
where
    Pg<T>: for<'r> sqlx::Decode<'r, sqlx::Postgres> + Type<sqlx::Postgres>,
{
    if row.try_get_raw(index)?.is_null() { Ok(None) } else { get(row, index).map(Some) }
}

const BUY: i16 = 1;
const SELL: i16 = 2;

impl Stored for PriceTick {
    const TABLE: Table = Table {
        dataset: Dataset::Ticks,
        name: "ticks",
        series: &[INSTRUMENT],
        place: &[TS, SEQ],
        values: &[numeric_column("price"), numeric_column("quantity"), column("side", ColumnType::SmallInt)],
    };

    fn instrument_of(&self) -> Option<&Instrument> {
        Some(self.instrument())
    }
    fn tail(&self) -> (i64, i64, i64) {
        (0, self.ts().as_micros(), self.seq().cast_signed())
    }
    fn encode(&self, id: i32, out: &mut impl Fields) {
        out.int4(id);
        out.time(self.ts());
        out.int8(Some(self.seq()));
        out.numeric(Some(self.price().get()));
        out.numeric(self.quantity().map(Decimal::from));
        out.int2(self.side().map(|side| match side {
            Side::Buy => BUY,
            Side::Sell => SELL,
        }));
    }
    fn decode(row: &PgRow, at: usize, instrument: &Instrument) -> Result<Self, sqlx::Error> {
        let side = match row.try_get::<Option<i16>, _>(at + 4)? {
            None => None,
            Some(BUY) => Some(Side::Buy),
            Some(SELL) => Some(Side::Sell),
            Some(other) => {
                return Err(sqlx::Error::Decode(format!("side {other} is neither 1 nor 2").into()));
            }
        };
        let tick = Self::new(instrument.clone(), get(row, at)?, get(row, at + 1)?, get(row, at + 2)?);
        Ok(tick.map_err(unfit)?.with_quantity(get_option(row, at + 3)?).with_side(side))
    }
}

impl Stored for Quote {
    const TABLE: Table = Table {
        dataset: Dataset::Quotes,
        name: "quotes",
        series: &[INSTRUMENT],
        place: &[TS, SEQ],
        values: &[
            numeric_column("bid_price"),
            numeric_column("bid_size"),
            numeric_column("ask_price"),
            numeric_column("ask_size"),
        ],
    };

    fn instrument_of(&self) -> Option<&Instrument> {
        Some(self.instrument())
    }
    fn tail(&self) -> (i64, i64, i64) {
        (0, self.ts().as_micros(), self.seq().cast_signed())
    }
    fn encode(&self, id: i32, out: &mut impl Fields) {
        let QuoteValues { bid_price, bid_size, ask_price, ask_size } = *self.values();
        out.int4(id);
        out.time(self.ts());
        out.int8(Some(self.seq()));
        out.numeric(bid_price.map(Decimal::from));
        out.numeric(bid_size.map(Decimal::from));
        out.numeric(ask_price.map(Decimal::from));
        out.numeric(ask_size.map(Decimal::from));
    }
    fn decode(row: &PgRow, at: usize, instrument: &Instrument) -> Result<Self, sqlx::Error> {
        let values = QuoteValues {
            bid_price: get_option(row, at + 2)?,
            bid_size: get_option(row, at + 3)?,
            ask_price: get_option(row, at + 4)?,
            ask_size: get_option(row, at + 5)?,
        };
        Self::new(instrument.clone(), get(row, at)?, get(row, at + 1)?, values).map_err(unfit)
    }
}

impl Stored for Ohlcv {
    const TABLE: Table = Table {
        dataset: Dataset::Bars,
        name: "bars",
        series: &[INSTRUMENT, column("\"interval\"", ColumnType::Text)],
        place: &[column("open_time", ColumnType::Timestamptz)],
        values: &[
            numeric_column("open"),
            numeric_column("high"),
            numeric_column("low"),
            numeric_column("close"),
            numeric_column("volume"),
            numeric_column("quote_volume"),
            column("count", ColumnType::BigInt),
        ],
    };

    fn instrument_of(&self) -> Option<&Instrument> {
        Some(self.instrument())
    }
    fn tail(&self) -> (i64, i64, i64) {
        (self.interval().as_micros(), self.open_time().as_micros(), 0)
    }
    fn encode(&self, id: i32, out: &mut impl Fields) {
        let BarValues { open, high, low, close, volume, quote_volume, count } = *self.values();
        out.int4(id);
        out.text(Some(self.interval().as_str()));
        out.time(self.open_time());
        for price in [open, high, low, close] {
            out.numeric(Some(price.get()));
        }
        out.numeric(volume.map(Decimal::from));
        out.numeric(quote_volume.map(Decimal::from));
        out.int8(count);
    }
    fn decode(row: &PgRow, at: usize, series: &Self::Series) -> Result<Self, sqlx::Error> {
        let values = BarValues {
            open: get(row, at + 1)?,
            high: get(row, at + 2)?,
            low: get(row, at + 3)?,
            close: get(row, at + 4)?,
            volume: get_option(row, at + 5)?,
            quote_volume: get_option(row, at + 6)?,
            count: get_option(row, at + 7)?,
        };
        Self::new(series.0.clone(), series.1, get(row, at)?, values).map_err(unfit)
    }
}

impl Stored for MarketSnapshot {
    const TABLE: Table = Table {
        dataset: Dataset::Snapshots,
        name: "snapshots",
        series: &[column("scope", ColumnType::Text)],
        place: &[TS],
        values: &[
            numeric_column("market_cap_usd"),
            numeric_column("volume_24h_usd"),
            numeric_column("btc_dominance"),
            numeric_column("eth_dominance"),
            column("active_currencies", ColumnType::BigInt),
            column("markets", ColumnType::BigInt),
            numeric_column("change_24h"),
            numeric_column("change_7d"),
            column("source", ColumnType::Text),
        ],
    };

    fn instrument_of(&self) -> Option<&Instrument> {
        None
    }
    fn scope_of(&self) -> Option<&Scope> {
        Some(self.scope())
    }
    fn tail(&self) -> (i64, i64, i64) {
        (0, self.ts().as_micros(), 0)
    }
    fn encode(&self, _: i32, out: &mut impl Fields) {
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
        out.text(Some(&self.scope().storage_text()));
        out.time(self.ts());
        out.numeric(market_cap_usd.map(Decimal::from));
        out.numeric(volume_24h_usd.map(Decimal::from));
        out.numeric(btc_dominance.map(Decimal::from));
        out.numeric(eth_dominance.map(Decimal::from));
        out.int8(*active_currencies);
        out.int8(*markets);
        out.numeric(change_24h.map(Decimal::from));
        out.numeric(change_7d.map(Decimal::from));
        out.text(source.as_ref().map(qi_core::domain::Source::as_str));
    }
    fn decode(row: &PgRow, at: usize, scope: &Scope) -> Result<Self, sqlx::Error> {
        let values = SnapshotValues {
            market_cap_usd: get_option(row, at + 1)?,
            volume_24h_usd: get_option(row, at + 2)?,
            btc_dominance: get_option(row, at + 3)?,
            eth_dominance: get_option(row, at + 4)?,
            active_currencies: get_option(row, at + 5)?,
            markets: get_option(row, at + 6)?,
            change_24h: get_option(row, at + 7)?,
            change_7d: get_option(row, at + 8)?,
            source: get_option(row, at + 9)?,
        };
        Self::new(scope.clone(), get(row, at)?, values).map_err(unfit)
    }
}
