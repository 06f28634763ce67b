//! Generated datasets: random columns, and random values of the columns.

use proptest::prelude::*;
use qi_core::domain::MAX_COUNTER;
use qi_core::record::{Column, ColumnType, Dataset, Description, Level, SeriesType, Value};
use qi_core::{Decimal, Interval, Price, Quantity, Timestamp};

/// The names of columns, among them SQL keywords.
const NAMES: [&str; 10] = ["value", "order", "user", "group", "end", "desc", "from", "table", "null_", "x1"];
/// The names of enumeration variants.
const VARIANTS: [&str; 5] = ["one", "two", "select", "x", "a_long_name_with_every_digit_0123456789"];
/// The texts that a store could misinterpret.
const TEXTS: [&str; 12] = [
    "",
    "it's",
    "\\N",
    "\\",
    "NULL",
    "a\tb\nc",
    "{\"a,b\"}",
    "\u{e9}\u{df}",
    "\u{1f600}",
    "$1 ?",
    " x ",
    "%_",
];

fn a_type() -> impl Strategy<Value = ColumnType> {
    prop_oneof![
        Just(ColumnType::Decimal),
        Just(ColumnType::Counter),
        Just(ColumnType::Integer),
        Just(ColumnType::Boolean),
        (1..100usize).prop_map(|max| ColumnType::Text { max }),
        (1..=VARIANTS.len()).prop_map(|count| ColumnType::Enumeration(&VARIANTS[..count])),
        Just(ColumnType::Timestamp),
        Just(ColumnType::Interval),
        (1..12usize).prop_map(|max| ColumnType::Levels { max }),
    ]
}

/// Returns a strategy for descriptions of datasets named `drawn`. They have up to nine columns of all types, with and
/// without sequence numbers and intervals, and with series of instruments or of names.
pub fn descriptions() -> impl Strategy<Value = Description> {
    let columns = prop::collection::vec((a_type(), any::<bool>()), 0..NAMES.len());
    (columns, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(columns, named, interval, seq)| {
        let column = |(name, (ty, optional))| {
            let optional = optional && !matches!(ty, ColumnType::Levels { .. });
            Column { name, ty, optional }
        };
        let values: Vec<Column> = NAMES.into_iter().zip(columns).map(column).collect();
        Description {
            name: "drawn",
            version: 1,
            message: "drawn",
            topic: "drawn",
            series: if named { SeriesType::Name { column: "name", max: 40 } } else { SeriesType::Instrument },
            interval: interval.then_some("interval"),
            time: "time",
            seq: seq.then_some("seq"),
            values: values.leak(),
            new_vec: |dataset| dataset.new_vec(),
        }
    })
}

/// Returns a value of a column. The value is often at a bound of its domain, and absent for some `n` if
/// the column is optional.
///
/// # Panics
/// Never, because every `n` gives a valid value.
pub fn value_of(column: &Column, n: u32) -> Value {
    if column.optional && n % 4 == 1 {
        return Value::Absent;
    }
    let (n, rest) = (n / 8, i64::from(n / 64));
    let pick = n as usize;
    let units = match n % 6 {
        0 => i128::from(rest),
        1 => -i128::from(rest),
        2 => Decimal::MAX_UNITS,
        3 => -Decimal::MAX_UNITS,
        4 => i128::from(rest) * Decimal::UNITS_PER_ONE,
        _ => 987_654_321_012_345_678 * (i128::from(rest) + 1),
    };
    match column.ty {
        ColumnType::Decimal => Value::Decimal(Decimal::from_units(units).expect("within the domain")),
        ColumnType::Counter => Value::Counter([rest.unsigned_abs(), MAX_COUNTER][pick % 2]),
        ColumnType::Integer => Value::Integer([rest, -rest, i64::MIN, i64::MAX][pick % 4]),
        ColumnType::Boolean => Value::Boolean(n % 2 == 1),
        ColumnType::Text { max } => {
            let mut text = TEXTS[pick % TEXTS.len()].repeat(1 + pick % 3);
            while text.len() > max {
                text.pop();
            }
            Value::Text(text)
        }
        ColumnType::Enumeration(names) => {
            Value::Enumeration(u8::try_from(1 + pick % names.len()).expect("at most 100 names"))
        }
        ColumnType::Timestamp => Value::Timestamp(match n % 3 {
            0 => Timestamp::MIN,
            1 => Timestamp::MAX_RECORD,
            _ => Timestamp::from_micros(1_709_510_400_000_001 + rest).expect("a time of 2024"),
        }),
        ColumnType::Interval => Value::Interval(Interval::ALL[pick % Interval::ALL.len()]),
        ColumnType::Levels { max } => {
            let level = |at: usize| {
                let units = units.abs().max(1) - i128::from(!at.is_multiple_of(2));
                Level {
                    price: Price::from_units(units.max(1)).expect("positive"),
                    quantity: Quantity::from_units(units).expect("not negative"),
                }
            };
            Value::Levels((0..pick % (max + 1)).map(level).collect())
        }
        other => unreachable!("a column type without values: {other:?}"),
    }
}

/// Returns the values of a record. The seed 0 gives the simplest values, so a failing case shrinks to them.
pub(super) fn values_of(dataset: Dataset, seed: u32) -> Vec<Value> {
    // The rotation gives each column another number.
    let value = |(n, column): (u32, _)| value_of(column, seed.wrapping_mul(2_654_435_761).rotate_left(7 * n));
    (0u32..).zip(dataset.values()).map(value).collect()
}
