//! Records to record batches.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Decimal128Builder, Float64Builder, Int64Builder, StringBuilder,
    TimestampMicrosecondBuilder, UInt64Builder,
};
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, DictionaryArray, Int32Array, ListArray, RecordBatch, StringArray, StructArray};
use arrow_buffer::{NullBufferBuilder, OffsetBuffer};
use arrow_schema::{DataType, SchemaRef};
use qi_core::record::{Column, ColumnType, Dataset, FieldWriter, Level, OwnerRef, Records, SeriesType};
use qi_core::{Decimal, Error, ErrorKind, Interval, Result, Timestamp};

use crate::schema::{self, Decimals, PRECISION, SCALE};

/// Arrow counts rows, bytes of text and levels with an `i32`. One record has less than 2²⁰ of them, so a check after
/// each record is sufficient.
const MAX_VARIABLE_ITEMS: usize = 1 << 30;
const MAX_ROWS: usize = 1 << 30;

/// Converts records of one dataset to a record batch with the exact schema of the dataset.
///
/// # Errors
/// `OutOfRange` for more than 2³⁰ records, or 2³⁰ bytes of text and levels.
pub fn encode(records: &dyn Records) -> Result<RecordBatch> {
    let mut encoder = Encoder::new(records.dataset(), Decimals::Exact);
    encoder.append(records, 0..records.len())?;
    encoder.finish()
}

/// A builder of record batches of one dataset. A builder can be used for many batches.
#[derive(Debug)]
pub struct Encoder {
    dataset: Dataset,
    decimals: Decimals,
    schema: SchemaRef,
    series: SeriesColumns,
    interval: Option<Dictionary>,
    time: TimestampMicrosecondBuilder,
    seq: Option<UInt64Builder>,
    values: Vec<ValueColumn>,
    /// The number of bytes of text and of levels in all columns.
    variable_items: usize,
}

#[derive(Debug)]
enum SeriesColumns {
    Instrument { exchange: Dictionary, symbol: Dictionary },
    Name(Dictionary),
}

/// The keys of a dictionary column and its values.
#[derive(Debug, Default)]
struct Dictionary {
    keys: Vec<i32>,
    nulls: Option<NullBufferBuilder>,
    values: Vec<String>,
    positions: HashMap<String, i32>,
}

impl Dictionary {
    /// The names of an enumeration, so that a key is the position of a name.
    fn fixed<'a>(names: impl IntoIterator<Item = &'a str>, optional: bool) -> Self {
        let values = names.into_iter().map(str::to_owned).collect();
        Self { values, nulls: optional.then(|| NullBufferBuilder::new(0)), ..Self::default() }
    }

    fn push(&mut self, key: i32) {
        self.keys.push(key);
        if let Some(nulls) = &mut self.nulls {
            nulls.append_non_null();
        }
    }

    fn push_null(&mut self) {
        self.keys.push(0);
        if let Some(nulls) = &mut self.nulls {
            nulls.append_null();
        }
    }

    fn repeat(&mut self, value: &str, count: usize) {
        let key = self.positions.get(value).copied().unwrap_or_else(|| {
            // A batch has fewer than 2³¹ rows, so it has fewer than 2³¹ values.
            let key = i32::try_from(self.values.len()).unwrap_or(i32::MAX);
            self.values.push(value.to_owned());
            self.positions.insert(value.to_owned(), key);
            key
        });
        self.keys.resize(self.keys.len() + count, key);
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        let nulls = self.nulls.as_mut().and_then(NullBufferBuilder::finish);
        let keys = Int32Array::new(std::mem::take(&mut self.keys).into(), nulls);
        let values = StringArray::from_iter_values(&self.values);
        if !self.positions.is_empty() {
            self.positions.clear();
            self.values.clear();
        }
        let dictionary = DictionaryArray::<Int32Type>::try_new(keys, Arc::new(values));
        Ok(Arc::new(dictionary.map_err(internal)?))
    }
}

#[derive(Debug)]
enum ValueColumn {
    Decimal(Decimal128Builder),
    Float(Float64Builder),
    Counter(UInt64Builder),
    Integer(Int64Builder),
    Boolean(BooleanBuilder),
    Text(StringBuilder),
    Keys(Dictionary),
    Timestamp(TimestampMicrosecondBuilder),
    Levels(LevelsColumn),
}

#[derive(Debug)]
struct LevelsColumn {
    lengths: Vec<usize>,
    prices: Box<ValueColumn>,
    quantities: Box<ValueColumn>,
    decimals: Decimals,
}

impl ValueColumn {
    fn decimal(decimals: Decimals) -> Self {
        match decimals {
            Decimals::Exact => {
                let data_type = DataType::Decimal128(PRECISION, SCALE);
                Self::Decimal(Decimal128Builder::new().with_data_type(data_type))
            }
            Decimals::Float64 => Self::Float(Float64Builder::new()),
        }
    }

    fn new(column: &Column, decimals: Decimals) -> Self {
        match column.ty {
            ColumnType::Decimal => Self::decimal(decimals),
            ColumnType::Counter => Self::Counter(UInt64Builder::new()),
            ColumnType::Integer => Self::Integer(Int64Builder::new()),
            ColumnType::Boolean => Self::Boolean(BooleanBuilder::new()),
            ColumnType::Enumeration(names) => {
                Self::Keys(Dictionary::fixed(names.iter().copied(), column.optional))
            }
            ColumnType::Interval => {
                Self::Keys(Dictionary::fixed(Interval::ALL.iter().map(|i| i.as_str()), column.optional))
            }
            ColumnType::Timestamp => Self::Timestamp(utc()),
            ColumnType::Levels { .. } => Self::Levels(LevelsColumn {
                lengths: Vec::new(),
                prices: Box::new(Self::decimal(decimals)),
                quantities: Box::new(Self::decimal(decimals)),
                decimals,
            }),
            _ => Self::Text(StringBuilder::new()),
        }
    }

    fn push_decimal(&mut self, value: Decimal) {
        match self {
            Self::Decimal(builder) => builder.append_value(value.units()),
            Self::Float(builder) => builder.append_value(value.to_f64_lossy()),
            _ => {}
        }
    }

    fn push_null(&mut self) {
        match self {
            Self::Decimal(builder) => builder.append_null(),
            Self::Float(builder) => builder.append_null(),
            Self::Counter(builder) => builder.append_null(),
            Self::Integer(builder) => builder.append_null(),
            Self::Boolean(builder) => builder.append_null(),
            Self::Text(builder) => builder.append_null(),
            Self::Keys(keys) => keys.push_null(),
            Self::Timestamp(builder) => builder.append_null(),
            Self::Levels(column) => column.lengths.push(0),
        }
    }

    fn finish(&mut self) -> Result<ArrayRef> {
        Ok(match self {
            Self::Decimal(builder) => Arc::new(builder.finish()),
            Self::Float(builder) => Arc::new(builder.finish()),
            Self::Counter(builder) => Arc::new(builder.finish()),
            Self::Integer(builder) => Arc::new(builder.finish()),
            Self::Boolean(builder) => Arc::new(builder.finish()),
            Self::Text(builder) => Arc::new(builder.finish()),
            Self::Keys(keys) => keys.finish()?,
            Self::Timestamp(builder) => Arc::new(builder.finish()),
            Self::Levels(LevelsColumn { lengths, prices, quantities, decimals }) => {
                let columns = vec![prices.finish()?, quantities.finish()?];
                let levels = StructArray::try_new(schema::level_fields(*decimals), columns, None);
                let offsets = OffsetBuffer::from_lengths(std::mem::take(lengths));
                let field = schema::level_field(*decimals);
                let list = ListArray::try_new(field, offsets, Arc::new(levels.map_err(internal)?), None);
                Arc::new(list.map_err(internal)?)
            }
        })
    }
}

fn utc() -> TimestampMicrosecondBuilder {
    TimestampMicrosecondBuilder::new().with_timezone("UTC")
}

/// The arrays have the types of the schema, so Arrow accepts them.
fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "arrow.encode", "encode").with_source(error)
}

impl Encoder {
    /// Creates a builder without rows.
    pub fn new(dataset: Dataset, decimals: Decimals) -> Self {
        Self {
            dataset,
            decimals,
            schema: schema::schema(dataset, decimals),
            series: match dataset.series() {
                SeriesType::Instrument => SeriesColumns::Instrument {
                    exchange: Dictionary::default(),
                    symbol: Dictionary::default(),
                },
                SeriesType::Name { .. } => SeriesColumns::Name(Dictionary::default()),
            },
            interval: dataset.interval().map(|_| Dictionary::default()),
            time: utc(),
            seq: dataset.seq().map(|_| UInt64Builder::new()),
            values: dataset.values().iter().map(|column| ValueColumn::new(column, decimals)).collect(),
            variable_items: 0,
        }
    }

    /// Returns the schema of the batches.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Returns the number of rows since the last [`Encoder::finish`].
    pub fn len(&self) -> usize {
        self.time.values_slice().len()
    }

    /// Returns whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the records in an index range.
    ///
    /// # Errors
    /// `InvalidInput` for records of another dataset. `OutOfRange` if the batch has more than 2³⁰ rows, or 2³⁰ bytes of
    /// text and levels; the builder then has no rows.
    ///
    /// # Panics
    /// If the range ends after the last record.
    pub fn append(&mut self, records: &dyn Records, range: std::ops::Range<usize>) -> Result<()> {
        if records.dataset() != self.dataset {
            let rule = format_args!("must be records of the dataset {}", self.dataset);
            return Err(Error::invalid("arrow.dataset", "records", records.dataset(), rule));
        }
        let mut at = range.start;
        while at < range.end {
            let count = records.run(at..range.end);
            let series = records.series(at);
            if let OwnerRef::Name(name) = &series.owner {
                self.variable_items += name.len();
            }
            match (&mut self.series, &series.owner) {
                (SeriesColumns::Instrument { exchange, symbol }, OwnerRef::Instrument(instrument)) => {
                    exchange.repeat(instrument.exchange().as_str(), count);
                    symbol.repeat(instrument.symbol().as_str(), count);
                }
                (SeriesColumns::Name(keys), OwnerRef::Name(name)) => keys.repeat(name, count),
                // The dataset determines the type of its series.
                _ => return Err(Error::invalid("arrow.series", "series", &series.owner, "has another type")),
            }
            if let (Some(keys), Some(interval)) = (&mut self.interval, series.interval) {
                keys.repeat(interval.as_str(), count);
            }
            for at in at..at + count {
                let (time, seq) = records.sort_key(at);
                self.time.append_value(time.as_micros());
                if let Some(builder) = &mut self.seq {
                    builder.append_value(seq);
                }
                let mut row = RowWriter { columns: self.values.iter_mut(), present: None, variable_items: 0 };
                records.write(at, &mut row);
                self.variable_items += row.variable_items;
                if self.variable_items > MAX_VARIABLE_ITEMS || self.len() > MAX_ROWS {
                    let error = self.too_large();
                    *self = Self::new(self.dataset, self.decimals);
                    return Err(error);
                }
            }
            at += count;
        }
        Ok(())
    }

    fn too_large(&self) -> Error {
        Error::new(ErrorKind::OutOfRange, "arrow.batch.size", "encode")
            .with_message("the batch must have at most 2^30 rows and 2^30 bytes of text and levels")
            .with_context("rows", self.len())
            .with_context("variable_items", self.variable_items)
    }

    /// Returns the rows since the last call as a record batch, and begins a new batch.
    ///
    /// # Errors
    /// `Internal` if Arrow rejects the columns, which would be a bug.
    pub fn finish(&mut self) -> Result<RecordBatch> {
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        match &mut self.series {
            SeriesColumns::Instrument { exchange, symbol } => {
                columns.push(exchange.finish()?);
                columns.push(symbol.finish()?);
            }
            SeriesColumns::Name(keys) => columns.push(keys.finish()?),
        }
        if let Some(keys) = &mut self.interval {
            columns.push(keys.finish()?);
        }
        columns.push(Arc::new(self.time.finish()));
        if let Some(builder) = &mut self.seq {
            columns.push(Arc::new(builder.finish()));
        }
        for value in &mut self.values {
            columns.push(value.finish()?);
        }
        self.variable_items = 0;
        RecordBatch::try_new(self.schema.clone(), columns).map_err(internal)
    }
}

/// Receives the values of one record, column by column.
struct RowWriter<'a> {
    columns: std::slice::IterMut<'a, ValueColumn>,
    /// The optional column whose presence was written.
    present: Option<&'a mut ValueColumn>,
    variable_items: usize,
}

impl<'a> RowWriter<'a> {
    fn column(&mut self) -> Option<&'a mut ValueColumn> {
        self.present.take().or_else(|| self.columns.next())
    }
}

/// Writes a value into a column of its type. The dataset determines the types, so no other type occurs.
macro_rules! push {
    ($self:ident, $variant:ident, |$column:ident| $push:expr) => {
        if let Some(ValueColumn::$variant($column)) = $self.column() {
            $push;
        }
    };
}

impl FieldWriter for RowWriter<'_> {
    fn presence(&mut self, present: bool) {
        let column = self.columns.next();
        if present {
            self.present = column;
        } else if let Some(column) = column {
            column.push_null();
        }
    }
    fn decimal(&mut self, value: Decimal) {
        if let Some(column) = self.column() {
            column.push_decimal(value);
        }
    }
    fn counter(&mut self, value: u64) {
        push!(self, Counter, |column| column.append_value(value));
    }
    fn integer(&mut self, value: i64) {
        push!(self, Integer, |column| column.append_value(value));
    }
    fn boolean(&mut self, value: bool) {
        push!(self, Boolean, |column| column.append_value(value));
    }
    fn text(&mut self, value: &str) {
        self.variable_items += value.len();
        push!(self, Text, |column| column.append_value(value));
    }
    fn code(&mut self, value: u8) {
        // A code counts from 1, a key from 0.
        push!(self, Keys, |keys| keys.push(i32::from(value) - 1));
    }
    fn time(&mut self, value: Timestamp) {
        push!(self, Timestamp, |column| column.append_value(value.as_micros()));
    }
    fn interval(&mut self, value: Interval) {
        let position = Interval::ALL.iter().position(|interval| *interval == value).unwrap_or_default();
        push!(self, Keys, |keys| keys.push(i32::try_from(position).unwrap_or_default()));
    }
    fn levels(&mut self, value: &[Level]) {
        self.variable_items += value.len();
        push!(self, Levels, |column| {
            column.lengths.push(value.len());
            for Level { price, quantity } in value {
                column.prices.push_decimal(price.decimal());
                column.quantities.push_decimal(quantity.decimal());
            }
        });
    }
}
