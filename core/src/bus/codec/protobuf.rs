//! The wire format of Protocol Buffers, for every dataset.
//!
//! The messages follow from the description of the dataset, so there is no generated code. [`schema`] returns the
//! `.proto` file of a dataset. `proto/qi/v1` has the files of the built-in datasets for programs in other languages.
//!
//! # Fields
//! | number | field |
//! | --- | --- |
//! | 1 | the instrument as `exchange:symbol`, or the name of the series; empty for `Scope::Global` |
//! | 2 | the interval, for example `1m`, if it is part of the series |
//! | 3 | the time in microseconds since the Unix epoch |
//! | 4 | the sequence number, if the key has one |
//! | from 5 | the value columns in the declared order |
//!
//! The numbers never change, because schema evolution only appends columns. All singular fields have explicit presence
//! (`optional`), so a missing value differs from zero. A message without a value that the dataset requires is rejected.
//!
//! Encoding is deterministic: fields are in the order of their numbers, and decimals have no trailing zeros. A reader
//! accepts fields in every order, and uses the last value of a repeated singular field. The format is described at
//! <https://protobuf.dev/programming-guides/encoding/>.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::corrupt;
use crate::record::{
    Column, ColumnType, Dataset, FieldReader, FieldWriter, Level, Owner, RecordVec, Records, SeriesKey,
    SeriesType,
};
use crate::{Decimal, Error, Instrument, Interval, Result, Timestamp};

/// The `.proto` file with the messages that all datasets share: `qi/v1/types.proto`.
pub const TYPES: &str = include_str!("../../../proto/qi/v1/types.proto");

const SERIES: u32 = 1;
const INTERVAL: u32 = 2;
const TIME: u32 = 3;
const SEQ: u32 = 4;
const FIRST_VALUE: u32 = 5;

/// The wire types of Protocol Buffers.
mod wire {
    pub(super) const VARINT: u32 = 0;
    pub(super) const FIXED_64: u32 = 1;
    pub(super) const BYTES: u32 = 2;
    pub(super) const FIXED_32: u32 = 5;
}

/// Returns the `.proto` file of a dataset. Its message is `qi.v1.` plus the
/// dataset's [`Dataset::message`] in camel case.
///
/// ```
/// use qi_core::PriceTick;
/// use qi_core::bus::protobuf;
///
/// assert!(protobuf::schema(PriceTick::DATASET).contains("optional Decimal price = 5;"));
/// ```
#[must_use]
pub fn schema(dataset: Dataset) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_schema(dataset, &mut out);
    out
}

fn write_schema(dataset: Dataset, out: &mut String) -> std::fmt::Result {
    let (name, message) = (dataset.name(), dataset.message());
    writeln!(out, "// The records of the dataset `{name}`, version {}.", dataset.version())?;
    writeln!(
        out,
        "//\n// Header `content-type`: `application/x-protobuf`. Header `qi-type`: `{message}`.\n"
    )?;
    writeln!(out, "syntax = \"proto3\";\n\npackage qi.v1;\n\nimport \"qi/v1/types.proto\";\n")?;
    writeln!(out, "message {} {{", camel_case(message))?;
    let series = match dataset.series() {
        SeriesType::Instrument => {
            writeln!(out, "  // Required. `exchange:symbol`.")?;
            "instrument"
        }
        SeriesType::Name { column, max } => {
            writeln!(out, "  // Required. At most {max} bytes.")?;
            column
        }
    };
    writeln!(out, "  optional string {series} = {SERIES};")?;
    if let Some(interval) = dataset.interval() {
        writeln!(out, "  // Required. For example `1m`.\n  optional string {interval} = {INTERVAL};")?;
    }
    writeln!(
        out,
        "  // Required. Microseconds since the Unix epoch.\n  optional int64 {} = {TIME};",
        dataset.time()
    )?;
    if let Some(seq) = dataset.seq() {
        writeln!(out, "  // Required. At most 2^63 - 1.\n  optional uint64 {seq} = {SEQ};")?;
    }
    for (Column { name, ty, optional }, number) in dataset.values().iter().zip(FIRST_VALUE..) {
        let presence = if *optional { "Optional." } else { "Required." };
        let (ty, note) = match ty {
            ColumnType::Decimal => ("Decimal".to_owned(), String::new()),
            ColumnType::Counter => ("uint64".to_owned(), " At most 2^63 - 1.".to_owned()),
            ColumnType::Integer => ("sint64".to_owned(), String::new()),
            ColumnType::Boolean => ("bool".to_owned(), String::new()),
            ColumnType::Text { max } => ("string".to_owned(), format!(" At most {max} bytes.")),
            ColumnType::Timestamp => ("int64".to_owned(), " Microseconds since the Unix epoch.".to_owned()),
            ColumnType::Interval => ("string".to_owned(), " For example `1m`.".to_owned()),
            ColumnType::Levels { max } => {
                writeln!(out, "  // At most {max} levels.\n  repeated Level {name} = {number};")?;
                continue;
            }
            ColumnType::Enumeration(labels) => {
                let (ty, prefix) = (camel_case(name), name.to_uppercase());
                writeln!(out, "  enum {ty} {{\n    {prefix}_UNSPECIFIED = 0;")?;
                for (label, value) in labels.iter().zip(1..) {
                    writeln!(out, "    {prefix}_{} = {value};", label.to_uppercase())?;
                }
                writeln!(out, "  }}")?;
                (ty, String::new())
            }
        };
        writeln!(out, "  // {presence}{note}\n  optional {ty} {name} = {number};")?;
    }
    writeln!(out, "}}")
}

fn camel_case(name: &str) -> String {
    let words = name.split(['_', '-']).filter(|word| !word.is_empty());
    words.map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

/// Appends the encoded record at index `at`.
pub(super) fn encode(records: &dyn Records, at: usize, out: &mut Vec<u8>) {
    let (series, place, dataset) = (records.series(at), records.sort_key(at), records.dataset());
    put_series(&series.owner, out);
    if let Some(interval) = series.interval {
        put_bytes(INTERVAL, interval.as_str().as_bytes(), out);
    }
    put_number(TIME, place.0.as_micros().cast_unsigned(), out);
    if dataset.seq().is_some() {
        put_number(SEQ, place.1, out);
    }
    records.write(at, &mut Writer { out, number: FIRST_VALUE });
}

fn put_series(owner: &crate::record::OwnerRef<'_>, out: &mut Vec<u8>) {
    use crate::record::OwnerRef;
    match owner {
        OwnerRef::Instrument(instrument) => {
            let (exchange, symbol) = (instrument.exchange().as_str(), instrument.symbol().as_str());
            put_tag(SERIES, wire::BYTES, out);
            put_varint((exchange.len() + 1 + symbol.len()) as u64, out);
            out.extend_from_slice(exchange.as_bytes());
            out.push(b':');
            out.extend_from_slice(symbol.as_bytes());
        }
        OwnerRef::Name(name) => put_bytes(SERIES, name.as_bytes(), out),
    }
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn put_tag(number: u32, wire: u32, out: &mut Vec<u8>) {
    put_varint(u64::from(number << 3 | wire), out);
}

fn put_number(number: u32, value: u64, out: &mut Vec<u8>) {
    put_tag(number, wire::VARINT, out);
    put_varint(value, out);
}

fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_tag(number, wire::BYTES, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Appends a field whose value is a message of less than 128 bytes, so its length has one byte.
fn put_short_message(number: u32, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    put_tag(number, wire::BYTES, out);
    let length = out.len();
    out.push(0);
    body(out);
    debug_assert!(out.len() - length - 1 < 0x80, "a message of {} bytes", out.len() - length - 1);
    out[length] = (out.len() - length - 1).to_le_bytes()[0];
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// The field numbers of the message `Decimal`.
const UNSCALED: u32 = 1;
const SCALE: u32 = 2;
const WIDE: u32 = 3;

fn put_decimal(number: u32, value: Decimal, out: &mut Vec<u8>) {
    let (unscaled, scale) = value.normalized();
    put_short_message(number, out, |out| {
        match i64::try_from(unscaled) {
            Ok(0) => {}
            Ok(short) => put_number(UNSCALED, zigzag(short), out),
            Err(_) => put_bytes(WIDE, &unscaled.to_be_bytes(), out),
        }
        if scale != 0 {
            put_number(SCALE, scale.into(), out);
        }
    });
}

/// A writer of the value columns.
struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// The number of the next field.
    number: u32,
}

impl Writer<'_> {
    fn next(&mut self) -> u32 {
        self.number += 1;
        self.number - 1
    }
}

impl FieldWriter for Writer<'_> {
    fn presence(&mut self, present: bool) {
        if !present {
            self.next();
        }
    }
    fn decimal(&mut self, value: Decimal) {
        put_decimal(self.next(), value, self.out);
    }
    fn counter(&mut self, value: u64) {
        put_number(self.next(), value, self.out);
    }
    fn integer(&mut self, value: i64) {
        put_number(self.next(), zigzag(value), self.out);
    }
    fn boolean(&mut self, value: bool) {
        put_number(self.next(), value.into(), self.out);
    }
    fn text(&mut self, value: &str) {
        put_bytes(self.next(), value.as_bytes(), self.out);
    }
    fn code(&mut self, value: u8) {
        put_number(self.next(), value.into(), self.out);
    }
    fn time(&mut self, value: Timestamp) {
        put_number(self.next(), value.as_micros().cast_unsigned(), self.out);
    }
    fn interval(&mut self, value: Interval) {
        put_bytes(self.next(), value.as_str().as_bytes(), self.out);
    }
    fn levels(&mut self, value: &[Level]) {
        let number = self.next();
        for level in value {
            put_short_message(number, self.out, |out| {
                put_decimal(1, level.price.decimal(), out);
                put_decimal(2, level.quantity.decimal(), out);
            });
        }
    }
}

/// The last value of a field, by wire type.
#[derive(Clone, Copy)]
enum Field<'a> {
    Absent,
    Varint(u64),
    Bytes(&'a [u8]),
    /// A fixed value of 32 or 64 bits. No field of a dataset has this wire type.
    Fixed,
}

/// The largest number of fields that are read without an allocation.
const INLINE_FIELDS: usize = 16;

/// Reads a record, checks it and appends it.
pub(super) fn decode(payload: &[u8], records: &mut RecordVec) -> Result<()> {
    let dataset = records.as_records().dataset();
    let count = dataset.values().len() + FIRST_VALUE as usize;
    let (mut inline, mut heap) = ([Field::Absent; INLINE_FIELDS], Vec::new());
    let fields = if count <= INLINE_FIELDS {
        &mut inline[..count]
    } else {
        heap.resize(count, Field::Absent);
        &mut heap[..]
    };
    read_fields(payload, |number, field| {
        if let Some(known) = fields.get_mut(number) {
            *known = field;
        }
    })?;
    let mut reader = Reader { payload, fields, columns: dataset.values(), at: 0 };
    let key = reader.key(dataset)?;
    let (series, place) = key;
    records.push(&series, place, &mut reader).map_err(|error| {
        if error.code() == CODE {
            return error;
        }
        // The message already has the value. A source error would keep it in memory.
        let rejected = fault(error.message().unwrap_or("no valid record"));
        match error.context_value("field") {
            Some(field) => rejected.with_context("field", field),
            None => rejected,
        }
    })
}

const CODE: &str = "bus.codec.protobuf";

fn fault(message: impl std::fmt::Display) -> Error {
    corrupt(CODE).with_message(message)
}

/// Calls `found` with every field of a message.
fn read_fields<'a>(mut message: &'a [u8], mut found: impl FnMut(usize, Field<'a>)) -> Result<()> {
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        let field = match u32::try_from(tag & 7).unwrap_or_default() {
            wire::VARINT => Field::Varint(take_varint(&mut message)?),
            wire::FIXED_64 => take(&mut message, 8).map(|_| Field::Fixed)?,
            wire::BYTES => {
                let length = take_varint(&mut message)?;
                Field::Bytes(take(&mut message, usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            wire::FIXED_32 => take(&mut message, 4).map(|_| Field::Fixed)?,
            other => return Err(fault("a field has an unknown wire type").with_context("wire_type", other)),
        };
        match usize::try_from(tag >> 3) {
            Ok(0) => return Err(fault("a field has the number 0")),
            Ok(number) => found(number, field),
            Err(_) => {}
        }
    }
    Ok(())
}

fn take<'a>(from: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(length).ok_or_else(|| fault("the message is truncated"))?;
    *from = rest;
    Ok(taken)
}

fn take_varint(from: &mut &[u8]) -> Result<u64> {
    let mut value = 0_u64;
    for (at, byte) in from.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7F);
        if at == 9 && part > 1 {
            break;
        }
        value |= part << (7 * at);
        if byte & 0x80 == 0 {
            *from = &from[at + 1..];
            return Ok(value);
        }
    }
    Err(fault("a varint is truncated or has more than 64 bits"))
}

/// A reader of the value columns.
struct Reader<'a, 'f> {
    payload: &'a [u8],
    /// The fields by number.
    fields: &'f [Field<'a>],
    columns: &'static [Column],
    /// The index of the next column.
    at: usize,
}

impl<'a> Reader<'a, '_> {
    fn key(&self, dataset: Dataset) -> Result<(SeriesKey, (Timestamp, u64))> {
        let text = |number: u32, name: &str| text(self.field(number), name);
        let owner = match dataset.series() {
            SeriesType::Instrument => {
                let instrument = text(SERIES, "instrument")?;
                Owner::Instrument(Instrument::recent(instrument).map_err(|error| invalid(&error))?)
            }
            SeriesType::Name { column, .. } => Owner::Name(text(SERIES, column)?.into()),
        };
        let interval = dataset.interval().map(|column| interval(text(INTERVAL, column)?)).transpose()?;
        let time = timestamp(number(self.field(TIME), dataset.time())?)?;
        let seq = dataset.seq().map_or(Ok(0), |column| number(self.field(SEQ), column))?;
        Ok((SeriesKey { owner, interval }, (time, seq)))
    }

    fn field(&self, number: u32) -> Field<'a> {
        self.fields.get(number as usize).copied().unwrap_or(Field::Absent)
    }

    /// Returns the next column's field number and name.
    fn next(&mut self) -> (u32, &'static str) {
        let at = self.at;
        self.at += 1;
        let name = self.columns.get(at).map_or("", |column| column.name);
        // A dataset has at most 100 columns.
        (FIRST_VALUE + u32::try_from(at).unwrap_or(u32::MAX - FIRST_VALUE), name)
    }

    fn next_number(&mut self) -> Result<u64> {
        let (at, name) = self.next();
        number(self.field(at), name)
    }

    fn next_text(&mut self) -> Result<&'a str> {
        let (at, name) = self.next();
        text(self.field(at), name)
    }
}

fn invalid(error: &Error) -> Error {
    fault(error.message().unwrap_or("invalid value"))
}

fn missing(field: Field<'_>, name: &str) -> Error {
    let rule = if matches!(field, Field::Absent) { "is missing" } else { "has another type" };
    fault(format_args!("the field {name} {rule}")).with_context("field", name)
}

fn number(field: Field<'_>, name: &str) -> Result<u64> {
    match field {
        Field::Varint(value) => Ok(value),
        other => Err(missing(other, name)),
    }
}

fn bytes<'a>(field: Field<'a>, name: &str) -> Result<&'a [u8]> {
    match field {
        Field::Bytes(bytes) => Ok(bytes),
        other => Err(missing(other, name)),
    }
}

fn text<'a>(field: Field<'a>, name: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes(field, name)?)
        .map_err(|_| fault(format_args!("the field {name} is not UTF-8 text")))
}

fn timestamp(value: u64) -> Result<Timestamp> {
    Timestamp::from_micros(value.cast_signed()).map_err(|error| invalid(&error))
}

fn interval(text: &str) -> Result<Interval> {
    text.parse().map_err(|error| invalid(&error))
}

fn decimal(message: &[u8], name: &str) -> Result<Decimal> {
    let (mut unscaled, mut scale, mut wide) = (0, 0, None);
    let mut other = false;
    read_fields(message, |number, field| match (u32::try_from(number).unwrap_or(0), field) {
        (UNSCALED, Field::Varint(value)) => unscaled = unzigzag(value),
        (SCALE, Field::Varint(value)) => scale = value,
        (WIDE, Field::Bytes(value)) => wide = Some(value),
        (UNSCALED | SCALE | WIDE, _) => other = true,
        _ => {}
    })?;
    let reject = |rule: &str| fault(format_args!("the decimal {name} {rule}")).with_context("field", name);
    if other {
        return Err(reject("has a field of another type"));
    }
    let unscaled = match wide {
        None => i128::from(unscaled),
        Some(bytes) if bytes.len() <= 16 => {
            let negative = bytes.first().is_some_and(|first| *first >= 0x80);
            let mut all = [if negative { 0xFF } else { 0 }; 16];
            all[16 - bytes.len()..].copy_from_slice(bytes);
            i128::from_be_bytes(all)
        }
        Some(_) => return Err(reject("has more than 128 bits")),
    };
    let places = u32::try_from(scale).ok().and_then(|scale| Decimal::SCALE.checked_sub(scale));
    let places = places.ok_or_else(|| reject("has more than 18 decimal places"))?;
    let units = Decimal::power_of_ten(places).and_then(|power| unscaled.checked_mul(power));
    let units = units.and_then(|units| Decimal::from_units(units).ok());
    units.ok_or_else(|| reject("must be below 1e20 in magnitude"))
}

impl FieldReader for Reader<'_, '_> {
    fn presence(&mut self) -> Result<bool> {
        let present = !matches!(self.field(FIRST_VALUE + u32::try_from(self.at).unwrap_or(0)), Field::Absent);
        if !present {
            self.at += 1;
        }
        Ok(present)
    }
    fn decimal(&mut self) -> Result<Decimal> {
        let (at, name) = self.next();
        decimal(bytes(self.field(at), name)?, name)
    }
    fn counter(&mut self) -> Result<u64> {
        self.next_number()
    }
    fn integer(&mut self) -> Result<i64> {
        self.next_number().map(unzigzag)
    }
    fn boolean(&mut self) -> Result<bool> {
        self.next_number().map(|value| value != 0)
    }
    fn text(&mut self) -> Result<Cow<'_, str>> {
        self.next_text().map(Cow::Borrowed)
    }
    fn code(&mut self) -> Result<u8> {
        // A value that does not fit is not a valid code, like 0.
        self.next_number().map(|value| u8::try_from(value).unwrap_or(0))
    }
    fn time(&mut self) -> Result<Timestamp> {
        self.next_number().and_then(timestamp)
    }
    fn interval(&mut self) -> Result<Interval> {
        self.next_text().and_then(interval)
    }
    fn levels(&mut self) -> Result<Vec<Level>> {
        let at = self.at;
        let (number, name) = self.next();
        let max = match self.columns.get(at).map(|column| column.ty) {
            Some(ColumnType::Levels { max }) => max,
            _ => 0,
        };
        let (mut levels, mut rejected) = (Vec::new(), None);
        read_fields(self.payload, |found, field| {
            if found == number as usize && rejected.is_none() {
                match bytes(field, name).and_then(|message| level(message, name)) {
                    // One level above the maximum is kept, so that the column's check rejects the record.
                    Ok(level) if levels.len() <= max => levels.push(level),
                    Ok(_) => {}
                    Err(error) => rejected = Some(error),
                }
            }
        })?;
        rejected.map_or(Ok(levels), Err)
    }
}

fn level(message: &[u8], name: &str) -> Result<Level> {
    let (mut price, mut quantity) = (Field::Absent, Field::Absent);
    read_fields(message, |number, field| match number {
        1 => price = field,
        2 => quantity = field,
        _ => {}
    })?;
    let part = |field| bytes(field, name).and_then(|message| decimal(message, name));
    Ok(Level {
        price: crate::Price::new(part(price)?).map_err(|error| invalid(&error))?,
        quantity: crate::Quantity::new(part(quantity)?).map_err(|error| invalid(&error))?,
    })
}
