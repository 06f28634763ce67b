//! Records of datasets that are declared at run time.

use std::any::Any;
use std::borrow::Cow;
use std::ops::Range;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::records::ErasedVec;
use super::records::{RecordVec, Records};
use super::{Column, ColumnType, Dataset, SeriesType};
use crate::record::{FieldReader, FieldWriter, Level, Owner, SeriesKey, SeriesRef, SortKey};
use crate::{Decimal, Error, ErrorKind, Interval, Result, Timestamp};

/// A record of a dataset that was declared at run time; see [`Dataset::declare`].
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    dataset: Dataset,
    series: SeriesKey,
    sort_key: SortKey,
    values: Vec<Value>,
}

/// The value of a column.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are those of `ColumnType`")]
pub enum Value {
    /// The absent value of an optional column.
    Absent,
    Decimal(Decimal),
    Counter(u64),
    Integer(i64),
    Boolean(bool),
    Text(String),
    /// The position of the name, counted from 1.
    Enumeration(u8),
    Timestamp(Timestamp),
    Interval(Interval),
    Levels(Vec<Level>),
}

impl Value {
    fn fits(&self, column: &Column) -> bool {
        match (self, column.ty) {
            (Self::Absent, _) => column.optional,
            (Self::Counter(value), ColumnType::Counter) => *value <= crate::domain::MAX_COUNTER,
            (Self::Text(text), ColumnType::Text { max }) => text.len() <= max && !text.contains('\0'),
            (Self::Enumeration(code), ColumnType::Enumeration(names)) => {
                (1..=names.len()).contains(&(*code).into())
            }
            (Self::Levels(levels), ColumnType::Levels { max }) => levels.len() <= max,
            (Self::Decimal(_), ColumnType::Decimal)
            | (Self::Integer(_), ColumnType::Integer)
            | (Self::Boolean(_), ColumnType::Boolean)
            | (Self::Timestamp(_), ColumnType::Timestamp)
            | (Self::Interval(_), ColumnType::Interval) => true,
            _ => false,
        }
    }

    fn write(&self, column: &Column, out: &mut dyn FieldWriter) {
        if column.optional {
            out.presence(*self != Self::Absent);
        }
        match self {
            Self::Absent => {}
            Self::Decimal(value) => out.decimal(*value),
            Self::Counter(value) => out.counter(*value),
            Self::Integer(value) => out.integer(*value),
            Self::Boolean(value) => out.boolean(*value),
            Self::Text(value) => out.text(value),
            Self::Enumeration(value) => out.code(*value),
            Self::Timestamp(value) => out.time(*value),
            Self::Interval(value) => out.interval(*value),
            Self::Levels(value) => out.levels(value),
        }
    }

    fn read(column: &Column, fields: &mut dyn FieldReader) -> Result<Self> {
        if column.optional && !fields.presence()? {
            return Ok(Self::Absent);
        }
        Ok(match column.ty {
            ColumnType::Decimal => Self::Decimal(fields.decimal()?),
            ColumnType::Counter => Self::Counter(fields.counter()?),
            ColumnType::Integer => Self::Integer(fields.integer()?),
            ColumnType::Boolean => Self::Boolean(fields.boolean()?),
            ColumnType::Text { .. } => Self::Text(fields.text()?.into_owned()),
            ColumnType::Enumeration(_) => Self::Enumeration(fields.code()?),
            ColumnType::Timestamp => Self::Timestamp(fields.time()?),
            ColumnType::Interval => Self::Interval(fields.interval()?),
            ColumnType::Levels { .. } => Self::Levels(fields.levels()?),
        })
    }
}

impl Row {
    /// Creates a record, with its values in the order of the columns.
    ///
    /// # Errors
    /// `InvalidInput` for a series, a sort key or a value that does not fit the dataset.
    pub fn new(dataset: Dataset, series: SeriesKey, sort_key: SortKey, values: Vec<Value>) -> Result<Self> {
        let reject = |field, value: &dyn std::fmt::Debug| Err(misfit(dataset, field, value));
        check_series(dataset, &series)?;
        if dataset.seq().is_none() && sort_key.1 != 0 {
            return reject("seq", &sort_key.1);
        }
        crate::record::macros::check_sort_key(
            (dataset.time(), sort_key.0),
            dataset.seq().map(|seq| (seq, sort_key.1)),
        )?;
        if values.len() != dataset.values().len() {
            return reject("values", &values.len());
        }
        for (value, column) in values.iter().zip(dataset.values()) {
            if !value.fits(column) {
                return reject(column.name, value);
            }
        }
        Ok(Self { dataset, series, sort_key, values })
    }

    /// Returns the dataset of the record.
    pub fn dataset(&self) -> Dataset {
        self.dataset
    }

    /// Returns the series of the record.
    pub fn series(&self) -> &SeriesKey {
        &self.series
    }

    /// Returns the sort key of the record in its series.
    pub fn sort_key(&self) -> SortKey {
        self.sort_key
    }

    /// Returns the values in the order of the columns.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Collects rows of one dataset into a vector for a store.
    ///
    /// # Errors
    /// `InvalidInput` for a row of another dataset.
    pub fn collect(dataset: Dataset, rows: Vec<Self>) -> Result<RecordVec> {
        match rows.iter().find(|row| row.dataset != dataset) {
            Some(other) => {
                Err(Error::invalid("record.row", "dataset", other.dataset, format_args!("must be {dataset}")))
            }
            None => Ok(RecordVec::new(Box::new(RowVec { dataset, rows }))),
        }
    }

    /// Appends the record to a vector of its dataset. The vector may also have typed records.
    ///
    /// # Errors
    /// `InvalidInput` for values that form no valid record.
    pub fn push_to(&self, out: &mut RecordVec) -> Result<()> {
        out.push(&self.series, self.sort_key, &mut Fields(self.values.iter()))
    }

    /// Copies records of any dataset into rows.
    ///
    /// # Errors
    /// `InvalidInput` for a value that does not fit its column.
    pub fn copy_of(records: &dyn Records) -> Result<Vec<Self>> {
        let dataset = records.dataset();
        (0..records.len())
            .map(|at| {
                let mut values = Values(Vec::with_capacity(dataset.values().len()));
                records.write(at, &mut values);
                Self::new(dataset, records.series(at).to_owned(), records.sort_key(at), values.0)
            })
            .collect()
    }

    /// Parses the format of `Serialize`. Ignores fields that the dataset does not have.
    fn from_json(dataset: Dataset, json: &[u8]) -> serde_json::Result<Self> {
        use serde_json::from_value;

        let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(json)?;
        let mut take = |column: &str| fields.remove(column).unwrap_or_default();
        let owner = match dataset.series() {
            SeriesType::Instrument => Owner::Instrument(from_value(take("instrument"))?),
            SeriesType::Name { column, .. } => Owner::Name(from_value::<String>(take(column))?.into()),
        };
        let interval = dataset.interval().map(|column| from_value(take(column))).transpose()?;
        let time = from_value(take(dataset.time()))?;
        let seq = dataset.seq().map(|column| from_value(take(column))).transpose()?;
        let values = dataset.values().iter().map(|column| {
            let value = take(column.name);
            if column.optional && value.is_null() {
                return Ok(Value::Absent);
            }
            Ok(match column.ty {
                ColumnType::Decimal => Value::Decimal(from_value(value)?),
                ColumnType::Counter => Value::Counter(from_value(value)?),
                ColumnType::Integer => Value::Integer(from_value(value)?),
                ColumnType::Boolean => Value::Boolean(from_value(value)?),
                ColumnType::Text { .. } => Value::Text(from_value(value)?),
                ColumnType::Enumeration(names) => {
                    let name: String = from_value(value)?;
                    let at = names.iter().position(|known| *known == name);
                    // A dataset has at most 100 names. Position 0 is invalid, so the check rejects it.
                    Value::Enumeration(at.and_then(|at| u8::try_from(at + 1).ok()).unwrap_or(0))
                }
                ColumnType::Timestamp => Value::Timestamp(from_value(value)?),
                ColumnType::Interval => Value::Interval(from_value(value)?),
                ColumnType::Levels { .. } => Value::Levels(from_value(value)?),
            })
        });
        let values = values.collect::<serde_json::Result<_>>()?;
        let series = SeriesKey { owner, interval };
        Self::new(dataset, series, (time, seq.unwrap_or(0)), values).map_err(serde::de::Error::custom)
    }
}

/// A reader that returns the values of a row.
struct Fields<'a>(std::slice::Iter<'a, Value>);

impl<'a> Fields<'a> {
    fn next<T>(&mut self, take: impl FnOnce(&'a Value) -> Option<T>) -> Result<T> {
        self.0.next().and_then(take).ok_or_else(|| {
            Error::new(ErrorKind::CorruptData, "record.row", "read")
                .with_message("the value must fit its column")
        })
    }
}

macro_rules! take {
    ($($method:ident -> $ty:ty, $variant:ident, |$value:ident| $copy:expr;)*) => {$(
        fn $method(&mut self) -> Result<$ty> {
            self.next(|value| match value {
                Value::$variant($value) => Some($copy),
                _ => None,
            })
        }
    )*};
}

impl FieldReader for Fields<'_> {
    fn presence(&mut self) -> Result<bool> {
        let present = self.0.as_slice().first() != Some(&Value::Absent);
        if !present {
            self.0.next();
        }
        Ok(present)
    }
    fn text(&mut self) -> Result<Cow<'_, str>> {
        self.next(|value| match value {
            Value::Text(text) => Some(Cow::Borrowed(text.as_str())),
            _ => None,
        })
    }
    take! {
        decimal -> Decimal, Decimal, |value| *value;
        counter -> u64, Counter, |value| *value;
        integer -> i64, Integer, |value| *value;
        boolean -> bool, Boolean, |value| *value;
        code -> u8, Enumeration, |value| *value;
        time -> Timestamp, Timestamp, |value| *value;
        interval -> Interval, Interval, |value| *value;
        levels -> Vec<Level>, Levels, |value| value.clone();
    }
}

/// A writer that collects values.
struct Values(Vec<Value>);

impl FieldWriter for Values {
    fn presence(&mut self, present: bool) {
        if !present {
            self.0.push(Value::Absent);
        }
    }
    fn decimal(&mut self, value: Decimal) {
        self.0.push(Value::Decimal(value));
    }
    fn counter(&mut self, value: u64) {
        self.0.push(Value::Counter(value));
    }
    fn integer(&mut self, value: i64) {
        self.0.push(Value::Integer(value));
    }
    fn boolean(&mut self, value: bool) {
        self.0.push(Value::Boolean(value));
    }
    fn text(&mut self, value: &str) {
        self.0.push(Value::Text(value.to_owned()));
    }
    fn code(&mut self, value: u8) {
        self.0.push(Value::Enumeration(value));
    }
    fn time(&mut self, value: Timestamp) {
        self.0.push(Value::Timestamp(value));
    }
    fn interval(&mut self, value: Interval) {
        self.0.push(Value::Interval(value));
    }
    fn levels(&mut self, value: &[Level]) {
        self.0.push(Value::Levels(value.to_vec()));
    }
}

/// Serialises the row like a declared struct: the key, then the present values.
impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let series = match self.dataset.series() {
            SeriesType::Instrument => "instrument",
            SeriesType::Name { column, .. } => column,
        };
        match &self.series.owner {
            Owner::Instrument(instrument) => map.serialize_entry(series, instrument)?,
            Owner::Name(name) => map.serialize_entry(series, &**name)?,
        }
        if let (Some(column), Some(interval)) = (self.dataset.interval(), self.series.interval) {
            map.serialize_entry(column, &interval)?;
        }
        map.serialize_entry(self.dataset.time(), &self.sort_key.0)?;
        if let Some(seq) = self.dataset.seq() {
            map.serialize_entry(seq, &self.sort_key.1)?;
        }
        for (column, value) in self.dataset.values().iter().zip(&self.values) {
            match value {
                Value::Absent => {}
                Value::Decimal(value) => map.serialize_entry(column.name, value)?,
                Value::Counter(value) => map.serialize_entry(column.name, value)?,
                Value::Integer(value) => map.serialize_entry(column.name, value)?,
                Value::Boolean(value) => map.serialize_entry(column.name, value)?,
                Value::Text(value) => map.serialize_entry(column.name, value)?,
                Value::Enumeration(code) => map.serialize_entry(column.name, &column.ty.name_of(*code))?,
                Value::Timestamp(value) => map.serialize_entry(column.name, value)?,
                Value::Interval(value) => map.serialize_entry(column.name, value)?,
                Value::Levels(value) => map.serialize_entry(column.name, value)?,
            }
        }
        map.end()
    }
}

#[derive(Debug)]
pub(super) struct RowVec {
    dataset: Dataset,
    rows: Vec<Row>,
}

impl RowVec {
    pub(super) fn empty(dataset: Dataset) -> RecordVec {
        RecordVec::new(Box::new(Self { dataset, rows: Vec::new() }))
    }
}

impl Records for RowVec {
    fn dataset(&self) -> Dataset {
        self.dataset
    }
    fn len(&self) -> usize {
        self.rows.len()
    }
    fn series(&self, at: usize) -> SeriesRef<'_> {
        self.rows[at].series.as_ref()
    }
    fn sort_key(&self, at: usize) -> SortKey {
        self.rows[at].sort_key
    }
    fn write(&self, at: usize, out: &mut dyn FieldWriter) {
        for (value, column) in self.rows[at].values.iter().zip(self.dataset.values()) {
            value.write(column, out);
        }
    }
    fn write_json(&self, at: usize, out: &mut Vec<u8>) {
        // Writing into memory does not fail, and every row has a JSON form.
        let _ = serde_json::to_writer(out, &self.rows[at]);
    }
    fn copy_to(
        &self,
        at: &mut dyn Iterator<Item = usize>,
        out: &mut RecordVec,
        into: Range<usize>,
    ) -> Result<()> {
        let out = out.erased_mut::<Self>(self.dataset)?;
        super::records::replace(&mut out.rows, into, at.map(|at| self.rows[at].clone()));
        Ok(())
    }
}

/// Returns the error of a value that does not fit its column.
fn misfit(dataset: Dataset, field: &'static str, value: &dyn std::fmt::Debug) -> Error {
    let error = Error::invalid("record.row", field, format_args!("{value:?}"), "must fit its column");
    error.with_context("dataset", dataset)
}

fn check_series(dataset: Dataset, series: &SeriesKey) -> Result<()> {
    let owner_fits = match (&series.owner, dataset.series()) {
        (Owner::Instrument(_), SeriesType::Instrument) => true,
        (Owner::Name(name), SeriesType::Name { max, .. }) => name.len() <= max && !name.contains('\0'),
        _ => false,
    };
    if owner_fits && series.interval.is_some() == dataset.interval().is_some() {
        return Ok(());
    }
    Err(misfit(dataset, "series", series))
}

impl ErasedVec for RowVec {
    fn check_series(&self, series: &SeriesKey) -> Result<()> {
        check_series(self.dataset, series)
    }
    fn push(&mut self, series: &SeriesKey, sort_key: SortKey, fields: &mut dyn FieldReader) -> Result<()> {
        let columns = self.dataset.values();
        let values = columns.iter().map(|column| Value::read(column, fields)).collect::<Result<_>>()?;
        self.rows.push(Row::new(self.dataset, series.clone(), sort_key, values)?);
        Ok(())
    }
    fn push_json(&mut self, json: &[u8]) -> serde_json::Result<()> {
        self.rows.push(Row::from_json(self.dataset, json)?);
        Ok(())
    }
    fn reserve(&mut self, additional: usize) {
        self.rows.reserve(additional);
    }
    fn remove(&mut self, range: Range<usize>) {
        self.rows.drain(range);
    }
    fn split_off(&mut self, at: usize) -> Box<dyn ErasedVec> {
        Box::new(Self { dataset: self.dataset, rows: self.rows.split_off(at) })
    }
    fn same(&self, other: &dyn ErasedVec) -> bool {
        (other as &dyn Any).downcast_ref::<Self>().is_some_and(|other| self.rows == other.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Description, Slice};
    use crate::{ErrorKind, Instrument, PriceTick};

    const COLUMN: Column = Column { name: "value", ty: ColumnType::Counter, optional: true };

    fn description(values: &'static [Column]) -> Description {
        Description {
            name: "drawn",
            version: 1,
            message: "drawn",
            topic: "drawn",
            series: SeriesType::Instrument,
            interval: None,
            time: "ts",
            seq: None,
            values,
            new_vec: RowVec::empty,
        }
    }

    fn ticks(seqs: impl IntoIterator<Item = u64>) -> Vec<PriceTick> {
        let name: Instrument = "x:Y".parse().unwrap();
        let tick = |seq| PriceTick::new(name.clone(), Timestamp::MIN, seq, "1".parse().unwrap()).unwrap();
        seqs.into_iter().map(tick).collect()
    }

    #[test]
    fn typed_records_round_trip_through_rows() {
        let ticks = ticks(0..3);
        let mut back = PriceTick::DATASET.new_vec();
        for row in Row::copy_of(&Slice::new(&ticks).unwrap()).unwrap() {
            row.push_to(&mut back).unwrap();
        }
        assert_eq!(back.into_vec::<PriceTick>().unwrap(), ticks);
    }

    #[test]
    fn copy_to_replaces_inserts_and_appends() {
        let source = RecordVec::from_vec(ticks(10..20));
        let copied = |indices: Range<usize>, into: Range<usize>| {
            let mut out = RecordVec::from_vec(ticks(0..4));
            source.as_records().copy_to(&mut { indices }, &mut out, into).unwrap();
            out.into_vec::<PriceTick>().unwrap()
        };
        assert_eq!(copied(0..2, 1..3), ticks([0, 10, 11, 3]));
        assert_eq!(copied(0..1, 1..3), ticks([0, 10, 3]));
        assert_eq!(copied(0..3, 1..2), ticks([0, 10, 11, 12, 2, 3]));
        assert_eq!(copied(0..1, 2..2), ticks([0, 1, 10, 2, 3]));
        assert_eq!(copied(0..2, 4..4), ticks([0, 1, 2, 3, 10, 11]));
        assert_eq!(copied(0..0, 0..4), ticks([]));
    }

    #[test]
    fn a_run_ends_where_another_series_begins() {
        let mut ticks = ticks(0..4);
        ticks[2] = PriceTick::new("x:Z".parse().unwrap(), Timestamp::MIN, 2, "1".parse().unwrap()).unwrap();
        let records = RecordVec::from_vec(ticks);
        let run = |range| records.as_records().run(range);
        assert_eq!([run(0..4), run(0..1), run(1..4), run(2..4), run(3..3)], [2, 1, 1, 1, 0]);
    }

    #[test]
    fn a_vector_takes_records_of_its_own_type_only() {
        let twin = Dataset::declare(description(&[COLUMN])).unwrap();
        let mut rows = twin.new_vec();
        let ticks = RecordVec::from_vec(ticks(0..1));
        let error = rows.push_copy(ticks.as_records(), 0).unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::InvalidInput, "record.dataset.other"));
        assert!(rows.as_slice::<PriceTick>().is_err());
    }

    #[test]
    fn invalid_description_is_rejected_at_run_time() {
        const TWICE: [Column; 2] = [COLUMN, COLUMN];
        const RESERVED: [Column; 1] = [Column { name: "symbol", ..COLUMN }];
        const LEVELS: [Column; 1] = [Column { ty: ColumnType::Levels { max: 5 }, ..COLUMN }];
        const LONG: [Column; 1] = [Column { ty: ColumnType::Text { max: 4_097 }, ..COLUMN }];
        const NO_NAMES: [Column; 1] = [Column { ty: ColumnType::Enumeration(&[]), ..COLUMN }];
        for values in [&TWICE[..], &RESERVED, &LEVELS, &LONG, &NO_NAMES] {
            assert!(Dataset::declare(description(values)).is_err(), "{values:?}");
        }
        assert!(Dataset::declare(Description { name: "Drawn", ..description(&[]) }).is_err());
        assert!(Dataset::declare(Description { seq: Some("ts"), ..description(&[]) }).is_err());
    }

    #[test]
    fn row_that_differs_from_its_description_is_rejected() {
        let dataset = Dataset::declare(description(&[COLUMN])).unwrap();
        let series = SeriesKey { owner: Owner::Instrument("x:Y".parse().unwrap()), interval: None };
        let sort_key = (Timestamp::MIN, 0);
        let row = |series: &SeriesKey, sort_key, values| Row::new(dataset, series.clone(), sort_key, values);
        row(&series, sort_key, vec![Value::Absent]).unwrap();
        let named = SeriesKey { owner: Owner::Name("x:Y".into()), interval: None };
        let timed = SeriesKey { interval: Some(Interval::M1), ..series.clone() };
        for rejected in [
            row(&named, sort_key, vec![Value::Absent]),
            row(&timed, sort_key, vec![Value::Absent]),
            row(&series, (Timestamp::MIN, 1), vec![Value::Absent]),
            row(&series, (Timestamp::MAX, 0), vec![Value::Absent]),
            row(&series, sort_key, vec![]),
            row(&series, sort_key, vec![Value::Integer(1)]),
            row(&series, sort_key, vec![Value::Counter(u64::MAX)]),
        ] {
            assert_eq!(rejected.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
