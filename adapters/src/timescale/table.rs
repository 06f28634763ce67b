//! The table of a dataset: its columns, and the encoding and decoding of rows. COPY, `unnest`, reads and the schema
//! all use this definition.

use std::borrow::Cow;
use std::io::Write as _;

use qi_core::record::{
    self, Dataset, FieldReader, FieldWriter, Level, RecordVec, SeriesKey, SeriesType, SortKey,
};
use qi_core::{Decimal, Error, ErrorKind, Interval, Price, Quantity, Result, Timestamp};
use sqlx::postgres::{PgRow, PgValueRef};
use sqlx::{Decode, Postgres, Row, ValueRef};

use super::BACKEND;
use super::types::Pg;
use super::wire::{self, PG_EPOCH_MICROS};

/// A column of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) ty: ColumnType,
    pub(super) optional: bool,
    /// True if the text sorts by its bytes.
    bytewise: bool,
}

/// The types in use, with PostgreSQL's name and the fixed OIDs of the type and its array (`pg_type.dat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ColumnType {
    Bool,
    SmallInt,
    Int,
    BigInt,
    Numeric,
    Timestamptz,
    Text,
    /// Pairs of price and quantity, as a `numeric[]` of two dimensions.
    Levels,
}

impl ColumnType {
    fn of(ty: record::ColumnType) -> Self {
        use record::ColumnType as Declared;
        match ty {
            Declared::Decimal => Self::Numeric,
            Declared::Counter | Declared::Integer => Self::BigInt,
            Declared::Boolean => Self::Bool,
            Declared::Enumeration(_) => Self::SmallInt,
            Declared::Timestamp => Self::Timestamptz,
            Declared::Levels { .. } => Self::Levels,
            // `Text` and `Interval`. The core library adds no type without support in its adapters.
            _ => Self::Text,
        }
    }

    /// Returns the name of the type in the catalog.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::SmallInt => "int2",
            Self::Int => "int4",
            Self::BigInt => "int8",
            Self::Numeric => "numeric",
            Self::Timestamptz => "timestamptz",
            Self::Text => "text",
            Self::Levels => "_numeric",
        }
    }

    /// Returns the element type of an array of such values. `unnest` flattens arrays of arrays, so levels are the text
    /// of an array there.
    pub(super) const fn element(self) -> Self {
        match self {
            Self::Levels => Self::Text,
            other => other,
        }
    }

    pub(super) const fn oid(self) -> u32 {
        match self {
            Self::Bool => 16,
            Self::BigInt => 20,
            Self::SmallInt => 21,
            Self::Int => 23,
            Self::Text => 25,
            Self::Timestamptz => 1184,
            Self::Levels => 1231,
            Self::Numeric => 1700,
        }
    }

    pub(super) const fn array_oid(self) -> u32 {
        match self {
            Self::Bool => 1000,
            Self::SmallInt => 1005,
            Self::Int => 1007,
            Self::Text => 1009,
            Self::BigInt => 1016,
            Self::Timestamptz => 1185,
            Self::Numeric | Self::Levels => 1231,
        }
    }
}

impl Column {
    const fn key(name: &'static str, ty: ColumnType) -> Self {
        Self { name, ty, optional: false, bytewise: true }
    }

    /// Returns the column definition for CREATE TABLE.
    pub(super) fn definition(&self) -> String {
        let ty = match self.ty {
            ColumnType::Bool => "boolean",
            ColumnType::SmallInt => "smallint",
            ColumnType::Int => "int",
            ColumnType::BigInt => "bigint",
            ColumnType::Numeric => "numeric(38,18)",
            ColumnType::Timestamptz => "timestamptz",
            ColumnType::Text if self.bytewise => "text COLLATE \"C\"",
            ColumnType::Text => "text",
            ColumnType::Levels => "numeric(38,18)[]",
        };
        format!("\"{}\" {ty}{}", self.name, if self.optional { "" } else { " NOT NULL" })
    }
}

/// The table of a dataset. The columns of the series and of the sort key are the primary key. The value columns follow.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) dataset: Dataset,
    /// The quoted name with its schema.
    relation: String,
    columns: Vec<Column>,
    series: usize,
    key: usize,
}

impl Table {
    /// Returns the table of a dataset in a schema.
    pub(super) fn of(dataset: Dataset, schema: &str) -> Self {
        let mut columns = vec![match dataset.series() {
            SeriesType::Instrument => Column::key("instrument_id", ColumnType::Int),
            SeriesType::Name { column, .. } => Column::key(column, ColumnType::Text),
        }];
        columns.extend(dataset.interval().map(|name| Column::key(name, ColumnType::Text)));
        let series = columns.len();
        columns.push(Column::key(dataset.time(), ColumnType::Timestamptz));
        columns.extend(dataset.seq().map(|name| Column::key(name, ColumnType::BigInt)));
        let key = columns.len();
        columns.extend(dataset.values().iter().map(|column| Column {
            name: column.name,
            ty: ColumnType::of(column.ty),
            optional: column.optional,
            bytewise: column.ty == record::ColumnType::Interval,
        }));
        let relation = format!("\"{schema}\".\"{}\"", dataset.name());
        Self { dataset, relation, columns, series, key }
    }

    /// Returns the name of the table.
    pub(super) fn name(&self) -> &'static str {
        self.dataset.name()
    }

    /// Returns the quoted name of the table with its schema.
    pub(super) fn relation(&self) -> &str {
        &self.relation
    }

    /// Returns the time column.
    pub(super) fn time(&self) -> &'static str {
        self.dataset.time()
    }

    pub(super) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// Returns the columns of the series, the leading part of the primary key.
    pub(super) fn series(&self) -> &[Column] {
        &self.columns[..self.series]
    }

    /// Returns the columns of the sort key, the rest of the primary key. The time comes first.
    pub(super) fn sort_key(&self) -> &[Column] {
        &self.columns[self.series..self.key]
    }

    pub(super) fn key(&self) -> &[Column] {
        &self.columns[..self.key]
    }

    /// Returns the columns of a segment's bounds: the key of its first record, then the sort key of its last record.
    pub(super) fn segment(&self) -> Vec<Column> {
        [self.key(), self.sort_key()].concat()
    }

    pub(super) fn values(&self) -> &[Column] {
        &self.columns[self.key..]
    }

    /// Returns the columns that a read selects: all columns except the series, which the caller knows.
    pub(super) fn read_list(&self) -> &[Column] {
        &self.columns[self.series..]
    }

    /// Reads the sort key of a record, starting at the column `at`.
    pub(super) fn read_sort_key(&self, row: &PgRow, at: usize) -> std::result::Result<SortKey, sqlx::Error> {
        let Pg(time) = row.try_get(at)?;
        let seq = if self.dataset.seq().is_some() { row.try_get::<Pg<u64>, _>(at + 1)?.0 } else { 0 };
        Ok((time, seq))
    }

    /// Reads a row of [`Table::read_list`], starting at the column `at`, and appends its record.
    pub(super) fn read(
        &self,
        row: &PgRow,
        at: usize,
        series: &SeriesKey,
        out: &mut RecordVec,
    ) -> std::result::Result<(), sqlx::Error> {
        let sort_key = self.read_sort_key(row, at)?;
        let mut reader = RowReader::table(row, self.dataset, at + self.key - self.series);
        out.push(series, sort_key, &mut reader).map_err(|error| reader.cause(error))
    }
}

/// Returns the quoted names, each with a prefix, separated by commas.
pub(super) fn names(columns: &[Column], prefix: &str) -> String {
    join(columns, |column| format!("{prefix}\"{}\"", column.name))
}

/// Returns a text for each column, separated by commas.
pub(super) fn join(columns: &[Column], text: impl Fn(&Column) -> String) -> String {
    columns.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// The buffers that receive the columns of a row.
pub(super) trait Buffers {
    /// True if the buffers are arrays for `unnest`.
    const ARRAYS: bool;

    /// Returns the buffer of the next column.
    fn next(&mut self) -> &mut Vec<u8>;
}

/// An encoder of rows. Writes each column as its length and its bytes, the form of both COPY and array elements.
pub(super) struct Encoder<B>(pub(super) B);

/// The length that represents NULL: -1.
const NULL: [u8; 4] = (-1_i32).to_be_bytes();

/// Writes a value, preceded by its length.
fn length_prefixed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    // A value of the domain has at most a few thousand bytes.
    let len = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

impl<B: Buffers> Encoder<B> {
    fn fixed_size<const N: usize>(&mut self, bytes: [u8; N]) {
        let out = self.0.next();
        // N is at most 8.
        out.extend_from_slice(&u32::try_from(N).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&bytes);
    }

    pub(super) fn int4(&mut self, value: i32) {
        self.fixed_size(value.to_be_bytes());
    }
}

impl<B: Buffers> FieldWriter for Encoder<B> {
    fn presence(&mut self, present: bool) {
        if !present {
            self.0.next().extend_from_slice(&NULL);
        }
    }
    fn decimal(&mut self, value: Decimal) {
        length_prefixed(self.0.next(), |out| wire::encode(value.units(), out));
    }
    fn counter(&mut self, value: u64) {
        // The core library keeps every counter at or below `i64::MAX`.
        self.fixed_size(value.to_be_bytes());
    }
    fn integer(&mut self, value: i64) {
        self.fixed_size(value.to_be_bytes());
    }
    fn boolean(&mut self, value: bool) {
        self.fixed_size([u8::from(value)]);
    }
    fn text(&mut self, value: &str) {
        let out = self.0.next();
        let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(value.as_bytes());
    }
    fn code(&mut self, value: u8) {
        self.fixed_size(i16::from(value).to_be_bytes());
    }
    fn time(&mut self, value: Timestamp) {
        self.fixed_size((value.as_micros() - PG_EPOCH_MICROS).to_be_bytes());
    }
    fn interval(&mut self, value: Interval) {
        self.text(value.as_str());
    }
    fn levels(&mut self, value: &[Level]) {
        length_prefixed(self.0.next(), |out| {
            if B::ARRAYS { levels_text(value, out) } else { levels_binary(value, out) }
        });
    }
}

/// Writes levels as the text of an array: `{{price,quantity},{price,quantity}}`.
fn levels_text(levels: &[Level], out: &mut Vec<u8>) {
    out.push(b'{');
    for (at, Level { price, quantity }) in levels.iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        // Writing to memory does not fail.
        let _ = write!(out, "{comma}{{{price},{quantity}}}");
    }
    out.push(b'}');
}

/// Writes levels as a binary array. The parts are the number of dimensions (0 for an empty array), the NULL flag, and
/// the type of the elements. The length and the first index of each dimension follow, then the elements. `array_send`
/// and `array_recv` in PostgreSQL's `arrayfuncs.c` define the format.
fn levels_binary(levels: &[Level], out: &mut Vec<u8>) {
    let dimensions: u32 = if levels.is_empty() { 0 } else { 2 };
    for word in [dimensions, 0, ColumnType::Numeric.oid()] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    if levels.is_empty() {
        return;
    }
    for word in [u32::try_from(levels.len()).unwrap_or(u32::MAX), 1, 2, 1] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for Level { price, quantity } in levels {
        length_prefixed(out, |out| wire::encode(price.units(), out));
        length_prefixed(out, |out| wire::encode(quantity.units(), out));
    }
}

/// Decodes the output of [`levels_binary`].
fn read_levels(bytes: &[u8]) -> std::result::Result<Vec<Level>, sqlx::error::BoxDynError> {
    let mut rest = bytes;
    let mut take = |count: usize| {
        let (head, tail) = rest.split_at_checked(count).ok_or("truncated array")?;
        rest = tail;
        Ok::<_, sqlx::error::BoxDynError>(head)
    };
    let word = |bytes: &[u8]| -> std::result::Result<u32, sqlx::error::BoxDynError> {
        Ok(u32::from_be_bytes(bytes.try_into()?))
    };
    let dimensions = word(take(4)?)?;
    take(8)?;
    if dimensions == 0 {
        return Ok(Vec::new());
    }
    if dimensions != 2 {
        return Err(format!("array with {dimensions} dimensions, expected 2").into());
    }
    let count = word(take(4)?)?;
    take(4)?;
    if word(take(4)?)? != 2 {
        return Err("second dimension of an array is not 2".into());
    }
    take(4)?;
    // The number of bytes bounds the allocation, because the count is not trusted.
    let mut levels = Vec::with_capacity(usize::try_from(count)?.min(bytes.len() / 24));
    for _ in 0..count {
        let mut units = || -> std::result::Result<i128, sqlx::error::BoxDynError> {
            let len = usize::try_from(word(take(4)?)?)?;
            Ok(wire::decode(take(len)?)?)
        };
        levels.push(Level { price: Price::from_units(units()?)?, quantity: Quantity::from_units(units()?)? });
    }
    Ok(levels)
}

/// A reader of the value columns of a row.
pub(super) struct RowReader<'r> {
    row: &'r PgRow,
    columns: &'static [record::Column],
    /// The index of the first value column. If None, the columns are found by their names, as in a view.
    first: Option<usize>,
    next: usize,
    /// The original error of the driver, which [`RowReader::cause`] returns.
    error: Option<sqlx::Error>,
}

impl<'r> RowReader<'r> {
    fn table(row: &'r PgRow, dataset: Dataset, first: usize) -> Self {
        Self { row, columns: dataset.values(), first: Some(first), next: 0, error: None }
    }

    pub(super) fn view(row: &'r PgRow, dataset: Dataset) -> Self {
        Self { row, columns: dataset.values(), first: None, next: 0, error: None }
    }

    /// Returns the error of the driver, or a decode error for values that make no valid record.
    pub(super) fn cause(self, error: Error) -> sqlx::Error {
        self.error.unwrap_or_else(|| sqlx::Error::Decode(Box::new(error)))
    }

    fn next_raw(&self) -> std::result::Result<PgValueRef<'r>, sqlx::Error> {
        match self.first {
            Some(first) => self.row.try_get_raw(first + self.next),
            None => self.row.try_get_raw(self.columns[self.next].name),
        }
    }

    fn fail<T>(&mut self, error: sqlx::Error) -> Result<T> {
        self.error = Some(error);
        Err(Error::new(ErrorKind::CorruptData, "store.timescale.value", "read").with_backend(BACKEND))
    }

    fn value<T>(
        &mut self,
        ty: ColumnType,
        decode: impl FnOnce(PgValueRef<'r>) -> std::result::Result<T, sqlx::error::BoxDynError>,
    ) -> Result<T> {
        let raw = match self.next_raw() {
            Ok(raw) => raw,
            Err(error) => return self.fail(error),
        };
        let has_type = raw.type_info().oid().is_some_and(|oid| oid.0 == ty.oid());
        let value = if raw.is_null() {
            Err(sqlx::error::UnexpectedNullError.into())
        } else if has_type {
            decode(raw)
        } else {
            Err(format!("value has type {}, expected {}", raw.type_info(), ty.name()).into())
        };
        let at = self.next;
        self.next += 1;
        match value {
            Ok(value) => Ok(value),
            Err(source) => {
                let index = format!("{:?}", self.columns[at].name);
                self.fail(sqlx::Error::ColumnDecode { index, source })
            }
        }
    }

    fn domain<T>(&mut self, ty: ColumnType) -> Result<T>
    where
        Pg<T>: Decode<'r, Postgres>,
    {
        self.value(ty, |raw| Pg::decode(raw).map(|value| value.0))
    }
}

impl FieldReader for RowReader<'_> {
    fn presence(&mut self) -> Result<bool> {
        match self.next_raw() {
            Ok(raw) if raw.is_null() => {
                self.next += 1;
                Ok(false)
            }
            Ok(_) => Ok(true),
            Err(error) => self.fail(error),
        }
    }
    fn decimal(&mut self) -> Result<Decimal> {
        self.domain(ColumnType::Numeric)
    }
    fn counter(&mut self) -> Result<u64> {
        self.domain(ColumnType::BigInt)
    }
    fn integer(&mut self) -> Result<i64> {
        self.value(ColumnType::BigInt, <i64 as Decode<Postgres>>::decode)
    }
    fn boolean(&mut self) -> Result<bool> {
        self.value(ColumnType::Bool, <bool as Decode<Postgres>>::decode)
    }
    fn text(&mut self) -> Result<Cow<'_, str>> {
        self.value(ColumnType::Text, <&str as Decode<Postgres>>::decode).map(Cow::Borrowed)
    }
    fn code(&mut self) -> Result<u8> {
        if self.first.is_some() {
            return self.value(ColumnType::SmallInt, |raw| {
                Ok(u8::try_from(<i16 as Decode<Postgres>>::decode(raw)?)?)
            });
        }
        // Views contain the name instead of the code.
        let record::ColumnType::Enumeration(names) = self.columns[self.next].ty else { return Ok(0) };
        self.value(ColumnType::Text, |raw| {
            let text = <&str as Decode<Postgres>>::decode(raw)?;
            let at = names.iter().position(|name| *name == text).ok_or("unknown name of an enumeration")?;
            Ok(u8::try_from(at + 1)?)
        })
    }
    fn time(&mut self) -> Result<Timestamp> {
        self.domain(ColumnType::Timestamptz)
    }
    fn interval(&mut self) -> Result<Interval> {
        self.domain(ColumnType::Text)
    }
    fn levels(&mut self) -> Result<Vec<Level>> {
        self.value(ColumnType::Levels, |raw| read_levels(raw.as_bytes()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_levels_decode_to_the_same_levels() {
        let level = |price: &str, quantity: &str| Level {
            price: price.parse().unwrap(),
            quantity: quantity.parse().unwrap(),
        };
        let most = "99999999999999999999.999999999999999999";
        for levels in
            [vec![], vec![level("1.5", "0")], vec![level(most, "0.000000000000000001"), level("2", most)]]
        {
            let mut bytes = Vec::new();
            levels_binary(&levels, &mut bytes);
            assert_eq!(read_levels(&bytes).unwrap(), levels);
            for end in 0..bytes.len() {
                assert!(read_levels(&bytes[..end]).is_err() || end >= 12 && levels.is_empty());
            }
        }
        let mut text = Vec::new();
        levels_text(&[level("1.5", "0"), level("2", "3")], &mut text);
        assert_eq!(text, b"{{1.5,0},{2,3}}");
    }
}
