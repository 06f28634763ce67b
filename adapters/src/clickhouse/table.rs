//! The table of a dataset: its columns, and the parts of statements derived from them. The schema, the writes, the
//! reads and the check of the columns all use this definition.

use std::fmt;
use std::sync::{PoisonError, RwLock};

use qi_core::record::{
    Column as DatasetColumn, ColumnType, Dataset, FieldReader as _, FieldWriter as _, Owner, OwnerRef,
    RecordVec, SeriesKey, SeriesType,
};
use qi_core::{Bar, Error, Instrument, Interval, MarketSnapshot, Price, PriceTick, Quote, Timestamp};

use super::config::ClickHouseConfig;
use super::error::Cause;
use super::wire::{Reader, Writer};

/// A column: its name, its type as the server prints it, and its compression codec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: &'static str,
    /// The name in statements, quoted if necessary.
    pub(super) sql: String,
    pub(super) ty: String,
    pub(super) codec: &'static str,
}

impl Column {
    fn new(name: &'static str, ty: impl Into<String>, codec: &'static str) -> Self {
        Self { name, sql: identifier(name), ty: ty.into(), codec }
    }

    fn name(name: &'static str) -> Self {
        Self::new(name, NAME_TYPE, "")
    }

    fn time(name: &'static str) -> Self {
        Self::new(name, TIME_TYPE, TIME_CODEC)
    }

    fn of(value: &DatasetColumn) -> Self {
        // A decimal has 16 bytes. Delta, DoubleDelta, Gorilla and T64 do not support this size.
        let (ty, codec) = match value.ty {
            ColumnType::Decimal => (DECIMAL_TYPE.to_owned(), VALUE_CODEC),
            ColumnType::Counter => ("UInt64".to_owned(), VALUE_CODEC),
            ColumnType::Integer => ("Int64".to_owned(), VALUE_CODEC),
            ColumnType::Boolean => ("Bool".to_owned(), ""),
            ColumnType::Text { .. } => ("String".to_owned(), VALUE_CODEC),
            ColumnType::Enumeration(names) => {
                let names = names.iter().enumerate().map(|(at, name)| format!("'{name}' = {}", at + 1));
                (format!("Enum8({})", names.collect::<Vec<_>>().join(", ")), "")
            }
            ColumnType::Timestamp => (TIME_TYPE.to_owned(), TIME_CODEC),
            ColumnType::Interval if value.optional => {
                return Self::new(value.name, "LowCardinality(Nullable(String))", "");
            }
            ColumnType::Interval => (NAME_TYPE.to_owned(), ""),
            ColumnType::Levels { .. } => {
                (format!("Array(Tuple(price {DECIMAL_TYPE}, quantity {DECIMAL_TYPE}))"), VALUE_CODEC)
            }
            // A type of a later version of the core library. The server rejects this text as a type.
            _ => (format!("{:?}", value.ty), ""),
        };
        let ty = if value.optional { format!("Nullable({ty})") } else { ty };
        Self::new(value.name, ty, codec)
    }

    /// Returns the expression of the column for Arrow: the names of an enumeration as text.
    fn for_arrow(&self) -> String {
        let name = &self.sql;
        match (self.ty.contains("Enum8("), self.ty.starts_with("Nullable(")) {
            (false, _) => name.clone(),
            (true, false) => format!("CAST({name} AS String) AS {name}"),
            (true, true) => format!("CAST({name} AS Nullable(String)) AS {name}"),
        }
    }

    /// Returns the definition of the column, for example `price Decimal(38, 18) CODEC(ZSTD(1))`.
    pub(super) fn definition(&self) -> String {
        format!("{} {} {}", self.sql, self.ty, self.codec).trim_end().to_owned()
    }
}

/// Returns whether the enumeration `wide` begins with all names of `narrow` and has more names after them.
pub(super) fn is_wider(wide: &str, narrow: &str) -> bool {
    narrow.contains("Enum8(")
        && wide.strip_prefix(narrow.trim_end_matches(')')).is_some_and(|rest| rest.starts_with(", "))
}

const NAME_TYPE: &str = "LowCardinality(String)";
const TIME_TYPE: &str = "DateTime64(6, 'UTC')";
const TIME_CODEC: &str = "CODEC(DoubleDelta, ZSTD(1))";
const DECIMAL_TYPE: &str = "Decimal(38, 18)";
const VALUE_CODEC: &str = "CODEC(ZSTD(1))";

/// A column as found in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredColumn {
    pub(super) table: String,
    pub(super) name: String,
    pub(super) ty: String,
    /// True if the column is part of the sorting key.
    pub(super) key: bool,
}

impl fmt::Display for StoredColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ty, key, .. } = self;
        write!(f, "{ty}{}", if *key { " in the key" } else { "" })
    }
}

/// The location of the tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct TableLocation<'a> {
    pub(super) database: &'a str,
    pub(super) prefix: &'a str,
    pub(super) cluster: Option<&'a str>,
}

impl<'a> TableLocation<'a> {
    pub(super) fn of(config: &'a ClickHouseConfig) -> Self {
        Self { database: &config.database, prefix: &config.table_prefix, cluster: config.cluster.as_deref() }
    }

    /// Returns the name of the table for reads and writes.
    pub(super) fn table_name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Returns the name of the table that stores the rows of a node. Deletions use this table.
    pub(super) fn local_name(&self, name: &str) -> String {
        if self.cluster.is_some() { format!("{}{name}_local", self.prefix) } else { self.table_name(name) }
    }

    /// Returns [`TableLocation::table_name`] of a dataset for use in statements.
    pub(super) fn quoted_name(&self, name: &str) -> String {
        self.quote(name, "")
    }

    /// Returns [`TableLocation::local_name`] of a dataset for use in statements.
    pub(super) fn quoted_local_name(&self, name: &str) -> String {
        self.quote(name, if self.cluster.is_some() { "_local" } else { "" })
    }

    fn quote(&self, name: &str, end: &str) -> String {
        let full = format!("{}{name}{end}", self.prefix);
        if identifier(name) == name { full } else { format!("`{full}`") }
    }

    /// Returns ` ON CLUSTER 'name'`, or an empty text without a cluster.
    pub(super) fn on_cluster(&self) -> String {
        self.cluster.map_or_else(String::new, |cluster| format!(" ON CLUSTER '{cluster}'"))
    }

    /// Returns the table that lists the parts: of all nodes with a cluster, otherwise of the server.
    pub(super) fn system_parts(&self) -> String {
        self.cluster.map_or_else(
            || "system.parts".to_owned(),
            |cluster| format!("clusterAllReplicas('{cluster}', system.parts)"),
        )
    }

    /// Returns the statement that creates a bookkeeping table of the schema. On a cluster, every node has a full copy.
    pub(super) fn bookkeeping_table(&self, name: &str, columns: &str, key: &str) -> String {
        let engine = match self.cluster {
            None => "ReplacingMergeTree",
            // All shards share one replica set, so the path has no `{shard}`, unlike the server's default path. It has no
            // `{uuid}`, because each `ON CLUSTER` statement creates a uuid: on a node that joins the cluster later, the
            // table would be a separate copy without the recorded steps.
            Some(_) => {
                "ReplicatedReplacingMergeTree('/clickhouse/tables/all/{database}/{table}', '{shard}-{replica}')"
            }
        };
        format!(
            "CREATE TABLE IF NOT EXISTS {}{} ({columns}, applied_at DateTime64(6, 'UTC')) \
             ENGINE = {engine} ORDER BY {key}",
            self.table_name(name),
            self.on_cluster(),
        )
    }
}

/// Writes the time, the sequence number and the values of a record.
pub(super) fn write_record(
    table: &Table,
    batch: &dyn qi_core::record::Records,
    at: usize,
    (time, seq): qi_core::record::SortKey,
    out: &mut Writer,
) {
    out.time(time);
    if table.dataset.seq().is_some() {
        out.counter(seq);
    }
    batch.write(at, out);
}

/// The datasets of version 0.1.0. Migration step 1 (version 0.1.0) creates their tables.
pub(super) const FIRST_DATASETS: [Dataset; 4] =
    [PriceTick::DATASET, Quote::DATASET, Bar::DATASET, MarketSnapshot::DATASET];

/// Returns a name for use in statements. The names of the first datasets are not SQL keywords. Other names may be,
/// so they are quoted.
pub(super) fn identifier(name: &str) -> String {
    let is_builtin_name = |dataset: Dataset| {
        let series = match dataset.series() {
            SeriesType::Instrument => ["exchange", "symbol"],
            SeriesType::Name { column, .. } => [column, column],
        };
        let keys = [dataset.interval(), Some(dataset.time()), dataset.seq()];
        let keys = keys.into_iter().flatten().chain(series).chain([dataset.name()]);
        keys.chain(dataset.values().iter().map(|column| column.name)).any(|builtin| builtin == name)
    };
    if FIRST_DATASETS.into_iter().any(is_builtin_name) { name.to_owned() } else { format!("`{name}`") }
}

/// Returns a text as an SQL literal.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The table of a dataset, with prepared parts of statements.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) dataset: Dataset,
    /// The unquoted name with the prefix.
    pub(super) unquoted_name: String,
    pub(super) columns: Vec<Column>,
    /// The number of columns of the owner, of the series and of the key. Each group begins with the previous group.
    prefixes: [usize; 3],
    /// The names in statements: the table for reads and writes, and the table that stores the rows of a node.
    pub(super) name: String,
    pub(super) local: String,
    /// Column lists, separated by commas: the owner, the key, the sort key (time and sequence number), and all
    /// columns except the series.
    pub(super) owner_columns: String,
    pub(super) key_columns: String,
    pub(super) sort_key_columns: String,
    pub(super) record_columns: String,
    /// The same columns for Arrow, which has no type for enumerations.
    pub(super) arrow_columns: String,
    pub(super) insert_sql: String,
    /// The columns whose enumeration has more names in the database, with their type there. Another version of the
    /// program added these names. Rows must be sent with that type.
    wider_types: RwLock<Vec<(usize, String)>>,
}

impl Table {
    pub(super) fn new(dataset: Dataset, location: &TableLocation<'_>) -> Self {
        let mut columns = match dataset.series() {
            SeriesType::Instrument => vec![Column::name("exchange"), Column::name("symbol")],
            SeriesType::Name { column, .. } => vec![Column::name(column)],
        };
        let owner = columns.len();
        columns.extend(dataset.interval().map(Column::name));
        let series = columns.len();
        columns.push(Column::time(dataset.time()));
        columns.extend(dataset.seq().map(|seq| Column::new(seq, "UInt64", "CODEC(Delta, ZSTD(1))")));
        let key = columns.len();
        columns.extend(dataset.values().iter().map(Column::of));
        let names =
            |columns: &[Column]| columns.iter().map(|column| &*column.sql).collect::<Vec<_>>().join(", ");
        let name = location.quoted_name(dataset.name());
        Self {
            dataset,
            unquoted_name: location.table_name(dataset.name()),
            prefixes: [owner, series, key],
            owner_columns: names(&columns[..owner]),
            key_columns: names(&columns[..key]),
            sort_key_columns: names(&columns[series..key]),
            record_columns: names(&columns[series..]),
            arrow_columns: columns[series..].iter().map(Column::for_arrow).collect::<Vec<_>>().join(", "),
            insert_sql: format!("INSERT INTO {name} ({}) FORMAT RowBinaryWithNamesAndTypes", names(&columns)),
            local: location.quoted_local_name(dataset.name()),
            name,
            columns,
            wider_types: RwLock::default(),
        }
    }

    /// Returns the time column.
    pub(super) fn time(&self) -> &str {
        &self.columns[self.prefixes[1]].sql
    }

    /// Returns the columns of the sort key: the time, and the sequence number if the dataset has one.
    pub(super) fn sort_key(&self) -> &[Column] {
        &self.columns[self.prefixes[1]..self.prefixes[2]]
    }

    /// Returns the number of columns of the key.
    pub(super) fn key_len(&self) -> usize {
        self.prefixes[2]
    }

    /// Returns the function that maps the time to a partition.
    pub(super) fn partition_function(&self) -> &'static str {
        if self.dataset.seq().is_some() { "toYYYYMM" } else { "toYear" }
    }

    /// Returns the approximate length of a partition, in days.
    pub(super) fn partition_days(&self) -> i64 {
        if self.dataset.seq().is_some() { 30 } else { 365 }
    }

    /// Returns the columns of a series: the owner, and the interval if the dataset has one.
    pub(super) fn series_columns(&self) -> String {
        let series = self.columns[..self.prefixes[1]].iter();
        series.map(|column| &*column.sql).collect::<Vec<_>>().join(", ")
    }

    /// Rejects an owner that does not fit the dataset.
    pub(super) fn check_owner(&self, owner: &Owner) -> Result<(), Cause> {
        let instruments = self.dataset.series() == SeriesType::Instrument;
        if instruments == owner.instrument().is_some() {
            return Ok(());
        }
        let rule = if instruments { "must be an instrument" } else { "must be a name" };
        Err(Error::invalid("store.query.owner", "owner", owner, rule)
            .with_context("dataset", self.dataset)
            .into())
    }

    /// Rejects a series that does not fit the dataset.
    pub(super) fn check_series(&self, series: &SeriesKey) -> Result<(), Cause> {
        self.check_owner(&series.owner)?;
        if series.interval.is_some() == self.dataset.interval().is_some() {
            return Ok(());
        }
        let rule = "must have an interval if and only if the dataset has intervals";
        Err(Error::invalid("store.query.interval", "series", series, rule)
            .with_context("dataset", self.dataset)
            .into())
    }

    /// Returns `(exchange, symbol)`, or a single column without parentheses.
    pub(super) fn owner_tuple(&self) -> String {
        self.parenthesize(&self.owner_columns)
    }

    /// Returns the literals of an owner, for example `'kraken', 'BTC-EUR'`.
    pub(super) fn owner_literals(owner: &Owner) -> String {
        match owner {
            Owner::Instrument(instrument) => {
                let (exchange, symbol) = (instrument.exchange().as_str(), instrument.symbol().as_str());
                format!("{}, {}", literal(exchange), literal(symbol))
            }
            Owner::Name(name) => literal(name),
        }
    }

    /// Returns an owner as a single value for comparison with [`Table::owner_tuple`].
    pub(super) fn owner_value(&self, owner: &Owner) -> String {
        self.parenthesize(&Self::owner_literals(owner))
    }

    fn parenthesize(&self, list: &str) -> String {
        if self.prefixes[0] > 1 { format!("({list})") } else { list.to_owned() }
    }

    /// Returns the condition for an owner, for example `exchange = 'kraken' AND symbol = 'BTC-EUR'`.
    pub(super) fn owner_condition(&self, owner: &Owner) -> String {
        match owner {
            Owner::Instrument(instrument) => instrument_condition(instrument),
            Owner::Name(name) => format!("{} = {}", self.owner_columns, literal(name)),
        }
    }

    /// Returns ` AND interval = '1h'`, or an empty text without an interval.
    pub(super) fn interval_condition(&self, interval: Option<Interval>) -> String {
        match (interval, self.dataset.interval()) {
            (Some(interval), Some(column)) => {
                format!(" AND {} = {}", identifier(column), literal(interval.as_str()))
            }
            _ => String::new(),
        }
    }

    /// Reads an owner from the columns of [`Table::owner_columns`].
    pub(super) fn read_owner(&self, row: &mut Reader<'_>) -> Result<Owner, Cause> {
        Ok(match self.dataset.series() {
            SeriesType::Instrument => {
                let (exchange, symbol) = (row.text()?, row.text()?);
                Owner::Instrument(format!("{exchange}:{symbol}").parse().map_err(Cause::Corrupt)?)
            }
            SeriesType::Name { .. } => Owner::Name(row.text()?.into()),
        })
    }

    /// Reads a record from the columns of [`Table::record_columns`].
    pub(super) fn read(
        &self,
        row: &mut Reader<'_>,
        series: &SeriesKey,
        out: &mut RecordVec,
    ) -> Result<(), Cause> {
        let time = read_time(row)?;
        let seq = if self.dataset.seq().is_some() { row.u64()? } else { 0 };
        out.push(series, (time, seq), row).map_err(Cause::Corrupt)
    }

    /// Writes the columns of a series.
    pub(super) fn write_series(out: &mut Writer, owner: &OwnerRef<'_>, interval: Option<Interval>) {
        match owner {
            OwnerRef::Instrument(instrument) => {
                out.text(instrument.exchange().as_str());
                out.text(instrument.symbol().as_str());
            }
            OwnerRef::Name(name) => out.text(name),
        }
        if let Some(interval) = interval {
            out.interval(interval);
        }
    }

    /// Writes the names and types of the columns, so that a table with another schema rejects the rows
    /// instead of misreading them.
    pub(super) fn write_header(&self, out: &mut Writer) {
        out.length(self.columns.len());
        for column in &self.columns {
            out.text(column.name);
        }
        let wider = self.wider_types.read().unwrap_or_else(PoisonError::into_inner);
        for (at, column) in self.columns.iter().enumerate() {
            let ty = wider.iter().find(|(wide, _)| *wide == at).map_or(&column.ty, |(_, ty)| ty);
            out.text(ty);
        }
    }

    /// Stores the enumerations that have more names in the database. Returns whether they changed.
    pub(super) fn update_enum_types(&self, found: &[StoredColumn]) -> bool {
        let wide = |(at, column): (usize, &Column)| {
            let found = found.iter().find(|found| found.name == column.name)?;
            is_wider(&found.ty, &column.ty).then(|| (at, found.ty.clone()))
        };
        let current: Vec<_> = self.columns.iter().enumerate().filter_map(wide).collect();
        let mut wider = self.wider_types.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *wider != current;
        *wider = current;
        changed
    }
}

/// Returns the condition for an instrument, for example `exchange = 'kraken' AND symbol = 'BTC-EUR'`.
pub(super) fn instrument_condition(instrument: &Instrument) -> String {
    let (exchange, symbol) = (instrument.exchange().as_str(), instrument.symbol().as_str());
    format!("exchange = {} AND symbol = {}", literal(exchange), literal(symbol))
}

pub(super) fn read_time(row: &mut Reader<'_>) -> Result<Timestamp, Cause> {
    row.time().map_err(Cause::Corrupt)
}

pub(super) fn read_price(row: &mut Reader<'_>) -> Result<Price, Cause> {
    row.decimal().and_then(Price::new).map_err(Cause::Corrupt)
}

/// Decodes arbitrary bytes as rows of a dataset.
///
/// # Panics
/// Panics if an accepted row differs after a round trip through encoding and decoding.
#[cfg(feature = "fuzzing")]
pub fn fuzz_row_binary(dataset: Dataset, bytes: &[u8]) {
    let owner = match dataset.series() {
        SeriesType::Instrument => "x:Y".parse().ok().map(Owner::Instrument),
        SeriesType::Name { .. } => Some(Owner::Name("asset:BTC".into())),
    };
    let Some(owner) = owner else { return };
    let series = SeriesKey { owner, interval: dataset.interval().map(|_| Interval::M1) };
    let table = Table::new(dataset, &TableLocation { database: "", prefix: "", cluster: None });
    let mut reader = Reader::new(bytes);
    let mut found = dataset.new_vec();
    while table.read(&mut reader, &series, &mut found).is_ok() {
        let (records, mut out) = (found.as_records(), Writer::default());
        write_record(&table, records, 0, records.sort_key(0), &mut out);
        let (mut again, mut read) = (dataset.new_vec(), Reader::new(&out.0));
        assert!(table.read(&mut read, &series, &mut again).is_ok(), "{found:?}");
        assert!(again == found && read.is_empty(), "{found:?}");
        found.truncate(0);
    }
}
