//! The paths of an archive: `<dataset>/<exchange>/<symbol>[/<interval>]/<period>.parquet`.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use qi_core::record::{Dataset, Owner, SeriesKey, SeriesType};
use qi_core::{Error, Exchange, Instrument, Interval, Result, Symbol, TimeRange, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The length of the period that one file covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeriodLength {
    /// A day in UTC.
    #[default]
    Day,
    /// A month in UTC.
    Month,
}

/// A day or a month in UTC. Displayed as `2024-01-31` or `2024-01`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Period {
    range: (Timestamp, Timestamp),
    /// The number of characters of the name.
    digits: usize,
}

impl Period {
    /// Returns the period that contains a time.
    pub fn of(time: Timestamp, length: PeriodLength) -> Self {
        let text = time.to_string();
        let digits = match length {
            PeriodLength::Day => 10,
            PeriodLength::Month => 7,
        };
        // A displayed time begins with its date, so its first characters are a period.
        Self::named(text.get(..digits).unwrap_or_default())
            .unwrap_or(Self { range: (time, Timestamp::MAX), digits })
    }

    fn named(name: &str) -> Option<Self> {
        let part = |at: std::ops::Range<usize>| name.get(at)?.parse::<u16>().ok();
        let first = |name: &str| format!("{name}T00:00:00Z").parse::<Timestamp>().ok();
        let (start, end) = match name.len() {
            10 => {
                // The days before the domain have no records.
                let start = first(name)?;
                (start, start.checked_add(std::time::Duration::from_hours(24))?)
            }
            7 => {
                let (year, month) = (part(0..4)?, part(5..7)?);
                let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                let end = first(&format!("{:04}-{:02}-01", next.0, next.1)).unwrap_or(Timestamp::MAX);
                // The domain begins within a month.
                let start = first(&format!("{name}-01"));
                (start.or((name == "1970-01").then_some(Timestamp::MIN))?, end)
            }
            _ => return None,
        };
        Some(Self { range: (start, end), digits: name.len() })
    }

    /// Returns the length of the period.
    pub fn length(self) -> PeriodLength {
        if self.digits == 10 { PeriodLength::Day } else { PeriodLength::Month }
    }

    /// Returns the start, inclusive.
    pub fn start(self) -> Timestamp {
        self.range.0
    }

    /// Returns the end, exclusive.
    pub fn end(self) -> Timestamp {
        self.range.1
    }

    /// Returns the range of the period.
    pub fn range(self) -> TimeRange {
        // The start is before the end, so the range is valid.
        TimeRange::new(self.range.0, self.range.1).unwrap_or(TimeRange::since(self.range.0))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.range.0.to_string();
        f.pad(text.get(..self.digits).unwrap_or(&text))
    }
}

impl FromStr for Period {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let period = Self::named(text).filter(|period| period.to_string() == text);
        period.ok_or_else(|| {
            Error::invalid(
                "archive.period",
                "period",
                text,
                "must be a day (2024-01-31) or a month (2024-01)",
            )
        })
    }
}

impl Serialize for Period {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// File systems limit a name to 255 bytes.
const MAX_NAME: usize = 200;

/// Returns a name as a part of a path. Different names have different parts.
///
/// Letters, digits and the characters `.-_` stay as they are; other bytes are percent-encoded. A leading `_` or `.` is
/// encoded too, because readers of datasets ignore such names. The empty name, which is the stored form of the global
/// scope, becomes `global`. The end of a long name is replaced by its SHA-256.
fn part(name: &str) -> String {
    let escaped_at = |at: usize, byte: u8| match byte {
        b'.' | b'_' => at == 0,
        b'-' => false,
        b'g' => at == 0 && name == "global",
        byte => !byte.is_ascii_alphanumeric(),
    };
    if name.is_empty() {
        return "global".to_owned();
    }
    let mut part = String::with_capacity(name.len());
    for (at, byte) in name.bytes().enumerate() {
        if escaped_at(at, byte) {
            // Writing into memory does not fail.
            let _ = write!(part, "%{byte:02X}");
        } else {
            part.push(char::from(byte));
        }
    }
    if part.len() > MAX_NAME {
        let digest = crate::content::hex(&Sha256::digest(name));
        part.truncate(MAX_NAME - digest.len() - 1);
        // A `+` in a name is encoded, so only shortened names contain it.
        part = format!("{part}+{digest}");
    }
    part
}

/// Returns the folder of a series, relative to the archive.
pub(super) fn folder(dataset: Dataset, series: &SeriesKey) -> String {
    let mut path = dataset.name().to_owned();
    match &series.owner {
        Owner::Instrument(instrument) => {
            path = format!(
                "{path}/{}/{}",
                part(instrument.exchange().as_str()),
                part(instrument.symbol().as_str())
            );
        }
        Owner::Name(name) => path = format!("{path}/{}", part(name)),
    }
    match series.interval {
        Some(interval) => format!("{path}/{interval}"),
        None => path,
    }
}

/// Returns the name of a part of a path. A shortened name is returned as it is in the path.
fn name_of(part: &str) -> Option<String> {
    if part == "global" {
        return Some(String::new());
    }
    let (mut name, mut bytes) = (Vec::with_capacity(part.len()), part.bytes());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            name.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            name.push(byte);
        }
    }
    String::from_utf8(name).ok()
}

/// Returns the series of a folder. None for a folder that is not that of a series, or that has a shortened name.
pub(super) fn series(dataset: Dataset, path: &str) -> Option<SeriesKey> {
    let mut parts = path.strip_prefix(dataset.name())?.strip_prefix('/')?.split('/');
    let owner = match dataset.series() {
        SeriesType::Instrument => {
            let (exchange, symbol) = (name_of(parts.next()?)?, name_of(parts.next()?)?);
            Owner::Instrument(Instrument::new(Exchange::new(exchange).ok()?, Symbol::new(symbol).ok()?))
        }
        SeriesType::Name { .. } => Owner::Name(name_of(parts.next()?)?.into()),
    };
    let mut interval = None;
    if dataset.interval().is_some() {
        interval = Some(parts.next()?.parse::<Interval>().ok()?);
    }
    let series = SeriesKey { owner, interval };
    // Each series has one folder.
    (dataset.check_series(&series).is_ok() && folder(dataset, &series) == path).then_some(series)
}

/// Returns true for a text that can be the name of a dataset.
pub(super) fn is_dataset_name(name: &str) -> bool {
    name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// Returns the name of a data file.
pub(super) fn data_name(period: Period) -> String {
    format!("{period}.parquet")
}

/// Returns the name of the manifest of a data file. Readers of datasets ignore names that begin with `_`.
pub(super) fn manifest_name(period: Period) -> String {
    format!("_{period}.json")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    #[test]
    fn names_of_periods_are_parsed_and_displayed() {
        for (name, start, end) in [
            ("2024-02-29", "2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"),
            ("1970-01-05", "1970-01-05T00:00:00Z", "1970-01-06T00:00:00Z"),
            ("2024-12", "2024-12-01T00:00:00Z", "2025-01-01T00:00:00Z"),
            ("1970-01", "1970-01-05T00:00:00Z", "1970-02-01T00:00:00Z"),
            ("2261-12", "2261-12-01T00:00:00Z", "2262-01-01T00:00:00Z"),
        ] {
            let period: Period = name.parse().unwrap();
            assert_eq!(period.to_string(), name);
            assert_eq!(
                (period.start(), period.end()),
                (start.parse().unwrap(), end.parse().unwrap()),
                "{name}"
            );
            assert_eq!(Period::of(period.start(), period.length()), period);
            let last = period.end().checked_sub(std::time::Duration::from_micros(1)).unwrap();
            assert_eq!(Period::of(last, period.length()), period);
        }
        for bad in [
            "2024-13",
            "2024-02-30",
            "2024",
            "1970-01-04",
            "2024-1-01",
            "+024-01",
            "2024-01-1x",
            "../../etc/x",
        ] {
            assert!(bad.parse::<Period>().is_err(), "{bad}");
        }
    }

    #[test]
    fn folders_name_their_series() {
        use qi_core::{Bar, MarketSnapshot, PriceTick};
        let of_instrument = |text: &str, interval: Option<Interval>| {
            let instrument: Instrument = text.parse().unwrap();
            SeriesKey { owner: Owner::Instrument(instrument), interval }
        };
        let of_name = |text: &str| SeriesKey { owner: Owner::Name(text.into()), interval: None };
        for (dataset, key) in [
            (PriceTick::DATASET, of_instrument("kraken:XBT/EUR", None)),
            (PriceTick::DATASET, of_instrument("x:global", None)),
            (PriceTick::DATASET, of_instrument("my_venue:\u{e9}%2F", None)),
            (Bar::DATASET, of_instrument("x:Y", Some(Interval::M1))),
            (MarketSnapshot::DATASET, of_name("")),
            (MarketSnapshot::DATASET, of_name("asset:BTC")),
        ] {
            assert_eq!(series(dataset, &folder(dataset, &key)), Some(key));
        }
        for path in [
            "ticks",
            "ticks/x",
            "ticks/x/Y/sub",
            "ticks/x/%41",
            "ticks/x/a%",
            "ticks/x/%zz",
            "ticks/x/%ff",
            "ticks/global/Y",
            "quotes/x/Y",
        ] {
            assert_eq!(series(PriceTick::DATASET, path), None, "{path}");
        }
        assert_eq!(series(Bar::DATASET, "bars/x/Y"), None);
        assert_eq!(series(Bar::DATASET, "bars/x/Y/7m"), None);
        let long = of_instrument(&format!("x:{}", "\u{e9}".repeat(64)), None);
        assert_eq!(series(PriceTick::DATASET, &folder(PriceTick::DATASET, &long)), None);
    }

    #[test]
    fn different_names_have_different_paths() {
        let long = "x".repeat(400);
        let names = [
            "",
            "global",
            "Global",
            "BTC-USDT",
            "btc-usdt",
            "BTC/USDT",
            "BTC%2FUSDT",
            "a_b",
            "_a",
            "%5Fa",
            ".",
            "..",
            "...",
            ".hidden",
            "a b",
            "a:b",
            "\u{e9}",
            "x~",
            &long,
            &long[1..],
        ];
        let parts: std::collections::BTreeSet<_> = names.iter().map(|name| part(name)).collect();
        assert_eq!(parts.len(), names.len());
        for part in parts {
            assert!(part.len() <= MAX_NAME && !part.starts_with(['.', '_']) && !part.contains('/'), "{part}");
        }
        assert_eq!(part("BTC/USDT"), "BTC%2FUSDT");
        // The SHA-256 of the first name begins with the digits 24, and `%24` is `$`.
        let long = format!("{}{}31", "a".repeat(135), "b".repeat(70));
        let twin =
            format!("{}$7fc801553f8babd737bf5b90d4065125f82dc5b29acbc478c7ffe82e8c9dd8", "a".repeat(135));
        assert_ne!(part(&long), part(&twin));
        assert!(part(&long).contains('+') && !part("a+b").contains('+'));
    }
}
