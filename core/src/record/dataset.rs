//! The description of a dataset.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Serialize, Serializer};

use self::records::RecordVec;
use self::row::RowVec;
use crate::record::SeriesKey;
use crate::{Error, Interval, Result, Timestamp};

pub(super) mod records;
pub(super) mod row;

/// The description of a dataset: a `Copy` handle to a static [`Description`].
///
/// `PriceTick::DATASET` is the dataset of a declared record. [`Dataset::declare`] creates a dataset at run time.
#[derive(Clone, Copy)]
pub struct Dataset(&'static Description);

/// The parts of a dataset's description.
#[derive(Clone, Copy)]
pub struct Description {
    /// The name of the dataset and of its table, for example `ticks`.
    pub name: &'static str,
    /// The version of the message format.
    pub version: u16,
    /// The name of one record in message headers, for example `tick`.
    pub message: &'static str,
    /// The default topic, for example `crypto-prices`.
    pub topic: &'static str,
    /// The type of a series.
    pub series: SeriesType,
    /// The name of the interval column, if the interval is part of the series.
    pub interval: Option<&'static str>,
    /// The name of the time column.
    pub time: &'static str,
    /// The name of the sequence number's column, if the key has a sequence number.
    pub seq: Option<&'static str>,
    /// The columns besides the key, in the declared order.
    pub values: &'static [Column],
    /// The function that creates an empty vector of records. [`Dataset::declare`] replaces it.
    pub new_vec: fn(Dataset) -> RecordVec,
}

/// The type of a series. The enum is closed on purpose, because every store must support each type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SeriesType {
    /// The series of an instrument.
    Instrument,
    /// The series of a name.
    Name {
        /// The name of the column.
        column: &'static str,
        /// The longest text in bytes.
        max: usize,
    },
}

impl SeriesType {
    /// Returns the type of a series, from its [`super::Series::MAX_NAME`] and the name of its field.
    #[must_use]
    pub const fn of(max: Option<usize>, column: &'static str) -> Self {
        match max {
            None => Self::Instrument,
            Some(max) => Self::Name { column, max },
        }
    }
}

/// A column besides the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Column {
    /// The name of the column.
    pub name: &'static str,
    /// The type of the column.
    pub ty: ColumnType,
    /// True if the value may be absent.
    pub optional: bool,
}

impl Column {
    pub(super) const EMPTY: Self = Self { name: "", ty: ColumnType::Boolean, optional: false };
}

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ColumnType {
    /// An exact decimal with 20 digits before and 18 after the point.
    Decimal,
    /// An integer from 0 to 2⁶³ - 1.
    Counter,
    /// A signed 64-bit integer.
    Integer,
    /// A boolean, true or false.
    Boolean,
    /// UTF-8 text without NUL.
    Text {
        /// The longest text in bytes.
        max: usize,
    },
    /// One of these names. Stores keep the position of the name, counted from 1.
    Enumeration(&'static [&'static str]),
    /// A time in microseconds.
    Timestamp,
    /// The interval of a bar.
    Interval,
    /// A list of levels of an order book. The list may be empty, but it is never absent.
    Levels {
        /// The maximum number of levels.
        max: usize,
    },
}

impl ColumnType {
    /// Returns the name at a position of an enumeration, counted from 1.
    pub fn name_of(self, code: u8) -> Option<&'static str> {
        match self {
            Self::Enumeration(names) => names.get(usize::from(code).checked_sub(1)?).copied(),
            _ => None,
        }
    }
}

impl fmt::Debug for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Description").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The rule for the names of datasets, columns and enumerations.
const NAME: &str = "must match [a-z][a-z0-9_]{0,39}";

impl Description {
    fn check(&self) -> Result<()> {
        let reject = |field: &str, value: &dyn fmt::Display, rule: &str| {
            let error = Error::invalid("record.dataset", "dataset", value, rule);
            Err(error.with_context("dataset", self.name).with_context("part", field))
        };
        let is_name = |text: &str| {
            (1..=40).contains(&text.len())
                && text.starts_with(|c: char| c.is_ascii_lowercase())
                && text.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_'))
        };
        if !is_name(self.name) {
            return reject("name", &self.name, NAME);
        }
        if self.values.len() > 100 {
            return reject("columns", &self.values.len(), "must have at most 100 columns");
        }
        // Adapters use these column names for the instrument.
        let mut names = vec!["instrument", "instrument_id", "exchange", "symbol"];
        if let SeriesType::Name { column, max } = self.series {
            if !(1..=512).contains(&max) {
                return reject(column, &max, "must hold from 1 to 512 bytes");
            }
            names.clear();
            names.push(column);
        }
        let keys = [self.interval, Some(self.time), self.seq].into_iter().flatten();
        for name in keys.chain(self.values.iter().map(|column| column.name)) {
            if !is_name(name) {
                return reject("column", &name, NAME);
            }
            if names.contains(&name) {
                return reject("column", &name, "must have a unique name");
            }
            names.push(name);
        }
        for Column { name, ty, optional } in self.values {
            match ty {
                ColumnType::Text { max } if !(1..=4_096).contains(max) => {
                    return reject(name, max, "must hold from 1 to 4096 bytes");
                }
                ColumnType::Levels { max } if !(1..=1_000).contains(max) => {
                    return reject(name, max, "must hold from 1 to 1000 levels");
                }
                ColumnType::Levels { .. } if *optional => {
                    return reject(name, name, "must not be optional: an empty list has no levels");
                }
                ColumnType::Enumeration(labels) if !(1..=100).contains(&labels.len()) => {
                    return reject(name, &labels.len(), "must have from 1 to 100 names");
                }
                ColumnType::Enumeration(labels) => {
                    for (at, label) in labels.iter().enumerate() {
                        if !is_name(label) || labels[..at].contains(label) {
                            return reject(
                                name,
                                label,
                                "must be different names that match [a-z][a-z0-9_]{0,39}",
                            );
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Dataset {
    /// Returns the handle of a description. `#[derive(Record)]` calls it.
    #[doc(hidden)]
    pub const fn from_static(description: &'static Description) -> Self {
        Self(description)
    }

    /// Declares a dataset at run time. Its records are [`super::Row`]s. The description stays in memory until the
    /// process ends, so a program should declare each dataset once, at the start.
    ///
    /// # Errors
    /// `InvalidInput` for a name that does not match `[a-z][a-z0-9_]{0,39}`, a repeated or reserved column name, more
    /// than 100 columns, or a bound that is out of range.
    pub fn declare(description: Description) -> Result<Self> {
        description.check()?;
        Ok(Self(Box::leak(Box::new(Description { new_vec: RowVec::empty, ..description }))))
    }

    /// Checks the names and bounds of the description. [`crate::Datasets`] calls it for every registered dataset.
    pub(crate) fn check(self) -> Result<()> {
        self.0.check()
    }

    /// Returns the name of the dataset, for example `ticks`.
    pub const fn name(self) -> &'static str {
        self.0.name
    }

    /// Returns the version of the message format.
    pub const fn version(self) -> u16 {
        self.0.version
    }

    /// Returns the name of one record in message headers, for example `tick`.
    pub const fn message(self) -> &'static str {
        self.0.message
    }

    /// Returns the default topic.
    pub const fn topic(self) -> &'static str {
        self.0.topic
    }

    /// Returns the type of a series.
    pub const fn series(self) -> SeriesType {
        self.0.series
    }

    /// Returns the name of the interval column, if the interval is part of the series.
    pub const fn interval(self) -> Option<&'static str> {
        self.0.interval
    }

    /// Returns the name of the time column.
    pub const fn time(self) -> &'static str {
        self.0.time
    }

    /// Returns the name of the sequence number's column, if the key has a sequence number.
    pub const fn seq(self) -> Option<&'static str> {
        self.0.seq
    }

    /// Returns the value columns in the declared order.
    pub const fn values(self) -> &'static [Column] {
        self.0.values
    }

    /// Returns an empty vector for records of this dataset.
    pub fn new_vec(self) -> RecordVec {
        (self.0.new_vec)(self)
    }

    /// Returns the estimated size in bytes of the largest record of this dataset.
    pub fn record_width(self) -> usize {
        let width = |column: &Column| match column.ty {
            ColumnType::Text { max } => max,
            ColumnType::Levels { max } => 32 * max,
            _ => 16,
        };
        64 + self.values().iter().map(width).sum::<usize>()
    }

    /// Checks that records of this dataset can have a series.
    ///
    /// # Errors
    /// `InvalidInput` for a series of another type, or a name that is not valid in this dataset.
    pub fn check_series(self, series: &SeriesKey) -> Result<()> {
        self.new_vec().check_series(series)
    }

    /// Returns the time from which an `as_of` query returns a record: its time, or its close time if
    /// the series has an interval.
    pub fn known_at(self, time: Timestamp, interval: Option<Interval>) -> Timestamp {
        interval.map_or(time, |interval| time.checked_add(interval.duration()).unwrap_or(Timestamp::MAX))
    }
}

impl PartialEq for Dataset {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Dataset {}

impl Ord for Dataset {
    fn cmp(&self, other: &Self) -> Ordering {
        if std::ptr::eq(self.0, other.0) { Ordering::Equal } else { compare(self.0, other.0) }
    }
}

fn compare(one: &Description, other: &Description) -> Ordering {
    let key = |d: &Description| {
        (d.name, d.version, d.message, d.topic, d.series, d.interval, d.time, d.seq, d.values)
    };
    key(one).cmp(&key(other))
}

impl PartialOrd for Dataset {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Dataset {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dataset({})", self.0.name)
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.0.name)
    }
}

impl Serialize for Dataset {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.name)
    }
}
