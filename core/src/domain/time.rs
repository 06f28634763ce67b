//! Time: microseconds since the Unix epoch in UTC, and the clock for timestamps of records.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{Error, Result};

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// A time in UTC, in microseconds since 1970-01-01T00:00:00Z.
///
/// The domain begins at 1970-01-05, a Monday, so the first bucket of every interval starts at a valid timestamp. Zero,
/// the usual value of an unset field, is thus rejected. The domain ends at 2262-01-31. The latest time of a record is
/// [`Timestamp::MAX_RECORD`], so exclusive ends and close times after the last record are valid timestamps too.
/// Displayed as `2021-01-08T00:00:00.000278Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The start of the domain, 1970-01-05T00:00:00Z.
    pub const MIN: Self = Self(4 * MICROS_PER_DAY);
    /// The latest time of a record, 2261-12-31T23:59:59.999999Z.
    pub const MAX_RECORD: Self = Self(106_651 * MICROS_PER_DAY - 1);
    /// The end of the domain, 2262-01-31T00:00:00Z.
    pub const MAX: Self = Self(106_681 * MICROS_PER_DAY);

    /// Returns the current time of the system clock; see [`SystemClock`].
    ///
    /// An agent uses [`AgentContext::now`](crate::AgentContext::now) instead, which reads the clock of its runtime, so
    /// that tests control the time.
    #[must_use]
    pub fn now() -> Self {
        SystemClock.now()
    }

    /// Creates the timestamp of this number of microseconds after the epoch.
    ///
    /// # Errors
    /// `InvalidInput` outside [`Timestamp::MIN`] to [`Timestamp::MAX`].
    pub fn from_micros(micros: i64) -> Result<Self> {
        Self::checked(Some(micros), format_args!("{micros} us"))
    }

    /// Returns the timestamp if it lies in the domain. The error shows the value in the caller's unit.
    fn checked(micros: Option<i64>, given: fmt::Arguments<'_>) -> Result<Self> {
        match micros {
            Some(micros) if (Self::MIN.0..=Self::MAX.0).contains(&micros) => Ok(Self(micros)),
            _ => {
                let rule = "must lie from 1970-01-05 to 2262-01-31";
                Err(Error::invalid("domain.time.range", "time", given, rule))
            }
        }
    }

    /// Creates the timestamp of this number of milliseconds after the epoch. Errors as [`Timestamp::from_micros`].
    pub fn from_millis(millis: i64) -> Result<Self> {
        Self::checked(millis.checked_mul(1_000), format_args!("{millis} ms"))
    }

    /// Creates the timestamp of this number of seconds after the epoch. Errors as [`Timestamp::from_micros`].
    pub fn from_secs(secs: i64) -> Result<Self> {
        Self::checked(secs.checked_mul(MICROS_PER_SECOND), format_args!("{secs} s"))
    }

    /// Creates the timestamp of this number of nanoseconds after the epoch, truncated (not rounded) to the microsecond.
    /// Errors as [`Timestamp::from_micros`].
    pub fn from_nanos_floor(nanos: i64) -> Result<Self> {
        Self::from_micros(nanos.div_euclid(1_000))
    }

    /// Returns the number of microseconds since the epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Returns the number of milliseconds since the epoch, truncated (not rounded).
    pub const fn as_millis_floor(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Returns the number of nanoseconds since the epoch.
    pub const fn as_nanos(self) -> i64 {
        // The domain ends before 2262-04-11, the end of the range of 64-bit nanoseconds.
        self.0 * 1_000
    }

    /// Returns this time truncated to the millisecond, the resolution of a message bus.
    #[must_use]
    pub const fn floor_to_millis(self) -> Self {
        Self(self.0 - self.0.rem_euclid(1_000))
    }

    /// Returns the time `by` later (truncated to microseconds), or None beyond [`Timestamp::MAX`].
    pub fn checked_add(self, by: Duration) -> Option<Self> {
        let micros = i64::try_from(by.as_micros()).ok()?;
        Self::from_micros(self.0.checked_add(micros)?).ok()
    }

    /// Returns the time `by` earlier (truncated to microseconds), or None before [`Timestamp::MIN`].
    pub fn checked_sub(self, by: Duration) -> Option<Self> {
        let micros = i64::try_from(by.as_micros()).ok()?;
        Self::from_micros(self.0.checked_sub(micros)?).ok()
    }

    /// Returns the duration since `earlier`, or zero if `earlier` is later.
    pub fn duration_since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }

    /// Checks that a record can have this time.
    pub(crate) fn for_record(self, field: &'static str) -> Result<Self> {
        if self <= Self::MAX_RECORD {
            Ok(self)
        } else {
            Err(Error::invalid(
                "domain.time.record",
                field,
                self,
                "must not be after 2261-12-31T23:59:59.999999Z",
            ))
        }
    }

    /// Creates a timestamp without checks, for callers in this library that know the bounds.
    pub(crate) const fn from_micros_unchecked(micros: i64) -> Self {
        Self(micros)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, in_day) = (self.0.div_euclid(MICROS_PER_DAY), self.0.rem_euclid(MICROS_PER_DAY));
        let (year, month, day) = civil_from_days(days);
        let (secs, micros) = (in_day / MICROS_PER_SECOND, in_day % MICROS_PER_SECOND);
        let (h, m, s) = (secs / 3_600, secs / 60 % 60, secs % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}")?;
        if micros != 0 {
            write!(f, ".{micros:06}")?;
        }
        f.write_str("Z")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    /// Parses the format of `Display`: `2021-01-08T00:00:00Z`, with at most six decimal places of the second. A space
    /// may replace the `T`. The time of day and the `Z` are optional; the time is always UTC.
    fn from_str(text: &str) -> Result<Self> {
        parse_utc(text)
            .ok_or_else(|| {
                Error::invalid("domain.time.syntax", "time", text, "must be YYYY-MM-DDTHH:MM:SS[.ffffff]Z")
            })
            .and_then(Self::from_micros)
    }
}

super::text_conversions!(static Timestamp);

fn parse_utc(text: &str) -> Option<i64> {
    let number = |part: &str, digits: usize| -> Option<i64> {
        (part.len() == digits && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok())?
    };
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00"));
    let mut date = date.split('-');
    let (year, month, day) = (number(date.next()?, 4)?, number(date.next()?, 2)?, number(date.next()?, 2)?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.split(':');
    let (h, m, s) = (number(clock.next()?, 2)?, number(clock.next()?, 2)?, number(clock.next()?, 2)?);
    if date.next().is_some() || clock.next().is_some() || h > 23 || m > 59 || s > 59 {
        return None;
    }
    if fraction.is_empty() || fraction.len() > 6 {
        return None;
    }
    let micros = number(fraction, fraction.len())? * 10i64.pow(6 - u32::try_from(fraction.len()).ok()?);
    let days = days_from_civil(year, month, day);
    if civil_from_days(days) != (year, month, day) {
        return None;
    }
    Some(days * MICROS_PER_DAY + (h * 3_600 + m * 60 + s) * MICROS_PER_SECOND + micros)
}

/// Returns the days since 1970-01-01 of a proleptic Gregorian date.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`.
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let year_of_era = y.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Computes the inverse of [`days_from_civil`]. Source: the same, `civil_from_days`.
const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, doy - (153 * mp + 2) / 5 + 1)
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_micros(i64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl TryFrom<SystemTime> for Timestamp {
    type Error = Error;

    /// Truncates (does not round) to the microsecond.
    fn try_from(time: SystemTime) -> Result<Self> {
        let micros =
            time.duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_micros()).ok());
        Self::checked(micros, format_args!("{time:?}"))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        UNIX_EPOCH + Duration::from_micros(time.0.unsigned_abs())
    }
}

#[cfg(feature = "chrono")]
impl TryFrom<chrono::DateTime<chrono::Utc>> for Timestamp {
    type Error = Error;

    /// Truncates (does not round) to the microsecond.
    fn try_from(value: chrono::DateTime<chrono::Utc>) -> Result<Self> {
        Self::from_micros(value.timestamp_micros())
    }
}

#[cfg(feature = "chrono")]
impl From<Timestamp> for chrono::DateTime<chrono::Utc> {
    fn from(value: Timestamp) -> Self {
        Self::from_timestamp_micros(value.0).expect("chrono's range holds every Timestamp")
    }
}

/// The clock for the timestamps of records. Timers use tokio's clock instead.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Returns the current time.
    fn now(&self) -> Timestamp;
}

/// The system clock. A time outside the domain, such as before 1970-01-05, reads as the nearest bound.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros());
        let micros = i64::try_from(micros).unwrap_or(i64::MAX);
        Timestamp(micros.clamp(Timestamp::MIN.0, Timestamp::MAX.0))
    }
}

impl<C: Clock + ?Sized> Clock for std::sync::Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_the_dates_of_the_contract() {
        assert_eq!(Timestamp::MIN.to_string(), "1970-01-05T00:00:00Z");
        assert_eq!(Timestamp::MAX_RECORD.to_string(), "2261-12-31T23:59:59.999999Z");
        assert_eq!(Timestamp::MAX.to_string(), "2262-01-31T00:00:00Z");
        for micros in [0, -1, i64::MIN, i64::MAX, Timestamp::MIN.0 - 1, Timestamp::MAX.0 + 1] {
            assert!(Timestamp::from_micros(micros).is_err(), "{micros}");
        }
        let far = Timestamp::from_secs(i64::MAX).unwrap_err();
        assert_eq!(far.context_value("value"), Some("9223372036854775807 s"), "as it was given");
        assert!(Timestamp::from_millis(i64::MIN).is_err());
    }

    #[test]
    fn finer_times_are_truncated() {
        let t = Timestamp::from_nanos_floor(1_610_064_000_278_999_999).unwrap();
        assert_eq!(t.as_micros(), 1_610_064_000_278_999);
        assert_eq!(t.as_millis_floor(), 1_610_064_000_278);
        assert_eq!(t.floor_to_millis().as_micros(), 1_610_064_000_278_000);
    }

    #[test]
    fn system_times_convert() {
        let now = Timestamp::now();
        assert_eq!(Timestamp::try_from(SystemTime::from(now)).unwrap(), now);
        assert_eq!(now.as_nanos(), now.as_micros() * 1_000);
        assert_eq!(Timestamp::MAX.as_nanos() / 1_000, Timestamp::MAX.as_micros());
        assert!(Timestamp::try_from(UNIX_EPOCH).is_err());
    }

    #[test]
    fn display_round_trips() {
        for text in ["2021-01-08T00:00:00.000278Z", "2000-02-29T23:59:59Z", "2262-01-31T00:00:00Z"] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), text);
        }
        assert_eq!("2022-01-01 00:01:00".parse::<Timestamp>().unwrap().to_string(), "2022-01-01T00:01:00Z");
        assert_eq!("2022-01-01".parse::<Timestamp>().unwrap().to_string(), "2022-01-01T00:00:00Z");
        for bad in
            ["", "2021-02-29", "2021-13-01", "2021-01-01T24:00:00Z", "2021-01-01T00:00:00.1234567Z", "x"]
        {
            assert!(bad.parse::<Timestamp>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_round_trip(micros in Timestamp::MIN.0..=Timestamp::MAX.0) {
            let t = Timestamp::from_micros(micros).unwrap();
            proptest::prop_assert_eq!(t.to_string().parse::<Timestamp>().unwrap(), t);
        }
    }

    #[cfg(feature = "chrono")]
    #[test]
    fn chrono_conversions_are_exact() {
        let t: Timestamp = "2024-02-29T12:34:56.000001Z".parse().unwrap();
        let c = chrono::DateTime::<chrono::Utc>::from(t);
        assert_eq!(c.timestamp_micros(), t.as_micros());
        assert_eq!(Timestamp::try_from(c).unwrap(), t);
    }
}
