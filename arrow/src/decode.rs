//! Conversion of record batches to records.

use std::borrow::Cow;
use std::fmt::Display;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType, TimestampNanosecondType, UInt64Type,
};
use arrow_array::{
    Array, ArrayRef, BooleanArray, Decimal128Array, DictionaryArray, Int64Array, ListArray, RecordBatch,
    StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, Metadata, TimeUnit};
use qi_core::record::{ColumnType, Dataset, FieldReader, Level, Owner, RecordVec, SeriesKey, SeriesType};
use qi_core::{Decimal, Error, Exchange, Instrument, Interval, Price, Quantity, Result, Symbol, Timestamp};

use crate::error::{corrupt, mismatch};
use crate::schema::{self, Decimals};

/// Converts a record batch to records of a dataset, and validates every record.
///
/// Columns are found by their names, in any order. A column that the dataset declares as optional may be missing. These
/// types are accepted besides the types of the schema, because other programs write them and their conversion is exact:
///
/// - texts, names, intervals and enumerations: `Utf8`, `LargeUtf8`, `Utf8View` and dictionaries of them;
/// - times: timestamps in s, ms, µs or ns with the time zone UTC, if the value is a multiple of 1 µs;
/// - decimals: decimals of any precision with a scale from 0 to 18;
/// - integers: integers of any width;
/// - levels: `List`, `LargeList` and `ListView` of the same struct.
///
/// # Errors
/// `SchemaMismatch` for a missing column, a column that the dataset does not have, two columns of one name, a column of
/// another type, or the metadata of another dataset or version. `CorruptData` for a null in a required column, or for a
/// value outside the type of its column. `InvalidInput` for a value that the dataset rejects. Most errors of values
/// name the column or the field, and the row. An error of a column's conversion usually has no row.
pub fn decode(dataset: Dataset, batch: &RecordBatch) -> Result<RecordVec> {
    let mut columns = Columns::of(dataset, batch)?;
    let mut records = dataset.new_vec();
    records.reserve(batch.num_rows());
    for row in 0..batch.num_rows() {
        let at_row = |error: Error| match error.context_value("row") {
            Some(_) => error,
            None => error.with_context("row", row),
        };
        let time = columns.time.value(row);
        let time = Timestamp::from_micros(time).map_err(|e| at_row(bad_value(dataset.time(), row, e)))?;
        let seq = columns.seq.as_ref().map_or(0, |seq| seq.value(row));
        columns.series.move_to(row).map_err(at_row)?;
        columns.row.at = row;
        columns.row.column = 0;
        let series = columns.series.last.as_ref().map(|(_, series)| series);
        let Some(series) = series else { break };
        records.push(series, (time, seq), &mut columns.row).map_err(at_row)?;
    }
    Ok(records)
}

fn bad_value(column: &str, row: usize, reason: impl Display) -> Error {
    corrupt("arrow.value", format_args!("column {column}: {reason}")).with_context("row", row)
}

/// Compares the dataset and the version in the metadata of a schema, if they are present, with a dataset.
pub(crate) fn check_metadata(dataset: Dataset, metadata: &Metadata) -> Result<()> {
    let is_same = |key: &str, wanted: &str| metadata.get(key).is_none_or(|found| found == wanted);
    if is_same(schema::DATASET_KEY, dataset.name())
        && is_same(schema::VERSION_KEY, &dataset.version().to_string())
    {
        return Ok(());
    }
    let found = |key| metadata.get(key).map_or("?", String::as_str);
    Err(mismatch(
        "arrow.dataset",
        format_args!(
            "the data is of the dataset {} version {}, expected {dataset} version {}",
            found(schema::DATASET_KEY),
            found(schema::VERSION_KEY),
            dataset.version()
        ),
    ))
}

/// The columns of a batch in the types of the schema.
struct Columns {
    series: SeriesReader,
    time: TimestampMicrosecondArray,
    seq: Option<UInt64Array>,
    row: RowReader,
}

type StringDictionary = DictionaryArray<Int32Type>;

impl Columns {
    fn of(dataset: Dataset, batch: &RecordBatch) -> Result<Self> {
        let found = batch.schema();
        check_metadata(dataset, found.metadata())?;
        let wanted = schema::schema(dataset, Decimals::Exact);
        for (at, field) in found.fields().iter().enumerate() {
            if found.fields()[..at].iter().any(|other| other.name() == field.name()) {
                return Err(mismatch(
                    "arrow.column.twice",
                    format_args!("the data has two columns with the name {}", field.name()),
                ));
            }
            if wanted.index_of(field.name()).is_err() {
                return Err(mismatch(
                    "arrow.column.unknown",
                    format_args!("dataset {dataset} has no column {}", field.name()),
                ));
            }
        }
        let mut columns = Vec::with_capacity(wanted.fields().len());
        for field in wanted.fields() {
            let column = match found.column_with_name(field.name()) {
                Some((at, _)) => Some(convert(field.name(), batch.column(at), field.data_type())?),
                None if field.is_nullable() => None,
                None => {
                    return Err(mismatch(
                        "arrow.column.missing",
                        format_args!("dataset {dataset} needs the column {}", field.name()),
                    ));
                }
            };
            if let Some(column) =
                column.as_ref().filter(|column| !field.is_nullable() && column.null_count() > 0)
            {
                let row = (0..column.len()).find(|row| column.is_null(*row)).unwrap_or_default();
                return Err(bad_value(field.name(), row, "null in a column that is not optional"));
            }
            columns.push(column);
        }
        let mut columns = columns.into_iter();
        let mut next = || columns.next().flatten();
        let mut names = || next().map(|column| column.as_dictionary::<Int32Type>().clone());
        let missing = || mismatch("arrow.column.missing", "a key column is missing");
        let owner = match dataset.series() {
            SeriesType::Instrument => OwnerColumns::Instrument {
                exchange: names().ok_or_else(missing)?,
                symbol: names().ok_or_else(missing)?,
            },
            SeriesType::Name { .. } => OwnerColumns::Name(names().ok_or_else(missing)?),
        };
        let interval = match dataset.interval() {
            Some(_) => Some(names().ok_or_else(missing)?),
            None => None,
        };
        let time = next().ok_or_else(missing)?.as_primitive::<TimestampMicrosecondType>().clone();
        let seq = dataset.seq().and_then(|_| next()).map(|seq| seq.as_primitive::<UInt64Type>().clone());
        let values = dataset.values().iter().zip(columns.by_ref());
        let values = values.map(|(column, array)| (column.name, ValueReader::of(column.ty, array))).collect();
        Ok(Self {
            series: SeriesReader { owner, interval, last: None },
            time,
            seq,
            row: RowReader { columns: values, column: 0, at: 0 },
        })
    }
}

/// Converts a column to the type of the schema, if the conversion is exact.
fn convert(name: &str, column: &ArrayRef, wanted: &DataType) -> Result<ArrayRef> {
    let found = column.data_type();
    if found == wanted {
        return Ok(column.clone());
    }
    if !is_convertible(found, wanted) {
        let hint = match (found, wanted) {
            (DataType::Float16 | DataType::Float32 | DataType::Float64, DataType::Decimal128(..)) => {
                "; doubles are not exact"
            }
            (DataType::Timestamp(_, None), _) => "; times need the time zone UTC",
            _ => "",
        };
        let wanted = match wanted {
            DataType::Dictionary(..) => "Utf8 or a dictionary of Utf8".to_owned(),
            wanted => wanted.to_string(),
        };
        return Err(mismatch(
            "arrow.column.type",
            format_args!("column {name} has the type {found}, expected {wanted}{hint}"),
        ));
    }
    if let (DataType::Timestamp(TimeUnit::Nanosecond, _), DataType::Timestamp(..)) = (found, wanted) {
        let times = column.as_primitive::<TimestampNanosecondType>();
        let finer = (0..times.len()).find(|row| times.is_valid(*row) && times.value(*row) % 1_000 != 0);
        if let Some(row) = finer {
            return Err(bad_value(name, row, "the time is not a multiple of 1 µs"));
        }
    }
    // With `safe: false`, a value that the type cannot represent is an error instead of null.
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, wanted, &options).map_err(|e| {
        corrupt("arrow.value", format_args!("column {name}: a value is outside the domain of {wanted}"))
            .with_source(e)
    })
}

fn is_text(ty: &DataType) -> bool {
    match ty {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

fn is_convertible(found: &DataType, wanted: &DataType) -> bool {
    match (found, wanted) {
        (found, DataType::Utf8 | DataType::Dictionary(..)) => is_text(found),
        (DataType::Timestamp(_, Some(zone)), DataType::Timestamp(..)) => {
            matches!(&**zone, "UTC" | "Etc/UTC" | "+00:00" | "Z")
        }
        (
            DataType::Decimal32(_, scale)
            | DataType::Decimal64(_, scale)
            | DataType::Decimal128(_, scale)
            | DataType::Decimal256(_, scale),
            DataType::Decimal128(..),
        ) => (0..=schema::SCALE).contains(scale),
        (found, DataType::UInt64 | DataType::Int64) => found.is_integer(),
        (
            DataType::List(found) | DataType::LargeList(found) | DataType::ListView(found),
            DataType::List(wanted),
        ) => match (found.data_type(), wanted.data_type()) {
            (DataType::Struct(found), DataType::Struct(wanted)) => {
                found.len() == wanted.len()
                    && found.iter().zip(wanted).all(|(found, wanted)| {
                        found.name() == wanted.name()
                            && (found.data_type() == wanted.data_type()
                                || is_convertible(found.data_type(), wanted.data_type()))
                    })
            }
            _ => false,
        },
        _ => false,
    }
}

enum OwnerColumns {
    Instrument { exchange: StringDictionary, symbol: StringDictionary },
    Name(StringDictionary),
}

/// The series of the rows. Consecutive rows with equal dictionary keys are parsed once.
struct SeriesReader {
    owner: OwnerColumns,
    interval: Option<StringDictionary>,
    last: Option<([i32; 3], SeriesKey)>,
}

impl SeriesReader {
    fn move_to(&mut self, row: usize) -> Result<()> {
        let key = |names: &StringDictionary| names.keys().value(row);
        let interval = self.interval.as_ref().map_or(0, key);
        let keys = match &self.owner {
            OwnerColumns::Instrument { exchange, symbol } => [key(exchange), key(symbol), interval],
            OwnerColumns::Name(names) => [key(names), 0, interval],
        };
        if self.last.as_ref().is_some_and(|(last, _)| *last == keys) {
            return Ok(());
        }
        let owner = match &self.owner {
            OwnerColumns::Instrument { exchange, symbol } => {
                let exchange = Exchange::new(text_of(exchange, row)?)?;
                Owner::Instrument(Instrument::new(exchange, Symbol::new(text_of(symbol, row)?)?))
            }
            OwnerColumns::Name(names) => Owner::Name(text_of(names, row)?.into()),
        };
        let interval = match &self.interval {
            Some(names) => Some(text_of(names, row)?.parse::<Interval>()?),
            None => None,
        };
        self.last = Some((keys, SeriesKey { owner, interval }));
        Ok(())
    }
}

/// Returns the text of a row. A dictionary may have a null among its values.
fn text_of(names: &StringDictionary, row: usize) -> Result<&str> {
    let values = names.values().as_string::<i32>();
    match names.key(row) {
        Some(key) if values.is_valid(key) => Ok(values.value(key)),
        _ => Err(bad_value("series", row, "null in a column that is not optional")),
    }
}

enum ValueReader {
    /// An optional column that the batch does not have.
    Missing,
    Decimal(Decimal128Array),
    Counter(UInt64Array),
    Integer(Int64Array),
    Boolean(BooleanArray),
    Text(StringArray),
    /// The code of each value of the dictionary, counted from 1, or 0 for a text that is not a variant.
    Codes(StringDictionary, Vec<u8>),
    Intervals(StringDictionary, Vec<Option<Interval>>),
    Timestamp(TimestampMicrosecondArray),
    Levels(ListArray),
}

impl ValueReader {
    fn of(ty: ColumnType, array: Option<ArrayRef>) -> Self {
        let Some(array) = array else { return Self::Missing };
        let texts = |names: &StringDictionary| -> Vec<Option<String>> {
            names.values().as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
        };
        match ty {
            ColumnType::Decimal => Self::Decimal(array.as_primitive::<Decimal128Type>().clone()),
            ColumnType::Counter => Self::Counter(array.as_primitive::<UInt64Type>().clone()),
            ColumnType::Integer => Self::Integer(array.as_primitive::<Int64Type>().clone()),
            ColumnType::Boolean => Self::Boolean(array.as_boolean().clone()),
            ColumnType::Enumeration(labels) => {
                let names = array.as_dictionary::<Int32Type>().clone();
                let code = |text: Option<String>| {
                    let position = text.and_then(|text| labels.iter().position(|label| *label == text));
                    position.and_then(|at| u8::try_from(at + 1).ok()).unwrap_or(0)
                };
                let codes = texts(&names).into_iter().map(code).collect();
                Self::Codes(names, codes)
            }
            ColumnType::Interval => {
                let names = array.as_dictionary::<Int32Type>().clone();
                let intervals = texts(&names).into_iter().map(|text| text?.parse().ok()).collect();
                Self::Intervals(names, intervals)
            }
            ColumnType::Timestamp => {
                Self::Timestamp(array.as_primitive::<TimestampMicrosecondType>().clone())
            }
            ColumnType::Levels { .. } => Self::Levels(array.as_list::<i32>().clone()),
            _ => Self::Text(array.as_string::<i32>().clone()),
        }
    }

    fn is_present(&self, row: usize) -> bool {
        match self {
            Self::Missing => false,
            Self::Decimal(array) => array.is_valid(row),
            Self::Counter(array) => array.is_valid(row),
            Self::Integer(array) => array.is_valid(row),
            Self::Boolean(array) => array.is_valid(row),
            Self::Text(array) => array.is_valid(row),
            Self::Codes(array, _) | Self::Intervals(array, _) => array.is_valid(row),
            Self::Timestamp(array) => array.is_valid(row),
            Self::Levels(array) => array.is_valid(row),
        }
    }
}

/// A reader of the values of one row, column by column.
struct RowReader {
    columns: Vec<(&'static str, ValueReader)>,
    column: usize,
    at: usize,
}

impl RowReader {
    fn next(&mut self) -> Result<(&'static str, &ValueReader)> {
        let (name, reader) = self
            .columns
            .get(self.column)
            .ok_or_else(|| corrupt("arrow.column.missing", "a record has more values than columns"))?;
        self.column += 1;
        Ok((name, reader))
    }
}

/// Returns the value of the next column, which the dataset declares with this type.
macro_rules! value {
    ($self:ident, $variant:ident, |$array:ident, $at:ident, $name:ident| $value:expr) => {{
        let $at = $self.at;
        match $self.next()? {
            ($name, ValueReader::$variant($array)) => $value,
            (name, _) => Err(bad_value(name, $at, "the record reads another type")),
        }
    }};
}

impl FieldReader for RowReader {
    fn presence(&mut self) -> Result<bool> {
        let at = self.at;
        let present = self.next()?.1.is_present(at);
        if present {
            self.column -= 1;
        }
        Ok(present)
    }
    fn decimal(&mut self) -> Result<Decimal> {
        value!(self, Decimal, |array, at, name| Decimal::from_units(array.value(at))
            .map_err(|e| bad_value(name, at, e)))
    }
    fn counter(&mut self) -> Result<u64> {
        value!(self, Counter, |array, at, name| match array.value(at) {
            value if value <= qi_core::domain::MAX_COUNTER => Ok(value),
            value => Err(bad_value(name, at, format_args!("{value} is above 2^63 - 1"))),
        })
    }
    fn integer(&mut self) -> Result<i64> {
        value!(self, Integer, |array, at, _name| Ok(array.value(at)))
    }
    fn boolean(&mut self) -> Result<bool> {
        value!(self, Boolean, |array, at, _name| Ok(array.value(at)))
    }
    fn text(&mut self) -> Result<Cow<'_, str>> {
        value!(self, Text, |array, at, _name| Ok(Cow::Borrowed(array.value(at))))
    }
    fn code(&mut self) -> Result<u8> {
        let at = self.at;
        match self.next()? {
            (name, ValueReader::Codes(names, codes)) => match names.key(at).and_then(|key| codes.get(key)) {
                Some(code) if *code > 0 => Ok(*code),
                _ => Err(bad_value(name, at, "the text is not a variant of the enumeration")),
            },
            (name, _) => Err(bad_value(name, at, "the record reads another type")),
        }
    }
    fn time(&mut self) -> Result<Timestamp> {
        value!(self, Timestamp, |array, at, name| Timestamp::from_micros(array.value(at))
            .map_err(|e| bad_value(name, at, e)))
    }
    fn interval(&mut self) -> Result<Interval> {
        let at = self.at;
        match self.next()? {
            (name, ValueReader::Intervals(names, intervals)) => {
                let found = names.key(at).and_then(|key| intervals.get(key).copied().flatten());
                found.ok_or_else(|| bad_value(name, at, "the text is not an interval"))
            }
            (name, _) => Err(bad_value(name, at, "the record reads another type")),
        }
    }
    fn levels(&mut self) -> Result<Vec<Level>> {
        value!(self, Levels, |array, at, name| {
            let levels = array.value(at);
            let columns = levels.as_struct();
            let (prices, quantities) = (columns.column(0), columns.column(1));
            if columns.null_count() + prices.null_count() + quantities.null_count() > 0 {
                return Err(bad_value(name, at, "null in a level"));
            }
            let prices = prices.as_primitive::<Decimal128Type>().values().iter();
            let quantities = quantities.as_primitive::<Decimal128Type>().values().iter();
            let level = |(price, quantity): (&i128, &i128)| {
                Ok(Level { price: Price::from_units(*price)?, quantity: Quantity::from_units(*quantity)? })
            };
            prices.zip(quantities).map(level).collect::<Result<_>>().map_err(|e| bad_value(name, at, e))
        })
    }
}
