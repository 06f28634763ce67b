//! Times of records: numbers in one of four units, or dates in the notations of pandas and exchanges.

use std::fmt;
use std::time::Duration;

use qi_core::{Decimal, Error, Result, Timestamp};

use crate::number::{bad, units};

/// The unit of a time that is a number since 1970-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TimeUnit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
    /// Microseconds.
    Micros,
    /// Nanoseconds, truncated to the microsecond.
    Nanos,
}

/// Every unit, from the longest to the shortest.
pub(crate) const ANY: &[TimeUnit] = &[TimeUnit::Seconds, TimeUnit::Millis, TimeUnit::Micros, TimeUnit::Nanos];

impl TimeUnit {
    /// Returns the unit in the suffix of a column name, for example `time_ms`.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        let end = name.rsplit(['_', ' ', '(', '[']).next()?.trim_end_matches([')', ']']);
        match end {
            "s" | "sec" | "secs" | "second" | "seconds" => Some(Self::Seconds),
            "ms" | "msec" | "milli" | "millis" | "millisecond" | "milliseconds" => Some(Self::Millis),
            "us" | "usec" | "micro" | "micros" | "microsecond" | "microseconds" => Some(Self::Micros),
            "ns" | "nsec" | "nano" | "nanos" | "nanosecond" | "nanoseconds" => Some(Self::Nanos),
            _ => None,
        }
    }

    const fn per_second(self) -> i128 {
        match self {
            Self::Seconds => 1,
            Self::Millis => 1_000,
            Self::Micros => 1_000_000,
            Self::Nanos => 1_000_000_000,
        }
    }

    /// Converts a number of this unit, given in 10⁻¹⁸, to microseconds. Rounds down.
    fn micros(self, units: i128) -> i128 {
        let per_micro = Decimal::UNITS_PER_ONE / 1_000_000;
        match self {
            Self::Nanos => units.div_euclid(Decimal::UNITS_PER_ONE * 1_000),
            other => units.div_euclid(per_micro * other.per_second()),
        }
    }
}

impl fmt::Display for TimeUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Seconds => "seconds",
            Self::Millis => "milliseconds",
            Self::Micros => "microseconds",
            Self::Nanos => "nanoseconds",
        })
    }
}

/// The first valid time, 1971-01-01, in microseconds. The range up to [`END`] spans a factor of less than 1,000, the
/// factor between two units. A number in the wrong unit is therefore outside the range.
const FIRST: i128 = 31_536_000_000_000;
/// The end of the valid times, 2200-01-01, in microseconds.
const END: i128 = 7_258_118_400_000_000;

/// Parses a time. `allowed` has the possible units of a number, from the longest to the shortest. Uses the unit that
/// gives a time from 1971 to 2199.
///
/// # Errors
/// `InvalidInput` for a time outside these years, or for a text that is no time. Names the assumed unit of a number.
pub(crate) fn parse(text: &str, allowed: &[TimeUnit]) -> Result<Timestamp> {
    let Some(units) = units(text) else {
        let time = date(text)?;
        return if (FIRST..END).contains(&i128::from(time.as_micros())) {
            Ok(time)
        } else {
            Err(bad("time", text, "must be a time from 1971 to 2199"))
        };
    };
    let is_before_end = |unit: &&TimeUnit| unit.micros(units) < END;
    let unit = allowed.iter().find(is_before_end).or(allowed.last()).copied().unwrap_or(TimeUnit::Seconds);
    let micros = unit.micros(units);
    if (FIRST..END).contains(&micros) {
        return Timestamp::from_micros(i64::try_from(micros).unwrap_or(0));
    }
    let year = 1970 + micros.div_euclid(31_556_952_000_000);
    let rule =
        format!("must be a time from 1971 to 2199; as {unit}, the assumed unit, it is in the year {year}");
    Err(bad("time", text, rule))
}

/// Returns whether a text is a time from 1971 to 2199 in any unit or date notation.
pub(crate) fn is_time(text: &str) -> bool {
    parse(text, ANY).is_ok()
}

/// Returns whether a text is a time of day without a date, such as `00:01:00`.
pub(crate) fn is_clock(text: &str) -> bool {
    matches!(text.as_bytes(), [b'0'..=b'9', b'0'..=b'9', b':', ..] | [b'0'..=b'9', b':', ..])
}

/// Parses `2022-01-01`, `2022-01-01 00:00`, `2022-01-01T00:00:00.123456789+02:00` and the like. The default offset is
/// UTC. Digits after the microsecond are truncated.
fn date(text: &str) -> Result<Timestamp> {
    parse_date(text)
        .ok_or_else(|| bad("time", text, "must be a number, or a date such as 2022-01-01 00:00:00"))?
}

/// Returns None for any other notation, and an error for an impossible date, such as 2025-13-01.
fn parse_date(text: &str) -> Option<Result<Timestamp, Error>> {
    let text = text.trim();
    if !text.is_ascii() || text.len() < 10 {
        return None;
    }
    let (day, rest) = text.split_at(10);
    let rest = match rest.as_bytes().first() {
        None => "",
        Some(b'T' | b't' | b' ') => &rest[1..],
        Some(_) => return None,
    };
    let (clock, offset_secs) = split_offset(rest)?;
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    if fraction.is_empty() || fraction.len() > 18 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds = match clock.len() {
        0 if rest.is_empty() => "00:00:00".to_owned(),
        5 => format!("{clock}:00"),
        8 => clock.to_owned(),
        _ => return None,
    };
    let fraction = &fraction[..fraction.len().min(6)];
    let time = match format!("{day}T{seconds}.{fraction}Z").parse::<Timestamp>() {
        Ok(time) => time,
        Err(error) => return Some(Err(error)),
    };
    let offset = Duration::from_secs(u64::from(offset_secs.unsigned_abs()));
    let utc = if offset_secs >= 0 { time.checked_sub(offset) } else { time.checked_add(offset) };
    utc.map(Ok)
}

/// Splits a time of day from its UTC offset in seconds, positive east of Greenwich. None for a malformed offset.
fn split_offset(text: &str) -> Option<(&str, i32)> {
    for suffix in ["Z", "z", " UTC", " GMT", " Z"] {
        if let Some(clock) = text.strip_suffix(suffix) {
            return Some((clock, 0));
        }
    }
    let Some(at) = text.rfind(['+', '-']) else { return Some((text, 0)) };
    let (clock, offset) = (text[..at].trim_end(), &text[at + 1..]);
    let digits: String = offset.chars().filter(|c| *c != ':').collect();
    if !matches!(digits.len(), 2 | 4) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes) =
        (digits[..2].parse::<i32>().ok()?, digits.get(2..4).map_or(Ok(0), str::parse).ok()?);
    if hours > 14 || minutes > 59 {
        return None;
    }
    let seconds = hours * 3_600 + minutes * 60;
    Some((clock, if text.as_bytes()[at] == b'-' { -seconds } else { seconds }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    fn micros(text: &str) -> i64 {
        parse(text, ANY).unwrap().as_micros()
    }

    #[test]
    fn the_unit_is_recognised_by_the_size() {
        for text in [
            "1735689600",
            "1735689600000",
            "1735689600000000",
            "1735689600000000000",
            "1.7356896e9",
            "1735689600.0000000",
            "1735689600000.0",
            "2025-01-01",
            "2025-01-01 00:00",
            "2025-01-01 00:00:00",
            "2025-01-01T00:00:00Z",
            "2025-01-01 00:00:00.000000000",
            "2025-01-01 00:00:00+00:00",
            "2025-01-01 02:00:00+02:00",
            "2024-12-31T19:00:00-0500",
            "2025-01-01 00:00:00 UTC",
        ] {
            assert_eq!(micros(text), 1_735_689_600_000_000, "{text}");
        }
        assert_eq!(micros("1762795433.9717449"), 1_762_795_433_971_744, "cut, not rounded");
        assert_eq!(micros("1735689600012345678"), 1_735_689_600_012_345);
        assert_eq!(micros("2025-01-01 00:00:00.123456789"), 1_735_689_600_123_456);
    }

    #[test]
    fn implausible_times_are_rejected_with_the_assumed_unit() {
        for (text, allowed, says) in [
            (
                "1735689600",
                &[TimeUnit::Millis][..],
                "as milliseconds, the assumed unit, it is in the year 1970",
            ),
            ("1735689600012345", &[TimeUnit::Millis], "as milliseconds, the assumed unit"),
            ("1735689600", &[TimeUnit::Millis, TimeUnit::Micros], "as milliseconds"),
            ("1735689600000000000", &[TimeUnit::Millis, TimeUnit::Micros], "as microseconds"),
            ("1735689600000", &[TimeUnit::Seconds], "as seconds"),
            ("10413792000", ANY, "as milliseconds"),
            ("0", ANY, "as seconds, the assumed unit, it is in the year 1970"),
            ("-5", ANY, "as seconds"),
            ("1970-01-06", ANY, "from 1971 to 2199"),
            ("2300-01-01", ANY, "must"),
            ("yesterday", ANY, "must be a number, or a date"),
            ("2025-13-01", ANY, "must"),
            ("2025-01-01 00:00:00+99:00", ANY, "must"),
        ] {
            let error = parse(text, allowed).unwrap_err().report();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in "[-+0-9.eE:TZ ]{0,40}|\\PC{0,40}") {
            let _ = parse(&text, ANY);
        }

        #[test]
        fn every_unit_gives_the_same_time(micros in 31_536_000_000_000i64..7_258_118_400_000_000) {
            let wanted = Timestamp::from_micros(micros).unwrap();
            proptest::prop_assert_eq!(parse(&micros.to_string(), ANY).unwrap(), wanted);
            proptest::prop_assert_eq!(parse(&format!("{micros}e-6"), ANY).unwrap(), wanted);
            proptest::prop_assert_eq!(parse(&format!("{micros}000"), ANY).unwrap(), wanted);
            proptest::prop_assert_eq!(parse(&wanted.to_string(), ANY).unwrap(), wanted);
        }
    }
}
